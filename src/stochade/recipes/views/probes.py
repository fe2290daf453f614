"""What the gate modules know: a dense layer trained on a frozen gate module, attacked and used to attack others
(kubo2019, section 4.6.2, figures 4.17 to 4.20, 4.23 and D.1 to D.5).

The thesis does not say where the dense layer is put. It is put on the gates themselves, drawn as the network draws
them, since the thesis calls its probes stochastic and binarised; what a layer on the deterministic features before
the logits would know is told beside it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.data import Images
from stochade.evaluate.intervals import mean
from stochade.nn.gates import InputGatedConv2d
from stochade.progress import progress
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.views.crafting import crafted, predicted
from stochade.recipes.views.curves import PERCENT, line
from stochade.recipes.views.gates import gated_layers
from stochade.recipes.views.gradients import figures_of
from stochade.recipes.views.pictures import enlarged
from stochade.report.document import Strip
from stochade.report.figures import Figure

ITERATIONS = {"smoke": 40, "small": 600, "paper": 5000}  # 5000 in tables 4.5 and 4.6
BATCH = 50
DRAWS = 5  # of every score, at most
RATES = (1e-3, 1e-4)  # of the first gate module and of the others
MOST = {"smoke": 20, "small": 300, "paper": 10_000}  # test images
ORDINALS = ("1st", "2nd", "3rd", "4th")


class Probe(nn.Module):
    """Logits of a dense layer on one gate module of a network. [N,C,H,W] -> [N,K].

    Args:
        network: with `features`, a sequence of layers; frozen, its noise stays on.
        place: of the gated convolution, counted from 0.
        classes: number of logits.
        read: "gates", one draw of what multiplies the weights; "features", what the gate logits are read from.
    """

    scope = "composite"

    def __init__(self, network: nn.Module, place: int, classes: int, read: str = "gates"):
        super().__init__()
        self.network, self.place, self.read = network, place, read
        layer = gated_layers(network)[place]
        head = layer.module.head
        self.dense = nn.Linear(head.out_features if read == "gates" else head.in_features, classes)

    def seen(self, x: Tensor) -> Tensor:
        """[N, inputs of the dense layer], one draw."""
        wanted = gated_layers(self.network)[self.place]
        assert isinstance(self.network.features, nn.Sequential)
        for layer in self.network.features:
            if layer is wanted:
                return _read(wanted, x, self.read)
            x = layer(x)
        raise LookupError("the gated convolution is not among the network's features")

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.seen(x))


def _read(layer: InputGatedConv2d, x: Tensor, read: str) -> Tensor:
    if read == "gates":
        return layer.gates(layer.logits(x)).flatten(1)
    own = () if layer.module.conv is not None else (layer.conv.weight, layer.conv.bias)
    return layer.module.features(x, *own)


def trained_probe(
    network: nn.Module, place: int, images: Images, iterations: int, read: str = "gates", shown: bool = False
) -> Probe:
    """A probe whose dense layer is trained on `images`; the network stays as it was, in evaluation mode."""
    rate = RATES[min(place, len(RATES) - 1)]
    with untouched(network):
        network.eval()
        reseed(seed_for(0, "probe", place, read))
        probe = Probe(network, place, images.num_classes, read)
        steps = torch.optim.Adam(probe.dense.parameters(), rate)
        with progress(f"training the probe of gate module {place + 1}", iterations, shown) as tick:
            for step in range(iterations):
                chosen = np.random.default_rng([step, place]).integers(0, len(images), BATCH)
                x, y = images[chosen]
                with torch.no_grad():
                    seen = probe.seen(x)
                steps.zero_grad()
                F.cross_entropy(probe.dense(seen), y).backward()
                steps.step()
                tick()
    return probe.eval()


def gate_probes(r: Reproduction) -> list[Figure | Strip]:
    """Accuracy of probes and networks over the budget; examples made by the first network and its probes against
    every network without gates; pictures and gradients of those probes."""
    assert r.test is not None
    assert r.train is not None
    attack, iterations = r.recipe.attack[0], ITERATIONS[r.scale]
    x, y = r.test[: MOST[r.scale]]
    gated = {name: net.model for name, net in r.networks.items() if gated_layers(net.model)}
    others = {name: net.model for name, net in r.networks.items() if name not in gated}
    budgets = sorted(attack.budgets)
    first = next(iter(gated))
    probes: dict[str, nn.Module] = {}
    clean: dict[str, list] = {}
    own: dict[str, nn.Module] = {}
    for name, model in gated.items():
        own[name] = model
        for place in range(len(gated_layers(model))):
            key = f"{name}, {ORDINALS[place]} gate module"
            probes[key] = own[key] = trained_probe(model, place, r.train, iterations, shown=r.show_progress)
            before = trained_probe(model, place, r.train, iterations, "features", shown=r.show_progress)
            clean[key] = [_score(own[key], x, y, r), _score(before, x, y, r)]
    times = r.settings.budgets
    made = {name: {b: crafted(model, attack, b * times, x, y) for b in budgets} for name, model in own.items()}
    sources = {name: model for name, model in own.items() if name == first or name.startswith(f"{first}, ")}
    found: list[Figure | Strip] = [_own(r, own, made, clean, x, y)]
    for number, (target, model) in enumerate(others.items()):
        data, rows = [], []
        for index, source in enumerate(sources):
            scores = [_score(model, x, y, r)] + [_score(model, made[source][b], y, r) for b in budgets]
            data.append(line(index, source, [0.0, *budgets], scores))
            rows += [[f"{b:g}", source, score] for b, score in zip([0.0, *budgets], scores, strict=True)]
        note = f"{attack.name} examples made on {first} and on its gate modules, scored on {target}; {len(y)} images."
        found.append(
            Figure(f"probe-target-{number}", f"{target} under examples of the gate modules", note, data,
                   _axes(attack.norm), ["budget", "made on", "accuracy"], rows)
        )  # fmt: skip
    for source in sources:
        made_here = made[source][budgets[-1]]
        change = 0.5 + (made_here - x) / (2 * budgets[-1] * times)
        rows_of = range(min(2, len(x)))
        images = [(enlarged(t[i]), text) for i in rows_of for t, text in (
            (x, "clean"), (change, "perturbation"), (made_here, "perturbed"))]  # fmt: skip
        found.append(Strip(f"{attack.name} {budgets[-1]:g} by {source}", images, "Grey is no change."))
    return found + figures_of(sources, x, y)


def _own(r: Reproduction, own: dict, made: dict, clean: dict, x: Tensor, y: Tensor) -> Figure:
    """Everyone under examples of their own."""
    attack = r.recipe.attack[0]
    budgets = sorted(attack.budgets)
    data, rows = [], []
    for index, (name, model) in enumerate(own.items()):
        scores = [_score(model, x, y, r)] + [_score(model, made[name][b], y, r) for b in budgets]
        data.append(line(index, name, [0.0, *budgets], scores))
        rows += [[f"{b:g}", name, score] for b, score in zip([0.0, *budgets], scores, strict=True)]
    rows += [["clean", f"{name}, layer on the features before the logits", both[1]] for name, both in clean.items()]
    note = (
        f"{attack.name} made on each network or probe itself, {len(y)} images. A probe is a dense layer on drawn "
        f"gates, trained for {ITERATIONS[r.scale]} batches with everything else frozen."
    )
    return Figure("probes", "Gate modules as classifiers", note, data, _axes(attack.norm),
                  ["budget", "network", "accuracy"], rows, wide=True)  # fmt: skip


def _axes(norm: str) -> dict:
    return {"xaxis": {"title": {"text": f"budget ({norm}, as in the paper)"}}, "yaxis": PERCENT}


def _score(model: nn.Module, x: Tensor, y: Tensor, r: Reproduction):
    right = torch.stack([predicted(model, x, draw) == y for draw in range(min(DRAWS, r.settings.draws))], 1)
    return mean(right.numpy())
