"""Other libraries that run the same convolution or the same dense network on a CPU.

Each one is optional: ``pip install .[peers]``.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparse_dset.models.decoder.deformable_attention import MSDeformableAttention
from sparse_dset.models.detector import Detector


def installed(package: str) -> bool:
    """Tells whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


class NcnnConvolution:
    """ncnn's convolution 3x3 with padding 1 and without bias, in float32.

    Args:
        weight: ``[C_out, C_in, 3, 3]``.
        threads: of ncnn.

    Raises:
        ImportError: ncnn is not installed.
    """

    def __init__(self, weight: Tensor, threads: int) -> None:
        import ncnn

        self._ncnn = ncnn
        self._net = ncnn.Net()
        self._net.opt.num_threads = threads
        for half in ("fp16_storage", "fp16_arithmetic", "fp16_packed", "bf16_storage"):
            setattr(self._net.opt, f"use_{half}", False)
        self._net.opt.use_winograd_convolution = True
        with tempfile.TemporaryDirectory() as folder:
            graph, values = Path(folder, "net.param"), Path(folder, "net.bin")
            graph.write_text(
                "7767517\n2 2\nInput in 0 1 in\n"
                f"Convolution conv 1 1 in out 0={weight.shape[0]} 1=3 4=1 5=0 6={weight.numel()}\n"
            )
            values.write_bytes(bytes(4) + weight.detach().numpy().astype(np.float32).tobytes())
            self._net.load_param(str(graph))
            self._net.load_model(str(values))

    def prepare(self, x: Tensor) -> Any:
        """Turns a map ``[1, C_in, H, W]`` into ncnn's kind of input."""
        values = x[0].contiguous().numpy()  # named: a Mat made of an array does not keep it alive
        return self._ncnn.Mat(values).clone()

    def __call__(self, prepared: Any) -> Any:
        """Returns ncnn's kind of output; ``as_tensor`` turns it into a map."""
        extractor = self._net.create_extractor()
        extractor.input("in", prepared)
        _, out = extractor.extract("out")
        return out

    @staticmethod
    def as_tensor(out: Any) -> Tensor:
        """Returns an output as ``[1, C_out, H, W]``."""
        return torch.from_numpy(np.array(out)).unsqueeze(0)


def cross_attentions(detector: Detector) -> list[MSDeformableAttention]:
    """Returns the deformable attention of each decoder layer."""
    modules = detector.decoder.decoder.modules()
    return [module for module in modules if isinstance(module, MSDeformableAttention)]


def onnxruntime_network(path: Path, threads: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns an exported network as ONNX Runtime runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = session.run(None, {"images": images.numpy()})
        return torch.from_numpy(logits), torch.from_numpy(boxes)

    return run


def openvino_network(path: Path, threads: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Returns an exported network as OpenVINO runs it, in float32."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        result = compiled([images.numpy()])
        return torch.from_numpy(result[0]), torch.from_numpy(result[1])

    return run


RUNTIMES = (
    ("ONNX Runtime", "onnxruntime", onnxruntime_network),
    ("OpenVINO", "openvino", openvino_network),
)
"""Title, package, and what runs an exported network."""

PEERS = frozenset(
    {
        *("Hugging Face", "Hugging Face eager", "Hugging Face compiled"),
        *(title for title, _, _ in RUNTIMES),
        *("oneDNN dense", "oneDNN dense nchw", "oneDNN dense nhwc", "value_proj + grid_sample"),
        *("spconv Native", "ncnn dense"),
    }
)
"""Arms that other libraries compute."""
