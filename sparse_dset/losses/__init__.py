"""The losses of training: matched queries, token scores, expert balance, dense supervision."""

from sparse_dset.losses.balance import load_balance_loss
from sparse_dset.losses.cass import CassLoss, cass_targets
from sparse_dset.losses.criterion import Criterion, make_criterion
from sparse_dset.losses.dense import DenseSupervision, task_aligned_assign
from sparse_dset.losses.matched import SetCriterion
from sparse_dset.losses.matcher import HungarianMatcher, Matches
from sparse_dset.structures.targets import PaddedTargets, pad_targets

__all__ = [
    "CassLoss",
    "Criterion",
    "DenseSupervision",
    "HungarianMatcher",
    "Matches",
    "PaddedTargets",
    "SetCriterion",
    "cass_targets",
    "load_balance_loss",
    "make_criterion",
    "pad_targets",
    "task_aligned_assign",
]
