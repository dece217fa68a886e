from __future__ import annotations

import multiprocessing

import pytest
from torch.utils.data import DataLoader

from sparse_dset.engine.loading import batches_of, init_worker, shown_batches


def _loader(num_workers: int) -> DataLoader:
    data = list(range(64))
    return DataLoader(data, batch_size=2, num_workers=num_workers, worker_init_fn=init_worker)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_workers_end_whatever_happens(num_workers: int) -> None:
    def fail() -> None:
        with batches_of(_loader(num_workers)) as batches:
            assert next(batches).tolist() == [0, 1]
            raise RuntimeError("the reason")

    # What is raised holds on to the iterator, and so to its workers.
    with pytest.raises(RuntimeError, match="the reason") as raised:
        fail()
    assert raised.tb is not None
    assert not multiprocessing.active_children()


def test_every_batch_is_given() -> None:
    shown = shown_batches(_loader(1), "title", progress=False)
    assert sum(len(batch) for batch in shown) == 64
    assert not multiprocessing.active_children()
