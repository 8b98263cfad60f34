"""Build: the model families, each written once with its connection as an argument."""

from skipway.models.attention import Attention, Cache
from skipway.models.bert import BERT
from skipway.models.bert_sizes import bert
from skipway.models.conformer import Conformer
from skipway.models.densenet import DenseNet, DenseNetPlan
from skipway.models.densenet_sizes import cifar_densenet, imagenet_densenet
from skipway.models.family import Family, Input
from skipway.models.generation import Beam, Greedy, Sampling, generate, translate
from skipway.models.gpt import GPT
from skipway.models.gpt_sizes import gpt
from skipway.models.highway import HighwayNet, HighwayPlan
from skipway.models.highway_sizes import convolutional_highway, highway
from skipway.models.recipe import smoothed_loss, warm_up, warmup_rate
from skipway.models.registry import Description, create, describe, example, find, names
from skipway.models.resnet import ResNet, ResNetPlan
from skipway.models.resnet_sizes import cifar_resnet, cifar_resnext, imagenet_resnet, wide_resnet
from skipway.models.transformer import EncoderDecoder, Transformer
from skipway.models.transformer_layers import Decoder, Encoder, LayerPlan
from skipway.models.transformer_sizes import transformer
from skipway.models.unet import UNet
from skipway.models.unet_plan import UNetPlan
from skipway.models.unet_sizes import unet, unet_2015
from skipway.models.vgg import VGG, VGGPlan
from skipway.models.vgg_sizes import cifar_vgg, imagenet_vgg
from skipway.models.vit import ViT
from skipway.models.vit_sizes import imagenet_vit, small_vit
from skipway.models.weights import load_weights

__all__ = [
    "BERT",
    "GPT",
    "VGG",
    "Attention",
    "Beam",
    "Cache",
    "Conformer",
    "Decoder",
    "DenseNet",
    "DenseNetPlan",
    "Description",
    "Encoder",
    "EncoderDecoder",
    "Family",
    "Greedy",
    "HighwayNet",
    "HighwayPlan",
    "Input",
    "LayerPlan",
    "ResNet",
    "ResNetPlan",
    "Sampling",
    "Transformer",
    "UNet",
    "UNetPlan",
    "VGGPlan",
    "ViT",
    "bert",
    "cifar_densenet",
    "cifar_resnet",
    "cifar_resnext",
    "cifar_vgg",
    "convolutional_highway",
    "create",
    "describe",
    "example",
    "find",
    "generate",
    "gpt",
    "highway",
    "imagenet_densenet",
    "imagenet_resnet",
    "imagenet_vgg",
    "imagenet_vit",
    "load_weights",
    "names",
    "small_vit",
    "smoothed_loss",
    "transformer",
    "translate",
    "unet",
    "unet_2015",
    "warm_up",
    "warmup_rate",
    "wide_resnet",
]
