"""Checks the FLOP counter and the closed form against each other, and both by hand."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, deform_conv2d

from sparse_dset import native
from sparse_dset.audit import closed_form_flops
from sparse_dset.benchmark import count_flops
from sparse_dset.config import build_from_config, compose_config
from sparse_dset.models.detector import Detector

EXECUTIONS = ["dense", "dense_scatter", "sparse", "masked"]
CASES = [
    *((name, execution) for name in ("r18", "r50", "lite0") for execution in EXECUTIONS[:3]),
    *((name, "dense") for name in ("r34", "r101")),
    *((name, "sparse") for name in ("nano", "dset_r18")),
]
ORIGINAL_FLOPS = {"r18": 60_529_254_400, "r50": 133_909_299_200}
"""RT-DETRv2 at 640 x 640, 80 classes: PyTorch's counter on Hugging Face's implementation (attention
in full), less the 1x1 branches of RepVGG blocks, which folding removes."""


def config_of(name: str, *overrides: str) -> dict[str, Any]:
    return compose_config("detector", [f"model={name}", "model.num_classes=80", *overrides])


@functools.cache
def built(name: str, *overrides: str) -> Detector:
    return build_from_config(config_of(name, *overrides), pretrained=False).eval()


def every_cell(height: int, width: int, batch: int = 1) -> list[Tensor]:
    return [torch.ones(batch, height // s, width // s, dtype=torch.bool) for s in (8, 16, 32)]


def nested_masks(height: int, width: int, shares: Sequence[float]) -> list[Tensor]:
    """Random nested masks, finest first; one share of coarsest cells per image."""
    masks = [
        torch.rand(len(shares), height // 32, width // 32) < torch.tensor(shares)[:, None, None]
    ]
    for _ in range(2):
        parents = masks[0].repeat_interleave(2, 1).repeat_interleave(2, 2)
        masks.insert(0, parents & (torch.rand(parents.shape) < 0.7))
    return masks


def assert_equal_integers(counted: dict[str, float], computed: dict[str, float]) -> None:
    assert {k: round(v * 1e9) for k, v in counted.items()} == {
        k: round(v * 1e9) for k, v in computed.items()
    }


@pytest.mark.parametrize(("name", "execution"), CASES)
def test_models(name: str, execution: str) -> None:
    model, images = built(name), torch.rand(2, 3, 64, 96)
    kept = model(images, execution=execution).kept
    counted = count_flops(model, images, execution=execution)
    assert_equal_integers(counted, closed_form_flops(config_of(name), kept, execution))
    assert counted["total"] == pytest.approx(
        sum(counted[part] for part in ("backbone", "encoder", "neck", "decoder")), rel=1e-12
    )
    assert (counted["pruner"] > 0) == (execution != "dense")
    assert counted["encoder"] > counted["pruner"]


@pytest.mark.parametrize("execution", EXECUTIONS[1:])
@pytest.mark.parametrize("keep_ratio", [0.2, 1.0])
@pytest.mark.parametrize("finest", ["s3", "s5"])
def test_keep_ratios(finest: str, keep_ratio: float, execution: str) -> None:
    # Fewer queries than there are tokens.
    overrides = ["model.decoder.num_queries=40", f"pruner.finest={finest}"]
    model, images = built("nano", *overrides), torch.rand(1, 3, 96, 160)
    kept = model(images, execution=execution, keep_ratio=keep_ratio).kept
    counted = count_flops(model, images, execution=execution, keep_ratio=keep_ratio)
    config = config_of("nano", *overrides)
    assert_equal_integers(counted, closed_form_flops(config, kept, execution))


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize(
    ("name", "shares"),
    [("dset_r18", [0.6, 0.2]), ("nano", [0.0, 0.5]), ("nano", [0.0, 0.0])],
)
def test_forced_masks_of_unequal_images(name: str, shares: list[float], execution: str) -> None:
    forced, images = nested_masks(96, 160, shares), torch.rand(2, 3, 96, 160)
    kept = built(name)(images, execution=execution, kept=forced).kept
    counted = count_flops(built(name), images, execution=execution, kept=forced)
    computed = closed_form_flops(config_of(name), kept, execution, forced=True)
    assert_equal_integers(counted, computed)
    assert counted["pruner"] == 0


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("name", ["r18", "r50", "lite0"])
@pytest.mark.parametrize(("stage", "finest"), [("s2", "s5"), ("s3", "s5"), ("s3", "s4")])
def test_early_decisions(stage: str, finest: str, name: str, execution: str) -> None:
    overrides = [f"pruner.stage={stage}", "pruner.context=3", "pruner.local=8", "pruner.halo=1"]
    overrides.append(f"pruner.finest={finest}")
    model, images = built(name, *overrides), torch.rand(2, 3, 96, 160)
    options = {"execution": execution, "keep_ratio": 0.2}
    kept = model(images, **options).kept
    counted = count_flops(model, images, **options)
    assert_equal_integers(counted, closed_form_flops(config_of(name, *overrides), kept, execution))
    forced = nested_masks(96, 160, [0.5, 0.0])
    if stage == "s3":  # nothing is forced at stride 4
        counted = count_flops(model, images, execution=execution, kept=forced)
        kept = model(images, execution=execution, kept=forced).kept
        computed = closed_form_flops(config_of(name, *overrides), kept, execution, forced=True)
        assert_equal_integers(counted, computed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limits"),
    [("r18", (0.42, 0.51, 0.61, 0.71)), ("r50", (0.34, 0.45, 0.58, 0.70))],
)
def test_what_an_early_decision_leaves_of_plain_dense(name: str, limits: Sequence[float]) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 640, 640)
    # Weights are random: what cells finer than stride 32 would say means nothing, and the cells are
    # taken at random, since an untrained scorer takes neighbours.
    model = copy.deepcopy(built(name, "pruner=early", "pruner.finest=s5"))
    plain = count_flops(model, images, execution="dense")["total"]
    model.fuse()
    scorer = count_flops(model, images, execution="sparse", keep_ratio=0.5)["pruner"]
    assert scorer > 0
    model.pruner.score_by = "random"
    for keep_ratio, limit in zip((0.1, 0.3, 0.5, 0.7), limits, strict=True):
        left = count_flops(model, images, execution="sparse", keep_ratio=keep_ratio)
        # The third digit is the mask's luck.
        assert round((scorer + left["total"]) / plain, 2) <= limit


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_padded_batch(execution: str) -> None:
    images, padding_mask = torch.rand(2, 3, 90, 160), torch.ones(2, 90, 160, dtype=torch.bool)
    padding_mask[0] = False
    padding_mask[1, :50, :70] = False
    options = {"execution": execution, "padding_mask": padding_mask}
    model = built("nano")
    valid = model(images, execution="dense", padding_mask=padding_mask).kept
    kept = model(images, **options).kept
    counted = count_flops(model, images, **options)
    computed = closed_form_flops(config_of("nano"), kept, execution, valid=valid)
    assert_equal_integers(counted, computed)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.decoder.background=learned"],
        ["pruner.levels=[s4]", "pruner.hidden=16", "pruner.scatter_levels=[s3]"],
        ["pruner.scatter_levels=[s3,s4,s5]"],
        ["model.decoder.lean_heads=true"],
        ["model.encoder.num_layers=2", "model.decoder.num_points=3"],
    ],
)
@pytest.mark.parametrize("execution", ["dense_scatter", "sparse"])
def test_settings(execution: str, overrides: list[str]) -> None:
    model, images = built("nano", *overrides), torch.rand(2, 3, 64, 96)
    kept = model(images, execution=execution).kept
    counted = count_flops(model, images, execution=execution)
    config = config_of("nano", *overrides)
    assert_equal_integers(counted, closed_form_flops(config, kept, execution))


@pytest.mark.parametrize("name", sorted(ORIGINAL_FLOPS))
def test_equals_the_original_implementation(name: str) -> None:
    computed = closed_form_flops(config_of(name), every_cell(640, 640), "dense")
    assert round(computed["total"] * 1e9) == ORIGINAL_FLOPS[name]


@pytest.mark.parametrize("name", sorted(ORIGINAL_FLOPS))
def test_lean_heads_save_boxes_of_tokens_and_classes_of_layers(name: str) -> None:
    config = config_of(name, "model.decoder.lean_heads=true")
    computed = closed_form_flops(config, every_cell(640, 640), "dense")
    tokens, queries, layers = 80**2 + 40**2 + 20**2, 300, config["model"]["decoder"]["num_layers"]
    boxes = 2 * (tokens - queries) * (2 * 256 * 256 + 256 * 4)
    classes = 2 * (layers - 1) * queries * 256 * 80
    assert round(computed["total"] * 1e9) + boxes + classes == ORIGINAL_FLOPS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ORIGINAL_FLOPS))
def test_real_forward_at_full_size(name: str) -> None:
    counted = count_flops(built(name), torch.rand(1, 3, 640, 640), execution="dense")
    assert_equal_integers(
        counted, closed_form_flops(config_of(name), every_cell(640, 640), "dense")
    )


def test_neck_by_hand() -> None:
    """Two neighbouring cells at s3 and s4, one at s5; channels are 64 everywhere."""
    kept = every_cell(64, 64)
    for mask in kept:
        mask.zero_()[0, 0, :2] = True
    kept[2][0, 0, 1] = False
    config = config_of("nano", "model.encoder.blocks=1", "model.encoder.width=64")
    config["model"]["encoder"]["expansion"] = 1.0
    neck = round(closed_form_flops(config, kept, "sparse", forced=True)["neck"] * 1e9)
    lateral, csp = 2 + 1, 2 * 2 * (2 + 2 + 2 + 1)  # 1x1 products of 64 x 64 channels
    windows = 4 + 4 + 4 + 1  # fpn s4, fpn s3, pan s4, pan s5
    strided = (2 + 1) + 2  # s4 cells 0 and 1 see s3 cells {0, 1}, {1}; the s5 cell sees {0, 1}
    assert neck == 2 * 64 * 64 * (lateral + csp + windows + strided)


def test_model_and_random_state_are_left_alone() -> None:
    model = built("nano").train()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = torch.get_rng_state()
    count_flops(model, torch.ones(1, 3, 64, 64))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.eval()


def test_what_samples_before_it_projects_samples_all_channels_for_every_head() -> None:
    """Where rows are many and queries few, the inference form does."""
    few = built("nano", "model.decoder.num_queries=2")
    images = torch.rand(1, 3, 128, 160)
    published = count_flops(few, images, execution="dense")["sampling"]
    fused = count_flops(copy.deepcopy(few).fuse(), images, execution="dense")["sampling"]
    heads = few.decoder.decoder.layers[0].cross_attn.num_heads
    kernels = not native.unavailable_reason()
    assert fused == pytest.approx(published * (heads if kernels else 1))
    many = built("nano")
    again = count_flops(copy.deepcopy(many).fuse(), images, execution="dense")["sampling"]
    assert again == count_flops(many, images, execution="dense")["sampling"]


def test_products_outside_the_parts_are_an_error() -> None:
    class Wrapped(Detector):
        def forward(self, images: Tensor, *args: Any, **options: Any) -> Any:
            nn.functional.linear(images, torch.ones(5, images.shape[-1]))
            return super().forward(images, *args, **options)

    model = build_from_config(config_of("nano"), pretrained=False)
    model.__class__ = Wrapped
    with pytest.raises(RuntimeError, match=f"mm.*{2 * 3 * 64 * 64 * 5}"):
        count_flops(model, torch.ones(1, 3, 64, 64))


def test_closed_form_names_what_it_does_not_know() -> None:
    config = config_of("nano")
    with pytest.raises(ValueError, match="'fast'"):
        closed_form_flops(config, every_cell(64, 64), "fast")
    config["model"]["backbone"]["name"] = "resnet10t"
    with pytest.raises(ValueError, match="resnet10t"):
        closed_form_flops(config, every_cell(64, 64), "dense")


class _Extra(nn.Module):
    """A part of the network that runs something more, on the map that it returns."""

    def __init__(self, inner: nn.Module, extra: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.inner, self.extra = inner, extra

    def forward(self, x: Any) -> Any:
        out = self.inner(x)
        self.extra(out)
        return out


def _with_extra(extra: Callable[[Tensor], object]) -> Detector:
    model = copy.deepcopy(built("nano"))
    model.encoder.input_proj[0] = _Extra(model.encoder.input_proj[0], extra)
    return model


def _deformable(x: Tensor) -> Tensor:
    offsets = x.new_zeros(len(x), 18, *x.shape[2:])
    return DeformConv2d(x.shape[1], 8, 3, padding=1)(x, offsets)


@torch.library.custom_op("sparse_dset_tests::secret_product", mutates_args=())
def _secret(x: Tensor) -> Tensor:
    return x.flatten(1) @ x.flatten(1).T


UNKNOWN: dict[str, tuple[Callable[[Tensor], object], str]] = {
    "deformable convolution, module": (_deformable, "torchvision.deform_conv2d"),
    "deformable convolution": (
        lambda x: deform_conv2d(
            x, x.new_zeros(len(x), 2, *x.shape[2:]), x.new_ones(4, x.shape[1], 1, 1)
        ),
        "torchvision.deform_conv2d",
    ),
    "Fourier transform": (lambda x: torch.fft.rfft2(x), "aten._fft_r2c"),
    "operator of a library": (_secret, "sparse_dset_tests.secret_product"),
    "distances": (
        lambda x: torch.cdist(
            x.flatten(2), x.flatten(2), compute_mode="donot_use_mm_for_euclid_dist"
        ),
        "aten._cdist_forward",
    ),
    "bilinear layer": (
        lambda x: nn.Bilinear(4, 4, 2)(torch.ones(3, 4), torch.ones(3, 4)),
        "aten._trilinear",
    ),
    "recurrent layer": (lambda x: nn.LSTM(x.shape[1], 4)(x.flatten(2).movedim(2, 0)), ""),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_cannot_be_counted_is_named(name: str) -> None:
    extra, operator = UNKNOWN[name]
    images = torch.rand(1, 3, 64, 64)
    plain = count_flops(built("nano"), images, execution="dense")
    assert "uncounted" not in plain
    if name == "recurrent layer":  # which may be one operator, or products that are counted
        _assert_counted_or_named(extra, images, plain)
        return
    with pytest.warns(UserWarning, match=f"leave out what these operators multiply: {operator}"):
        counted = count_flops(_with_extra(extra), images, execution="dense")
    assert counted.pop("uncounted") == {operator: 1}
    assert counted == plain


def _assert_counted_or_named(
    extra: Callable[[Tensor], object], images: Tensor, plain: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        counted = count_flops(_with_extra(extra), images, execution="dense")
    assert counted.get("uncounted") or counted["encoder"] > plain["encoder"]


KNOWN: dict[str, tuple[Callable[[Tensor], object], Callable[[int, int], int]]] = {
    "matrix and vector": (lambda x: x[0].flatten(1) @ x[0, 0].flatten(), lambda c, n: 2 * c * n),
    "addmv": (
        lambda x: torch.addmv(x[0, :, 0, 0], x[0].flatten(1), x[0, 0].flatten()),
        lambda c, n: 2 * c * n,
    ),
    "dot": (lambda x: x.flatten() @ x.flatten(), lambda c, n: 2 * c * n),
    "einsum": (
        lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
        lambda c, n: 2 * c * c * n,
    ),
    "baddbmm": (
        lambda x: torch.baddbmm(x.new_zeros(1, 1, 1), x.flatten(2), x.flatten(2).mT),
        lambda c, n: 2 * c * c * n,
    ),
    "addbmm": (
        lambda x: torch.addbmm(x.new_zeros(1, 1), x.flatten(2), x.flatten(2).mT),
        lambda c, n: 2 * c * c * n,
    ),
    "transposed convolution": (
        lambda x: nn.functional.conv_transpose2d(x, x.new_ones(x.shape[1], 5, 2, 2), stride=2),
        lambda c, n: 2 * c * 5 * 4 * n,
    ),
    "attention": (
        lambda x: nn.functional.scaled_dot_product_attention(*[x.flatten(2).mT.unsqueeze(1)] * 3),
        lambda c, n: 4 * c * n * n,
    ),
    "elements": (
        lambda x: (x * x).floor_divide_(2).cumsum(1).softmax(1).sort().values,
        lambda *_: 0,
    ),
    "poolings": (
        lambda x: nn.functional.interpolate(nn.functional.max_pool2d(x, 2), scale_factor=2.0),
        lambda *_: 0,
    ),
    "indexing": (lambda x: x.index_select(1, torch.tensor([0])).roll(1, 2).unique(), lambda *_: 0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_products_of_every_form_are_counted(name: str) -> None:
    extra, expected = KNOWN[name]
    images, seen = torch.rand(1, 3, 64, 64), list[int]()

    def run(x: Tensor) -> object:
        seen.append(expected(x.shape[1], x.shape[2] * x.shape[3]))
        return extra(x)

    plain = count_flops(built("nano"), images, execution="dense")
    counted = count_flops(_with_extra(run), images, execution="dense")
    assert "uncounted" not in counted
    assert round((counted["encoder"] - plain["encoder"]) * 1e9) == seen[0]
