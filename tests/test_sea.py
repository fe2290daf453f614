"""Sparse encoding attacks: the paper's step in plain loops, iterated, fixed before the encoding, sampled, aggregated;
scores of attacks on codes against enumeration of every encoding."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from coded import ENCODERS, LABELS, PIXELS, WEIGHTS, Curved, accuracy, codes_of, images
from counting import PROBE, Counted
from doubles import Line
from stochade import Linf, evaluate
from stochade.attacks import SEA, Custom, FixedFlips, Flips, MaskedSampling, ObliviousSEA, attack_codes, margin
from stochade.attacks.gradients import Backprop
from stochade.attacks.objectives import cross_entropy
from stochade.attacks.registry import parse_attack
from stochade.errors import BudgetError, ModelError, ThreatError
from stochade.models import Encoded
from stochade.models.encoded import Aggregated
from stochade.nn import BernoulliRate, Direct, GaussianNoise, Latency, SignedRate
from stochade.randomness import Stream, fingerprint, untouched


def paper_step(network: nn.Module, z: torch.Tensor, y: torch.Tensor, k: int, signed: bool) -> torch.Tensor:
    """Equations 16, 17 and 19 of mukhoty2025, entry by entry."""
    leaf = z.clone().requires_grad_()
    g = torch.autograd.grad(cross_entropy(network(leaf), y).sum(), leaf)[0].numpy()
    out = z.numpy().copy()
    for n in range(z.shape[0]):
        for t in range(z.shape[1]):
            gains = []
            for i in np.ndindex(z.shape[2:]):
                slope, letter = g[(n, t, *i)], out[(n, t, *i)]
                if signed:
                    change = np.sign(slope) - letter * abs(np.sign(slope))
                else:
                    change = np.sign(slope) * ((1 - letter) if slope >= 0 else letter)
                gains.append((change * slope, change, i))
            gains.sort(key=lambda entry: -entry[0])
            for gain, change, i in gains[:k]:
                if gain > 0:
                    out[(n, t, *i)] += change
    return torch.from_numpy(out)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("k", [1, 3])
def test_one_step_is_the_papers(name, k):
    """Also for examples that the network has wrong already, and with exactly one forward and one backward each."""
    z, network = codes_of(name), Curved(24)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    threat = Flips(k, ENCODERS[name].alphabet)
    attempt = SEA(threat).run(network, z, y)
    assert torch.equal(attempt.inputs, paper_step(network, z, y, k, name == "signed"))
    assert (attempt.forwards.tolist(), attempt.backwards.tolist()) == ([1] * 6, [1] * 6)
    assert (SEA(threat).cost(), attempt.distance.max().item()) == ((1, 1), k)
    counted = Counted(network)
    SEA(threat)(counted, z, y)
    assert counted.tally.images == PROBE + 6


@pytest.mark.parametrize("name", ENCODERS)
def test_more_steps_and_restarts_reach_more(name):
    """Mean objective on a network whose gradient changes quickly: 20 steps beat one, restarts beat none."""
    z, network = codes_of(name, 40), Curved(24)
    y = network(z).argmax(1)
    threat = Flips(2, ENCODERS[name].alphabet)

    def reached(attack) -> float:
        attacked = attack(network, z, y)
        assert bool(attack.threat.allows(attacked, z).all())
        return float(margin(network(attacked), y).mean())

    parts = {"objective": margin, "drop_fooled": False}
    once, often = reached(SEA(threat, objective=margin)), reached(SEA(threat, 20, **parts))
    assert often > once + 0.1
    assert reached(SEA(threat, 20, 4, **parts)) > often + 0.05


def test_the_first_run_starts_at_the_codes_and_the_others_at_flips():
    z, network, starts = codes_of("signed", 4), Curved(24), []

    class Noting(Curved):
        def forward(self, codes):
            starts.append(codes.detach().clone())
            return super().forward(codes)

    y = network(z).argmax(1)
    threat = Flips(2, "signed")
    SEA(threat, 1, 3, drop_fooled=False)(Noting(24), z, y)
    first = next(s for s in starts if s.shape == z.shape)
    assert torch.equal(first, z)
    flipped = [s for s in starts if s.shape == z.shape and bool((threat.counts(s, z) == 2).all())]
    assert len(flipped) >= 2


def test_targets_pull_there():
    z, network = codes_of("signed", 30), Curved(24)
    y = network(z).argmax(1)
    targets = (y + 1) % 3
    threat = Flips(4, "signed")
    attacked = SEA(threat, 20, 3)(network, z, y, targets=targets)
    untargeted = SEA(threat, 20, 3)(network, z, y)
    hit = float((network(attacked).argmax(1) == targets).float().mean())
    assert hit > float((network(untargeted).argmax(1) == targets).float().mean()) + 0.15
    assert bool(threat.allows(attacked, z).all())
    named = parse_attack("sea k=4 alphabet=signed steps=20 target=least-likely", Linf(0.1))
    assert bool(threat.allows(named(network, z, y), z).all())


# ------------------------------------------------------------------ scores against enumeration


def worst_of(threat: Flips, network, y):
    """The strongest attack on every code, by trying all codes inside the threat."""

    def damage(words):
        def value(z):
            return margin(network(z), torch.full((len(z),), y))

        out = words.clone()
        for i, word in enumerate(words):
            inside = words[threat.allows(words, word.expand_as(words))]
            out[i] = inside[value(inside).argmax()]
        return out

    return damage


@pytest.mark.parametrize(
    ("encoder", "bias"), [(BernoulliRate(2), -0.35), (SignedRate(2, 0.45), 1.6)], ids=["rate", "signed"]
)
@pytest.mark.parametrize("per", ["frame", "total"])
def test_scores_are_the_exact_accuracy_of_attacked_codes(encoder, bias, per):
    """A linear network, where one step is exact: scoring and selection draws against the enumerated accuracy, an
    exact binomial test at 1e-6 for each example."""
    network = Line(WEIGHTS, bias)
    model, threat, copies, draws = Encoded(encoder, network), Flips(1, encoder.alphabet, per), 40, 10
    attacks = {"sea": SEA(threat), "harmless": Custom(lambda m, z, y: z, threat)}
    x, y = PIXELS.repeat_interleave(copies, 0), LABELS.repeat_interleave(copies)
    records = evaluate(model, x, y, attacks, draws, chunk=120, show_progress=False)
    seen = set()
    for i in range(3):
        y = int(LABELS[i])
        for name, damage in (
            ("sea", worst_of(threat, network, y)),
            ("harmless", torch.clone),
            ("clean", torch.clone),
        ):
            truth = accuracy(encoder, PIXELS[i], y, network, damage)
            for part in (records.attacks[name].predictions, records.attacks[name].selection):
                right = int((part[copies * i : copies * (i + 1)] == y).sum())
                assert binomtest(right, copies * draws, min(max(truth, 0.0), 1.0)).pvalue > 1e-6
            seen.add(round(truth, 3))
    assert len(seen) >= 4
    sea = records.attacks["sea"]
    assert not (sea.predictions == sea.selection).all()
    assert sea.distance.max() <= 1
    assert (set(sea.forwards.tolist()), set(sea.backwards.tolist()), sea.images) == ({1}, {1}, {})
    assert records.meta["parts"]["sea"]["label"] == str(threat)
    assert records.score("sea").value <= records.score("clean").value
    records.score("worst", threat=threat)


def test_draws_on_the_command_line_average_over_the_networks_own_noise():
    """The code is one realised encoding: on a noisy linear network the gradient of a mean of tanh is the mean of
    theirs, which single draws miss. Accuracy of the attack's objective on fresh noise, paired over 60 codes."""
    named = parse_attack("sea draws=20 k=2 alphabet=signed", Linf(0.1))
    assert named == SEA(Flips(2, "signed"), gradient=Backprop(20))
    z, network = codes_of("signed", 60), nn.Sequential(nn.Flatten(), GaussianNoise(1.5), Curved(24))
    y = Curved(24)(z).argmax(1)
    quiet = nn.Sequential(nn.Flatten(), GaussianNoise(1.5), Curved(24))

    def reached(attack) -> float:
        attacked = attack(network, z, y)
        with torch.no_grad(), untouched(quiet):
            torch.manual_seed(0)
            return float(torch.stack([margin(quiet(attacked), y) for _ in range(400)]).mean())

    many, one = (parse_attack(f"sea draws={d} k=2 alphabet=signed objective=margin", Linf(0.1)) for d in (200, 1))
    assert reached(many) > reached(one) + 0.02


def test_seeing_the_encoding_is_worth_more_than_not():
    """Accuracy on a curved network: one shot <= oblivious with the same budget <= clean, by a wide margin each."""
    encoder = SignedRate(3, 0.45)
    model, x = Encoded(encoder, Curved(24, seed=3)), images(60, seed=4)
    with torch.no_grad(), untouched(model):
        torch.manual_seed(0)
        y = torch.stack([model(x) for _ in range(30)]).mean(0).argmax(1)
    attacks = {"sea": SEA(Flips(2, "signed"), 10), "oblivious": ObliviousSEA(FixedFlips(2, "signed"), 3, 10)}
    records = evaluate(model, x, y, attacks, 10, show_progress=False)
    sea, oblivious, clean = (records.score(n).value for n in ("sea", "oblivious", "clean"))
    assert sea + 0.1 < oblivious < clean - 0.05


def test_records_follow_the_seed_and_nothing_is_left_behind():
    model = Encoded(SignedRate(3, 0.45), nn.Sequential(nn.Flatten(), nn.Linear(24, 3), GaussianNoise(0.1)))
    x, y = images(7), torch.arange(7) % 3
    attacks = {"sea": SEA(Flips(2, "signed"), 3, 2), "masked": MaskedSampling(Flips(float("inf"), "signed"), 2)}

    def predicted(seed: int) -> np.ndarray:
        records = evaluate(model, x, y, attacks, 5, seed, chunk=4, show_progress=False)
        return np.stack([records.attacks[n].predictions for n in attacks])

    before = fingerprint()
    first = predicted(0)
    assert fingerprint() == before
    assert all(p.grad is None for p in model.parameters())
    assert (first == predicted(0)).all()
    assert (first != predicted(1)).any()


def test_one_draw_by_hand():
    model, x = Encoded(SignedRate(3, 0.45), Curved(24)), images(5)
    y, before = torch.zeros(5, dtype=torch.long), fingerprint()
    one = attack_codes(SEA(Flips(2, "signed")), model, x, y, seed=3)
    again, other = (attack_codes(SEA(Flips(2, "signed")), model, x, y, seed=s) for s in (3, 4))
    assert fingerprint() == before
    assert torch.equal(one.attacked, paper_step(model.network, one.codes, y, 2, True))
    assert torch.equal(one.codes, again.codes)
    assert torch.equal(one.attacked, again.attacked)
    assert not torch.equal(one.codes, other.codes)


def test_a_deterministic_encoder_is_scored_once():
    model, x = Encoded(Latency(3), Curved(24)), images(6)
    records = evaluate(model, x, torch.zeros(6, dtype=torch.long), {"sea": SEA(Flips(1))}, 9, show_progress=False)
    assert records.attacks["sea"].predictions.shape == (6, 1)


# ------------------------------------------------------------------ masked sampling


def test_masked_sampling_moves_by_the_size_of_the_gradient():
    """Shares of moved letters over 4,000 examples against |g| / max |g|, exact binomial tests at 1e-6; a letter at
    the end of its alphabet stays."""
    w = torch.tensor([1.0, -0.5, 0.25, 0.0]).view(1, 4)
    z0 = torch.tensor([[[0.0, 0.0, -1.0, 1.0]]]).expand(4000, 1, 4)
    network = Line(-w, 0.0)  # the objective of class 1 rises along w
    attack = MaskedSampling(Flips(float("inf"), "signed"), 1)
    z = attack(network, z0, torch.ones(4000, dtype=torch.long), ids=torch.arange(4000))
    fair = network(z0).argmax(1)
    assert fair.unique().tolist() == [1]  # nobody is fooled at the start, so all are moved
    change = (z - z0)[:, 0]
    assert change[:, 0].eq(1).all()
    assert set(change[:, 1].unique().tolist()) == {-1.0, 0.0}
    for i, share in ((1, 0.5), (2, 0.25)):
        assert binomtest(int((change[:, i] != 0).sum()), 4000, share).pvalue > 1e-6
    assert change[:, 3].eq(0).all()
    binary = MaskedSampling(Flips(float("inf")), 1)
    up = binary(Line(-w, 0.5), torch.ones(50, 1, 4), torch.ones(50, dtype=torch.long), ids=torch.arange(50))
    assert up[..., 0].eq(1).all()  # no letter above 1
    assert set(up.unique().tolist()) <= {0.0, 1.0}


def test_masked_sampling_flips_at_random_where_the_gradient_is_lost():
    """Turnover 0.3, half of the directions up: 40,000 letters at 0 of a signed alphabet, binomial tests at 1e-6."""
    flat = Line(torch.zeros(1, 20), 2.0)
    attack = MaskedSampling(Flips(float("inf"), "signed"), 1, turnover=0.3)
    z = attack(flat, torch.zeros(2000, 1, 20), torch.ones(2000, dtype=torch.long), ids=torch.arange(2000))
    for letter in (-1, 1):
        assert binomtest(int((z == letter).sum()), 40000, 0.15).pvalue > 1e-6


# ------------------------------------------------------------------ aggregated models


@pytest.mark.parametrize("name", ENCODERS)
def test_aggregated_models_average_their_encodings(name):
    network = Curved(24)
    model = Aggregated(Encoded(ENCODERS[name], network), 4)
    x = images(5)
    codes = model.encoder(x)
    assert (codes.shape, model.encoder.alphabet) == ((5, 12, 1, 1, 8), ENCODERS[name].alphabet)
    wanted = torch.stack([network(codes[:, 3 * i : 3 * i + 3]) for i in range(4)]).mean(0)
    torch.testing.assert_close(model.network(codes), wanted)
    assert len(codes[0].unflatten(0, (4, 3)).unique(dim=0)) == 4
    same = Encoded(Latency(3), network)  # which image a code is of
    torch.testing.assert_close(Aggregated(same, 4)(x), same(x))
    shared = model.encoder(x[:1].expand(5, 1, 1, 8))
    assert len(shared.unique(dim=0)) == 5


def test_an_attack_on_an_aggregated_linear_network_is_one_on_every_encoding():
    """k flips in each of the m T frames; the margin of a mean of linear networks is the mean of theirs."""
    single = Line(torch.randn(3, 1, 1, 8, generator=torch.Generator().manual_seed(5)), 0.1)
    model, x, y = Aggregated(Encoded(BernoulliRate(3), single), 4), images(6), torch.tensor([0, 1] * 3)
    threat = Flips(2)
    one = attack_codes(SEA(threat, objective=margin), model, x, y)
    for i in range(4):
        part = slice(3 * i, 3 * i + 3)
        alone = SEA(threat, objective=margin)(single, one.codes[:, part], y)
        assert torch.equal(one.attacked[:, part], alone)
    assert torch.equal(threat.distance(one.attacked, one.codes), torch.full((6,), 2.0))


# ------------------------------------------------------------------ refusals


class Never(nn.Module):
    scope = "example"

    def forward(self, z):
        raise AssertionError("the network was asked")


@pytest.mark.parametrize(
    ("model", "attack", "error", "told"),
    [
        (Never(), SEA(Flips(1)), ModelError, "Encoded"),
        (Encoded(Direct(2), Never()), SEA(Flips(1)), ModelError, "real numbers.*Linf"),
        (Encoded(SignedRate(2), Never()), SEA(Flips(1)), ModelError, "alphabet"),
        (Encoded(BernoulliRate(2), Never()), ObliviousSEA(FixedFlips(1, "signed")), ModelError, "alphabet"),
        (Encoded(BernoulliRate(2), Never()), Custom(lambda m, z, y: z, FixedFlips(1)), BudgetError, "ObliviousSEA"),
    ],
)
def test_evaluate_refuses_before_any_compute(model, attack, error, told):
    with pytest.raises(error, match=told):
        evaluate(model, images(2), torch.zeros(2, dtype=torch.long), {"a": attack}, 2, show_progress=False)


def test_evaluate_checks_every_attacked_code():
    model, x, y = Encoded(BernoulliRate(2), Curved(16)), images(3), torch.zeros(3, dtype=torch.long)
    for wrong, told in (
        (lambda m, z, t: 1 - z, "8 at example 0"),
        (lambda m, z, t: z / 2, "codes"),
        (lambda m, z, t: z[:1], "codes"),
    ):
        with pytest.raises(ThreatError, match=told):
            evaluate(model, x, y, {"wrong": Custom(wrong, Flips(2))}, 2, show_progress=False)


def test_parts_are_refused():
    with pytest.raises(BudgetError, match="Flips"):
        SEA(Linf(0.1))
    with pytest.raises(BudgetError, match="Flips"):
        ObliviousSEA(Flips(1))
    with pytest.raises(BudgetError, match="inf"):
        MaskedSampling(Flips(3))
    with pytest.raises(BudgetError, match="turnover"):
        MaskedSampling(Flips(float("inf")), turnover=2)
    with pytest.raises(BudgetError, match="on codes"):
        attack_codes(parse_attack("fgsm", Linf(0.1)), Never(), images(2), torch.zeros(2).long())
    with pytest.raises(ModelError, match="Encoded"):
        Aggregated(nn.Flatten(), 3)
    with pytest.raises(BudgetError, match="encodings"):
        Aggregated(Encoded(BernoulliRate(2), Never()), 0)
    with pytest.raises(ModelError, match="frames"):
        Aggregated(Encoded(BernoulliRate(2), Curved(16)), 3).network(torch.zeros(1, 4, 1, 1, 8))
    with pytest.raises(BudgetError, match="given codes"):
        FixedFlips(1).start(torch.zeros(1, 1, 2), Stream(0, torch.arange(1)))
    assert SEA(3).threat == Flips(3)


def test_without_a_budget_one_step_changes_whatever_gains():
    """What a step gains to first order never falls with the budget, and inf is the largest."""
    w = torch.linspace(-1, 1, 12).view(3, 4)
    codes = (torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    y = torch.zeros(5, dtype=torch.long)
    network = Line(w, 0.0)
    gains = [network(SEA(Flips(k))(network, codes, y))[:, 1] for k in (0, 1, 2, 4, float("inf"))]
    assert all(bool((b >= a).all()) for a, b in pairwise(gains))
    best = torch.where(w > 0, 1.0, 0.0).expand_as(codes)
    torch.testing.assert_close(gains[-1], network(best)[:, 1])
