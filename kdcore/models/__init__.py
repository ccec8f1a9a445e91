"""Small backbones that the chapters share, and ways to look inside any network."""

from kdcore.models.convnet import ConvNet
from kdcore.models.mlp import MLP
from kdcore.models.staged import StagedNetwork
from kdcore.models.unet import UNet

__all__ = ["MLP", "ConvNet", "StagedNetwork", "UNet"]
