"""Adapters with stand-ins that have the traps of SpikingJelly, snnTorch and Norse; tests/peers has the real ones."""

import ast
import copy
import pickle
import sys
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import stochade.adapters
from stochade.adapters import ForeignSpike, Norse, SNNTorch, SpikingJelly, adapt, check_gradients
from stochade.attacks import PGD, SEA, Backprop, Flips, Linf
from stochade.attacks.codes import encode
from stochade.errors import BudgetError, GradientError, ModelError, UsageError
from stochade.nn import BernoulliRate, Surrogate, backward_as, discrete_layers, forward_as, scope_of, surrogates
from stochade.randomness import fingerprint, forked, untouched
from stochade.targets import load_target

STEPS, CLASSES = 4, 5
OWN = surrogates.gaussian(0.7)


class Fire(nn.Module):
    """A surrogate function as a module: fires at u >= 0."""

    def __init__(self, surrogate=OWN):
        super().__init__()
        self.surrogate = surrogate

    def forward(self, u):
        return self.surrogate((u >= 0).to(u), u)


class JellyNode(nn.Module):
    """Memories, a reset that writes in place, no gradient in eval mode, kernels that ignore surrogates."""

    def __init__(self, surrogate=OWN, mode="m", backend="torch"):
        super().__init__()
        self._memories, self._memories_rv = {"v": 0.0}, {"v": 0.0}
        self.surrogate_function, self.step_mode, self._backend = Fire(surrogate), mode, backend
        self.v_seq = None

    def reset(self):
        if isinstance(self._memories["v"], Tensor):
            self._memories["v"].data.zero_()
        self.v_seq = None

    def one(self, x):
        v = 0.5 * self._memories["v"] + x
        own = Fire() if self._backend == "kernel" else self.surrogate_function
        spike = own(v - 1.0)
        self._memories["v"] = v - spike
        self.v_seq = v
        return spike

    def forward(self, x):
        out = torch.stack([self.one(frame) for frame in x]) if self.step_mode == "m" else self.one(x)
        return out if self.training else out.detach()


class IFNode(JellyNode):
    """Named as SpikingJelly's; so adapters know that train mode computes the same."""


class Merged(nn.Module):
    """A layer over merged time and batch."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def jelly(surrogate=OWN, mode="m", backend="torch", node=IFNode) -> nn.Module:
    with forked(0):
        first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        second = nn.Sequential(nn.Dropout(0.5), nn.Linear(64, CLASSES))
    with torch.no_grad():
        first[0].weight.mul_(4)
    wrap = Merged if mode == "m" else nn.Identity
    parts = [first, second] if wrap is nn.Identity else [Merged(first), Merged(second)]
    return nn.Sequential(parts[0], node(surrogate, mode, backend), parts[1]).eval()


class Leaky(nn.Module):
    """A buffer that is not saved, a function as surrogate, a class list of all instances."""

    instances: ClassVar[list] = []

    def __init__(self, surrogate=OWN, init_hidden=True):
        super().__init__()
        Leaky.instances.append(self)
        self.register_buffer("mem", torch.zeros(0), False)
        self.spike_grad, self.init_hidden = Fire(surrogate).forward, init_hidden

    def reset_mem(self):
        self.mem = torch.zeros_like(self.mem)
        return self.mem

    def forward(self, x, mem=None):
        if mem is not None:
            self.mem = mem
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        self.reset = self.spike_grad(self.mem - 1).detach()
        self.mem = 0.5 * self.mem + x - self.reset
        spike = self.spike_grad(self.mem - 1)
        return spike if self.init_hidden else (spike, self.mem)


class Hidden(nn.Module):
    """Called once per step; gives spikes and potentials."""

    def __init__(self, surrogate=OWN):
        super().__init__()
        with forked(1):
            self.first, self.second = nn.Linear(36, 20), nn.Linear(20, CLASSES)
        self.lif, self.kept = Leaky(surrogate), [[]]
        with torch.no_grad():
            self.first.weight.mul_(4)

    def forward(self, x):
        out = self.lif(self.first(x.flatten(1)))
        self.kept[0].append(out)  # a recorder, as users have them
        return self.second(out), self.lif.mem


class Loop(Hidden):
    """A loop over [T,N,...] by hand, with states passed along."""

    def __init__(self, surrogate=OWN):
        super().__init__(surrogate)
        self.lif.init_hidden = False

    def step(self, frame, state):
        spike, state = self.lif(self.first(frame.flatten(1)), state)
        return self.second(spike), state

    def forward(self, x):
        outs, state = [], None
        for frame in x if x.dim() == 5 else x.expand(STEPS, *x.shape):
            out, state = self.step(frame, torch.zeros(len(frame), 20) if state is None else state)
            outs.append(out)
        return torch.stack(outs)


class Parameters(NamedTuple):
    method: str
    alpha: float


def threshold(u, method, alpha):
    return {"super": OWN, "tanh": surrogates.tanh(alpha)}[method]((u > 0).to(u), u)


def lif_step(x, state, p, dt=0.5):
    v = dt * state + x
    z = threshold(v - 1, p.method, p.alpha)
    return z, v - z


class SNNCell(nn.Module):
    """State is an argument; the surrogate is named by a parameter."""

    def __init__(self, method="super", alpha=1.0):
        super().__init__()
        self.activation, self.p = lif_step, Parameters(method, alpha)

    def forward(self, x, state=None):
        return self.activation(x, torch.zeros_like(x) if state is None else state, self.p)


class Cells(nn.Module):
    def __init__(self, method="super", alpha=1.0):
        super().__init__()
        with forked(2):
            self.first, self.second = nn.Linear(36, 20), nn.Linear(20, CLASSES)
        self.cell = SNNCell(method, alpha)
        with torch.no_grad():
            self.first.weight.mul_(4)

    def forward(self, x, state=None):
        out, state = self.cell(self.first(x.flatten(1)), state)
        return self.second(out), state


def made(kind: str, surrogate=OWN):
    """An adapted stand-in whose neurons have this surrogate."""
    if kind == "norse":
        return adapt(Cells() if surrogate is OWN else Cells("tanh", 1.3), steps=STEPS)
    if kind == "jelly-s":
        return adapt(jelly(surrogate, "s"), steps=STEPS)
    if kind == "snn-step":
        return adapt(Loop(surrogate).eval(), steps=STEPS, step="step")
    raw = {"jelly-m": jelly, "snn-hidden": Hidden, "snn-sequence": Loop}[kind](surrogate)
    return adapt(raw.eval(), steps=STEPS)


KINDS = ["jelly-m", "jelly-s", "snn-hidden", "snn-sequence", "snn-step", "norse"]


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> Tensor:
    return torch.arange(6) % CLASSES


def gradient(model, x, y) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def state_of(model) -> list:
    return [
        (name, value)
        for m in model.modules()
        for name, value in [*vars(m).items(), *m._buffers.items(), *getattr(m, "_memories", {}).items()]
        if isinstance(value, Tensor) and (value.requires_grad or (name in ("v", "mem") and value.any()))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_no_state_outlives_a_forward(kind, x, y):
    model = made(kind)
    first, second = model(x), model(x)
    assert torch.equal(first, second)
    first.sum().backward()  # the second forward has changed nothing that the first one's backward needs
    second.sum().backward()
    model(x.requires_grad_())
    assert state_of(model) == []
    assert all(not m.kept[0] for m in model.modules() if isinstance(m, Hidden))
    assert torch.equal(copy.deepcopy(model)(x), first)
    small = made(kind)(x[:2])
    assert torch.equal(model(x[:2]), small)
    assert torch.equal(model(x), first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stale_state_does_not_reach_the_next_forward(kind, x):
    """The caller has run the network by hand in between, with a graph."""
    model = made(kind)
    wanted = model(x)
    raw = model.network.model
    raw(x.expand(STEPS, *x.shape) if kind in ("jelly-m", "snn-sequence") else x)
    assert torch.equal(model(x), wanted)
    assert state_of(model) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_exception_leaves_the_network_as_it_was(kind, x, y):
    model = made(kind)
    wanted, neurons = gradient(model, x, y), [slot.neuron for slot in model.network._slots]
    before = [(n.training, dict(vars(n)), dict(n._modules)) for n in neurons]
    with pytest.raises(RuntimeError), backward_as(model, {"*": "atan"}):
        model(torch.rand(2, 1, 9, 9))
    for neuron, (training, attributes, children) in zip(neurons, before, strict=True):
        assert neuron.training == training
        assert children == neuron._modules
        assert attributes.keys() == vars(neuron).keys()
    assert torch.equal(gradient(model, x, y), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_swapped_surrogate_is_the_gradient_of_a_network_built_with_it(kind, x, y):
    model = made(kind)
    other = surrogates.tanh(1.3)
    own, logits = gradient(model, x, y), model(x)
    with backward_as(model, {"*": other}):
        assert torch.equal(model(x), logits)
        swapped = gradient(model, x, y)
    torch.testing.assert_close(swapped, gradient(made(kind, other), x, y))
    assert not torch.allclose(swapped, own)
    assert torch.equal(gradient(model, x, y), own)
    with backward_as(model, {ForeignSpike: "ste"}):
        assert not torch.allclose(gradient(model, x, y), own)
    with forward_as(model, {"*": "warm"}):
        assert not torch.equal(model(x), logits)


def test_only_this_network_is_touched(x):
    Leaky.instances.clear()
    model, other = made("snn-hidden"), Hidden()
    other(x)
    before = other.lif.mem
    model(x)
    assert other.lif.mem is before
    assert before.any()
    assert [n.mem.numel() for n in Leaky.instances] == [0, before.numel()]


def test_the_gradient_in_eval_mode_is_that_of_awake_neurons_alone(x, y):
    raw = jelly()
    leaf = x.clone().requires_grad_()
    out = raw(leaf.expand(STEPS, *x.shape))
    assert torch.autograd.grad(out.sum(), leaf, allow_unused=True) == (None,)  # the trap
    model, statistics = adapt(raw, steps=STEPS), raw[0].layer[1].running_mean.clone()
    found = gradient(model, x, y)
    assert found.abs().max() > 0
    assert not any(m.training for m in model.modules())
    assert torch.equal(raw[0].layer[1].running_mean, statistics)
    raw[1].train()
    raw[1]._memories["v"] = 0.0
    torch.testing.assert_close(found, gradient(lambda z: raw(z.expand(STEPS, *z.shape)).mean(0), x, y))


def test_neurons_whose_train_mode_is_unknown_stay_asleep(x, y):
    model = adapt(jelly(node=JellyNode), steps=STEPS)
    with pytest.raises(GradientError, match="detached graph"):
        check_gradients(model, x, y)


def test_train_mode_is_the_callers(x):
    raw = jelly().train()
    model = adapt(raw, steps=STEPS)
    assert model.training
    before = raw[0].layer[1].running_mean.clone()
    model(x)
    assert not torch.equal(raw[0].layer[1].running_mean, before)  # batch norm learns as ever
    assert int(raw[0].layer[1].num_batches_tracked) == 1


def test_kernels_that_ignore_surrogates_run_in_torch_while_one_is_swapped(x, y):
    model = adapt(jelly(backend="kernel"), steps=STEPS)
    own = gradient(model, x, y)
    with backward_as(model, {"*": surrogates.tanh(1.3)}):
        torch.testing.assert_close(gradient(model, x, y), gradient(made("jelly-m", surrogates.tanh(1.3)), x, y))
    assert model.network.model[1]._backend == "kernel"
    assert torch.equal(gradient(model, x, y), own)


@pytest.mark.parametrize("kind", KINDS)
def test_attacks_run_and_leave_no_trace(kind, x, y):
    model = made(kind)
    logits, generators = model(x), fingerprint()
    attack = PGD(Linf(0.2), steps=3, gradient=Backprop(substitutes="atan"))
    adversarial = attack(model, x, y)
    assert (adversarial - x).abs().max() == pytest.approx(0.2, abs=1e-6)
    assert torch.equal(model(x), logits)
    assert fingerprint() == generators
    assert state_of(model) == []


def test_attacks_on_codes_take_an_adapted_network(x, y):
    model = SpikingJelly(jelly(), encoder=BernoulliRate(STEPS))
    attack = SEA(Flips(3, "binary"))
    with untouched(model):
        codes = encode(model, x, attack.threat, 0)
        attacked = attack(model.network, codes, y)
    assert codes.shape == (6, STEPS, 1, 6, 6)
    assert 0 < int((attacked != codes).sum()) <= 6 * STEPS * 3


def test_rules_over_time_are_refused(x, y):
    model = made("jelly-m")
    for rule in (surrogates.adaptive(), surrogates.Whole(torch.sin, "whole")):
        with pytest.raises(UsageError, match="all steps"), backward_as(model, {"*": rule}):
            gradient(model, x, y)


def test_neurons_that_cannot_be_swapped_are_named(x):
    raw = jelly()
    count = JellyNode()
    count.surrogate_function = nn.ReLU()  # graded, not steps
    model = adapt(nn.Sequential(*raw[:2], count, raw[2]).eval(), steps=STEPS)
    assert [type(m) for m in discrete_layers(model).values()] == [ForeignSpike]
    model(x)
    with pytest.raises(ModelError, match="JellyNode"), backward_as(model, {"*": "atan"}):
        model(x)


class DeafNode(JellyNode):
    """A kernel of its own, with no word about it."""

    def one(self, x):
        return Fire()(x - 1)


def test_kernels_that_ignore_a_swap_are_refused(x):
    model = adapt(jelly(node=DeafNode), steps=STEPS)
    model(x)
    with pytest.raises(ModelError, match="DeafNode, whose kernel"), backward_as(model, {"*": "atan"}):
        model(x)


def test_a_swap_stays_in_this_network(x, y):
    """Norse's surrogate is a global function: only this network's neurons may see another one."""
    model, other = made("norse"), made("norse")
    own = gradient(other, x, y)
    with backward_as(model, {"*": "identity"}):
        assert torch.equal(gradient(other, x, y), own)
        assert not torch.allclose(gradient(model, x, y), own)


def test_layouts_and_readouts(x):
    raw = Loop().eval()
    frames = torch.rand(STEPS, *x.shape)

    class Encoder(nn.Module):
        def forward(self, x):
            return frames[:, : len(x)].transpose(0, 1)

    whole = raw(frames)
    for readout, wanted in (
        ("mean", whole.mean(0)),
        ("sum", whole.sum(0)),
        ("last", whole[-1]),
        ("max", whole.amax(0)),
        (lambda out: out[1], whole[1]),
    ):
        assert torch.equal(SNNTorch(raw, encoder=Encoder(), readout=readout)(x), wanted)
    torch.testing.assert_close(SNNTorch(raw, encoder=Encoder(), step=raw.step)(x), whole.mean(0))

    class BatchFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.loop = raw

        def forward(self, codes):
            return self.loop(codes.transpose(0, 1)).transpose(0, 1)

    assert torch.equal(SNNTorch(BatchFirst(), encoder=Encoder(), layout="batch-first")(x), whole.mean(0))
    assert torch.equal(SNNTorch(raw)(x), raw(x).mean(0))  # runs over time by itself
    hidden = SNNTorch(Hidden().eval(), steps=STEPS, output=1)
    assert hidden(x).shape == (6, 20)  # potentials instead of spikes


def test_a_network_says_its_layout():
    assert made("jelly-m").network.layout == "sequence"
    assert made("jelly-s").network.layout == "step"
    assert made("snn-hidden").network.layout == "step"
    assert made("snn-sequence").network.layout == "sequence"
    assert made("norse").network.layout == "step"
    assert SNNTorch(Loop()).network.layout == "images"


def test_scope_is_unknown_unless_the_caller_says():
    assert scope_of(made("jelly-m")) == "unknown"
    assert scope_of(adapt(jelly(), encoder=BernoulliRate(STEPS), scope="example")) == "example"


def test_an_adapted_network_travels(x):
    model = adapt(jelly(), steps=STEPS)
    model(x)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), model(x))


class Wrong(Loop):
    def step(self, frame, state):
        return self.second(self.first(frame.flatten(1)))


def mixed_modes():
    return nn.Sequential(IFNode(mode="s"), IFNode(mode="m"))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: adapt(nn.Linear(2, 2)), ModelError, "neurons of one of"),
        (lambda: adapt(nn.Sequential(jelly(), Hidden())), ModelError, "spikingjelly and snntorch"),
        (lambda: adapt(jelly(), kind="brian"), UsageError, "a kind"),
        (lambda: adapt(lambda x: x), ModelError, "nn.Module"),
        (lambda: SpikingJelly(mixed_modes(), steps=STEPS), ModelError, "set_step_mode"),
        (lambda: Norse(nn.Linear(2, 2), steps=STEPS), ModelError, "layout="),
        (lambda: SNNTorch(Loop(), steps=0), BudgetError, "time steps"),
        (lambda: SNNTorch(Loop(), layout="step"), UsageError, "steps=T or an encoder"),
        (lambda: SNNTorch(Loop(), steps=2, layout="images"), UsageError, "no encoder"),
        (lambda: SNNTorch(Loop(), steps=2, layout="time"), UsageError, "a layout"),
        (lambda: SNNTorch(Loop(), steps=2, encoder=BernoulliRate(4)), UsageError, "the encoder's steps"),
        (lambda: SNNTorch(Loop(), encoder=torch.sin), UsageError, "an encoder"),
        (lambda: SNNTorch(Loop(), steps=2, readout="median"), UsageError, "a readout"),
        (lambda: SNNTorch(Loop(), steps=2, output="mem"), UsageError, "output"),
        (lambda: SNNTorch(Loop(), steps=2, step="stop"), UsageError, "a method"),
        (lambda: SNNTorch(Loop(), steps=2, step=Loop().step), UsageError, "a method"),
        (lambda: SNNTorch(Loop(), steps=2, step="step", layout="sequence"), UsageError, "layout='step'"),
        (lambda: SNNTorch(Loop(), scope="all"), UsageError, "a scope"),
        (lambda: SNNTorch(Hidden(), steps=2, output=2)(torch.rand(2, 1, 6, 6)), ModelError, "2 outputs"),
        (lambda: SNNTorch(Wrong(), steps=2, step="step")(torch.rand(2, 1, 6, 6)), ModelError, "step(frame, state)"),
        (lambda: SNNTorch(nn.Flatten(3), steps=2)(torch.rand(2, 1, 6, 6)), ModelError, "outputs [2, K]"),
        (
            lambda: check_gradients(nn.Flatten(), torch.rand(2, 3), torch.zeros(2).long(), draws=0),
            UsageError,
            "draws",
        ),
        (
            lambda: check_gradients(nn.Flatten(), torch.rand(2, 3), torch.zeros(2).long(), share=0),
            UsageError,
            "share",
        ),
    ],
)
def test_misuse_is_told(make, error, words):
    with pytest.raises(error) as told:
        make()
    assert words in str(told.value)


class ZeroEncoder(nn.Module):
    """A graph, and a gradient of exactly zero: as snnTorch's rate code and Norse's signed one."""

    def forward(self, x):
        return torch.bernoulli(x.detach()) + x.sign() - x.sign().detach()


class Coded(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.front, self.body = encoder, Loop()

    def forward(self, x):
        return self.body(self.front(x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_canary_lets_good_networks_pass(kind, x, y):
    generators = fingerprint()
    assert not check_gradients(made(kind), x, y).all()
    assert fingerprint() == generators


def test_the_canary_refuses_encoders_without_a_derivative(x, y):
    model = SNNTorch(Coded(ZeroEncoder()).eval())
    with pytest.raises(GradientError, match=r"exactly zero on 6 of 6; ZeroEncoder inside .*BernoulliRate"):
        check_gradients(model, x, y)

    class Detached(nn.Module):  # a name that says nothing
        def forward(self, x):
            return torch.bernoulli(x.detach())

    with pytest.raises(GradientError, match=r"a detached graph; if the network encodes .*BernoulliRate"):
        check_gradients(SNNTorch(Coded(Detached()).eval()), x, y)
    fixed = SNNTorch(Loop().eval(), encoder=BernoulliRate(STEPS))
    assert not check_gradients(fixed, x, y).all()


class Part(nn.Module):
    """A gradient for the images above a level; logits far apart, so that cross entropy has none."""

    def __init__(self, level):
        super().__init__()
        self.level = level

    def forward(self, x):
        size = x.flatten(1).mean(1)
        return torch.stack([1e4 * torch.where(size > self.level, size, size.detach()), 0 * size], 1)


def test_the_canary_counts_examples():
    x, y = torch.linspace(0.05, 0.95, 10)[:, None, None, None].expand(10, 1, 2, 2), torch.zeros(10).long()
    assert check_gradients(Part(0.5), x, y).tolist() == [True] * 5 + [False] * 5
    assert check_gradients(Part(0.8), x, y).sum() == 8
    with pytest.raises(GradientError, match="9 of 10"):
        check_gradients(Part(0.9), x, y)
    with pytest.raises(GradientError, match="5 of 10"):
        check_gradients(Part(0.5), x, y, share=0.5)


def test_an_example_counts_only_when_no_draw_gives_a_gradient():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            return x.flatten(1) * (torch.arange(len(x)) == self.calls - 1)[:, None]  # example i in call i

    x, y = torch.rand(4, 3), torch.zeros(4).long()
    assert check_gradients(Sometimes(), x, y).tolist() == [False] * 3 + [True]
    assert check_gradients(Sometimes(), x, y, draws=2).tolist() == [False] * 2 + [True] * 2
    with pytest.raises(GradientError, match="3 of 4"):
        check_gradients(Sometimes(), x, y, draws=1, share=0.75)


def test_a_surrogate_of_ones_own(x, y):
    model = made("jelly-m")
    with backward_as(model, {"*": Surrogate(torch.tanh)}):
        own = gradient(model, x, y)
    with backward_as(model, {"*": surrogates.tanh(1.0)}):
        torch.testing.assert_close(gradient(model, x, y), own)


def test_the_libraries_are_not_imported():
    for path in Path(stochade.adapters.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert {name.split(".")[0] for name in names}.isdisjoint({"spikingjelly", "snntorch", "norse"}), path


def test_the_command_line_takes_a_factory_that_returns_an_adapted_network(tmp_path, x, monkeypatch):
    here = str(Path(__file__).parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    lines = [
        "import sys",
        f"sys.path.insert(0, {here!r})",
        "import test_adapters as doubles",
        "from stochade import adapters",
    ]
    lines += ["def build():", "    return adapters.adapt(doubles.jelly(), steps=4)"]
    (tmp_path / "mine_adapted.py").write_text("\n".join(lines))
    target = load_target(f"{tmp_path / 'mine_adapted.py'}:build")
    assert target.about["class"] == "SpikingJelly"
    assert not target.model.training
    assert torch.equal(target.model(x), adapt(jelly(), steps=4)(x))
