"""Neurons against SpikingJelly's own `LIFNode`, `IFNode` and `ParametricLIFNode`; `make test-peers` installs it.

The library runs in an environment of its own, .venv-peers-spiking, and in a process of its own. Skipped where it is
missing.
"""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from stochade.nn import IF, LIF, surrogates

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-peers-spiking" / "bin" / "python"
CASES = [
    {"kind": kind, "reset": reset, "decay_input": decayed, "detach_reset": detached, "surrogate": surrogate}
    for kind in ("IF", "LIF", "ParametricLIF")
    for reset in ("soft", "hard")
    for decayed in ((False, True) if kind != "IF" else (False,))
    for detached in (False, True)
    for surrogate in ("atan", "sigmoid")
]
STEPS, SHAPE, V_RESET, TAU = 6, (4, 3, 8, 8), -0.25, 2.0

WORKER = """
import json, sys
import numpy as np, torch
from spikingjelly.activation_based import neuron, surrogate
folder, cases, tau, v_reset = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
given = np.load(folder + "/given.npz")
answers = {}
for i, case in enumerate(cases):
    options = {"v_reset": None if case["reset"] == "soft" else v_reset, "detach_reset": case["detach_reset"],
               "surrogate_function": surrogate.ATan(2.0) if case["surrogate"] == "atan" else surrogate.Sigmoid(4.0),
               "step_mode": "m"}
    if case["kind"] == "IF":
        layer = neuron.IFNode(**options)
    elif case["kind"] == "LIF":
        layer = neuron.LIFNode(tau=tau, decay_input=case["decay_input"], **options)
    else:
        layer = neuron.ParametricLIFNode(init_tau=tau, decay_input=case["decay_input"], **options)
    x = torch.from_numpy(given["x"]).requires_grad_()
    out = layer(x)
    wanted = [x, *layer.parameters()]
    answers[f"spikes{i}"] = out.detach().numpy()
    for j, g in enumerate(torch.autograd.grad(out, wanted, torch.from_numpy(given["upstream"]))):
        answers[f"gradient{i}-{j}"] = g.numpy()
np.savez(folder + "/answers.npz", **answers)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    if not PYTHON.exists():
        pytest.skip("no .venv-peers-spiking: make test-peers")
    folder = tmp_path_factory.mktemp("spikingjelly")
    rng = np.random.default_rng(0)
    given = {name: rng.normal(0, 1.5, (STEPS, *SHAPE)).astype("float32") for name in ("x", "upstream")}
    np.savez(folder / "given.npz", **given)
    command = [str(PYTHON), "-c", WORKER, str(folder), json.dumps(CASES), str(TAU), str(V_RESET)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return given, dict(np.load(folder / "answers.npz"))


@pytest.mark.parametrize("i", range(len(CASES)), ids=["-".join(map(str, case.values())) for case in CASES])
def test_spikes_and_gradients_are_spikingjellys(i, answers):
    given, found = answers
    case = dict(CASES[i])
    kind = case.pop("kind")
    case["surrogate"] = surrogates.ATan(2.0) if case["surrogate"] == "atan" else surrogates.sigmoid(4.0)
    case["v_reset"] = V_RESET if case["reset"] == "hard" else 0.0
    if kind == "IF":
        case.pop("decay_input")
        layer = IF(**case)
    else:
        layer = LIF(1 - 1 / TAU, trainable=kind == "ParametricLIF", **case)
    x = torch.from_numpy(given["x"]).requires_grad_()
    out = layer(x)
    assert np.array_equal(out.detach().numpy(), found[f"spikes{i}"])
    assert 0.01 < float(out.detach().mean()) < 0.9
    ours = torch.autograd.grad(out, [x, *layer.parameters()], torch.from_numpy(given["upstream"]))
    np.testing.assert_allclose(ours[0].numpy(), found[f"gradient{i}-0"], rtol=1e-5, atol=1e-5)
    if kind == "ParametricLIF":  # its parameter has the opposite sign; a sum over all neurons
        np.testing.assert_allclose(-ours[1].numpy(), found[f"gradient{i}-1"], rtol=1e-4, atol=1e-3)
