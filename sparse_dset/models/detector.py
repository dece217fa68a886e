"""The detector: one network, several executions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sparse_dset.checks import check_number
from sparse_dset.models.backbone import Backbone
from sparse_dset.models.decoder.decoder import Decoder
from sparse_dset.models.dense_head import DenseHead
from sparse_dset.models.encoder.hybrid_encoder import HybridEncoder
from sparse_dset.models.evaluation_mode import change_of_mode, switched_to_evaluation
from sparse_dset.models.executions import DENSE, Execution, check_kept, find_execution
from sparse_dset.models.fuse import fuse
from sparse_dset.models.predict import Detections, Picture, PictureView, predict
from sparse_dset.models.pruner import Pruner, TokenSelector
from sparse_dset.models.pruner.scorer import LEVELS
from sparse_dset.models.rtdetr_names import place_rtdetr
from sparse_dset.models.synced_norm import SingleValuesNormalised
from sparse_dset.ops.backends import REFERENCE, Backend, resolve_backend, use_backend
from sparse_dset.structures import SparseMap, Support, enlarged
from sparse_dset.structures.geometry import Geometry, pad_batch
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.outputs import (
    DensePredictions,
    DetectorOutput,
    RouterStats,
    SupervisedOutput,
    TokenRows,
)
from sparse_dset.structures.pixels import wrong_range
from sparse_dset.structures.tables import Tables
from sparse_dset.structures.targets import pad_targets

_DENSE_HEAD = "dense"
"""Of ``losses``, as its parameters have been called in every checkpoint."""


class Detector(nn.Module):
    """RT-DETRv2 with token pruning, executed densely or sparsely.

    Args:
        num_classes: K.
        backbone: maps images to four levels, in one part or in two.
        pruner: called with the backbone's channels.
        encoder: called with those of the last three levels.
        decoder: called with K.
        view: how ``predict``, and whatever measures the detector, brings pictures to a size.
        dense_head: in training, predict classes and boxes from every token too.
        execution: the default; its name, see ``executions.EXECUTIONS``, or one of your own.
        backend, algorithm: of the sparse convolutions, see ``ops.use_backend``.
        class_names: for ``predict``; None: "0", "1", ...
    """

    def __init__(
        self,
        num_classes: int,
        backbone: Backbone,
        pruner: Callable[[Sequence[int]], Pruner],
        encoder: Callable[[Sequence[int]], HybridEncoder],
        decoder: Callable[[int], Decoder],
        view: PictureView,
        dense_head: bool = False,
        execution: str | Execution = "sparse",
        backend: str | Backend = "auto",
        algorithm: str = "auto",
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.is_fused = False
        check_number("model.num_classes", num_classes, at_least=1, whole=True)
        if isinstance(class_names, str):
            raise ValueError(f"model.class_names must be a list, got {class_names!r}")
        if class_names is not None and len(class_names) != num_classes:
            raise ValueError(f"{len(class_names)} class names for num_classes = {num_classes}")
        self.num_classes = num_classes
        self.class_names = tuple(class_names or map(str, range(num_classes)))
        self.view = view
        find_execution(execution)  # an unknown one is an error now
        self.execution = execution
        with use_backend(backend, algorithm):  # an unknown or missing one is an error now
            self.backend, self.algorithm = backend, algorithm
        self.backbone = backbone
        self.pruner = pruner(backbone.channels)
        self.encoder = encoder(backbone.out_channels)
        self.decoder = decoder(num_classes)
        self.losses = nn.ModuleDict()
        if dense_head:
            self.losses[_DENSE_HEAD] = DenseHead(self.decoder.width, num_classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the view; setting it keeps how pictures are brought to it."""
        return self.view.size

    @image_size.setter
    def image_size(self, size: Sequence[int]) -> None:
        self.view = self.view.with_size(size)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Mapping[str, Any]] | None = None,
        *,
        padding_mask: Tensor | None = None,
        execution: str | Execution | None = None,
        keep_ratio: float | None = None,
        kept: Sequence[Tensor] | None = None,
        progress: float = 1.0,
    ) -> DetectorOutput:
        """Detects objects.

        Args:
            images: ``[B, 3, H, W]`` in [0, 1], not normalised: mean and deviation are the
                backbone's own. Padded here to multiples of 32. On a CPU, values that can't be
                pixels are warned of; ``predict`` refuses them.
            targets: one per image, with ``labels`` int64 ``[G]`` and ``boxes`` ``[G, 4]`` (cxcywh
                in [0, 1] of the image without padding). In training, denoising queries are made of
                them; the output then holds what the criterion reads.
            padding_mask: bool ``[B, H, W]``, True = padding, at the right and bottom only. What is
                predicted for an image does not depend on its padding.
            execution: see ``executions.EXECUTIONS``; None: the detector's own. One that does not
                prune keeps every token, whatever ``keep_ratio`` and ``kept`` say.
            keep_ratio: in (0, 1], instead of the configured one.
            kept: forces the kept tokens: bool ``[B, H_l, W_l]`` per level, finest first, nested.
            progress: in [0, 1], how far pruning is on its way from keeping all (0) to its target.

        Raises:
            ValueError: an argument is out of range or has another shape than expected.
            NotImplementedError: ``torch.export`` or ``torch.jit.trace`` captures it.
        """
        run = find_execution(execution or self.execution)
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise NotImplementedError(
                f"torch.export and torch.jit.trace cannot capture execution={run.name}: its "
                "tables of sites are made for the content and the size of each batch; "
                "sparse_dset.models.export.export_onnx writes the dense execution for one size, "
                "and torch.compile can run every execution"
            )
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"{len(targets)} targets were given for {len(images)} images")
        dtype = next(self.parameters()).dtype
        computes = resolve_backend(self.backend, images.device, dtype)
        with use_backend(computes, self.algorithm):
            selector = self._selector(run, keep_ratio, progress)
            return self._run(images, targets, padding_mask, run, selector, kept, computes)

    def run_for_export(self, images: Tensor) -> DetectorOutput:
        """Runs the dense execution in plain PyTorch, as ``export_onnx`` captures it.

        Args:
            images: see ``forward``.
        """
        selector = self._selector(DENSE, None, 1.0)
        with use_backend(REFERENCE):
            return self._run(images, None, None, DENSE, selector, None, REFERENCE)

    def _run(
        self,
        images: Tensor,
        targets: Sequence[Mapping[str, Any]] | None,
        padding_mask: Tensor | None,
        execution: Execution,
        selector: TokenSelector,
        kept: Sequence[Tensor] | None,
        backend: Backend,
    ) -> DetectorOutput:
        images, geometry = pad_batch(self._as_weights(images), padding_mask)
        valid = geometry.valid_masks()
        padded_targets = (
            None if targets is None else pad_targets(targets, self.num_classes, images.device)
        )

        if kept is None:
            execution = execution.before_decision(selector.keeps_all)
        early = self._extract(images, range(self.pruner.num_early), geometry)
        decision = None
        if padded_targets is not None or (execution.prunes and kept is None):
            decision = self.pruner(early, valid, selector)
        chosen = None if decision is None else decision.kept
        if kept is not None and execution.prunes:
            chosen = check_kept(kept, valid)
        kept_masks = execution.kept(chosen, valid, self.pruner.scatter_levels)
        execution = execution.after_decision(kept_masks, valid)
        scores = None
        if decision is not None and kept is None and execution.prunes:
            scores = decision.token_scores
        maps, router_stats = self._encode(
            early, scores, kept_masks, valid, execution, geometry, backend.tables
        )
        memory = self.decoder.read(maps)
        output = self.decoder(memory, geometry, padded_targets)
        supervised = None
        if decision is not None and padded_targets is not None:
            supervised = SupervisedOutput(
                decoder=output,
                router_stats=tuple(router_stats),
                token_scores=decision.token_scores,
                dense=self._predict_densely(memory, geometry),
                maps=tuple(maps),
                pruned=execution.prunes,
                geometry=geometry,
            )
        return DetectorOutput(
            pred_logits=output.layers[-1].logits,
            pred_boxes=output.layers[-1].boxes,
            query_mask=output.query_mask,
            token_scores=None if decision is None else decision.token_scores,
            kept=kept_masks,
            num_kept=torch.stack([m.flatten(1).sum(1) for m in kept_masks], 1),
            num_tokens=torch.stack([m.flatten(1).sum(1) for m in valid], 1),
            supervised=supervised,
            execution=execution.name,
            backend=backend.name,
        )

    def _predict_densely(self, memory: TokenRows, geometry: Geometry) -> DensePredictions | None:
        if not self.training or _DENSE_HEAD not in self.losses:
            return None
        return self.losses[_DENSE_HEAD](memory, geometry)

    @torch.no_grad()
    def dense_maps(self, images: Tensor, padding_mask: Tensor | None = None) -> list[FeatureMap]:
        """Returns the neck's maps of the dense execution: what pruned ones can be compared with.

        Args:
            images, padding_mask: see ``forward``.
        """
        images, geometry = pad_batch(self._as_weights(images), padding_mask)
        valid = geometry.valid_masks()
        backend = resolve_backend(self.backend, images.device, images.dtype)
        with use_backend(backend, self.algorithm):
            early = self._extract(images, range(self.pruner.num_early), geometry)
            return self._encode(early, None, valid, valid, DENSE, geometry, backend.tables)[0]

    def score_tokens(
        self, images: Tensor, padding_mask: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Scores the cells, and computes nothing that does not lead there.

        Args:
            images, padding_mask: see ``forward``.

        Returns:
            Logits ``[B, H_l, W_l]`` of the levels that decide, finest first, as they are ranked,
            and bool ``[B, H_l, W_l]`` at strides 8, 16 and 32: the cells that are not padding.
        """
        images, geometry = pad_batch(self._as_weights(images), padding_mask)
        valid = geometry.valid_masks()
        early = self._extract(images, range(self.pruner.num_early), geometry)
        return self.pruner.ranked(self.pruner.score(early, valid)), valid

    def _as_weights(self, images: Tensor) -> Tensor:
        """Images in the precision of the weights; warns of what can't be pixels.

        Training has its images from ``collate``, and on a GPU a look at them would wait for it.
        """
        if not images.is_floating_point():
            return images  # refused where the batch is padded
        on_cpu = images.device.type == "cpu" and not torch.compiler.is_compiling()
        wrong = wrong_range(images) if on_cpu and not self.training and images.numel() else None
        if wrong is not None:
            warnings.warn(wrong, stacklevel=4)
        return images.to(next(self.parameters()).dtype)

    def predict(
        self, images: Sequence[Picture], threshold: float = 0.3, **options: Any
    ) -> list[Detections]:
        """Detects objects in pictures of any size; see ``models.predict.predict``."""
        return predict(self, images, threshold, **options)

    def fuse(self) -> Detector:
        """Turns the detector, in place, into its inference form, and returns it.

        Normalisation and parallel branches are folded into single convolutions, heads run on what
        they are needed for, and on a CPU the C++ kernels compute every execution, ``dense`` too.
        Outputs stay the same but for rounding. It cannot be trained any more.
        """
        self.eval().requires_grad_(False)
        fuse(self)
        self.is_fused = True
        return self

    def train(self, mode: bool = True) -> Detector:
        """Switches between training and evaluation.

        The way to training waits until no other thread is predicting.

        Raises:
            RuntimeError: the detector is in its inference form.
        """
        if mode and self.is_fused:
            raise RuntimeError("a fused detector cannot be trained: build or load it again")
        with change_of_mode(self) if mode else nullcontext():
            return super().train(mode)

    def load_rtdetr(self, state_dict: Mapping[str, Any]) -> None:
        """Loads a released RT-DETRv2 checkpoint; experts start as copies of its dense layers.

        Parts that RT-DETRv2 lacks (the pruner, routers, training-only heads) stay as they are:
        until the pruner is trained, "dense" is the execution that detects.

        Raises:
            ValueError: names or shapes that do not fit, all of them listed.
        """
        self.load_state_dict(place_rtdetr(state_dict, self.state_dict()), strict=True)

    def _selector(
        self, execution: Execution, keep_ratio: float | None, progress: float
    ) -> TokenSelector:
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"progress must be in [0, 1], got {progress}")
        selector = self.pruner.selector
        if not self.training:
            selector = selector.by_image()
        if keep_ratio is not None and execution.prunes:
            selector = selector.with_keep_ratio(keep_ratio)
        return selector.relaxed(progress)

    def _extract(self, x: Tensor, levels: range, geometry: Geometry) -> list[Tensor]:
        """Runs a part of the backbone on tensors; what it returns is zero in the padding."""
        if not levels:
            return []
        with SingleValuesNormalised() if self.training else nullcontext():
            return self.backbone.extract(x, levels, geometry)

    def _encode(
        self,
        early: Sequence[Tensor],
        scores: Sequence[Tensor] | None,
        kept: Sequence[Tensor],
        valid: Sequence[Tensor],
        execution: Execution,
        geometry: Geometry,
        tables: Tables,
    ) -> tuple[list[FeatureMap], list[RouterStats]]:
        """Runs everything between the decision and the decoder."""
        maps = None
        if self.pruner.is_early:
            maps = self._go_on_at_sites(early[-1], scores, kept, execution, geometry, tables)
        if maps is None:
            late = self._extract(early[-1], range(self.pruner.num_early, 4), geometry)
            features = [self._gated(f, scores) for f in (*early, *late)[1:]]
            maps = execution.place(features, kept, valid, geometry, tables)
        maps, router_stats = self.encoder.encode(maps, geometry)
        maps = execution.before_neck(maps, valid, geometry, tables)
        return self.encoder.merge_levels(maps), router_stats

    def _go_on_at_sites(
        self,
        feature: Tensor,
        scores: Sequence[Tensor] | None,
        kept: Sequence[Tensor],
        execution: Execution,
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap] | None:
        """Runs the backbone's stages after an early decision on the kept sites of its last map.

        None: this execution runs them on tensors.
        """
        first = self.pruner.num_early - 1
        masks = kept if first else [enlarged(kept[0]) & geometry.valid_mask(4), *kept]
        supports = [Support.from_mask(mask, tables) for mask in masks]
        x = execution.on_sites(self._gated(feature, scores), supports[0])
        if x is None:
            return None
        maps = [x, *self.backbone(x, range(first + 1, 4), supports[1:])]
        return maps[-3:]

    @torch.no_grad()
    def check_decision(self) -> None:
        """Runs the stages after an early decision on a few kept sites; a late one is always right.

        The first forward pass finds the same, in other words.

        Raises:
            ValueError: a stage has no form on kept sites; the message says why.
        """
        if not self.pruner.is_early:
            return
        first = self.pruner.num_early - 1
        supports = [Support.full(1, side, side) for side in (16, 8, 4, 2)[first:]]
        features = torch.zeros(supports[0].num_sites, self.backbone.channels[first])
        try:
            with switched_to_evaluation(self.backbone), use_backend(REFERENCE):
                self.backbone(SparseMap(features, supports[0]), range(first + 1, 4), supports[1:])
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"pruner.stage={LEVELS[first]}: {error}") from error

    def _gated(self, feature: Tensor, scores: Sequence[Tensor] | None) -> Tensor:
        return feature if scores is None else self.pruner.gated(feature, scores)
