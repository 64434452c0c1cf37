"""A small HTTP server that answers like an OpenAI-compatible endpoint, well or badly."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[dict[str, Any], int], Any]


class Endpoint:
    """Answers chat completions.

    ``reply`` gets a request and how often this very request has come, counted from 1; it returns the text of the
    judge, a whole body as bytes, or a pair of an HTTP status and headers.
    """

    def __init__(self, reply: Reply, delay: float = 0.0) -> None:
        self.reply, self.delay = reply, delay
        self.requests: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.answer(self, request)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler, request: dict[str, Any]) -> None:
        key = json.dumps(request, sort_keys=True)
        with self._lock:
            self.requests.append(request)
            self.seen[key] += 1
            count = self.seen[key]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        found = self.reply(request, count)
        status, headers, text = (200, {}, found) if isinstance(found, str | bytes) else (*found, "")
        body: dict[str, Any] = {"error": {"message": f"status {status}"}}
        if status == 200:
            message = {"role": "assistant", "content": text}
            body = {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            }
        content = found if isinstance(found, bytes) else json.dumps(body).encode()
        with self._lock:
            self.at_once -= 1
        try:
            handler.send_response(status)
            for name, value in {
                "Content-Type": "application/json",
                "Content-Length": str(len(content)),
                **headers,
            }.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(content)
        except OSError:
            pass  # whoever asked is gone

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def text_of(request: dict[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def assistants(request: dict[str, Any]) -> tuple[str, str]:
    first, second = re.findall(r"\[Assistant \d\]\n(.*?)\n\[End", text_of(request), re.DOTALL)
    return first, second


def by_quality(request: dict[str, Any], count: int) -> str:
    """A judge that reads a number behind "quality" in each response."""
    first, second = (re.search(r"quality (\d+)", one) for one in assistants(request))
    assert first and second
    return f"{first[1]} {second[1]}\nBecause I say so."
