"""Scoring both families: time and memory beside the published script's way and the bare pass of CLIP.

    cd HUB && python .../benchmarks/scoring.py --responses DIR [--naive-splits SPLIT...] [--device cuda]

HUB is a folder with the datasets and encoders under their real names (or any folder, with a connection). Every figure is
of this process and these rows: 63 splits, 4,620 rows, 234 distinct images. The naive way embeds every row of a split with
the whole models of transformers, one row at a time, computes CLUB over all pairs and RJSD by eigh, all in float32; it is
measured on some splits and extrapolated by rows. The floor is the vision tower of transformers over the distinct images,
whose pixels are ready, in batches of 64 and in the size that is fastest here. The scores of both sides are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCHES = (8, 16, 32, 64)


def once(arguments: argparse.Namespace, cache: Path) -> None:
    """Score both families in this process, as the command does, and print what it took."""
    os.environ["LMMS_EVAL_EMI_CACHE"] = str(cache)
    # Imports are Python's, and are not counted.
    import datasets  # noqa: F401
    import huggingface_hub  # noqa: F401
    import scipy.stats  # noqa: F401

    import lmms_eval_emi.cli.score  # noqa: F401
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.scoring.join import collect_samples
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.scoring.rows import write_results
    from lmms_eval_emi.scoring.table import results_to_table
    from lmms_eval_emi.settings import load_settings

    start, cpu = time.perf_counter(), time.process_time()
    settings = load_settings(convention=arguments.convention, estimator=arguments.estimator, device=arguments.device)
    entries = [
        entry
        for name in ("natural", "synthetic")
        for entry in collect_samples(load_study(name), [arguments.responses], settings)
    ]
    scored = score_samples(entries, settings)
    write_results(arguments.output, scored)
    for one in scored:
        results_to_table([one.result])
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "cpu": time.process_time() - cpu,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "rows": sum(len(rows) for one in scored for rows in one.samples.samples.values()),
            }
        )
    )


def in_a_process(arguments: argparse.Namespace, cache: Path, **changes: str) -> dict:
    options = {
        "convention": arguments.convention,
        "estimator": arguments.estimator,
        "device": arguments.device,
        **changes,
    }
    command = [sys.executable, __file__, "--responses", str(arguments.responses), "--output", str(arguments.output)]
    command += [part for name, value in options.items() if value for part in (f"--{name}", value)]
    done = subprocess.run(
        [*command, "--once", str(cache)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def bare_pass(device: str) -> tuple[dict[int, float], int]:
    """Seconds of the bare pass of CLIP over the distinct images by batch size, and their number."""
    import numpy as np
    import torch
    from transformers import CLIPVisionModel

    from lmms_eval_emi.data.images import open_image
    from lmms_eval_emi.data.rows import dataset_images
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.encoders.vision import Preprocessing
    from lmms_eval_emi.settings import load_settings
    from lmms_eval_emi.shifts.at_load import load_splits

    name = load_settings().vision_encoder
    distinct: dict[bytes, None] = {}
    for study in map(load_study, ("natural", "synthetic")):
        for rows in load_splits(study).values():
            distinct |= dict.fromkeys(image.encoded() for image in dataset_images(rows, "image", ()) if image)
    preprocessing = Preprocessing(name)
    pixels = torch.from_numpy(np.stack([preprocessing(open_image(content)) for content in distinct]))
    tower = CLIPVisionModel.from_pretrained(name).eval().to(device)
    times = {}
    with torch.inference_mode():
        if device != "cpu":  # which is slow the first time
            tower(pixel_values=pixels[: max(BATCHES)].to(device)).last_hidden_state.cpu()
        for size in BATCHES:
            start = time.perf_counter()
            for batch in pixels.split(size):
                _ = tower(pixel_values=batch.to(device)).last_hidden_state.mean(dim=1).cpu()
            times[size] = time.perf_counter() - start
    return times, len(distinct)


def naive(arguments: argparse.Namespace, splits: list[str]) -> tuple[float, int, dict[str, float]]:
    """Seconds and rows of the naive way over some splits of the natural family, and their EMI."""
    import torch
    from transformers import AutoTokenizer, CLIPModel, XLMRobertaModel

    from lmms_eval_emi.data.images import open_image
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.encoders.vision import Preprocessing
    from lmms_eval_emi.estimators import load_estimator
    from lmms_eval_emi.scoring.join import collect_samples
    from lmms_eval_emi.settings import load_settings

    settings = load_settings()
    (entry,) = collect_samples(load_study("natural"), [arguments.responses], settings, splits=splits)
    club = load_estimator(arguments.estimator or settings.estimator)
    device = arguments.device
    club.to(device)
    clip, language = (
        CLIPModel.from_pretrained(settings.vision_encoder).eval().to(device),
        XLMRobertaModel.from_pretrained(settings.text_encoder).eval().to(device),
    )
    tokenizer, preprocessing = (
        AutoTokenizer.from_pretrained(settings.text_encoder),
        Preprocessing(settings.vision_encoder),
    )

    def text(content: str) -> torch.Tensor:
        tokens = tokenizer(content, return_tensors="pt", truncation=True, max_length=512).to(device)
        states = language(**tokens, output_hidden_states=True).hidden_states[0]
        return torch.nn.functional.normalize(states[0, 1:].mean(dim=0), dim=0)

    def image(source: object) -> torch.Tensor:
        pixels = torch.from_numpy(preprocessing(open_image(source)))[None].to(device)  # type: ignore[arg-type]
        states = clip.vision_model(pixels, output_hidden_states=True).hidden_states[-1]
        return torch.nn.functional.normalize(states[0, 1:].mean(dim=0), dim=0)

    def mutual_information(x: torch.Tensor, y: torch.Tensor) -> float:
        mu, logvar = club(x)
        positive = -((mu - y) ** 2) / 2 / logvar.exp()
        negative = -((y[None] - mu[:, None]) ** 2).mean(dim=1) / 2 / logvar.exp()
        return float((positive.sum(-1) - negative.sum(-1)).mean())

    def entropy(k: torch.Tensor) -> torch.Tensor:
        values = torch.linalg.eigh(k)[0]
        p = values[values > 0] / values[values > 0].sum()
        return -(p * p.log()).sum()

    found: dict[str, float] = {}
    count, start, first = 0, time.perf_counter(), None
    with torch.no_grad():
        for name in entry.samples:
            rows = entry.samples[name]
            count += len(rows)
            v, t, y_hat, y = (torch.stack([embed(row) for row in rows]) for embed in (
                lambda row: image(row.image), lambda row: text(row.question),
                lambda row: text(row.response), lambda row: text(row.reference),
            ))  # fmt: skip
            x = (v + t) / 2
            found[name] = mutual_information(x, y_hat) - mutual_information(x, y)
            first = first or (v, t, y_hat, y)
            for a, b in ((first[0], v), (first[1], t), (first[2], first[3]), (y_hat, y)):
                k_a, k_b = a.T @ a, b.T @ b
                entropy((k_a + k_b) / 2) - (entropy(k_a) + entropy(k_b)) / 2
    return time.perf_counter() - start, count, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--responses", type=Path, required=True, help="folder of one model's responses of both families"
    )
    parser.add_argument(
        "--naive-splits",
        nargs="*",
        default=["llava_bench_coco_German"],
        help="beside the ID split (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=Path(tempfile.gettempdir()) / "scoring-benchmark.json")
    parser.add_argument("--convention", default="published")
    parser.add_argument("--estimator", default=None)
    parser.add_argument("--device", default="cpu", help="of both sides (default: %(default)s)")
    parser.add_argument("--once", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        once(arguments, arguments.once)
        return
    cache = Path(tempfile.mkdtemp(prefix="scoring-benchmark-"))
    try:
        in_a_process(arguments, cache)  # datasets are prepared, files are in the system's cache
        shutil.rmtree(cache)
        cold = in_a_process(arguments, cache)
        expected = json.loads(arguments.output.read_text())["results"][0]["splits"]
        known = in_a_process(arguments, cache)
        other = in_a_process(arguments, cache, convention="equal_weight")
        third = in_a_process(arguments, cache, estimator="cosine")
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    times, images = bare_pass(arguments.device)
    seconds, rows, found = naive(arguments, arguments.naive_splits)
    worst = max(abs(value - expected[name]["emi"]) for name, value in found.items())
    assert worst < 1e-4, (found, {name: expected[name]["emi"] for name in found})
    whole = seconds / rows * cold["rows"]
    best = min(times, key=lambda size: times[size])
    print(
        f"both families, {cold['rows']:,} rows, nothing known: {cold['seconds']:.1f} s ({cold['cpu']:.1f} s of CPU), peak {cold['peak_mb']:,.0f} MB"
    )
    print(
        f"naive way: {seconds:.1f} s for {rows} rows, so {whole:,.0f} s for all: {whole / cold['seconds']:.0f} times as long; EMI differs by {worst:.1e}"
    )
    print(
        f"bare pass of CLIP over {images} images: "
        + ", ".join(f"{value:.1f} s in batches of {size}" for size, value in times.items())
    )
    print(
        f"ours over the bare pass: {cold['seconds'] / times[64]:.2f} (batches of 64), {cold['seconds'] / times[best]:.2f} (of {best}, the fastest)"
    )
    print(
        f"again: {known['seconds']:.2f} s; another convention: {other['seconds']:.2f} s; another estimator: {third['seconds']:.2f} s"
    )


if __name__ == "__main__":
    main()
