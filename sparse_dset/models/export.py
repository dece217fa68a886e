"""The dense execution as an ONNX file, for other runtimes."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sparse_dset.checks import check_number, check_size
from sparse_dset.models.decoder.deformable_attention import MSDeformableAttention
from sparse_dset.models.detector import Detector
from sparse_dset.models.moe import MoEFeedForward
from sparse_dset.structures.geometry import STRIDES

OPSET = 17
"""The first one with layer normalisation."""


def export_onnx(
    detector: Detector,
    path: str | Path,
    *,
    size: Sequence[int] | None = None,
    batch_size: int = 1,
) -> None:
    """Writes the dense execution as ONNX, with normalisation and parallel branches folded.

    The file's input is ``images``, float32 ``[B, 3, H, W]`` in [0, 1], and its outputs are
    ``logits`` ``[B, Q, K]`` and ``boxes`` ``[B, Q, 4]``, as ``pred_logits`` and ``pred_boxes`` of
    ``DetectorOutput``. B, H and W are fixed: positions and anchors are constants in it.

    Args:
        detector: fused or not; it is left as it is.
        path: of the file.
        size: (height, width), multiples of 32; None: the detector's ``image_size``.
        batch_size: B.

    Raises:
        ValueError: a size that is no multiple of 32, or another precision than float32.
        ImportError: the package ``onnx`` is not installed.
        NotImplementedError: the detector has experts, each of which runs on the rows that are
            routed to it.
    """
    size = detector.image_size if size is None else size
    check_size("size", size)
    height, width = size
    check_number("batch_size", batch_size, at_least=1, whole=True)
    if height % STRIDES[-1] or width % STRIDES[-1]:
        raise ValueError(
            f"an exported detector runs images of one size in multiples of {STRIDES[-1]}, got "
            f"{height}x{width}: pad or resize to such a size, and give it as size=(height, width)"
        )
    if importlib.util.find_spec("onnx") is None:
        raise ImportError("export_onnx needs the package onnx: pip install onnx")
    dtype = next(detector.parameters()).dtype
    if dtype != torch.float32:
        raise ValueError(f"a detector is exported in float32, this one is {dtype}: call .float()")
    if any(isinstance(module, MoEFeedForward) for module in detector.modules()):
        raise NotImplementedError(
            "a detector with experts cannot be exported: each of them runs on as many rows as are "
            "routed to it; a model without them (r18, r34, r50, r101, lite0, nano) can"
        )
    network = _DenseNetwork(detector).eval()
    images = torch.rand(batch_size, 3, height, width)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # what is fixed is said above
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "Exporting aten::index", UserWarning)  # none is negative
        network(images)  # so that tables of whole grids are constants
        torch.onnx.export(
            network,
            (images,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits", "boxes"],
        )


class _DenseNetwork(nn.Module):
    """Images to logits and boxes, in operators that ONNX has: a copy of a detector on a CPU."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).cpu()
        if not self.detector.is_fused:
            self.detector.fuse()
        for module in self.detector.modules():
            if isinstance(module, MSDeformableAttention):
                module.lean = False  # grid sampling is what ONNX knows

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.detector.run_for_export(images)
        return out.pred_logits, out.pred_boxes
