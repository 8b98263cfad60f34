"""Build: the model families, each written once with its connection as an argument."""

from skipway.models.family import Family, Input
from skipway.models.highway import HighwayNet, HighwayPlan
from skipway.models.highway_sizes import convolutional_highway, highway
from skipway.models.registry import Description, create, describe, example, find, names
from skipway.models.resnet import ResNet, ResNetPlan
from skipway.models.resnet_sizes import cifar_resnet, cifar_resnext, imagenet_resnet, wide_resnet
from skipway.models.unet import UNet
from skipway.models.unet_plan import UNetPlan
from skipway.models.unet_sizes import unet, unet_2015
from skipway.models.vgg import VGG, VGGPlan
from skipway.models.vgg_sizes import cifar_vgg, imagenet_vgg
from skipway.models.weights import load_weights

__all__ = [
    "VGG",
    "Description",
    "Family",
    "HighwayNet",
    "HighwayPlan",
    "Input",
    "ResNet",
    "ResNetPlan",
    "UNet",
    "UNetPlan",
    "VGGPlan",
    "cifar_resnet",
    "cifar_resnext",
    "cifar_vgg",
    "convolutional_highway",
    "create",
    "describe",
    "example",
    "find",
    "highway",
    "imagenet_resnet",
    "imagenet_vgg",
    "load_weights",
    "names",
    "unet",
    "unet_2015",
    "wide_resnet",
]
