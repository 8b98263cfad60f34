"""Build: the model families, each written once with its connection as an argument."""

from skipway.models.family import Family, Input
from skipway.models.registry import Description, create, describe, example, find, names
from skipway.models.resnet import ResNet, ResNetPlan
from skipway.models.resnet_sizes import cifar_resnet, imagenet_resnet
from skipway.models.unet import UNet
from skipway.models.unet_plan import UNetPlan
from skipway.models.unet_sizes import unet, unet_2015
from skipway.models.weights import load_weights

__all__ = [
    "Description",
    "Family",
    "Input",
    "ResNet",
    "ResNetPlan",
    "UNet",
    "UNetPlan",
    "cifar_resnet",
    "create",
    "describe",
    "example",
    "find",
    "imagenet_resnet",
    "load_weights",
    "names",
    "unet",
    "unet_2015",
]
