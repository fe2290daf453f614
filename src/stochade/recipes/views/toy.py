"""The thesis's toy task: |x| by two tanh units whose outgoing weights are gated (kubo2019, figures 4.25 to 4.31,
tables 4.9 and 4.10).

The thesis does not name the loss; the mean squared error is taken. Runs of stochastic gates are scored by one draw.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stochade.data.images import shuffled
from stochade.models.sgbn import GatedRegression
from stochade.nn.gates import InputGatedLinear
from stochade.progress import progress
from stochade.randomness import forked, seed_for
from stochade.recipes.result import Reproduction
from stochade.recipes.views.styles import curve
from stochade.report.figures import Figure

VARIANTS: dict[str, dict] = {  # as the thesis calls them: with (GM) and without (GMWOW) the weights as input
    "WOGM": {"gates": None},
    "GM_ST": {"gates": "stochastic", "weight_input": True},
    "GM_DT": {"gates": "deterministic", "weight_input": True},
    "GMWOW_ST": {"gates": "stochastic"},
    "GMWOW_DT": {"gates": "deterministic"},
}
ITERATIONS = {"smoke": 60, "small": 5000, "paper": 5000}
RUNS = {"smoke": 2, "small": 5, "paper": 30}
STAGES = (0.0, 0.2, 0.6, 1.0)  # of the training: 0, 1000, 3000 and 5000 iterations
POINTS, TRAINED = 300, 210
LEARNING_RATE = 1e-3
EVERY = 100  # iterations between points of a learning curve
BINS = 10


@dataclass
class Run:
    """One training: the model, its loss over iterations, its error on the test points (one draw), and the
    probabilities of its gates on the training points [210, 2] at every stage (none without gates)."""

    model: GatedRegression
    losses: dict[int, float] = field(default_factory=dict)
    error: float = float("nan")
    stages: dict[int, Tensor] = field(default_factory=dict)


def points() -> tuple[Tensor, Tensor]:
    """(training inputs [210, 1], test inputs [90, 1]), each in order; targets are their absolute values."""
    x = torch.linspace(-1, 1, POINTS)[:, None]
    order = torch.from_numpy(shuffled(POINTS, 0))
    return x[order[:TRAINED].sort().values], x[order[TRAINED:].sort().values]


def probabilities(model: GatedRegression, x: Tensor) -> Tensor:
    """[N, 2]: sigmoid of the gate logits at inputs [N, 1]."""
    assert isinstance(model.last, InputGatedLinear)
    with torch.no_grad():
        return torch.sigmoid(model.last.logits(torch.tanh(model.first(x))))


def trained(variant: str, seed: int, iterations: int) -> Run:
    """A full-batch training with Adam; the same for the same seed."""
    x, test = points()
    stages = {round(share * iterations) for share in STAGES}
    with forked(seed_for(seed, "toy", variant)):
        run = Run(GatedRegression(**VARIANTS[variant]))
        model = run.model
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE)
        for step in range(iterations + 1):
            if step in stages and isinstance(model.last, InputGatedLinear):
                run.stages[step] = probabilities(model, x)
            loss = F.mse_loss(model(x), x.abs())
            if step % EVERY == 0 or step == iterations:
                run.losses[step] = float(loss.detach())
            if step < iterations:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        with torch.no_grad():
            run.error = float(F.mse_loss(model.eval()(test), test.abs()))
    return run


def toy_gates(r: Reproduction) -> list[Figure]:
    """Predictions, learning curves, gate histograms over training and gates over the input, for all five networks."""
    iterations, count = ITERATIONS[r.scale], RUNS[r.scale]
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}
    with progress("toy regression", count * len(VARIANTS), r.show_progress) as tick:
        for name in VARIANTS:
            for seed in range(count):
                runs[name].append(trained(name, seed, iterations))
                tick(note=name)
    best = {name: min(found, key=lambda run: run.error) for name, found in runs.items()}
    gated = [name for name in VARIANTS if best[name].stages]
    return [
        _predictions(best, count),
        _learning(runs),
        *[_histograms(name, runs[name], number) for number, name in enumerate(n for n in gated if n.endswith("ST"))],
        *[_over_input(name, best[name], number) for number, name in enumerate(gated)],
    ]


def _predictions(best: dict[str, Run], count: int) -> Figure:
    _, test = points()
    xs = test[:, 0].tolist()
    data = [curve(3, "target |x|", xs, test.abs()[:, 0].tolist(), "lines")]
    rows = []
    with forked(seed_for(0, "toy", "draw")), torch.no_grad():
        for index, (name, run) in enumerate(best.items()):
            data.append(curve(index, name, xs, run.model(test)[:, 0].tolist(), "markers"))
            rows.append([name, f"{run.error:.3g}", f"{sum(p.numel() for p in run.model.parameters())}"])
    note = f"The {len(xs)} test points; the best of {count} runs of each network, one draw of its gates."
    layout = {"xaxis": {"title": {"text": "input"}}, "yaxis": {"title": {"text": "output"}}}
    columns = ["network", "mean squared error", "parameters"]
    return Figure("toy-predictions", "Predictions of |x|", note, data, layout, columns, rows, wide=True)


def _learning(runs: dict[str, list[Run]]) -> Figure:
    data, rows = [], []
    for index, (name, found) in enumerate(runs.items()):
        steps = list(found[0].losses)
        means = np.mean([[run.losses[s] for s in steps] for run in found], 0)
        data.append(curve(index, name, steps, means.tolist(), "lines"))
        errors = np.array([run.error for run in found])
        spread = f" ± {errors.std(ddof=1):.2g}" if len(errors) > 1 else ""
        rows.append([name, f"{means[-1]:.3g}", f"{errors.mean():.3g}{spread}", f"{errors.min():.3g}"])
    layout = {
        "xaxis": {"title": {"text": "iteration"}},
        "yaxis": {"title": {"text": "mean squared error"}, "type": "log"},
    }  # fmt: skip
    note = f"Loss on the training points, mean of {len(next(iter(runs.values())))} runs from scratch."
    columns = ["network", "training, last", "test", "test, best run"]
    return Figure("toy-learning", "Learning curves", note, data, layout, columns, rows, wide=True)


def _histograms(name: str, found: list[Run], number: int) -> Figure:
    edges = np.linspace(0, 1, BINS + 1)
    centres = ((edges[:-1] + edges[1:]) / 2).round(3).tolist()
    data, rows = [], []
    for index, stage in enumerate(sorted(found[0].stages)):
        values = torch.cat([run.stages[stage] for run in found]).flatten().numpy()
        share = np.histogram(values, edges)[0] / len(values)
        data.append(curve(index, f"{stage} iterations", centres, share.tolist()))
        rows.append([str(stage), f"{float(((values < 0.1) | (values > 0.9)).mean()):.3f}"])
    layout = {"xaxis": {"title": {"text": "probability of a gate"}, "range": [0, 1]},
              "yaxis": {"title": {"text": "share of gates"}, "rangemode": "tozero"}}  # fmt: skip
    note = "Both gates, all training points and runs, before the draw."
    columns = ["iterations", "share below 0.1 or above 0.9"]
    return Figure(f"toy-histogram-{number}", f"Gate probabilities of {name}", note, data, layout, columns, rows)


def _over_input(name: str, run: Run, number: int) -> Figure:
    _, test = points()
    xs, p = test[:, 0].tolist(), probabilities(run.model, test)
    data = [curve(i, f"p{i + 1}", xs, p[:, i].tolist(), "lines") for i in range(p.shape[1])]
    if name.endswith("ST"):
        assert isinstance(run.model.last, InputGatedLinear)
        with forked(seed_for(0, "toy", "gates")), torch.no_grad():
            drawn = run.model.last.mask(torch.tanh(run.model.first(test)))[:, 0]
        data += [curve(i, f"gate {i + 1}, one draw", xs, drawn[:, i].tolist(), "markers") for i in range(2)]
    reach = (p.amax(0) - p.amin(0)).tolist()
    rows = [[f"gate {i + 1}", f"{float(p[:, i].mean()):.3f}", f"{reach[i]:.3f}"] for i in range(2)]
    layout = {"xaxis": {"title": {"text": "input"}},
              "yaxis": {"title": {"text": "probability, or gate"}, "range": [-0.05, 1.05]}}  # fmt: skip
    note = "The best run, on the test points. p1 and p2 belong to the weights of the two hidden units."
    columns = ["gate", "mean probability", "largest minus smallest"]
    return Figure(f"toy-gates-{number}", f"Gates of {name} over the input", note, data, layout, columns, rows)
