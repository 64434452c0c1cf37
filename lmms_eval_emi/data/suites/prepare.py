"""Makes the rows of suites whose published files are of a form of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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
    rows, missing = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, question, reference = (str(record[key]) for key in ("image", "text", "gpt4_answer"))
            identity = int(record["question_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(
                f"{path}, line {number}: expected question_id, image, text and gpt4_answer: {error}"
            ) from error
        file = next((path for path in (data / name, data / "images" / name) if path.is_file()), None)
        if file is None or not file.resolve().is_relative_to(data.resolve()):
            missing.append(name)
            continue
        rows.append(
            {
                "question_id": identity,
                "image": {"bytes": file.read_bytes(), "path": None},
                "question": question.removesuffix(MARK).strip(),
                "reference_answer": reference,
            }
        )
    if missing:
        raise StudyError(
            f"--data: {len(missing)} of the images are not in {data} or {data / 'images'}, such as {missing[0]}. LLaVA-Med's repository says how to fetch them."
        )
    features = datasets.Features(
        {
            "question_id": datasets.Value("int64"),
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "reference_answer": datasets.Value("string"),
        }
    )
    output.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(str(output / "llava_med.parquet"))
    return len(rows)


PREPARE: dict[str, Callable[[Path, Path], int]] = {"llava_med": llava_med}
