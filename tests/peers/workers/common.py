"""What the workers share. They run in the peers' environment, a process for each library, and print what checks say.

A check is a function whose name starts with `check_`; it raises where the adapter does not do what it should.
"""

import copy
import gc
import json
import sys
import traceback
import warnings

import torch
from torch import Tensor, nn

from stochade.attacks import PGD, Linf
from stochade.errors import StochadeError
from stochade.nn import backward_as, surrogates

SHAPE, CLASSES, STEPS = (1, 6, 6), 4, 5


def images(count: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *SHAPE, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


def input_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(torch.nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def live_floats() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(o.numel() for o in gc.get_objects() if isinstance(o, Tensor))


def equal(a: Tensor, b: Tensor, what: str) -> None:
    assert torch.equal(a, b), f"{what}: differ by up to {float((a - b).abs().max()):.3g}"


def caught(error: type[Exception], function, *args) -> str:
    """What the error says that the function must raise."""
    try:
        function(*args)
    except error as problem:
        return str(problem)
    raise AssertionError(f"no {error.__name__}")


def refuses(error: type[StochadeError], words: str, function, *args) -> None:
    message = caught(error, function, *args)
    assert words in message, f"{words!r} not in {message}"


def adapted_from_scratch(make, x: Tensor) -> Tensor:
    """The logits of the first forward of a network that has seen nothing before."""
    return make()(x)


def no_state(make) -> None:
    """Same input, same logits; a backward that comes after the next forward works; nothing grows; batches may shrink
    and an exception leaves no trace; a deepcopy works and has the same logits."""
    model = make()
    x, y = images()
    first = model(x)
    second = model(x)
    equal(first, second, "two forwards")
    first.sum().backward()
    second.sum().backward()
    del first, second
    model.zero_grad()

    counts = []
    for _ in range(6):
        input_gradient(model, x, y)
        counts.append(live_floats())
    assert counts[-1] == counts[1], f"memory grows: {counts}"

    small, whole = adapted_from_scratch(make, x[:3]), model(x)
    equal(model(x[:3]), small, "a smaller batch after a larger one")
    equal(model(x), whole, "a larger batch after a smaller one")
    caught(Exception, model, torch.rand(2, 3, 4, 4))
    equal(model(x), whole, "after an exception")

    model(x.clone().requires_grad_())
    twin = copy.deepcopy(model)
    equal(twin(x), model(x), "a deepcopy")
    modes = [m.training for m in model.modules()]
    adversarial = PGD(Linf(0.2), steps=4)(model, x, y)
    assert (adversarial - x).abs().max() > 0.1
    assert modes == [m.training for m in model.modules()]


def swaps(make, reference) -> None:
    """With `backward_as` the gradient is that of the same network built with that surrogate, and afterwards its own;
    spikes stay. `reference(surrogate name)` builds it; both have the same weights."""
    model, x, y = make(), *images()
    own, logits = input_gradient(model, x, y), model(x)
    assert own.abs().max() > 0
    for name, surrogate in (("atan", surrogates.atan(2.0)), ("sigmoid", surrogates.sigmoid(4.0))):
        with backward_as(model, {"*": surrogate}):
            equal(model(x), logits, f"logits under {name}")
            swapped = input_gradient(model, x, y)
        wanted = input_gradient(reference(name), x, y)
        assert torch.allclose(swapped, wanted, rtol=1e-4, atol=1e-6), f"{name}: {(swapped - wanted).abs().max()}"
        assert not torch.allclose(swapped, own), f"{name} changes nothing"
    equal(input_gradient(model, x, y), own, "the library's own gradient afterwards")


def main(checks: dict) -> None:
    torch.set_num_threads(1)
    answers = {}
    for name, check in checks.items():
        if name.startswith("check_") and check.__module__ == "__main__":
            torch.manual_seed(0)
            try:
                check()
                answers[name] = ""
            except Exception:
                answers[name] = traceback.format_exc()
    json.dump(answers, sys.stdout)
