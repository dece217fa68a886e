"""Evaluation: average precision, and the tokens that were really kept."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from sparse_dset.data.collate import Batch, collate
from sparse_dset.engine import distributed
from sparse_dset.engine.coco_evaluator import MAX_DETECTIONS, CocoEvaluator
from sparse_dset.engine.loading import init_worker, shown_batches
from sparse_dset.models.evaluation_mode import evaluation
from sparse_dset.models.postprocess import SELECTED, select_detections

Precision = Literal["off", "bf16", "fp16"]
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(amp: str) -> None:
    """Checks the name of a precision.

    Raises:
        ValueError: it is not "off", "bf16" or "fp16".
    """
    if amp not in ("off", *AMP_DTYPES):
        raise ValueError(f"amp must be one of off, {', '.join(AMP_DTYPES)}; got {amp!r}")


def evaluation_loader(dataset: Dataset, batch_size: int, *, num_workers: int = 0) -> DataLoader:
    """Loads this process's share of a data set in order, every image once over all processes."""
    images = len(dataset)  # type: ignore[arg-type]
    own = range(distributed.rank(), images, distributed.world_size())
    return DataLoader(
        Subset(dataset, own),
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        generator=torch.Generator().manual_seed(0),
    )


def evaluate(
    model: nn.Module,
    loader: DataLoader,
    dataset: Any,
    *,
    execution: str | None = None,
    keep_ratio: float | None = None,
    device: torch.device | str = "cpu",
    amp: Precision = "off",
    max_detections: int = MAX_DETECTIONS,
    progress: bool = True,
) -> dict[str, float]:
    """Runs a model over a data set and measures it.

    Every process of a distributed run calls this with its own loader; the detections are brought
    together, and an image counts once even when two processes saw it.

    Args:
        model: the detector; it is left in the mode it came in.
        loader: gives `Batch` values.
        dataset: the data set behind the loader, with the annotations.
        execution: how the model runs; None as it is configured.
        keep_ratio: target of the pruner; None as it is configured.
        device: where the model is.
        amp: precision of the forward pass.
        max_detections: see `CocoEvaluator`; a data set with more objects in an image is warned of.
        progress: show a progress bar.

    Returns:
        The numbers of `CocoEvaluator.summarize`, and ``kept_s3``, ``kept_s4``, ``kept_s5``: the
        share of the tokens that was kept on each level, counted and averaged over the images. The
        same in every process.

    Raises:
        RuntimeError: the loaders did not bring every image of the data set.
    """
    evaluator, shares = detect(
        model,
        loader,
        dataset,
        execution=execution,
        keep_ratio=keep_ratio,
        device=device,
        amp=amp,
        max_detections=max_detections,
        progress=progress,
    )
    return {**evaluator.summarize(), **shares}


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: DataLoader,
    dataset: Any,
    *,
    execution: str | None = None,
    keep_ratio: float | None = None,
    device: torch.device | str = "cpu",
    amp: Precision = "off",
    max_detections: int = MAX_DETECTIONS,
    progress: bool = True,
) -> tuple[CocoEvaluator, dict[str, float]]:
    """Runs a model over a data set.

    Args:
        model, loader, dataset, execution, keep_ratio, device, amp, max_detections, progress: see
            `evaluate`.

    Returns:
        What was found in all images, and the share of the tokens that was kept on each level.
    """
    check_precision(amp)
    evaluator = CocoEvaluator(dataset, max_detections)
    warn_of_crowded_images(dataset, num_queries(model), max_detections)
    device = torch.device(device)
    detections: dict[int, dict[str, Tensor]] = {}
    shares: dict[int, list[float]] = {}
    with evaluation(model) as network:
        shown = progress and distributed.is_main()
        for batch in shown_batches(loader, "evaluate", progress=shown):
            with torch.autocast(device.type, AMP_DTYPES.get(amp), enabled=amp != "off"):
                out = _forward(network, batch.to(device), execution, keep_ratio)
            ids = [target["image_id"] for target in batch.targets]
            sizes = [target["orig_size"] for target in batch.targets]
            found = select_detections(
                out.pred_logits,
                out.pred_boxes,
                sizes,
                # COCO's cap is of each class; RT-DETR's of all together is kept where it is higher.
                max(max_detections, SELECTED),
                out.query_mask,
            )
            for image_id, one in zip(ids, found, strict=True):
                detections[image_id] = {name: value.cpu() for name, value in one.items()}
            kept = (out.num_kept / out.num_tokens.clamp(min=1)).tolist()
            shares.update(zip(ids, kept, strict=True))
    for own in distributed.gather(detections):
        evaluator.update(own)
    return evaluator, _mean_shares(shares)


def num_queries(model: nn.Module) -> int | None:
    """Returns how many objects a model can tell in an image; None where nobody knows."""
    return getattr(getattr(model, "decoder", None), "num_queries", None)


def warn_of_crowded_images(
    dataset: Any, queries: int | None, max_detections: int | None = None
) -> None:
    """Warns of images that hold more objects than can be found, or than count.

    Args:
        dataset: with ``records``; others are not looked at.
        queries: of the model, see `num_queries`; None: not compared.
        max_detections: of the evaluation, see `CocoEvaluator`; None: not compared.
    """
    records = getattr(dataset, "records", None) or ()
    counts = [int((~record.crowd).sum()) for record in records]
    limits = (
        ("model.decoder.num_queries", queries, "a query finds one object, the rest is missed"),
        ("max_detections", max_detections, "what is beyond it in a class counts as missed"),
    )
    for name, limit, why in limits:
        crowded = [count for count in counts if limit is not None and count > limit]
        if crowded and distributed.is_main():
            warnings.warn(
                f"{getattr(dataset, 'annotations', dataset)}: {len(crowded)} of {len(counts)} "
                f"images hold more objects than {name}={limit} (the most: {max(crowded)}); {why}: "
                f"set {name}={max(crowded)} or more",
                stacklevel=1,
            )


def _forward(
    model: nn.Module, batch: Batch, execution: str | None, keep_ratio: float | None
) -> Any:
    return model(
        batch.images, padding_mask=batch.padding_mask, execution=execution, keep_ratio=keep_ratio
    )


def _mean_shares(shares: dict[int, list[float]]) -> dict[str, float]:
    """The mean over the images of all processes, each counted once."""
    everything = {k: v for own in distributed.gather(shares) for k, v in own.items()}
    if not everything:
        return {}
    means = torch.tensor(list(everything.values()), dtype=torch.float64).mean(0).tolist()
    return {f"kept_s{level}": share for level, share in enumerate(means, start=3)}
