"""Feeds every reader of files what it was not made for: ``python benchmarks/fuzz.py --examples 10000``.

For each reader valid files are damaged: bytes changed, cut, doubled and put elsewhere; values of their JSON replaced by values of
other kinds, by numbers that no float holds, by texts that no file can; and random bytes. A reader may refuse a
file with its own error. Any other exception is a finding, and so is an input that takes longer than five seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from lmms_eval_emi.errors import ResponsesError, ResultsError, RunError, StudyError

SECONDS = 5.0


@dataclass(frozen=True)
class Reader:
    """A reader and what it is fed.

    Attributes:
        name: what it reads.
        file: name of the file.
        valid: contents of files that it takes.
        read: reads a file.
        errors: what it may raise.
    """

    name: str
    file: str
    valid: tuple[bytes, ...]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]
    damage: Callable[[bytes, random.Random], bytes] | None = None


class TooSlow(BaseException):
    """An input took too long."""


STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1e308, -0.0, 10**400, -(10**30), float("nan"), float("inf"), "", "0.5", "\ud800"),
    *("a\nb", "\x00", "x" * 3000, "=1+1", "<script>", "../../etc/passwd", [], {}, [[]], {"": None}, [1, "a", None]),
)


def damage(content: bytes, draw: random.Random) -> bytes:
    """A valid file, damaged in one of several ways."""
    way = draw.randrange(6)
    if way == 0:
        return draw.randbytes(draw.randrange(300))
    if way in (1, 2):
        lines = content.split(b"\n")
        number = draw.randrange(len(lines))
        try:
            lines[number] = json.dumps(_replaced(json.loads(lines[number]), draw)).encode()
            return b"\n".join(lines)
        except ValueError:
            try:
                return json.dumps(_replaced(json.loads(content), draw), indent=1).encode()
            except ValueError:
                pass
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice((1, 1, 2, 8, 50, 500)))
        change = draw.randrange(4)
        if change == 0:
            data[start:stop] = b""
        elif change == 1:
            data[start:start] = data[start:stop]
        elif change == 2:
            data[start:stop] = draw.randbytes(stop - start)
        else:
            data[start:start] = draw.choice(
                (b"{", b"}", b"[", b'"', b"\n", b"NaN", b"9" * 500, b"\xff", b"!!python/name:os.system ", b"&a *a")
            )
    return bytes(data)


def _replaced(value: Any, draw: random.Random) -> Any:
    """JSON with one value replaced by a strange one, a key renamed, or a part doubled."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        key = draw.choice(list(value))
        if draw.random() < 0.1:
            return {
                **{name: one for name, one in value.items() if name != key},
                draw.choice(("", "emi", "\ud800")): value[key],
            }
        return {**value, key: _replaced(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.85:
        number = draw.randrange(len(value))
        return [*value[:number], _replaced(value[number], draw), *value[number + 1 :]]
    return draw.choice(STRANGE)


def damage_safetensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose weights, header or card is damaged, or all of it."""
    length = int.from_bytes(content[:8], "little")
    header, weights = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    way = draw.randrange(4)
    if way == 0:
        return damage(content, draw)
    if way == 1:
        start = draw.randrange(len(weights))
        weights[start : start + 4] = draw.randbytes(len(weights[start : start + 4]))
    elif way == 2:
        header["__metadata__"]["card"] = json.dumps(_replaced(json.loads(header["__metadata__"]["card"]), draw))
    else:
        header = _replaced(header, draw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(weights)


def readers(folder: Path) -> list[Reader]:
    """All readers, with valid files that are made here."""
    import torch

    from lmms_eval_emi.data.responses import find_responses, read_responses
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.estimators import CLUB, load_estimator
    from lmms_eval_emi.estimators.base import save_state
    from lmms_eval_emi.report.reading import read_results
    from lmms_eval_emi.report.tables import to_text
    from lmms_eval_emi.scoring.compare import read_compared
    from lmms_eval_emi.scoring.rows import rows_path
    from lmms_eval_emi.util.journal import Journal, read_journal, read_manifest, to_line

    natural = load_study("natural")

    def responses(path: Path) -> None:
        read_responses(path)
        for model in find_responses(path.parent, natural):
            for one in model.splits.values():
                one.by_row(range(90))

    def results(path: Path) -> None:
        for format in ("md", "csv", "latex"):
            to_text(read_results([path]), format).encode()
        with contextlib.suppress(ResultsError):  # its rows are not there
            read_compared([path])

    def rows(path: Path) -> None:
        """The rows beside a result whose hash they fit."""
        entry = {
            **RESULT,
            "rows": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "entry": 0},
        }
        beside = path.with_name("results.json")
        beside.write_text(json.dumps(entry))
        assert rows_path(beside) == path
        read_results([beside])
        read_compared([beside])

    def journal(path: Path) -> None:
        own = path.parent / "journal"
        own.mkdir(exist_ok=True)
        path.replace(own / "rank-00000.jsonl")
        contents = read_journal(path.parent)
        contents.answers("r")
        contents.plan("r")
        opened = Journal(path.parent)
        opened.append({"kind": "block", "run": "r", "requests": []})
        opened.close()
        assert read_journal(path.parent).damaged <= contents.damaged

    def manifest(path: Path) -> None:
        own = path.parent / "journal"
        own.mkdir(exist_ok=True)
        path.replace(own / "run.json")
        read_manifest(path.parent)

    torch.manual_seed(0)
    network = CLUB(4, 4, 3)
    network.card = {
        "encoders": {"vision": "a", "text": "b"},
        "domain": {
            "bases": {"inputs": {"seed": 0, "bandwidth": 1.0}, "references": {"seed": 0, "bandwidth": 1.0}},
            "samples": [{"images": 9, "mean": {"inputs": [0.1]}, "limits": {"inputs": 1.0}, "quantiles": [0.1, 0.2]}],
        },
    }
    save_state(folder / "a.safetensors", network.state_dict(), {"kind": "club", "name": "a"}, network.card)
    torch.save(network.state_dict(), folder / "a.pt")
    study = b"name: mine\nid_split: clean\ndataset: {path: rows.parquet, columns: {id: id, image: image}}\nsplits:\n  clean: {}\n  foggy: {shifts: [{modality: visual, name: fog, severity: 3}], responses: a/b.jsonl}\n"
    llava = "".join(
        json.dumps({"question_id": row, "prompt": "q?", "text": "a \u2028 b", "model_id": "m"}) + "\n"
        for row in range(4)
    )
    samples = "".join(
        json.dumps({"doc_id": row, "input": "q", "target": "t", "filtered_resps": ["r"], "emi": {"row": "x"}}) + "\n"
        for row in range(4)
    )
    stored_rows = {
        "format_version": 1,
        "results": [
            {
                "model": "m",
                "signature": "s",
                "rows": {},
                "without_each_image": {
                    "clean": {"emi": [{"a": 0.1, "b": 0.2}]},
                    "foggy": {"emi": [{"a": 0.1}], "emid": [{"a": 0.1}]},
                },
                "lost": {
                    "foggy": [
                        {
                            "id": "1",
                            "loss": 0.1,
                            "question": "q",
                            "response": "r",
                            "reference": "y",
                            "image": "data:image/png;base64,AAAA",
                        }
                    ]
                },
            }
        ],
    }
    block = {"kind": "block", "run": "r", "method": "generate_until", "requests": [["mme", 3, 0, "abc", "Yes"]]}
    plan = {"kind": "plan", "run": "r", "requests": [["mme", 3, 0, "abc", True]]}
    lines = b"".join(map(to_line, ({"kind": "journal", "format_version": 1}, plan, block)))
    published = {"shift_type": "NATURAL", "EMI": {"llava_bench_coco_English": 0.1}, "EMID": {}, "EMID_UB": {}}
    runs = {"format_version": 1, "runs": {"r": {"model": "m", "arguments": ["--model", "m"]}}}
    return [
        Reader("response files", "llava_bench_coco_English.jsonl", (llava.encode(),), responses, (ResponsesError,)),
        Reader("samples files", "2026_samples_llavabench_shift_natural_coco_german.jsonl", (samples.encode(),), responses, (ResponsesError,)),
        Reader("studies", "study.yaml", (study,), load_study, (StudyError,)),
        Reader("results", "results.json", tuple(json.dumps(one).encode() for one in (RESULT, {"results": [RESULT]}, published)), results, (ResultsError, ResultsError)),
        Reader("rows of results", "results.rows.json", (json.dumps(stored_rows).encode(),), rows, (ResultsError, ResultsError)),
        Reader("journals", "journal.jsonl", (lines,), journal, (RunError,)),
        Reader("manifests", "run.json", (json.dumps(runs).encode(),), manifest, (RunError,)),
        Reader("estimators, safetensors", "a.safetensors", ((folder / "a.safetensors").read_bytes(),), load_estimator, (ValueError,), damage_safetensors),
        Reader("estimators, pt", "a.pt", ((folder / "a.pt").read_bytes(),), load_estimator, (ValueError,)),
    ]  # fmt: skip


RESULT: dict[str, Any] = {
    "format_version": 1,
    "signature": "emi-study|x",
    "model": "m",
    "shift": "mine",
    "title": "mine",
    "id_split": "clean",
    "unit": "nats",
    "settings": {"estimator": "club@1"},
    "splits": {
        "clean": {"modality": "id", "n": 4, "images": 2, "emi": 0.1, "emi_stderr": None},
        "foggy": {
            **{"modality": "visual", "shifts": [{"modality": "visual", "name": "fog", "severity": 3}], "n": 4},
            **{"emi": -0.1, "emid": 0.2, "emid_stderr": 0.1, "emid_ci95": [0.0, 0.4], "emid_bound": 1.0, "jsd_v": 0.1},
        },
    },
    "estimator_fit": {"verdict": "plausible", "far_splits": []},
    "notes": {"foggy": ["a remark"]},
    "left_out": {},
}


def fuzz(reader: Reader, folder: Path, examples: int, start: int) -> tuple[Counter, list[str]]:
    """Feed a reader; returns how often it took and refused an input, and what else happened."""
    outcomes: Counter = Counter()
    findings: list[str] = []

    def too_slow(*_: object) -> None:
        raise TooSlow

    @seed(start)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False), st.integers(0, 2**60))
    def one(_: random.Random, number: int) -> None:
        draw = random.Random(number)
        content = (reader.damage or damage)(draw.choice(reader.valid), draw)
        with tempfile.TemporaryDirectory(dir=folder) as name:
            path = Path(name) / reader.file
            path.write_bytes(content)
            begin = time.monotonic()
            signal.signal(signal.SIGALRM, too_slow)
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                reader.read(path)
                outcomes["taken"] += 1
            except reader.errors as error:
                outcomes["refused"] += 1
                if not str(error).strip():
                    findings.append(f"{reader.name}: an error without a word: {content[:200]!r}")
            except TooSlow:
                findings.append(f"{reader.name}: over {SECONDS:g} s: {content[:200]!r}")
            except Exception as error:
                findings.append(f"{reader.name}: {type(error).__name__}: {str(error)[:200]}: {content[:300]!r}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            outcomes["slowest, ms"] = max(outcomes["slowest, ms"], round(1000 * (time.monotonic() - begin)))

    for content in reader.valid:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            (Path(name) / reader.file).write_bytes(content)
            reader.read(Path(name) / reader.file)
    one()
    return outcomes, findings


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="inputs for each reader (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--reader", action="append", default=[], help="only readers whose name has this; may be repeated"
    )
    args = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    good = True
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        for reader in readers(Path(name)):
            if args.reader and not any(one in reader.name for one in args.reader):
                continue
            outcomes, findings = fuzz(reader, Path(name), args.examples, args.seed)
            good = good and not findings
            print(
                f"{reader.name}: {outcomes['taken'] + outcomes['refused'] + len(findings)} inputs, {outcomes['taken']} taken, {outcomes['refused']} refused, "
                f"{len(findings)} findings, slowest {outcomes['slowest, ms']} ms",
                flush=True,
            )
            for finding in findings[:5]:
                print(f"    {finding}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
