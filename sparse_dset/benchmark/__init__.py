"""Arms of the detector, timed in turns, and what they compute."""

from sparse_dset.benchmark.flops import count_flops

__all__ = ["count_flops"]
