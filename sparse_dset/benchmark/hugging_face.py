"""Hugging Face's RT-DETRv2 with random weights, and its parameters under the released names.

Needs the package ``transformers``; only comparisons import this module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    TimmBackboneConfig,
)

from sparse_dset.losses.totals import StepTotals
from sparse_dset.models.backbone.timm_backbone import packaged_weights
from sparse_dset.models.executions import find_execution
from sparse_dset.structures.geometry import STRIDES

_RENAMES = [
    (r"^model\.backbone\.model\.embedder\.embedder\.(\d)\.", r"backbone.conv1.conv1_\1."),
    (
        r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.(\d+)\.",
        r"backbone.res_layers.\1.blocks.\2.",
    ),
    (r"\.shortcut\.1\.", ".short.conv."),
    (r"\.shortcut\.", ".short."),
    (r"\.layer\.0\.", ".branch2a."),
    (r"\.layer\.1\.", ".branch2b."),
    (r"\.layer\.2\.", ".branch2c."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^model\.encoder_input_proj\.(\d)\.0\.", r"encoder.input_proj.\1.conv."),
    (r"^model\.encoder_input_proj\.(\d)\.1\.", r"encoder.input_proj.\1.norm."),
    (r"^model\.decoder_input_proj\.(\d)\.0\.", r"decoder.input_proj.\1.conv."),
    (r"^model\.decoder_input_proj\.(\d)\.1\.", r"decoder.input_proj.\1.norm."),
    (r"^model\.encoder\.aifi\.", "encoder.encoder."),
    (r"^model\.encoder\.", "encoder."),
    (r"^model\.decoder\.layers\.", "decoder.decoder.layers."),
    (r"^model\.decoder\.query_pos_head\.", "decoder.query_pos_head."),
    (r"^model\.decoder\.class_embed\.", "decoder.dec_score_head."),
    (r"^model\.decoder\.bbox_embed\.", "decoder.dec_bbox_head."),
    (r"^model\.enc_output\.0\.", "decoder.enc_output.proj."),
    (r"^model\.enc_output\.1\.", "decoder.enc_output.norm."),
    (r"^model\.(enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"decoder.\1."),
    (r"\.mlp\.fc([12])\.", r".linear\1."),
    (r"\.encoder_attn\.n_points_scale", ".cross_attn.num_points_scale"),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"\.self_attn_layer_norm\.", ".norm1."),
    (r"\.encoder_attn_layer_norm\.", ".norm2."),
    (r"(encoder\.encoder\..*)\.final_layer_norm\.", r"\1.norm2."),
    (r"\.final_layer_norm\.", ".norm3."),
]


def build(depth: int, num_labels: int = 80) -> RTDetrV2ForObjectDetection:
    """Builds the R18 or R50 shape with random weights, BatchNorm statistics included."""
    bottleneck = depth == 50
    sizes = [256, 512, 1024, 2048] if bottleneck else [64, 128, 256, 512]
    backbone = RTDetrResNetConfig(
        layer_type="bottleneck" if bottleneck else "basic",
        depths=[3, 4, 6, 3] if bottleneck else [2, 2, 2, 2],
        hidden_sizes=sizes,
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        encoder_in_channels=sizes[1:],
        hidden_expansion=1.0 if bottleneck else 0.5,
        decoder_layers=6 if bottleneck else 3,
        num_labels=num_labels,
    )
    model = RTDetrV2ForObjectDetection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif name.endswith("running_mean"):
                value.normal_(0.0, 0.1, generator=generator)
            elif value.is_floating_point() and not name.endswith("n_points_scale"):
                noise = torch.randn(value.shape, generator=generator)
                scale = 1.0 if value.dim() < 2 else value[0].numel() ** -0.5
                value.copy_(1 + 0.1 * noise if name.endswith("norm.weight") else scale * noise)
                if value.dim() == 1 and not name.endswith("weight"):
                    value.mul_(0.1)
    return model


def build_lite0(num_labels: int = 80) -> RTDetrV2ForObjectDetection:
    """Builds the shape of this project's ``lite0`` model with random weights."""
    backbone = TimmBackboneConfig(
        backbone="efficientnet_lite0",
        out_indices=[2, 3, 4],
        features_only=True,
        use_pretrained_backbone=False,
    )
    config = RTDetrV2Config(
        backbone_config=backbone,
        # Freezing would put layers without an activation in the place of timm's, which have one.
        freeze_backbone_batch_norms=False,
        encoder_in_channels=[40, 112, 320],
        hidden_expansion=0.5,
        decoder_layers=3,
        num_labels=num_labels,
        initializer_bias_prior_prob=0.01,  # the released one; the default is 1 / (K + 1)
    )
    return RTDetrV2ForObjectDetection(config).eval()


def build_peer(name: str) -> RTDetrV2ForObjectDetection:
    """Builds the network that is like the model r18, r50 or lite0."""
    return build_lite0() if name == "lite0" else build(int(name[1:]))


@dataclass(frozen=True)
class PeerOutput:
    """What training and evaluation read, as in ``DetectorOutput``; the peer keeps every token.

    Attributes:
        loss: Hugging Face's, a mean over the objects of the batch; None without targets.
    """

    pred_logits: Tensor
    pred_boxes: Tensor
    query_mask: Tensor
    num_kept: Tensor
    num_tokens: Tensor
    execution: str
    loss: Tensor | None


class PeerDetector(nn.Module):
    """Hugging Face's RT-DETRv2 on EfficientNet-Lite0 and its packaged ImageNet weights.

    It is called as a ``Detector`` is, so that the same loop trains both on the same images.

    Args:
        num_classes: K.
        pretrained: load the backbone's weights.
        frozen: see `TimmBackbone`; the same names.
    """

    def __init__(
        self, num_classes: int, pretrained: bool = True, frozen: Sequence[str] = ()
    ) -> None:
        super().__init__()
        network = build_lite0(num_classes)
        self.backbone = network.model.backbone  # first, for the name by which it is optimised
        self.network = network
        timm_model = next(m for m in self.backbone.modules() if hasattr(m, "feature_info"))
        if pretrained:
            timm_model.load_state_dict(packaged_weights("efficientnet_lite0", timm_model))
        self._frozen = [timm_model.get_submodule(name).requires_grad_(False) for name in frozen]

    def train(self, mode: bool = True) -> PeerDetector:
        """Switches the mode of everything that is not frozen."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
        *,
        padding_mask: Tensor | None = None,
        execution: str | None = "dense",
        keep_ratio: float | None = None,
        progress: float = 1.0,
    ) -> PeerOutput:
        """Detects objects, see ``Detector.forward``; nothing is pruned.

        Raises:
            ValueError: another execution than "dense", or padding.
        """
        if execution is not None and find_execution(execution).prunes:
            raise ValueError(f"the peer runs dense only, got execution={execution!r}")
        if padding_mask is not None and padding_mask.any():
            raise ValueError("the peer needs images of one size: set data.size to what all have")
        labels = None
        if targets is not None:
            names = {"class_labels": "labels", "boxes": "boxes"}
            labels = [{new: target[name] for new, name in names.items()} for target in targets]
        out = self.network(pixel_values=(images - 0.5) / 0.5, labels=labels)
        height, width = images.shape[-2:]
        cells = [[height // s * (width // s) for s in STRIDES]] * len(images)
        tokens = torch.tensor(cells, device=images.device)
        return PeerOutput(
            out.logits,
            out.pred_boxes,
            torch.ones(out.logits.shape[:2], dtype=torch.bool, device=images.device),
            tokens,
            tokens,
            "dense",
            out.loss,
        )


def peer_criterion(
    output: PeerOutput,
    targets: Sequence[Mapping[str, Any]],
    totals: StepTotals | None = None,
    teacher: None = None,
) -> dict[str, Tensor]:
    """Returns Hugging Face's loss, called as a ``losses.Criterion``.

    It divides by the objects of the batch; a step may have more batches.
    """
    assert output.loss is not None
    totals = StepTotals() if totals is None else totals
    own = output.loss.new_tensor(float(sum(len(target["labels"]) for target in targets)))
    return {"loss": output.loss * own.clamp(min=1.0) / totals.divisor("objects", own)}


def released_names(model: RTDetrV2ForObjectDetection) -> dict[str, Tensor]:
    """Returns the model's parameters under the names of the released checkpoints."""
    renamed = {}
    for name, value in model.state_dict().items():
        if name.startswith(("class_embed", "bbox_embed")):
            continue  # the same tensors as in model.decoder
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[re.sub(r"conv1_(\d)", lambda m: f"conv1_{int(m[1]) + 1}", name)] = value
    return _join_projections(renamed)


def _join_projections(named: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = {k: v for k, v in named.items() if not re.search(r"self_attn\.[qkv]_proj", k)}
    for name in named:
        if ".self_attn.q_proj." in name:
            parts = [named[name.replace("q_proj.", f"{p}_proj.")] for p in "qkv"]
            joined[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return joined
