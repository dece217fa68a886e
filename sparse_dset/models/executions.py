"""What carries the features after the decision: one object per execution.

An execution says which tokens it keeps of a decision, on which kind of map the network goes on, and
what happens before the neck. The detector asks it and knows no execution by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from sparse_dset.structures import MaskedMap, SparseMap, Support, check_nested
from sparse_dset.structures.geometry import Geometry
from sparse_dset.structures.maps import FeatureMap
from sparse_dset.structures.tables import Tables

_ALL_LEVELS = range(3)


class Execution(ABC):
    """One way to run the detector's weights.

    Attributes:
        name: what configurations and rows of results call it.
        prunes: whether it leaves tokens out; one that does not needs no decision.
        counts_kept_sites: whether convolutions multiply at kept sites alone.
        refills: whether pruned tokens come back, as zeros, before the neck.
    """

    name: str
    prunes: bool = True
    counts_kept_sites: bool = False
    refills: bool = False

    def pruned_levels(self, scatter_levels: Collection[int]) -> Collection[int]:
        """Returns the levels, 0 is the finest, of which it leaves tokens out.

        Args:
            scatter_levels: those that ``dense_scatter`` prunes, a setting of the pruner.
        """
        return _ALL_LEVELS if self.prunes else ()

    def kept(
        self,
        chosen: Sequence[Tensor] | None,
        valid: Sequence[Tensor],
        scatter_levels: Collection[int],
    ) -> tuple[Tensor, ...]:
        """Returns the tokens that it keeps: bool ``[B, H_l, W_l]`` per level, finest first.

        Args:
            chosen: those that were decided on, or forced; None where it does not prune.
            valid: the cells that are no padding.
            scatter_levels: see ``pruned_levels``.
        """
        pruned = self.pruned_levels(scatter_levels)
        if not pruned:
            return tuple(valid)
        assert chosen is not None
        levels = enumerate(zip(chosen, valid, strict=True))
        return tuple(own if i in pruned else whole for i, (own, whole) in levels)

    def before_decision(self, keeps_all: bool) -> Execution:
        """Returns what runs, as far as that is known before anything is decided.

        Args:
            keeps_all: the pruner will keep every token, whatever the scores are.
        """
        return self

    def after_decision(self, kept: Sequence[Tensor], valid: Sequence[Tensor]) -> Execution:
        """Returns what runs.

        Args:
            kept: bool ``[B, H_l, W_l]`` per level, finest first: the decision.
            valid: the same of the cells that are no padding.
        """
        return self

    def on_sites(self, tensor: Tensor, support: Support) -> FeatureMap | None:
        """Returns the map on which a backbone goes on after an early decision.

        None: its later stages run on tensors, as if nothing had been decided.
        """
        return None

    @abstractmethod
    def place(
        self,
        features: Sequence[Tensor],
        kept: Sequence[Tensor],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        """Turns the backbone's tensors into the maps that enter the encoder.

        Args:
            features: ``[B, C_l, H_l, W_l]`` per level, finest first.
            kept: what this execution keeps of them, see ``pruned_levels``.
            valid: the cells that are no padding.
            geometry: where each image ends.
            tables: makes the lookup tables of supports.
        """

    def before_neck(
        self,
        maps: Sequence[FeatureMap],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        """Returns the maps that enter the neck, of those that the encoder returned."""
        return list(maps)


class Dense(Execution):
    """Keeps every token, in tensors; where there is padding, in maps that are zero there."""

    name = "dense"
    prunes = False

    def place(
        self,
        features: Sequence[Tensor],
        kept: Sequence[Tensor],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        return _dense(features, valid, geometry, tables)


class DenseScatter(Execution):
    """Prunes some levels for the encoder and fills them with zeros again: DSET as published."""

    name = "dense_scatter"
    refills = True

    def pruned_levels(self, scatter_levels: Collection[int]) -> Collection[int]:
        return scatter_levels

    def place(
        self,
        features: Sequence[Tensor],
        kept: Sequence[Tensor],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        # A level that is not pruned keeps its valid cells, the very same mask.
        maps = _dense(features, valid, geometry, tables)
        return [
            x if own is whole else SparseMap.from_dense(feature, Support.from_mask(own, tables))
            for x, feature, own, whole in zip(maps, features, kept, valid, strict=True)
        ]

    def before_neck(
        self,
        maps: Sequence[FeatureMap],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        # This is where DSET loses its savings.
        tensors = [m if isinstance(m, Tensor) else m.to_dense() for m in maps]
        return _dense(tensors, valid, geometry, tables)


class Sparse(Execution):
    """Carries the rows of kept sites, from the decision to the last decoder layer."""

    name = "sparse"
    counts_kept_sites = True

    def on_sites(self, tensor: Tensor, support: Support) -> FeatureMap:
        return SparseMap.from_dense(tensor, support)

    def place(
        self,
        features: Sequence[Tensor],
        kept: Sequence[Tensor],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        supports = [Support.from_mask(mask, tables) for mask in kept]
        return [SparseMap.from_dense(f, s) for f, s in zip(features, supports, strict=True)]


class Masked(Execution):
    """Carries tensors that are zero at pruned sites: the oracle of ``Sparse``, for tests."""

    name = "masked"

    def on_sites(self, tensor: Tensor, support: Support) -> FeatureMap:
        return MaskedMap.from_dense(tensor, support)

    def place(
        self,
        features: Sequence[Tensor],
        kept: Sequence[Tensor],
        valid: Sequence[Tensor],
        geometry: Geometry,
        tables: Tables,
    ) -> list[FeatureMap]:
        return _masked(features, kept, tables)


class Auto(Sparse):
    """Becomes ``Dense`` where nothing is pruned, and ``Sparse`` elsewhere.

    How each level's convolutions are computed is chosen by the density that is counted there.
    """

    name = "auto"

    def before_decision(self, keeps_all: bool) -> Execution:
        return DENSE if keeps_all else self

    def after_decision(self, kept: Sequence[Tensor], valid: Sequence[Tensor]) -> Execution:
        whole = all(torch.equal(k, v) for k, v in zip(kept, valid, strict=True))
        return DENSE if whole else SPARSE


DENSE, SPARSE = Dense(), Sparse()

EXECUTIONS: tuple[Execution, ...] = (DENSE, DenseScatter(), SPARSE, Masked(), Auto())

NAMES = tuple(execution.name for execution in EXECUTIONS)


def find_execution(execution: str | Execution) -> Execution:
    """Returns the execution of a name; one that is given as an object is returned as it is.

    Raises:
        ValueError: no execution is called so; the message lists their names.
    """
    if isinstance(execution, Execution):
        return execution
    for known in EXECUTIONS:
        if known.name == execution:
            return known
    raise ValueError(f"execution must be one of {', '.join(NAMES)}; got {execution!r}")


def _dense(
    tensors: Sequence[Tensor], valid: Sequence[Tensor], geometry: Geometry, tables: Tables
) -> list[FeatureMap]:
    """Marks the padding of dense maps, where there is any."""
    return _masked(tensors, valid, tables) if geometry.padded else list(tensors)


def _masked(tensors: Sequence[Tensor], masks: Sequence[Tensor], tables: Tables) -> list[FeatureMap]:
    supports = [Support.from_mask(mask, tables) for mask in masks]
    return [MaskedMap.from_dense(t, s) for t, s in zip(tensors, supports, strict=True)]


def check_kept(masks: Sequence[Tensor], valid: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Checks masks of tokens that are to be kept and removes what lies in the padding.

    Raises:
        ValueError: masks of another type or shape, or that do not nest.
    """
    expected = [tuple(v.shape) for v in valid]
    if [tuple(m.shape) for m in masks] != expected or any(m.dtype != torch.bool for m in masks):
        raise ValueError(
            f"kept must be bool masks of shapes {expected}, finest level first; got "
            f"{[(m.dtype, tuple(m.shape)) for m in masks]}"
        )
    check_nested(masks)
    return tuple(m & v for m, v in zip(masks, valid, strict=True))
