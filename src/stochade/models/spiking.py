"""Spiking networks of convolutions: codes [N, T, C, H, W] -> logits [N, K], the mean over time of a linear head.

Convolutions, batch norm and pooling see time steps and examples as one batch; only neurons see time. Batch norm over
merged T and N, its weight at the firing threshold at first, is the threshold-dependent one of Zheng et al. 2021.

    plan               convolutions (P: average pooling)                                hidden       neurons
    small              16 P 32 P
    vggsnn             64 128 P 256 256 P 512 512 P 512 512 P                                        LIF, soft reset
    vggsnn-released    64 P 128 256 P 512 512 512 P 512 512                             4096 4096    IF, hard reset
    vgg5               64 P 128 128 P                                                   4096 4096    LIF
    vgg11              64 P 128 256 P 512 512 512 P 512 512                             4096 4096    LIF
    vgg16              64 64 P 128 128 P 256 256 256 P 512 512 512 P 512 512 512        4096 4096    LIF

The first VGGSNN is the one that mukhoty2025 describes (section 5), the second the one its code trains. wu2024 names
VGG-5, 11 and 16 without saying what they are: these are the forms of earlier work on robust spiking networks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from stochade.errors import ModelError, UsageError
from stochade.models.encoded import Encoded
from stochade.models.plain import Shape
from stochade.nn import IF, LIF, RSC, BernoulliRate, Direct, Latency, SignedRate, SpikingNeuron, surrogates
from stochade.nn.over_time import Merged, OverTime

Plan = tuple[tuple[int | str, ...], tuple[int, ...]]
PLANS: dict[str, Plan] = {
    "small": ((16, "P", 32, "P"), ()),
    "vggsnn": ((64, 128, "P", 256, 256, "P", 512, 512, "P", 512, 512, "P"), ()),
    "vggsnn-released": ((64, "P", 128, 256, "P", 512, 512, 512, "P", 512, 512), (4096, 4096)),
    "vgg5": ((64, "P", 128, 128, "P"), (4096, 4096)),
    "vgg11": ((64, "P", 128, 256, "P", 512, 512, 512, "P", 512, 512), (4096, 4096)),
    "vgg16": (
        (64, 64, "P", 128, 128, "P", 256, 256, 256, "P", 512, 512, 512, "P", 512, 512, 512), (4096, 4096)
    ),
}  # fmt: skip
NEURONS: dict[str, Callable[..., SpikingNeuron]] = {"lif": LIF, "if": IF}
SURROGATES = ("atan", "sigmoid", "triangle", "rectangle", "gaussian", "exponential")
ENCODERS: dict[str, Callable[..., nn.Module]] = {
    "direct": Direct,
    "rate": BernoulliRate,
    "srate": SignedRate,
    "rsc-i": partial(RSC, kind="I"),
    "rsc-ii": partial(RSC, kind="II"),
    "latency": Latency,
}
Options = Mapping[str, Any]


def neuron_maker(name: str, options: Options | None = None) -> Callable[[], SpikingNeuron]:
    """Makes fresh neurons of that name; among the options a surrogate goes by its name.

    Raises:
        UsageError: a name that is not among `NEURONS`, or options that the neuron does not have.
    """
    if name not in NEURONS:
        raise UsageError(f"neurons among {list(NEURONS)}", repr(name))
    given = _mapping(options, f"{name!r} neurons", '{"decay": 0.5}')
    if isinstance(given.get("surrogate"), str):
        if given["surrogate"] not in SURROGATES:
            raise UsageError(f"a surrogate among {list(SURROGATES)}", repr(given["surrogate"]))
        given["surrogate"] = getattr(surrogates, given["surrogate"])()
    make = partial(NEURONS[name], **given)
    try:
        make()
    except TypeError as error:
        raise UsageError(f"options of {name!r} neurons", f"{dict(options or {})} ({error})") from None
    return make


def encoder_named(name: str, steps: int, options: Options | None = None) -> nn.Module:
    """An encoder of that name: images [N,C,H,W] -> codes [N,T,C,H,W].

    Raises:
        UsageError: a name that is not among `ENCODERS`, or options that the encoder does not have.
    """
    if name not in ENCODERS:
        raise UsageError(f"an encoder among {list(ENCODERS)}", repr(name))
    given = _mapping(options, f"the encoder {name!r}", '{"sigma": 0.1}')
    try:
        return ENCODERS[name](steps=steps, **given)
    except TypeError as error:
        hint = """for example encoder_options={"sigma": 0.1} for rsc-i, {"mean": 0.5} for srate"""
        raise UsageError(f"options of the encoder {name!r}", f"{given} ({error})", hint) from None


def _mapping(options: object, whose: str, example: str) -> dict[str, Any]:
    """Options as a dictionary; UsageError for anything else."""
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise UsageError(f"options of {whose} by name", repr(options), f"for example {example}")
    return dict(options)


def initialise(body: nn.Module, threshold: float = 1.0) -> None:
    """Kaiming normal weights by fan-out and biases of zero, as the authors of mukhoty2025 do; batch norm weights at
    the threshold."""
    for module in body.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, threshold)


def vgg(
    input_shape: Shape, classes: int, plan: str, width: float, make: Callable[[], SpikingNeuron]
) -> nn.Sequential:
    """[T, N, C, H, W] -> [T, N, K] by a plan of `PLANS`: convolution (3x3), batch norm, neurons; hidden dense layers
    with neurons; a linear head. Maps that are one pixel high or wide are pooled no further.

    Args:
        width: factor of all channels and hidden units.

    Raises:
        UsageError: an unknown plan, or a width that leaves no channel. ModelError: an input shape that is none.
    """
    if len(input_shape) != 3:
        raise ModelError("an input shape (channels, height, width)", repr(tuple(input_shape)))
    if plan not in PLANS:
        raise UsageError(f"a plan among {list(PLANS)}", repr(plan))
    convolutions, hidden = PLANS[plan]
    smallest = min(count for count in (*convolutions, *hidden) if isinstance(count, int))
    if isinstance(width, bool) or not isinstance(width, int | float) or not 1 <= smallest * width < 1e6:
        raise UsageError(f"a width that leaves at least one of {smallest} channels", repr(width))
    inputs, height, across = input_shape
    layers: list[nn.Module] = []
    for item in convolutions:
        if isinstance(item, str):
            if min(height, across) < 2:
                continue
            layers.append(Merged(nn.AvgPool2d(2)))
            height, across = height // 2, across // 2
            continue
        outputs = int(item * width)
        layers += [Merged(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs)), make()]
        inputs = outputs
    inputs, flatten = inputs * height * across, [nn.Flatten()]
    for item in hidden:
        layers += [Merged(*flatten, nn.Linear(inputs, int(item * width))), make()]
        inputs, flatten = int(item * width), []
    return nn.Sequential(*layers, Merged(*flatten, nn.Linear(inputs, classes)))


def spiking_vgg(
    input_shape: Sequence[int], classes: int, plan: str = "small", encoder: str = "srate", steps: int = 4,
    width: float = 1.0, neuron: str = "lif", encoder_options: Options | None = None,
    neuron_options: Options | None = None,
) -> Encoded:  # fmt: skip
    """A spiking VGG behind an encoder: images [N,C,H,W] in [0,1] -> logits [N,K].

    Args:
        plan: a key of `PLANS`. encoder: a key of `ENCODERS`. steps: T.
        width: factor of all channels and hidden units.
        neuron: "lif" or "if". encoder_options, neuron_options: of these layers ("mean", "floor", "sigma"; "decay",
            "threshold", "reset", "surrogate" by name, "detach_reset", ...).

    Raises:
        UsageError: a name or option that is not there. ModelError: an input shape that is none.
    """
    make = neuron_maker(neuron, neuron_options)
    body = vgg(tuple(input_shape), classes, plan, width, make)  # type: ignore[arg-type]
    initialise(body, make().threshold)
    return Encoded(encoder_named(encoder, steps, encoder_options), OverTime(body))
