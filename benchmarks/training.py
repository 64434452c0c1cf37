"""Training an estimator beside a plain PyTorch loop with a DataLoader: time, and the loss of every iteration.

    python benchmarks/training.py [--iterations 5000] [--device cuda]

Both sides start from the same weights and see the same 1,024 of 10,000 pairs in every iteration, in this process, and
take turns of 50 iterations, so that both meet the same machine. The losses must agree to 1e-6.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lmms_eval_emi import Embeddings
from lmms_eval_emi.estimators.training import TrainingOptions, _Training, embeddings_to_pairs

D, PAIRS, TURN = 768, 10_000, 50


class Plain(nn.Module):
    """The two networks of CLUB, of PyTorch's own layers."""

    def __init__(self, inputs: int, outputs: int, hidden: int) -> None:
        super().__init__()
        self.p_mu = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))
        self.p_logvar = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs), nn.Tanh())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=5000)
    parser.add_argument("--device", type=torch.device, default="cpu", help="of both sides (default: %(default)s)")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    v, t, y = (torch.nn.functional.normalize(torch.randn(PAIRS, D) + 1, dim=1) for _ in range(3))
    pairs = embeddings_to_pairs({"all": Embeddings(v=v, t=t, y_hat=y, y=torch.nn.functional.normalize(y + v, dim=1))})
    options = TrainingOptions(
        iterations=arguments.iterations, batch_size=1024, folds=1, seeds=1, held_out=0.0, keep="last"
    )
    device = arguments.device
    ours = _Training(pairs.to(device), options, 0, "ours")

    # In one tensor each: thousands of small ones would keep what lies between them from being used again.
    losses = {name: torch.zeros(arguments.iterations, device=device) for name in ("ours", "plain")}
    filled = dict.fromkeys(losses, 0)

    def note(name: str, loss: torch.Tensor) -> None:
        losses[name][filled[name]] = loss.detach()
        filled[name] += 1

    loss_of = ours.network.loss

    def remember(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = loss_of(x, y)
        note("ours", loss)
        return loss

    ours.network.loss = remember  # type: ignore[method-assign]
    plain = Plain(D, pairs.y.shape[1], options.hidden).to(device)
    plain.load_state_dict(ours.network.state_dict())
    optimizer = torch.optim.AdamW(plain.parameters(), lr=options.lr)
    drawn = torch.Generator()
    drawn.set_state(ours.generator.get_state())

    def batches() -> Iterator[list[int]]:
        while True:
            yield ours.train[torch.randint(len(ours.train), (options.batch_size,), generator=drawn)].tolist()

    loader = iter(DataLoader(TensorDataset(pairs.x, pairs.y), batch_sampler=batches()))  # type: ignore[arg-type]

    def turn_of_plain(count: int) -> None:
        for _ in range(count):
            x, y = (one.to(device) for one in next(loader))
            mu, logvar = plain.p_mu(x), plain.p_logvar(x)
            loss = ((y - mu) ** 2 * torch.exp(-logvar) + logvar).sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            note("plain", loss)

    def turn_of_ours(count: int) -> None:
        for _ in range(count):
            ours.advance()

    times = {"ours": 0.0, "plain": 0.0}
    done = 0
    with tqdm(total=arguments.iterations, unit="it", leave=False) as shown:
        while done < arguments.iterations:
            count = min(TURN, arguments.iterations - done)
            for name, turn in (("plain", turn_of_plain), ("ours", turn_of_ours)):
                start = time.perf_counter()
                turn(count)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                times[name] += time.perf_counter() - start
            done += count
            shown.update(count)
    first, second = losses["ours"], losses["plain"]
    worst = float((first - second).abs().max() / second.abs().max())
    print(
        f"{arguments.iterations:,} iterations of 1,024 of 10,000 pairs on {device}: plain loop {times['plain']:.1f} s, ours {times['ours']:.1f} s, ratio {times['plain'] / times['ours']:.2f}"
    )
    print(
        f"losses {float(second[0]):.4f} to {float(second[-1]):.4f}, which differ by at most {worst:.1e} of the largest"
    )
    assert worst < 1e-6


if __name__ == "__main__":
    main()
