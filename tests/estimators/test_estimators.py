"""Loading estimators: the registry, fetching by hash, and what is never loaded."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import threading

import pytest
import torch

from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.estimators import CLUB, EstimatorEntry, load_estimator, registered_estimators, registry


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def served(monkeypatch):
    """An estimator behind a URL of this machine, registered as ``served``."""
    buffer = io.BytesIO()
    torch.save(CLUB(6, 6, 4).state_dict(), buffer)
    content = buffer.getvalue()
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = EstimatorEntry(
        name="served",
        kind="club",
        url=f"http://127.0.0.1:{server.server_port}/served.pt",
        sha256=hashlib.sha256(content).hexdigest(),
        dimension=6,
        vision_encoder="v",
        text_encoder="t",
        description="",
        licence="",
    )
    monkeypatch.setattr(registry, "registered_estimators", lambda: {"served": entry})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield entry, requests
    server.shutdown()
    server.server_close()


def test_the_registry_names_the_published_estimator():
    entry = registered_estimators()["club-global"]
    assert entry.sha256 == "99ab062638de898356d087907b450d4cba755541eff49b877158c9b9b831b116"
    assert (entry.vision_encoder, entry.text_encoder, entry.dimension) == (
        "openai/clip-vit-base-patch32",
        "xlm-roberta-base",
        768,
    )


def test_fetched_once_and_kept(cache, served):
    entry, requests = served
    assert load_estimator("served").signature == f"served@{entry.sha256[:8]}"
    assert load_estimator("served").input_dimension == 6
    assert requests == ["/served.pt"]
    assert len(list((cache / "estimators").glob("*.pt"))) == 1


def test_a_damaged_copy_in_the_cache_is_fetched_again(cache, served):
    entry, requests = served
    load_estimator("served")
    next((cache / "estimators").glob("*.pt")).write_bytes(b"damaged")
    assert load_estimator("served").input_dimension == 6
    assert len(requests) == 2


def test_another_content_than_registered_is_refused(cache, served, monkeypatch):
    entry, _ = served
    wrong = entry.model_copy(update={"sha256": "0" * 64})
    monkeypatch.setattr(registry, "registered_estimators", lambda: {"served": wrong})
    with pytest.raises(UnavailableError, match="(?s)hash.*sha256  0000"):
        load_estimator("served")
    assert not list((cache / "estimators").glob("*.pt"))


def test_a_copy_in_the_published_layout_is_used_without_a_connection(cache, served, tmp_path, monkeypatch):
    entry, requests = served
    load_estimator("served")
    folder = tmp_path / "estimator_ckpt"
    folder.mkdir()
    next((cache / "estimators").glob("*.pt")).rename(folder / "served.pt")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load_estimator("served").name == "served"
    (folder / "served.pt").write_bytes(b"something else")
    with pytest.raises(UnavailableError):
        load_estimator("served")


@pytest.mark.parametrize("offline", [True, False])
def test_without_a_connection_the_error_says_all_that_is_needed(cache, served, monkeypatch, offline):
    entry, _ = served
    unreachable = entry.model_copy(update={"url": "http://127.0.0.1:9/served.pt"})
    monkeypatch.setattr(registry, "registered_estimators", lambda: {"served": unreachable})
    if offline:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnavailableError) as error:
        load_estimator("served")
    for part in (unreachable.url, entry.sha256, str(cache / "estimators"), "LMMS_EVAL_EMI_ESTIMATOR"):
        assert part in str(error.value)


def test_safetensors_keep_the_weights(tmp_path):
    estimator = CLUB(6, 5, 4)
    estimator.save(tmp_path / "mine.safetensors")
    loaded = load_estimator(tmp_path / "mine.safetensors")
    assert (loaded.name, loaded.input_dimension, loaded.output_dimension) == ("mine", 6, 5)
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in estimator.state_dict().items())


class Malicious:
    def __reduce__(self):
        return open, ("ran", "w")


def test_a_pickle_that_runs_code_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match="expected a state dict of plain tensors"):
        load_estimator("evil.pt")
    torch.save({"p_mu.0.weight": Malicious()}, tmp_path / "evil2.pt")
    with pytest.raises(ValueError, match="expected a state dict of plain tensors"):
        load_estimator("evil2.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("p_mu.0.bias"), "missing: p_mu.0.bias"),
        (lambda state: state.update(extra=torch.ones(1)), "unknown: extra"),
        (lambda state: state.update({"p_mu.2.weight": torch.ones(6, 3)}), "do not fit together"),
        (lambda state: state["p_logvar.2.bias"].fill_(float("nan")), "expected finite weights"),
    ],
)
def test_a_file_that_is_no_estimator(tmp_path, change, message):
    state = CLUB(6, 6, 4).state_dict()
    change(state)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=message):
        load_estimator(tmp_path / "odd.pt")


def test_neither_a_name_nor_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"got 'club-globl', which is neither. Did you mean club-global\?"):
        load_estimator("club-globl")
    (tmp_path / "weights.safetensors").write_text("no")
    with pytest.raises(ValueError, match="expected a safetensors file"):
        load_estimator(tmp_path / "weights.safetensors")
    (tmp_path / "weights.txt").write_text("no")
    with pytest.raises(ValueError, match=r"got the suffix '.txt'"):
        load_estimator(tmp_path / "weights.txt")
