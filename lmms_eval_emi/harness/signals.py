"""Ending in time: a scheduler that sends SIGTERM gives seconds, whatever the process is doing."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEADLINE = 7.0  # seconds after a signal until the process ends all the same


class Stopped(BaseException):
    """A signal asked the process to end.

    Attributes:
        signal: its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number

    @property
    def status(self) -> int:
        """Exit status of a process that ends because of it."""
        return 128 + self.signal


@contextmanager
def stop_signals(last_words: Callable[[str], str], deadline: float = DEADLINE) -> Iterator[None]:
    """Raise :class:`Stopped` in the main thread for SIGINT and SIGTERM.

    Where the main thread does not come to it, such as in a long computation outside of Python, the process ends
    after ``deadline`` seconds with what ``last_words`` makes of the signal's name. So does a second signal, at once.

    Args:
        last_words: what to print to stderr then.
        deadline: deadline in seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped: list[int] = []
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def end(number: int) -> None:
        print(last_words(signal.Signals(number).name), file=sys.stderr, flush=True)
        os._exit(128 + number)

    def handle(number: int, _: object) -> None:
        if stopped:
            end(number)
        stopped.append(number)
        raise Stopped(number)

    def watch() -> None:  # woken by the C handler, while the main thread may be busy
        while True:
            try:
                received = reader.recv(1)
            except OSError:
                return
            if not received:
                return
            if received[0] in SIGNALS:
                timer = threading.Timer(deadline, end, (received[0],))
                timer.daemon = True
                timer.start()

    earlier = {number: signal.signal(number, handle) for number in SIGNALS}
    wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    active = [os.getpid()]

    def forget() -> None:  # a forked child shares the socket, and a signal to it is none to this process
        if active and active[0] != os.getpid():
            signal.set_wakeup_fd(-1)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)

    os.register_at_fork(after_in_child=forget)
    threading.Thread(target=watch, name="lmms_eval_emi-signals", daemon=True).start()
    try:
        yield
    finally:
        active.clear()
        signal.set_wakeup_fd(wakeup)
        for number, handler in earlier.items():
            signal.signal(number, handler)
        writer.close()
