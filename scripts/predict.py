"""Detects objects in pictures: ``python scripts/predict.py checkpoint=x.pt source=photo.jpg``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from sparse_dset import load_detector
from sparse_dset.analysis.benchmark import check_run
from sparse_dset.analysis.visualize import draw_detections
from sparse_dset.checks import check_number
from sparse_dset.command_line import check_command_line, script
from sparse_dset.data.images import ImageReader
from sparse_dset.engine.loggers import append_row

PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_pictures(source: Path) -> list[Path]:
    """Lists the pictures of a folder, or the one file.

    Raises:
        FileNotFoundError: nothing is there; the message names the path.
    """
    if source.is_file():
        return [source]
    found = sorted(p for p in source.glob("*") if p.suffix.lower() in PICTURES)
    if not found:
        raise FileNotFoundError(f"no pictures ({', '.join(sorted(PICTURES))}) at {source}")
    return found


def _check(plain: dict[str, Any]) -> None:
    check_number("threshold", plain["threshold"], at_least=0, at_most=1)
    check_run([plain["execution"]], plain["keep_ratio"])


@script("predict")
def main(cfg: DictConfig) -> None:
    """Writes one drawn picture and one JSON row per picture."""
    pictures = find_pictures(Path(cfg.source))
    device = cfg.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_detector(cfg.checkpoint).to(device)
    folder = Path(cfg.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() in {path.resolve().parent for path in pictures}:
        raise ValueError(f"output_dir={folder} holds the pictures themselves; choose another")
    for path in tqdm(pictures, desc="predict"):
        image = ImageReader().read(path)
        (found,) = model.predict(
            [image], cfg.threshold, execution=cfg.execution, keep_ratio=cfg.keep_ratio
        )
        drawn = draw_detections(image, found, show_kept=cfg.show_kept)
        drawn.save(folder / f"{path.name}.jpg", quality=92)
        row = {
            "file": str(path),
            "boxes": found["boxes"].tolist(),
            "scores": found["scores"].tolist(),
            "names": found["names"],
            "kept": found["kept"].float().mean().item(),
        }
        append_row(folder / "detections.jsonl", row)
    print(f"{len(pictures)} pictures -> {folder}")


if __name__ == "__main__":
    check_command_line("predict", _check)
    main()
