"""Small backbones that the chapters share, and ways to look inside any network."""

from kdcore.models.convnet import ConvNet
from kdcore.models.graph import GraphNetwork
from kdcore.models.inspect import features, flops, inference, latency, parameter_count
from kdcore.models.mlp import MLP
from kdcore.models.projector import Projector, to_map, to_tokens
from kdcore.models.resnet import ResNet
from kdcore.models.staged import StagedNetwork
from kdcore.models.text import TextEncoder
from kdcore.models.unet import UNet
from kdcore.models.vit import VisionTransformer

__all__ = [
    "MLP",
    "ConvNet",
    "GraphNetwork",
    "Projector",
    "ResNet",
    "StagedNetwork",
    "TextEncoder",
    "UNet",
    "VisionTransformer",
    "features",
    "flops",
    "inference",
    "latency",
    "parameter_count",
    "to_map",
    "to_tokens",
]
