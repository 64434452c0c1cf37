"""What ``docs/architecture.md`` says of typical changes: encoder, estimator, format and command are one new file each.

An operator is tried in ``tests/shifts``, a field of a result in ``tests/scoring/test_beside.py``, a harness in
``tests/harness/lm_eval``.
"""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import tinyhub
import torch

import lmms_eval_emi.cli
import lmms_eval_emi.data.responses
import lmms_eval_emi.encoders
import lmms_eval_emi.estimators
from lmms_eval_emi import load_estimator, load_study, score
from lmms_eval_emi.cli import main
from lmms_eval_emi.cli.commands import COMMANDS, Command
from lmms_eval_emi.encoders import encoder_kinds, load_text_encoder
from lmms_eval_emi.estimators.registry import kinds

ENCODER = '''
"""First-token encoder."""
from lmms_eval_emi.encoders.text import TextEncoder


class FirstTokenEncoder(TextEncoder):
    """Embeds texts by the state of their first token."""

    kinds = ("first",)
    model_class = "AutoModel"
    pooling = "first"
    optional_weights = ("pooler",)

    def states(self, tokens):
        """Return the states of the first tokens and their mask."""
        return self.model(**tokens).last_hidden_state[:, :1], tokens["attention_mask"][:, :1]
'''
ESTIMATOR = '''
"""An inner product."""
from lmms_eval_emi.estimators.references import Cosine


class InnerProduct(Cosine):
    """Inner product of response and reference."""

    kind = "inner-product"

    def contributions(self, x, y):
        """Return the inner products of rows."""
        return (x.double() * y.double()).sum(dim=1)
'''
COMMAND = '''
"""``lmms-eval-emi greet``."""
from lmms_eval_emi.cli.options import new_parser


def build_parser(prog):
    """Return the parser."""
    return new_parser(prog, description="Greet.", examples=("lmms-eval-emi greet",))


def run(args):
    """Greet."""
    print("hello")
    return 0
'''
FORMAT = '''
"""Lines ``{"row": ..., "answer": ...}`` in ``{split}.answers``."""
from lmms_eval_emi.data.responses import SplitResponses, by_model, collect


def reads(record):
    """Return whether a record is one of this format."""
    return "answer" in record


def expected_file(study, split):
    """Return the name of a split's file."""
    return f"{split}.answers"


def read_file(path):
    """Return the responses of a file by model."""
    texts, problems = collect(path, "row", "answer")
    return {model: SplitResponses(path, own, "id", problems) for model, own in texts.items()}


def find_models(folder, study):
    """Return the responses of the folder."""
    files = {name: folder / f"{name}.answers" for name in study.splits if (folder / f"{name}.answers").is_file()}
    return by_model(files, read_file, "answers") if files else []
'''


def add_file(monkeypatch: pytest.MonkeyPatch, package, folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])


def test_an_encoder_is_one_file(in_tinyhub, tmp_path, monkeypatch):
    add_file(monkeypatch, lmms_eval_emi.encoders, tmp_path, "first_token_added", ENCODER)
    encoder_kinds.cache_clear()
    encoder = load_text_encoder("first:xlm-roberta-base", "cpu")
    rows = encoder.encode(["a boat", "a tree"])
    assert rows.shape == (2, encoder.dimension) and "/first" in encoder.signature
    assert not torch.allclose(rows, load_text_encoder("mean:xlm-roberta-base", "cpu").encode(["a boat", "a tree"]))
    encoder_kinds.cache_clear()


def test_an_estimator_is_one_file(tmp_path, monkeypatch):
    add_file(monkeypatch, lmms_eval_emi.estimators, tmp_path, "inner_product_added", ESTIMATOR)
    kinds.cache_clear()
    x = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    estimator = load_estimator("inner-product")
    assert estimator.contributions(x, x) == pytest.approx(1.0)
    assert estimator.signature == "inner-product"
    kinds.cache_clear()


def test_a_format_of_responses_is_one_file_and_its_entry_point(in_tinyhub, tmp_path, monkeypatch):
    add_file(monkeypatch, lmms_eval_emi.data.responses, tmp_path, "answers_added", FORMAT)
    entries = [
        EntryPoint(name, f"lmms_eval_emi.data.responses.{module}", "lmms_eval_emi.responses")
        for name, module in (("llava", "llava"), ("lmms_eval", "lmms_eval"), ("answers", "answers_added"))
    ]
    monkeypatch.setattr(lmms_eval_emi.data.responses, "entry_points", lambda group: entries)
    lmms_eval_emi.data.responses.formats.cache_clear()
    study, folder = load_study("natural"), tmp_path / "out"
    folder.mkdir()
    for split in (study.id_split, "llava_bench_coco_German"):
        lines = [json.dumps({"row": row, "answer": f"boat {row}"}) + "\n" for row in range(tinyhub.ROWS)]
        (folder / f"{split}.answers").write_text("".join(lines))
    (result,) = score(
        study, folder, splits=["llava_bench_coco_German"], estimators=["cosine"], cache=tmp_path / "cache"
    )
    assert result.model == "answers" and result.splits["llava_bench_coco_German"].n == tinyhub.ROWS
    lmms_eval_emi.data.responses.formats.cache_clear()


def test_a_command_is_one_file_and_its_line(tmp_path, monkeypatch, capsys):
    add_file(monkeypatch, lmms_eval_emi.cli, tmp_path, "greet_added", COMMAND)
    monkeypatch.setitem(COMMANDS, "greet", Command("lmms_eval_emi.cli.greet_added", "greet", "greet"))
    assert main(["greet"]) == 0
    assert "hello" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "greet" in capsys.readouterr().out
    assert main(["gret"]) != 0
    assert "greet" in capsys.readouterr().err
