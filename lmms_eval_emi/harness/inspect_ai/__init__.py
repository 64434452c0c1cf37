"""EMI in inspect_ai: ``scorer=[..., emi()]`` shows EMI, EMID and their errors beside the scores of any task.

The scorer keeps of every sample what EMI needs; the metric, which inspect_ai calls with all of them, computes it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from inspect_ai.model import ContentImage, ContentText
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState

log = logging.getLogger("lmms_eval_emi")

KEPT = "emi"  # key of the metadata of a score
FEWEST = 4  # samples of which anything is computed; inspect_ai also asks while samples are running
NOTHING: dict[str, float] = {"emi": float("nan"), "emi_stderr": float("nan")}
# Images by their content: metadata of a score goes to the log once for each sample, so it has the key alone.
_images: dict[str, bytes] = {}


@metric(scores="unreduced")  # type: ignore[untyped-decorator]
def emi_metric() -> Metric:
    """Return the metric of :func:`emi`: by split ``emi``, ``emi_stderr``, ``emid`` and ``emid_stderr``.

    It never raises, because inspect_ai would end the whole evaluation: a value that cannot be computed is NaN. Images are not
    written to the log, so metrics recomputed from a log with images are NaN as well.
    """

    def compute(scores: list[SampleScore]) -> Value:
        kept = [dict((score.score.metadata or {}).get(KEPT) or {}) for score in scores]
        kept = [row for row in kept if row]
        if len(kept) < FEWEST:
            return dict(NOTHING)
        try:
            return values_of_splits(kept)
        except Exception as error:
            log.warning("EMI: %s: %s", type(error).__name__, error)
            return dict(NOTHING)

    return compute


@scorer(metrics=[emi_metric()], name="emi")  # type: ignore[untyped-decorator]
def emi(split_by: str = "shift", id_split: str | None = None, estimator: str = "cosine") -> Scorer:
    """Keep input, response and reference of every sample, for EMI over all of them.

    Args:
        split_by: key of a sample's metadata that names its split.
        id_split: split in distribution, from which EMID is a difference; without it EMI is that of all samples.
        estimator: name or path; encoders and everything else are those of the settings (``LMMS_EVAL_EMI_...``).
    """

    async def score(state: TaskState, target: Target) -> Score:
        question, image = _input_of(state)
        response = state.output.completion
        return Score(
            value=1,
            answer=response,
            metadata={
                KEPT: {
                    "id": f"{state.sample_id}" + (f"#{state.epoch}" if state.epoch > 1 else ""),
                    "question": question,
                    "response": response,
                    "reference": target.text,
                    "image": _keep(image) if image is not None else None,
                    "split": str((state.metadata or {}).get(split_by, "all")),
                    "id_split": id_split,
                    "estimator": estimator,
                }
            },
        )

    return score


def _input_of(state: TaskState) -> tuple[str, str | None]:
    """Return the text of the user's message, and its first image."""
    if isinstance(state.input, str):
        return state.input, None
    texts: list[str] = []
    images: list[str] = []
    for message in state.input:
        if message.role != "user":
            continue
        content = [ContentText(text=message.content)] if isinstance(message.content, str) else message.content
        texts += [part.text for part in content if isinstance(part, ContentText)]
        images += [part.image for part in content if isinstance(part, ContentImage)]
    return "\n".join(texts), images[0] if images else None


def _keep(image: str) -> str:
    from lmms_eval_emi.data.images import encoded_image
    from lmms_eval_emi.util.files import content_hexdigest

    content = encoded_image(image, ()) or b""
    key = content_hexdigest(content)
    _images[key] = content
    return key


@lru_cache(maxsize=4)
def _instruments(estimator: str, text_only: bool) -> Any:
    from lmms_eval_emi.scoring.pipeline import load_instruments
    from lmms_eval_emi.settings import load_settings

    return load_instruments(load_settings(), [estimator], text_only=text_only)


def values_of_splits(kept: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return scores by name, and by split where there are several."""
    import datasets

    from lmms_eval_emi.scoring.flat import join_tables
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.settings import load_settings

    settings, first = load_settings(resamples=0), kept[0]
    id_split = first["id_split"]
    by_split: dict[str, list[dict[str, Any]]] = {}
    for row in kept:
        image = {"bytes": _images[row["image"]], "path": None} if row["image"] else None
        name = row["split"] if id_split is not None else "all"
        row_id = row["id"].removeprefix(f"{row['split']}-").removeprefix(f"{row['split']}_")
        fields = {key: row[key] for key in ("question", "response", "reference")}
        by_split.setdefault(name, []).append({"id": row_id, **fields, **({"image": image} if image else {})})
    names = sorted(by_split, key=lambda name: name != id_split)
    if id_split is not None and names[0] != id_split:
        return dict(NOTHING)  # no sample of it is there yet
    parts = {name: (Path("inspect"), datasets.Dataset.from_list(by_split[name])) for name in names}
    entry = join_tables("model", Path("inspect"), parts, settings)
    text_only = all(row["image"] is None for row in kept)
    (scored,) = score_samples(
        [entry], settings, instruments=_instruments(first["estimator"], text_only), allow_missing=True
    )
    found: dict[str, float] = {}
    for name, split in scored.result.splits.items():
        behind = f"_{name}" if len(names) > 1 else ""
        for metric_name in ("emi", "emid"):
            value, error = (getattr(split, f"{metric_name}{end}") for end in ("", "_stderr"))
            if value is not None:
                found[f"{metric_name}{behind}"] = value
                found[f"{metric_name}_stderr{behind}"] = float("nan") if error is None else error
    return found or dict(NOTHING)
