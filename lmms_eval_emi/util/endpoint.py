"""Chat completions of an OpenAI-compatible endpoint that may be slow, broken, strict or hostile.

Requests go through the client of the package openai. What is added: one deadline for a whole request, a limit for the size
of a reply, no redirects, parameters that a model refuses are left out from then on, and waiting is told.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from lmms_eval_emi.errors import EndpointError
from lmms_eval_emi.util.imports import extra
from lmms_eval_emi.util.printing import HIDDEN, one_line, redact

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger("lmms_eval_emi")

LARGEST_REPLY = 1_000_000  # bytes
RETRIES = 8  # retries when the server is busy, about two minutes in all
CONNECTION_RETRIES = 2  # retries when there was no reply at all
LONGEST_TIMEOUT = 86_400  # seconds
LONGEST_WAIT = 60.0  # seconds between two tries
TELL_EVERY = 10.0  # seconds between two messages about waiting
REASONING_FACTOR = 8  # tokens of a reply with its thoughts, where a model counts both
RAW_CHARACTERS = 4000  # characters kept of a reply without text
SHORTEST_KEY = 8  # characters; a shorter key, such as "none", may be part of any text
UNPAID = re.compile(r"(?i)insufficient_quota|billing|credit balance|payment required")
TOO_LARGE = re.compile(r"too large|at most|exceed|maximum")  # a value is refused, and not its parameter
NO_SYSTEM = re.compile(r"\bsystem\b|only user and assistant|must alternate|developer instruction")


class RequestRefusedError(EndpointError):
    """The endpoint refuses this request for its content; others may pass."""


class RequestFailedError(EndpointError):
    """A request got no usable reply, in several tries."""


class _ReplyError(Exception):
    """A reply that breaks a rule of ours; it is not asked for again."""


@dataclass(frozen=True)
class Reply:
    """Reply of an endpoint."""

    text: str  # text of the message; empty where it has none
    finish_reason: str = ""  # why it ends, such as ``stop`` or ``length``
    raw: str = ""  # the reply's JSON where the message has no text, shortened
    tokens: tuple[int, int] = (0, 0)  # tokens of the prompt and of the reply, if the endpoint counts them


class ChatClient:
    """Asks one model of one endpoint, from any number of threads.

    Args:
        url: base URL, such as ``http://localhost:8000/v1``; one that ends in ``/chat/completions`` is accepted.
        model: its name there.
        package_extra: name of the extra of this package that brings openai.
        timeout: seconds for one request, from its first byte to the last one of the reply.

    Raises:
        EndpointError: the URL is not one of a web server.
    """

    def __init__(self, url: str, model: str, *, package_extra: str, timeout: float = 120.0) -> None:
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises ValueError if it is not a number
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"--endpoint: expected a URL such as http://localhost:8000/v1, got {redact(url)!r}.")
        if not 0 < timeout <= LONGEST_TIMEOUT:
            raise EndpointError(f"--timeout: expected seconds above 0 and up to {LONGEST_TIMEOUT}, got {timeout:g}.")
        self.url = url.partition("?")[0].rstrip("/").removesuffix("/chat/completions")
        self._query = dict(parse_qsl(parts.query))
        self.model, self.timeout, self._extra = model, timeout, package_extra
        self._left_out: set[str] = set()  # parameters that the model refuses
        self._lock = threading.Lock()
        self._told = 0.0

    @cached_property
    def _client(self) -> Any:
        with extra(self._extra):
            import openai

        httpx = _httpx()
        return openai.OpenAI(
            base_url=self.url,
            default_query=self._query,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=0,
            default_headers={"Accept-Encoding": "identity"},
            http_client=httpx.Client(
                transport=_limited_transport(self.timeout), timeout=self.timeout, follow_redirects=False
            ),
        )

    def ask(self, messages: list[dict[str, Any]], *, temperature: float, max_tokens: int | None = None) -> Reply:
        """Ask for one completion.

        Raises:
            RequestRefusedError: the request is refused for its content.
            RequestFailedError: there is no usable reply, in several tries.
            EndpointError: the endpoint refuses whatever is asked: the key, the model, or an exhausted quota.
        """
        client = self._client  # names the extra where openai is not installed
        import openai

        tries = 0
        left_out = set(self._left_out)
        while True:
            tries += 1
            request = self._request(messages, temperature, max_tokens, left_out)
            wait: float | None = None
            try:
                reply = self._read(client.chat.completions.create(**request))
                self._remember(left_out)
                return reply
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                self._raise_if_final(error, refuses=False)
                refused = _refused_parameter(error, request)
                if refused is None:
                    raise RequestRefusedError(f"the endpoint refuses the request: {self._said(error)}") from error
                left_out.add(refused)
                tries -= 1
                continue
            except openai.APIStatusError as error:
                self._raise_if_final(error)
                reason, most = f"status {error.status_code}: {self._said(error)}", RETRIES
                wait = _retry_after(error)
            except _ReplyError as error:
                raise RequestFailedError(str(error)) from error
            except openai.APIConnectionError as error:
                if isinstance(error.__cause__, _ReplyError):  # some versions of openai raise it this way
                    raise RequestFailedError(str(error.__cause__)) from error
                cause = error.__cause__ or error
                reason, most = f"no reply ({type(cause).__name__}: {one_line(str(cause), 120)})", CONNECTION_RETRIES
            except _BusyError as error:
                reason, most = str(error), RETRIES
            except (openai.OpenAIError, ValueError, RecursionError) as error:  # a reply that is no JSON, or no UTF-8
                reason, most = f"a reply that cannot be read ({one_line(str(error), 120)})", CONNECTION_RETRIES
            if tries > most:
                raise RequestFailedError(f"{reason}, in {tries} tries")
            self._sleep(min(LONGEST_WAIT, wait or 0.5 * 2**tries), reason)

    def _request(
        self, messages: list[dict[str, Any]], temperature: float, max_tokens: int | None, left_out: set[str]
    ) -> dict[str, Any]:
        request: dict[str, Any] = {"model": self.model, "messages": messages}
        if "temperature" not in left_out:
            request["temperature"] = temperature
        if max_tokens is not None and "max_tokens" not in left_out:
            request["max_tokens"] = max_tokens
        elif max_tokens is not None and "max_completion_tokens" not in left_out:
            request["max_completion_tokens"] = REASONING_FACTOR * max_tokens
        if "system" in left_out:
            request["messages"] = _without_system(messages)
        return request

    def _remember(self, left_out: set[str]) -> None:
        """Leave parameters out of later requests as well, now that a request without them has got a reply."""
        with self._lock:
            for name in sorted(left_out - self._left_out):
                log.warning("%s refuses %s; asking without it.", self.model, name)
            self._left_out |= left_out

    def _raise_if_final(self, error: Any, *, refuses: bool = True) -> None:
        """Raise an error that another try would not change.

        Args:
            error: an ``APIStatusError`` of openai.
            refuses: whether a refusal of the request is raised as well, and not only one of the key or the account.
        """
        if 300 <= error.status_code < 400:
            target = error.response.headers.get("location", "another place")
            raise EndpointError(
                f"The endpoint {self.url} redirects to {one_line(target, 200)}, and prompts are not sent there. Give the address that answers with --endpoint."
            ) from error
        if error.status_code in (401, 402, 403, 404) or UNPAID.search(_words_of(error)):
            raise EndpointError(
                f"The endpoint {self.url} refuses the model {self.model!r}: {self._said(error)} Give its key in OPENAI_API_KEY, and the names that it knows with --endpoint and --endpoint-model."
            ) from error
        if refuses and error.status_code < 500 and error.status_code not in (408, 409, 425, 429):
            raise RequestRefusedError(f"the endpoint refuses the request: {self._said(error)}") from error

    def _read(self, completion: Any) -> Reply:
        if isinstance(completion, str):
            kind = "an HTML page" if "<html" in completion[:500].lower() else "a text"
            kind = "an event stream" if completion.startswith("data:") else kind
            raise RequestFailedError(
                f"the endpoint replied with {kind} instead of JSON: {self._hide(one_line(completion, 80))!r}. Check --endpoint: an API address usually ends in /v1"
            )
        refused = getattr(completion, "error", None)
        choices = getattr(completion, "choices", None)
        choice = choices[0] if isinstance(choices, list) and choices else None
        finish = str(getattr(choice, "finish_reason", "") or "")
        refused = refused or getattr(choice, "error", None)
        if refused or finish == "error":
            raise _BusyError(
                f"an error under status 200: {self._hide(one_line(json.dumps(refused, default=str), 160))}"
            )
        if choice is None:
            said = completion.to_json(indent=None) if hasattr(completion, "to_json") else repr(completion)
            raise _BusyError(f"a reply without choices: {self._hide(one_line(said, 160))}")
        message = getattr(choice, "message", None)
        text = _text_of(getattr(message, "content", None))
        usage = getattr(completion, "usage", None)
        tokens = tuple(int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
        raw = "" if text else self._hide(completion.to_json(indent=None))[:RAW_CHARACTERS]
        return Reply(self._hide(text), finish, raw, (tokens[0], tokens[1]))

    def _said(self, error: Any) -> str:
        """Return the endpoint's own words, in which a header may be repeated."""
        text = str(error.message)
        if re.fullmatch(r"Error code: \d+", text):  # openai has found no message in the reply
            text = f"{text}. {error.response.text}"
        return self._hide(one_line(text, 300))

    def _hide(self, text: str) -> str:
        """Return a text without secrets, this endpoint's key among them."""
        key = os.environ.get("OPENAI_API_KEY", "")
        return redact(text.replace(key, HIDDEN) if len(key) >= SHORTEST_KEY else text)

    def _sleep(self, seconds: float, reason: str) -> None:
        with self._lock:
            tell = time.monotonic() - self._told > TELL_EVERY
            if tell:
                self._told = time.monotonic()
        if tell:
            log.warning("waiting: %s; asking again in %.0f s", reason, seconds)
        time.sleep(seconds)


class _BusyError(Exception):
    """An error of the server that came as a reply."""


def _words_of(error: Any) -> str:
    """Return all that a refusal says: message, code, type, parameter and body."""
    parts = (error.message, error.code, error.type, error.param, error.body)
    return " ".join(str(part) for part in parts if part) or str(error.response.text[:4000])


def _refused_parameter(error: Any, request: Mapping[str, Any]) -> str | None:
    """Return the sent parameter that an error reply names as not accepted, or ``None``."""
    text = _words_of(error).lower()
    if TOO_LARGE.search(text):
        return None
    roles = {message["role"] for message in request["messages"]}
    for name in ("max_completion_tokens", "max_tokens", "temperature"):
        if name in request and name in text:
            return name
    return "system" if "system" in roles and NO_SYSTEM.search(text) else None


def _retry_after(error: Any) -> float | None:
    """Return how many seconds the server asks to wait; ``None`` if it gives no positive number."""
    try:
        seconds = float(error.response.headers["retry-after"])
    except (KeyError, ValueError):
        return None
    return seconds if seconds > 0 else None


def _without_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with what the system says at the beginning of the first one of the user."""
    said = [message["content"] for message in messages if message["role"] == "system"]
    others = [dict(message) for message in messages if message["role"] != "system"]
    first = others[0]["content"]
    parts = first if isinstance(first, list) else [{"type": "text", "text": first}]
    joined = [{"type": "text", "text": "\n\n".join([*said, parts[0]["text"]])}, *parts[1:]]
    others[0]["content"] = joined if isinstance(first, list) else joined[0]["text"]
    return others


def _text_of(content: Any) -> str:
    """Return the text of a message, which some endpoints return in parts."""
    if isinstance(content, list):
        parts = [
            item if isinstance(item, dict) else vars(item) if hasattr(item, "__dict__") else {} for item in content
        ]
        return "".join(str(part.get("text") or "") for part in parts)
    return content if isinstance(content, str) else ""


def _httpx() -> Any:
    """Return the package that openai sends requests with: httpx, or a successor of it with the same names."""
    import openai

    client = next(kind for kind in openai.DefaultHttpxClient.__mro__ if kind.__name__ == "Client")
    return import_module(client.__module__.partition(".")[0])


def _limited_transport(timeout: float) -> Any:
    """Return a transport whose replies end at a deadline and at a size.

    Each request has a connection of its own, and is waited for in a thread that is left behind at the deadline, since
    httpx limits the time of each read alone.
    """
    httpx = _httpx()

    class Transport(httpx.BaseTransport):  # type: ignore[name-defined, misc]
        def handle_request(self, request: Any) -> Any:
            connection, reply, begun = httpx.HTTPTransport(), Future[Any](), threading.Event()

            def read() -> Any:
                response = connection.handle_request(request)
                begun.set()
                encoding = response.headers.get("content-encoding", "identity")
                if encoding.lower() != "identity":
                    raise _ReplyError(f"the endpoint's reply is compressed ({encoding[:20]}), which was not asked for")
                content = b""
                for chunk in response.stream:
                    content += chunk
                    if len(content) > LARGEST_REPLY:
                        raise _ReplyError(
                            f"the endpoint's reply is larger than {LARGEST_REPLY:,} bytes, and was not read"
                        )
                return httpx.Response(response.status_code, headers=response.headers, content=content)

            def run() -> None:
                try:
                    reply.set_result(read())
                except BaseException as error:
                    reply.set_exception(error)

            threading.Thread(target=run, daemon=True).start()
            try:
                return reply.result(timeout)
            except TimeoutError:
                if begun.is_set():
                    raise _ReplyError(f"the endpoint's reply did not end within {timeout:g} s (--timeout)") from None
                message = f"no headers of a reply within {timeout:g} s (--timeout)"
                raise httpx.ReadTimeout(message, request=request) from None
            finally:
                connection.close()

    return Transport()
