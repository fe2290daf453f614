"""Layers whose defence is randomness or discreteness, and the surrogates that see through them."""

from stochade.nn import surrogates
from stochade.nn.bayesian import BlockUtility, GaussianConv2d, GaussianLinear
from stochade.nn.binarised import BinaryConv2d, BinaryLinear, BinaryWeight, ScaledReLU, clipped_gradient
from stochade.nn.binary import DeterministicBinary, Sign, StochasticBinary, slope_annealing
from stochade.nn.competition import KWTA, winners
from stochade.nn.discrete import Discrete, Surrogate, backward_as, discrete_layers, forward_as, scope_of
from stochade.nn.dropout import AlwaysDropout
from stochade.nn.encoders import BernoulliRate, Direct, SignedRate, mean_over, repeat_over_time
from stochade.nn.encoders_gaussian import RSC
from stochade.nn.encoders_latency import Latency
from stochade.nn.gates import Gates, InputGatedConv2d, InputGatedLinear
from stochade.nn.lif import IF, LIF, SpikingNeuron
from stochade.nn.lwta import LWTA
from stochade.nn.masking import MaskedConv2d, MaskedLinear, RandomMask, conv2d_per_example, linear_per_example
from stochade.nn.noise import GaussianNoise
from stochade.nn.pni import ParametricNoise, PNIConv2d, PNILinear
from stochade.nn.preprocess import JPEG, GaussianSmoothing, RandomResizePad, RandomRotation, RandomShift
from stochade.nn.pruning import SAP
from stochade.nn.quantise import Quantise
from stochade.nn.reinforce import ReinforceBinary
from stochade.nn.standout import Standout

__all__ = [
    "IF",
    "JPEG",
    "KWTA",
    "LIF",
    "LWTA",
    "RSC",
    "SAP",
    "AlwaysDropout",
    "BernoulliRate",
    "BinaryConv2d",
    "BinaryLinear",
    "BinaryWeight",
    "BlockUtility",
    "DeterministicBinary",
    "Direct",
    "Discrete",
    "Gates",
    "GaussianConv2d",
    "GaussianLinear",
    "GaussianNoise",
    "GaussianSmoothing",
    "InputGatedConv2d",
    "InputGatedLinear",
    "Latency",
    "MaskedConv2d",
    "MaskedLinear",
    "PNIConv2d",
    "PNILinear",
    "ParametricNoise",
    "Quantise",
    "RandomMask",
    "RandomResizePad",
    "RandomRotation",
    "RandomShift",
    "ReinforceBinary",
    "ScaledReLU",
    "Sign",
    "SignedRate",
    "SpikingNeuron",
    "Standout",
    "StochasticBinary",
    "Surrogate",
    "backward_as",
    "clipped_gradient",
    "conv2d_per_example",
    "discrete_layers",
    "forward_as",
    "linear_per_example",
    "mean_over",
    "repeat_over_time",
    "scope_of",
    "slope_annealing",
    "surrogates",
    "winners",
]
