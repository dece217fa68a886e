"""RT-DETR's hybrid encoder."""

from sparse_dset.models.encoder.hybrid_encoder import HybridEncoder

__all__ = ["HybridEncoder"]
