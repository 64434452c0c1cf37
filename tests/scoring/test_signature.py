"""The signature: pinned whole, and different where a score could be, and only there."""

from __future__ import annotations

import json

import pytest

from lmms_eval_emi import score
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import parse_study
from lmms_eval_emi.estimators import HSIC
from lmms_eval_emi.scoring.result import Inference, ScoringOptions, score_study
from lmms_eval_emi.settings import Settings
from lmms_eval_emi.version import __version__

STUDY = "name: mine\nid_split: clean\ndataset: {path: rows.parquet}\nsplits:\n  clean: {}\n  foggy: {shifts: [{modality: visual, name: fog}]}\n"


def signature(make_embeddings, **changes):
    embeddings = {name: make_embeddings(seed, n=12, encoders="clip#1/patch-mean+xlmr#2/embedding-mean") for seed, name in enumerate(("clean", "foggy"))}  # fmt: skip
    estimator = changes.pop("estimator", HSIC())
    options = ScoringOptions(**{"inference": Inference(0, 3), **changes})
    result = score_study(parse_study(STUDY, "mine.yaml"), embeddings, estimator, model="m", options=options)
    return str(result.signature)


def test_every_part_is_pinned(make_embeddings):
    assert signature(make_embeddings) == (
        "emi-study|study:mine|encoders:clip#1/patch-mean+xlmr#2/embedding-mean|estimator:hsic|convention:published|kind:scaled"
        f"|n_id:12|n:24|errors:jackknife,resamples=0,seed=3,adjust=holm,margin=none|version:{__version__}"
    )
    assert signature(
        make_embeddings,
        convention="equal_weight",
        entropy=2.5,
        responses="not degenerate",
        inference=Inference(9, 0, "bh", 0.1),
    ) == (
        "emi-study|study:mine|encoders:clip#1/patch-mean+xlmr#2/embedding-mean|estimator:hsic|convention:equal_weight"
        "|kind:theorem(entropy=2.5)|n_id:12|n:24|errors:jackknife,resamples=9,seed=0,adjust=bh,margin=0.1|responses:not degenerate"
        f"|version:{__version__}"
    )


# Whether each setting changes a score, an error, a p-value or a verdict; the signature must say the same.
CHANGES = {
    "estimator": "dcor",
    "vision_encoder": "copy",
    "text_encoder": "copy",
    "convention": "equal_weight",
    "entropy": 3.0,
    "resamples": 7,
    "seed": 5,
    "adjust": "bh",
    "margin": 0.5,
    "margin_share": 0.5,
    "without_degenerate": True,
    "thoughts": "keep",
}
SAME = {
    "device": "cpu",
    "batch_size": 3,
    "cache": "elsewhere",
    "cache_limit": 0.0,
    "report": False,
    "preflight": False,
    "images": ".",
}
OTHERS = {
    "allow_other_encoders",
    "frost",
    "wordnet",
    "synonyms",
    "endpoint",
    "endpoint_model",
}  # of other work than scoring


def test_every_setting_is_known_here():
    assert set(CHANGES) | set(SAME) | OTHERS == set(Settings.model_fields)


@pytest.fixture
def scored(in_tinyhub, tmp_path):
    import shutil

    folder = tmp_path / "answers"
    for split in ("llava_bench_coco_English", "llava_bench_coco_German"):
        write_response_file(folder / f"{split}.jsonl", [(row, "", f"a circle {row}") for row in range(5)], "tiny")

    def run(**settings):
        for kind, name in (("vision", "openai/clip-vit-base-patch32"), ("text", "xlm-roberta-base")):
            if settings.get(f"{kind}_encoder") == "copy":  # the same files with other weights
                copy = tmp_path / kind
                shutil.copytree(in_tinyhub / name, copy)
                _change_weights(copy)
                settings[f"{kind}_encoder"] = str(copy)
        options = {"estimator": "hsic", "resamples": 0, **settings}
        estimators = [options.pop("estimator")]
        (result,) = score("natural", folder, splits=["llava_bench_coco_German"], estimators=estimators, **options)
        content = json.loads(json.dumps(result.to_data()))
        return content.pop("signature"), {key: content[key] for key in ("splits", "summary")}

    return run


def _change_weights(folder):
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    save_file({name: tensor * 1.01 if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}, path, {"format": "pt"})  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_may_change_a_score_changes_the_signature(scored, name):
    assert scored()[0] != scored(**{name: CHANGES[name]})[0]


def test_nothing_else_does(scored):
    assert scored() == scored(**SAME)
