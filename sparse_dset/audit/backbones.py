"""Which families of timm can be backbones, and what works with each: a small model per family."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from sparse_dset.benchmark.table import Table
from sparse_dset.config import build_from_config, compose_config
from sparse_dset.engine.loggers import append_row, read_rows
from sparse_dset.models.backbone import TimmBackbone
from sparse_dset.structures.geometry import pad_batch

_SMALL_NAMES = (
    *("test_", "atto", "femto", "pico", "nano", "xxtiny", "xtiny", "_xxs", "_050", "_035"),
    *("w18_small", "tiny", "_xs", "_t0", "_t1", "_t_", "_mini", "_small", "_s0", "_s1", "_s_"),
    *("b0", "_m0", "18", "_002", "_tn", "_s", "_t", "26", "34", "39", "b1", "50", "_base"),
)
_PLAIN = {
    "resnet (plain)": "resnet18",
    "efficientnet (lite)": "efficientnet_lite0",
    "efficientnet (mobilenetv2)": "mobilenetv2_035",
}
"""Models of convolutions and normalisations alone, where the small one of the family is not."""

_TOLERANCE = 1e-4


def families() -> dict[str, str]:
    """Returns a small model of each of timm's families, by family."""
    models = {family: timm.list_models(module=family) for family in timm.list_modules()}
    return {family: _smallest(names) for family, names in models.items() if names} | _PLAIN


def _smallest(names: Sequence[str]) -> str:
    for part in _SMALL_NAMES:
        fitting = [name for name in names if part in f"{name}_"]
        if fitting:
            return min(fitting, key=len)
    return names[0]


def check_all(path: str | Path, only: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Checks every family that a file of JSON lines does not hold yet, and returns all rows.

    Args:
        path: rows of this version of timm are kept, those of others are made again.
        only: these families; none: all.
    """
    path, version = Path(path), timm.__version__
    before = read_rows(path) if path.exists() else []
    rows = {row["family"]: row for row in before if row["timm"] == version}
    chosen = {f: name for f, name in families().items() if not only or f in only}
    for family, name in chosen.items():
        if family not in rows:
            rows[family] = {"family": family, "timm": version, **check_backbone(name)}
            append_row(path, rows[family])
            gc.collect()
    return [rows[family] for family in chosen]


@torch.no_grad()
def check_backbone(name: str) -> dict[str, Any]:
    """Checks what works with a model of timm, with random weights.

    Returns:
        ``name``, and either ``reason`` (it cannot be a backbone) or ``sizes`` of images, ``padded``
        (how a padded batch runs), ``early`` (whether the pruner may decide after stride 8) and
        ``fuse`` (what is folded); "fails: ..." marks what should work and does not.
    """
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            backbone = TimmBackbone(name).eval().requires_grad_(False)
        except ValueError as error:
            return {"name": name, "reason": str(error)}
        size = _own_size(backbone)
        return {
            "name": name,
            "sizes": "any" if size is None else f"not all; {size[0]}x{size[1]}",
            "padded": _attempt(lambda: _check_padded(backbone, size)),
            "early": _attempt(lambda: _check_early(name)),
            "fuse": _attempt(lambda: _check_fuse(backbone, size)),
        }


def _attempt(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:  # whatever it is, the table shows it
        return f"fails: {type(error).__name__}: {str(error).splitlines()[0]}"


def _own_size(backbone: TimmBackbone) -> tuple[int, int] | None:
    """Returns the one size that a backbone takes; None: any multiple of 32."""
    try:
        for size in ((64, 96), (160, 128), (256, 224)):
            backbone(torch.rand(1, 3, *size))
    except ValueError:
        return backbone.image_size
    return None


def _check_padded(backbone: TimmBackbone, size: tuple[int, int] | None) -> str:
    if size is not None:
        return "refused"
    image, batch = torch.rand(1, 3, 45, 83), torch.rand(2, 3, 128, 160)
    batch[:1, :, :45, :83] = image
    mask = torch.zeros(2, 128, 160, dtype=torch.bool)
    mask[0, 45:] = mask[0, :, 83:] = True
    alone, own = pad_batch(image, None)
    images, geometry = pad_batch(batch, mask)
    expected = backbone.extract(alone, range(4), own)
    found = backbone.extract(images, range(4), geometry)
    inside = [f[:1, :, : e.shape[2], : e.shape[3]] for f, e in zip(found, expected, strict=True)]
    _assert_equal(inside, expected)
    return "each image at its own size" if backbone.sees_padding else "together"


def _check_early(name: str) -> str:
    overrides = [f"model.backbone.name={name}", "model.backbone.frozen=[]", "pruner.stage=s3"]
    config = compose_config("detector", ["model=nano", "model.backbone.weights=null", *overrides])
    try:
        build_from_config(config, pretrained=False).check_decision()
    except ValueError:
        return "no"
    return "yes"


def _check_fuse(backbone: TimmBackbone, size: tuple[int, int] | None) -> str:
    images, before = torch.rand(2, 3, *(size or (96, 160))), _num_norms(backbone)
    expected = backbone(images)
    _assert_equal(backbone.fused()(images), expected)
    return f"{before - _num_norms(backbone)} of {before}" if before else "nothing to fold"


def _num_norms(backbone: TimmBackbone) -> int:
    return sum(hasattr(module, "running_mean") for module in backbone.modules())


def _assert_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        difference = float((ours - theirs).abs().max() / theirs.abs().max())
        if not difference <= _TOLERANCE:
            raise ValueError(f"outputs differ by {difference:.1e} of their range")


def format_rows(rows: Sequence[dict[str, Any]]) -> str:
    """Returns Markdown: a table of the families that can be backbones, and why others cannot."""
    working = [row for row in rows if "reason" not in row]
    header = ["family of timm", "checked with", "image sizes", "padded batches", "early decision"]
    table = Table(
        [*header, "batch norms folded"],
        [
            [row["family"], row["name"], row["sizes"], row["padded"], row["early"], row["fuse"]]
            for row in working
        ],
    )
    refused = [row for row in rows if "reason" in row]
    reasons = "\n".join(f"- {row['family']}: {row['reason']}" for row in refused)
    return (
        f"{len(working)} of {len(rows)} families of timm {timm.__version__} have stages at strides "
        f"4 to 32.\n\n{table.markdown()}\n\nThe others, each with what `TimmBackbone` says:\n\n"
        f"{reasons}\n"
    )
