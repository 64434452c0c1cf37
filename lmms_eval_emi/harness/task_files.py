"""Writes lmms-eval's task and group files from the studies' catalogues.

python -m lmms_eval_emi.harness.task_files     # rewrites tasks/llavabench_shift/
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from lmms_eval_emi.studies.catalogue import BUILT_IN, SHIFT_MODALITIES, SplitSpec, Study, load_study

SUITE = "llavabench_shift"
VERSION = 1.0
HEADER = "# Written by python -m lmms_eval_emi.harness.task_files from the catalogue of the study; edit that instead.\n"
HOOKS = ("process_docs", "doc_to_visual", "doc_to_text", "doc_to_target", "process_results")
METRICS = {"emi": True, "emid": False, "emid_bound": False}  # name: whether higher is better


def tasks_folder() -> Path:
    """The folder of the installed task files, for ``--include_path``."""
    return Path(str(resources.files("lmms_eval_emi.tasks")))


def groups(studies: Sequence[Study]) -> dict[str, list[str]]:
    """Members of every group by its name; each group of shifts has its ID split first."""
    members = {SUITE: [study.group for study in studies]}
    for study in studies:
        members[study.group] = [study.task_name(split) for split in (study.id_split, *study.shifts())]
        for modality in SHIFT_MODALITIES:
            members[f"{study.group}_{modality}"] = [
                study.task_name(split) for split in (study.id_split, *study.shifts(modality))
            ]
    return members


def task_files(studies: Sequence[Study]) -> dict[str, str]:
    """Text of every file below ``tasks/llavabench_shift/`` by its path there."""
    files = {f"groups/{name}.yaml": _group_file(name, members) for name, members in groups(studies).items()}
    for study in studies:
        files[f"{study.name}/_base_yaml"] = _base_file(study)
        files[f"{study.name}/utils.py"] = _utils_file(study)
        for split in study.splits.values():
            files[f"{study.name}/{split.task}.yaml"] = _task_file(study, split)
    return files


def _base_file(study: Study) -> str:
    fields: dict[str, object] = {
        "dataset_path": study.dataset.path,
        "output_type": "generate_until",
        **{hook: _Function(f"utils.{hook}") for hook in HOOKS},
        # An explicit stop string, for the harness's default stops at the first blank line.
        "generation_kwargs": {"until": ["ASSISTANT:"], "max_new_tokens": 1024, "do_sample": False, "temperature": 0},
        "metric_list": [
            {"metric": metric, "aggregation": _Function(f"utils.{metric}"), "higher_is_better": higher}
            for metric, higher in METRICS.items()
        ],
        "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},
    }
    return HEADER + _dump(fields)


def _task_file(study: Study, split: SplitSpec) -> str:
    fields: dict[str, object] = {"include": "_base_yaml", "task": study.task_name(split.name), "test_split": split.name}
    if split.prompt_suffix:
        fields["lmms_eval_specific_kwargs"] = {"default": {"pre_prompt": "", "post_prompt": split.prompt_suffix}}
    # The harness's cache of replies knows the prompt and the metadata but not the image.
    fields["metadata"] = {"version": VERSION, "study": study.name, "split": split.name, "dataset": study.dataset.path}
    return HEADER + _dump(fields)


def _group_file(name: str, members: list[str]) -> str:
    fields = {
        "group": name,
        "task": members,
        # The trailing comma keeps emi from matching emid: the harness compares with "metric,filter".
        "aggregate_metric_list": [
            {
                "metric": f"{metric},",
                "aggregation": _Function("lmms_eval_emi.harness.hooks.mean_over_shifts"),
                "weight_by_size": False,
                "filter_list": "none",
            }
            for metric in METRICS
        ],
        "metadata": {"version": VERSION},
    }
    return HEADER + _dump(fields)


def _utils_file(study: Study) -> str:
    names = (*HOOKS, *METRICS)
    return (
        f'{HEADER}"""Hooks of the tasks beside this file, bound to their study."""\n\nfrom lmms_eval_emi.harness.hooks import study_hooks\n\n_hooks = study_hooks("{study.name}")\n\n'
        + "".join(f"{name} = _hooks.{name}\n" for name in names)
    )


class _Function(str):
    """A ``!function`` of lmms-eval's task files."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, function: dumper.represent_scalar("!function", str(function)))


def _dump(fields: dict) -> str:
    text = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return re.sub(r"!function '([\w.]+)'", r"!function \1", text)  # PyYAML quotes the scalars of every custom tag


def write_task_files(folder: Path) -> int:
    """Replace the generated folders below ``folder``; returns the number of files."""
    files = task_files([load_study(name) for name in BUILT_IN])
    for generated in sorted({path.split("/")[0] for path in files}):
        shutil.rmtree(folder / generated, ignore_errors=True)
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return len(files)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write lmms-eval's task and group files from the studies' catalogues.")
    parser.add_argument("folder", nargs="?", type=Path, default=tasks_folder() / SUITE, help="default: %(default)s")
    arguments = parser.parse_args()
    print(f"{write_task_files(arguments.folder)} files written below {arguments.folder}")
