"""Integrate-and-fire neurons against a loop in double precision that is written out here with absolute potentials."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from stochade.native import lif as native
from stochade.native.build import load
from stochade.nn import IF, LIF, SpikingNeuron, Surrogate, backward_as, forward_as, scope_of, surrogates
from stochade.nn.discrete import discrete_layers

needs_kernels = pytest.mark.skipif(load("lif") is None, reason="no C compiler")
SURROGATES = {  # name -> surrogate, its derivative written out
    "identity": (surrogates.identity(), lambda u: torch.ones_like(u)),
    "zero": (surrogates.zero(), lambda u: torch.zeros_like(u)),
    "clipped": (surrogates.clipped(-0.71, 0.43), lambda u: ((u >= -0.71) & (u <= 0.43)).to(u)),
    "atan": (surrogates.ATan(2.0), lambda u: 1 / (1 + (torch.pi * u) ** 2)),
    "sigmoid": (surrogates.sigmoid(4.0), lambda u: 4 * torch.sigmoid(4 * u) * torch.sigmoid(-4 * u)),
    "tanh": (surrogates.tanh(1.5), lambda u: 1.5 / torch.cosh(1.5 * u) ** 2),
    "triangle": (surrogates.triangle(0.83), lambda u: (0.83 - u.abs()).clamp(min=0) / 0.83**2),
    "rectangle": (surrogates.rectangle(0.83), lambda u: (u.abs() < 0.415).to(u) / 0.83),
    "gaussian": (surrogates.gaussian(0.4), lambda u: torch.exp(-(u**2) / 0.32) / (0.4 * (2 * torch.pi) ** 0.5)),
    "exponential": (surrogates.exponential(2.2), lambda u: 1.1 * torch.exp(-2.2 * u.abs())),
    "low exponential": (surrogates.exponential(2.0, 0.3), lambda u: 0.3 * torch.exp(-2 * u.abs())),
    "steps": (surrogates.steps((0.41, 1.31)), lambda u: ((u.abs() < 0.205) / 0.41 + (u.abs() < 0.655) / 1.31) / 2),
    "custom": (Surrogate(torch.atan, "custom"), lambda u: 1 / (1 + u**2)),
}
OPTIONS = [
    {"reset": reset, "decay_input": decayed, "detach_reset": detached, "v_reset": rest}
    for reset, decayed, detached, rest in itertools.product(
        ("soft", "hard"), (False, True), (False, True), (0.0, -0.25)
    )
    if reset == "hard" or rest == 0
]


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, slope):
        ctx.save_for_backward(slope(u))
        return (u >= 0).to(u)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0], None


def oracle(x, decay, slope, threshold=1.0, reset="soft", decay_input=False, detach_reset=False, v_reset=0.0):
    """The neuron as SpikingJelly words it, with tau = 1 / (1 - decay) and potentials counted from 0."""
    v, out = torch.full_like(x[0], v_reset), []
    for now in x:
        leak = (v - v_reset) * (1 - decay)
        h = v - leak + (now * (1 - decay) if decay_input else now)
        s = Step.apply(h - threshold, slope)
        fired = s.detach() if detach_reset else s
        v = h - threshold * fired if reset == "soft" else (1 - fired) * h + fired * v_reset
        out.append(s)
    return torch.stack(out)


@pytest.fixture(params=[pytest.param("kernels", marks=needs_kernels), "torch"])
def way(request, monkeypatch):
    """With compiled kernels and without."""
    if request.param == "torch":
        monkeypatch.setattr(native, "suits", lambda *tensors: False)
    return request.param


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def on_grid(*shape):
    """Numbers that float32 adds and halves without rounding; some potentials meet the threshold exactly."""
    return (torch.randn(*shape) * 96).round() / 64


def gradients(out, wanted, upstream):
    return torch.autograd.grad(out, wanted, upstream.to(out))


@pytest.mark.parametrize("name", SURROGATES)
def test_spikes_and_gradients_are_those_of_the_loop(name, way):
    surrogate, slope = SURROGATES[name]
    x, upstream = on_grid(6, 3, 41).requires_grad_(), torch.randn(6, 3, 41)
    wide, met = x.detach().double().requires_grad_(), 0
    for options in OPTIONS:
        layer = LIF(0.5, 1.0, surrogate=surrogate, **options)
        out, expected = layer(x), oracle(wide, 0.5, slope, **options)
        met += int((layer.potentials(x.detach()) == 0).sum())
        assert torch.equal(out.double(), expected)
        assert 0.03 < float(out.detach().mean()) < 0.6
        (ours,), (theirs,) = gradients(out, x, upstream), gradients(expected, wide, upstream)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    assert met > 5  # where a neuron fires at its threshold, not above it


@pytest.mark.parametrize("name", SURROGATES)
def test_the_decay_may_be_trained(name, way):
    surrogate, slope = SURROGATES[name]
    for options in OPTIONS:
        layer = LIF(0.7, 0.9, surrogate=surrogate, trainable=True, **options)
        assert layer.decay == pytest.approx(0.7)
        x, upstream = torch.randn(5, 4, 70, requires_grad=True), torch.randn(5, 4, 70)
        wide, logit = x.detach().double().requires_grad_(), layer.decay_logit.detach().double().requires_grad_()
        out, expected = layer(x), oracle(wide, torch.sigmoid(logit), slope, 0.9, **options)
        assert torch.equal(out.double(), expected)
        ours = gradients(out, (x, layer.decay_logit), upstream)
        theirs = gradients(expected, (wide, logit), upstream)
        torch.testing.assert_close(ours[0].double(), theirs[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[1].double(), theirs[1], rtol=1e-4, atol=1e-4)  # a sum over all of them
        (alone,) = gradients(layer(x.detach()), layer.decay_logit, upstream)
        assert torch.equal(alone, ours[1])


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_the_gradient_is_that_of_a_smooth_function_by_finite_differences(reset, way):
    """At a point where spikes are s0 and distances u0, spikes s0 + G(u) - G(u0) are smooth, and have the values and
    the derivatives that surrogates claim."""
    alpha, decay, eps = 1.7, 0.6, 1e-6
    x, upstream = 2 * np.random.default_rng(1).normal(size=(4, 5)), np.random.default_rng(2).normal(size=(4, 5))

    def primitive(u):
        return np.arctan(np.pi / 2 * alpha * u) / np.pi + 0.5

    def run(x, base=None):
        v, seen, value = np.zeros(5), [], 0.0
        for t in range(4):
            h = decay * v + (1 - decay) * x[t]
            u = h - 0.5
            s = (u >= 0) * 1.0 if base is None else base[t][1] + primitive(u) - primitive(base[t][0])
            seen.append((u, s))
            v = h - 0.5 * s if reset == "soft" else h * (1 - s)
            value += (upstream[t] * s).sum()
        return value, seen

    base, expected = run(x)[1], np.zeros_like(x)
    assert 2 < sum(s.sum() for _, s in base) < 18
    for i in np.ndindex(*x.shape):
        change = np.zeros_like(x)
        change[i] = eps
        expected[i] = (run(x + change, base)[0] - run(x - change, base)[0]) / (2 * eps)
    point = torch.tensor(x, requires_grad=True)
    layer = LIF(decay, 0.5, reset, surrogates.ATan(alpha), decay_input=True)
    (found,) = gradients(layer(point), point, torch.tensor(upstream))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reset", ["soft", "hard"])
def test_integrate_and_fire_does_not_leak(reset, way):
    x, upstream = on_grid(7, 2, 33).requires_grad_(), torch.randn(7, 2, 33)
    slope = SURROGATES["atan"][1]
    wide = x.detach().double().requires_grad_()
    out, expected = IF(reset=reset)(x), oracle(wide, 1.0, slope, reset=reset)
    assert torch.equal(out.double(), expected)
    (ours,), (theirs,) = gradients(out, x, upstream), gradients(expected, wide, upstream)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    counts = IF()(torch.full((10, 1, 1), 0.25)).sum()
    assert counts == 2  # a current of a quarter fires every fourth step


def test_the_attacker_swaps_surrogates_and_nothing_else(way):
    model = nn.Sequential(nn.Linear(6, 9), LIF(), nn.Linear(9, 4), IF(reset="hard"))
    x, upstream = torch.randn(5, 2, 6, requires_grad=True), torch.randn(5, 2, 4)
    before = gradients(model(x), x, upstream)[0]
    sharp = surrogates.sigmoid(4.0)
    other = copy.deepcopy(model)
    other[1].surrogate = other[3].surrogate = sharp
    wanted = gradients(other(x), x, upstream)[0]
    assert not torch.allclose(before, wanted)
    for choice in ({SpikingNeuron: sharp}, {LIF: sharp, IF: "soft"}, {"*": "soft"}, {"1": sharp, model[3]: sharp}):
        with backward_as(model, choice):
            assert torch.equal(model(x), other(x))
            assert torch.equal(gradients(model(x), x, upstream)[0], wanted)
    with backward_as(model, {LIF: sharp}):  # IF keeps its own
        assert not torch.allclose(gradients(model(x), x, upstream)[0], wanted)
    assert torch.equal(gradients(model(x), x, upstream)[0], before)
    assert scope_of(model) == "none"
    assert set(discrete_layers(model)) == {"1", "3"}


def test_every_declared_substitute_and_forward_works(way):
    layer, x = LIF(), torch.randn(4, 3, 5, requires_grad=True)
    for name in layer.substitutes:
        with backward_as(layer, {"*": name}):
            out = layer(x)
        assert torch.equal(out, layer(x))
        assert gradients(out, x, torch.ones(4, 3, 5))[0].abs().sum() > 0
    with forward_as(layer, {LIF: "warm"}):
        soft = layer(x)
    assert ((soft > 0) & (soft < 1)).all()
    point = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    with forward_as(layer, {LIF: "warm"}):
        assert torch.autograd.gradcheck(layer, point)


def test_a_whole_surrogate_stands_for_the_layer(way):
    """Backpropagation through rates: the upstream gradient where a neuron fired at all."""
    layer, x, upstream = LIF(), torch.randn(5, 3, 8, requires_grad=True), torch.randn(5, 3, 8)
    fired = layer(x).detach().sum(0) > 0

    def through_rates(currents):
        return currents * fired

    with backward_as(layer, {LIF: surrogates.Whole(through_rates, "rates")}):
        out = layer(x)
    assert torch.equal(out, layer(x))
    assert torch.equal(gradients(out, x, upstream)[0], upstream * fired)
    assert 0 < fired.float().mean() < 1


def test_nothing_stays_between_calls(way):
    layer, x = LIF(), torch.randn(4, 2, 7, requires_grad=True)
    first = layer(x)
    assert torch.equal(first, layer(x))
    assert torch.equal(first[:, :1], layer(x[:, :1]))
    first.sum().backward()
    layer(x).sum().backward()  # no graph of the first call is in the way
    assert layer.state_dict() == {}
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), first)
        with forward_as(twin, {LIF: "warm"}):
            assert twin(x).detach().ne(first).all()
    assert [*LIF(trainable=True).state_dict()] == ["decay_logit"]


def test_options_may_change_after_construction(way):
    layer, x = LIF(), torch.randn(6, 2, 20)
    layer.reset, layer.threshold, layer.decay_input = "hard", 0.4, True
    assert torch.equal(layer(x), LIF(0.5, 0.4, "hard", decay_input=True)(x))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "channels last"])
def test_layouts_do_not_matter(layout, way):
    x = {
        "transposed": torch.randn(2, 5, 3, 4, 4).transpose(0, 1),
        "strided": torch.randn(5, 4, 3, 4, 8)[:, ::2, :, :, ::2],
        "expanded": torch.randn(1, 2, 3, 4, 4).expand(5, -1, -1, -1, -1),
        "channels last": torch.randn(5 * 2, 3, 4, 4).to(memory_format=torch.channels_last).unflatten(0, (5, 2)),
    }[layout]
    x, upstream = x.detach().requires_grad_(), torch.randn(2, 4, 4, 3, 5).permute(4, 0, 3, 1, 2)
    plain = x.detach().contiguous().requires_grad_()
    for layer in (LIF(), LIF(0.8, reset="hard", decay_input=True)):
        out, expected = layer(x), layer(plain)
        assert torch.equal(out, expected)
        assert torch.equal(gradients(out, x, upstream)[0], gradients(expected, plain, upstream.contiguous())[0])
    total = layer(x).sum()  # its upstream is one number, expanded
    assert torch.equal(*torch.autograd.grad(total, x), *gradients(layer(plain), plain, torch.ones_like(plain)))


@pytest.mark.parametrize("shape", [(1, 3, 5), (1, 1), (9, 1), (300, 2, 3), (2, 70, 1), (3, 1, 64), (2, 4097)])
def test_sizes(shape, way):
    x, upstream = on_grid(*shape), torch.randn(*shape)
    for layer in (LIF(), LIF(0.75, reset="hard", v_reset=-0.5)):
        options = {"reset": layer.reset, "v_reset": layer.v_reset}
        ours, theirs = x.clone().double().requires_grad_(), x.clone().double().requires_grad_()
        out, expected = layer(ours), oracle(theirs, layer.decay, SURROGATES["atan"][1], **options)
        assert torch.equal(out, expected)
        wide = gradients(expected, theirs, upstream)[0]
        torch.testing.assert_close(gradients(out, ours, upstream)[0], wide, rtol=1e-10, atol=1e-12)
        single = x.clone().requires_grad_()
        got = gradients(layer(single), single, upstream)[0]
        if shape[0] < 20:  # beyond, single precision may spike elsewhere
            torch.testing.assert_close(got.double(), wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_added_up_in_single_precision(dtype, way):
    x, upstream = torch.randn(6, 3, 50).to(dtype).requires_grad_(), torch.randn(6, 3, 50).to(dtype)
    single = x.detach().float().requires_grad_()
    for layer in (LIF(0.9), LIF(0.9, reset="hard", decay_input=True), LIF(0.9, trainable=True)):
        out, expected = layer(x), layer(single)
        assert out.dtype == dtype
        assert torch.equal(out.float(), expected)
        ours, theirs = gradients(out, x, upstream)[0], gradients(expected, single, upstream)[0]
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.float(), theirs, rtol=1e-2, atol=1e-3)


def test_an_empty_batch_is_an_empty_answer(way):
    x = torch.empty(4, 0, 3, requires_grad=True)
    out = LIF()(x)
    assert out.shape == (4, 0, 3)
    assert gradients(out, x, torch.empty(4, 0, 3))[0].shape == (4, 0, 3)


def test_no_gradient_where_nobody_asks(way):
    x = torch.randn(3, 2, 5)
    assert not LIF()(x).requires_grad
    with torch.no_grad():
        assert not LIF(trainable=True)(x.requires_grad_()).requires_grad
    assert LIF().hard(x).requires_grad is False
    assert LIF().potentials(x).requires_grad is False


def test_what_is_kept_for_the_backward_is_the_input(way):
    x, kept = torch.randn(8, 4, 16, requires_grad=True), []
    for layer in (LIF(), LIF(reset="hard", decay_input=True, trainable=True)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            layer(x)
        assert sum(kept) <= x.numel() + 2  # and the decay with its logit


def test_the_derivative_of_the_derivative_is_that_of_the_loop(way):
    x = torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)
    upstream, more = torch.randn(5, 3, 6, dtype=torch.float64), torch.randn(5, 3, 6, dtype=torch.float64)

    def plain(x):
        v, out = torch.zeros(3, 6, dtype=torch.float64), []
        for now in x:
            h = 0.5 * v + now
            soft = torch.sigmoid(4 * (h - 1))
            s = (h >= 1).double() + soft - soft.detach()
            v = h * (1 - s)
            out.append(s)
        return torch.stack(out)

    answers = []
    for call in (LIF(reset="hard", surrogate=surrogates.sigmoid(4.0)), plain):
        (g,) = torch.autograd.grad(call(x), x, upstream, create_graph=True)
        answers.append((g.detach(), *torch.autograd.grad(g, x, more)))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-9, atol=1e-11)
    assert answers[1][1].abs().max() > 0.1


@pytest.mark.filterwarnings("ignore")
def test_function_transforms_see_through(way):
    layer, x = LIF(), torch.randn(4, 3, 5)
    torch.testing.assert_close(torch.func.vmap(layer, 1, 1)(x[:, :, None])[:, :, 0], layer(x))
    point = x.clone().requires_grad_()
    expected = gradients(layer(point), point, torch.ones(4, 3, 5))[0]
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).sum())(x), expected)
    traced = torch.jit.trace(layer, x, check_trace=False)
    other = torch.randn(4, 3, 5)
    assert torch.equal(traced(other), layer(other))


def test_potentials_are_distances_to_the_threshold(way):
    layer, x = LIF(0.5, 1.0, "hard", v_reset=-0.5), on_grid(5, 2, 9)
    u = layer.potentials(x)
    assert u.shape == x.shape
    assert torch.equal((u >= 0).float(), layer(x))
    assert torch.equal(u[0], x[0] - 0.5 - 1.0)  # from the resting potential -0.5


@needs_kernels
def test_threads_and_caches_do_not_change_the_numbers(monkeypatch):
    x, upstream = torch.randn(6, 8, 64, 64, requires_grad=True), torch.randn(6, 8, 64, 64)
    layer, answers = LIF(0.9, reset="hard", decay_input=True, trainable=True), []
    for threads, past in ((1, 1 << 25), (2, 1 << 25), (3, 1), (1, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(native, "_PAST", past)
        out = layer(x)
        answers.append((out.detach(), *gradients(out, (x, layer.decay_logit), upstream)))
    for other in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answers[0], other, strict=True))


@needs_kernels
def test_kernels_are_asked_and_can_be_switched_off(monkeypatch):
    calls, real = [], native.forward
    monkeypatch.setattr(native, "forward", lambda *a: calls.append(1) or real(*a))
    x = torch.randn(3, 2, 5)
    out = LIF()(x)
    assert calls == [1]
    LIF()(x.double())
    assert calls == [1]
    monkeypatch.setattr(native, "load", lambda name: None)
    assert torch.equal(LIF()(x), out)
    assert calls == [1]
