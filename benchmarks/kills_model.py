"""A model of lmms-eval that writes down what it is asked, and answers by what it sees."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from lmms_eval.api.model import lmms
from tqdm import tqdm

SECONDS = 0.1  # that a response takes


class Noted(lmms):
    """Answers with words that follow from prompt and pixels; notes go to the file ``$NOTES``."""

    is_simple = True
    device = "cpu"

    def __init__(self, batch_size: int = 1, seconds: str = str(SECONDS), stuck_after: str = "0", **_: object) -> None:
        super().__init__()
        self.seconds, self.stuck_after = float(seconds), int(stuck_after)
        self.asked = 0

    def generate_until(self, requests):
        """One response after the other."""
        found = []
        for request in tqdm(requests, desc="Model Responding"):
            context, _, doc_to_visual, document, task, split = request.args
            pixels = b"".join(image.tobytes() for image in doc_to_visual(self.task_dict[task][split][document]))
            digest = hashlib.sha256(context.encode() + pixels).hexdigest()
            note(f"{task} {document}")
            time.sleep(self.seconds)
            self.asked += 1
            if self.asked == self.stuck_after:
                hashlib.pbkdf2_hmac("sha256", b"", b"", 40_000_000)  # many seconds outside of Python
            found.append(" ".join(("red", "blue", "circle", "star")[int(letter, 16) % 4] for letter in digest[:6]))
        return found

    def loglikelihood(self, requests):
        """Not asked for."""
        raise NotImplementedError

    def generate_until_multi_round(self, requests):
        """Not asked for."""
        raise NotImplementedError


def note(text: str) -> None:
    """Add a line to the notes, by one call."""
    path = os.environ.get("NOTES")
    if path:
        handle = os.open(Path(path), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, f"{text}\n".encode())
        os.close(handle)
