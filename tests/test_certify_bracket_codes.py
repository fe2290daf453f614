"""Attacks on the vote behind flip noise, on networks whose vote is known at every code by enumeration."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from stochade.attacks.codes import flips_of
from stochade.certify import FlipNoise, Gaussian
from stochade.certify.bracket import _worst, attacked, attacks_on, bracketed, upper_bounds
from stochade.certify.choose import as_attacked
from stochade.certify.run import certify_examples
from stochade.errors import BudgetError, ImagesError, RecordsError, ThreatError
from stochade.evaluate import Records
from stochade.randomness import identities, seed_for

QUIET = {"show_progress": False}


class Dense(nn.Module):
    """Two layers on codes [N,3,L/3]; more spikes mean class 1."""

    scope = "none"

    def __init__(self, length, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(0.4 + 0.3 * torch.randn(length, 16, generator=generator))
        self.second = nn.Parameter(torch.tensor([-1.0, 1.0]) + 0.5 * torch.randn(16, 2, generator=generator))

    def forward(self, codes):
        return torch.tanh((codes.flatten(1) - 0.5) @ self.first) @ self.second


class Small:
    """A network, its noise, and what is true of them at every code."""

    def __init__(self, noise, seed):
        self.noise, self.length = noise, 6 if noise.signed else 12
        self.letters = (-1.0, 0.0, 1.0) if noise.signed else (0.0, 1.0)
        self.network = Dense(self.length, seed)
        every = torch.tensor(list(itertools.product(self.letters, repeat=self.length)))
        self.codes = every.view(len(every), 3, -1)
        with torch.no_grad():
            wins = self.network(self.codes).argmax(1).double().numpy()
        table = wins.reshape((len(self.letters),) * self.length)
        for _ in range(self.length):  # one letter after the other: mean over what noise makes of it
            table = np.moveaxis(np.tensordot(self.kernel(), table, (1, 0)), 0, -1)
        self.p = torch.from_numpy(table.reshape(-1))

    def kernel(self):
        """[letter, what it becomes]"""
        rows = []
        for before in self.letters:
            change = self.noise.p_plus if before == 0 else self.noise.p_minus
            others = len(self.letters) - 1
            rows.append([1 - change if before == after else change / others for after in self.letters])
        return np.array(rows)

    def robust(self, rows, labels, flips):
        """[n] whether every code within so many flips of codes[rows] has the label as its exact majority."""
        near = (self.codes[rows].flatten(1)[:, None] != self.codes.flatten(1)).sum(2) <= flips
        good = torch.where(labels[:, None] == 1, self.p > 0.5, self.p < 0.5)
        return (good | ~near).all(1)


def examples(small, count=30):
    """Codes of all numbers of spikes, and their own votes as labels but for the first."""
    generator = torch.Generator().manual_seed(3)
    rate = torch.linspace(0, 1, count)[:, None]
    weights = (torch.tensor(small.letters).abs() * 2 - 1) * 6 * (rate - 0.5)
    drawn = torch.multinomial(weights.exp(), small.length, replacement=True, generator=generator)
    digits = len(small.letters) ** torch.arange(small.length - 1, -1, -1)
    rows = (drawn * digits).sum(1)
    labels = (small.p[rows] > 0.5).long()
    labels[0] = 1 - labels[0]
    return rows, labels


@pytest.mark.parametrize(
    ("noise", "seed"),
    [
        (FlipNoise(0.15), 2), (FlipNoise(0.1, 0.2), 5), (FlipNoise(0.8, 0.85), 2), (FlipNoise(0.02, 0.3), 5),
        (FlipNoise(0.1, 0.2, "signed"), 2), (FlipNoise(0.2, alphabet="signed"), 7),
    ],
)  # fmt: skip
def test_certified_below_true_below_attacked(noise, seed):
    """For every example alone, so that nothing cancels: what is certified holds, what an attack broke is broken."""
    small = Small(noise, seed)
    rows, labels = examples(small)
    codes, flips = small.codes[rows], [0.0, 1.0, 2.0, 4.0]
    found = certify_examples(
        small.network, codes, labels, noise, selection=20, draws=1500, alpha=1e-4, batch=500, **QUIET
    )
    records = attacked(small.network, noise, codes, labels, flips, draws=150, steps=10, **QUIET)
    above = upper_bounds(records, 1e-4, undecided=True)
    left = upper_bounds(records, 1e-4)
    assert list(above) == flips
    for k in flips:
        true = small.robust(rows, labels, k)
        certified = torch.tensor([line.right and line.certificate.radius > k for line in found.lines])
        assert not bool((certified & ~true).any())
        share = float(true.double().mean())
        assert found.accuracy(k).value <= share <= above[k].value
        names = [n for n, record in records.attacks.items() if record.threat is None or record.threat["eps"] <= k]
        assert not bool((torch.from_numpy(~_worst(records, names, 1e-4, True)) & true).any())
        assert left[k].value <= above[k].value
    assert bracketed({k: found.accuracy(k) for k in flips}, above)
    assert above[4.0].value < above[0.0].value - 0.1  # the attack is no straw man
    assert found.accuracy(1.0).value > 0


def test_the_strongest_attack_comes_near_the_truth():
    """Within three of forty examples of what enumeration of all codes leaves."""
    small = Small(FlipNoise(0.1, 0.2), 5)
    rows, labels = examples(small, 40)
    records = attacked(small.network, small.noise, small.codes[rows], labels, [1, 2, 3], draws=400, **QUIET)
    above = upper_bounds(records, 1e-3, undecided=True)
    for k in (1, 2, 3):
        assert above[k].value <= float(small.robust(rows, labels, k).double().mean()) + 3 / 40


def test_every_draw_votes_on_one_attacked_code():
    """Frequencies of the scored draws are those of the code that one search gave."""
    small = Small(FlipNoise(0.2), 2)
    rows, labels = examples(small, 12)
    codes, draws = small.codes[rows], 2000
    records = attacked(small.network, small.noise, codes, labels, [2], draws=draws, steps=4, seed=5, **QUIET)
    noisy = as_attacked(small.network, small.noise)
    for name, attack in attacks_on(small.noise, [2], 4).items():
        attempt = attack.run(
            noisy, codes, labels, seed=5, ids=identities(codes, labels), model_seed=seed_for(5, "draws", name, 0)
        )
        index = (attempt.inputs.flatten(1) * 2 ** torch.arange(11, -1, -1)).sum(1).long()
        for told in (records.attacks[name].predictions, records.attacks[name].selection):
            rate = torch.from_numpy((told == 1).mean(1))
            assert bool(((rate - small.p[index]).abs() < 5 * math.sqrt(0.25 / draws)).all())  # false alarm 4e-5
        assert (records.attacks[name].predictions != records.attacks[name].selection).any()
        assert records.attacks[name].distance.max() <= 2
        assert records.attacks[name].threat == {"norm": "flips", "eps": 2.0, "per": "total", "alphabet": "binary"}


def test_the_derivative_is_that_of_the_mean_letter():
    for noise in (FlipNoise(0.1), FlipNoise(0.7, 0.9), FlipNoise(0.05, 0.3, "signed"), FlipNoise(0.2, 0.8, "signed")):
        letters = (-1, 0, 1) if noise.signed else (0, 1)
        kernel = Small(noise, 0).kernel()
        means = [sum(k * letter for k, letter in zip(row, letters, strict=True)) for row in kernel]
        code = torch.tensor(letters, dtype=torch.float32).view(1, 1, -1).requires_grad_()
        (slope,) = torch.autograd.grad(as_attacked(nn.Identity(), noise)(code).sum(), code)
        for place in range(len(letters) - 1):
            assert float(slope[0, 0, place]) == pytest.approx(means[place + 1] - means[place], abs=1e-6)
    code = torch.zeros(1, 1, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(as_attacked(nn.Identity(), FlipNoise(0.5))(code).sum(), code)
    assert bool((slope == 1).all())  # the mean says nothing: letters as they are
    assert set(as_attacked(nn.Identity(), FlipNoise(0.5))(code).detach().flatten().tolist()) <= {0.0, 1.0}
    pickle.loads(pickle.dumps(as_attacked(Dense(12, 0), FlipNoise(0.5))))  # for workers


@pytest.mark.parametrize("smoothing", [Gaussian(0.2), FlipNoise(0.1)])
def test_the_attacked_model_leaves_the_callers_modes(smoothing):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 2)).eval()
    model[1].train()
    noisy = as_attacked(model, smoothing)
    assert [m.training for m in model] == [False, True, False]
    assert not noisy.training
    assert not noisy[0].training


def test_records_are_taken_up_and_another_run_is_refused(tmp_path):
    small = Small(FlipNoise(0.2), 2)
    rows, labels = examples(small, 9)
    codes, options = small.codes[rows], {"draws": 20, "steps": 2, "chunk": 4, "out": tmp_path / "run", **QUIET}
    whole = attacked(small.network, small.noise, codes, labels, [1, 2], **options)
    paths = sorted((tmp_path / "run" / "records").rglob("*.parquet"))
    assert len(paths) == 3 * 7
    content = {path: path.read_bytes() for path in paths}
    for path in paths[::3]:
        path.unlink()
    paths[1].write_bytes(content[paths[1]][:100])  # cut short
    again = attacked(small.network, small.noise, codes, labels, [1, 2], **options)
    assert {path: path.read_bytes() for path in paths} == content
    assert upper_bounds(again, 0.01) == upper_bounds(whole, 0.01)
    assert upper_bounds(Records.load(tmp_path / "run"), 0.01) == upper_bounds(whole, 0.01)
    others = [(FlipNoise(0.3), codes, [1, 2]), (small.noise, 1 - codes, [1, 2]), (small.noise, codes, [1])]
    for noise, given, flips in others:
        with pytest.raises(RecordsError, match="differs in"):
            attacked(small.network, noise, given, labels, flips, **options)


def test_misuse_is_named(monkeypatch):
    small = Small(FlipNoise(0.2), 2)
    rows, labels = examples(small, 4)
    codes = small.codes[rows]
    for flips in ([0.0], [], [1.5], [0.0, math.inf], [-1]):
        with pytest.raises(BudgetError, match="flips"):
            attacked(small.network, small.noise, codes, labels, flips, **QUIET)
    with pytest.raises(ImagesError, match="codes"):
        attacked(small.network, small.noise, codes * 0.5, labels, [1], **QUIET)
    attack = type(next(iter(attacks_on(small.noise, [1], 1).values())))
    monkeypatch.setattr(attack, "search", lambda self, task: _All.search(self, task))
    with pytest.raises(ThreatError, match="flips 1 in total"):
        attacked(small.network, small.noise, codes, labels, [1], **QUIET)
    assert flips_of(next(iter(attacks_on(small.noise, [3]).values()))).k == 3


class _All:
    """Changes every letter."""

    def search(self, task):
        from stochade.attacks.ledger import Ledger

        ledger = Ledger(task, 1)
        ledger.replace(ledger.open, 1 - task.x)
        return ledger.attempt()
