"""The published results, computed again from the published responses, and how far the two are apart.

The responses of two models lie in one archive of the authors' repository, at a commit that pins it. What they say
is pinned as well, where its hash is known, so that responses of other contents are never compared.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from lmms_eval_emi.core.correlation import pearson
from lmms_eval_emi.data.responses import find_responses
from lmms_eval_emi.data.study import Study, load_study
from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.report.reading import ReportedResult, published_results, read_results
from lmms_eval_emi.scoring.result import StudyResult
from lmms_eval_emi.settings import Settings, is_offline
from lmms_eval_emi.util.files import Document, Plain, write_atomically

log = logging.getLogger("lmms_eval_emi")

COMMIT = "80beb58f3911b8470973a96071226b09ed172893"
ARCHIVE = f"https://github.com/deeplearning-wisc/mllmshift-emi/raw/{COMMIT}/data.zip"
# SHA-256 of what the responses of a model say, family by family, as responses_digest computes it.
DIGESTS: dict[tuple[str, str], str] = {
    ("llava-v1.5-13b", "natural"): "e9a13914ec8404ea078afcaf833934940026f32a6f7524dd2622f95c6d2ddd29",
    ("llava-v1.5-13b", "synthetic"): "830ea78cb40a4926284630a7f231149ccf94ab81ee4eca654e147836bc02c16f",
}
LARGEST, MOST = 50_000_000, 2000  # bytes of a file of the archive, and files

# Largest deviations that count as reproduced. EMI and EMID are published to float32, of values of 0.003 to 0.1; the
# index by the published float32 eigenvalues, which is its roots' own error near 0.
TOLERANCES = {"EMI": 5e-4, "EMID": 5e-4, "index": 5e-3, "r": 5e-3}
# What the published results were made with, whatever the environment says.
PUBLISHED = {
    "estimator": "club-global",
    "vision_encoder": "openai/clip-vit-base-patch32",
    "text_encoder": "xlm-roberta-base",
    "convention": "published",
    "resamples": 0,
    "without_degenerate": False,
    "allow_other_encoders": False,
}


class Deviation(Plain):
    """Deviation of one score from the published one.

    Attributes:
        score: ``EMI``, ``EMID``, ``index`` or ``r`` of EMID and index.
        count: number of splits that have it.
        worst, mean: absolute deviations.
        where: split with the worst deviation.
        published, ours: values of ``r``; those of the worst split otherwise.
        tolerance: largest deviation that passes.
        passes: whether the deviation is within its tolerance.
    """

    score: str
    count: int
    worst: float
    mean: float
    where: str
    published: float
    ours: float
    tolerance: float
    passes: bool

    @classmethod
    def of(cls, score: str, pairs: Mapping[str, tuple[float, float]], count: int | None = None) -> Deviation:
        """Return the deviation of pairs of a published value and ours.

        Args:
            score: name of the score.
            pairs: pairs by split, at least one.
            count: number of splits; default: that of the pairs.
        """
        gaps = {name: abs(first - second) for name, (first, second) in pairs.items()}
        where = max(gaps, key=lambda name: gaps[name])
        return cls(
            score=score,
            count=len(gaps) if count is None else count,
            worst=gaps[where],
            mean=sum(gaps.values()) / len(gaps),
            where=where,
            published=pairs[where][0],
            ours=pairs[where][1],
            tolerance=TOLERANCES[score],
            passes=gaps[where] <= TOLERANCES[score],
        )


class Reproduction(Plain):
    """Deviations of our scores from the published ones, for one model in one family of shifts.

    Attributes:
        model: model whose responses were scored.
        study: name of the family.
        passes: whether every score is there and within its tolerance, and something was compared.
        missing: splits of which a published score was not computed.
        responses_pinned: whether the responses are known to be the published ones.
        deviations: deviations by score.
    """

    model: str
    study: str
    passes: bool
    missing: list[str]
    responses_pinned: bool
    deviations: dict[str, Deviation]


class ReproductionDocument(Document):
    """Document that ``lmms-eval-emi reproduce`` writes."""

    kind: Literal["reproduction"] = "reproduction"
    reproductions: list[Reproduction]


def settings_of_the_paper(settings: Settings) -> Settings:
    """Return the settings with everything that affects a score as in the published results."""
    return settings.model_copy(update={**PUBLISHED, "entropy": None})


def compare(result: StudyResult, published: ReportedResult, *, pinned: bool = False) -> Reproduction:
    """Return how far a result is from a published one.

    Args:
        result: result of the published responses.
        published: as :func:`lmms_eval_emi.report.reading.published_results` or a JSON of the published script has it.
        pinned: whether the responses are known to be the published ones.
    """
    pairs: dict[str, dict[str, tuple[float, float]]] = {}
    missing: set[str] = set()
    for score, field in (("EMI", "emi"), ("EMID", "emid"), ("index", "emid_bound")):
        pairs[score] = {}
        for name, split in published.splits.items():
            theirs, ours = getattr(split, field), getattr(result.splits.get(name), field, None)
            if theirs is not None and ours is not None:
                pairs[score][name] = (theirs, ours)
            elif theirs is not None:
                missing.add(name)
    deviations = {score: Deviation.of(score, pair) for score, pair in pairs.items() if pair}
    both = sorted(pairs["EMID"].keys() & pairs["index"].keys())
    values = [
        pearson([pairs["EMID"][name][side] for name in both], [pairs["index"][name][side] for name in both])
        for side in (0, 1)
    ]
    if values[0] is not None and values[1] is not None:
        deviations["r"] = Deviation.of("r", {"": (values[0], values[1])}, len(both))
    return Reproduction(
        model=published.model,
        study=published.shift,
        passes=bool(deviations) and not missing and all(deviation.passes for deviation in deviations.values()),
        missing=sorted(missing),
        responses_pinned=pinned,
        deviations=deviations,
    )


def published_of(model: str, study: str, against: Sequence[Path] = ()) -> ReportedResult:
    """Return the published scores of a model in a family, or those in a JSON file of the published script.

    Raises:
        UnavailableError: nothing was.
    """
    known = read_results(against) if against else published_results(study)
    found = [result for result in known if result.shift == study and (against or result.model == model)]
    if not found:
        raise UnavailableError(
            f"--against: expected results of the published script for {study}, got those of {', '.join(sorted({result.shift for result in known})) or 'nothing'}."
        )
    return next((result for result in found if result.model == model), found[0])


def responses_digest(folder: Path, study: Study, model: str) -> str:
    """Return SHA-256 of what the responses of a model in a family say: of each split, question id and text, in order."""
    digest = hashlib.sha256()
    for found in find_responses(folder, study):
        if model not in (found.model, *found.aliases):
            continue
        for split, members in sorted(found.splits.items()):
            for key, text in sorted(members.texts.items(), key=lambda item: str(item[0])):
                digest.update(json.dumps([split, str(key), text]).encode() + b"\n")
    return digest.hexdigest()


def is_published(folder: Path, study: Study, model: str) -> bool:
    """Return whether responses are known to be the published ones.

    Raises:
        UnavailableError: the responses are known to differ from the published ones.
    """
    expected = DIGESTS.get((model, study.name))
    found = responses_digest(folder, study, model)
    if expected and found != expected:
        raise UnavailableError(
            f"{folder}: the responses of {model} in {study.name} are not the published ones: their SHA-256 is {found}, and that of the published ones {expected}. Fetch them again, or score them with lmms-eval-emi score."
        )
    if not expected:
        log.warning("The published responses of %s in %s have no known hash; these have %s.", model, study.name, found)
    return bool(expected)


def fetch_responses(cache: Path) -> Path:
    """Return the folder of the published responses, fetched into the cache once.

    Raises:
        UnavailableError: the responses are not available locally and cannot be fetched, or the archive is damaged; the message says what to do.
    """
    target = cache / "published_responses" / COMMIT[:12]
    if target.is_dir():
        return target
    unavailable = (
        f"  url    {ARCHIVE}\n  place  {target}\n"
        "Fetch that archive on a machine with a connection (lmms-eval-emi tasks prefetch --reproduce does), then copy the place above, or unpack it anywhere and pass --responses DIR."
    )
    if is_offline():
        raise UnavailableError(
            f"The published responses are not on this machine, and HF_HUB_OFFLINE is set.\n{unavailable}"
        )
    import requests
    from tqdm import tqdm

    try:
        with requests.get(ARCHIVE, stream=True, timeout=30) as reply:
            reply.raise_for_status()
            buffer = io.BytesIO()
            size = int(reply.headers.get("content-length", 0)) or None
            with tqdm(total=size, unit="B", unit_scale=True, desc="Published responses", leave=False) as bar:
                for part in reply.iter_content(1 << 16):
                    buffer.write(part)
                    bar.update(len(part))
                    if buffer.tell() > LARGEST * 10:
                        raise UnavailableError(
                            f"The archive of the published responses is larger than it can be.\n{unavailable}"
                        )
    except requests.RequestException as error:
        raise UnavailableError(f"The published responses cannot be fetched: {error}\n{unavailable}") from error
    content = buffer.getvalue()
    log.info("fetched %s, SHA-256 %s", ARCHIVE, hashlib.sha256(content).hexdigest())
    return unpack(content, target)


def unpack(content: bytes, target: Path) -> Path:
    """Write the response files of an archive into a folder, all of them or none.

    Names of folders in the archive are dropped, so nothing is written elsewhere.

    Raises:
        UnavailableError: the file is not an archive, or has no response files, or too large ones.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [
                member
                for member in archive.infolist()
                if re.fullmatch(r"[\w.-]+\.jsonl", PurePosixPath(member.filename).name)
            ]
            members = [member for member in members if "__MACOSX" not in member.filename]
            if not members or len(members) > MOST or sum(member.file_size for member in members) > LARGEST:
                raise UnavailableError(
                    f"The archive of the published responses holds {len(members)} response files of usable size; expected 1 to {MOST}."
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
            try:
                for member in members:
                    with archive.open(member) as file:
                        write_atomically(
                            temporary / PurePosixPath(member.filename).name, file.read(LARGEST + 1), durable=False
                        )
                temporary.rename(target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                if not target.is_dir():  # another process was first
                    raise
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:  # also an encrypted one, or another method
        raise UnavailableError(f"The archive of the published responses cannot be unpacked: {error}") from error
    return target


def families(names: Sequence[str]) -> list[Study]:
    """Return the families by name."""
    return [load_study(name) for name in names]
