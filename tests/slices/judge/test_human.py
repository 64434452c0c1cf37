"""``judge agree`` with public sets of human scores, on stand-in rows with the columns of the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Sequence, Value
from datasets import Image as ImageFeature
from datasets.features.features import FeatureType
from PIL import Image

from lmms_eval_emi.cli import main
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.slices.judge.human import human_set_names, load_human_set

ROWS = 24


def write_stand_in(name: str, folder: Path) -> None:
    """Write a dataset with the splits and columns of a set: half the texts are their references, and people like those."""
    described = load_human_set(name)
    columns = described.columns
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(ROWS)]
    references = [f"A drawing of {number} boats and {number + 3} trees." for number in range(ROWS)]
    features: dict[str, FeatureType] = {
        str(columns.image): ImageFeature(),
        columns.response: Value("string"),
        columns.reference: Sequence(Value("string")),
    }
    rows: dict[str, list] = {
        str(columns.image): pictures,
        columns.response: [text if row % 2 else "Something else entirely." for row, text in enumerate(references)],
        columns.reference: [[text, "another reference"] for text in references],
    }
    if columns.question:
        features[columns.question] = Value("string")
        rows[columns.question] = ["What is drawn?"] * ROWS
    for criterion in described.criteria:
        column = str(described.score_column(criterion))
        features[column] = Value("float32")
        rows[column] = [0.9 if row % 2 else 0.1 for row in range(ROWS)]
    dataset = Dataset.from_dict(rows, features=Features(features))
    if described.path.endswith(".parquet"):
        dataset.to_parquet(str(folder / described.path))
    else:
        splits = {criterion.split: dataset for criterion in described.criteria.values()}
        DatasetDict(splits).save_to_disk(str(folder / described.path))


def use_tiny_encoders(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    monkeypatch.setenv("LMMS_EVAL_EMI_VISION_ENCODER", str(hub / "openai" / "clip-vit-base-patch32"))
    monkeypatch.setenv("LMMS_EVAL_EMI_TEXT_ENCODER", str(hub / "xlm-roberta-base"))


@pytest.mark.parametrize("name", human_set_names())
def test_human_scores_of_a_public_set_are_compared_by_one_command(name, in_tinyhub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    use_tiny_encoders(monkeypatch, in_tinyhub)
    write_stand_in(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "human.json"
    command = ["judge", "agree", name, "--estimator", "cosine", "--estimator", "reference-r2", "--output", str(output)]
    assert main(command) == 0
    criteria = load_human_set(name).criteria
    found = json.loads(output.read_text())["agreements"]
    assert [one["score"] for one in found] == [f"human {criterion}" for criterion in criteria for _ in range(2)]
    for one in found:
        ranking = one["within_splits"]["spearman_r"]["all"]
        assert ranking["rows"] == ROWS
        assert ranking["cosine"]["value"] > 0.8 and ranking["cosine"]["ci95"][0] > 0.5
    assert f"human {next(iter(criteria))}" in capsys.readouterr().out
    assert (tmp_path / f"human.{name}.json").is_file()


def test_a_set_of_ones_own_is_a_yaml_file(in_tinyhub, tmp_path, monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    use_tiny_encoders(monkeypatch, in_tinyhub)
    write_stand_in("polaris", tmp_path)
    monkeypatch.chdir(tmp_path)
    described = load_human_set("polaris")
    criteria = {"over all": described.criteria["quality"]}
    text = described.model_copy(update={"name": "mine", "criteria": criteria}).model_dump_json()
    (tmp_path / "mine.yaml").write_text(text)  # JSON is YAML
    command = ["judge", "agree", "mine.yaml", "--estimator", "cosine", "--limit", "10"]
    assert main([*command, "--output", "mine.json"]) == 0
    assert (
        json.loads((tmp_path / "mine.json").read_text())["agreements"][0]["within_splits"]["spearman_r"]["all"]["rows"]
        == 10
    )
    (tmp_path / "mine.yaml").write_text(text.replace('"cand"', '"caption"'))
    assert main([*command, "--output", "again.json"]) == 1
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "mine.json").unlink()  # the results beside it are not replaced unasked
    assert main([*command, "--output", "mine.json"]) == 1 and (tmp_path / "mine.mine.json").is_file()


def test_references_of_a_csv_file_are_lists_in_text_and_every_criterion_needs_a_column(
    in_tinyhub, tmp_path, monkeypatch
):
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    use_tiny_encoders(monkeypatch, in_tinyhub)
    monkeypatch.chdir(tmp_path)
    texts = [f"A drawing of {number} boats." for number in range(ROWS)]
    rows = {
        "response": [text if row % 2 else "Something else." for row, text in enumerate(texts)],
        "reference": [str([text, "[another] reference"]) for text in texts],
        "rating": [float(row % 2) for row in range(ROWS)],
    }
    Dataset.from_dict(rows).to_csv("rows.csv")
    described = {
        "name": "mine",
        "title": "mine",
        "path": "rows.csv",
        "columns": {"image": None, "response": "response", "reference": "reference"},
        "criteria": {"quality": {"split": "train", "score": "rating"}},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(described))
    assert main(["judge", "agree", "mine.yaml", "--estimator", "cosine", "--output", "mine.json"]) == 0
    ranking = json.loads(Path("mine.json").read_text())["agreements"][0]["within_splits"]["auc"]["all"]
    assert ranking["cosine"]["value"] > 0.9  # those who repeat the first reference are the right ones
    (tmp_path / "mine.yaml").write_text(json.dumps({**described, "criteria": {"quality": "train"}}))
    with pytest.raises(InputError, match="no column of scores for quality"):
        load_human_set("mine.yaml")


def test_an_unknown_set_names_those_that_exist():
    with pytest.raises(InputError, match="longcap-arena, mmhe, polaris"):
        load_human_set("flickr.yaml")


def test_wrong_arguments_say_what_is_expected(tmp_path, capsys):
    assert main(["judge", "agree", "polaris", "--limit", "0"]) == 1
    assert "expected 1 or more rows" in capsys.readouterr().err
    assert main(["judge", "agree", str(tmp_path / "results.json")]) == 1
    assert "longcap-arena, mmhe, polaris" in capsys.readouterr().err
    (tmp_path / "mine.yaml").write_text("name: mine\ntitle: mine\n")
    assert main(["judge", "agree", str(tmp_path / "mine.yaml")]) == 1
    assert "columns: Field required" in capsys.readouterr().err
