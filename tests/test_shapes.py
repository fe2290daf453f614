"""Shapes as jaxtyping annotations, checked by beartype around the public functions: [N,...] in, [N,...] out."""

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int, TypeCheckError, jaxtyped
from torch import Tensor

from doubles import Base, examples
from stochade import (
    FGSM,
    L0,
    L1,
    L2,
    PGD,
    Backprop,
    Evolution,
    Linf,
    RandomSearch,
    UniformNoise,
    cross_entropy,
    dlr,
    margin,
)
from stochade.attacks.gradients import Pass
from stochade.data import load
from stochade.randomness import Stream

Images = Float[Tensor, "n c h w"]
PerExample = Float[Tensor, " n"]
Classes = Int[Tensor, " n"]
THREATS = [Linf(0.1), L2(0.3), L1(0.5), L0(2)]


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_threats_keep_the_shape_of_images(threat):
    @jaxtyped(typechecker=beartype)
    def check(x: Images, g: Images) -> tuple[Images, Images, Images, PerExample]:
        stream = Stream(0, torch.arange(len(x)))
        return threat.steepest(g, x), threat.project(x + g, x), threat.start(x, stream), threat.distance(x + g, x)

    check(torch.rand(5, 2, 3, 4), torch.randn(5, 2, 3, 4))


@pytest.mark.parametrize("objective", [cross_entropy, margin, dlr])
@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_objectives_give_one_number_per_example(objective, classes):
    @jaxtyped(typechecker=beartype)
    def check(z: Float[Tensor, "n k"], y: Classes, t: Classes) -> tuple[PerExample, PerExample]:
        return objective(z, y), objective(z, y, t)

    y = torch.randint(0, classes, (6,))
    check(torch.randn(6, classes), y, (y + 1) % classes)


@pytest.mark.parametrize("gradient", [Backprop(), Backprop(3), Evolution(4), Evolution(4, draws=3)], ids=str)
def test_gradients_keep_every_draw(gradient):
    @jaxtyped(typechecker=beartype)
    def check(x: Images) -> tuple[PerExample, Images, Float[Tensor, "d n k"]]:
        found: Pass = gradient(Base(), x, torch.zeros(len(x)).long(), margin, stream=Stream(0, torch.arange(len(x))))
        return found.value, found.gradient, found.logits

    x, _ = examples(5)
    assert check(x)[2].shape[0] == gradient.draws


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("build", [FGSM, PGD, UniformNoise, RandomSearch], ids=lambda b: b.__name__)
def test_attacks_return_images_and_costs_per_example(build, threat):
    @jaxtyped(typechecker=beartype)
    def check(x: Images, y: Classes) -> tuple[Images, PerExample, PerExample, Classes, Float[Tensor, "s n"]]:
        a = build(threat).run(Base(), x, y)
        return a.inputs, a.value, a.distance, a.forwards, a.trace.value

    check(*examples(7))


def test_data_gives_images_and_labels():
    @jaxtyped(typechecker=beartype)
    def check() -> tuple[Float[Tensor, "n 1 8 8"], Classes]:
        return load("digits")[:9]

    assert len(check()[0]) == 9


def test_the_checker_checks():
    @jaxtyped(typechecker=beartype)
    def wrong(x: Images) -> PerExample:
        return x

    with pytest.raises(TypeCheckError):
        wrong(torch.rand(2, 1, 2, 2))
