"""Models by name. Every model built here carries a description from which it can be built again.

Adding a model is one line in `MODELS`.
"""

import difflib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from stochade.errors import UsageError
from stochade.models.bnn import BNN
from stochade.models.broken import LWTACNN, SAPCNN, quantised_cnn
from stochade.models.encoded import rate_coded
from stochade.models.gated import GatedNet
from stochade.models.lwta import LWTAMLP, BayesianLWTA
from stochade.models.masked_units import DropConnectCNN, DropoutCNN, StandoutCNN
from stochade.models.noisy import KWTACNN, MaskedCNN, NoisyInput
from stochade.models.plain import CNN1, CNN2, MLP
from stochade.models.pni import PNICNN
from stochade.models.preprocessed import behind
from stochade.models.pruned import pruned_cnn
from stochade.models.reinforced import ReinforcedNet
from stochade.models.resnet import ResNet
from stochade.models.sgbn import SGBN, plain_cnn, sgbn_cifar
from stochade.models.spiking import spiking_vgg
from stochade.models.spiking_residual import spiking_resnet
from stochade.models.wide_resnet import WideResNet


@dataclass(frozen=True)
class Entry:
    """A registered model: `build(input_shape, classes, **options)`, with `fixed` options that the name implies."""

    build: Callable[..., nn.Module]
    description: str
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def options(self) -> dict[str, Any]:
        """The options a caller may set, with their defaults."""
        parameters = inspect.signature(self.build).parameters
        return {
            name: parameter.default
            for name, parameter in parameters.items()
            if name not in ("input_shape", "classes", *self.fixed)
        }


def _noisy_cnn(
    input_shape: Sequence[int], classes: int, sigma: float = 0.25, scope: str = "example", network: str = "2cnn"
) -> nn.Module:
    return NoisyInput(_named(network, classes, input_shape), sigma, scope)  # type: ignore[arg-type]


def _rate_cnn(input_shape: Sequence[int], classes: int, steps: int = 8, hidden: int = 100) -> nn.Module:
    return rate_coded(CNN1(input_shape, classes, hidden), steps)


def _shift_cnn(input_shape: Sequence[int], classes: int, pixels: int = 2, network: str = "2cnn") -> nn.Module:
    return behind("shift", partial(_named, network, classes), input_shape, pixels=pixels)


def _rotation_cnn(
    input_shape: Sequence[int], classes: int, degrees: float = 15.0, network: str = "2cnn"
) -> nn.Module:
    return behind("rotation", partial(_named, network, classes), input_shape, degrees=degrees)


def _resize_cnn(
    input_shape: Sequence[int], classes: int, low: float = 0.8, high: float = 1.0, network: str = "2cnn"
) -> nn.Module:
    return behind("resize", partial(_named, network, classes), input_shape, low=low, high=high)


def _smoothed_cnn(input_shape: Sequence[int], classes: int, sigma: float = 1.0, network: str = "2cnn") -> nn.Module:
    return behind("smoothing", partial(_named, network, classes), input_shape, sigma=sigma)


def _jpeg_cnn(input_shape: Sequence[int], classes: int, quality: int = 75, network: str = "2cnn") -> nn.Module:
    return behind("jpeg", partial(_named, network, classes), input_shape, quality=quality)


def _bit_depth_cnn(input_shape: Sequence[int], classes: int, bits: int = 3, network: str = "2cnn") -> nn.Module:
    return behind("bit-depth", partial(_named, network, classes), input_shape, bits=bits)


def _named(network: str, classes: int, input_shape: Sequence[int]) -> nn.Module:
    return build(network, input_shape, classes)


def _extra_class(input_shape: Sequence[int], classes: int, base: str = "2cnn") -> nn.Module:
    if base not in MODELS:
        raise UsageError("a registered model", repr(base), f"registered: {', '.join(MODELS)}")
    return MODELS[base].build(tuple(input_shape), classes + 1, **MODELS[base].fixed)


def _released_vggsnn(
    input_shape: Sequence[int], classes: int, encoder: str = "srate", steps: int = 4, width: float = 1.0,
    encoder_options: Mapping[str, Any] | None = None,
) -> nn.Module:  # fmt: skip
    neurons = {"reset": "hard", "surrogate": "triangle"}
    return spiking_vgg(input_shape, classes, "vggsnn-released", encoder, steps, width, "if", encoder_options, neurons)


_RELU = {"activation": "relu", "backward": "soft"}
_STOCHASTIC, _DETERMINISTIC = {"activation": "stochastic"}, {"activation": "deterministic"}

MODELS: dict[str, Entry] = {
    "mlp": Entry(MLP, "dense 100, ReLU", _RELU),
    "mlp-stochastic": Entry(MLP, "dense 100, stochastic binary units", _STOCHASTIC),
    "mlp-deterministic": Entry(MLP, "dense 100, rounded binary units", _DETERMINISTIC),
    "1cnn": Entry(CNN1, "one convolution, dense 100, ReLU", _RELU),
    "1cnn-stochastic": Entry(CNN1, "one convolution, dense 100 of stochastic binary units", _STOCHASTIC),
    "1cnn-deterministic": Entry(CNN1, "one convolution, dense 100 of rounded binary units", _DETERMINISTIC),
    "2cnn": Entry(CNN2, "two convolutions, dense 100, ReLU", _RELU),
    "2cnn-stochastic": Entry(CNN2, "two convolutions, dense 100 of stochastic binary units", _STOCHASTIC),
    "2cnn-deterministic": Entry(CNN2, "two convolutions, dense 100 of rounded binary units", _DETERMINISTIC),
    "mlp-reinforce": Entry(ReinforcedNet, "dense 100 of units that learn by REINFORCE", {"channels": ()}),
    "1cnn-reinforce": Entry(ReinforcedNet, "one convolution, units that learn by REINFORCE", {"channels": (32,)}),
    "2cnn-reinforce": Entry(ReinforcedNet, "two convolutions, units that learn by REINFORCE", {"channels": (32, 64)}),
    "extra-class": Entry(_extra_class, "another model with one logit more, for adversarial examples"),
    "bnn": Entry(BNN, "weights and activations of -1 and +1 after a first convolution in full precision"),
    "bnn-stochastic": Entry(BNN, "the same with the weights of its last convolution drawn", {"drawn": "last"}),
    "2cnn-standout": Entry(StandoutCNN, "two convolutions with adaptive dropout, dense 100 of binary units"),
    "2cnn-dropconnect": Entry(DropConnectCNN, "two convolutions, filters masked at random", {"rescale": True}),
    "2cnn-random-mask": Entry(DropConnectCNN, "the same without rescaling what is kept", {"rescale": False}),
    "2cnn-dropout": Entry(DropoutCNN, "two convolutions with dropout that stays on at test"),
    "gated": Entry(GatedNet, "convolutions gated weight by weight by draws that depend on the image (small SGBN)"),
    "sgbn": Entry(SGBN, "two convolutions gated weight by weight, dense 100 of binary units (SGBN; 32 M on MNIST)"),
    "sgbn-1w": Entry(SGBN, "SGBN whose gate networks share the convolutions' filters", {"own": False}),
    "sgbn-factored": Entry(SGBN, "SGBN with a gate per channel instead of per weight", {"head": "factored"}),
    "sgbn-deterministic": Entry(SGBN, "SGBN with sigmoid gates and no draws", {"gates": "deterministic"}),
    "sgbn-cifar": Entry(sgbn_cifar, "SGBN with three convolutions, the last two gated (366 M on 32x32, head=full)"),
    "cnn-added": Entry(plain_cnn, "SGBN's main network without gates, as many parameters (control)"),
    "pruned-cnn": Entry(pruned_cnn, "SGBN's main network with adaptive dropout or activation pruning (rivals)"),
    "kwta-cnn": Entry(KWTACNN, "two convolutions with k-winners-take-all"),
    "sap-cnn": Entry(SAPCNN, "two convolutions, stochastic activation pruning after each ReLU"),
    "lwta-cnn": Entry(LWTACNN, "eight convolutions with stochastic local winner-takes-all"),
    "quantised-cnn": Entry(quantised_cnn, "two convolutions on images of a few grey levels"),
    "shift-cnn": Entry(_shift_cnn, "any network behind random shifts (two convolutions)"),
    "rotation-cnn": Entry(_rotation_cnn, "any network behind random rotations (two convolutions)"),
    "random-resize-cnn": Entry(_resize_cnn, "any network behind random resizing and padding (two convolutions)"),
    "smoothed-cnn": Entry(_smoothed_cnn, "any network behind Gaussian smoothing (two convolutions)"),
    "jpeg-cnn": Entry(_jpeg_cnn, "any network behind JPEG compression (two convolutions)"),
    "bit-depth-cnn": Entry(_bit_depth_cnn, "any network on images of few bits (two convolutions)"),
    "noisy-cnn": Entry(_noisy_cnn, "any network behind Gaussian noise on the input (two convolutions)"),
    "pni-cnn": Entry(PNICNN, "two convolutions with parametric noise on weights, activations or the input"),
    "masked-cnn": Entry(MaskedCNN, "one convolution, weights masked at random for every example (DropConnect)"),
    "rate-cnn": Entry(_rate_cnn, "one convolution on Bernoulli rate codes, logits averaged over time"),
    "resnet": Entry(ResNet, "residual network for small images, any activation, gates by option (ResNet-20)"),
    "resnet-small": Entry(ResNet, "residual network of three blocks, any activation", {"blocks": (1, 1, 1)}),
    "wide-resnet": Entry(WideResNet, "wide residual network of any depth and widening (WRN-34-1), any activation"),
    "lwta-mlp": Entry(LWTAMLP, "dense layers with local winner-takes-all"),
    "lwta-bayesian": Entry(BayesianLWTA, "winner-takes-all, Gaussian weights, block utilities; trained by ELBO"),
    "lwta-wide-resnet": Entry(
        WideResNet, "wide residual network with stochastic local winner-takes-all (WRN-34-1)", {"activation": "lwta"}
    ),
    "snn": Entry(spiking_vgg, "two convolutions of spiking neurons, any encoder (signed rate)", {"plan": "small"}),
    "vggsnn": Entry(spiking_vgg, "spiking network of eight convolutions, any encoder (VGGSNN)", {"plan": "vggsnn"}),
    "vggsnn-released": Entry(
        _released_vggsnn, "VGGSNN as its authors' code has it: other layers, no leak, hard reset (61 M on 32x32)"
    ),
    "spiking-vgg5": Entry(spiking_vgg, "spiking VGG-5, any encoder", {"plan": "vgg5"}),
    "spiking-vgg11": Entry(spiking_vgg, "spiking VGG-11, any encoder", {"plan": "vgg11"}),
    "spiking-vgg16": Entry(spiking_vgg, "spiking VGG-16, any encoder", {"plan": "vgg16"}),
    "spiking-resnet19": Entry(spiking_resnet, "spiking ResNet-19, any encoder (direct)", {"plan": "resnet19"}),
    "sew-resnet18": Entry(spiking_resnet, "residual network that adds spikes, 18 layers", {"plan": "sew-resnet18"}),
    "sew-resnet34": Entry(spiking_resnet, "residual network that adds spikes, 34 layers", {"plan": "sew-resnet34"}),
}


def build(name: str, input_shape: Sequence[int] = (1, 8, 8), classes: int = 10, **options: Any) -> nn.Module:
    """The model of that name, freshly initialised from the global generator, with `model.description` set.

    Args:
        name: a key of `MODELS`.
        input_shape: (channels, height, width) of the images.
        classes: number of logits.
        options: of the model, see `MODELS[name].options()`.

    Raises:
        UsageError: an unknown name or option, or an option that JSON cannot hold.
    """
    if name not in MODELS:
        close = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UsageError("a registered model", repr(name), f"{hint}registered: {', '.join(MODELS)}")
    entry = MODELS[name]
    known = entry.options()
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise UsageError(f"an option of {name!r}", repr(option), f"{hint}options: {', '.join(known) or 'none'}")
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise UsageError("an input shape (channels, height, width)", repr(tuple(input_shape)))
    if classes < 2:
        raise UsageError("at least two classes", repr(classes))
    # Defaults are written out too, so that a checkpoint outlives a change of default.
    resolved = {**known, **options}
    description = {"model": name, "input_shape": list(shape), "classes": int(classes), "options": resolved}
    try:
        description = json.loads(json.dumps(description, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError("options that JSON can hold", f"{options!r} ({error})") from None
    model = entry.build(shape, int(classes), **resolved, **entry.fixed)
    model.__dict__["description"] = description
    return model


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The freshly initialised model that a `model.description` tells of.

    Raises:
        UsageError: a description that names no registered model or unknown options.
    """
    missing = [key for key in ("model", "input_shape", "classes", "options") if key not in description]
    if missing:
        raise UsageError("a description with model, input_shape, classes and options", f"one without {missing}")
    return build(description["model"], description["input_shape"], description["classes"], **description["options"])
