"""The responses of a plain run of lmms-eval on the disk as they come in, rank by rank, until the run has saved them itself.

They lie in ``{output_path}/{run}.emi_parts/``, as samples files that ``score`` reads. The end of a run that got that
far writes all responses elsewhere, and removes them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from loguru import logger

from lmms_eval_emi.data.responses.lmms_eval import PARTS, samples_name
from lmms_eval_emi.harness.lmms_eval.compat import frames, launch, run_files
from lmms_eval_emi.settings import load_settings
from lmms_eval_emi.util.files import check_folder_writable

_needed = True


@contextmanager
def not_needed() -> Iterator[None]:
    """Disable partial response files inside the block, because a journal keeps the responses."""
    global _needed
    _needed = False
    try:
        yield
    finally:
        _needed = True


class PartialResponses:
    """The files of one run in this process.

    Args:
        args: the command line's namespace, as far as it is known when the run begins.
    """

    def __init__(self, args: object = None) -> None:
        self.folder: Path | None = None
        self._files: dict[str, IO[str]] = {}
        self._lock = threading.Lock()
        self._stamp = time.strftime("%Y%m%d_%H%M%S")
        self._failed = False
        if args is not None and launch.ranks() > 1 and launch.is_main_process():
            self._set_aside(args)

    def _set_aside(self, args: object) -> None:
        """Rename what an earlier run of this name has left, before the other ranks begin."""
        output = run_files.output_path(args)
        folder = output / f"{self._name()}{PARTS}" if output else None
        try:
            if folder is not None and folder.is_dir():
                folder.rename(folder.with_name(f"{self._stamp}-{os.getpid()}-earlier{PARTS}"))
        except OSError as error:
            self._failed = True
            logger.warning(
                f"{folder} of an earlier run cannot be set aside: {error}. Responses are saved at the end of the run."
            )

    def write(self, task: str, row: int, response: str) -> None:
        """Add a response. Never raises: what cannot be written costs no run."""
        if not _needed or self._failed:
            return
        with self._lock:
            try:
                file = self._files.get(task) or self._open(task)
                file.write(json.dumps({"doc_id": row, "filtered_resps": response}, ensure_ascii=False) + "\n")
                file.flush()
            except Exception as error:
                self._failed = True
                logger.warning(
                    f"Responses cannot be written as they come in: {error}. They are saved at the end of the run."
                )

    def _open(self, task: str) -> IO[str]:
        if self.folder is None:
            caller = frames.calling_task()
            self.folder = (
                writable_folder(run_files.arguments_of(caller.task) if caller else None) / f"{self._name()}{PARTS}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        name = samples_name(f"rank-{launch.rank():05d}", task)
        self._files[task] = (self.folder / name).open("a", encoding="utf-8")
        return self._files[task]

    def _name(self) -> str:
        """Return one name on all ranks, which share the address of their launcher and the number of their job."""
        if launch.ranks() == 1:
            return f"{self._stamp}-{os.getpid()}"
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        known = [value for name in names if (value := os.environ.get(name))]
        return "-".join(["ranks", *(re.sub(r"[^\w.]+", "_", value) for value in known)])

    def remove(self) -> None:
        """Remove the parts once all responses of the run are saved elsewhere."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            if self.folder is not None and launch.is_main_process():
                shutil.rmtree(self.folder, ignore_errors=True)


def writable_folder(args: object) -> Path:
    """Return the output folder of the run, or else the cache, or else a temporary folder."""
    output = run_files.output_path(args)
    for choose in (lambda: output, lambda: load_settings().cache / "runs"):
        try:
            folder = choose()  # type: ignore[no-untyped-call]
            if folder is None:
                continue
            check_folder_writable(folder)
            return folder
        except Exception as error:
            logger.error(f"The files of this run cannot be written where they belong: {error}")
    return Path(tempfile.mkdtemp(prefix="lmms_eval_emi-"))
