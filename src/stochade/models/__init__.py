"""Image classifiers built from the layers of `stochade.nn`. `stochade.registry` builds them by name."""

from stochade.models.bnn import BNN
from stochade.models.broken import LWTACNN, SAPCNN, QuantisedInput
from stochade.models.encoded import Aggregated, Encoded, FrameMean, rate_coded
from stochade.models.gated import GatedConv2d, GatedNet, GateModule
from stochade.models.lwta import LWTAMLP, BayesianLWTA
from stochade.models.masked_units import DropConnectCNN, DropoutCNN, StandoutCNN
from stochade.models.noisy import KWTACNN, MaskedCNN, NoisyInput
from stochade.models.plain import CNN1, CNN2, MLP
from stochade.models.reinforced import ReinforcedNet
from stochade.models.resnet import ResNet
from stochade.models.spiking import spiking_vgg
from stochade.models.spiking_residual import spiking_resnet
from stochade.models.wide_resnet import WideResNet

__all__ = [
    "BNN",
    "CNN1",
    "CNN2",
    "KWTACNN",
    "LWTACNN",
    "LWTAMLP",
    "MLP",
    "SAPCNN",
    "Aggregated",
    "BayesianLWTA",
    "DropConnectCNN",
    "DropoutCNN",
    "Encoded",
    "FrameMean",
    "GateModule",
    "GatedConv2d",
    "GatedNet",
    "MaskedCNN",
    "NoisyInput",
    "QuantisedInput",
    "ReinforcedNet",
    "ResNet",
    "StandoutCNN",
    "WideResNet",
    "rate_coded",
    "spiking_resnet",
    "spiking_vgg",
]
