"""A hub that cannot be reached is asked once, and not for minutes by each library."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from lmms_eval_emi.util.hub import go_offline_unless_reachable


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that has not yet asked the hub; what it learns is forgotten afterwards."""
    import datasets

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    go_offline_unless_reachable.cache_clear()
    yield monkeypatch
    go_offline_unless_reachable.cache_clear()


def test_a_hub_that_answers_may_be_asked(online):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert go_offline_unless_reachable() is True and os.environ["HF_HUB_OFFLINE"] == "0"
    server.shutdown()


def test_a_hub_that_is_gone_is_asked_no_more_by_any_library(online, caplog):
    import datasets

    server = HTTPServer(("127.0.0.1", 0), Hub)
    server.server_close()  # nobody listens at this port
    online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    assert go_offline_unless_reachable() is False
    assert os.environ["HF_HUB_OFFLINE"] == "1" and constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    assert "only what is cached is used" in caplog.text
    online.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    assert go_offline_unless_reachable() is False and caplog.text.count("does not answer") == 1
