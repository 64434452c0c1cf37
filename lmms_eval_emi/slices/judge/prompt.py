"""The prompt of a judge, and the parser of its replies.

The form is llava-bench's (Liu et al., *Visual Instruction Tuning*, NeurIPS 2023): context, question, both responses and the
kind of question; two scores of 1 to 10 in the first line of the reply. The words are our own.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from typing import Any, Literal

from lmms_eval_emi.data.images import ImageSource, open_image, to_rgb
from lmms_eval_emi.data.response_text import without_thoughts

Order = Literal["reference_first", "model_first"]
ORDERS: tuple[Order, ...] = ("reference_first", "model_first")
LONGEST_SIDE = 768  # pixels of an image as it is sent
LOWEST, HIGHEST = 1.0, 10.0

SYSTEM = "You compare the responses of two assistants to the same question. You are fair and exact."
TASK = (
    "Two AI assistants were asked a question about an image{kind}. {sight} "
    "Rate how helpful, relevant, accurate and detailed each response is, on a scale from 1 to 10 where 10 is best. "
    "Which of the two comes first here says nothing about them. "
    "Begin your reply with one line that holds two numbers and nothing else, the score of Assistant 1 and the score of Assistant 2, "
    "with a space between them. Explain both scores below that line."
)
SIGHTS = {
    "image": "The image is attached.",
    "context": "You do not see it; what it shows is described under [Context].",
    "nothing": "You do not see it; judge by the question and by what the responses say.",
}
KINDS = {"conv": "conversation", "detail": "detailed description", "complex": "complex reasoning"}
LONGEST_LINE = 200  # characters of a line that holds scores
ORNAMENTS = re.compile(r"[][(){}<>*_`\"'#]")  # around scores
OUT_OF_TEN = re.compile(r"(?<=\d) ?/ ?10(?!\d)")
NUMBER = re.compile(r"\d{1,4}(?:[.,]\d{1,4})?")


@dataclass(frozen=True)
class Case:
    """Texts and image that a judge is shown of one row."""

    question: str  # as the model was asked
    reference: str  # the reference response
    response: str  # the model's
    context: str = ""  # what the image shows, in words; may be empty
    category: str = ""  # kind of question; may be empty
    image: ImageSource | None = None  # sent with the question, if any


def to_messages(case: Case, order: Order) -> list[dict[str, Any]]:
    """Return the messages of one request.

    Args:
        case: case to be judged.
        order: which text is Assistant 1's.

    Raises:
        ImageError: the image cannot be read.
    """
    responses = (case.reference, case.response) if order == "reference_first" else (case.response, case.reference)
    parts = [f"[Context]\n{case.context.strip()}"] if case.context.strip() else []
    parts.append(f"[Question]\n{case.question}")
    for number, response in enumerate(responses, 1):
        parts.append(f"[Assistant {number}]\n{response}\n[End of Assistant {number}]")
    sight = "image" if case.image is not None else "context" if case.context.strip() else "nothing"
    kind = KINDS.get(case.category, case.category)
    asked = TASK.format(kind=f" (kind of question: {kind})" if kind else "", sight=SIGHTS[sight])
    parts.append(f"[Task]\n{asked}")
    text = "\n\n".join(parts)
    content: Any = text
    if case.image is not None:
        content = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": _data_url(case.image)}},
        ]
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def read_scores(reply: str, order: Order) -> tuple[float, float] | None:
    r"""Return scores of the reference and of the model, or ``None`` if the reply does not begin with two of them.

    >>> read_scores("8 6\nBoth are right.", "reference_first")
    (8.0, 6.0)
    >>> read_scores("8 6", "model_first")
    (6.0, 8.0)
    >>> read_scores("Assistant 1 is better.", "model_first") is None
    True
    """
    lines = [line.strip() for line in without_thoughts(reply).splitlines() if line.strip()]
    numbers = _numbers(lines[0]) if lines else None
    if numbers and len(numbers) == 1:
        second = _numbers(lines[1]) if len(lines) > 1 else None
        if second and len(second) == 1:  # a score per line
            numbers += second
        elif "," in numbers[0]:  # 8,6 are two scores
            numbers = numbers[0].split(",")
    if numbers is None or len(numbers) != 2:
        return None
    first, other = (float(number.replace(",", ".")) for number in numbers)
    if not (LOWEST <= first <= HIGHEST and LOWEST <= other <= HIGHEST):
        return None
    return (first, other) if order == "reference_first" else (other, first)


def _numbers(line: str) -> list[str] | None:
    """Return the numbers of a line that contains nothing else; a comma without a space is part of a number."""
    if len(line) > LONGEST_LINE:
        return None
    plain = OUT_OF_TEN.sub("", " ".join(ORNAMENTS.sub("", line).split()))
    words = plain.replace(";", " ").replace("|", " ").replace(", ", " ").rstrip(".").split()
    return words if words and all(NUMBER.fullmatch(word) for word in words) else None


def _data_url(source: ImageSource) -> str:
    image = to_rgb(open_image(source, at_least=LONGEST_SIDE)).copy()
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
