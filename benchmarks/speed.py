"""How much faster the closed forms and the trimmed encoder are than the published way, as ratios.

    python benchmarks/speed.py [--n 3000]

Both sides of each comparison run in this process on the same random data, alternately, and the
medians of their times are compared. Nothing is fetched: the encoder has random weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from lmms_eval_emi import Embeddings, emid_bound, rjsd
from lmms_eval_emi.core.conventions import EXPONENTS
from lmms_eval_emi.estimators import CLUB

DIMENSION = 768


def ratio(label: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> None:
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(repeats):
        for name, run in (("ours", ours), ("theirs", theirs)):
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    mine, other = (statistics.median(times[name]) for name in ("ours", "theirs"))
    print(f"{label:58} {other * 1e3:10.1f} ms {mine * 1e3:10.1f} ms {other / mine:8.1f} x")


def pairwise_club(network: CLUB, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """CLUB with the (N, N, D) tensor of all pairs, in float32."""
    mu, logvar = network(x)
    positive = -((mu - y) ** 2) / 2 / logvar.exp()
    negative = -((y[None] - mu[:, None]) ** 2).mean(dim=1) / 2 / logvar.exp()
    return (positive.sum(-1) - negative.sum(-1)).mean()


def eigenvector_rjsd(a: torch.Tensor, b: torch.Tensor) -> float:
    """RJSD of covariance matrices by full decompositions, eigenvectors included, in float32."""

    def entropy(k: torch.Tensor) -> torch.Tensor:
        values = torch.linalg.eigh(k)[0]
        p = values[values > 0] / values[values > 0].sum()
        return -(p * p.log()).sum()

    k_a, k_b = a.T @ a, b.T @ b
    return float(entropy((k_a + k_b) / 2) - (entropy(k_a) + entropy(k_b)) / 2)


def study_of_divergences(splits: int = 63, visual: int = 11, textual: int = 12) -> list[Embeddings]:
    """Splits that share images and questions as the two families do, with random rows."""
    generator = torch.Generator().manual_seed(0)

    def rows(n: int) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(n, DIMENSION, generator=generator) + 1, dim=1)

    images, questions = [rows(90) for _ in range(visual)], [rows(90) for _ in range(textual)]
    return [
        Embeddings(v=images[number % visual], t=questions[number % textual], y_hat=rows(90), y=rows(90))
        for number in range(splits)
    ]


def all_divergences(splits: list[Embeddings]) -> list[float]:
    """The four divergences of every shift, as a study computes them."""
    for one in splits:
        one.cache.clear()
    bounds = [emid_bound(splits[0], one) for one in splits[1:]]
    return [getattr(bound, name) for bound in bounds for name in EXPONENTS]


def all_divergences_naively(splits: list[Embeddings]) -> list[float]:
    """The same from covariances, each decomposed with eigenvectors in float32 whenever it is needed."""
    id = splits[0]
    pairs = [
        pair for one in splits[1:] for pair in ((id.v, one.v), (id.t, one.t), (id.y_hat, id.y), (one.y_hat, one.y))
    ]
    return [eigenvector_rjsd(a, b) for a, b in pairs]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--n", type=int, default=1000, help="samples; pairs take 4 N^2 768 bytes a tensor (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    x, y = (torch.nn.functional.normalize(torch.randn(args.n, DIMENSION), dim=1) for _ in range(2))
    club = CLUB(DIMENSION, DIMENSION).eval()

    from transformers import XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(vocab_size=250002, max_position_embeddings=514, type_vocab_size=1)
    whole = XLMRobertaModel(config, add_pooling_layer=False).eval()
    tokens = torch.randint(5, 250002, (32, 128))

    print(f"{'':58} {'published':>13} {'ours':>13} {'ratio':>10}")
    with torch.inference_mode():
        ratio(
            f"CLUB, N = {args.n}: all pairs (float32), closed form (float64)",
            lambda: club.contributions(x, y),
            lambda: pairwise_club(club, x, y),
            args.repeats,
        )
        ratio(
            "RJSD, N = 90: eigenvectors (float32), Gram (float64)",
            lambda: rjsd(x[:90], y[:90]),
            lambda: eigenvector_rjsd(x[:90], y[:90]),
            args.repeats,
        )
        splits = study_of_divergences()
        worst = max(abs(a - b) for a, b in zip(all_divergences(splits), all_divergences_naively(splits), strict=True))
        assert worst < 1e-4, worst  # the naive side's float32
        ratio(
            "RJSD, 62 shifts of 90 rows, 4 divergences each",
            lambda: all_divergences(splits),
            lambda: all_divergences_naively(splits),
            1,
        )
        ratio(
            "32 texts of 128 tokens: 12 layers, embedding layer",
            lambda: whole.embeddings(input_ids=tokens),
            lambda: whole(input_ids=tokens, output_hidden_states=True),
            args.repeats,
        )


if __name__ == "__main__":
    main()
