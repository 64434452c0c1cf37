"""The task and group files of lm_eval, written into the cache when their folder is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmms_eval_emi.data.study import BUILT_IN, Study, load_study
from lmms_eval_emi.harness.common import GENERATION, SUITE, group_owners, groups
from lmms_eval_emi.harness.lmms_eval.write_tasks import dump, function
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.util.files import write_atomically
from lmms_eval_emi.version import __version__

PACKAGE = "lmms_eval_emi.harness.lm_eval"
LENGTH = {"max_new_tokens": "max_gen_toks"}  # name in lm_eval by name in lmms-eval


def write_task_folder(settings: Settings, sources: Sequence[str] = ()) -> Path:
    """Write the tasks of some studies, and return the folder for ``lm_eval --include_path``.

    Args:
        settings: settings with the cache.
        sources: built-in names or paths of study files; default: the built-in studies.
    """
    studies = [load_study(source) for source in sources or BUILT_IN]
    name = "-".join(study.name for study in studies)
    folder = settings.cache / "lm_eval_tasks" / f"{name}-{__version__}"
    for path, text in task_files(studies).items():
        write_atomically(folder / path, text, durable=False)
    return folder


def builtin_task_folder() -> Path:
    """Write the tasks of the built-in studies into the cache of the environment's settings, and return their folder.

    This is the package's entry point in the group ``lm_eval.tasks``, for a version of lm_eval that reads entry points of
    tasks (its pull request 4015). lm_eval 0.4.13 does not, and needs ``--include_path``.
    """
    return write_task_folder(load_settings())


def task_files(studies: Sequence[Study]) -> dict[str, str]:
    """Return the text of each file by its name."""
    suite = SUITE if all(study.source in BUILT_IN for study in studies) and len(studies) > 1 else None
    files = {}
    for study in studies:
        source = study.source if study.is_bundled else str(Path(study.source).resolve())
        for name in (study.id_split, *study.shifts(), *study.controls()):
            fields = {
                "task": study.task_name(name),
                "class": function(f"{PACKAGE}.task.SplitTask"),
                "output_type": "generate_until",
                "test_split": name,
                "doc_to_text": "",  # the class has its own; lm_eval wants the keys
                "doc_to_target": "",
                "doc_to_image": "image",
                # hf-multimodal takes 256 tokens where max_gen_toks is not set, whatever max_new_tokens says.
                "generation_kwargs": {LENGTH.get(key, key): value for key, value in GENERATION.items()},
                "metric_list": [],
                "num_fewshot": 0,
                "metadata": {"version": 1.0, "emi_study": source, "emi_split": name},
            }
            files[f"{study.task_name(name)}.yaml"] = dump(fields)
    for name, members in groups(studies, suite).items():
        owners, modality = group_owners(name, studies, suite)
        tasks = [task for study in studies for task in groups([study], None)[study.group]] if name == suite else members
        metadata = {"version": 1.0, "emi_members": tasks, "emi_studies": owners, "emi_modality": modality}
        fields = {"task": name, "class": function(f"{PACKAGE}.run.StudyGroup"), "metadata": metadata}
        files[f"{name}.yaml"] = dump(fields)
    return files
