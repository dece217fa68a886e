"""Where the compute goes, by closed form, by count and by the clock."""

from sparse_dset.audit.closed_form import closed_form_flops

__all__ = ["closed_form_flops"]
