"""Opens the data sets of a configuration, and says which key is to be changed where it cannot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from sparse_dset.instantiate import instantiate

_HOW_TO_GIVE = {
    "data.train": "give data.root=, or data.train.root= and data.train.annotations=",
    "data.val": (
        "give data.root=, or data.val.root= and data.val.annotations= (data.val=null trains "
        "without validation)"
    ),
}


def open_dataset(settings: Mapping[str, Any], key: str) -> Any:
    """Opens a data set.

    Args:
        settings: what ``key`` of the configuration holds.
        key: "data.train" or "data.val".

    Raises:
        FileNotFoundError: the annotations or the images are not there.
        ValueError: it has no images, or whatever else its class finds.
    """
    try:
        dataset = instantiate(settings)
    except FileNotFoundError as error:
        what = error.filename or error
        raise FileNotFoundError(f"{key}: {what} is not there; {_HOW_TO_GIVE[key]}") from error
    if not len(dataset):
        raise ValueError(f"{key} has no images; {_HOW_TO_GIVE[key]}")
    records = getattr(dataset, "records", None)
    if key == "data.val" and records and all(r.crowd.all() for r in records):
        warnings.warn(f"{key} has no boxes: AP is n/a, and no checkpoint is the best", stacklevel=2)
    return dataset
