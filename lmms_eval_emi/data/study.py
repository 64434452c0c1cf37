"""Studies as data: a YAML file names the splits, their shifts and their datasets.

The two built-in families are such files in ``data/studies/``, in the format that any other study uses:

    name: my_study
    id_split: clean
    dataset: {path: my/dataset, columns: {id: id, image: image, question: question, reference: answer}}
    splits:
      clean: {}
      foggy:
        shifts: [{modality: visual, name: fog, severity: 3}]
        dataset: {path: my/foggy_dataset, split: test}
        responses: responses/foggy.jsonl
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from lmms_eval_emi.data.suites import load_suite, suite_names
from lmms_eval_emi.errors import InputError, StudyError
from lmms_eval_emi.util.printing import shorten, suggest

BUILT_IN = ("natural", "synthetic")
BUNDLED = ("demo",)  # studies whose rows come with the package, beside their tasks
Modality = Literal["id", "visual", "text", "joint", "control"]
SHIFT_MODALITIES: tuple[Modality, ...] = ("visual", "text", "joint")
LONGEST_NAME = 100
# A file of a few hundred bytes can name itself in itself and stand for billions of nodes.
MOST_NODES = 200_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Strict):
    """Names of a dataset's columns.

    Attributes:
        id: question id.
        image: image; without one, rows are scored on their text alone.
        question: question, without an instruction about the response.
        reference: reference that responses are compared with.
        translation: the reference in the language of the responses, where that is another one.
    """

    id: str = "question_id"
    image: str | None = "image"
    question: str = "question"
    reference: str = "reference_answer"
    translation: str | None = None


class ShiftsAtLoad(_Strict):
    """Operators make every shift of the study when it is loaded, from the rows of the ID split in the dataset."""

    seed: int = 0
    keep: tuple[str, ...] = ()  # words that textual operators leave alone
    synonyms: str | None = None  # a file of synonyms, relative to the study file; default: WordNet
    only: Literal["visual", "text"] | None = (
        None  # modality that operators shift; the rows have the other shift already
    )


class DatasetSpec(_Strict):
    """Location of rows: a hub name, a folder (of ``save_to_disk`` too), or a file; see :mod:`lmms_eval_emi.data.rows`."""

    path: str
    config: str | None = None  # name of the dataset's configuration
    split: str | None = None  # default: the name of the study's split
    columns: Columns = Columns()
    images: str | None = None  # folder of the images, where it is neither the dataset's nor the study file's
    shifts_at_load: ShiftsAtLoad | None = None


class Shift(_Strict):
    """One shift of one modality."""

    modality: Literal["visual", "text"]
    name: str
    severity: int | None = None

    def __str__(self) -> str:
        return self.name if self.severity is None else f"{self.name} {self.severity}"


class SplitSpec(_Strict):
    """One split of a study, every default filled in.

    A split without shifts is the ID split, or with ``modality: control`` a control: other rows in distribution, such
    as of other images. A control has EMID and index like a shift and is no part of means, adjustments and correlations.
    """

    name: str = Field(max_length=LONGEST_NAME)
    task: str = Field(pattern=r"^[a-z0-9_]+$", max_length=LONGEST_NAME)
    modality: Modality
    shifts: tuple[Shift, ...] = ()
    dataset: DatasetSpec
    responses: str | None = None  # a response file, or the stem of one that several splits share
    prompt_suffix: str = ""  # added to the question when a model is asked, not when it is embedded
    variant_of: str | None = None  # the split whose rows another task asks in its own way
    order: int | None = None  # place in a series, such as the week in which its rows were collected

    @model_validator(mode="after")
    def _name_is_plain(self) -> SplitSpec:
        if not _is_plain(self.name):
            raise InputError(
                f"the name of a split becomes the name of a file: expected letters, digits, _, - and single dots, got {self.name!r}"
            )
        return self

    @model_validator(mode="after")
    def _modality_is_that_of_the_shifts(self) -> SplitSpec:
        modalities = {shift.modality for shift in self.shifts}
        expected = "id" if not modalities else "joint" if len(modalities) > 1 else modalities.pop()
        if self.modality != expected and not (self.modality == "control" and not self.shifts):
            raise InputError(f"the shifts of {self.name} make its modality {expected!r}, not {self.modality!r}")
        return self

    @property
    def response_stems(self) -> tuple[str, ...]:
        """Stems of the files that may hold its responses, the split's own first."""
        return (self.name, self.responses) if self.responses and not _is_file_name(self.responses) else (self.name,)

    @property
    def dataset_split(self) -> str:
        """The split of its dataset."""
        return self.dataset.split or self.name


class Study(_Strict):
    """A family of splits, one of which is in distribution."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", max_length=LONGEST_NAME)
    title: str
    group: str = Field(pattern=r"^[a-z0-9_]+$", max_length=LONGEST_NAME)
    id_split: str
    splits: dict[str, SplitSpec]
    means: str = ""  # what means over the shifts average, where a reader may take them for something else
    source: str = ""  # what load_study was given

    _trusted: bool = PrivateAttr(False)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("splits"), dict):
            return data
        filled = {**data, "splits": {name: _fill_in_split(name, split, data) for name, split in data["splits"].items()}}
        filled.pop("dataset", None)
        if isinstance(data.get("name"), str):
            if not _is_plain(data["name"]):
                raise InputError(
                    f"the name of a study becomes the name of a folder: expected letters, digits, _, - and single dots, got {data['name']!r}"
                )
            filled.setdefault("title", data["name"])
            filled.setdefault("group", _slug(data["name"]))
        return filled

    @model_validator(mode="after")
    def _is_consistent(self) -> Study:
        id_splits = [name for name, split in self.splits.items() if split.modality == "id" and split.variant_of is None]
        for split in self.splits.values():
            if split.variant_of is not None and split.variant_of not in self.splits:
                raise InputError(f"{split.name}: variant_of names the split {split.variant_of}, which is missing")
        if id_splits != [self.id_split]:
            raise InputError(f"expected the one split without shifts to be id_split {self.id_split!r}, got {id_splits}")
        tasks = [split.task for split in self.splits.values()]
        doubled = sorted({task for task in tasks if tasks.count(task) > 1})
        if doubled:
            raise InputError(f"several splits have the task name {', '.join(doubled)}; give each a task of its own")
        return self

    def split(self, name: str) -> SplitSpec:
        """Return a split by name.

        Raises:
            StudyError: the study has no such split.
        """
        if name not in self.splits:
            alike = (
                f" Did you mean {other}?"
                for other, split in self.splits.items()
                if name.lower() in (split.task, other.lower().rsplit("_", 1)[-1])
            )
            hint = suggest(name, self.splits) or next(alike, "")
            listed = shorten(list(self.splits), 8)
            raise StudyError(f"split: the study {self.name} has no split {name!r}.{hint} It has {listed}.")
        return self.splits[name]

    def shifts(self, modality: str | None = None) -> list[str]:
        """Return names of the shifted splits, in the file's order, of one modality or of all; variants and controls are no shifts."""
        return [
            name
            for name, split in self.splits.items()
            if split.modality not in ("id", "control")
            and split.variant_of is None
            and modality in (None, split.modality)
        ]

    def controls(self) -> list[str]:
        """Return names of the splits of other rows in distribution, whose EMID should be within its error."""
        return [name for name, split in self.splits.items() if split.modality == "control" and split.variant_of is None]

    def variants(self) -> list[str]:
        """Return names of the splits that ask the rows of another split in their own way."""
        return [name for name, split in self.splits.items() if split.variant_of is not None]

    def with_variant(self, name: str, of: str) -> Study:
        """Return the study with one more split: the rows of an existing split, asked by another task.

        Args:
            name: name of the variant, such as its task's.
            of: name of the split whose rows it asks.
        """
        base = self.split(of)
        variant = base.model_copy(
            update={
                "name": name,
                "task": _slug(name) or "variant",
                "variant_of": base.variant_of or of,
                "responses": None,
                "dataset": base.dataset.model_copy(update={"split": base.dataset_split}),
            }
        )
        return self.model_copy(update={"splits": {**self.splits, name: variant}})

    def task_name(self, split: str) -> str:
        """Return the name of the harness task of a split."""
        return f"{self.group}_{self.split(split).task}"

    def trust(self) -> Study:
        """Return the study as one that may name files anywhere.

        For study files in folders of task files, whose code the harness runs anyway, and for data that a command line
        names.
        """
        copied = self.model_copy()
        copied._trusted = True
        return copied

    @property
    def is_trusted(self) -> bool:
        """Whether the study may name files outside its folder: it comes with the package, or :meth:`trust` was called."""
        return self.is_bundled or self._trusted

    def response_file(self, split: str) -> Path | None:
        """Return the response file that the study itself names for a split, relative to the study file."""
        responses = self.split(split).responses
        return Path(self.source).parent / responses if responses and _is_file_name(responses) else None

    @property
    def is_bundled(self) -> bool:
        """Whether the study comes with the package, not from a file of the user."""
        return self.source in (*BUILT_IN, *BUNDLED) or self.source in suite_names()

    @property
    def folder(self) -> Path:
        """Folder that relative paths of the study are relative to."""
        return Path() if self.is_bundled else Path(self.source).parent

    def local_path(self, spec: DatasetSpec) -> Path | None:
        """Return the file or folder that a dataset's path means, below the study file's folder or the current one, if it is there."""
        candidates = (self.folder / spec.path, Path(spec.path).expanduser())
        return next((path for path in candidates if path.exists()), None)


def _fill_in_split(name: str, split: Any, study: dict[str, Any]) -> Any:
    if split is None:
        split = {}
    if not isinstance(split, dict):
        return split
    filled = {"name": name, "task": _slug(name), **split}
    base = study.get("dataset")
    dataset = split.get("dataset", {})
    if isinstance(base, dict) and isinstance(dataset, dict):
        filled["dataset"] = {**base, **dataset}
        if isinstance(base.get("columns"), dict) and isinstance(dataset.get("columns"), dict):
            filled["dataset"]["columns"] = {**base["columns"], **dataset["columns"]}
    if "modality" not in split:
        shifts = split.get("shifts")
        shifts = shifts if isinstance(shifts, list | tuple) else []
        named = [shift.get("modality") for shift in shifts if isinstance(shift, dict)]
        modalities = {modality for modality in named if modality in ("visual", "text")}
        filled["modality"] = (
            "id" if not shifts else "joint" if len(modalities) > 1 else next(iter(modalities), "visual")
        )
    return filled


def _is_file_name(responses: str) -> bool:
    return Path(responses).suffix in {".json", ".jsonl"} or "/" in responses


def _is_plain(name: str) -> bool:
    return bool(re.fullmatch(r"\w(?:[\w-]|\.(?!\.))*", name)) and not name.endswith(".")


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def load_study(name_or_path: str | Path) -> Study:
    """Load a built-in or bundled study, or a suite that is one, by name, or a study file.

    Raises:
        StudyError: neither such a name nor a file, or the file is not a study; with the lines
            that are wrong.
    """
    source = str(name_or_path)
    if source in BUILT_IN:
        return _built_in(source)
    if source in suite_names() and not Path(source).is_file():
        return _suite(source)
    path = Path(source).expanduser()
    if source in BUNDLED:
        path = Path(str(resources.files("lmms_eval_emi.tasks"))) / "llavabench_shift" / source / "study.yaml"
    try:
        there = path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a zero in it
        there = False
    if not there:
        hint = suggest(source, (*BUILT_IN, *BUNDLED, *suite_names()))
        raise StudyError(
            f"study: expected {', '.join(map(repr, (*BUILT_IN, *BUNDLED)))}, a suite (lmms-eval-emi shifts suites) or the path of a study file, got {source[:200]!r}.{hint}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: expected a UTF-8 file: {error}") from error
    return parse_study(text, str(path.resolve()))


@lru_cache(maxsize=len(BUILT_IN))
def _built_in(name: str) -> Study:
    text = resources.files("lmms_eval_emi.data").joinpath("studies", f"{name}.yaml").read_text(encoding="utf-8")
    return parse_study(text, name)


@lru_cache(maxsize=8)
def _suite(name: str) -> Study:
    suite = load_suite(name)
    if suite.study is None:
        raise StudyError(
            f"study: the suite {name} is none, for it is of the kind {suite.kind}. lmms-eval-emi shifts suites {name} says how it is used."
        )
    if suite.prepare:
        raise StudyError(
            f"study: the rows of {name} have to be made first: lmms-eval-emi shifts suites {name} --output DIR --data FOLDER, then --study DIR/study.yaml."
        )
    return parse_study(yaml.safe_dump(suite.study, sort_keys=False, allow_unicode=True), name)


def parse_study(text: str, source: str) -> Study:
    """Read a study from YAML text; ``source`` names it in errors and resolves its relative paths.

    Raises:
        StudyError: the text is not a study.
    """
    try:
        loader = _TextLoader(text)
        node = loader.get_single_node()
        _check_size(node, source)
        data = loader.construct_document(node) if node else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise StudyError(f"{source}{line}: not a YAML file: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise StudyError(f"{source}: not a study: it is nested too deeply") from error
    problems = list(loader.doubled)
    if isinstance(data, dict) and not problems:
        try:
            return Study.model_validate({**data, "source": source})
        except ValidationError as error:
            for problem in error.errors():
                location = [part for part in problem["loc"] if part != "source"]
                problems.append(
                    (_line(node, location), f"{'.'.join(map(str, location)) or 'study'}: {_message(problem)}")
                )
    elif not problems:
        problems.append((1, f"expected a mapping with name, id_split, dataset and splits, got {type(data).__name__}"))
    raise StudyError(
        f"{source}: not a study:\n" + "\n".join(f"  line {line}: {message}" for line, message in sorted(set(problems)))
    )


class _TextLoader(yaml.SafeLoader):
    """Reads every scalar as text but an empty value, so that a split may be called ``no``, ``on``, ``null`` or ``2024``.

    Attributes:
        doubled: line and message of keys that occur twice in one mapping, of which YAML readers keep the last in silence.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.doubled: list[tuple[int, str]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = "tag:yaml.org,2002:str" if key.tag.endswith(":null") else key.tag
                if key.value in lines:
                    self.doubled.append(
                        (key.start_mark.line + 1, f"{key.value}: is in line {lines[key.value]} already")
                    )
                lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


_TextLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _check_size(root: yaml.Node | None, source: str) -> None:
    """Raise a StudyError if YAML aliases expand to more nodes than any study has, or to themselves."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        if id(node) not in sizes:
            sizes[id(node)] = MOST_NODES + 1  # an alias of what it stands in
            inside = (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
            )
            sizes[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(map(size, inside))
        return sizes[id(node)]

    if root is not None and size(root) > MOST_NODES:
        raise StudyError(
            f"{source}: not a study: its aliases stand for more than {MOST_NODES:,} entries, or for themselves. Write the entries out."
        )


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {
            "columns": Columns,
            "shifts_at_load": ShiftsAtLoad,
            "dataset": DatasetSpec,
            "shifts": Shift,
        }
        inside = next((models[part] for part in reversed(problem["loc"][:-1]) if part in models), None)
        inside = inside or (SplitSpec if problem["loc"][0] == "splits" else Study)
        known = [name for name in inside.model_fields if name != "source"] + (["dataset"] if inside is Study else [])
        return f"unknown key.{suggest(str(problem['loc'][-1]), known)} Known are {', '.join(known)}"
    if problem["type"] == "missing":
        return "missing"
    return problem["msg"].removeprefix("Value error, ")


def _line(node: yaml.Node | None, location: list[Any]) -> int:
    """Return the line of the deepest part of a location that the file has."""
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line
    return line
