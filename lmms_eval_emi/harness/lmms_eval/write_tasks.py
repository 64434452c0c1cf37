"""Writes lmms-eval's task and group files from the studies.

python -m lmms_eval_emi.harness.lmms_eval.write_tasks     # rewrites tasks/llavabench_shift/
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lmms_eval_emi.data.images import encoded_image
from lmms_eval_emi.data.rows import (
    FILE_FORMATS,
    SAVED,
    image_roots,
    is_saved,
    load_dataset_arguments,
    load_stored_splits,
    split_of_dataset,
    with_encoded_images,
)
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, SplitSpec, Study, load_study
from lmms_eval_emi.errors import ImageError, StudyError
from lmms_eval_emi.harness.common import GENERATION, SUITE, group_owners, groups
from lmms_eval_emi.harness.lmms_eval.compat.task_index import CLUSTER_KEY, OURS, SCORE_KEY, tasks_folder
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.util.files import content_hexdigest, file_hexdigest, write_atomically

if TYPE_CHECKING:
    import datasets

VERSION = 1.0
MARK = "# Written by python -m lmms_eval_emi"  # how every file of ours begins
HEADER = f"{MARK}.harness.lmms_eval.write_tasks from the study; edit that instead.\n"
HOOKS = ("process_docs", "doc_to_visual", "doc_to_text", "doc_to_target", "process_results")
METRICS = {"emi": True, "emid": False, "emid_bound": False}  # name: whether higher is better


def task_files(studies: Sequence[Study], suite: str | None = SUITE) -> dict[str, str]:
    """Return the text of each file by its path below the folder of the suite.

    Args:
        studies: each becomes a folder of tasks.
        suite: name of the group of all studies, or ``None`` for no such group.
    """
    files = {}
    means: dict[str, tuple[list[str], str | None]] = {}
    for name, members in groups(studies, suite).items():
        means[name] = group_owners(name, studies, suite)
        files[f"groups/{name}.yaml"] = _group_file(name, members, *means[name])
    files["groups/utils.py"] = _group_utils_file(means)
    for study in studies:
        files[f"{study.name}/_base_yaml"] = _base_file()
        files[f"{study.name}/utils.py"] = _utils_file(study)
        if study.source not in BUILT_IN and not _is_bundled(study):
            files[f"{study.name}/study.yaml"] = HEADER + dump(portable_study(study))
        digests = _rows_digests(study)
        for name in (study.id_split, *study.shifts(), *study.controls()):
            split = study.split(name)
            files[f"{study.name}/{split.task}.yaml"] = _task_file(study, split, digests)
    return files


def portable_study(study: Study) -> dict[str, Any]:
    """Return a study as plain data that means the same from any folder: every default filled in, local paths absolute."""
    data = study.model_dump(mode="json", exclude={"source"}, exclude_defaults=True)
    for name, split in study.splits.items():
        fields = data["splits"][name]
        del fields["name"]
        path = study.local_path(split.dataset)
        if path:
            fields["dataset"]["path"] = str(path.resolve())
            if split.dataset.columns.image:
                fields["dataset"]["images"] = str((study.folder / (split.dataset.images or ".")).resolve())
        if split.dataset.shifts_at_load and split.dataset.shifts_at_load.synonyms:
            synonyms = study.folder / split.dataset.shifts_at_load.synonyms
            fields["dataset"]["shifts_at_load"]["synonyms"] = str(synonyms.resolve())
        responses = study.response_file(name)
        if responses:
            fields["responses"] = str(responses.resolve())
    return data


def _is_bundled(study: Study) -> bool:
    """Return whether a study and its rows lie among the package's own tasks, which are found wherever they are installed."""
    return Path(study.source).resolve().parent == (tasks_folder() / SUITE / study.name).resolve()


def _base_file() -> str:
    fields: dict[str, object] = {
        "output_type": "generate_until",
        **{hook: function(f"utils.{hook}") for hook in HOOKS},
        # An explicit stop string, for the harness's default stops at the first blank line.
        "generation_kwargs": dict(GENERATION),
        "metric_list": [
            {"metric": metric, "aggregation": function(f"utils.{metric}"), "higher_is_better": higher}
            for metric, higher in METRICS.items()
        ],
        "lmms_eval_specific_kwargs": {"default": {"pre_prompt": "", "post_prompt": ""}},
        "score_key": SCORE_KEY,
        "cluster_key": CLUSTER_KEY,
    }
    return HEADER + dump(fields)


def _task_file(study: Study, split: SplitSpec, digests: Mapping[str, str]) -> str:
    arguments = load_dataset_arguments(split.dataset, study.local_path(split.dataset))
    if _is_bundled(study):  # the harness takes these relative to the task file
        arguments["data_files"] = {name: Path(path).name for name, path in arguments["data_files"].items()}
    fields: dict[str, object] = {
        "include": "_base_yaml",
        "task": study.task_name(split.name),
        "dataset_path": arguments["path"],
        "test_split": split_of_dataset(study, split),
    }
    if "name" in arguments:
        fields["dataset_name"] = arguments["name"]
    if "data_files" in arguments:
        fields["dataset_kwargs"] = {"data_files": arguments["data_files"]}
    local = study.local_path(split.dataset)
    if local is not None and is_saved(local):
        if not (local / SAVED).is_file():
            raise StudyError(
                f"{local}: expected several splits for a harness, which takes one by its name; the folder holds one Dataset. Save it as a DatasetDict, or as a parquet file."
            )
        fields["dataset_kwargs"] = {"load_from_disk": True}
    if split_of_dataset(study, split) != split.name:
        fields["process_docs"] = function(f"utils.{_process_docs(split)}")
    if split.prompt_suffix:
        fields["lmms_eval_specific_kwargs"] = {"default": {"pre_prompt": "", "post_prompt": split.prompt_suffix}}
    # The harness's cache of replies knows the prompt and the metadata but not the image. Keys of its
    # own, such as "split", would be taken for the dataset's.
    fields["metadata"] = {
        "version": VERSION,
        "emi_study": study.name,
        "emi_split": split.name,
        "emi_dataset": split.dataset.path,
        **({"emi_rows": digests[split.name]} if split.name in digests else {}),
    }
    return HEADER + dump(fields)


def _rows_digests(study: Study) -> dict[str, str]:
    """Return a hash of the rows of each local split, so that the harness's response cache forgets changed rows.

    It covers the tables of the split's dataset, and the images that the split names outside of them.
    """
    if _is_bundled(study):
        return {}
    settings = load_settings()
    local = {
        name: path for name, split in study.splits.items() if (path := study.local_path(split.dataset)) is not None
    }
    with_images = [name for name in local if study.split(name).dataset.columns.image]
    rows = load_stored_splits(study, with_images, settings.images) if with_images else {}
    tables = {path: _hash_of_tables(path) for path in set(local.values())}
    return {
        name: content_hexdigest(" ".join([tables[path], *_named_images(study, name, rows.get(name), settings)]))[:16]
        for name, path in local.items()
    }


def _hash_of_tables(local: Path) -> str:
    files = [local] if local.is_file() else sorted(path for path in local.rglob("*") if path.suffix in FILE_FORMATS)
    return " ".join(file_hexdigest(path) for path in files)


def _named_images(study: Study, name: str, rows: datasets.Dataset | None, settings: Settings) -> Iterator[str]:
    """Yield the hashes of a split's images in files of their own; those inside the tables are part of the tables' hash."""
    dataset = study.split(name).dataset
    if rows is None or dataset.columns.image is None:
        return
    roots = image_roots(study, dataset, settings.images)
    for cell in with_encoded_images(rows, dataset.columns.image)[dataset.columns.image]:
        path = cell.get("path") if isinstance(cell, dict) and not cell.get("bytes") else cell
        if isinstance(path, str):
            with contextlib.suppress(ImageError):  # whoever scores the row says what is wrong with it
                yield content_hexdigest(encoded_image(path, roots) or b"")


def _process_docs(split: SplitSpec) -> str:
    return f"process_docs_{split.task}"


def _group_file(name: str, members: list[str], studies: list[str], modality: str | None) -> str:
    fields = {
        "group": name,
        "task": members,
        # The trailing comma keeps emi from matching emid: the harness compares with "metric,filter".
        "aggregate_metric_list": [
            {
                "metric": f"{metric},",
                "aggregation": function(f"utils.{name}_{metric}"),
                "weight_by_size": False,
                "filter_list": "none",
            }
            for metric in METRICS
        ],
        "metadata": {"version": VERSION, OURS: {"studies": studies, "modality": modality}},
    }
    return HEADER + dump(fields)


def _group_utils_file(means: dict[str, tuple[list[str], str | None]]) -> str:
    """Return a function of its own for every score of each group, for the harness gives a group's function no name."""
    lines = [
        f"{name}_{metric} = group_mean({json.dumps(studies)}, {json.dumps(modality) if modality else None}, {json.dumps(metric)})"
        for name, (studies, modality) in means.items()
        for metric in METRICS
    ]
    return (
        f'{HEADER}"""Scores of the groups beside this file."""\n\n'
        "from lmms_eval_emi.harness.lmms_eval.hooks import group_mean\n\n" + "\n".join(lines) + "\n"
    )


def _utils_file(study: Study) -> str:
    built_in = study.source in BUILT_IN
    where = f'"{study.source}"' if built_in else 'str(Path(__file__).with_name("study.yaml"))'
    lines = ["from pathlib import Path\n"] if not built_in else []
    lines += ["from lmms_eval_emi.harness.lmms_eval.hooks import study_hooks\n", f"_hooks = study_hooks({where})\n"]
    lines.append("\n".join(f"{name} = _hooks.{name}" for name in (*HOOKS, *METRICS)))
    named = [split for split in study.splits.values() if split_of_dataset(study, split) != split.name]
    lines += [f'{_process_docs(split)} = _hooks.process_docs_of("{split.name}")' for split in named]
    return f'{HEADER}"""Hooks of the tasks beside this file, bound to their study."""\n\n' + "\n".join(lines) + "\n"


class _Function(str):
    """A ``!function`` of lmms-eval's task files."""


def function(name: str) -> Any:
    """Return a function that a task file names, for :func:`dump`."""
    return _Function(name)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Function, lambda dumper, function: dumper.represent_scalar("!function", str(function)))


def dump(fields: dict[str, Any]) -> str:
    """Return the fields of a task file as YAML, with ``!function`` tags that are not quoted."""
    text = yaml.dump(fields, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return re.sub(r"!function '([\w.]+)'", r"!function \1", text)  # PyYAML quotes the scalars of every custom tag


def package_task_files() -> dict[str, str]:
    """Return the text of every generated task file of the package, by its path below the folder of tasks.

    The demo study has groups of its own and is not part of the group ``llavabench_shift``.
    """
    built_in, bundled = (
        task_files([load_study(name) for name in names], suite) for names, suite in ((BUILT_IN, SUITE), (BUNDLED, None))
    )
    lines = [line for line in bundled["groups/utils.py"].splitlines(keepends=True) if " = group_mean(" in line]
    return built_in | bundled | {"groups/utils.py": built_in["groups/utils.py"] + "".join(lines)}


def write_task_files(folder: Path, studies: Sequence[Study] | None = None, suite: str | None = SUITE) -> int:
    """Replace the generated folders below ``folder``; returns the number of files.

    Args:
        folder: folder of the suite.
        studies: default: the built-in and the bundled ones.
        suite: as in :func:`task_files`.

    Raises:
        StudyError: a file that is not ours would be replaced.
    """
    files = package_task_files() if studies is None else task_files(studies, suite)
    foreign = [path for path in files if (folder / path).exists() and not _is_ours(folder / path)]
    if foreign:
        raise StudyError(
            f"{folder}: {', '.join(foreign[:5])} would be replaced, and {'is' if len(foreign) == 1 else 'are'} not of this package. Choose another folder."
        )
    for generated in {path.split("/")[0] for path in files}:
        for present in (folder / generated).glob("*"):
            if f"{generated}/{present.name}" not in files and _is_ours(present):
                present.unlink()
    for path, text in files.items():
        write_atomically(folder / path, text, durable=False)
    return len(files)


def _is_ours(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(MARK.encode())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write lmms-eval's task and group files from the studies.")
    parser.add_argument("folder", nargs="?", type=Path, default=tasks_folder() / SUITE, help="default: %(default)s")
    arguments = parser.parse_args()
    print(f"{write_task_files(arguments.folder)} files written below {arguments.folder}")
