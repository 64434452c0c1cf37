"""Settings: read from the environment, and nothing mistyped is passed over in silence."""

from __future__ import annotations

import pytest

from lmms_eval_emi.errors import InputError
from lmms_eval_emi.settings import Settings, load_settings


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
