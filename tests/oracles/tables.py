"""Parts of a table for tests of what comes after its division."""

from __future__ import annotations

import numpy as np

from diffusion_privacy.data.records import random_order
from diffusion_privacy.data.tables import Table


def halves(table: Table, seed: int) -> tuple[Table, Table]:
    """Rows at random into two parts that differ in size by one at most; equal rows may part, unlike in a study."""
    order, count = random_order(len(table), seed), round(len(table) / 2)
    return table.take(np.sort(order[:count])), table.take(np.sort(order[count:]))
