"""Registered models small enough for tests of all of them."""

from stochade.models.spiking import spiking_vgg
from stochade.models.spiking_residual import spiking_resnet
from stochade.registry import MODELS


def small(name: str) -> dict[str, float]:
    """Options that shrink a model of tens of millions of weights; none for the others."""
    large = MODELS[name].build in (spiking_vgg, spiking_resnet) or name == "vggsnn-released"
    return {"width": 1 / 16} if large and name != "snn" else {}
