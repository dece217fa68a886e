"""Dense backbones with stages at strides 8, 16 and 32."""

from sparse_dset.models.backbone.base import Backbone
from sparse_dset.models.backbone.resnet_vd import ResNetVd
from sparse_dset.models.backbone.timm_backbone import TimmBackbone

__all__ = ["Backbone", "ResNetVd", "TimmBackbone"]
