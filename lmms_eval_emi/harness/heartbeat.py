"""Detect ranks that died, as opposed to slow ones, so that a dead rank ends the run instead of hanging it.

A launcher with an elastic agent ends the other ranks itself. Without one (srun, or ranks that were started by hand)
they wait in a collective for hours. So every rank leaves a sign of life in the run's folder and watches the others'.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVAL = 1.0  # seconds between two signs of life
STALL = 10.0  # seconds between two looks, after which nobody's silence counts
SILENCE = 45.0  # seconds without one from another machine, after which a rank counts as dead
LENGTH = 1024  # bytes of a sign
RUNNING, DONE, FAILED = "running", "done", "failed"


@dataclass
class _Peer:
    """State of another rank: its last sign, and when it changed by this process's own clock."""

    sign: dict[str, Any] = field(default_factory=dict)
    changed: float | None = None  # None until it was seen alive by this process


class Heartbeat:
    """Signs of life of all ranks of a run.

    Args:
        folder: where signs are left, which all ranks share.
        rank: rank of this process.
        ranks: how many there are.
        lost: called once, in a thread, with a sentence about a rank that died or failed.
        silence: seconds without a sign after which a rank of another machine counts as dead.
    """

    def __init__(
        self, folder: Path, rank: int, ranks: int, lost: Callable[[str], None], silence: float = SILENCE
    ) -> None:
        self.folder, self.rank, self.ranks, self.lost, self.silence = folder, rank, ranks, lost, silence
        self._beat = 0
        self._stop = threading.Event()
        self._peers = {other: _Peer(self._read(other)) for other in range(ranks) if other != rank}
        self._thread = threading.Thread(target=self._watch, name="lmms_eval_emi-ranks", daemon=True)
        if ranks > 1:
            self._sign(RUNNING)
            self._thread.start()

    def finish(self, failure: str = "") -> None:
        """Leave the last sign: that this rank is done, or why it failed."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(self.silence)  # no sign of life may follow the last one
        if self.ranks > 1:
            self._sign(FAILED if failure else DONE, failure)

    def _path(self, rank: int) -> Path:
        return self.folder / f"rank-{rank:05d}.alive"

    def _sign(self, state: str, message: str = "") -> None:
        self._beat += 1
        sign = {"host": HOST, "launch": _launch(), "pid": os.getpid(), "beat": self._beat, "state": state}
        sign["message"] = message.encode("ascii", "replace").decode()[: LENGTH // 2]
        # In place, for readers on a network file system see a changed file sooner than a new one of its name.
        text = json.dumps(sign).encode("ascii")[:LENGTH].ljust(LENGTH)
        try:
            handle = os.open(self._path(self.rank), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(handle, text, 0)
            finally:
                os.close(handle)
        except OSError:  # a full disk is the journal's to tell
            return

    def _read(self, rank: int) -> dict[str, Any]:
        try:
            sign = json.loads(self._path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return sign if isinstance(sign, dict) else {}

    def _watch(self) -> None:
        latest = time.monotonic()
        while not self._stop.wait(INTERVAL):
            self._sign(RUNNING)
            if time.monotonic() - latest > STALL:  # the file system or the machine stood still, for the others too
                for peer in self._peers.values():
                    peer.changed = None if peer.changed is None else time.monotonic()
            latest = time.monotonic()
            for other, peer in self._peers.items():
                reason = self._judge(peer, self._read(other))
                if reason and not self._stop.is_set():
                    self._stop.set()
                    self.lost(f"rank {other} of {self.ranks} {reason}")
                    return

    def _judge(self, peer: _Peer, sign: dict[str, Any]) -> str | None:
        """Return why a rank counts as dead, or ``None``.

        Ages are measured with the monotonic clock of this process, so clocks that differ between machines do not matter.
        """
        now = time.monotonic()
        if sign and sign != peer.sign:
            peer.sign, peer.changed = sign, now
        if peer.changed is None and peer.sign and peer.sign.get("launch") == _launch() != "":
            peer.changed = now  # file of this launch that existed before the first check
        if peer.changed is None or peer.sign.get("state") == DONE:  # not seen yet, or what an earlier run left
            return None
        if peer.sign.get("state") == FAILED:
            return f"failed: {peer.sign.get('message') or 'see its own messages'}"
        if peer.sign.get("host") == HOST:
            return None if _lives(peer.sign.get("pid")) else "has died"
        if now - peer.changed > self.silence:
            return f"has given no sign of life for {self.silence:g} seconds"
        return None


def _host() -> str:
    """Return a name of this machine that changes with its boot and its process namespace, in which process IDs are unique."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(str(read(Path(path))).strip())
        except OSError:
            continue
    return " ".join(parts)


HOST = _host()


def _launch() -> str:
    """Return an identity of this launch of the ranks from the scheduler's variables; empty without a scheduler."""
    job, step = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_STEP_ID", "")
    return f"{job}.{step}" if job and step else ""


def _lives(pid: Any) -> bool:
    """Return whether a process of this machine exists, and is no zombie."""
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in ("Z", "X")
