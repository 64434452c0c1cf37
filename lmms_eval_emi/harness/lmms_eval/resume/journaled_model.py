"""A model of lmms-eval whose responses are on the disk before the next ones are generated, and never generated twice.

The harness hands a model all requests of a rank in one call, and keeps what the call returns. Here the call is handed on
in blocks of consecutive requests. A finished block is appended to the journal of the run; a block that is there already is not
generated again. Blocks follow from the requests alone, so a run that was interrupted has the batches of one that was not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lmms_eval_emi.data.response_text import is_failed_request, without_thoughts
from lmms_eval_emi.errors import RunError
from lmms_eval_emi.harness.lmms_eval.compat import evaluation, launch
from lmms_eval_emi.harness.lmms_eval.resume.request_content import Contents, Described, file_hash
from lmms_eval_emi.util.files import batched
from lmms_eval_emi.util.journal import Answers, Journal, JournalContents, Request

log = logging.getLogger("lmms_eval_emi")
CHECKPOINT = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|npz|npy|msgpack|h5|onnx|engine|model)"
    r"|.*config\.json|model_index\.json|(tokenizer|vocab|preprocessor).*"
)
# Arguments that let a request through and change no response, by their whole names: image_token is none of them.
SECRET = re.compile(
    r"(?i)(?:[a-z0-9]+_)*api_key=|(?:(?:openai|azure|azure_openai|anthropic|google|gemini|dashscope|hf|judge)_)?(?:key|token)="
    r"|(?:use_)?(?:auth|access)_token=|password="
)


def identity(model: str, model_args: Any) -> str:
    """Return a hash of a model and its arguments, in any order, by which journals in one folder are distinguished.

    Keys of endpoints are no part of it. The files of a local checkpoint are, so that one that was trained on is another.
    """
    if isinstance(model_args, Mapping):
        pairs = sorted(f"{key}={value}" for key, value in model_args.items())
    else:
        pairs = sorted(part.strip() for part in str(model_args or "").split(",") if part.strip())
    values = (pair.partition("=")[::2] for pair in pairs)
    places = [Path(value) for name, value in values if value and "cache" not in name]
    # A hash of all of it, so a key that only looks like one still tells two models apart.
    content = [str(model), [pair for pair in pairs if not SECRET.match(pair)], [_checkpoint(place) for place in places]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _checkpoint(place: Path) -> list[list[Any]]:
    """Return names and content hashes of the files of a local checkpoint, in its subfolders too; nothing for other values.

    A folder is a checkpoint if it, or a folder in it, holds a configuration, a tokenizer or weights; one of caches or
    outputs is none. A file that cannot be read counts by its name.
    """
    try:
        if not place.is_dir():
            return [[place.name, file_hash(place)]] if place.is_file() else []
        near = [*place.glob("*"), *place.glob("*/*")]
    except (OSError, ValueError):
        return []
    if not any(CHECKPOINT.fullmatch(path.name) for path in near):
        return []
    found: list[list[Any]] = []
    for path in _visible_files_below(place):
        try:
            found.append([str(path.relative_to(place)), file_hash(path)])
        except OSError:
            found.append([str(path.relative_to(place)), None])
    return found


def _visible_files_below(place: Path) -> list[Path]:
    """Return all files below a folder but hidden ones, in linked folders too."""
    found, seen = [], set()
    for folder, folders, names in os.walk(place, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            found += [Path(folder) / name for name in sorted(names) if not name.startswith(".")]
        seen.add(real)
    return [path for path in found if path.is_file()]


@dataclass
class Progress:
    """Progress of a rank: numbers of requests, of answered ones, and of those answered by an error message."""

    planned: int = 0
    answered: int = 0
    failed: int = 0


def answers_of(contents: JournalContents, run: str, *, retry_empty: bool) -> Answers:
    """Return the responses of a run in a journal; without those that are empty or thoughts alone if they are asked again."""
    answers = contents.answers(run)
    return answers.without_empty(without_thoughts) if retry_empty else answers


@dataclass
class Blocks:
    """Answers the calls of a model from the journal, and by the model what is not there.

    Attributes:
        journal: journal of this rank.
        run: identity of the model with its arguments.
        size: requests of a block.
        share: whether requests of one content are asked once, where nothing is drawn.
        seed: seed of what is drawn.
        command: identity of the command, whose plan the requests are.
        retry_empty: whether requests are asked again whose response is empty.
        answers: what the journal knows of this run.
        failures: error messages that the model returned instead of responses. They are not written to the journal.
        progress: how far this rank is.
    """

    journal: Journal
    run: str
    size: int = 32
    share: bool = True
    seed: str = ""
    command: str = ""
    retry_empty: bool = False
    answers: Answers = field(init=False)
    failures: Answers = field(default_factory=Answers)
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.answers = answers_of(self.journal.contents, self.run, retry_empty=self.retry_empty)
        self._planned = set(self.journal.contents.plan(self.command).items())
        self._start = self.journal.contents.starts + 1
        self._inside = False
        self._rounds: dict[tuple[str, int], int] = {}  # round by document, for documents with several calls

    @property
    def tasks(self) -> set[str]:
        """Tasks of the requests so far."""
        return {request.task for request, _ in self._planned}

    def wrap(self, lm: Any) -> Any:
        """Replace the model's methods by ones that answer from the journal first; return the same object."""
        for method in launch.MODEL_METHODS:
            original = getattr(lm, method, None)
            if callable(original):
                setattr(lm, method, functools.partial(self.answer, lm, method, original))
        return lm

    def answer(self, lm: Any, method: str, original: Callable[..., Any], requests: Sequence[Any]) -> list[Any]:
        """Return the responses to the requests of one call, in their order."""
        if self._inside:  # a model that calls itself
            return list(original(requests))
        self._inside = True
        try:
            return self._answer(lm, method, original, requests)
        finally:
            self._inside = False

    def _answer(self, lm: Any, method: str, original: Callable[..., Any], requests: Sequence[Any]) -> list[Any]:
        alone = evaluation.is_call_of_one_round()  # not every rank makes such calls
        described = self._describe(lm, method, requests, self._rounds if alone else {})
        together = not alone and launch.ranks_step_together(lm)
        share = self.share and not together and not launch.answers_by_place(lm)
        described = [replace(description, shared=share and description.shared) for description in described]
        padding = [launch.is_padding(request) for request in requests]
        plan = {
            description.request: description.shared
            for description, pad in zip(described, padding, strict=True)
            if not pad
        }
        across = share and not alone and launch.ranks() > 1
        owners = self._owners(plan) if across else {}
        asked: dict[str, int] = {}
        owned = []  # positions that this rank asks the model for
        for position, description in enumerate(described):
            if padding[position] and not together:
                continue
            if description.shared:
                if owners.get(description.request.content, launch.rank()) != launch.rank():
                    continue
                if asked.setdefault(description.request.content, position) != position:
                    continue
            owned.append(position)
        self._write_plan(plan)
        done = sum(self._known(described[position]) for position in owned)
        self.progress.planned, self.progress.answered = len(owned), done
        with (
            launch.quiet_bars(lm),
            tqdm(
                total=len(owned),
                initial=done,
                desc="Responses",
                unit="",
                dynamic_ncols=True,
                smoothing=0.05,
                disable=alone or not launch.is_main_process(),
            ) as bar,
        ):
            for block in batched(owned, self.size):
                missing = [position for position in block if not self._known(described[position])]
                wanted = launch.any_rank(bool(missing)) if together else bool(missing)
                if not wanted:
                    continue
                positions = block if together else missing
                found = self._generate(original, [requests[position] for position in positions], method)
                self._keep(method, described, positions, found, padding, bar)
        if across:
            self._exchange(plan, owners)
        return [
            self._padding(description, method) if pad else self._response(description)
            for description, pad in zip(described, padding, strict=True)
        ]

    def _describe(
        self, lm: Any, method: str, requests: Sequence[Any], seen: dict[tuple[str, int], int]
    ) -> list[Described]:
        contents = Contents(lambda task, split, document: lm.task_dict[task][split][document], method, self.seed, seen)
        quiet = not launch.is_main_process() or len(requests) < 2
        with tqdm(
            requests, desc="Reading requests", unit="", leave=False, dynamic_ncols=True, delay=1, disable=quiet
        ) as bar:
            return [contents.describe(instance) for instance in bar]

    def _padding(self, described: Described, method: str) -> Any:
        """Return a known response, or an empty one, for a request that only pads a batch."""
        known = self.answers.by_content.get(described.request.content)
        return ((0.0, False) if method == "loglikelihood" else "") if known is None else from_plain(known)

    def _known(self, described: Described) -> bool:
        return self.answers.has(described.request, shared=described.shared)

    def _response(self, described: Described) -> Any:
        known = self.answers if self._known(described) else self.failures
        return from_plain(known.of(described.request, shared=described.shared))

    def _generate(self, original: Callable[..., Any], requests: list[Any], method: str) -> list[Any]:
        responses = list(original(requests))
        if len(responses) != len(requests):
            raise RunError(
                f"the model returned {len(responses)} responses to {len(requests)} requests of {method}, so they cannot be told apart."
            )
        if launch.is_budget_exceeded():
            raise RunError(
                "the token budget of --max_tokens is used up, and the model returns placeholders, which are not kept. Start again with a larger one, or make results of what is there: lmms-eval-emi run --recover DIR"
            )
        return [to_plain(response) for response in responses]

    def _keep(
        self,
        method: str,
        described: Sequence[Described],
        positions: Sequence[int],
        found: Sequence[Any],
        padding: Sequence[bool],
        bar: tqdm[Any],
    ) -> None:
        new = []
        for position, response in zip(positions, found, strict=True):
            description = described[position]
            if padding[position] or self._known(description):
                continue
            if is_failed_request(text_of(response)):
                self.failures.add(description.request, response)
                self.progress.failed += 1
            else:
                new.append((description, response))
        if not new:
            return
        self.journal.append(
            {
                "kind": "block",
                "run": self.run,
                "method": method,
                "requests": [[*description.request, response] for description, response in new],
            }
        )
        for description, response in new:
            self.answers.add(description.request, response)
        self.progress.answered += len(new)
        bar.update(len(new))

    def _write_plan(self, plan: Mapping[Request, bool]) -> None:
        new = {request: shared for request, shared in plan.items() if (request, shared) not in self._planned}
        if new:
            self.journal.append(
                {
                    "kind": "plan",
                    "run": self.run,
                    "command": self.command,
                    "start": self._start,
                    "requests": [[*request, shared] for request, shared in new.items()],
                }
            )
            self._planned |= set(new.items())

    def _owners(self, plan: Mapping[Request, bool]) -> dict[str, int]:
        """Return the rank that asks for each content which several ranks need: the first of them."""
        owners: dict[str, int] = {}
        mine = sorted({request.content for request, shared in plan.items() if shared})
        for rank, contents in enumerate(launch.gather(mine)):
            for content in contents:
                owners.setdefault(content, rank)
        return owners

    def _exchange(self, plan: Mapping[Request, bool], owners: Mapping[str, int]) -> None:
        """Exchange responses between ranks, for contents that several of them need."""
        me = launch.rank()
        wanted = {request.content for request, shared in plan.items() if shared and owners[request.content] != me}
        asked = set().union(*launch.gather(sorted(wanted)))
        known = {**self.failures.by_content, **self.answers.by_content}
        mine = {content: known[content] for content in sorted(asked) if owners[content] == me}
        for given in launch.gather(mine):
            for content, response in given.items():
                kept = self.failures if is_failed_request(text_of(response)) else self.answers
                kept.by_content.setdefault(content, response)


def text_of(plain: Any) -> str:
    """Return the text of a response as :func:`to_plain` gives it; empty where it is none."""
    if isinstance(plain, dict):
        plain = next(iter(plain.values()))
        plain = plain[0] if isinstance(plain, list) and plain else plain
    return plain if isinstance(plain, str) else ""


def to_plain(response: Any) -> Any:  # noqa: PLR0911
    """Return a response as JSON: text unchanged, and anything else under the name of its kind.

    Raises:
        RunError: the type of the response cannot be stored.
    """
    found = launch.response_to_plain(response)
    if found is not None:
        return found
    if isinstance(response, str):
        return str(response)
    if hasattr(response, "item") and getattr(response, "size", None) in (1,):  # a scalar of numpy
        return to_plain(response.item())
    if response is None or isinstance(response, bool | int | float):
        return {"value": response}
    if isinstance(response, tuple):
        return {"tuple": [to_plain(item) for item in response]}
    if isinstance(response, list):
        return {"list": [to_plain(item) for item in response]}
    if isinstance(response, Mapping) and all(isinstance(key, str) for key in response):
        return {"mapping": {key: to_plain(value) for key, value in response.items()}}
    if hasattr(response, "item") and callable(getattr(response, "numel", None)) and response.numel() == 1:
        return to_plain(response.item())
    raise RunError(f"the model returned a {type(response).__name__}, which cannot be kept in a journal.")


def from_plain(found: Any) -> Any:
    """Return the response from its JSON form; the inverse of :func:`to_plain`."""
    if not isinstance(found, dict):
        return found
    ((kind, content),) = found.items()
    if kind == "value":
        return content
    if kind == "tuple":
        return tuple(from_plain(item) for item in content)
    if kind == "list":
        return [from_plain(item) for item in content]
    if kind == "mapping":
        return {key: from_plain(value) for key, value in content.items()}
    return launch.response_from_plain(kind, content)
