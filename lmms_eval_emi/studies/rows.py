"""The rows of a study's splits, from its dataset, and their samples once there are answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lmms_eval_emi.samples import DatasetImage, Sample
from lmms_eval_emi.studies.catalogue import Columns, Study, StudyError

if TYPE_CHECKING:
    import datasets


def load_splits(study: Study) -> datasets.DatasetDict:
    """All splits of a study's dataset, from the hub, its cache or a folder.

    Raises:
        StudyError: the dataset is not there, or lacks columns.
    """
    import datasets

    datasets.logging.set_verbosity_error()
    if Path(study.dataset.path).is_dir():  # nothing to fetch, and a bar a split to tell
        datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(study.dataset.path)
    except Exception as error:  # datasets raises a dozen kinds, the hub's among them
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StudyError(
            f"The dataset {study.dataset.path!r} of the study {study.name} cannot be loaded: {reason}\n"
            f"Fetch it on a machine with a connection:\n  hf download --repo-type dataset {study.dataset.path}\n"
            f"then copy the Hugging Face cache here, or have a folder {study.dataset.path}/ below the current one."
        ) from error
    for name, split in splits.items():
        check_columns(split, study.dataset.columns, f"{study.dataset.path}, split {name}")
    return splits


def check_columns(split: datasets.Dataset, columns: Columns, label: str) -> None:
    """Raise ``StudyError`` unless a split has the columns that its study names."""
    missing = sorted({columns.id, columns.image, columns.question, columns.reference} - set(split.column_names))
    if missing:
        raise StudyError(
            f"{label}: expected the columns {', '.join(missing)}, which are missing; it has {', '.join(split.column_names)}. Name them under dataset: columns: in the study file."
        )


def question_ids(split: datasets.Dataset, columns: Columns) -> list[object]:
    """The id of every row."""
    return list(split[columns.id])


def to_samples(split: datasets.Dataset, columns: Columns, answers: Mapping[int, str]) -> list[Sample]:
    """Samples of the rows that have an answer, in the dataset's order.

    Args:
        split: one split of the dataset; its images may be decoded or not.
        columns: of the dataset.
        answers: answer by row number.
    """
    from datasets import Image

    encoded = split.cast_column(columns.image, Image(decode=False)).select_columns([columns.image])
    texts = split.select_columns([columns.id, columns.question, columns.reference])
    samples = []
    for row, fields in enumerate(texts):
        if row in answers:
            samples.append(
                Sample(
                    image=DatasetImage(encoded, row, columns.image),
                    question=fields[columns.question],
                    response=answers[row],
                    reference=fields[columns.reference],
                    id=fields[columns.id],
                )
            )
    return samples
