"""Runs the Triton kernels of spiking neurons where triton is, and prints what it saw as JSON.

triton_checks.py interpret    LIF layers on Triton's interpreter beside the plain loop and a loop in float64
triton_checks.py compile      the kernels compiled for NVIDIA's GPUs of compute capability 8.0 and 9.0; none is needed
"""

import itertools
import json
import os
import sys

if sys.argv[1] == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"

import torch

from stochade.native import gpu, lif_triton
from stochade.nn import LIF, surrogates
from stochade.nn.lif_fused import loop

FORMS = {
    "identity": surrogates.identity(), "zero": surrogates.zero(), "clipped": surrogates.clipped(-0.71, 0.43),
    "atan": surrogates.atan(2.0), "sigmoid": surrogates.sigmoid(4.0), "tanh": surrogates.tanh(1.5),
    "triangle": surrogates.triangle(0.83), "rectangle": surrogates.rectangle(0.83),
    "gaussian": surrogates.gaussian(0.4), "exponential": surrogates.exponential(2.2),
}  # fmt: skip
STEPS = surrogates.steps((0.41, 1.31))  # a mixture: no kernel for its backward
OPTIONS = list(itertools.product(("soft", "hard"), (False, True), (False, True), (False, True)))


def beside(layer: LIF, x: torch.Tensor, upstream: torch.Tensor, wide: torch.dtype) -> dict:
    """Spikes and gradients of a layer on the kernels beside those of the plain loop in `wide`."""
    answers = []
    for kernels in (True, False):
        gpu.holds = lambda x, kernels=kernels: kernels
        seen = []
        for name in ("forward", "backward"):
            call = CALLS[name]
            setattr(lif_triton, name, lambda *a, call=call, name=name, seen=seen: seen.append(name) or call(*a))
        given = x.clone().requires_grad_() if kernels else x.to(wide).requires_grad_()
        if kernels:
            out, told = layer(given), seen
        else:
            leak = layer._leak().to(wide) if layer.decay_logit is not None else layer._leak()
            form = layer.surrogate
            out = loop(given, leak, layer.dynamics, lambda t, u, form=form: form((u.detach() >= 0).to(u), u))
        wanted = [given, *layer.parameters()]
        answers.append((out.detach().double(), torch.autograd.grad(out, wanted, upstream.to(out))))
        gpu.holds = lambda x: False
    (spikes, ours), (expected, theirs) = answers
    worst = [float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1)) for a, b in
             zip(ours, theirs, strict=True)]  # fmt: skip
    return {"equal": torch.equal(spikes, expected), "error": worst[0], "decay error": worst[-1], "called": told,
            "fired": float(spikes.mean())}  # fmt: skip


def interpret() -> list[dict]:
    torch.manual_seed(0)
    random, rows = torch.Generator().manual_seed(0), []

    def some(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    for name, (reset, decayed, detached, trainable) in itertools.product(FORMS, OPTIONS):
        options = {"decay_input": decayed, "detach_reset": detached, "trainable": trainable}
        options |= {"v_reset": -0.25 if reset == "hard" and detached else 0.0}
        shape = (some(1, 10), some(1, 3), some(1, 500))
        exact = torch.randn(shape).mul(96).round().div(64)  # float32 adds and halves them without rounding
        layer, upstream = LIF(0.5, 1.0, reset, FORMS[name], **options), torch.randn(shape)
        told = {"surrogate": name, "reset": reset, "steps": shape[0], "trainable": trainable}
        rows.append(told | {"beside": "float64"} | beside(layer, exact, upstream, torch.float64))
        layer = LIF(0.05 + 0.9 * float(torch.rand(())), 0.9, reset, FORMS[name], **options)
        rows.append(told | {"beside": "loop"} | beside(layer, torch.randn(shape) * 1.5, upstream, torch.float32))
    for reset, decayed in itertools.product(("soft", "hard"), (False, True)):
        layer, x = LIF(0.7, 1.0, reset, STEPS, decay_input=decayed), torch.randn(5, 3, 40)
        told = {"surrogate": "steps", "reset": reset, "steps": 5, "trainable": False, "beside": "loop"}
        rows.append(told | beside(layer, x, torch.randn(5, 3, 40), torch.float32))
    for dtype, reset, steps in itertools.product((torch.float16, torch.bfloat16), ("soft", "hard"), (4, 33)):
        x, layer = torch.randn(steps, 2, 700).to(dtype), LIF(0.5, 1.0, reset, FORMS["atan"], trainable=True)
        told = {"surrogate": "atan", "reset": reset, "steps": steps, "trainable": True, "beside": str(dtype)[6:]}
        rows.append(told | beside(layer, x, torch.randn(x.shape).to(dtype), torch.float32))
    for name, detached in itertools.product(FORMS, (False, True)):
        layer, x = LIF(0.7, 1.0, "hard", FORMS[name], decay_input=True, detach_reset=detached), torch.randn(5, 3, 40)
        x[2, :, ::3] = torch.inf
        told = {"surrogate": name, "reset": "hard", "steps": 5, "trainable": False, "beside": "infinite"}
        if FORMS[name].primitive(torch.tensor(torch.inf)).isfinite():  # else the loop has no answer
            rows.append(told | beside(layer, x, torch.randn(5, 3, 40), torch.float32))
    x = torch.randn(700, 4).t()  # not contiguous
    told = {"surrogate": "atan", "reset": "hard", "steps": 4, "trainable": False, "beside": "loop"}
    rows.append(told | beside(LIF(0.5, 1.0, "hard"), x, torch.randn(1, 1).expand(4, 700), torch.float32))
    return rows


def compiled() -> list[dict]:
    """What the assembler text of every kernel holds."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def ask(kernel, kind: str, capability: int, constants: dict) -> dict:
        types = dict.fromkeys(constants, "constexpr") | {"sums": "*fp64", "steps": "i32", "neurons": "i32"}
        types |= dict.fromkeys(("x", "up", "dx", "out"), f"*{kind}")
        signature = {name: types.get(name, "fp32") for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names)
                   if signature[name].startswith("*") or name == "neurons"}  # fmt: skip
        source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=lif_triton._options())
        text = made.asm["ptx"]
        told = {"kernel": kernel.__name__, "type": kind, "capability": capability, "cubin": len(made.asm["cubin"])}
        return told | {"fused": "fma" in text, "spilled": ".local" in text, "four at once": ".v4." in text}

    rows = []
    for hard, kind, capability in ((False, "fp32", 80), (True, "fp16", 90), (True, "bf16", 90)):
        rows.append(ask(lif_triton.forward_kernel, kind, capability, {"HARD": hard, "BLOCK": 512}))
    profiles = ("cauchy", "logistic", "hat", "box", "normal", "laplace")
    for i, profile in enumerate(profiles):
        constants = {"STEPS": 1 + 3 * (i % 3), "HARD": i % 2 == 0, "ATTACHED": i < 4, "PROFILE": profile}
        constants |= {"INNER": i in (0, 3), "BLOCK": lif_triton.held(4)}
        kind, capability = ("fp32", "bf16")[i == 5], (80, 90)[i % 2]
        rows.append(ask(lif_triton.backward_kernel, kind, capability, constants))
    return rows


CALLS = {name: getattr(lif_triton, name) for name in ("forward", "backward")}

if __name__ == "__main__":
    print(json.dumps(interpret() if sys.argv[1] == "interpret" else compiled()))
