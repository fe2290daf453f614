"""Which tensors go to Triton's kernels, and what is told where they do not work; the kernels themselves are a double.
The real ones: tests/peers/test_lif_triton.py."""

import importlib.machinery
import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from stochade.listing import doctor
from stochade.native import gpu, lif
from stochade.native.build import load
from stochade.nn import LIF

CPU = torch.device("cpu")


def module(forward, backward, steps=32):
    made = ModuleType("stochade.native.lif_triton")
    made.STEPS, made.forward, made.backward = steps, forward, backward
    return made


def right(x, neurons):
    return torch.tensor([[1.0], [0.0]])


def slope(x, upstream, neurons, for_decay, decayed_input):
    return torch.tensor([[1.5], [1.0]]), None


def broken(*arguments):
    raise RuntimeError("no assembler\nsearched: everywhere")


@pytest.fixture
def kernels(monkeypatch):
    """Puts a double in the place of the kernels; nothing was tried yet."""
    found = importlib.util.find_spec
    spec = importlib.machinery.ModuleSpec("triton", None)
    monkeypatch.setattr(gpu, "_tried", {})
    monkeypatch.delenv("STOCHADE_NATIVE", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "triton" else found(name))

    def put(made):
        monkeypatch.setitem(sys.modules, "stochade.native.lif_triton", made)
        monkeypatch.setattr("stochade.native.lif_triton", made, raising=False)
        return made

    return put


@pytest.mark.parametrize(
    ("forward", "backward", "reason"),
    [
        (broken, slope, "RuntimeError: no assembler"),
        (right, broken, "RuntimeError: no assembler"),
        (lambda x, n: 1 - right(x, n), slope, "wrong results: spikes [0.0, 1.0]"),
        (right, lambda *a: (slope(*a)[0] + 1, None), "gradient [2.5, 2.0]"),
    ],
)
def test_kernels_that_do_not_work_are_left_alone(kernels, forward, backward, reason):
    kernels(module(forward, backward))
    assert not gpu.suits(torch.ones(2, 1))
    assert reason in gpu._tried[CPU]
    assert "\n" not in gpu._tried[CPU]
    with pytest.raises(RuntimeError, match="ask suits"):
        gpu.kernels(CPU)


def test_kernels_are_tried_once_on_a_device(kernels):
    calls = []
    made = kernels(module(lambda *a: calls.append(a) or right(*a), slope))
    assert gpu.suits(torch.ones(2, 1))
    assert gpu.suits(torch.ones(2, 1))
    assert gpu.kernels(CPU) is made
    assert len(calls) == 1


def test_without_triton_and_where_it_is_switched_off(kernels, monkeypatch):
    kernels(module(right, slope))
    monkeypatch.setenv("STOCHADE_NATIVE", "0")
    assert not gpu.suits(torch.ones(2, 1))
    assert gpu._tried.pop(CPU) == "switched off by STOCHADE_NATIVE=0"
    monkeypatch.delenv("STOCHADE_NATIVE")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not gpu.suits(torch.ones(2, 1))
    assert gpu._tried.pop(CPU) == "triton is not installed"


def test_what_the_kernels_take(kernels):
    kernels(module(right, slope))
    x = torch.ones(2, 3)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert gpu.suits(x.to(dtype), x.to(dtype))
    assert gpu.suits(torch.ones(32, 3))
    assert not gpu.suits(torch.ones(33, 3)), "more steps than the kernels take"
    assert not gpu.suits(x.double())
    assert not gpu.suits(x, x.half())
    assert not gpu.suits(torch.ones(2, 0))
    assert not gpu.suits(torch.ones(1).expand(1, 1 << 30)), "neurons have numbers of 32 bits"
    assert not gpu.suits(torch.ones(2, 3, dtype=torch.complex64).conj().imag), "a negation that is not done yet"
    assert not gpu.suits(torch.nn.Buffer(x).as_subclass(type("Own", (torch.Tensor,), {})))
    assert not torch.func.vmap(lambda x: torch.tensor(gpu.suits(x)), in_dims=1)(x).any()


def test_layers_ask_for_the_kernels_where_a_gpu_holds_the_tensors(kernels, monkeypatch):
    told = []
    kernels(
        module(
            lambda x, n: told.append(n) or (x >= 1).to(x),
            lambda x, up, n, for_decay, decayed: told.append((n, for_decay, decayed)) or (7 * up, 3.0),
        )
    )
    layer, x = LIF(0.25, 1.0, "hard", decay_input=True, trainable=True), torch.randn(4, 2, 3, requires_grad=True)
    monkeypatch.setattr(gpu, "_tried", {CPU: sys.modules["stochade.native.lif_triton"]})
    monkeypatch.setattr(gpu, "holds", lambda x: True)
    out = layer(x)
    g, slope = torch.autograd.grad(out, [x, layer.decay_logit], torch.ones_like(out))
    assert torch.equal(out, (x >= 1).to(x))
    assert torch.equal(g, torch.full_like(x, 7))
    assert float(slope) == pytest.approx(3 * 0.25 * 0.75), "through the sigmoid"
    first, (second, for_decay, decayed) = told
    assert (first.decay, first.gain, first.hard) == (0.25, 0.75, True)
    assert (second.profile, second.attached, for_decay, decayed) == ("cauchy", True, True, True)


def test_a_tensor_on_the_cpu_stays_there():
    assert not gpu.holds(torch.ones(2))
    assert lif.suits(torch.ones(2, 3)) == (load("lif") is not None)


def test_what_is_told(kernels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.status() == "no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    gpu._tried.update({one: module(right, slope), two: "OutOfResources"})
    assert gpu.status() == "cuda:1: OutOfResources"
    gpu._tried[two] = gpu._tried[one]
    assert gpu.status() == "ready"


def test_the_doctor_tells(monkeypatch):
    monkeypatch.setattr(gpu, "status", lambda: "cuda:0: no assembler")
    monkeypatch.setattr("stochade.native.status", lambda: {"lif": "ready", "other": "no C compiler"})
    facts = doctor()
    assert facts["kernels in C"] == "lif ready, other no C compiler"
    assert facts["kernels in Triton"] == "lif cuda:0: no assembler"
