"""An ordered record of everything that changes a score, printed with it.

Each component of a computation (encoders, estimator, convention, ...) contributes its own part;
defaults are resolved, and the version of this package comes last, as in sacrebleu.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmms_eval_emi.version import __version__


@dataclass(frozen=True)
class Signature:
    """Ordered ``key:value`` pairs. ``str(signature)`` joins them with ``|`` and appends the version.

    >>> str(Signature.of("emi", estimator="club", n=90)).rsplit("|", 1)[0]
    'emi|estimator:club|n:90'
    """

    metric: str
    parts: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, metric: str, **parts: object) -> Signature:
        """Build a signature; parts whose value is ``None`` are written as ``unknown``."""
        return cls(metric, tuple((key, "unknown" if value is None else str(value)) for key, value in parts.items()))

    def __str__(self) -> str:
        body = "|".join(f"{key}:{value}" for key, value in self.parts)
        return "|".join(part for part in (self.metric, body, f"version:{__version__}") if part)
