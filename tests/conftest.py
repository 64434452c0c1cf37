"""What the tests share: a tiny hub, an environment without network or stray settings, and random embeddings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from forking import keep_task_index, run_in_fork

# Before transformers or datasets are imported: nothing is fetched, and the user's caches stay as they are.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# With several threads an embedding may change by 3e-8 with the size of its batch; tests compare to 1e-9.
os.environ["OMP_NUM_THREADS"] = "1"
for variable in [name for name in os.environ if name.startswith("LMMS_EVAL_EMI_")]:
    del os.environ[variable]
CACHES = tempfile.TemporaryDirectory(prefix="lmms_eval_emi-caches-")
os.environ["HF_HOME"] = f"{CACHES.name}/huggingface"
os.environ["HF_DATASETS_CACHE"] = os.environ["LMMS_EVAL_DATASETS_CACHE"] = f"{CACHES.name}/datasets"
os.environ["LMMS_EVAL_EMI_CACHE"] = f"{CACHES.name}/emi"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the repository, which not every checkout has."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("needs the reference data beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def tinyhub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import tinyhub as builder

    return builder.build(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def in_tinyhub(tinyhub: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny hub as the current directory, with its estimator set."""
    monkeypatch.chdir(tinyhub)
    monkeypatch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tinyhub / "tiny.safetensors"))
    return tinyhub


@pytest.fixture(scope="session")
def task_index() -> None:
    """The harness's index of its own task files is read once in this process, which takes seconds each time."""
    keep_task_index()


@pytest.fixture(scope="session")
def make_embeddings():
    """Random unit rows, as a function of seed, n and dimension."""
    from lmms_eval_emi import Embeddings

    def make(seed: int = 0, n: int = 20, dimension: int = 12, **changes):
        rng = np.random.default_rng(seed)
        matrices = {name: rng.normal(size=(n, dimension)) for name in ("v", "t", "y_hat", "y")}
        return Embeddings(
            **{name: rows / np.linalg.norm(rows, axis=1, keepdims=True) for name, rows in matrices.items()} | changes
        )

    return make


def numbers(scores: dict) -> dict:
    """The scores of a split that are numbers."""
    return {name: value for name, value in scores.items() if isinstance(value, int | float)}


def run_module(
    module: str, *arguments: str, cwd: Path, processes: int = 1, launcher: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Run ``python -m module`` as a user would, on one rank or several; with ``launcher``, torchrun starts them."""
    ours = all(name.startswith("LMMS_EVAL_EMI_") for name in environment)  # others are read when modules are imported
    slow_start = module == "lmms_eval" or arguments[:1] == ("run",) or processes > 1
    if ours and slow_start and not launcher:
        return run_in_fork(module, *arguments, cwd=cwd, processes=processes, **{**os.environ, **environment})
    command = [sys.executable, "-m"]
    if launcher:
        command += ["torch.distributed.run", "--nproc_per_node", str(processes), "-m"]
    variables = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        **({"ACCELERATE_USE_CPU": "true"} if launcher else {}),
        **environment,
    }
    return subprocess.run(
        [*command, module, *arguments],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


ROWS = 5
ID, GERMAN = "llava_bench_coco_English", "llava_bench_coco_German"
GROUP = "llavabench_shift_natural_text"
MODEL = (
    *("--model", "llava_hf", "--model_args", "pretrained=tiny-llava,device_map=cpu"),
    *("--device", "cpu", "--gen_kwargs", "max_new_tokens=6"),
)


def lmms_eval(hub: Path, tasks: str, *arguments: str, **options):
    """Run the harness's own command on the tiny hub; options as in :func:`run_module`."""
    pytest.importorskip("decord", reason="lmms-eval's llava_hf needs decord")
    variables = {"LMMS_EVAL_EMI_ESTIMATOR": str(hub / "tiny.safetensors"), **options}
    return run_module("lmms_eval", "--tasks", tasks, *MODEL, *arguments, cwd=hub, **variables)


def strict_json(path: Path) -> dict:
    """JSON without NaN or infinity, which other readers refuse."""
    return json.loads(
        path.read_text(), parse_constant=lambda constant: pytest.fail(f"{path} has {constant}, which is no JSON")
    )


def only(folder: Path, pattern: str) -> Path:
    """The one path below a folder that fits a pattern."""
    (path,) = folder.rglob(pattern)
    return path


def fit(network, x, y, steps: int = 1500, lr: float = 3e-3):
    """An estimator trained on rows as they are, by its loss alone."""
    import torch

    torch.manual_seed(0)
    x, y = x.float(), y.float()
    network.fit_data(x, y)
    optimizer = torch.optim.AdamW([one for one in network.parameters() if one.requires_grad], lr=lr)
    for _ in range(steps):
        batch = torch.randint(len(x), (256,))
        loss = network.loss(x[batch], y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network
