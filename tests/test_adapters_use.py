"""Adapted networks in use, with stand-ins for the libraries: layouts, misuse, the canary, the command line."""

import ast
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import foreign
import stochade.adapters
from foreign import (
    KINDS,
    STEPS,
    Hidden,
    IFNode,
    Loop,
    gradient,
    jelly,
    made,
)
from stochade.adapters import Norse, SNNTorch, SpikingJelly, adapt, check_gradients
from stochade.errors import BudgetError, GradientError, ModelError, UsageError
from stochade.nn import BernoulliRate, Surrogate, backward_as, scope_of, surrogates
from stochade.randomness import fingerprint
from stochade.targets import load_target

x, y = foreign.x, foreign.y


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
