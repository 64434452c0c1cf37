"""EMI, EMID and the index of two splits of up to a million rows: time and memory, beside the naive way.

    python benchmarks/scale.py [--rows 1000 1500 10000 100000 1000000] [--ray] [--folder DIR]

Random embeddings of 768 dimensions, in parquet files (12 kB a row) that this command writes and removes. ``score`` runs
as a user runs it, in a process of its own, whose peak memory the system measures. The naive side is the published
script's arithmetic on the same rows: CLUB over all pairs in float32, and covariances decomposed by eigh in float32. It
is left out where its pairs take more than 8 GB, and its scores are compared with ours. With ``--ray`` the largest size is
read again by Ray Data on two local workers, one of which is killed on the way.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from lmms_eval_emi import Embeddings
from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.estimators import CLUB
from lmms_eval_emi.scoring.embedding_files import to_table

D = 768
BLOCK = 4096
MOST_PAIRS = 8e9  # bytes of the naive side's largest tensor
STUDY = """
name: scale
id_split: clean
dataset: {path: none, columns: {id: id, question: q, reference: r}}
splits:
  clean: {}
  shifted: {shifts: [{modality: visual, name: noise, severity: 1}, {modality: text, name: noise, severity: 1}]}
"""


def write_split(path: Path, n: int, seed: int, shift: float) -> None:
    import pyarrow.parquet as pq

    generator = torch.Generator().manual_seed(seed)
    writer = None
    for start in range(0, n, BLOCK):
        count = min(BLOCK, n - start)
        base = torch.randn(count, 4 * D, generator=generator) + 2
        base[:, : 2 * D] += shift
        v, t, y_hat, y = (torch.nn.functional.normalize(one, dim=1) for one in base.split(D, dim=1))
        y_hat = torch.nn.functional.normalize(y_hat + v, dim=1)
        rows = range(start, start + count)
        part = Embeddings(
            v=v, t=t, y_hat=y_hat, y=y, ids=[f"q{row}" for row in rows], groups=[f"image {row // 3}" for row in rows]
        )
        table = to_table(part)
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table, row_group_size=2048)
    assert writer is not None
    writer.close()


def naive(folder: Path, club: CLUB) -> dict[str, float]:
    """EMI of both splits, and the index, by the published script's arithmetic."""
    import pyarrow.parquet as pq

    def rows(split: str) -> dict[str, torch.Tensor]:
        table = pq.read_table(folder / f"{split}.parquet", columns=["v", "t", "y_hat", "y"])
        return {
            name: torch.from_numpy(table[name].combine_chunks().flatten().to_numpy().reshape(-1, D).copy())
            for name in table.column_names
        }

    def mutual_information(x: torch.Tensor, y: torch.Tensor) -> float:
        mu, logvar = club(x)
        positive = -((mu - y) ** 2) / 2 / logvar.exp()
        negative = -((y[None] - mu[:, None]) ** 2).mean(dim=1) / 2 / logvar.exp()
        return float((positive.sum(-1) - negative.sum(-1)).mean())

    def entropy(k: torch.Tensor) -> float:
        values = torch.linalg.eigh(k)[0]
        p = values[values > 0] / values[values > 0].sum()
        return float(-(p * p.log()).sum())

    def jsd(a: torch.Tensor, b: torch.Tensor) -> float:
        k_a, k_b = a.T @ a, b.T @ b
        return max(0.0, entropy((k_a + k_b) / 2) - (entropy(k_a) + entropy(k_b)) / 2)

    with torch.no_grad():
        id, ood = rows("clean"), rows("shifted")
        emis = []
        for one in (id, ood):
            x = (one["v"] + one["t"]) / 2
            emis.append(mutual_information(x, one["y_hat"]) - mutual_information(x, one["y"]))
        jsds = {"jsd_v": jsd(id["v"], ood["v"]), "jsd_t": jsd(id["t"], ood["t"])}
        jsds |= {"jsd_id_response": jsd(id["y_hat"], id["y"]), "jsd_ood_response": jsd(ood["y_hat"], ood["y"])}
        index = sum(value ** EXPONENTS[name] for name, value in jsds.items())
    return {"emi": emis[0], "emid": emis[0] - emis[1], "index": index}


def score(folder: Path, *options: str, kill: bool = False) -> tuple[dict[str, float], float, float]:
    """Scores, seconds, and peak memory in MB."""
    command = [sys.executable, "-m", "lmms_eval_emi", "score", "--study", str(folder / "study.yaml")]
    command += ["--embeddings", str(folder), "--estimator", str(folder / "club.safetensors")]
    command += ["--output", str(folder / "results.json"), "--overwrite", *options]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if kill:
        threading.Thread(target=kill_a_worker, daemon=True).start()
    peak = [0.0]
    threading.Thread(target=watch, args=(process.pid, peak), daemon=True).start()
    _, error = process.communicate()
    if process.returncode:
        raise SystemExit(error)
    found = json.loads((folder / "results.json").read_text())["splits"]
    scores = {"emi": found["clean"]["emi"], "emid": found["shifted"]["emid"], "index": found["shifted"]["emid_bound"]}
    return scores, time.perf_counter() - start, peak[0]


def watch(number: int, peak: list[float]) -> None:
    """Keep the peak memory of a process in MB, as long as it runs."""
    try:
        while True:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
            peak[0] = max(peak[0], *(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)
            time.sleep(0.05)
    except (OSError, ValueError):
        return


def kill_a_worker() -> None:
    """Kill a Ray worker once it has been at work for a while."""
    for _ in range(600):
        time.sleep(1)
        busy = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                name = (path / "cmdline").read_bytes().split(b"\0")[0]
                ticks = sum(map(int, (path / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            except (OSError, IndexError, ValueError):
                continue
            if name.startswith((b"ray::HashAggregateMap", b"ray::ReadFiles")) and ticks > 1500:
                busy.append((ticks, int(path.name), name.decode()))
        if busy:
            _, number, name = max(busy)
            os.kill(number, signal.SIGKILL)
            print(f"killed {name} after {max(busy)[0] / 100:.0f} s of its work", flush=True)
            return
    print("no worker was killed", flush=True)


def draw(table: list[list[object]], path: Path) -> None:
    """Time against rows, both sides, on logarithmic axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rows = [int(str(row[0]).replace(",", "")) for row in table]
    axes.loglog(rows, [float(str(row[1])) for row in table], "o-", color="#0072b2", label="score --embeddings")
    naive_side = [(n, float(str(row[3]))) for n, row in zip(rows, table, strict=True) if row[3] != "-"]
    if naive_side:
        axes.loglog(
            *zip(*naive_side, strict=True), "s--", color="#d55e00", label="published arithmetic, until memory ends"
        )
    axes.set(xlabel="rows of each split", ylabel="seconds, two splits")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 1500, 10_000, 100_000, 1_000_000])
    parser.add_argument("--ray", action="store_true", help="read the largest size again by Ray Data, and kill a worker")
    parser.add_argument("--plot", type=Path, help="draw time against rows to this file")
    parser.add_argument("--folder", type=Path, help="where to write the embeddings (default: a temporary folder)")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="scale-", dir=arguments.folder))
    torch.manual_seed(0)
    club = CLUB(D, D, 250, name="random")
    table = []
    try:
        for n in sorted(arguments.rows):
            folder = base / str(n)
            folder.mkdir()
            (folder / "study.yaml").write_text(STUDY)
            club.save(folder / "club.safetensors")
            for number, (split, shift) in enumerate((("clean", 0.0), ("shifted", 0.3))):
                write_split(folder / f"{split}.parquet", n, number, shift)
            scores, seconds, memory = score(folder)
            row: list[object] = [f"{n:,}", f"{seconds:.1f}", f"{memory:.0f}"]
            if 4 * n**2 * D <= MOST_PAIRS:
                start = time.perf_counter()
                expected = naive(folder, club)
                other = time.perf_counter() - start
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                worst = max(abs(scores[name] - expected[name]) for name in scores)
                assert worst < 2e-3, (scores, expected)  # the naive side's float32
                row += [f"{other:.1f}", f"{peak:.0f}", f"{worst:.1e}"]
            else:
                row += ["-", f"({4 * n**2 * D / 1e9:,.0f} GB)", "-"]
            table.append(row)
            print(tabulate(table, headers=["rows", "score, s", "peak, MB", "naive, s", "peak, MB", "differ by"], disable_numparse=True, tablefmt="pipe"), flush=True)  # fmt: skip
            if arguments.ray and n == max(arguments.rows):
                again, seconds, _ = score(folder, "--engine", "ray", kill=True)
                worst = max(abs(again[name] - scores[name]) for name in scores)
                print(
                    f"Ray, {os.cpu_count()} workers, one of them killed: {seconds:.1f} s, scores differ by {worst:.1e}",
                    flush=True,
                )
                assert worst < 1e-9
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(base, ignore_errors=True)
    if arguments.plot:
        draw(table, arguments.plot)
    sizes = np.array([int(str(row[0]).replace(",", "")) for row in table], dtype=float)
    times = np.array([float(str(row[1])) for row in table])
    if len(sizes) > 1 and sizes[-1] >= 1e5:
        slope = np.log(times[-1] / times[-2]) / np.log(sizes[-1] / sizes[-2])
        print(f"\ntime grows as rows^{slope:.2f} between the two largest sizes")


if __name__ == "__main__":
    main()
