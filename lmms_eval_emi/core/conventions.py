"""Names and exponents of the conventions, for whoever needs them without the mathematics behind them."""

from __future__ import annotations

from typing import Literal, get_args

Convention = Literal["published", "equal_weight"]
CONVENTIONS: tuple[str, ...] = get_args(Convention)

Adjustment = Literal["holm", "bh", "maxt", "none"]  # adjustment of p-values over a family; see core.multiple

# The four divergences of the index, and the power of each in it (Oh et al., ICML 2025).
EXPONENTS = {"jsd_v": 0.5, "jsd_t": 0.5, "jsd_id_response": 0.25, "jsd_ood_response": 0.25}
