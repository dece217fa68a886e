"""Detects objects in pictures: ``python scripts/predict.py checkpoint=x.pt source=photo.jpg``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from sparse_dset import load_detector
from sparse_dset.benchmark.arms import check_run
from sparse_dset.checks import check_number
from sparse_dset.command_line import check_command_line, script, task_overrides
from sparse_dset.engine.claim import claimed
from sparse_dset.engine.outputs import job_folder
from sparse_dset.engine.prediction_files import PredictionFolder, find_pictures
from sparse_dset.engine.visualize import draw_detections


def _check(plain: dict[str, Any]) -> None:
    check_number("threshold", plain["threshold"], at_least=0, at_most=1)
    check_number("max_detections", plain["max_detections"], at_least=1, whole=True)
    if plain["max_pixels"] is not None:
        check_number("max_pixels", plain["max_pixels"], at_least=1, whole=True)
    check_run([plain["execution"]], plain["keep_ratio"])


@script("predict")
def main(cfg: DictConfig) -> None:
    """Writes one drawn picture and one JSON row per picture."""
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    output = job_folder(cfg.output_dir)
    source = find_pictures(cfg.source, recursive=cfg.recursive, output=cfg.output_dir)
    model = load_detector(cfg.checkpoint).to(device)
    options = {
        "threshold": cfg.threshold,
        "execution": cfg.execution,
        "keep_ratio": cfg.keep_ratio,
        "max_detections": cfg.max_detections,
    }
    reader = model.view.reader
    if cfg.max_pixels is not None:
        reader = replace(reader, max_pixels=cfg.max_pixels)
    with claimed(output):
        folder = PredictionFolder(output, source)
        for path in tqdm(source.pictures, desc="predict"):
            image = reader.read(path)
            (found,) = model.predict([image], **options)
            row = {
                "boxes": found["boxes"].tolist(),
                "scores": found["scores"].tolist(),
                "names": found["names"],
                "kept": found["kept"].float().mean().item(),
                "settings": {"checkpoint": cfg.checkpoint, **options},
                "overrides": task_overrides(),
            }
            folder.write(path, draw_detections(image, found, show_kept=cfg.show_kept), row)
    for sentence in source.left_out:
        print(f"not searched or taken, {sentence}")
    print(f"{len(source.pictures)} pictures -> {output}")


if __name__ == "__main__":
    check_command_line("predict", _check)
    main()
