"""The rows under windows, laid out in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def window_rows(features: Tensor, table: Tensor) -> Tensor:
    """Returns the row under each tap, zero where there is no site: ``[N_out * taps, C]``.

    Args:
        features: ``[N, C]``.
        table: int32 ``[N_out, taps]``, the row of ``features`` under each tap, -1 = no site.
    """
    padded = torch.cat([features, features.new_zeros(1, features.shape[1])])
    return padded.index_select(0, tap_rows(features, table))


def tap_rows(features: Tensor, table: Tensor) -> Tensor:
    """Returns the row under each tap; that of a tap without a site is one behind the last."""
    return torch.where(table < 0, features.shape[0], table).flatten()
