"""Makes the rows of suites whose published files are of a form of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lmms_eval_emi.data.tables import read_table
from lmms_eval_emi.errors import StudyError

QUESTIONS = "llava_med_eval_qa50_qa.jsonl"
MARK = "<image>"


def llava_med(data: Path, output: Path) -> int:
    """Write LLaVA-Med's questions with their images as ``llava_med.parquet``; returns the number of rows.

    Args:
        data: folder that contains the questions, and the images in it or in ``images/``.
        output: folder to write to.

    Raises:
        StudyError: a file is missing, or is not what LLaVA-Med publishes.
    """
    import datasets

    path = data / QUESTIONS
    if not path.is_file():
        raise StudyError(f"--data: expected {QUESTIONS} in {data}, as LLaVA-Med's repository has it in data/eval.")
    table = read_table(path)
    if not {"question_id", "image", "text", "gpt4_answer"} <= set(table.column_names):
        raise StudyError(
            f"{path}: expected question_id, image, text and gpt4_answer; it has {', '.join(table.column_names)}."
        )
    rows, missing = [], []
    for record in table:
        name = str(record["image"])
        file = next((path for path in (data / name, data / "images" / name) if path.is_file()), None)
        if file is None or not file.resolve().is_relative_to(data.resolve()):
            missing.append(name)
            continue
        rows.append(
            {
                "question_id": int(record["question_id"]),
                "image": {"bytes": file.read_bytes(), "path": None},
                "question": str(record["text"]).removesuffix(MARK).strip(),
                "reference_answer": str(record["gpt4_answer"]),
            }
        )
    if missing:
        raise StudyError(
            f"--data: {len(missing)} of the images are not in {data} or {data / 'images'}, such as {missing[0]}. LLaVA-Med's repository says how to fetch them."
        )
    output.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    made.to_parquet(str(output / "llava_med.parquet"))
    return len(rows)


PREPARE: dict[str, Callable[[Path, Path], int]] = {"llava_med": llava_med}
