"""Trains a detector: ``python scripts/train.py data=coco data.root=/path model=r18``.

Several GPUs: ``torchrun --nproc_per_node=4 scripts/train.py ...``. Continue: ``resume=true``, which
starts where nothing is there yet.
Fine-tune: ``weights=/path/to/checkpoint.pt``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor, nn

from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.config import build_from_config, check_config
from sparse_dset.data.coco import CocoDetection
from sparse_dset.data.transforms import Mosaic
from sparse_dset.data.view import View, view_of
from sparse_dset.engine import distributed
from sparse_dset.engine.checkpoint import (
    load_checkpoint,
    load_weights,
    model_weights,
    weights_name,
)
from sparse_dset.engine.claim import check_unclaimed, claimed
from sparse_dset.engine.datasets import open_dataset
from sparse_dset.engine.evaluate import num_queries, warn_of_crowded_images
from sparse_dset.engine.outputs import job_folder
from sparse_dset.engine.plan import check_plan, check_statistics, ever_prunes
from sparse_dset.engine.train import make_trainer, prepare
from sparse_dset.instantiate import instantiate


def _source(train_set: CocoDetection | Mosaic) -> CocoDetection:
    return train_set.dataset if isinstance(train_set, Mosaic) else train_set


def _class_names(train_set: CocoDetection | Mosaic, val_set: CocoDetection | None) -> list[str]:
    """The classes, which the data decides."""
    source = _source(train_set)
    if val_set is not None and source.class_names != val_set.class_names:
        raise ValueError(
            "training and validation must have the same categories, got "
            f"{source.class_names} in {source.annotations} and "
            f"{val_set.class_names} in {val_set.annotations}"
        )
    return list(source.class_names)


def _view(data: dict[str, Any], val_set: CocoDetection | None) -> View:
    """How the detector will see pictures: as its validation does, which the data decides."""
    if val_set is not None:
        return view_of(val_set)
    view = instantiate(data["view"]) if data.get("view") else View(data["size"])
    return replace(view, reader=instantiate(data["reader"])) if data.get("reader") else view


def _check_classes(plain: dict[str, Any], names: list[str]) -> None:
    """Refuses classes that were asked for on the command line and are not those of the data."""
    keys = {text.lstrip("+").split("=")[0] for text in task_overrides()}
    of_data = {"num_classes": len(names), "class_names": names}
    for key, value in of_data.items():
        if f"model.{key}" in keys and plain["model"][key] != value:
            raise ValueError(
                f"model.{key}={plain['model'][key]} is asked for, but the data set has "
                f"{len(names)} categories, {names}: leave it out, the data decides"
            )


def _build(
    record: dict[str, Any], pretrained: bool
) -> tuple[nn.Module, Callable[..., dict[str, Tensor]]]:
    """The network and its criterion."""
    if record["peer"] is None:
        detector = build_from_config(record, pretrained=pretrained)
        return detector, instantiate(record["losses"])
    from sparse_dset.benchmark.hugging_face import PeerDetector, peer_criterion

    model = record["model"]
    frozen = model["backbone"].get("frozen", ())
    return PeerDetector(model["num_classes"], pretrained, frozen), peer_criterion


def _start(plain: dict[str, Any], folder: Path) -> Path | None:
    """Returns the checkpoint to go on from; ``resume`` becomes null where there is none yet.

    Raises:
        FileExistsError: the folder holds another run.
    """
    last = folder / "last.pt"
    resume = last if plain["resume"] is True else Path(plain["resume"]) if plain["resume"] else None
    if plain["resume"] is True and not last.exists():
        print(f"{last} is not there yet: a new run")
        resume = plain["resume"] = None
        check_plan(plain)  # which allows less where nothing is resumed
    if last.exists() and (resume is None or resume.resolve() != last.resolve()):
        raise FileExistsError(
            f"{last} belongs to an earlier run; continue it with resume=true, or choose another "
            "train.output_dir"
        )
    return resume


def _open_data(data: dict[str, Any]) -> tuple[CocoDetection | Mosaic, CocoDetection | None]:
    """The training images and those to evaluate on, if there are any."""
    train_set = open_dataset(data["train"], "data.train")
    if data.get("val") is not None:
        return train_set, open_dataset(data["val"], "data.val")
    if distributed.is_main():
        print("data.val=null: nothing is evaluated; last.pt is the result, and there is no best.pt")
    return train_set, None


def _check(plain: dict[str, Any]) -> None:
    check_plan(plain)
    check_unclaimed(plain["train"]["output_dir"])


@script("train")
def main(cfg: DictConfig) -> None:
    """Builds everything from the configuration and trains."""
    plain = check_config(cfg)
    config = instantiate(plain["train"])
    config = replace(config, output_dir=str(job_folder(config.output_dir)))
    with distributed.process_group(config.device) as device, claimed(config.output_dir):
        resume = _start(plain, Path(config.output_dir))
        prepare(config, plain["ops"]["costs"])
        train_set, val_set = _open_data(plain["data"])
        names = _class_names(train_set, val_set)
        _check_classes(plain, names)
        plain["model"] |= {"class_names": names, "num_classes": len(names)}
        view = _view(plain["data"], val_set)
        plain["model"] |= {"view": view.as_config(), "image_size": list(view.size)}
        if config.execution is not None:  # what loads the checkpoint runs what was trained
            plain["model"]["execution"] = config.execution
        record = {**plain, "weights_name": weights_name(plain["weights"])}
        model, criterion = _build(record, pretrained=resume is None)
        if plain["weights"] is not None and resume is None:
            report = load_weights(model, model_weights(load_checkpoint(plain["weights"])))
            print(report)
            check_statistics(report, config)
        warn_of_crowded_images(_source(train_set), num_queries(model))
        warn_of_crowded_images(val_set, num_queries(model), config.max_detections)
        trainer = make_trainer(
            model,
            criterion,
            train_set,
            val_set,
            config=config,
            optim=instantiate(plain["optim"]),
            record=record,
            device=device,
            prunes=ever_prunes(model, config),
        )
        if resume is not None:
            trainer.resume(resume)
        trainer.fit()


if __name__ == "__main__":
    check_command_line("train", _check)
    main()
