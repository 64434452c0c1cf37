"""``lmms-eval-emi tasks prefetch``: fetch what a run needs, for machines without internet."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.cli.options import new_parser
from lmms_eval_emi.data.study import BUILT_IN
from lmms_eval_emi.errors import EMIError
from lmms_eval_emi.util.printing import table

if TYPE_CHECKING:
    from lmms_eval_emi.settings import Settings

Fetch = Callable[[], tuple[str, int]]  # fetches an asset; returns what and where it is, and its bytes


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=(
            "lmms-eval-emi tasks prefetch --study natural",
            "HF_HUB_OFFLINE=1 lmms-eval-emi tasks prefetch --check",
        ),
        description="Fetch datasets, encoders and estimator into the usual caches, load each of them, and say where they are and how large. Exits with 1 if something is missing.",
    )
    parser.add_argument(
        "--study", action="append", choices=BUILT_IN, help="only this family; may be repeated (default: both)"
    )
    parser.add_argument(
        "--suite", action="append", default=[], metavar="NAME", help="also what a suite needs; may be repeated"
    )
    parser.add_argument(
        "--reproduce", action="store_true", help="also the published responses, which lmms-eval-emi reproduce needs"
    )
    parser.add_argument("--check", action="store_true", help="fetch nothing, and list what is missing")
    return parser


def run(args: argparse.Namespace) -> int:
    """Fetch datasets, encoders and estimator, or check that they are there, and print a table."""
    import os

    if args.check:  # before the libraries that read them are imported
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    from lmms_eval_emi.data.suites import load_suite
    from lmms_eval_emi.settings import load_settings

    settings = load_settings()
    wanted = _wanted_by_settings(settings, args.study or BUILT_IN)
    suites = [load_suite(name) for name in args.suite]
    for suite in suites:
        wanted |= _wanted_by(suite)
    if args.reproduce:
        wanted["published responses"] = partial(_published_responses, settings)
    rows: list[list[str]] = []
    missing: dict[str, Exception] = {}
    for what, fetch in wanted.items():
        try:
            where, size = fetch()
            rows.append([what, "there", f"{size / 1e6:.1f} MB", where])
        except (EMIError, OSError) as error:
            missing[what] = error
            rows.append([what, "missing", "", ""])
    print(table(rows, ["what", "state", "size", "where"]))
    for suite in suites:
        print(f"\nsuite {suite.name} needs {' '.join(suite.needs.split())}")
    for what, reason in missing.items():
        print(f"\nmissing: {what}\n{reason}")
    return 1 if missing else 0


def _wanted_by_settings(settings: Settings, studies: Sequence[str]) -> dict[str, Fetch]:
    """Return functions that fetch the datasets of studies, the encoders and the estimator, by name of what is fetched."""
    from PIL import Image

    from lmms_eval_emi.encoders import load_text_encoder, load_vision_encoder

    vision, text = settings.vision_encoder, settings.text_encoder
    return {
        **{f"dataset {name}": partial(_dataset, name) for name in studies},
        f"vision encoder {vision}": partial(
            _encoder, load_vision_encoder, vision, Image.new("RGB", (8, 8)), settings.cache
        ),
        f"text encoder {text}": partial(_encoder, load_text_encoder, text, "a", settings.cache),
        f"estimator {settings.estimator}": partial(_estimator, settings),
    }


def _dataset(study: str) -> tuple[str, int]:
    """Load the splits of a study, and return what they are and their bytes."""
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.shifts.at_load import load_unshifted

    splits = load_unshifted(load_study(study))
    files = {Path(file["filename"]) for split in splits.values() for file in split.cache_files}
    rows = sum(map(len, splits.values()))
    return f"{len(splits)} splits, {rows} rows in {_common(files)}", _size(files)


def _encoder(load: Callable[..., Any], name: str, item: Any, cache: Path) -> tuple[str, int]:
    """Load an encoder, and return its weights' identity and folder, and their bytes."""
    loaded = load(name, "cpu", cache)
    loaded.encode([item])  # reads all that it needs
    folder = Path(name) if Path(name).is_dir() else _snapshot(name)
    return f"weights {loaded.signature.split('#')[1].split('/')[0]} in {folder}", _size(folder.rglob("*"))


def _estimator(settings: Settings) -> tuple[str, int]:
    """Load the estimator, and return its signature and file, and its bytes."""
    from lmms_eval_emi.estimators import load_estimator, registered_estimators
    from lmms_eval_emi.estimators.registry import locate

    loaded = load_estimator(settings.estimator, cache=settings.cache)
    entry = registered_estimators().get(settings.estimator)
    if entry and not entry.is_trained:
        return "needs no file", 0
    path = locate(entry, settings.cache) if entry else Path(settings.estimator)
    return f"{loaded.signature} in {path}", _size([path])


def _published_responses(settings: Settings) -> tuple[str, int]:
    """Fetch the published responses, and return their number and folder, and their bytes."""
    from lmms_eval_emi.slices.reproduce.reproduction import fetch_responses

    folder = fetch_responses(settings.cache)
    return f"{len(list(folder.glob('*.jsonl')))} files in {folder}", _size(folder.glob("*"))


def _wanted_by(suite: Any) -> dict[str, Fetch]:
    """Return the files of a suite that are on the hub, each with the function that fetches it."""
    from lmms_eval_emi.data.rows import load_source
    from lmms_eval_emi.data.study import load_study, parse_study
    from lmms_eval_emi.shifts.at_load import load_unshifted

    def sizes(rows: Iterable[Any]) -> tuple[str, int]:
        loaded = list(rows)
        files = {Path(file["filename"]) for dataset in loaded for file in dataset.cache_files}
        return f"{sum(map(len, loaded))} rows in {_common(files)}", _size(files)

    if suite.kind == "study" and not suite.prepare:
        return {f"suite {suite.name}": lambda: sizes(load_unshifted(load_study(suite.name)).values())}
    if suite.kind == "study":
        import yaml

        study = parse_study(yaml.safe_dump(suite.study), suite.name)
        return {f"suite {suite.name}, the ID split": lambda: sizes(load_unshifted(study, [study.id_split]).values())}
    if suite.kind == "domains":
        if suite.domains.path is None:
            return {}
        return {f"suite {suite.name}": lambda: sizes(load_source(suite.domains.path, suite.domains.config).values())}
    from lmms_eval_emi.harness.lmms_eval.twin_tasks import load_rows, resolve

    def rows_of(name: str) -> tuple[str, int]:
        return sizes(load_rows(task) for task in resolve([name])[name])

    return {f"suite {suite.name}, task {name}": partial(rows_of, name) for name in suite.tasks}


def _snapshot(name: str) -> Path:
    """Return the folder of the Hugging Face cache that contains what was just loaded from there."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else Path(name)


def _size(files: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in files if path.is_file())


def _common(files: set[Path]) -> str:
    parents = {path.parent for path in files}
    return str(parents.pop()) if len(parents) == 1 else f"{len(parents)} folders"
