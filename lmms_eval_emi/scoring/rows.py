"""Results by row, and writing them beside the results that they belong to.

``results.json`` has the scores, ``results.rows.json`` the value of each row, the scores without each
image, and the rows of every shift that lost most. The scores name the rows' SHA-256, so rows of another run are never shown with them.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lmms_eval_emi.core.embeddings import Embeddings
from lmms_eval_emi.core.emi import (
    MOST_CLUSTERS,
    MOST_RECOMPUTED,
    cluster_hash,
    clusters_of,
    shared_clusters,
)
from lmms_eval_emi.core.jackknife import Jackknife
from lmms_eval_emi.data.images import content_key, open_image, to_rgb
from lmms_eval_emi.data.sample import Sample
from lmms_eval_emi.errors import ImageError, InputError
from lmms_eval_emi.scoring.join import StudySamples
from lmms_eval_emi.scoring.result import FORMAT_VERSION, SplitScores, StudyResult
from lmms_eval_emi.util.files import parse_json, to_json, write_atomically

log = logging.getLogger("lmms_eval_emi")
MOST = 5  # rows of a shift that are shown
THUMBNAIL = 150


@dataclass(frozen=True)
class Scored:
    """A result with the samples that it was made of, whose rows are in the order of the embeddings.

    Attributes:
        result: of one model and estimator.
        samples: none where embeddings were given.
        embeddings: of the samples, by split.
    """

    result: StudyResult
    samples: StudySamples
    embeddings: Mapping[str, Embeddings] = field(default_factory=dict, repr=False)

    @cached_property
    def rows(self) -> dict[str, Any]:
        """Its rows, as :func:`result_to_rows` gives them."""
        return result_to_rows(self.result, self.samples.samples, self.embeddings)

    @cached_property
    def entry(self) -> dict[str, Any]:
        """The result as its JSON has it."""
        return self.result.to_dict()


def write_results(path: Path, scored: Sequence[Scored]) -> list[dict[str, Any]]:
    """Write results as JSON, and their rows beside them.

    Args:
        path: of the results. Rows are written beside a regular file only, not beside a device or a pipe.
        scored: the results; several become one file.

    Returns:
        The rows of every result, as :func:`result_to_rows` gives them.
    """
    rows = [one.rows for one in scored]
    entries = [one.entry for one in scored]
    if not path.exists() or path.is_file():
        text = (
            json.dumps({"format_version": FORMAT_VERSION, "results": rows}, ensure_ascii=False, allow_nan=False) + "\n"
        )
        write_atomically(rows_path(path), text)
        described = {"file": rows_path(path).name, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        entries = [{**entry, "rows": {**described, "entry": number}} for number, entry in enumerate(entries)]
    write_atomically(
        path, to_json(entries[0] if len(entries) == 1 else {"format_version": FORMAT_VERSION, "results": entries})
    )
    return rows


def read_rows(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The rows that belong to a result, or nothing if they are not there or are those of other results.

    Args:
        path: of the results.
        entry: the result as its JSON has it.
    """
    described = entry.get("rows")
    if not isinstance(described, dict):
        return {}
    try:
        beside = path.parent / Path(str(described.get("file"))).name
        if not beside.is_file():
            raise OSError(f"{beside} is not a regular file" if beside.exists() else f"{beside} is not there")
        content = beside.read_bytes()
        if hashlib.sha256(content).hexdigest() != described.get("sha256"):
            log.warning("%s: not the rows of these results, and left out.", path.parent / str(described.get("file")))
            return {}
        found = parse_json(content.decode("utf-8"))["results"][described["entry"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        log.warning("%s: its rows cannot be read, and are left out: %s", path, error)
        return {}
    return found if isinstance(found, dict) else {}


def rows_path(path: Path) -> Path:
    """Where the rows of a file of results are."""
    return path.with_name(path.name.removesuffix(".json") + ".rows.json")


def result_to_rows(
    result: StudyResult, samples: Mapping[str, Sequence[Sample]], embeddings: Mapping[str, Embeddings] | None = None
) -> dict[str, Any]:
    """The value of each row, the scores without each image, and the rows of every shift that lost most, as plain data.

    The value of a row is EMI plus its influence psi: the mean over the rows is EMI. The scores without each
    image are what differences between results are judged by.

    Args:
        result: of one model in one study.
        samples: that it was made of, by split.
        embeddings: of the samples, by split; with them each row has its image, as the scores without each image
            name it, and the cosine of its response and reference.
    """
    return {
        "model": result.model,
        "signature": str(result.signature),
        "rows": {
            name: {
                "id": [str(sample.id) for sample in samples[name]],
                "value": row_values(scores),
                **(_row_details(result, name, embeddings) if embeddings and name in embeddings else {}),
            }
            for name, scores in result.splits.items()
            if name in samples
        },
        "without_each_image": {
            name: {
                "emi": _strata(scores.emi.jackknife),
                **({"emid": _strata(scores.emid.jackknife)} if scores.emid else {}),
            }
            for name, scores in result.splits.items()
        },
        "lost": find_lost_rows(result, samples),
    }


def row_values(scores: SplitScores) -> list[float]:
    """EMI plus psi of every row; their mean is EMI."""
    return [scores.emi.value + float(psi) for psi in scores.emi.influence]


def _row_details(result: StudyResult, name: str, embeddings: Mapping[str, Embeddings]) -> dict[str, list]:
    """The image of every row, or the block of images that it was left out with, and the cosine of response and reference."""
    own, id_split = embeddings[name], embeddings.get(result.study.id_split)
    shared = shared_clusters(id_split, own) if id_split is not None and name != result.study.id_split else None
    clusters = shared if shared is not None else clusters_of(own)
    images = [str(one) for one in clusters]
    known = {str(key) for stratum in result.splits[name].emi.jackknife.strata for key in stratum}
    for most in (MOST_CLUSTERS, MOST_RECOMPUTED):
        if not known.issuperset(images):  # they were merged
            images = [f"block {cluster_hash(key) % most}" for key in clusters]
    cosines = torch.nn.functional.cosine_similarity(own.y_hat.double(), own.y.double())
    return {"image": images, "cosine": cosines.tolist()}


def _strata(jackknife: Jackknife) -> list[dict[str, float]]:
    return [{str(cluster): value for cluster, value in stratum.items()} for stratum in jackknife.strata]


def to_jackknife(value: float, strata: Any) -> Jackknife:
    """A score with and without each image, from what :func:`result_to_rows` has of it.

    Raises:
        ValueError: it is of another form.
    """
    try:
        found = Jackknife(
            float(value), tuple({str(key): float(one) for key, one in stratum.items()} for stratum in strata)
        )
        if not all(math.isfinite(one) for stratum in found.strata for one in stratum.values()):
            raise InputError("a score is not finite")
        return found
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"expected scores without each image, got {type(strata).__name__}: {error}") from error


def find_lost_rows(result: StudyResult, samples: Mapping[str, Sequence[Sample]]) -> dict[str, list[dict[str, Any]]]:
    """For every shift its rows that lost most.

    A row's loss is its twin's value in the ID split, the row of the same id and reference, less its own;
    where it has no twin, EMI of the ID split stands in. The twin stands beside it under ``clean``.
    """
    id_scores = result.splits.get(result.study.id_split)
    if id_scores is None or result.study.id_split not in samples:
        return {}
    id_rows = samples[result.study.id_split]
    twins = {row.key: value for row, value in zip(id_rows, row_values(id_scores), strict=True)}
    clean = {row.key: row for row in id_rows}
    lost: dict[str, list[dict[str, Any]]] = {}
    chosen: dict[str, list[tuple[Sample, float, float]]] = {}
    for name in (*result.study.shifts(), *result.study.controls(), *result.study.variants()):
        scores = result.splits.get(name)
        if scores is None or name not in samples:
            continue
        values = row_values(scores)
        losses = [
            twins.get(row.key, id_scores.emi.value) - value for row, value in zip(samples[name], values, strict=True)
        ]
        worst = sorted(range(len(losses)), key=lambda row: -losses[row])[:MOST]
        chosen[name] = [(samples[name][row], losses[row], values[row]) for row in worst]
    shown = [row for own in chosen.values() for row, _, _ in own]
    thumbnails = _thumbnails([*shown, *(clean[row.key] for row in shown if row.key in clean)])

    def described(row: Sample, value: float | None) -> dict[str, Any]:
        texts = {"id": str(row.id), "question": row.question, "response": row.response, "reference": row.reference}
        return {**texts, "image": thumbnails[id(row)], "value": value}

    for name, own in chosen.items():
        lost[name] = [
            {
                **described(row, value),
                "loss": loss,
                **({"clean": described(clean[row.key], twins[row.key])} if row.key in clean else {}),
            }
            for row, loss, value in own
        ]
    return lost


def _thumbnails(rows: Sequence[Sample]) -> dict[int, str]:
    """Small copies of the images of some rows by the ``id`` of the row, each image's made once."""
    key_of = {number: _image_key(row) for number, row in {id(row): row for row in rows}.items()}
    distinct = {key_of[id(row)]: row for row in rows}
    made = {key: _thumbnail(row) for key, row in distinct.items()}
    return {number: made[key] for number, key in key_of.items()}


def _image_key(row: Sample) -> str:
    try:
        return content_key(row.image) if row.image is not None else ""
    except ImageError:
        return ""


def _thumbnail(row: Sample) -> str:
    if row.image is None:
        return ""
    try:
        image = to_rgb(open_image(row.image, at_least=2 * THUMBNAIL)).copy()
    except ImageError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
