"""R² of references predicted from responses, an estimator that needs no training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lmms_eval_emi.core.emi import Information
from lmms_eval_emi.core.reference_r2 import reference_r2, reference_r2_without
from lmms_eval_emi.estimators.base import Estimator


class ReferenceR2(Estimator):
    """R² of the references given the responses, on images left out.

    The score of a split is R² - 1: 0 at best, and about -1 where responses say nothing about the references. It moves
    little with style, and never sees the image: references are all that it knows of what is right.
    """

    kind = "reference-r2"
    unit = "share of variance"
    against = "reference"
    range = "0 at best, about -1 if unrelated, for EMI"

    def contributions(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) float64 values of references (N, D) and responses (N, D'), each row an image of its own.

        Raises:
            ValueError: the numbers of rows differ.
        """
        self.check_rows(x, y)
        return torch.from_numpy(reference_r2(_plain(y), _plain(x), np.arange(len(x)))).to(x.device)

    @torch.no_grad()
    def analyse_all(
        self, x: torch.Tensor, targets: Sequence[torch.Tensor], clusters: torch.Tensor, count: int
    ) -> list[Information]:
        """Return R² of the references given each of the targets, with its leave-one-image-out values.

        Args:
            x: (N, D) references.
            targets: responses, and the references themselves, whose R² is 1 by definition.
            clusters: (N,) number of each row's image, below ``count``.
            count: number of images.
        """
        found = []
        for y in targets:
            self.check_rows(x, y)
            if y is x:
                ones = torch.ones(len(x), dtype=torch.float64, device=x.device)
                deleted = torch.ones(count, dtype=torch.float64, device=x.device)
                found.append(Information(ones, ones - 1, deleted))
                continue
            arguments = _plain(y), _plain(x), clusters.cpu().numpy()
            values = torch.from_numpy(reference_r2(*arguments)).to(x.device)
            # R² is out of sample, so it has no bias that more images would take away. Its values without an image
            # are fits on fewer images and lower: centred, they give the error alone (docs/statistics.md).
            deleted = torch.from_numpy(reference_r2_without(*arguments, count)).to(x.device)
            deleted += values.mean() - deleted.nanmean()
            found.append(Information(values, values - values.mean(), deleted))
        return found


def _plain(rows: torch.Tensor) -> np.ndarray:
    return rows.detach().double().cpu().numpy()
