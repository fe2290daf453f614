"""Time per image: the lab report's 166 ms, and what competition costs beside ReLU."""

import time

import torch
from torch import Tensor, nn

from stochade.randomness import untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.views.looking import device_of
from stochade.report.figures import Figure

REPORTED = 166.0  # ms per image (kaspar2024, section 6)
BATCHES = (1, 64)
SECONDS = 1.0  # at most, for each number
LEAST = 3  # repetitions


def time_per_image(r: Reproduction) -> list[Figure]:
    """Milliseconds per image of one forward pass, alone and in a batch, for every network of the recipe, with the
    report's number; the smallest of several repetitions. The last column compares with the recipe's first network."""
    assert r.test is not None
    data, rows, first = [], [], dict[int, float]()
    names = list(r.networks)
    for index, size in enumerate(BATCHES):
        measured = []
        for net in r.networks.values():
            x, _ = r.test[[i % len(r.test) for i in range(size)]]
            measured.append(milliseconds(net.model, x.to(device_of(net.model))) / size)
        first[size] = measured[0]
        data.append(
            {"type": "bar", "name": f"batch of {size}", "x": names, "y": measured,
             "meta": {"colour": ("single", "vote")[index]}}
        )  # fmt: skip
        rows += [
            [name, str(size), f"{ms:.3g}", f"{REPORTED / ms:.0f}", f"{ms / first[size]:.2f}"]
            for name, ms in zip(names, measured, strict=True)
        ]
    data.append(
        {"type": "scatter", "mode": "lines", "name": "report", "x": names, "y": [REPORTED] * len(names),
         "line": {"dash": "dash", "width": 2}, "meta": {"colour": "published"}}
    )  # fmt: skip
    layout = {"yaxis": {"title": {"text": "ms per image"}, "type": "log"}, "barmode": "group", "bargap": 0.4}
    note = (
        f"Forward pass only, {torch.get_num_threads()} thread(s). "
        "The report does not say on what hardware, in which batch, or whether its 166 ms hold the attack too."
    )
    columns = ["network", "batch", "ms per image", "times faster than 166 ms", f"times {names[0]}"]
    return [Figure("time", "Time per image", note, data, layout, columns, rows, wide=True)]


def milliseconds(model: nn.Module, x: Tensor) -> float:
    """The shortest of several forward passes, after one that does not count."""
    with untouched(model), torch.inference_mode():
        best, spent, done = float("inf"), 0.0, -1
        while done < LEAST or (spent < SECONDS and done < 50):
            start = time.perf_counter()
            model(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            took = time.perf_counter() - start
            if done >= 0:
                best, spent = min(best, took), spent + took
            done += 1
    return 1000 * best
