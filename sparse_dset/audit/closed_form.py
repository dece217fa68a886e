"""The FLOPs of a forward pass as arithmetic from a configuration and the kept tokens.

Nothing runs and no code is shared with the counter, so that each can check the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparse_dset.models.executions import Execution, find_execution

_RESNET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}

_LITE0_STAGES = (  # kernel, stride, expansion, channels, blocks: Tan & Le, "EfficientNet", 2019
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


def closed_form_flops(
    config: Mapping[str, Any],
    kept: Sequence[Tensor],
    execution: str,
    *,
    valid: Sequence[Tensor] | None = None,
    forced: bool = False,
) -> dict[str, float]:
    """Computes what ``count_flops`` counts.

    Attention pads to the fullest image: in a pruned encoder every image has as many places as the
    one that keeps most tokens, in the decoder as many queries as the one that has most tokens (but
    not more than ``num_queries``). Feed-forward layers run on real tokens and queries only.

    Args:
        config: a composed configuration with the key ``model``.
        kept: bool ``[B, H_l, W_l]`` per level, finest first, as ``DetectorOutput.kept`` holds it:
            all valid cells where the execution prunes nothing. Without padding where
            ``pruner.stage`` is s2: nothing is said of stride 4 here.
        execution: its name.
        valid: bool ``[B, H_l, W_l]``, the cells that are not padding; None: all.
        forced: the tokens were forced, so the scorer did not run.

    Returns:
        GFLOPs of the whole batch under the keys of ``count_flops``.

    Raises:
        ValueError: an unknown execution, or a backbone whose arithmetic is not written down here.
    """
    run = find_execution(execution)
    model = config["model"]
    batch, height, width = (int(n) for n in kept[-1].shape)
    valid = [torch.ones_like(mask) for mask in kept] if valid is None else valid
    pruned = _pruned_levels(model, run)
    before = [_Level(mask, i in pruned) for i, mask in enumerate(kept)]
    after = [_Level(mask, False) for mask in valid] if run.refills else before

    made, read = _backbone_levels(model["pruner"]["stage"], kept, run)
    backbone, channels = _backbone(model["backbone"], made, read)
    scored = run.prunes and not forced
    pruner = batch * height * width * _scorer(model["pruner"], channels) if scored else 0
    decoder, sampling = _decoder(model["decoder"], model["num_classes"], after)
    flops = {
        "backbone": backbone,
        "pruner": pruner,
        "encoder": pruner + _encoder(model["encoder"], channels[1:], before),
        "neck": _neck(model["encoder"], after),
        "decoder": decoder,
    }
    flops["total"] = sum(flops[name] for name in ("backbone", "encoder", "neck", "decoder"))
    flops["sampling"] = sampling
    return {name: count / 1e9 for name, count in flops.items()}


def _pruned_levels(model: Mapping[str, Any], execution: Execution) -> Collection[int]:
    """Returns the levels whose maps hold kept tokens only when they enter the encoder."""
    if not (execution.counts_kept_sites or execution.refills):
        return ()
    names = ("s3", "s4", "s5")
    return execution.pruned_levels([names.index(n) for n in model["pruner"]["scatter_levels"]])


@dataclass(frozen=True)
class _Level:
    """A level's tokens: bool ``[B, H, W]``; ``sparse`` maps hold rows for these alone."""

    tokens: Tensor
    sparse: bool

    def rows(self) -> int:
        return int(self.tokens.sum()) if self.sparse else self.tokens.numel()

    def per_image(self) -> list[int]:
        return self.tokens.flatten(1).sum(1).tolist()

    def taps(self, source: _Level, stride: int, size: int = 3) -> int:
        """Counts what windows around the rows see in ``source``, with "same" padding."""
        if not self.sparse:
            return size**2 * self.rows()
        _, height, width = self.tokens.shape
        padded = F.pad(source.tokens, (size // 2,) * 4)
        return sum(
            int((seen & self.tokens).sum())
            for y in range(size)
            for x in range(size)
            for seen in [
                padded[:, y : y + stride * height : stride, x : x + stride * width : stride]
            ]
        )


def _linear(rows: int, *widths: int) -> int:
    """A chain of linear layers or 1x1 convolutions through these widths."""
    return sum(2 * rows * a * b for a, b in pairwise(widths))


def _attention(batch: int, length: int, width: int) -> int:
    """Query, key, value and output projections; scores and weighted sums of all pairs."""
    return 4 * _linear(batch * length, width, width) + 4 * batch * length**2 * width


def _feed_forward(rows: int, width: int, hidden: int, moe: Mapping[str, Any] | None) -> int:
    one = _linear(rows, width, hidden, width)
    if moe is None:
        return one
    return _linear(rows, width, moe["num_experts"]) + moe["top_k"] * one


def _backbone_levels(
    stage: str, kept: Sequence[Tensor], execution: Execution
) -> tuple[list[_Level], list[_Level]]:
    """Returns the backbone's four maps as they are made and as the next stage reads them."""
    finest = kept[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    masks, last_early = [finest, *kept], ("s2", "s3", "s4", "s5").index(stage)
    pruned = execution.counts_kept_sites and last_early < 3
    made = [_Level(mask, pruned and i > last_early) for i, mask in enumerate(masks)]
    read = [_Level(mask, pruned and i >= last_early) for i, mask in enumerate(masks)]
    return made, read


def _backbone(
    backbone: Mapping[str, Any], made: Sequence[_Level], read: Sequence[_Level]
) -> tuple[int, list[int]]:
    """Returns the FLOPs and the channels of the four maps."""
    if backbone.get("depth") in _RESNET_BLOCKS:
        return _resnet(backbone["depth"], made, read)
    if backbone.get("name") == "efficientnet_lite0":
        return _lite0(made, read), [24, 40, 112, 320]
    raise ValueError(
        f"there is no closed form for backbone {dict(backbone)}; there are ResNet-vd of depth "
        f"{', '.join(map(str, _RESNET_BLOCKS))} and efficientnet_lite0"
    )


def _resnet(depth: int, made: Sequence[_Level], read: Sequence[_Level]) -> tuple[int, list[int]]:
    bottleneck = depth >= 50
    flops = 2 * 4 * made[0].tokens.numel() * 9 * (3 * 32 + 32 * 32 + 32 * 64)
    inputs, outputs = 64, []
    for stage, blocks in enumerate(_RESNET_BLOCKS[depth]):
        level, hidden = made[stage], 64 * 2**stage
        out = 4 * hidden if bottleneck else hidden
        for block in range(blocks):
            strided = block == 0 and stage > 0
            source, stride = (read[stage - 1], 2) if strided else (level, 1)
            if block == 0:
                flops += _linear(level.rows(), inputs, out)  # the shortcut, after its pooling
            if bottleneck:
                flops += _linear(source.rows(), inputs, hidden) + _linear(level.rows(), hidden, out)
                flops += 2 * level.taps(source, stride) * hidden**2
            else:
                flops += 2 * level.taps(source, stride) * inputs * out
                flops += 2 * level.taps(level, 1) * out**2
            inputs = out
        outputs.append(out)
    return flops, outputs


def _lite0(made: Sequence[_Level], read: Sequence[_Level]) -> int:
    stride2 = made[0].tokens.repeat_interleave(2, 1).repeat_interleave(2, 2)
    level, reading, position, inputs = _Level(stride2, False), _Level(stride2, False), -1, 32
    flops = 2 * level.rows() * 9 * 3 * inputs
    for kernel, first_stride, expansion, out, blocks in _LITE0_STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            hidden, source = inputs * expansion, level if stride == 1 else reading
            if expansion > 1:
                flops += _linear(source.rows(), inputs, hidden)
            if stride == 2:
                position += 1
                level, reading = made[position], read[position]
            flops += 2 * level.taps(source, stride, kernel) * hidden  # depthwise, then projection
            flops += _linear(level.rows(), hidden, out)
            inputs = out
    return flops


def _scorer(pruner: Mapping[str, Any], channels: Sequence[int]) -> int:
    """All that is computed for one stride-32 cell: small convolutions before the pooling, if there
    are any, and an MLP for the mean and maximum within the cells of every level that decides."""
    if pruner["score_by"] != "learned":
        return 0
    names = ("s2", "s3", "s4", "s5")
    last_early = names.index(pruner["stage"])
    default = names[1:] if last_early == 3 else names[: last_early + 1]
    levels = pruner["levels"] or default
    seen = {name: c for c, name in zip(channels, names, strict=True) if name in levels}
    hidden, context, local = pruner["hidden"], pruner["context"], pruner["local"]
    looking = 0
    if local:
        for name, width in seen.items():
            sites = (8 >> names.index(name)) ** 2
            looking += sites * (_linear(1, width, local) + 2 * (2 * 9 * local**2))
            seen[name] = local
    mixing = 2 * context**2 * hidden**2 if context > 1 else 0
    cells = sum((8 >> names.index(name)) ** 2 for name in names[names.index(pruner["finest"]) :])
    return looking + cells * (_linear(1, 2 * sum(seen.values()), hidden, 1) + mixing)


def _encoder(encoder: Mapping[str, Any], channels: Sequence[int], levels: Sequence[_Level]) -> int:
    width, coarsest = encoder["width"], levels[-1]
    batch, *grid = coarsest.tokens.shape
    per_image = coarsest.per_image()
    length = max(1, *per_image) if coarsest.sparse else grid[0] * grid[1]
    layer = _attention(batch, length, width)
    layer += _feed_forward(sum(per_image), width, encoder["ffn_dim"], encoder["moe"])
    projections = sum(_linear(x.rows(), c, width) for x, c in zip(levels, channels, strict=True))
    return projections + encoder["num_layers"] * layer


def _neck(encoder: Mapping[str, Any], levels: Sequence[_Level]) -> int:
    width = encoder["width"]
    flops = 0
    for fine, coarse in pairwise(levels):
        flops += _linear(coarse.rows(), width, width)  # lateral
        flops += _fusion(encoder, fine)  # top-down
        flops += 2 * coarse.taps(fine, stride=2) * width**2  # downsampling
        flops += _fusion(encoder, coarse)  # bottom-up
    return flops


def _fusion(encoder: Mapping[str, Any], level: _Level) -> int:
    """Two 1x1 branches of both inputs, one with folded RepVGG blocks; 1x1 if widths differ."""
    width = encoder["width"]
    hidden = int(width * encoder["expansion"])
    flops = 2 * _linear(level.rows(), 2 * width, hidden)
    flops += encoder["blocks"] * 2 * level.taps(level, stride=1) * hidden**2
    return flops + (_linear(level.rows(), hidden, width) if hidden != width else 0)


def _decoder(
    decoder: Mapping[str, Any], num_classes: int, levels: Sequence[_Level]
) -> tuple[int, int]:
    """Returns the FLOPs without sampling and those of sampling."""
    width, num_layers = decoder["width"], decoder["num_layers"]
    batch, rows = len(levels[0].tokens), sum(level.rows() for level in levels)
    available = [sum(counts) for counts in zip(*(level.per_image() for level in levels))]
    queries = min(decoder["num_queries"], max(1, *available))
    places, real = batch * queries, sum(min(queries, n) for n in available)
    samples = decoder["num_heads"] * len(levels) * decoder["num_points"]
    box_head = _linear(places, width, width, width, 4)

    layer = _linear(places, 4, 2 * width, width)  # position of the query
    layer += _attention(batch, queries, width)
    layer += _linear(places, width, 3 * samples)  # two offsets and a weight per sample
    layer += _linear(rows, width, width)  # values
    layer += _linear(len(levels), width, width) if decoder["background"] == "learned" else 0
    layer += _linear(places, width, width)  # output
    layer += _feed_forward(real, width, decoder["ffn_dim"], decoder["moe"])
    layer += box_head

    flops = _linear(rows, decoder["in_channels"], width)
    flops += _linear(rows, width, width, num_classes)  # scores of all rows,
    lean = decoder["lean_heads"]
    flops += box_head if lean else _linear(rows, width, width, width, 4)
    flops += num_layers * layer
    flops += (1 if lean else num_layers) * _linear(places, width, num_classes)
    sampling = num_layers * 2 * 4 * places * samples * (width // decoder["num_heads"])
    return flops, sampling
