"""EMI, EMID and the RJSD shift index: how much a multimodal LLM loses when its inputs shift.

>>> import lmms_eval_emi
>>> lmms_eval_emi.rjsd([[1.0, 0.0]], [[1.0, 0.0]])
0.0
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lmms_eval_emi.errors import (
    EMIError,
    EndpointError,
    ImageError,
    InputError,
    OutputError,
    ResponsesError,
    ResultsError,
    RunError,
    SampleError,
    ShiftError,
    StudyError,
    UnavailableError,
)
from lmms_eval_emi.version import __version__

if TYPE_CHECKING:
    from lmms_eval_emi.core.divergence import EMIDBound, emid_bound, rjsd
    from lmms_eval_emi.core.embeddings import Embeddings
    from lmms_eval_emi.core.emi import EMI, EMID, emi, emid
    from lmms_eval_emi.data.rows import Sample
    from lmms_eval_emi.data.study import load_study
    from lmms_eval_emi.encoders import load_encoders
    from lmms_eval_emi.estimators import load_estimator
    from lmms_eval_emi.scoring.embed import embed_splits
    from lmms_eval_emi.scoring.pipeline import preflight, score
    from lmms_eval_emi.scoring.result import ScoringOptions, StudyResult, score_study
    from lmms_eval_emi.settings import load_settings

# Names by module, which is imported when one of them is first used, so that --help is answered without importing torch.
_LAZY = {
    "core.divergence": "EMIDBound emid_bound rjsd",
    "core.embeddings": "Embeddings",
    "core.emi": "EMI EMID emi emid",
    "data.rows": "Sample",
    "data.study": "load_study",
    "encoders": "load_encoders",
    "estimators": "load_estimator",
    "scoring.embed": "embed_splits",
    "scoring.pipeline": "preflight score",
    "scoring.result": "ScoringOptions StudyResult score_study",
    "settings": "load_settings",
}
_HOME = {name: module for module, names in _LAZY.items() for name in names.split()}

__all__ = [
    "EMI",
    "EMID",
    "EMIDBound",
    "EMIError",
    "Embeddings",
    "EndpointError",
    "ImageError",
    "InputError",
    "OutputError",
    "ResponsesError",
    "ResultsError",
    "RunError",
    "Sample",
    "SampleError",
    "ScoringOptions",
    "ShiftError",
    "StudyError",
    "StudyResult",
    "UnavailableError",
    "__version__",
    "embed_splits",
    "emi",
    "emid",
    "emid_bound",
    "load_encoders",
    "load_estimator",
    "load_settings",
    "load_study",
    "preflight",
    "rjsd",
    "score",
    "score_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
