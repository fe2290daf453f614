"""Norse 1.1."""

import norse.torch as norse
import torch
from common import CLASSES, STEPS, equal, images, input_gradient, main, no_state, refuses
from torch import nn

from stochade.adapters import adapt, check_gradients
from stochade.errors import GradientError, ModelError
from stochade.nn import BernoulliRate, Surrogate, backward_as

FAST = {"tau_mem_inv": torch.as_tensor(700.0)}


def parameters(method="super", alpha=100.0):
    return norse.LIFBoxParameters(method=method, alpha=torch.as_tensor(alpha), **FAST)


def cells(method="super", alpha=100.0, weights=0):
    torch.manual_seed(weights)
    made = norse.SequentialState(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), norse.LIFBoxCell(parameters(method, alpha)), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(96, CLASSES), norse.LIBoxCell(norse.LIBoxParameters(**FAST)),
    )  # fmt: skip
    with torch.no_grad():
        made[0].weight.mul_(4)
        made[5].weight.mul_(6)
    return made.eval()


def over_time(method="super"):
    torch.manual_seed(0)
    neurons = norse.LIF(norse.LIFParameters(method=method, **FAST))
    made = norse.SequentialState(
        norse.Lift(nn.Conv2d(1, 6, 3)), neurons, nn.Flatten(2), nn.Linear(96, CLASSES), norse.LI(),
    )  # fmt: skip
    with torch.no_grad():
        made[0].lifted_module.weight.mul_(12)
    return made.eval()


class Coded(nn.Module):
    """A network with an encoder inside."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.body = encoder, cells()

    def forward(self, x):
        outs, state = [], None
        for frame in self.encoder(x):
            out, state = self.body(frame, state)
            outs.append(out)
        return torch.stack(outs)


def _tanh(u):
    return torch.tanh(0.7 * u) / 0.7  # its derivative is that of Norse's method "tanh" at alpha 0.7


def check_state():
    no_state(lambda: adapt(cells(), steps=STEPS))
    no_state(lambda: adapt(over_time(), steps=STEPS))


def check_a_loop_by_hand_agrees():
    model, raw, x = adapt(cells(), steps=STEPS), cells(), images()[0]
    outs, state = [], None
    for _ in range(STEPS):
        out, state = raw(x, state)
        outs.append(out)
    equal(model(x), torch.stack(outs).mean(0), "a loop by hand")


def check_surrogates():
    """Swapped to the derivative of a method of Norse's own, the gradient is that of a network built with it."""
    (x, y), model = images(), adapt(cells(), steps=STEPS)
    own, logits = input_gradient(model, x, y), model(x)
    assert own.abs().max() > 0
    other = adapt(cells(weights=1), steps=STEPS)
    kept = input_gradient(other, x, y)
    with backward_as(model, {"*": Surrogate(_tanh)}):
        equal(model(x), logits, "logits")
        swapped = input_gradient(model, x, y)
        equal(input_gradient(other, x, y), kept, "another network's gradient meanwhile")
    wanted = input_gradient(adapt(cells("tanh", 0.7), steps=STEPS), x, y)
    assert torch.allclose(swapped, wanted, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(swapped, own)
    equal(input_gradient(model, x, y), own, "the library's own gradient afterwards")
    timed = adapt(over_time(), steps=STEPS)
    with backward_as(timed, {"*": "identity"}):
        assert not torch.allclose(input_gradient(timed, x, y), input_gradient(adapt(over_time(), steps=STEPS), x, y))


def check_encoders():
    x, y = images()
    for encoder in (norse.SignedPoissonEncoder(STEPS, f_max=1000), norse.PoissonEncoder(STEPS, f_max=1000)):
        refuses(GradientError, type(encoder).__name__, check_gradients, adapt(Coded(encoder).eval()), x, y)
    assert not check_gradients(adapt(cells(), encoder=BernoulliRate(STEPS)), x, y).all()


def check_refractory_neurons():
    made = norse.SequentialState(nn.Flatten(), nn.Linear(36, CLASSES), norse.LIFRefracCell(), norse.LIFBoxCell())
    model, x = adapt(made.eval(), steps=STEPS), images()[0]
    equal(model(x), model(x), "two forwards")

    def attack():
        with backward_as(model, {"*": "atan"}):
            model(x)

    refuses(ModelError, "LIFRefracCell", attack)


main(dict(globals()))
