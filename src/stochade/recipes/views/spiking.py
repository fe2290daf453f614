"""What spiking networks do over time: how often neurons fire, and how accurate one network is at every latency."""

from stochade.metrics import accuracy_by_latency, spike_rates
from stochade.metrics.spikes import INPUT
from stochade.recipes.result import Reproduction
from stochade.recipes.views.curves import PERCENT
from stochade.recipes.views.looking import device_of
from stochade.report.figures import Figure

MOST = 1000  # images
_COLOURS = ("single", "vote", "all", "claimed")


def spike_rate_table(r: Reproduction) -> list[Figure]:
    """Spikes per neuron and step in the code and in every layer of neurons, and their mean over layers weighted
    equally (mukhoty2025, tables 5 and 9)."""
    assert r.test is not None
    images, _ = r.test[:MOST]
    data, rows = [], []
    for index, (name, net) in enumerate(r.networks.items()):
        rates = list(spike_rates(net.model, images.to(device_of(net.model))).items())
        shown = [(INPUT if layer == INPUT else f"L{number}", rate) for number, (layer, rate) in enumerate(rates)]
        shown.append(("mean of layers", sum(rate for _, rate in rates[1:]) / (len(rates) - 1)))
        rows += [[name, place, f"{rate:.3f}"] for place, rate in shown]
        data.append(
            {"type": "bar", "name": name, "x": [place for place, _ in shown], "y": [rate for _, rate in shown],
             "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
    layout = {"barmode": "group", "yaxis": {"title": {"text": "spikes per neuron and step"}, "rangemode": "tozero"}}
    note = f"{len(images)} test images, one encoding of each; of signed codes every spike counts once."
    return [Figure("spike-rates", "Rates of spikes", note, data, layout, ["network", "layer", "rate"], rows, True)]


def latencies(r: Reproduction) -> list[Figure]:
    """Clean accuracy of each network after 1, 2, ... T steps, from one run (mukhoty2025 trains a network for every T
    in tables 4 and 12)."""
    assert r.test is not None
    data, rows = [], []
    for index, (name, net) in enumerate(r.networks.items()):
        x, y = (t.to(device_of(net.model)) for t in r.test[:MOST])
        found = accuracy_by_latency(net.model, x, y, draws=r.settings.draws)
        rows += [[name, str(step), f"{100 * value:.1f}"] for step, value in enumerate(found, 1)]
        data.append(
            {"type": "scatter", "mode": "lines+markers", "name": name, "x": list(range(1, len(found) + 1)),
             "y": found, "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
    layout = {"xaxis": {"title": {"text": "steps"}, "dtick": 1}, "yaxis": PERCENT}
    note = f"The same weights at every latency; {r.settings.draws} encodings of each image."
    columns = ["network", "steps", "accuracy, %"]
    return [Figure("latencies", "Accuracy after every step", note, data, layout, columns, rows, True)]
