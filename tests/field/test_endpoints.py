"""Endpoints as there are: strict, busy, broken and hostile."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("openai")

from lmms_eval_emi.errors import EndpointError
from lmms_eval_emi.util import endpoint as module
from lmms_eval_emi.util.endpoint import ChatClient, RequestFailedError, RequestRefusedError

MESSAGES = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Judge."}]


def completion(text, finish="stop", **more):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], **more}


@pytest.fixture
def serve(monkeypatch):
    """Start a server; ``reply`` gets a request and writes status, headers and the chunks of a body."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    servers = []

    def start(reply, **options):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status, headers, chunks = reply(requests[-1], len(requests))
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for chunk in chunks:
                        self.wfile.write(chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode())
                        self.wfile.flush()
                except OSError:  # the client has had enough
                    pass

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        url = f"http://127.0.0.1:{server.server_port}/v1"
        return ChatClient(url, "m", package_extra="judge", timeout=2, **options), requests

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("name", ["temperature", "max_tokens", "system"])
def test_a_refused_parameter_is_left_out_from_then_on(serve, name):
    def strict(request, count):
        sent = {*request, *(one["role"] for one in request["messages"])}
        if name in sent:
            return 400, {}, [{"error": {"message": f"'{name}' is not supported with this model"}}]
        return 200, {}, [completion("8 6")]

    client, requests = serve(strict)
    for _ in range(2):
        assert client.ask(MESSAGES, temperature=0.2, max_tokens=10).text == "8 6"
    assert len(requests) == 3
    assert "Be fair." in json.dumps(requests[-1]["messages"])
    assert ("max_completion_tokens" in requests[-1]) == (name == "max_tokens")


def test_a_refusal_of_the_text_is_that_of_one_request(serve):
    client, requests = serve(lambda request, count: (400, {}, [{"error": {"message": "too long: SECRET key=SECRET"}}]))
    with pytest.raises(RequestRefusedError, match=r"too long.*key=\*\*\*"):
        client.ask(MESSAGES, temperature=0)
    assert len(requests) == 1


def test_an_error_under_status_200_is_asked_again(serve):
    def busy(request, count):
        return 200, {}, [{"error": {"message": "Rate limit", "code": 429}} if count < 4 else completion("8 6")]

    client, requests = serve(busy)
    assert client.ask(MESSAGES, temperature=0).text == "8 6" and len(requests) == 4


def test_a_server_that_asks_for_no_wait_is_not_asked_for_ever(serve):
    client, requests = serve(lambda request, count: (429, {"Retry-After": "0"}, [{"error": {"message": "busy"}}]))
    with pytest.raises(RequestFailedError, match="status 429: .*in 9 tries"):
        client.ask(MESSAGES, temperature=0)
    assert len(requests) == 9


def test_an_exhausted_quota_ends_at_once(serve):
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    client, requests = serve(lambda request, count: (429, {}, [body]))
    with pytest.raises(EndpointError, match="refuses the model"):
        client.ask(MESSAGES, temperature=0)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (429, {"error": {"message": "Too many", "type": "insufficient_quota", "code": None}}),
        (402, {"error": {"message": "Payment required"}}),
        (400, {"error": {"message": "Your credit balance is too low"}}),
        (400, {"error": {"message": "no", "code": "billing_hard_limit_reached"}}),
    ],
)
def test_an_account_that_cannot_pay_ends_at_once(serve, status, body):
    client, requests = serve(lambda request, count: (status, {}, [body]))
    with pytest.raises(EndpointError, match="refuses the model"):
        client.ask(MESSAGES, temperature=0)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "refused"),
    [
        (422, {"detail": "temperature: extra fields not permitted"}, "temperature"),
        (400, {"error": {"message": "Unsupported value", "param": "temperature"}}, "temperature"),
        (400, {"detail": "max_tokens is not supported"}, "max_tokens"),
        (400, {"error": {"message": "Only user and assistant roles are supported!"}}, "system"),
        (400, {"error": {"message": "Conversation roles must alternate user/assistant"}}, "system"),
    ],
)
def test_a_parameter_is_refused_in_many_forms(serve, status, body, refused):
    def strict(request, count):
        sent = {*request, *(one["role"] for one in request["messages"])}
        return (status, {}, [body]) if refused in sent else (200, {}, [completion("8 6")])

    client, requests = serve(strict)
    assert client.ask(MESSAGES, temperature=0.2, max_tokens=10).text == "8 6" and len(requests) == 2


def test_a_word_in_a_refusal_of_the_text_leaves_no_parameter_out(serve):
    def refuses_a_text(request, count):
        refused = "forbidden" in json.dumps(request)
        return (400, {}, [{"error": {"message": "the system flags it: temperature"}}]) if refused else (200, {}, [completion("8")])  # fmt: skip

    client, requests = serve(refuses_a_text)
    with pytest.raises(RequestRefusedError):
        client.ask([*MESSAGES, {"role": "user", "content": "forbidden"}], temperature=0.2)
    client.ask(MESSAGES, temperature=0.2)
    assert "temperature" in requests[-1] and requests[-1]["messages"][0]["role"] == "system"


def test_a_value_that_is_too_large_is_a_refusal(serve):
    client, requests = serve(lambda request, count: (400, {}, [{"error": {"message": "max_tokens is too large: 100"}}]))
    with pytest.raises(RequestRefusedError, match="too large"):
        client.ask(MESSAGES, temperature=0, max_tokens=100)
    assert len(requests) == 1


@pytest.mark.parametrize(
    "body", [[], None, 8, {"object": "error", "message": "overloaded"}, {"detail": "busy"}, {"choices": None}]
)
def test_a_reply_without_choices_is_asked_again(serve, body):
    client, requests = serve(lambda request, count: (200, {}, [body if count < 3 else completion("8 6")]))
    assert client.ask(MESSAGES, temperature=0).text == "8 6" and len(requests) == 3


def test_a_text_that_says_why_is_told(serve):
    client, _ = serve(lambda request, count: (400, {"Content-Type": "text/plain"}, [b"the prompt is not allowed"]))
    with pytest.raises(RequestRefusedError, match="the prompt is not allowed"):
        client.ask(MESSAGES, temperature=0)


def test_the_key_itself_is_hidden_whatever_stands_around_it(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "plainsecret77zz")
    client, _ = serve(lambda request, count: (401, {}, [{"error": {"message": "Incorrect: plainsecret77zz"}}]))
    with pytest.raises(EndpointError) as caught:
        client.ask(MESSAGES, temperature=0)
    assert "plainsecret77zz" not in str(caught.value)


@pytest.mark.parametrize(
    ("headers", "chunks", "said"),
    [
        ({}, [b" " * 100_000] * 20, "larger than 1,000,000 bytes"),
        ({"Content-Encoding": "gzip"}, [gzip.compress(b" " * 50_000_000)], "compressed"),
        ({"Content-Type": "text/html"}, [b"<html>Sign in</html>"], "HTML page"),
        ({"Content-Type": "text/event-stream"}, [b"data: {}\n\n"], "event stream"),
        ({}, [b'{"choices": "\xff\xfe'], "cannot be read"),
        ({}, [b"[" * 200_000], "cannot be read"),
    ],
    ids=["large", "bomb", "html", "stream", "torn", "nested"],
)
def test_replies_that_are_none_are_told_by_their_kind(serve, headers, chunks, said):
    client, _ = serve(lambda request, count: (200, headers, chunks))
    with pytest.raises(RequestFailedError, match=said):
        client.ask(MESSAGES, temperature=0)


def test_a_reply_that_drips_ends_at_the_deadline(serve, monkeypatch):
    pause = threading.Event()

    def drip(request, count):
        def chunks():
            for _ in range(1000):
                yield b" "
                pause.wait(0.05)

        return 200, {}, chunks()

    client, _ = serve(drip)
    start = time.monotonic()
    with pytest.raises(RequestFailedError, match="did not end within 2 s"):
        client.ask(MESSAGES, temperature=0)
    pause.set()
    assert time.monotonic() - start < 45  # 1,000 bytes would take 50 s


@pytest.mark.parametrize("kind", ["silence", "a byte at a time", "headers for ever", "100 Continue for ever"])
def test_a_reply_whose_headers_never_end_ends_at_the_deadline(monkeypatch, kind):
    """Without a deadline for the whole request none of these would ever end."""
    pause, stopped = threading.Event(), threading.Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def serve_one(connection):
        lines = {"headers for ever": b"X: y\r\n", "100 Continue for ever": b"HTTP/1.1 100 Continue\r\n\r\n"}
        try:
            if kind == "headers for ever":
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stopped.is_set():
                if kind != "silence":
                    connection.sendall(lines.get(kind, b"H"))
                pause.wait(0.05)
        except OSError:  # the client has had enough
            pass

    def accept():
        while not stopped.is_set():
            try:
                threading.Thread(target=serve_one, args=(listening.accept()[0],), daemon=True).start()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    monkeypatch.setattr(module, "CONNECTION_RETRIES", 0)
    client = ChatClient(f"http://127.0.0.1:{listening.getsockname()[1]}/v1", "m", package_extra="judge", timeout=1)
    try:
        with pytest.raises(RequestFailedError, match="no reply|cannot be read|within 1 s"):
            client.ask(MESSAGES, temperature=0)
    finally:
        stopped.set()
        listening.close()


def test_prompts_follow_no_redirect(serve):
    other, received = serve(lambda request, count: (200, {}, [completion("8 6")]))
    client, _ = serve(lambda request, count: (307, {"Location": f"{other.url}/chat/completions"}, [b""]))
    with pytest.raises(EndpointError, match="redirects to"):
        client.ask(MESSAGES, temperature=0)
    assert not received


def test_what_was_cut_off_and_what_it_was_is_kept(serve):
    body = completion(None, "length")
    body["choices"][0]["message"]["reasoning_content"] = "Let me compare"
    client, _ = serve(lambda request, count: (200, {}, [body]))
    reply = client.ask(MESSAGES, temperature=0)
    assert (reply.text, reply.finish_reason) == ("", "length") and "Let me compare" in reply.raw


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "", "http://", "http://[::1", "http://x:abc/v1"])
def test_a_url_that_is_none_is_told_at_once(url):
    with pytest.raises(EndpointError, match="expected a URL"):
        ChatClient(url, "m", package_extra="judge")


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_timeout_is_a_time(seconds):
    with pytest.raises(EndpointError, match="--timeout: expected seconds above 0"):
        ChatClient("http://localhost/v1", "m", package_extra="judge", timeout=seconds)


def test_a_url_may_have_a_query(serve):
    client, _ = serve(lambda request, count: (200, {}, [completion("8 6")]))
    again = ChatClient(f"{client.url}?api-version=1", "m", package_extra="judge")
    assert again.ask(MESSAGES, temperature=0).text == "8 6"
    assert str(again._client.base_url).endswith("/v1/") and again._client.default_query == {"api-version": "1"}


def test_a_url_may_name_the_whole_way(serve):
    client, _ = serve(lambda request, count: (200, {}, [completion("8 6")]))
    again = ChatClient(f"{client.url}/chat/completions/", "m", package_extra="judge")
    assert again.ask(MESSAGES, temperature=0).text == "8 6"


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        ("<think>hm</think>Kindly state: what is it?", "Kindly state: what is it?"),
        ("Here is the rewritten question:\n\nPlease tell what it is?", "Please tell what it is?"),
        ('"Which object is it?"', "Which object is it?"),
        ("Here's a formal version: Which object is it?", "Which object is it?"),
        ("**Rewritten question:** Which object is it?", "Which object is it?"),
        ("Certainly. Which object is it?", "Which object is it?"),
        ("Formal:\n`Which object is it?`", "Which object is it?"),
        ("\u201eWhich object is it?\u201c", "Which object is it?"),
        ("<analysis>hm</analysis>**Which object is it?**", "Which object is it?"),
        ("Which object is it?\n\nLet me know if you need more.", None),
        ("Option 1: Which is it?\nOption 2: What is that?", None),
        ('{"question": "Which object is it?"}', None),
        ("Could you please provide the question you want rewritten?", None),
        ("It is a circle of some size.", None),
        ("Es tut mir leid, dabei kann ich nicht helfen.", None),
        ("I'm sorry, but I can't help with that.", None),
        ("A red circle.", None),
        ("what is it?", None),
        ("", None),
    ],
)
def test_a_rewritten_question_is_the_question_alone(serve, monkeypatch, reply, question):
    from lmms_eval_emi.shifts.operators import RefusedError, ShiftOptions
    from lmms_eval_emi.shifts.operators.textual import sentence_model

    client, _ = serve(lambda request, count: (200, {}, [completion(reply)]))
    monkeypatch.setattr(sentence_model, "client_of", lambda endpoint, model: client)
    options = ShiftOptions(endpoint=client.url, model="m")
    if question is None:
        with pytest.raises(RefusedError):
            sentence_model.restyle("What is it?", "a formal style", options)
    else:
        assert sentence_model.restyle("What is it?", "a formal style", options) == question
