"""Settings: read from the environment, and nothing mistyped is passed over in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmms_eval_emi.cli.commands import COMMANDS, parser_of
from lmms_eval_emi.cli.options import settings_of
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.settings import PREFIX, Settings, load_settings

# Another value than the default, for every setting.
VALUES = {
    "estimator": "dcor", "vision_encoder": "some/encoder", "text_encoder": "mean:other", "device": "cpu", "batch_size": 7,
    "convention": "equal_weight", "entropy": 3.5, "resamples": 9, "seed": 4, "adjust": "bh", "margin": 0.5, "margin_share": 0.25,
    "without_degenerate": True, "thoughts": "keep", "cache": Path("/some/cache"), "cache_limit": 1.5, "allow_other_encoders": True,
    "images": Path("/some/images"), "frost": Path("/some/frost"), "wordnet": Path("/some/dict"),
    "synonyms": Path("/some/words.yaml"), "endpoint": "http://localhost:1/v1", "endpoint_model": "m", "report": False,
    "preflight": False,
}  # fmt: skip
# The first two are of a run of the harness, whose command line is its own; estimators are a list of score's.
WITHOUT_OPTION = {"report", "preflight", "estimator"}


def test_defaults_are_those_of_the_paper():
    settings = load_settings()
    assert (settings.estimator, settings.vision_encoder, settings.text_encoder, settings.convention) == (
        "club-global",
        "openai/clip-vit-base-patch32",
        "xlm-roberta-base",
        "published",
    )


def test_variables_and_what_comes_before_them(monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_CONVENTION", "equal_weight")
    monkeypatch.setenv("LMMS_EVAL_EMI_BATCH_SIZE", "8")
    assert (load_settings().convention, load_settings().batch_size) == ("equal_weight", 8)
    assert load_settings(convention="published", batch_size=None).convention == "published"


@pytest.mark.parametrize("variable", ["LMMS_EVAL_EMI_ESTIMATR", "lmms_eval_emi_estimator", "LMMS_EVAL_EMI_"])
def test_an_unknown_variable_is_an_error(monkeypatch, variable):
    monkeypatch.setenv(variable, "x")
    with pytest.raises(InputError, match=f"{variable} is not a setting"):
        load_settings()


def test_the_error_suggests_the_right_name(monkeypatch):
    monkeypatch.setenv("LMMS_EVAL_EMI_CONVENTON", "published")
    with pytest.raises(InputError, match=r"Did you mean LMMS_EVAL_EMI_CONVENTION\?"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONVENTION", "fair"),
        ("BATCH_SIZE", "0"),
        ("BATCH_SIZE", "many"),
        ("DEVICE", "gpu"),
        ("ENTROPY", "-1"),
        ("ENTROPY", "nan"),
    ],
)
def test_a_value_that_is_not_taken(monkeypatch, name, value):
    monkeypatch.setenv(f"LMMS_EVAL_EMI_{name}", value)
    with pytest.raises(InputError, match=f"LMMS_EVAL_EMI_{name}: .*{value}"):
        load_settings()


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("name", Settings.model_fields)
def test_a_setting_is_the_same_by_variable_by_option_and_in_python(name, monkeypatch):
    value = VALUES[name]
    expected = load_settings(**{name: value})
    assert getattr(expected, name) == value != getattr(load_settings(), name)

    parsers = [parser_of(command) for command in COMMANDS]
    options = [(parser, action) for parser in parsers for action in parser._actions if action.dest == f"setting_{name}"]
    assert bool(options) != (name in WITHOUT_OPTION)
    for parser, action in options:
        for other in parser._actions:  # what else the command needs
            other.required = False
            other.nargs = other.nargs if other.option_strings else "?"
        words = [action.option_strings[0], *([] if value is True else [str(value)])]
        args, _ = parser.parse_known_args(words)
        assert settings_of(args) == expected

    monkeypatch.setenv(f"{PREFIX}{name.upper()}", str(int(value) if isinstance(value, bool) else value))
    assert load_settings() == expected
