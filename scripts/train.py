"""Trains a detector: ``python scripts/train.py data=coco data.root=/path model=r18``.

Several GPUs: ``torchrun --nproc_per_node=4 scripts/train.py ...``. Continue: ``resume=true``.
Fine-tune: ``weights=/path/to/checkpoint.pt``.
"""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from sparse_dset.config import build_from_config, check_config
from sparse_dset.engine import distributed
from sparse_dset.engine.checkpoint import load_checkpoint, load_weights, model_weights
from sparse_dset.engine.train import Trainer, prepare


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Builds everything from the configuration and trains."""
    config = hydra.utils.instantiate(cfg.train)
    last = Path(config.output_dir) / "last.pt"
    resume = last if cfg.resume is True else cfg.resume
    if resume is None and last.exists():
        raise FileExistsError(
            f"{last} belongs to an earlier run; continue it with resume=true, or choose another "
            "train.output_dir"
        )
    with distributed.process_group(config.device) as device:
        prepare(config)
        train_set = hydra.utils.instantiate(cfg.data.train)
        val_set = hydra.utils.instantiate(cfg.data.val)
        # The data decides which classes there are.
        cfg.model.class_names = list(val_set.class_names)
        cfg.model.num_classes = len(val_set.class_names)
        record = check_config(cfg)
        model = build_from_config(record, pretrained=resume is None and cfg.weights is None)
        if cfg.weights is not None:
            print(load_weights(model, model_weights(load_checkpoint(cfg.weights))))
        trainer = Trainer(
            model,
            train_set,
            val_set,
            config=config,
            optim=hydra.utils.instantiate(cfg.optim),
            record=record,
            device=device,
        )
        if resume is not None:
            trainer.resume(resume)
        trainer.fit()


if __name__ == "__main__":
    main()
