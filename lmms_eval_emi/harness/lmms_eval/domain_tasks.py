"""Labelled images by domain as tasks: which of all classes is shown, asked alike in every domain.

The images of two domains are different, so their tasks are compared as unrelated samples.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmms_eval_emi.data.images import encoded_image, open_image, to_rgb
from lmms_eval_emi.data.rows import with_encoded_images
from lmms_eval_emi.data.suites import Domains, Suite, load_suite
from lmms_eval_emi.errors import StudyError
from lmms_eval_emi.harness.lmms_eval.write_tasks import MARK, dump, function
from lmms_eval_emi.harness.lmms_eval.write_twins import PICTURES, TWIN

if TYPE_CHECKING:
    import datasets
    from PIL import Image

HEADER = f"{MARK} suites; write it again to change it.\n"
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
TARGET, CHOICES = "emi_class", "emi_classes"
HOOKS = ("doc_to_visual", "doc_to_text", "doc_to_target", "process_results")


def domain_files(suite: Suite, data: Path | None, per_class: int, seed: int) -> dict[str, str]:
    """Return the text of each file by its path below the folder: a task for each domain, and the group of all.

    Args:
        suite: suite of the kind ``domains``.
        data: folder ``DOMAIN/CLASS/file``; default: the dataset on the hub.
        per_class: most images of a class of a domain.
        seed: seed by which they are drawn.

    Raises:
        StudyError: a folder is needed, or lacks a domain.
    """
    domains = suite.domains
    assert domains is not None
    if data is None and domains.path is None:
        raise StudyError(f"suite {suite.name}: expected --data FOLDER. It needs {suite.needs}")
    names = [_slug(f"{suite.name}_{name}") for name in domains.names]
    where: dict[str, Any] = {"dataset_path": domains.path, "test_split": domains.split}
    if domains.config:
        where["dataset_name"] = domains.config
    if data is not None:
        _check_folder(suite, data)
        where = {
            "dataset_path": "parquet",
            "dataset_kwargs": {"data_files": {"train": PICTURES}},
            "test_split": "train",
        }
    lines = [f"{HEADER}from lmms_eval_emi.harness.lmms_eval.domain_tasks import domain_hooks\n"]
    lines.append(f"_hooks = domain_hooks({suite.name!r}, per_class={per_class}, seed={seed}, own={data is not None})")
    lines += [f"{hook} = _hooks[{hook!r}]" for hook in HOOKS]
    files: dict[str, str] = {}
    for name, domain in zip(names, domains.names, strict=True):
        lines.append(f"{name} = _hooks['process_docs']({domain!r})")
        metadata: dict[str, Any] = {"version": 1.0}
        if name != names[0]:
            metadata[TWIN] = {"of": names[0], "domain": domain, "other_rows": True}
        fields = {
            "task": name,
            **where,
            "output_type": "generate_until",
            "process_docs": function(f"utils.{name}"),
            **{hook: function(f"utils.{hook}") for hook in HOOKS},
            "generation_kwargs": {"max_new_tokens": 32, "do_sample": False, "temperature": 0},
            "metric_list": [{"metric": "accuracy", "aggregation": "mean", "higher_is_better": True}],
            "metadata": metadata,
        }
        files[f"{name}.yaml"] = HEADER + dump(fields)
    files["utils.py"] = "\n".join(lines) + "\n"
    group = f"{_slug(suite.name)}_robustness"
    files[f"{group}.yaml"] = HEADER + dump({"group": group, "task": names})
    return files


def _check_folder(suite: Suite, data: Path) -> None:
    assert suite.domains is not None
    missing = [name for name in suite.domains.names if not (data / name).is_dir()]
    if missing:
        there = sorted(path.name for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
        raise StudyError(
            f"--data: expected a folder DOMAIN/CLASS/file with the domains {', '.join(suite.domains.names)}; {data} lacks {', '.join(missing)} and has {', '.join(there[:8]) or 'none'}."
        )


def write_pictures(suite: Suite, data: Path, path: Path, per_class: int, seed: int) -> int:
    """Write the images of a folder ``DOMAIN/CLASS/file`` as a dataset; returns their number.

    Args:
        suite: suite whose domains.
        data: the folder.
        path: path of the parquet file, which contains the images themselves.
        per_class: most images of a class of a domain.
        seed: seed by which they are drawn.

    Raises:
        StudyError: a class has no images.
    """
    import datasets

    assert suite.domains is not None
    records = []
    for domain in suite.domains.names:
        for folder in sorted(path for path in (data / domain).iterdir() if path.is_dir()):
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
            if not files:
                raise StudyError(f"--data: {folder} holds no picture ({', '.join(sorted(SUFFIXES))}).")
            for file in _drawn(files, per_class, seed, domain, folder.name):
                picture = {"bytes": file.read_bytes(), "path": file.name}
                records.append({"image": picture, "domain": domain, "label": folder.name})
    features = datasets.Features(
        {"image": datasets.Image(), "domain": datasets.Value("string"), "label": datasets.Value("string")}
    )
    rows = datasets.Dataset.from_list(records, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(str(path))
    return len(rows)


def domain_hooks(name: str, per_class: int, seed: int, own: bool) -> dict[str, Callable[..., Any]]:
    """Return the hooks of a suite's tasks by name; ``process_docs`` is called with a domain and returns the hook of its task.

    Args:
        name: name of the suite.
        per_class: most images of a class of a domain.
        seed: seed by which they are drawn.
        own: whether the rows are those of :func:`write_pictures`, which are drawn already.
    """
    suite = load_suite(name, kind="domains")
    columns = Domains(names=suite.domains.names if suite.domains else ()) if own else suite.domains
    assert columns is not None

    def process_docs(domain: str) -> Callable[[datasets.Dataset], datasets.Dataset]:
        def chosen(dataset: datasets.Dataset) -> datasets.Dataset:
            missing = {columns.image, columns.domain, columns.label} - set(dataset.column_names)
            if missing:
                raise StudyError(
                    f"suite {name}: expected the columns {', '.join(sorted(missing))}, which are missing; the rows have {', '.join(dataset.column_names)}. Give the pictures as a folder with --data."
                )
            labels, domains = _named(dataset, columns.label), _named(dataset, columns.domain)
            classes = sorted(set(labels), key=str)
            by_class: dict[str, list[int]] = {}
            for row, (label, own_domain) in enumerate(zip(labels, domains, strict=True)):
                if own_domain == domain:
                    by_class.setdefault(label, []).append(row)
            if not by_class:
                raise StudyError(
                    f"suite {name}: expected pictures of the domain {domain}, found none; there are {', '.join(sorted(set(domains))[:10])}."
                )
            rows = sorted(
                row for label, files in by_class.items() for row in _drawn(files, per_class, seed, domain, label)
            )
            found = with_encoded_images(dataset, columns.image).select(rows)
            found = found.add_column(TARGET, [_words(labels[row]) for row in rows])
            return found.add_column(CHOICES, [[_words(label) for label in classes]] * len(rows))

        return chosen

    def doc_to_visual(doc: Mapping[str, Any]) -> list[Image.Image]:
        return [to_rgb(open_image(encoded_image(doc[columns.image], ())))]

    def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
        return (
            f"What does the picture show? Choose one of these: {', '.join(doc[CHOICES])}. Reply with your choice alone."
        )

    def doc_to_target(doc: Mapping[str, Any]) -> str:
        return str(doc[TARGET])

    def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
        return {"accuracy": float(read_choice(str(results[0]), doc[CHOICES]) == doc[TARGET])}

    hooks = (process_docs, doc_to_visual, doc_to_text, doc_to_target, process_results)
    return {hook.__name__: hook for hook in hooks}


def read_choice(reply: str, choices: Sequence[str]) -> str | None:
    """Return the class that a reply names, the longest if names overlap; ``None`` if it names none or several.

    >>> read_choice("It is an alarm clock.", ["clock", "alarm clock", "lamp"])
    'alarm clock'
    """
    text = _words(reply).casefold()
    named = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(choice.casefold())}(?!\w)", text)]
    whole = [
        name for name in named if not any(name != other and name.casefold() in other.casefold() for other in named)
    ]
    return whole[0] if len(whole) == 1 else None


def _drawn(items: Sequence[Any], most: int, seed: int, *of: str) -> list[Any]:
    """Return a sample of items that depends on the seed alone."""
    if len(items) <= most:
        return list(items)
    digest = [seed, *(ord(letter) for letter in "/".join(of))]
    places = np.random.default_rng(digest).permutation(len(items))[:most]
    return [items[place] for place in sorted(places)]


def _named(dataset: datasets.Dataset, column: str) -> list[str]:
    feature = dataset.features[column]
    values = dataset[column]
    return [feature.int2str(value) if hasattr(feature, "int2str") else str(value) for value in values]


@lru_cache(maxsize=4096)
def _words(label: str) -> str:
    return " ".join(label.replace("_", " ").split())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
