"""What the detector costs and what it sees."""

from sparse_dset.analysis.closed_form import closed_form_flops
from sparse_dset.analysis.flops import count_flops

__all__ = ["closed_form_flops", "count_flops"]
