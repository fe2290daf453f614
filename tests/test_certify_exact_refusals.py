"""Exact verification refuses every network whose trace does not say all that it computes, and leaves the caller's
images alone. Most networks have one pixel and a threshold, so a wrong reading is a wrong verdict.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochade.attacks.threats import L0, Linf
from stochade.certify import exact, verify
from stochade.errors import ModelError
from stochade.nn import Sign
from stochade.nn.binarised import BinaryLinear, BinaryWeight

X = torch.full((1, 1, 1, 1), 0.5)


class Body(nn.Module):
    """Class 0 where `value(pixel)` is at least 0."""

    def __init__(self, value=None):
        super().__init__()
        self.sign, self.out, self.value = Sign(), nn.Linear(1, 2, bias=False), value
        self.register_buffer("c", torch.tensor([0.2]))
        self.relu, self.fc, self.sum = nn.ReLU(inplace=True), nn.Linear(1, 2), nn.Linear(2, 1)
        self.drop = nn.Dropout(0.5, inplace=True)
        with torch.no_grad():
            self.out.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            self.fc.weight.copy_(torch.tensor([[1.0], [-1.0]]))
            self.fc.bias.copy_(torch.tensor([-0.5, 0.5]))
            self.sum.weight.fill_(1.0)
            self.sum.bias.fill_(-0.1)

    def forward(self, x):
        return self.out(self.sign(self.value(self, torch.flatten(x, 1))))


def status(model, eps=0.2, x=X):
    """The verdict on one pixel, and that of 20,001 values of the pixel."""
    model.eval()
    with torch.no_grad():
        label = model(x.clone()).argmax(1)
        line = torch.linspace(max(0.0, float(x) - eps), min(1.0, float(x) + eps), 20001).view(-1, 1, 1, 1)
        robust = bool((model(line).argmax(1) == label).all())
    return verify(model, x, label, Linf(eps))[0].status, "robust" if robust else "broken"


def relu_beside(m, h):
    h = m.fc(h)
    m.relu(h)
    return m.sum(h)


def functional_beside(m, h):
    h = m.fc(h)
    F.relu(h, inplace=True)
    return m.sum(h)


def alias(m, h):
    h = h - 0.2
    g = h
    h -= m.c
    return g + 0


def set_data(m, h):
    h = h - 0.2
    k = h - m.c
    h.data = k
    return h + 0


def written(m, h):
    h = m.fc(h)
    torch.sub(h, 0.3, out=h)
    return m.sum(h)


REFUSED = {
    "alpha": (lambda m, h: torch.sub(h, m.c, alpha=2), "argument of sub, alpha"),
    "minus": (lambda m, h: torch.add(h, m.c, alpha=-2), "argument of add, alpha"),
    "rounding_mode": (lambda m, h: torch.div(h, 0.4, rounding_mode="floor") - 0.5, "div, rounding_mode"),
    "out": (written, "out"),
    "module in place": (relu_beside, "inplace"),
    "function in place": (functional_beside, "in-place relu"),
    "view in place": (lambda m, h: m.relu(h) - 0.4, "inplace"),
    "method in place": (lambda m, h: h.relu_() - 0.4, "in-place relu"),
    "alias": (alias, "__isub__"),
    "data": (set_data, "tensor.data"),
    "start_dim": (lambda m, h: torch.flatten(h, 0).view(h.size(0), -1) - 0.4, "flatten"),
    "sum of values": (lambda m, h: h + h - 0.8, "add"),
    "constant less value": (lambda m, h: 0.4 - h, "sub"),
    "where": (lambda m, h: torch.where(h > 0.4, 1.0, -1.0), "gt|where"),
    "wide constant": (lambda m, h: h - m.c.double(), "double"),
    "clamp": (lambda m, h: h.clamp(min=0.4) - 0.45, "clamp"),
    "value of a mask": (lambda m, h: h * (h - 0.4), "mul"),
    "infinite": (lambda m, h: h - float("inf"), "finite"),
    "too wide": (lambda m, h: m.sum(h - torch.stack([h[:, 0], h[:, 0]], 1)), "operations|getitem"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_calls_that_are_not_read_whole_are_refused(name):
    value, told = REFUSED[name]
    with pytest.raises(ModelError, match=told):
        verify(Body(value).eval(), X, torch.tensor([0]), Linf(0.2))


READ = {
    "keyword": lambda m, h: torch.sub(h, other=m.c),
    "scalar": lambda m, h: torch.add(h, -0.35),
    "owned": lambda m, h: m.sum(m.relu(m.fc(h))),
    "owned behind dropout": lambda m, h: m.sum(m.relu(m.drop(m.fc(h)))),
    "owned function": lambda m, h: m.sum(F.relu(m.fc(h), inplace=True)),
    "flat": lambda m, h: h.flatten(1, -1).view(h.size(0), -1) - 0.4,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("eps", [0.05, 0.2, 0.4])
def test_calls_that_are_read_have_their_truth(name, eps):
    found, truth = status(Body(READ[name]), eps)
    assert found == truth


def shadowed():
    layer = nn.Linear(1, 1)
    layer.forward = lambda z: z - 0.4
    return nn.Sequential(nn.Flatten(), layer, Sign(), nn.Linear(1, 2))


def shadowed_root():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    model.forward = lambda x: torch.zeros(len(x), 2)
    return model


def shadowed_hard():
    sign = Sign()
    sign.hard = lambda z: torch.where(z > 0.1, 1.0, -1.0)
    return nn.Sequential(nn.Flatten(), sign, nn.Linear(1, 2))


class Called(nn.Sequential):
    def __call__(self, x):
        return super().__call__(x - 0.1)


class Scaled(nn.Linear):
    def forward(self, x):
        return torch.tanh(super().forward(x))


class Weights(BinaryWeight):
    def weights(self, count, r):
        return -super().weights(count, r)


class Optional(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x, more=None):
        x = x.flatten(1)
        return self.linear(x) if more is None else self.linear(-x)


class Counting(Optional):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1)
        return self.linear(x.flatten(1))


class Shy(Optional):
    """Another function for tensors than for what a trace hands in, above 0.6 and below 0.4 only."""

    def forward(self, x):
        x = x.flatten(1)
        if isinstance(x, torch.Tensor):
            return self.linear(torch.where((x - 0.5).abs() > 0.1, 1 - x, x))
        return self.linear(x)


MODELS = {
    "own forward of the instance": shadowed,
    "own forward of the instance Sequential": shadowed_root,
    "own hard": shadowed_hard,
    "own call": lambda: Called(nn.Flatten(), nn.Linear(1, 2)),
    "tanh": lambda: nn.Sequential(nn.Flatten(), Scaled(1, 2)),
    "BinaryLinear": lambda: nn.Sequential(nn.Flatten(), BinaryLinear(1, 2, Weights())),
    "more": Optional,
    "changes calls": Counting,
    "other logits than its layers": Shy,
    "padding_mode|Conv2d": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten()
    ),
    "Flatten": lambda: nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(1, 2)),
    "MaxPool2d": lambda: nn.Sequential(Sign(), nn.MaxPool2d(1, ceil_mode=True), nn.Flatten(), nn.Linear(1, 2)),
}


@pytest.mark.parametrize("told", MODELS)
def test_modules_that_compute_something_else_are_refused(told):
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=told):
        verify(MODELS[told]().eval(), X, torch.tensor([0]), Linf(0.3))


def test_statistics_of_a_batch_are_refused():
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), norm).eval()
    with pytest.raises(ModelError, match="statistics"):
        verify(model, X.repeat(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64), Linf(0.1))


def test_autocast_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.autocast("cpu"), pytest.raises(ModelError, match="autocast"):
        verify(model, X, torch.tensor([0]), Linf(0.1))


@pytest.mark.parametrize("threat", [Linf(0.1), L0(1)], ids=str)
def test_the_reading_is_compared_on_every_image_and_on_points_of_the_threat(monkeypatch, threat):
    """A reading that is wrong for one image, the last, or only away from the images, is refused."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    x = torch.rand(20, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    seen = []
    true = exact._check_reading
    monkeypatch.setattr(
        exact, "_check_reading", lambda m, ops, image, unit: (seen.append(image[0]), true(m, ops, image, unit))
    )
    verify(model, x, torch.zeros(20, dtype=torch.int64), threat)
    assert torch.equal(torch.stack(seen[:20]), x)
    inside = torch.stack(seen[20:36])
    assert bool((threat.distance(inside, x[:16]) <= threat.eps + 1e-6).all())
    assert bool((inside != x[:16]).flatten(1).any(1).all())
    assert len(seen) == 40


def test_a_constant_counts_as_float32_rounds_it():
    """1 + 1e-8 is 1 in float32: the sign is +1 at the pixel 1, and only there."""
    model, x = Body(lambda m, h: h - 1.00000001).eval(), torch.full((1, 1, 1, 1), 0.999)
    assert model(x).argmax(1) == 1
    assert model(torch.ones_like(x)).argmax(1) == 0
    assert verify(model, x, torch.tensor([1]), Linf(0.01))[0].status != "robust"


class InPlace(Body):
    def forward(self, x):
        h = torch.flatten(x, 1)
        h -= 0.1
        return self.out(self.sign(h - 0.3))


class Late(Body):
    """Writes into its images only where it is not traced."""

    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x[x > 2] = 0
            x.mul_(1.0).add_(0.0 if bool((x == 0.5).all()) else 1e-3)
        return self.out(self.sign(torch.flatten(x, 1) - 0.35))


@pytest.mark.parametrize(("model", "told"), [(InPlace(), "__isub__"), (Late(), "images as they are")])
def test_the_callers_images_stay(model, told):
    x = torch.full((3, 1, 1, 1), 0.5)
    before, version = x.clone(), x._version
    with pytest.raises(ModelError, match=told):
        verify(model.eval(), x, torch.zeros(3, dtype=torch.int64), Linf(0.05))
    assert torch.equal(x, before)
    assert x._version == version
