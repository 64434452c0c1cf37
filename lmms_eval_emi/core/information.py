"""EMI, the effective mutual information of a split, and EMID, its difference between two splits.

Source: Oh et al., *Understanding Multimodal LLMs Under Distribution Shifts*, ICML 2025
(arXiv 2502.00577).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch

from lmms_eval_emi.core.embeddings import Embeddings, shared_encoders
from lmms_eval_emi.core.signature import Signature


@runtime_checkable
class MutualInformationEstimator(Protocol):
    """What :func:`emi` asks of an estimator."""

    @property
    def signature(self) -> str:
        """Name and hash of the estimator, as it stands in signatures."""
        ...

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """(N,) float64 contributions in nats, whose mean is I(x; y), of inputs (N, D) and targets (N, D')."""
        ...


@dataclass(frozen=True, eq=False)
class EMI:
    """Effective mutual information of one split, in nats.

    Attributes:
        value: I(x; response) - I(x; reference). Higher is better; 0 means that the responses tell as
            much about the inputs as the references do.
        mi_response: I(x; response).
        mi_reference: I(x; reference).
        contributions: (N,) float64, contribution of every sample; their mean is ``value``.
        n: number of samples.
        signature: what the figure depends on.
    """

    value: float
    mi_response: float
    mi_reference: float
    contributions: torch.Tensor = field(repr=False)
    n: int
    signature: Signature

    def __str__(self) -> str:
        return f"EMI = {self.value:.4g} nats (I(x; response) {self.mi_response:.4g} - I(x; reference) {self.mi_reference:.4g}, n = {self.n})\n{self.signature}"


@dataclass(frozen=True, eq=False)
class EMID:
    """Effective mutual information difference of a shift, in nats.

    Attributes:
        value: EMI(id) - EMI(ood). Positive: the model lost relevance under the shift.
        id: EMI of the in-distribution split.
        ood: EMI of the shifted split.
        signature: what the figure depends on.
    """

    value: float
    id: EMI
    ood: EMI
    signature: Signature

    def __str__(self) -> str:
        return f"EMID = {self.value:.4g} nats (EMI(ID) {self.id.value:.4g} - EMI(OOD) {self.ood.value:.4g}, n = {self.id.n} and {self.ood.n})\n{self.signature}"


def emi(embeddings: Embeddings, estimator: MutualInformationEstimator) -> EMI:
    """Effective mutual information EMI = I(x; response) - I(x; reference) of one split.

    Args:
        embeddings: the split, N samples.
        estimator: of mutual information, such as :func:`lmms_eval_emi.load_estimator` gives.

    Returns:
        :class:`EMI`, in nats. It is unbounded in theory; published values are about -0.1 to 0.1.

    Raises:
        ValueError: the embeddings do not have the dimension that the estimator was trained on.
    """
    if not isinstance(embeddings, Embeddings):
        raise TypeError(f"embeddings: expected lmms_eval_emi.Embeddings, got {type(embeddings).__name__}.")
    if not isinstance(estimator, MutualInformationEstimator):
        raise TypeError(
            f"estimator: expected an estimator, as load_estimator('club-global') gives, got {type(estimator).__name__}."
        )
    x = embeddings.x
    response = estimator.contributions(x, embeddings.y_hat)
    reference = estimator.contributions(x, embeddings.y)
    mi_response, mi_reference = float(response.mean()), float(reference.mean())
    return EMI(
        value=mi_response - mi_reference,
        mi_response=mi_response,
        mi_reference=mi_reference,
        contributions=response - reference,
        n=embeddings.n,
        signature=Signature.of("emi", encoders=embeddings.encoders, estimator=estimator.signature, n=embeddings.n),
    )


def emid(id: Embeddings, ood: Embeddings, estimator: MutualInformationEstimator) -> EMID:
    """Effective mutual information difference EMID = EMI(id) - EMI(ood) of a shift.

    Args:
        id: the in-distribution split.
        ood: the shifted split; it may have another number of samples.
        estimator: the same for both.

    Returns:
        :class:`EMID`, in nats; positive when the model lost relevance under the shift.

    Raises:
        ValueError: as :func:`emi`, or the two splits were embedded by different encoders.
    """
    encoders = shared_encoders(id, ood)
    return emid_from_emis(emi(id, estimator), emi(ood, estimator), encoders=encoders, estimator=estimator)


def emid_from_emis(id: EMI, ood: EMI, *, encoders: str | None, estimator: MutualInformationEstimator) -> EMID:
    """EMID of two splits whose EMI is known already; see :func:`emid`."""
    signature = Signature.of("emid", encoders=encoders, estimator=estimator.signature, n_id=id.n, n_ood=ood.n)
    return EMID(value=id.value - ood.value, id=id, ood=ood, signature=signature)
