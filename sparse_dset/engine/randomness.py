"""Random numbers that a resumed run continues exactly.

The order of the images depends on (seed, epoch) and the augmentation of an image on (seed,
epoch, index) alone, so neither the number of loader workers nor an interruption changes them.
What the model draws comes from the global generators, whose states go into the checkpoint.
"""
# ruff: noqa: NPY002  (augmentations may draw from the global generator, so it is seeded too)

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

Key = tuple[int, int]
"""(epoch, index of the image in the data set)."""


def seed_everything(seed: int) -> None:
    """Seeds the generators of Python, NumPy and PyTorch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_deterministic(wanted: bool) -> None:
    """Makes PyTorch choose deterministic algorithms, or raise where it has none; or no longer."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(wanted)


def rng_state() -> dict[str, Any]:
    """The states of all global generators as plain values and tensors."""
    version, internal, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "python": [version, list(internal), gauss],
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Takes the generators back to what `rng_state` saw."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = state["numpy"]
    key = numpy_state["key"].numpy().astype(np.uint32)
    np.random.set_state(
        ("MT19937", key, numpy_state["pos"], numpy_state["has_gauss"], numpy_state["gauss"])
    )
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def local_seed(*numbers: int) -> Iterator[None]:
    """Seeds the CPU generators from the numbers for the length of a ``with`` block."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """A data set asked by (epoch, index), whose augmentation depends on nothing else."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __getitem__(self, key: Key) -> Any:
        """The sample ``index`` with the augmentation of the epoch."""
        epoch, index = key
        with local_seed(self.seed, epoch, index):
            return self.dataset[index]


def epoch_batches(
    num_images: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> list[list[Key]]:
    """The batches of one process in one epoch, in a shuffled order.

    Images that do not fill a last batch sit out; the order of the next epoch is another. A data
    set smaller than one batch of all processes gives a single, smaller batch instead, equal in
    size for every process.

    Returns:
        Lists of (epoch, index), as many in every process.

    Raises:
        ValueError: there are no images, or the batch size is not positive.
    """
    if num_images < 1 or batch_size < 1:
        raise ValueError(
            f"training needs at least one image and one image per batch, got {num_images} images "
            f"and batch_size {batch_size}"
        )
    generator = torch.Generator().manual_seed(
        int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])
    )
    order = torch.randperm(num_images, generator=generator)
    together = batch_size * world_size
    if num_images >= together:
        used = num_images // together * together
    else:
        used = -(-num_images // world_size) * world_size
    own = order[torch.arange(used) % num_images][rank::world_size].tolist()
    return [
        [(epoch, index) for index in own[start : start + batch_size]]
        for start in range(0, len(own), batch_size)
    ]
