"""Estimators of mutual information: a network and its maths a file, and the registry that finds them."""

from lmms_eval_emi.estimators.club import CLUB
from lmms_eval_emi.estimators.infonce import InfoNCE
from lmms_eval_emi.estimators.ksg import KSG
from lmms_eval_emi.estimators.registry import (
    TEXT_ONLY,
    Estimator,
    EstimatorEntry,
    EstimatorUnavailable,
    check_encoders,
    load_estimator,
    registered_estimators,
)

__all__ = [
    "CLUB",
    "KSG",
    "TEXT_ONLY",
    "Estimator",
    "EstimatorEntry",
    "EstimatorUnavailable",
    "InfoNCE",
    "check_encoders",
    "load_estimator",
    "registered_estimators",
]
