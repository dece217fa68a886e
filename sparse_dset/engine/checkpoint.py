"""Checkpoints that `torch.load` reads with its safe defaults, and that a crash cannot damage."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from sparse_dset.checks import check_has_values
from sparse_dset.config import build_from_config, with_pruner
from sparse_dset.data.view import View, recorded_view
from sparse_dset.engine.old_configs import in_present_form
from sparse_dset.files import atomic_write
from sparse_dset.models.detector import Detector
from sparse_dset.models.rtdetr_names import spread_to_experts
from sparse_dset.models.wrapped_names import without_wrappers
from sparse_dset.paths import expand_home

_SCALARS = (str, int, float, bool, type(None))


def save_checkpoint(
    path: str | Path,
    *,
    model_state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    **entries: Any,
) -> None:
    """Writes a checkpoint in one atomic step, see `atomic_write`.

    Args:
        path: the file to write; its folder is made when it is absent.
        model_state: the model's state dict, stored under ``model``.
        config: the resolved configuration, plain values only.
        entries: anything else to store (``ema``, ``optimizer``, ``step``, ``metrics``, ...).

    Raises:
        TypeError: a value other than str, int, float, bool, None, list, tuple, dict or tensor;
            the message shows where it stands.
        OSError: the disk is full or the like; see `atomic_write`.
    """
    content = {"model": dict(model_state), "config": dict(config), **entries}
    assert_plain(content)
    with atomic_write(expand_home(path)) as file:
        torch.save(content, file)


def load_checkpoint(path: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """Reads a checkpoint onto the CPU; weights stored in half precision come back as float32.

    Args:
        path: the file.
        trust: also unpickle arbitrary objects. Such a file can run any code: set this only for
            files whose origin you trust.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut short or not a checkpoint, or it holds objects that the safe
            loader refuses and ``trust`` is False.
    """
    content = _read(Path(expand_home(path)), trust)
    _check_entries(content, path)
    if content.get("config"):
        content["config"] = in_present_form(content["config"])
    if content.get("half") and content.get("model") is not None:
        content["model"] = {name: _widen(value) for name, value in content["model"].items()}
    return content


def _check_entries(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuses a checkpoint whose entries are not of the types that their names stand for."""
    for name in ("model", "ema", "config"):
        if not isinstance(content.get(name, {}), Mapping | NoneType):
            raise ValueError(
                f"{path}: the entry {name!r} must be a dict, got a {type(content[name]).__name__}"
            )
    if not isinstance(content.get("half", False), bool):
        raise ValueError(f"{path}: the entry 'half' must be true or false")
    states = {"model": content.get("model")}
    for name in ("model", "module"):
        states[f"ema.{name}"] = (content.get("ema") or {}).get(name)
    for where, state in states.items():
        if not isinstance(state, Mapping | NoneType):
            raise ValueError(f"{path}: {where} must be a dict, got a {type(state).__name__}")
        for name, value in (state or {}).items():
            if not isinstance(value, Tensor) or not isinstance(name, str):
                raise ValueError(
                    f"{path}: {where} must hold tensors by name, got a {type(value).__name__} "
                    f"under {name!r}"
                )
            check_has_values(f"{path}: {name!r} of {where}", value)


def replace_config(source: str | Path, destination: str | Path, config: Mapping[str, Any]) -> None:
    """Writes a checkpoint again with another configuration and everything else as it is.

    Args:
        source: a training checkpoint or exported weights.
        destination: the file to write; it may be the same.
        config: see `save_checkpoint`.
    """
    content = _read(Path(source), trust=False)
    entries = {k: v for k, v in content.items() if k not in ("model", "config")}
    save_checkpoint(destination, model_state=content["model"], config=config, **entries)


def _read(path: Path, trust: bool) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint at {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"the checkpoint {path} is empty")
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, or is no checkpoint, so the safe "
            "loader refuses it. If you trust where the file comes from, load it with trust=True "
            f"(it may run code) and save it again. The loader says: {error}"
        ) from error
    except Exception as error:  # the unpickler stumbles over other files in its own ways
        raise ValueError(
            f"{path} is no checkpoint, or it is damaged or cut short: {error!r}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of entries")
    return content


def weights_name(path: str | Path | None) -> str | None:
    """Returns a name for what a checkpoint holds: the same content, the same name.

    None where there is no such file.
    """
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


def detector_config(checkpoint: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Returns the configuration of the detector that a checkpoint holds.

    Args:
        checkpoint: what was read.
        path: where from, for messages.

    Raises:
        ValueError: it holds no detector of this project, or does not say which.
    """
    config = checkpoint.get("config") or {}
    if config.get("peer") is not None:
        raise ValueError(
            f"{path} holds the {config['peer']} network that was trained to compare with, no "
            "Detector"
        )
    if "model" not in config:
        raise ValueError(
            f"{path} does not say which model it holds (no config.model); build one with "
            "build_detector and fill it with load_weights"
        )
    model = config["model"]
    if not isinstance(model, Mapping) or not isinstance(model.get("pruner"), Mapping):
        raise ValueError(f"{path}: config.model must be a dict with a dict 'pruner', got {model!r}")
    return config


def model_weights(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to use from a checkpoint: the averaged (EMA) ones when it has them.

    Files of the released RT-DETRv2 hold theirs under ``ema.module``. Prefixes of wrappers
    (``torch.compile``, DDP) are taken out of the names.

    Raises:
        ValueError: the checkpoint is of another project: its entries are not ``model`` and
            perhaps ``ema``.
    """
    source = checkpoint.get("ema") or checkpoint
    for name in ("model", "module"):
        if source.get(name) is not None:
            return without_wrappers(source[name])
    raise ValueError(
        "the checkpoint has no 'model' entry (or its 'ema' entry has none), only "
        f"{sorted(map(str, source))[:8]}; is it of another project?"
    )


def load_detector(
    path: str | Path, *, trust: bool = False, pruner: Mapping[str, Any] | None = None
) -> Detector:
    """Builds the detector that a checkpoint describes, with its weights, ready to predict.

    See `read_detector`, which also returns the configuration.
    """
    return read_detector(path, trust=trust, pruner=pruner)[0]


def read_detector(
    path: str | Path, *, trust: bool = False, pruner: Mapping[str, Any] | None = None
) -> tuple[Detector, dict[str, Any]]:
    """Builds the detector that a checkpoint describes, with its weights, ready to predict.

    Args:
        path: a training checkpoint or exported weights; the averaged weights are taken.
        trust: see `load_checkpoint`.
        pruner: settings of its pruner to change, of those that need no training.

    Returns:
        The detector, and the configuration that describes it.

    Raises:
        FileNotFoundError, ValueError: see `load_checkpoint`; or the checkpoint lacks the
            configuration of its model.
        RuntimeError: the weights do not fit the configuration.
    """
    checkpoint = load_checkpoint(path, trust=trust)
    config = with_pruner(_with_view(detector_config(checkpoint, path), path), pruner or {})
    try:
        detector = build_from_config(config, pretrained=False)
    except Exception as error:  # what a damaged value does first is as various as the values
        raise ValueError(f"the configuration in {path} describes no detector: {error}") from error
    try:
        detector.load_state_dict(model_weights(checkpoint))
    except RuntimeError as error:
        raise RuntimeError(
            f"the weights in {path} do not fit its configuration: {error}"
        ) from error
    return detector.eval(), config


def _with_view(config: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Adds the view to the configuration of a checkpoint from before it held one."""
    model = config["model"]
    if model.get("view") is not None:
        return config
    recorded = recorded_view((config.get("data") or {}).get("val"))
    view = recorded or View(tuple(model.get("image_size", (640, 640))))
    warnings.warn(
        f"{path} does not say how pictures are to be seen; assumed, by its "
        f"{'validation data' if recorded else 'image_size'}: they are {view}. Where that is wrong, "
        "set model.view in its configuration; checkpoint.replace_config writes it",
        stacklevel=2,
    )
    size = list(view.size)
    return {**config, "model": {**model, "view": view.as_config(), "image_size": size}}


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did with each name.

    Attributes:
        loaded: names copied into the model.
        missing: names of the model that the state dict lacks (they keep their values).
        unexpected: names of the state dict that the model lacks.
        mismatched: name -> (shape in the file, shape in the model), not copied.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded"]
        lines += [
            f"  other shape: {name} {list(theirs)} in the file, {list(ours)} in the model"
            for name, (theirs, ours) in self.mismatched.items()
        ]
        lines += [f"  not in the file: {name}" for name in self.missing]
        lines += [f"  not in the model: {name}" for name in self.unexpected]
        return "\n".join(lines)


def load_weights(model: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Copies every tensor whose name and shape match, for fine-tuning from another model.

    Layers of another shape (the heads, with another number of classes) keep their own values
    and are listed in the report. Experts start as copies of a dense layer. Prefixes of wrappers
    (``torch.compile``, DDP) are taken out of the names.

    Raises:
        ValueError: not one tensor matches.
    """
    own = model.state_dict()
    state_dict = spread_to_experts(without_wrappers(state_dict, own), own)
    shared = [name for name in state_dict if name in own]
    mismatched = {
        name: (tuple(state_dict[name].shape), tuple(own[name].shape))
        for name in shared
        if state_dict[name].shape != own[name].shape
    }
    loaded = tuple(name for name in shared if name not in mismatched)
    if not loaded:
        raise ValueError(
            "none of the weights match the model: the file has names such as "
            f"{list(state_dict)[:3]}, the model {list(own)[:3]}"
        )
    model.load_state_dict({name: state_dict[name] for name in loaded}, strict=False)
    return LoadReport(
        loaded=loaded,
        missing=tuple(name for name in own if name not in state_dict),
        unexpected=tuple(name for name in state_dict if name not in own),
        mismatched=mismatched,
    )


def export_weights(source: str | Path, destination: str | Path, *, half: bool = True) -> None:
    """Writes the weights and the configuration of a training checkpoint, without its state.

    Args:
        source: a training checkpoint; its EMA weights are taken when it has them.
        destination: the file to write.
        half: store kernels and matrices in float16. Vectors (norms, biases) and tensors that
            float16 cannot hold stay float32. `load_checkpoint` gives float32 back.
    """
    checkpoint = load_checkpoint(source)
    weights = model_weights(checkpoint)
    save_checkpoint(
        destination,
        model_state={k: _narrow(v) for k, v in weights.items()} if half else weights,
        config=checkpoint.get("config", {}),
        metrics=checkpoint.get("metrics", {}),
        half=half,
    )


def assert_plain(value: Any, where: str = "checkpoint") -> None:
    """Checks that a value holds nothing but what the safe loader of `torch.load` accepts.

    Types are compared exactly: a NumPy float is a subclass of float, and refused on loading.

    Raises:
        TypeError: some other object; the message shows the path to it.
    """
    if type(value) is dict:
        for key, item in value.items():
            assert_plain(key, f"{where} key")
            assert_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for position, item in enumerate(value):
            assert_plain(item, f"{where}[{position}]")
    elif not isinstance(value, Tensor) and type(value) not in _SCALARS:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a checkpoint may "
            "hold str, int, float, bool, None, list, tuple, dict and tensors only"
        )


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype != torch.float32 or tensor.dim() < 2:
        return tensor
    half = tensor.half()
    return half if bool(half.isfinite().all()) else tensor


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float16 else tensor
