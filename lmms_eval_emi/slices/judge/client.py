"""Asks a judge for the verdicts that are missing.

How a request is sent, and sent again, is in :mod:`lmms_eval_emi.util.endpoint`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from lmms_eval_emi.data.images import content_key
from lmms_eval_emi.errors import EndpointError, ImageError
from lmms_eval_emi.slices.judge.prompt import Case, read_scores, to_messages
from lmms_eval_emi.slices.judge.verdicts import Key, Tokens, Verdict, VerdictFile, opened, read_verdicts
from lmms_eval_emi.util.endpoint import ChatClient, Reply, RequestFailedError, RequestRefusedError
from lmms_eval_emi.util.files import threads

log = logging.getLogger("lmms_eval_emi")

TRIES = 3  # requests before an unreadable reply counts as missing
GRACE = 60.0  # seconds for requests that were sent before asking ends with an error
MOST_FAILURES = 10  # consecutive failures after which the command ends
CHARACTERS = 4  # approximate characters per token
REPLY_TOKENS = 150  # approximate tokens of a verdict with its explanation


@dataclass(frozen=True)
class Judge:
    """A judge model behind an endpoint."""

    base_url: str  # URL of an OpenAI-compatible endpoint, such as ``http://localhost:8000/v1``
    model: str  # its name there
    temperature: float = 0.2  # temperature of sampling; repeats need one above 0
    max_tokens: int = 1024  # largest number of tokens of a reply
    timeout: float = 120.0  # seconds for one request


@dataclass(frozen=True)
class VerdictRequest:
    """One verdict that is wanted."""

    key: Key
    question_id: str
    case: Case = field(repr=False)

    def digest(self, judge: Judge) -> str:
        """Return a hash of everything but chance that the reply depends on; the image counts by its content."""
        image = content_key(self.case.image) if self.case.image is not None else ""
        fields = {**vars(self.case), "image": image}
        content = [judge.model, judge.temperature, judge.max_tokens, self.key.order, fields]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True)
class VerdictPlan:
    """Verdicts that are wanted, and those that exist."""

    wanted: Sequence[VerdictRequest]  # all verdicts
    missing: Sequence[VerdictRequest]  # those that are to be asked for
    kept: Sequence[Verdict]  # those that are there

    def tokens(self) -> int:
        """Return the approximate number of tokens of the missing verdicts, without images."""
        total = 0
        for request in self.missing:
            case = request.case
            text = len(case.question) + len(case.reference) + len(case.response) + len(case.context) + 700
            total += math.ceil(text / CHARACTERS) + REPLY_TOKENS
        return total


def plan(
    wanted: Sequence[VerdictRequest], judge: Judge, path: Path | None, *, retry_missing: bool = False
) -> VerdictPlan:
    """Find out what is missing in a file.

    Args:
        wanted: all verdicts.
        judge: judge that the verdicts are of.
        path: path of the file, which need not be there; ``None``: everything is missing.
        retry_missing: ask again for verdicts that are recorded as missing.

    Raises:
        EndpointError: the file contains verdicts of other responses, questions or judges.
    """
    there = path is not None and path.exists() and path.stat().st_size
    known = {verdict.key: verdict for verdict in read_verdicts(path)} if path is not None and there else {}
    missing, kept, others = [], [], []
    for request in wanted:
        try:
            verdict, digest = known.get(request.key), request.digest(judge)
        except ImageError as error:
            raise EndpointError(f"split {request.key.split}, row {request.question_id}: {error}") from error
        if verdict is None:
            missing.append(request)
        elif verdict.request != digest:
            others.append(request)
        elif verdict.scores is None and retry_missing:
            missing.append(request)
        else:
            kept.append(verdict)
    if others:
        first = others[0].key
        raise EndpointError(
            f"{path}: {len(others)} of its verdicts are of another judge, prompt, response or context than asked for now, such as split {first.split}, row {others[0].question_id} of {first.model}. Name another file, or pass --overwrite to start over."
        )
    return VerdictPlan(wanted, missing, kept)


def ask(
    wanted: Sequence[VerdictRequest],
    judge: Judge,
    path: Path,
    *,
    retry_missing: bool = False,
    fresh: bool = False,
    concurrency: int = 8,
) -> list[Verdict]:
    """Ask for what is missing, a few at a time, and write each verdict as soon as it is there.

    Args:
        wanted: all verdicts.
        judge: judge to be asked.
        path: path of the file of verdicts, which no other process may be writing to.
        retry_missing: as in :func:`plan`.
        fresh: replace what is there, once the first new verdict has scores.
        concurrency: requests under way at once.

    Returns:
        All verdicts, in the order in which they were wanted.

    Raises:
        EndpointError: as in :func:`plan`; the endpoint refuses, does not answer, or answers nothing that can be read. What it has answered is
            in the file.
    """
    client = ChatClient(judge.base_url, judge.model, package_extra="judge", timeout=judge.timeout)
    with opened(path, fresh) as file:
        found = plan(wanted, judge, None if fresh else path, retry_missing=retry_missing)

        def work(request: VerdictRequest) -> Verdict | str:
            try:
                return _verdict(client, judge, request, file)
            except RequestFailedError as error:
                return f"split {request.key.split}, row {request.question_id}: {error}"

        outcomes = _Outcomes(len(found.missing))
        tokens = sum(sum(verdict.tokens) for verdict in found.kept)
        with tqdm(total=len(wanted), initial=len(found.kept), desc="Judging", unit="", dynamic_ncols=True) as bar:
            for outcome in _some_at_a_time(work, found.missing, concurrency):
                outcomes.add(outcome)
                if isinstance(outcome, Verdict):
                    tokens += sum(outcome.tokens)
                    bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
                    bar.update(1)
                if outcomes.useless or outcomes.failing:
                    break
        done = len(found.kept) + file.count
    if outcomes.useless and len(outcomes.new) < len(found.missing):
        reasons = Counter(verdict.missing for verdict in outcomes.new.values())
        kept = "Earlier verdicts stay as they are" if fresh else "They are recorded as missing; pass --retry-missing"
        raise EndpointError(
            f"The first {MOST_FAILURES} judge replies have no scores, mostly because {reasons.most_common(1)[0][0]}. Check --endpoint (which usually ends in /v1), --endpoint-model and --max-tokens. {kept}."
        )
    if outcomes.failures:
        raise EndpointError(
            f"{len(outcomes.failures)} requests failed, the last with: {outcomes.failures[-1]}\n{done} of {len(found.wanted)} verdicts are in {path}; the same command asks for the rest."
        )
    by_key = {verdict.key: verdict for verdict in found.kept} | outcomes.new
    return [by_key[request.key] for request in found.wanted]


class _Outcomes:
    """Verdicts and failures so far, and whether it is worth asking on.

    Args:
        count: number of requests.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.new: dict[Key, Verdict] = {}
        self.failures: list[str] = []
        self._failures_in_a_row = 0
        self._without_scores = 0  # no longer counted once a verdict has scores

    def add(self, outcome: Verdict | str) -> None:
        """Count a verdict, or the message of a failed request."""
        if isinstance(outcome, Verdict):
            self._failures_in_a_row = 0
            self.new[outcome.key] = outcome
            self._without_scores = self.count if outcome.scores else self._without_scores + 1
        else:
            self._failures_in_a_row += 1
            self.failures.append(outcome)

    @property
    def useless(self) -> bool:
        """Whether the first replies have no scores, as those of a wrong address."""
        return self._without_scores == MOST_FAILURES

    @property
    def failing(self) -> bool:
        """Whether too many requests failed one after another."""
        return self._failures_in_a_row >= MOST_FAILURES


def _verdict(client: ChatClient, judge: Judge, request: VerdictRequest, file: VerdictFile) -> Verdict:
    """Ask until a reply can be read, and keep the verdict."""
    messages = to_messages(request.case, request.key.order)
    reply, scores, missing, tokens = Reply(""), None, "", [0, 0]
    tries = 0
    while tries < TRIES and scores is None:
        tries += 1
        try:
            reply = client.ask(messages, temperature=judge.temperature, max_tokens=judge.max_tokens)
        except RequestRefusedError as error:
            missing = str(error)
            break
        tokens = [before + now for before, now in zip(tokens, reply.tokens, strict=True)]
        scores = read_scores(reply.text, request.key.order)
        missing = "" if scores else _why_unreadable(reply, tries)
    verdict = Verdict.of(
        request.key,
        request.question_id,
        scores,
        reply=reply.text or reply.raw,
        judge=judge.model,
        request=request.digest(judge),
        tries=tries,
        tokens=Tokens(*tokens),
        **({"missing": missing} if missing else {}),
    )
    file.append(verdict)
    return verdict


def _why_unreadable(reply: Reply, tries: int) -> str:
    if reply.finish_reason == "length":
        what = "it was cut off" if reply.text else "its thoughts took all tokens, and it was cut off"
        return f"its reply has no scores, for {what} (finish_reason length): raise --max-tokens"
    if reply.finish_reason == "content_filter":
        return "its reply was held back by the endpoint's content filter"
    return f"its reply does not begin with two scores of 1 to 10, in {tries} tries"


def _some_at_a_time(
    work: Callable[[VerdictRequest], Verdict | str], items: Sequence[VerdictRequest], concurrency: int
) -> Iterator[Verdict | str]:
    """Yield results as they arrive. On early exit, wait for requests that were sent; their replies are kept."""
    waiting = deque(items)
    stopped = threading.Event()

    def unless_stopped(request: VerdictRequest) -> Verdict | str:
        return "stopped" if stopped.is_set() else work(request)

    with threads(concurrency) as pool:
        running: set[Future[Verdict | str]] = set()
        try:
            while waiting or running:
                while waiting and len(running) < concurrency:
                    running.add(pool.submit(unless_stopped, waiting.popleft()))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except KeyboardInterrupt:
            stopped.set()
            log.warning("Waiting for %d requests that were sent; press Ctrl-C again to drop them.", len(running))
            wait(running)
            raise
        except BaseException:  # an endpoint that refuses, a full disk, or a caller that has had enough
            stopped.set()
            wait(running, timeout=GRACE)
            raise
