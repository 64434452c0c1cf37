"""Which responses are degenerate, and which are not."""

from __future__ import annotations

import random

import pytest

from lmms_eval_emi.data.response_text import degenerate_kind
from lmms_eval_emi.data.rows import Sample

QUESTION = "What is the person in the yellow shirt doing at the back of the taxi?"
REFERENCE = "The man is ironing clothes on an ironing board that is attached to the roof of a moving taxi."
LONG = (
    "The photograph shows two dogs, a black one and a brown one, that run over a meadow towards the person who "
    "threw the ball. The black dog is in front, and the brown dog has its mouth open. In the background there are "
    "trees and a fence, and behind the fence one can see the roof of a house."
)


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (" \n", "empty"),
        ("There are four four four four four four objects.", "repetition"),
        ("A dog. " * 6, "repetition"),
        (
            "a star a small star a small star is a star a small star is a small star a star is a small star " * 2,
            "repetition",
        ),
        ("的狗在草地上跑。" * 5, "repetition"),
        ("I'm sorry, but I cannot see any text in this image.", "refusal"),
        ("As an AI language model, I do not have eyes.", "refusal"),
        ("I can\u2019t assist with that.", "refusal"),
        (QUESTION, "question"),
        (QUESTION.upper() + " ", "question"),
        ("Der Mann bügelt Kleidung auf einem Bügelbrett, das auf dem Dach eines Taxis befestigt ist.", "language"),
        ("Мужчина гладит одежду на гладильной доске, закрепленной на крыше движущегося такси.", "language"),
        ("The man is ironing.", None),
        ("Yes", None),
        ("No, no, no!", None),
        (LONG, None),
        ("| a | b |\n|---|---|---|---|\n| 1 | 2 |", None),
        ("The sign says that I cannot park here, so the car is in the wrong place.", None),
        ("Der Mann", None),  # too short to tell
    ],
)
def test_kinds(response, kind):
    assert degenerate_kind(Sample(None, QUESTION, response, REFERENCE)) == kind


def test_a_response_in_the_language_of_a_translated_reference_is_none():
    german = "Der Mann bügelt Kleidung auf einem Bügelbrett, das auf dem Dach eines Taxis befestigt ist."
    assert degenerate_kind(Sample(None, QUESTION, german + " Er steht.", german)) is None


def test_a_loop_of_any_length_is_found_wherever_it_is():
    draw = random.Random(3)
    for length in range(1, 161):
        unit = "".join(draw.choices("abcdefghij klmnopqrstuvwxyz,.äß東", k=length - 1)) + "a"
        times = max(4, -(-16 // length))
        ends = ["".join(draw.choices("abcdefghij klmnopqrstuvwxyz", k=k)) for k in (draw.randrange(400), 37)]
        assert degenerate_kind(Sample(None, QUESTION, ends[0] + unit * times + ends[1], REFERENCE)) == "repetition", (
            length
        )
