"""Checks of everything a run needs, before the model is loaded and again when our tasks load."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import yaml

from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
from lmms_eval_emi.errors import InputError, StudyError, UnavailableError
from lmms_eval_emi.harness.lmms_eval.compat import launch, task_index
from lmms_eval_emi.scoring.pipeline import preflight
from lmms_eval_emi.settings import is_offline, load_settings
from lmms_eval_emi.shifts.at_load import load_unshifted

# What models of the harness import and lmms-eval does not install, with how to have it.
NEEDED_BY_MODELS = {
    "llava_hf": ("decord", "pip install decord"),
    "llava": ("llava", "the LLaVA package, which its repository github.com/haotian-liu/LLaVA says how to install"),
    "llava_onevision": ("llava", "the package of github.com/LLaVA-VL/LLaVA-NeXT"),
    "llava_vid": ("llava", "the package of github.com/LLaVA-VL/LLaVA-NeXT"),
}


class RunStopped(SystemExit):
    """A run cannot start. This ends the process, because lmms-eval retries and swallows other errors."""


def check(files: Sequence[str], model: str) -> None:
    """Check a run that asks for our tasks, before its model is loaded.

    Args:
        files: files of the tasks and groups of ours that it asks for.
        model: name of the model's class in the harness.

    Raises:
        RunStopped: something is missing, with everything that is.
    """
    if not launch.is_main_process():
        return
    check_environment([*missing_package(model), *_missing_datasets(files)])


def check_environment(problems: Sequence[str] = ()) -> None:
    """Check the settings on every rank, and on rank 0, which computes all scores, what the scores need.

    Args:
        problems: problems that were found already.

    Raises:
        RunStopped: something is missing, with everything that is.
    """
    try:
        settings = load_settings()
    except InputError as error:
        raise RunStopped(f"lmms_eval_emi: {error}") from error
    if not launch.is_main_process():
        return
    found = list(problems)
    if settings.preflight:
        try:
            preflight(settings)
        except UnavailableError as error:
            found.append(str(error))
    if found:
        told = "\n\n".join(found)
        later = "\n\nTo generate now and score later: LMMS_EVAL_EMI_PREFLIGHT=0" if len(found) > len(problems) else ""
        raise RunStopped(
            f"lmms_eval_emi: this run could not be scored, so it is stopped before anything is generated.\n\n{told}{later}"
        )


def missing_package(model: str) -> list[str]:
    """Return the problem, as a list of at most one, that a package which a model class imports is not installed."""
    needed = NEEDED_BY_MODELS.get(model)
    if needed is None or importlib.util.find_spec(needed[0]) is not None:
        return []
    return [
        f"The model class {model} of lmms-eval imports {needed[0]}, which is not installed. Install it: {needed[1]}"
    ]


def _missing_datasets(files: Sequence[str]) -> list[str]:
    """Return the datasets that are not available locally, on a machine without a connection."""
    if not is_offline():
        return []
    problems = []
    for name in dict.fromkeys(name for file in files for name in studies_of(Path(file))):
        try:
            load_unshifted(load_study(name), settings=load_settings())
        except StudyError as error:
            problems.append(f"missing: dataset {name}\n{error}")
    return problems


def studies_of(file: Path) -> list[str]:
    """Return the studies of one of our task or group files."""
    if file.parent.name in (*BUILT_IN, *BUNDLED):
        return [file.parent.name]
    try:
        loader = yaml.BaseLoader(file.read_text(encoding="utf-8").replace("!function ", ""))
        metadata = (loader.get_single_data() or {}).get("metadata", {})
        return [str(study) for study in metadata.get(task_index.OURS, {}).get("studies", [])]
    except (OSError, yaml.YAMLError, AttributeError):
        return []
