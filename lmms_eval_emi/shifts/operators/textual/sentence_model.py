"""A language model that rewrites questions, behind an OpenAI-compatible endpoint. Not an operator itself.

Every reply is kept on disk under a key of all that it depends on, so that a run that was stopped goes
on where it was, and the same shift made again is the same and costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmms_eval_emi.errors import EndpointError
from lmms_eval_emi.shifts.operators import RefusedError
from lmms_eval_emi.shifts.operators.textual.words import NUMBER_WORDS, split
from lmms_eval_emi.shifts.options import ShiftOptions
from lmms_eval_emi.util.extras import extra
from lmms_eval_emi.util.files import encodable, write_atomically

PROMPT = """{instruction}
Do not answer it. Reply with the rewritten question alone, without quotation marks or comments.{keep}

{text}"""
LONGEST_GROWTH = 6  # a reply that is so many times as long as the question is not the question rewritten


def rewrite(text: str, instruction: str, options: ShiftOptions) -> str:
    """A text as the model rewrites it at temperature 0, from disk where it has been asked before.

    Raises:
        EndpointError: no endpoint or model is given, or it cannot be reached or refuses the request.
        RefusedError: the reply is empty, or has lost a number, a token such as ``<image>`` or a word to keep.
    """
    if not (options.endpoint and options.model):
        raise EndpointError(
            "Operators on sentences ask a language model: expected --endpoint URL and --endpoint-model NAME (or LMMS_EVAL_EMI_ENDPOINT and "
            "LMMS_EVAL_EMI_ENDPOINT_MODEL), an OpenAI-compatible one such as http://localhost:8000/v1, and its key in OPENAI_API_KEY if it wants one."
        )
    if not text.strip():
        raise RefusedError("the text is empty")
    kept = _kept(text, options)
    keep = f" Keep these as they are: {', '.join(kept)}." if kept else ""
    prompt = PROMPT.format(instruction=instruction, keep=keep, text=text)
    reply = encodable(_ask(options.endpoint, options.model, prompt, options.cache)).strip()
    lost = list(kept - _kept(reply, options))
    if lost:
        raise RefusedError(f"the model's reply has lost {', '.join(lost)}: {reply[:80]!r}")
    if not reply or len(reply) > LONGEST_GROWTH * len(text) + 200:
        raise RefusedError(f"the model's reply is {'empty' if not reply else 'far longer than the question'}")
    return reply


def restyle(text: str, style: str, options: ShiftOptions) -> str:
    """A text in another style, such as "the passive voice", and in its own language; raises as :func:`rewrite`."""
    instruction = f"Rewrite the following question in {style}, with the same meaning, in its own language."
    return rewrite(text, instruction, options)


def _kept(text: str, options: ShiftOptions) -> Counter[str]:
    """What a text has that its rewriting must have; numbers in words have other words in other languages and styles."""
    pieces = [piece.text for piece in split(text, options.keep) if piece.kind == "kept"]
    return Counter(piece for piece in pieces if piece.lower() not in NUMBER_WORDS)


def _ask(endpoint: str, model: str, prompt: str, cache: Path | None) -> str:
    request = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    key = hashlib.sha256(json.dumps([endpoint, request], sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    path = cache / "sentences" / key[:2] / f"{key}.json" if cache else None
    if path is not None:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not asked yet, or a damaged file
    with extra("shifts"):
        import openai

    try:
        completion = _client(endpoint).chat.completions.create(**request)
        reply = completion.choices[0].message.content or ""
    except openai.BadRequestError as error:
        raise RefusedError(f"the endpoint refuses the text: {error.message}") from error
    except (openai.OpenAIError, IndexError, AttributeError) as error:
        raise EndpointError(
            f"The endpoint {endpoint} does not answer for the model {model!r}: {error}"
            + (
                f"\nReplies so far are kept in {cache / 'sentences'}; the same command goes on from there."
                if cache
                else ""
            )
        ) from error
    if path is not None:
        write_atomically(path, json.dumps({"request": request, "reply": reply}, ensure_ascii=True))
    return reply


@lru_cache(maxsize=4)
def _client(endpoint: str) -> Any:
    with extra("shifts"):
        import openai

    return openai.OpenAI(base_url=endpoint, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=4)
