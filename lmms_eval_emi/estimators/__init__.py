"""Estimators of mutual information and dependence: a kind a file, and the registry that finds them."""

from lmms_eval_emi.errors import UnavailableError
from lmms_eval_emi.estimators.base import Estimator, TrainedEstimator
from lmms_eval_emi.estimators.club import CLUB
from lmms_eval_emi.estimators.club_free import FreeCLUB
from lmms_eval_emi.estimators.crossfit import CrossFitted
from lmms_eval_emi.estimators.dependence import (
    HSIC,
    DistanceCorrelation,
    ReferenceDistanceCorrelation,
    ReferenceHSIC,
)
from lmms_eval_emi.estimators.infonce import InfoNCE
from lmms_eval_emi.estimators.ksg import KSG
from lmms_eval_emi.estimators.references import Cosine, ReferenceR2
from lmms_eval_emi.estimators.registry import (
    TEXT_ONLY,
    EstimatorEntry,
    check_encoders,
    check_signatures,
    load_estimator,
    place_of_encoder,
    registered_estimators,
)

__all__ = [
    "CLUB",
    "HSIC",
    "KSG",
    "TEXT_ONLY",
    "Cosine",
    "CrossFitted",
    "DistanceCorrelation",
    "Estimator",
    "EstimatorEntry",
    "FreeCLUB",
    "InfoNCE",
    "ReferenceDistanceCorrelation",
    "ReferenceHSIC",
    "ReferenceR2",
    "TrainedEstimator",
    "UnavailableError",
    "check_encoders",
    "check_signatures",
    "load_estimator",
    "place_of_encoder",
    "registered_estimators",
]
