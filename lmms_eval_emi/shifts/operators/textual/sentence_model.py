"""A language model that rewrites questions, behind an OpenAI-compatible endpoint. Not an operator itself.

Every reply is kept on disk under a key of all that it depends on, so that a run that was stopped goes
on where it was, and the same shift made again is the same and costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmms_eval_emi.data.response_text import REFUSAL, without_thoughts
from lmms_eval_emi.errors import EndpointError
from lmms_eval_emi.shifts.operators import RefusedError, ShiftOptions
from lmms_eval_emi.shifts.operators.textual.pieces import NUMBER_WORDS, split
from lmms_eval_emi.util.endpoint import ChatClient, RequestFailedError, RequestRefusedError
from lmms_eval_emi.util.files import encodable, write_atomically
from lmms_eval_emi.util.printing import one_line

PROMPT = """{instruction}
Do not answer it. Reply with the rewritten question alone, without quotation marks or comments.{keep}

{text}"""
# What models write before a rewritten question: an interjection, or words about it up to a colon.
INTERJECTION = re.compile(r"(?i)(?:sure|certainly|of course|absolutely|okay|ok|great)\b[.!,]\s+(?=\S)")
LABEL = re.compile(
    r"(?i)[^\n:?{\[\"]{0,80}\b(?:here|rewritten|rewrite|rephrased|version|question|formal|informal|casual|passive)\b[^\n:?{\[\"]{0,80}:\**\s+"
)
DRESS = re.compile(
    r"(?s)```\w*\n(.*)\n```|`([^`]*)`|\*\*([^*]*)\*\*|<(?:answer|question)>(.*)</(?:answer|question)>"
    r"|\"([^\"]*)\"|'(.*)'|\N{LEFT DOUBLE QUOTATION MARK}(.*)\N{RIGHT DOUBLE QUOTATION MARK}"
    r"|\N{LEFT SINGLE QUOTATION MARK}(.*)\N{RIGHT SINGLE QUOTATION MARK}"
    r"|\N{DOUBLE LOW-9 QUOTATION MARK}(.*)[\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}]"
    r"|\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}(.*)\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}"
    r"|\N{LEFT CORNER BRACKET}(.*)\N{RIGHT CORNER BRACKET}"
)
ASKS_BACK = re.compile(r"(?i)\b(?:provide|share|send|give)\b[^?]{0,60}\b(?:question|text|sentence)\b")
MARKS = re.compile(r"[?\N{FULLWIDTH QUESTION MARK}\N{ARABIC QUESTION MARK}\N{GREEK QUESTION MARK}]")
REQUEST = re.compile(
    r"(?i)(?:please|kindly|tell|name|describe|identify|state|list|explain|indicate|specify|give|provide|say|show|find|count"
    r"|compare|let (?:me|us)|could|would|can|may|i(?: would|'d) like|i (?:want|wish)|what|which|who|where|when|why|how"
    r"|(?:a|an|the) (?:detailed |full |complete )?(?:description|explanation|list|account))\b"
)
LONGEST_GROWTH = 6  # a reply that is so many times as long as the question is not the question rewritten


def rewrite(text: str, instruction: str, options: ShiftOptions) -> str:
    """Return a text as the model rewrites it at temperature 0, from disk where it has been asked before.

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
    reply = _question_of(encodable(_ask(options.endpoint, options.model, prompt, options.cache)), text)
    lost = list(kept - _kept(reply, options))
    if lost:
        raise RefusedError(f"the model's reply has lost {', '.join(lost)}: {reply[:80]!r}")
    if " ".join(reply.split()).casefold() == " ".join(text.split()).casefold():
        raise RefusedError("the model's reply is the question as it was")
    return reply


def restyle(text: str, style: str, options: ShiftOptions) -> str:
    """Return a text in another style, such as "the passive voice", and in its own language; raises as :func:`rewrite`."""
    instruction = f"Rewrite the following question in {style}, with the same meaning, in its own language."
    reply = rewrite(text, instruction, options)
    if _is_answer(reply, text):
        raise RefusedError(f"the model's reply is an answer: {one_line(reply, 80)!r}")
    return reply


def _kept(text: str, options: ShiftOptions) -> Counter[str]:
    """Return the parts of a text that its rewriting must contain: numbers in digits, tokens and words to keep."""
    pieces = [piece.text for piece in split(text, options.keep) if piece.kind == "kept"]
    return Counter(piece for piece in pieces if piece.lower() not in NUMBER_WORDS)


def _question_of(reply: str, text: str) -> str:
    """Return the rewritten question in a reply, without what a model says around it.

    Raises:
        RefusedError: the reply has no rewritten question: it is empty, far too long, a refusal, or an answer.
    """
    found, before = without_thoughts(reply).strip(), None
    while found != before:
        before = found
        for preamble in (INTERJECTION, *([] if ":" in text else [LABEL])):
            match = preamble.match(found)
            found = found[match.end() :].strip() if match and not preamble.match(text) else found
        match = DRESS.fullmatch(found)
        found = (
            next(group for group in match.groups() if group is not None).strip()
            if match and found[0] != text[:1]
            else found
        )
    if not found:
        raise RefusedError("the model's reply is empty")
    if len(found.splitlines()) > len(text.strip().splitlines()):
        raise RefusedError(f"the model's reply has more lines than the question: {one_line(found, 80)!r}")
    if found[0] in "{[<" and text[:1] not in "{[<":
        raise RefusedError(f"the model's reply is markup: {one_line(found, 80)!r}")
    if ASKS_BACK.search(found) and not ASKS_BACK.search(text):
        raise RefusedError(f"the model asks back: {one_line(found, 80)!r}")
    if len(found) > LONGEST_GROWTH * len(text) + 200:
        raise RefusedError("the model's reply is far longer than the question")
    if REFUSAL.search(found[:200].replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")) and not REFUSAL.search(text):
        raise RefusedError(f"the model refuses: {one_line(found, 80)!r}")
    return found


def _is_answer(reply: str, text: str) -> bool:
    """Return whether a reply in the language of a question neither asks nor requests anything, as the question does."""
    if MARKS.search(reply) or REQUEST.match(reply):
        return False
    return bool(MARKS.search(text) or REQUEST.match(text))


def _ask(endpoint: str, model: str, prompt: str, cache: Path | None) -> str:
    """Return the reply to a prompt at temperature 0, kept on disk.

    Raises:
        RefusedError: the endpoint refuses the text, or its reply was cut off.
        EndpointError: the endpoint does not answer.
    """
    request: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
    key = hashlib.sha256(json.dumps([endpoint, request], sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
    path = cache / "sentences" / key[:2] / f"{key}.json" if cache else None
    if path is not None:
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not asked yet, or a damaged file
    try:
        reply = client_of(endpoint, model).ask(request["messages"], temperature=0)
    except RequestRefusedError as error:
        raise RefusedError(str(error)) from error
    except EndpointError as error:
        kept = (
            f"\nReplies so far are kept in {cache / 'sentences'}; the same command goes on from there." if cache else ""
        )
        what = f"The endpoint {endpoint} does not answer for the model {model!r}: {error}"
        raise EndpointError(f"{what if isinstance(error, RequestFailedError) else error}{kept}") from error
    if reply.finish_reason == "length":
        raise RefusedError("the model's reply was cut off (finish_reason length)")
    if path is not None:
        write_atomically(path, json.dumps({"request": request, "reply": reply.text}, ensure_ascii=True))
    return reply.text


@lru_cache(maxsize=4)
def client_of(endpoint: str, model: str) -> ChatClient:
    """Return the client of an endpoint, which is shared by all operators."""
    return ChatClient(endpoint, model, package_extra="shifts")
