"""What is done beside the steps of a training; a hook of one's own derives from ``Hook``."""

from sparse_dset.engine.hook import EpochResult, ForwardOptions, Hook, StepResult, Stop
from sparse_dset.engine.hooks.averaging import Averaging
from sparse_dset.engine.hooks.checkpoints import Checkpoints
from sparse_dset.engine.hooks.evaluation import Evaluation
from sparse_dset.engine.hooks.limits import Limits, Signals
from sparse_dset.engine.hooks.logging import ProgressBar, ResultRows, StepMeans, TensorBoard
from sparse_dset.engine.hooks.pruning import Pruning

__all__ = [
    "Averaging",
    "Checkpoints",
    "EpochResult",
    "Evaluation",
    "ForwardOptions",
    "Hook",
    "Limits",
    "ProgressBar",
    "Pruning",
    "ResultRows",
    "Signals",
    "StepMeans",
    "StepResult",
    "Stop",
    "TensorBoard",
]
