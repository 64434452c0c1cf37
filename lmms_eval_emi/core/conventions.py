"""Names and exponents of the conventions, and signatures, which name everything that a score depends on; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lmms_eval_emi.version import __version__

Convention = Literal["published", "equal_weight"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)

Adjustment = Literal["holm", "bh", "maxt", "none"]  # adjustment of p-values over a family; see core.jackknife

# The four divergences of the index, and the power of each in it (Oh et al., ICML 2025).
EXPONENTS = {"jsd_v": 0.5, "jsd_t": 0.5, "jsd_id_response": 0.25, "jsd_ood_response": 0.25}


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
