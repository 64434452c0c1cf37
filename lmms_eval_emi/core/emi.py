"""EMI, the effective mutual information of a split, and EMID, its difference between two splits.

Source: Oh et al., *Understanding Multimodal LLMs Under Distribution Shifts*, ICML 2025
(arXiv 2502.00577). Their errors are those of :mod:`lmms_eval_emi.core.jackknife`: for new images,
given the encoders and the estimator.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch

from lmms_eval_emi.core.conventions import Signature
from lmms_eval_emi.core.embeddings import Embeddings, shared_encoders
from lmms_eval_emi.core.jackknife import HasUncertainty, Jackknife, combine, difference
from lmms_eval_emi.errors import InputError

MOST_CLUSTERS = 1000  # more are merged into as many blocks, whose jackknife estimates the same error
MOST_RECOMPUTED = 200  # the same for an estimator without a closed form


@runtime_checkable
class MutualInformationEstimator(Protocol):
    """Protocol of the estimators that :func:`emi` accepts.

    It may also have:

    - ``analyse(x, y, clusters, count)``, which gives :class:`Information` faster than recomputing the
      estimate without each cluster, and ``analyse_all(x, targets, clusters, count)``, the same of several targets
      of the same inputs;
    - ``bind(embeddings)``, which gives the estimator for the rows of a split, where it treats rows that it
      was trained on in a way of their own;
    - ``against = "reference"``, where it compares responses with references and not with inputs;
    - ``unit``, of its values, nats if it does not say.
    """

    @property
    def signature(self) -> str:
        """Name and hash of the estimator, as it stands in signatures."""
        ...

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 contributions in nats, whose mean is I(x; y), of inputs (N, D) and targets (N, D')."""
        ...


@dataclass(frozen=True, eq=False)
class Information:
    """An estimate of I(x; y), and what its error follows from.

    Attributes:
        contributions: (N,) float64, whose mean is the estimate.
        influence: (N,) float64 influence values psi, whose sum is 0: how much each row moves the estimate.
        deleted: (G,) float64, the estimate without each cluster.
        by_seed: the estimates of networks that differ in their seed alone, whose mean is the estimate; empty
            where there is one.
    """

    contributions: torch.Tensor
    influence: torch.Tensor
    deleted: torch.Tensor
    by_seed: tuple[float, ...] = ()

    @property
    def value(self) -> float:
        """The estimate."""
        return float(self.contributions.mean())


def information(
    estimator: MutualInformationEstimator, x: torch.Tensor, y: torch.Tensor, clusters: torch.Tensor, count: int
) -> Information:
    """Estimate I(x; y), with its leave-one-cluster-out values.

    Args:
        estimator: estimator of mutual information.
        x: (N, D) inputs.
        y: (N, D') targets.
        clusters: (N,) number of each row's cluster.
        count: G, the number of clusters.
    """
    analyse = getattr(estimator, "analyse", None)
    if analyse is not None:
        return analyse(x, y, clusters, count)
    contributions = estimator.contributions(x, y)
    n, value = len(contributions), contributions.mean()

    def without(rows: torch.Tensor) -> torch.Tensor:
        try:
            return estimator.contributions(x[rows], y[rows]).mean()
        except InputError:  # too few rows are left
            return torch.tensor(float("nan"), dtype=torch.float64)

    deleted = torch.stack([without(clusters != cluster) for cluster in range(count)])
    if n <= MOST_RECOMPUTED:
        numbers = torch.arange(n, device=x.device)
        rows = torch.stack([without(numbers != row) for row in range(n)]).to(contributions)
        influence = (n - 1) * (value - rows)
    else:
        influence = contributions
    return Information(contributions, influence - influence.mean(), deleted)


@dataclass(frozen=True, eq=False)
class EMI(HasUncertainty):
    """Effective mutual information of one split.

    In the estimator's unit: nats, which are nominal for an estimator whose variance is saturated, for that
    gives a covariance (docs/statistics.md); or a correlation, or a cosine.

    Attributes:
        value: I(x; response) - I(x; reference). Higher is better; 0 means that the responses tell as
            much about the inputs as the references do.
        mi_response: I(x; response).
        mi_reference: I(x; reference).
        contributions: (N,) float64, contribution of every sample; their mean is ``value``. A contribution
            depends on all rows; the value of a row is its ``influence``.
        n: number of samples.
        signature: what the score depends on.
        influence: (N,) float64 influence values psi; their sum is 0.
        jackknife: the score with its leave-one-image-out values.
        reference: I(x; reference) with its leave-one-image-out values. For CLUB it is the mean log-likelihood of
            references above that of other rows' references.
        by_seed: the scores of networks that differ in their seed alone; empty where there is one.
        unit: unit of the scores.
    """

    value: float
    mi_response: float
    mi_reference: float
    contributions: torch.Tensor = field(repr=False)
    n: int
    signature: Signature
    influence: torch.Tensor = field(repr=False)
    jackknife: Jackknife = field(repr=False)
    reference: Jackknife = field(repr=False)
    by_seed: tuple[float, ...] = ()
    unit: str = "nats"

    @property
    def estimator_stderr(self) -> float | None:
        """Standard error that comes from the networks' seeds; ``None`` for fewer than two of them."""
        return _spread(self.by_seed)

    @property
    def images(self) -> int:
        """Number of clusters: distinct images, or rows where no groups were given."""
        return sum(map(len, self.jackknife.strata))

    @property
    def design_effect(self) -> float | None:
        """Variance over images divided by that of as many independent rows; ``None`` for fewer than 8 images.

        Below 1, rows of one image err in different directions and are worth more than independent rows; above 1, less.
        """
        error, psi = self.stderr, self.influence.double()
        independent = float((psi**2).sum()) / (self.n * (self.n - 1)) if self.n > 1 else 0.0
        return error**2 / independent if error is not None and independent > 0 else None

    def __str__(self) -> str:
        return f"EMI = {self.value:.4g}{_error(self.jackknife)} {self.unit} (I(x; response) {self.mi_response:.4g} - I(x; reference) {self.mi_reference:.4g}, n = {self.n}, {self.images} images)\n{self.signature}"


@dataclass(frozen=True, eq=False)
class EMID(HasUncertainty):
    """Effective mutual information difference of a shift.

    Attributes:
        value: EMI(id) - EMI(ood). Positive: the model lost relevance under the shift, if the interval
            lies above 0.
        id: EMI of the in-distribution split.
        ood: EMI of the shifted split.
        signature: what the score depends on.
        paired: whether rows of the two splits match by id, so that their images are deleted together.
        jackknife: the score with its leave-one-image-out values.
        inputs, responses: the parts of a paired EMID that come from inputs that moved and from responses
            that changed; ``None`` where rows do not match one to one.
    """

    value: float
    id: EMI
    ood: EMI
    signature: Signature
    paired: bool
    jackknife: Jackknife = field(repr=False)
    inputs: Jackknife | None = field(default=None, repr=False)
    responses: Jackknife | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, id: EMI, ood: EMI, *, paired: bool, encoders: str | None, parts: tuple[Jackknife, Jackknife] | None = None
    ) -> EMID:
        """Return EMID from EMI of both splits; ``parts`` are those from inputs and from responses."""
        jackknife = emi_difference(id, ood, paired=paired)
        estimator = dict(id.signature.parts)["estimator"]
        signature = Signature.of("emid", encoders=encoders, estimator=estimator, n_id=id.n, n_ood=ood.n)
        return cls(jackknife.value, id, ood, signature, paired, jackknife, *(parts or ()))

    @property
    def p_value(self) -> float | None:
        """Two-sided p of no difference; ``None`` for fewer than 8 images."""
        return self.jackknife.p_value

    @property
    def estimator_stderr(self) -> float | None:
        """Standard error that comes from the networks' seeds; ``None`` for fewer than two of them."""
        return _spread([a - b for a, b in zip(self.id.by_seed, self.ood.by_seed, strict=True)])

    def __str__(self) -> str:
        kind = "paired" if self.paired else "unpaired"
        return f"EMID = {self.value:.4g}{_error(self.jackknife)} {self.id.unit}, {kind} (EMI(ID) {self.id.value:.4g} - EMI(OOD) {self.ood.value:.4g}, n = {self.id.n} and {self.ood.n})\n{self.signature}"


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _error(jackknife: Jackknife) -> str:
    return "" if jackknife.stderr is None else f" ± {jackknife.stderr:.2g}"


def emi(
    embeddings: Embeddings, estimator: MutualInformationEstimator, *, groups: Sequence[Hashable] | None = None
) -> EMI:
    """Return the effective mutual information EMI = I(x; response) - I(x; reference) of one split.

    Args:
        embeddings: the split, N samples.
        estimator: estimator of mutual information, such as :func:`lmms_eval_emi.load_estimator` gives.
        groups: (N,) cluster of each row for the standard error; default: those of the embeddings, or
            else every row by itself.

    Returns:
        :class:`EMI`, in nominal nats. It is unbounded in theory; published values are about -0.1 to 0.1.

    Raises:
        ValueError: the embeddings do not have the dimension that the estimator was trained on.
    """
    if not isinstance(embeddings, Embeddings):
        raise TypeError(f"embeddings: expected lmms_eval_emi.Embeddings, got {type(embeddings).__name__}.")
    if not isinstance(estimator, MutualInformationEstimator):
        raise TypeError(
            f"estimator: expected an estimator, as load_estimator('club-global') gives, got {type(estimator).__name__}."
        )
    keys = clusters_of(embeddings, groups)
    bound = _bound(estimator, embeddings)
    response, reference, jackknife, of_reference = _analyse(bound, embeddings.x, embeddings.y_hat, embeddings.y, keys)
    jackknife = jackknife.without_rounding(response.value, reference.value)
    return EMI(
        value=jackknife.value,
        mi_response=response.value,
        mi_reference=reference.value,
        contributions=response.contributions - reference.contributions,
        n=embeddings.n,
        signature=Signature.of("emi", encoders=embeddings.encoders, estimator=estimator.signature, n=embeddings.n),
        influence=response.influence - reference.influence,
        jackknife=jackknife,
        reference=of_reference,
        by_seed=tuple(a - b for a, b in zip(response.by_seed, reference.by_seed, strict=True)),
        unit=getattr(estimator, "unit", "nats"),
    )


def _bound(estimator: MutualInformationEstimator, embeddings: Embeddings) -> MutualInformationEstimator:
    """Return the estimator for the rows of a split."""
    bind = getattr(estimator, "bind", None)
    return estimator if bind is None else bind(embeddings)


def _analyse(
    estimator: MutualInformationEstimator,
    x: torch.Tensor,
    y_hat: torch.Tensor,
    y: torch.Tensor,
    keys: Sequence[Hashable],
) -> tuple[Information, Information, Jackknife, Jackknife]:
    """Return both informations of some rows, and the jackknives of their difference and of the references' over the keys' clusters."""
    if getattr(estimator, "against", "input") == "reference":
        x = y
    keys = merged_clusters(estimator, keys)
    distinct = sorted(set(keys), key=str)
    number = {key: position for position, key in enumerate(distinct)}
    clusters = torch.tensor([number[key] for key in keys], device=x.device)
    analyse_all = getattr(estimator, "analyse_all", None)
    if analyse_all is not None:
        response, reference = analyse_all(x, (y_hat, y), clusters, len(distinct))
    else:
        response, reference = (information(estimator, x, targets, clusters, len(distinct)) for targets in (y_hat, y))

    without_each = (response.deleted - reference.deleted).tolist()
    return (
        response,
        reference,
        Jackknife.of(response.value - reference.value, distinct, without_each),
        Jackknife.of(reference.value, distinct, reference.deleted.tolist()),
    )


def merged_clusters(estimator: MutualInformationEstimator, keys: Sequence[Hashable]) -> Sequence[Hashable]:
    """Return the clusters of rows, merged into blocks where there are more than an estimator leaves out one by one."""
    return into_blocks(keys, MOST_CLUSTERS if hasattr(estimator, "analyse") else MOST_RECOMPUTED)


def into_blocks(keys: Sequence[Hashable], most: int) -> Sequence[Hashable]:
    """Return the clusters of rows, merged into at most ``most`` blocks by their hash where there are more."""
    return keys if len(set(keys)) <= most else [f"block {cluster_hash(key) % most}" for key in keys]


def cluster_hash(key: Hashable) -> int:
    """Return 64 bits of a cluster's key, the same in every process."""
    return int.from_bytes(hashlib.blake2b(str(key).encode(), digest_size=8).digest(), "big")


def clusters_of(embeddings: Embeddings, groups: Sequence[Hashable] | None = None) -> list[Hashable]:
    """Return the key of each row's cluster: its group, or else its id, or else its number."""
    given = groups if groups is not None else embeddings.groups if embeddings.groups is not None else embeddings.ids
    return list(given) if given is not None else [("row", row) for row in range(embeddings.n)]


def shared_clusters(id: Embeddings, ood: Embeddings) -> list[Hashable] | None:
    """Return the clusters of a shift's rows, partners in the same cluster as in the ID split; ``None`` without partners.

    The image of a shifted row is another file than that of its partner, so it is the partner's that counts.
    """
    if id.ids is None or ood.ids is None:
        return None
    image_of = dict(zip(id.ids, clusters_of(id), strict=True))
    clusters = clusters_of(ood)
    if not any(key in image_of for key in ood.ids):
        return None
    return [image_of.get(key, cluster) for key, cluster in zip(ood.ids, clusters, strict=True)]


def emid(id: Embeddings, ood: Embeddings, estimator: MutualInformationEstimator) -> EMID:
    """Return the effective mutual information difference EMID = EMI(id) - EMI(ood) of a shift.

    Args:
        id: the in-distribution split.
        ood: the shifted split; it may have another number of samples. Where its ``ids`` are those of
            ``id``, its rows are partners of theirs.
        estimator: the same for both.

    Returns:
        :class:`EMID`, in nominal nats; positive when the model lost relevance under the shift.

    Raises:
        ValueError: as :func:`emi`, or the two splits were embedded by different encoders.
    """
    shared_encoders(id, ood)
    return emid_from_emi(emi(id, estimator), id, ood, estimator)


def emid_from_emi(
    id_emi: EMI,
    id: Embeddings,
    ood: Embeddings,
    estimator: MutualInformationEstimator,
    ood_emi: EMI | None = None,
) -> EMID:
    """Return EMID where EMI of the ID split is known already, and perhaps that of the other; see :func:`emid`.

    EMI of the other has to be clustered by :func:`shared_clusters`.
    """
    encoders = shared_encoders(id, ood)
    groups = shared_clusters(id, ood)
    ood_emi = ood_emi or emi(ood, estimator, groups=groups)
    parts = _decompose(id_emi, ood_emi, id, ood, estimator) if groups is not None else None
    return EMID.of(id_emi, ood_emi, paired=groups is not None, encoders=encoders, parts=parts)


def emi_difference(first: EMI, second: EMI, *, paired: bool) -> Jackknife:
    """Return EMI of a split less that of another, with its leave-one-image-out values.

    Args:
        first: EMI of one split.
        second: EMI of the other split.
        paired: whether images of the same key are one image, which is left out of both splits at once.
    """
    # Clusters of unrelated splits are different, whatever their keys.
    of_second = second.jackknife if paired else second.jackknife.of_another_sample()
    terms = (first.mi_response, first.mi_reference, second.mi_response, second.mi_reference)
    return difference(first.jackknife, of_second).without_rounding(*terms)


def of_other_images(embeddings: Embeddings) -> Embeddings | None:
    """Return the same rows with the responses to the next image, in the order of the rows; ``None`` for a single image.

    What EMI loses by that is the scale of an EMID: a shift cannot take more from responses than all that they have to
    do with their own image.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters_of(embeddings)):
        rows_of.setdefault(cluster, []).append(row)
    images = list(rows_of.values())
    if len(images) < 2:
        return None
    source = [0] * embeddings.n
    for image, other in zip(images, [*images[1:], images[0]], strict=True):
        for place, row in enumerate(image):
            source[row] = other[place % len(other)]
    return replace(embeddings, y_hat=embeddings.y_hat[torch.tensor(source, device=embeddings.y_hat.device)])


def _decompose(
    id_emi: EMI, ood_emi: EMI, id: Embeddings, ood: Embeddings, estimator: MutualInformationEstimator
) -> tuple[Jackknife, Jackknife] | None:
    """Return the parts of EMID that come from the inputs and from the responses, averaged over both orders (Shapley).

    With E(a, b) the EMI of the inputs of a and the responses and references of b,

        inputs    = [ E(P, P) - E(Q, P) + E(P, Q) - E(Q, Q) ] / 2
        responses = [ E(P, P) - E(P, Q) + E(Q, P) - E(Q, Q) ] / 2
    """
    if id.ids is None or ood.ids is None:
        return None
    position = {key: row for row, key in enumerate(ood.ids)}
    if len(position) != ood.n or len(set(id.ids)) != id.n or set(position) != set(id.ids):
        return None
    if (id.v is None) != (ood.v is None) or id.dimension != ood.dimension:
        return None
    order = [position[key] for key in id.ids]
    partner = ood if order == list(range(ood.n)) else ood.select(order)
    keys = clusters_of(id)
    estimator = _bound(estimator, id)  # both sides of a pair are of one row
    if getattr(estimator, "against", "input") == "reference":  # inputs play no part
        moved, changed = id_emi.jackknife, ood_emi.jackknife
    else:
        moved = _analyse(estimator, partner.x, id.y_hat, id.y, keys)[2]
        changed = _analyse(estimator, id.x, partner.y_hat, partner.y, keys)[2]
    mixed = (id_emi.jackknife, moved, changed, ood_emi.jackknife)
    return (
        combine(lambda e: (e[0] - e[1] + e[2] - e[3]) / 2, mixed),
        combine(lambda e: (e[0] - e[2] + e[1] - e[3]) / 2, mixed),
    )
