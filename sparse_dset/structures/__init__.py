"""The values that flow through the network after the pruning decision."""

from sparse_dset.structures.grid import enlarged, map_to_rows, rows_to_map
from sparse_dset.structures.masked_map import MaskedMap
from sparse_dset.structures.sparse_map import SparseMap
from sparse_dset.structures.support import Support, check_nested

__all__ = [
    "MaskedMap",
    "SparseMap",
    "Support",
    "check_nested",
    "enlarged",
    "map_to_rows",
    "rows_to_map",
]
