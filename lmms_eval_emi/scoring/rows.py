"""Results by row, and writing them next to the results of their run.

``results.json`` has the scores; ``results.rows.json`` has the value of each row, the scores without each image, and
the rows of each shift that lost most. The scores name the rows' SHA-256, so rows of another run are never shown.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import MOST_CLUSTERS, MOST_RECOMPUTED, cluster_hash, clusters_of, shared_clusters
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.data.images import content_key, open_image, to_rgb
from lmms_eval_emi.data.rows import Sample
from lmms_eval_emi.errors import ImageError, ResultsError
from lmms_eval_emi.scoring.join import StudySamples
from lmms_eval_emi.scoring.result import RowsReference, SplitScores, StudyResult
from lmms_eval_emi.util.files import (
    Document,
    Plain,
    parse_json,
    parse_model,
    read_document,
    to_json,
    write_atomically,
)

log = logging.getLogger("lmms_eval_emi")
RESULTS = "results of lmms-eval-emi score"
SHOWN_ROWS = 5  # rows shown of each shift: those that lost most
THUMBNAIL_PIXELS = 150
Strata = list[dict[str, float]]


class SplitRows(Plain):
    """The rows of a split, each list in the order of the rows.

    Attributes:
        id: ID of the sample.
        value: EMI plus the row's influence; their mean is EMI.
        image: key of the row's image, or of the block of images that it was left out with.
        cosine: cosine of the embeddings of response and reference.
    """

    id: list[str]
    value: list[float]
    image: list[str] | None = None
    cosine: list[float] | None = None

    @property
    def images(self) -> list[str]:
        """Key of each row's image, or its id if images are not known."""
        return self.id if self.image is None else self.image


class ScoresWithoutImages(Plain):
    """EMI, and EMID of a shift, without each image: by image, a dictionary for each independent set of images."""

    emi: Strata
    emid: Strata | None = None


class ShownRow(Plain):
    """A row that a report shows."""

    id: str
    question: str
    response: str
    reference: str
    image: str = Field("", description="a small JPEG as a data: address, or empty")
    value: float | None = None


class LostRow(ShownRow):
    """A row of a shift beside its twin, the row of the ID split with the same id and reference.

    A loss is the twin's value less the row's own; without a twin the mean of the ID split takes its place.
    """

    loss: float = Field(description="in the row's value, by the result's own estimator")
    cosine: float | None = Field(None, description="of the embeddings of response and reference")
    cosine_loss: float | None = Field(None, description="cosine of its twin, or the mean of the ID split, less its own")
    clean: ShownRow | None = Field(None, description="its twin in the ID split")


class StudyRows(Plain):
    """Results by row of one model in one study."""

    model: str = ""
    signature: str = ""
    rows: dict[str, SplitRows] = {}
    without_each_image: dict[str, ScoresWithoutImages] = {}
    lost: dict[str, list[LostRow]] = {}


class RowsDocument(Document):
    """Document with the rows of each result of the file that it belongs to."""

    kind: Literal["rows"] = "rows"
    results: list[StudyRows]


class ResultsDocument(Document):
    """Several results in one file."""

    kind: Literal["results"] = "results"
    results: list[StudyResult]


@dataclass(frozen=True)
class Scored:
    """A result with its samples, whose rows are in the order of the embeddings.

    Attributes:
        result: result of one model and estimator.
        samples: none if embeddings were given.
        embeddings: embeddings of the samples, by split.
    """

    result: StudyResult
    samples: StudySamples
    embeddings: Mapping[str, Embeddings] = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> StudyRows:
        """Results by row."""
        return result_to_rows(self.result, self.samples.samples, self.embeddings)


def write_results(path: Path, scored: Sequence[Scored]) -> None:
    """Write results as JSON, and their rows beside them.

    Args:
        path: path of the results. Rows are written beside a regular file only, not beside a device or a pipe.
        scored: the results; several become one file.
    """
    results = [item.result for item in scored]
    if not path.exists() or path.is_file():
        content = RowsDocument(results=[item.rows for item in scored]).to_data()
        text = json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(rows_path(path), text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        results = [
            result.model_copy(update={"rows": RowsReference(file=rows_path(path).name, sha256=digest, entry=number)})
            for number, result in enumerate(results)
        ]
    document = results[0] if len(results) == 1 else ResultsDocument(results=results)
    write_atomically(path, to_json(document.to_data()))


def read_results(path: Path) -> list[StudyResult]:
    """Return the results of a file of ``score``.

    Raises:
        ResultsError: the file cannot be read, holds something else, or is damaged.
    """
    return [parse_result(entry, path) for entry in read_entries(path)]


def read_entries(path: Path) -> list[Any]:
    """Return the entries of a file of results as plain data, unchecked.

    Raises:
        ResultsError: the file cannot be read, or is not JSON.
    """
    content = read_document(path, "results")
    several = isinstance(content, dict) and isinstance(content.get("results"), list)
    return content["results"] if several else [content]


def is_result(entry: Any) -> bool:
    """Return whether plain data are meant to be a result of ours."""
    return isinstance(entry, dict) and {"splits", "id_split", "signature"} <= entry.keys()


def parse_result(entry: Any, path: Path) -> StudyResult:
    """Return a result of plain data.

    Raises:
        ResultsError: the data are not results, are of a newer version, or are damaged.
    """
    if not is_result(entry):
        raise ResultsError(f"{path}: expected {RESULTS}, got JSON of another form.")
    return parse_model(StudyResult, entry, path, what=RESULTS)


def read_rows(path: Path, result: StudyResult) -> StudyRows:
    """Return the rows of a result; none if their file is missing, damaged or of another result.

    Args:
        path: path of the results.
        result: one of them.
    """
    if result.rows is None:
        return StudyRows()
    beside = path.parent / Path(result.rows.file).name
    try:
        if not beside.is_file():
            raise OSError(f"{beside} is not a regular file" if beside.exists() else f"{beside} is not there")
        content = beside.read_bytes()
        if hashlib.sha256(content).hexdigest() != result.rows.sha256:
            log.warning("%s: not the rows of these results, and left out.", beside)
            return StudyRows()
        document = parse_model(RowsDocument, parse_json(content.decode("utf-8")), beside, what="rows of results")
        return document.results[result.rows.entry]
    except (OSError, ValueError, IndexError, ResultsError) as error:
        log.warning("%s: its rows cannot be read, and are left out: %s", path, error)
        return StudyRows()


def rows_path(path: Path) -> Path:
    """Return where the rows of a file of results are."""
    return path.with_name(path.name.removesuffix(".json") + ".rows.json")


def result_to_rows(
    result: StudyResult, samples: Mapping[str, Sequence[Sample]], embeddings: Mapping[str, Embeddings] | None = None
) -> StudyRows:
    """Return the value of each row, the scores without each image, and the rows of each shift that lost most.

    The value of a row is EMI plus its influence psi: the mean over the rows is EMI. The scores without each
    image are what differences between results are judged by.

    Args:
        result: result of one model in one study, just scored.
        samples: samples that it was made of, by split.
        embeddings: embeddings of the samples, by split; with them each row has its image and its cosine.
    """
    return StudyRows(
        model=result.model,
        signature=result.signature,
        rows={
            name: SplitRows(
                id=[str(sample.id) for sample in samples[name]],
                value=row_values(scores),
                **(_row_details(result, name, embeddings) if embeddings and name in embeddings else {}),
            )
            for name, scores in result.scores.items()
            if name in samples
        },
        without_each_image={
            name: ScoresWithoutImages(
                emi=_strata(scores.emi.jackknife),
                **({"emid": _strata(scores.emid.jackknife)} if scores.emid else {}),
            )
            for name, scores in result.scores.items()
        },
        lost=find_lost_rows(result, samples, embeddings),
    )


def row_values(scores: SplitScores) -> list[float]:
    """Return EMI plus psi of each row; their mean is EMI."""
    return [scores.emi.value + float(psi) for psi in scores.emi.influence]


def _row_details(result: StudyResult, name: str, embeddings: Mapping[str, Embeddings]) -> dict[str, list[Any]]:
    """Return the image of each row, or the block of images that it was left out with, and its cosine."""
    of_split, id_split = embeddings[name], embeddings.get(result.id_split)
    shared = shared_clusters(id_split, of_split) if id_split is not None and name != result.id_split else None
    clusters = shared if shared is not None else clusters_of(of_split)
    images = [str(cluster) for cluster in clusters]
    known = {str(key) for stratum in result.scores[name].emi.jackknife.strata for key in stratum}
    for most in (MOST_CLUSTERS, MOST_RECOMPUTED):
        if not known.issuperset(images):  # they were merged
            images = [f"block {cluster_hash(key) % most}" for key in clusters]
    return {"image": images, "cosine": _cosines(of_split)}


def _cosines(split: Embeddings) -> list[float]:
    """Return the cosine of response and reference of each row."""
    return torch.nn.functional.cosine_similarity(split.y_hat.double(), split.y.double()).tolist()


def _strata(jackknife: Jackknife) -> Strata:
    return [{str(cluster): value for cluster, value in stratum.items()} for stratum in jackknife.strata]


def to_jackknife(value: float, strata: Iterable[Mapping[str, float]]) -> Jackknife:
    """Return a score with its leave-one-image-out values, from :class:`ScoresWithoutImages`."""
    known: list[dict[Hashable, float]] = [dict(stratum.items()) for stratum in strata]
    return Jackknife(value, tuple(known))


def jackknives_of(result: StudyResult, rows: StudyRows) -> tuple[dict[str, Jackknife], dict[str, Jackknife]]:
    """Return EMI of each split and EMID of each shift with their leave-one-image-out values, where rows have them."""
    emi, emid = {}, {}
    for name, split in result.splits.items():
        without = rows.without_each_image.get(name)
        if without is not None:
            emi[name] = to_jackknife(split.emi, without.emi)
            if split.emid is not None and without.emid is not None:
                emid[name] = to_jackknife(split.emid, without.emid)
    return emi, emid


def find_lost_rows(
    result: StudyResult, samples: Mapping[str, Sequence[Sample]], embeddings: Mapping[str, Embeddings] | None = None
) -> dict[str, list[LostRow]]:
    """Return for every shift its rows that lost most, the worst first.

    Rows are ranked by the loss of the cosine of response and reference, which finds wrong rows more often than their
    influence on EMI does (docs/known-truth.md); by that influence if there are no embeddings. See :class:`LostRow`.
    """
    id_scores = result.scores.get(result.id_split)
    if id_scores is None or result.id_split not in samples:
        return {}
    id_rows = samples[result.id_split]
    twins = {row.key: value for row, value in zip(id_rows, row_values(id_scores), strict=True)}
    clean = {row.key: row for row in id_rows}
    cosines = {name: _cosines(of_split) for name, of_split in (embeddings or {}).items()}
    clean_cosines = dict(zip((row.key for row in id_rows), cosines.get(result.id_split, ()), strict=False))
    mean_cosine = sum(clean_cosines.values()) / max(1, len(clean_cosines))
    order = sorted(result.scores, key=lambda name: not result.splits[name].is_shift)
    chosen: dict[str, list[tuple[Sample, LostRow]]] = {}
    for name in order:
        if name == result.id_split or name not in samples:
            continue
        values = row_values(result.scores[name])
        known = cosines[name] if name in cosines and clean_cosines else [None] * len(values)
        losses = []
        for row, value, cosine in zip(samples[name], values, known, strict=True):
            lost = None if cosine is None else clean_cosines.get(row.key, mean_cosine) - cosine
            loss = twins.get(row.key, id_scores.emi.value) - value
            losses.append((row, LostRow(**_texts(row), value=value, loss=loss, cosine=cosine, cosine_loss=lost)))
        losses.sort(key=lambda pair: -(pair[1].loss if pair[1].cosine_loss is None else pair[1].cosine_loss))
        chosen[name] = losses[:SHOWN_ROWS]
    shown = [row for losses in chosen.values() for row, _ in losses]
    thumbnails = _thumbnails([*shown, *(clean[row.key] for row in shown if row.key in clean)])

    def twin_of(row: Sample) -> ShownRow | None:
        if row.key not in clean:
            return None
        return ShownRow(**_texts(clean[row.key]), image=thumbnails[id(clean[row.key])], value=twins[row.key])

    return {
        name: [loss.model_copy(update={"image": thumbnails[id(row)], "clean": twin_of(row)}) for row, loss in losses]
        for name, losses in chosen.items()
    }


def _texts(row: Sample) -> dict[str, Any]:
    return {"id": str(row.id), "question": row.question, "response": row.response, "reference": row.reference}


def _thumbnails(rows: Sequence[Sample]) -> dict[int, str]:
    """Return thumbnails of the images of some rows by the ``id`` of the row; each distinct image is scaled once."""
    made: dict[str, str] = {"": ""}
    found = {}
    for row in rows:
        try:
            key = content_key(row.image) if row.image is not None else ""
            if key not in made:
                made[key] = _thumbnail(row)
        except ImageError:
            key = ""
        found[id(row)] = made[key]
    return found


def _thumbnail(row: Sample) -> str:
    image = to_rgb(open_image(row.image, at_least=2 * THUMBNAIL_PIXELS)).copy()
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
