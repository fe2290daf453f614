"""Queries that Square asks ahead give what they give one by one."""

import pytest
import torch
from torch import nn

from stochade import L2, Linf
from stochade.attacks import square as module
from stochade.attacks.square import Square
from stochade.attacks.threats import L1

CALLS: list[int] = []  # images of every forward


class Counted(nn.Module):
    """A small network in float64, so that the size of a batch rounds nothing that matters."""

    scope = "none"

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3).double()
        self.last = nn.Linear(4 * 36, 3).double()
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3

    def forward(self, x):
        CALLS.append(len(x))
        return self.last(torch.relu(self.conv(x)).flatten(1))


def attempt(monkeypatch, threat, count, ahead, kind=Counted, **options):
    monkeypatch.setattr(module, "AHEAD", ahead)
    model = kind().eval()
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = model(x).argmax(1)
    CALLS.clear()
    return Square(threat, **options).run(model, x, y, seed=3), len(CALLS)


@pytest.mark.parametrize("threat", [Linf(0.02), Linf(0.2), L2(0.2), L1(1.0)], ids=str)
@pytest.mark.parametrize("count", [1, 3, 40])
def test_points_and_values_are_those_of_single_queries(monkeypatch, threat, count):
    ours, fast = attempt(monkeypatch, threat, count, 64, queries=300)
    single, slow = attempt(monkeypatch, threat, count, 1, queries=300)
    assert torch.equal(ours.inputs, single.inputs)
    torch.testing.assert_close(ours.value, single.value)
    assert bool((ours.forwards >= single.forwards).all()), "what is thrown away is counted"
    assert fast <= slow + 1, "one more asks whether the batch matters"


def test_a_lonely_image_takes_few_forwards(monkeypatch):
    _, fast = attempt(monkeypatch, Linf(0.001), 1, 64, queries=1000)
    _, slow = attempt(monkeypatch, Linf(0.001), 1, 1, queries=1000)
    assert slow >= 1000
    assert fast < slow / 3


def test_what_is_counted_is_what_the_model_saw(monkeypatch):
    ours, _ = attempt(monkeypatch, Linf(0.02), 2, 64, queries=200)
    assert sum(CALLS) - 2 == int(ours.forwards.sum()), "two images of the probe, and what is counted"


def test_a_row_as_often_asked_as_the_batch_is_long_keeps_its_label(monkeypatch):
    """One of 16 images resists: 16 of its queries are as many images as the whole batch."""
    monkeypatch.setattr(module, "AHEAD", 16)
    model = Counted().eval()
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = (model(x).argmax(1) + 1) % 3  # all but the last are fooled as they are
    y[-1] = model(x[-1:]).argmax(1)
    batch = Square(Linf(0.001), queries=200).run(model, x, y, seed=3)
    alone = Square(Linf(0.001), queries=200).run(model, x[-1:], y[-1:], seed=3)
    assert torch.equal(batch.inputs[-1:], alone.inputs)


@pytest.mark.parametrize("kind", ["length", "place"])
def test_a_model_whose_answers_depend_on_the_batch_is_asked_one_by_one(monkeypatch, kind):
    class Scaled(Counted):
        scope = "unknown"

        def forward(self, x):
            place = torch.arange(1, len(x) + 1, dtype=x.dtype)[:, None]
            return super().forward(x) * (len(x) if kind == "length" else place)

    ours, fast = attempt(monkeypatch, Linf(0.001), 1, 64, Scaled, queries=100)
    single, slow = attempt(monkeypatch, Linf(0.001), 1, 1, Scaled, queries=100)
    assert torch.equal(ours.inputs, single.inputs)
    assert fast == slow + 2, "one batch that is thrown away, and the check"


def test_a_model_that_depends_on_long_batches_only_is_found_out_when_they_come(monkeypatch):
    class Long(Counted):
        scope = "unknown"

        def forward(self, x):
            return super().forward(x) * (3 if len(x) > 20 else 1)

    ours, _ = attempt(monkeypatch, Linf(0.001), 1, 64, Long, queries=300)
    single, _ = attempt(monkeypatch, Linf(0.001), 1, 1, Long, queries=300)
    assert torch.equal(ours.inputs, single.inputs)


def test_plateaus_are_crossed_as_one_by_one(monkeypatch):
    class Steps(Counted):
        def forward(self, x):
            return torch.round(super().forward(x))

    ours, _ = attempt(monkeypatch, Linf(0.05), 2, 64, Steps, queries=200)
    single, _ = attempt(monkeypatch, Linf(0.05), 2, 1, Steps, queries=200)
    assert torch.equal(ours.inputs, single.inputs)


def test_targets_and_restarts_too(monkeypatch):
    ours, _ = attempt(monkeypatch, Linf(0.02), 2, 64, queries=120, restarts=2)
    single, _ = attempt(monkeypatch, Linf(0.02), 2, 1, queries=120, restarts=2)
    assert torch.equal(ours.inputs, single.inputs)
