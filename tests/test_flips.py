"""The spike-space threat against enumeration of every code; its distance, projection, starts and refusals."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from doubles import Line
from stochade.attacks import (
    FGSM,
    L0,
    PGD,
    SEA,
    Averaged,
    Descent,
    Ensemble,
    Evolution,
    FixedFlips,
    MaskedSampling,
    ObliviousSEA,
    RandomSearch,
    UniformNoise,
)
from stochade.attacks.finite_differences import NES
from stochade.attacks.flips import BINARY, SIGNED, Flips, names_flips, parse_flips
from stochade.attacks.gradients import Backprop
from stochade.attacks.registry import ATTACKS, CODE_ATTACKS, parse_attack
from stochade.errors import BudgetError, ImagesError, StochadeError
from stochade.randomness import Stream

ALPHABETS = [BINARY, SIGNED]


def letters_of(alphabet, shape, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor(alphabet)[torch.randint(len(alphabet), shape, generator=generator)]


def gradients(shape, seed=0) -> torch.Tensor:
    """Half of the rows are whole numbers from -2 to 2 (ties and zeros), the others normal numbers in float64; the
    first row is zero."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    g[::2] = torch.randint(-2, 3, g[::2].shape, generator=generator).double()
    g[0] = 0
    return g


def best_gain(g: np.ndarray, z: np.ndarray, alphabet, k: int) -> np.ndarray:
    """[N] max <g, z' - z> over all words z' of the alphabet that differ from z [N, d] in at most k letters: every
    set of k places, every word in it."""
    d = z.shape[1]
    words = np.array(list(product(alphabet, repeat=min(k, d))))
    best = np.full(len(z), -np.inf)
    for places in combinations(range(d), min(k, d)):
        at = list(places)
        gains = np.einsum("nj,nwj->nw", g[:, at], words[None] - z[:, None, at])
        best = np.maximum(best, gains.max(1))
    return best


def gain_of(threat: Flips, g: torch.Tensor, z: torch.Tensor) -> np.ndarray:
    change = threat.steepest(g, z)
    assert bool(threat.allows(z + change, z).all())
    return (g * change).flatten(1).sum(1).numpy()


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_steepest_equals_enumeration_up_to_twelve_letters(alphabet, k):
    for d in range(1, 13):
        z, g = letters_of(alphabet, (24, 1, d), d).double(), gradients((24, 1, d), d)
        wanted = best_gain(g[:, 0].numpy(), z[:, 0].numpy(), alphabet, k)
        for per in ("frame", "total"):  # one frame: the same
            np.testing.assert_allclose(gain_of(Flips(k, alphabet, per), g, z), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_steepest_equals_enumeration_for_every_code_and_gradient_of_three_letters(alphabet, k):
    """All codes, and all gradients with entries in {-2, -1, 0, 1, 2}: every tie and every zero."""
    pairs = [(c, g) for c in product(alphabet, repeat=3) for g in product((-2.0, -1.0, 0.0, 1.0, 2.0), repeat=3)]
    z, g = (torch.tensor(part, dtype=torch.float64)[:, None] for part in zip(*pairs, strict=True))
    wanted = best_gain(g[:, 0].numpy(), z[:, 0].numpy(), alphabet, k)
    np.testing.assert_array_equal(gain_of(Flips(k, alphabet), g, z), wanted)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_frames_have_budgets_of_their_own_and_a_total_is_shared(alphabet):
    z, g = letters_of(alphabet, (16, 3, 4), 1).double(), gradients((16, 3, 4), 2)
    each = sum(best_gain(g[:, t].numpy(), z[:, t].numpy(), alphabet, 2) for t in range(3))
    np.testing.assert_allclose(gain_of(Flips(2, alphabet), g, z), each, atol=1e-12)
    total = best_gain(g.flatten(1).numpy(), z.flatten(1).numpy(), alphabet, 3)
    np.testing.assert_allclose(gain_of(Flips(3, alphabet, "total"), g, z), total, atol=1e-12)


@pytest.mark.parametrize(
    ("alphabet", "letter", "sign", "change"),
    [  # tables 2 and 3 of mukhoty2025
        *[(BINARY, z, s, c) for z, s, c in ((0, -1, 0), (1, -1, -1), (0, 1, 1), (1, 1, 0), (0, 0, 0), (1, 0, 0))],
        *[(SIGNED, z, -1, c) for z, c in ((-1, 0), (0, -1), (1, -2))],
        *[(SIGNED, z, 1, c) for z, c in ((-1, 2), (0, 1), (1, 0))],
        *[(SIGNED, z, 0, 0) for z in (-1, 0, 1)],
    ],
)
def test_one_letter_follows_the_tables_of_the_paper(alphabet, letter, sign, change):
    z = torch.full((1, 1, 1), float(letter))
    assert float(Flips(1, alphabet).steepest(0.3 * sign * torch.ones_like(z), z)) == change


def test_a_change_of_two_counts_once():
    z0, z = torch.tensor([[[-1.0, 0.0, 1.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
    assert float(Flips(2, SIGNED).distance(z, z0)) == 2


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("size", [1.0, 2.0])
def test_a_step_lets_few_entries_enter_and_is_the_best_of_those(alphabet, size):
    """Every code whose changed letters are among those of x and at most `size` others, at most k in all."""
    threat, z0, g = Flips(2, alphabet), letters_of(alphabet, (10, 1, 5), 3).double(), gradients((10, 1, 5), 4)
    x = threat.start(z0, Stream(0, torch.arange(10)))
    moved = threat.move(g, x, z0, size)
    words = np.array(list(product(alphabet, repeat=5)))
    for i in range(10):
        base, changed = z0[i, 0].numpy(), (x[i, 0] != z0[i, 0]).numpy()
        differs = words != base
        fits = (differs.sum(1) <= 2) & ((differs & ~changed).sum(1) <= size)
        wanted = ((words[fits] - base) @ g[i, 0].numpy()).max()
        assert float((g[i] * (moved[i] - z0[i])).sum()) == pytest.approx(wanted, abs=1e-12)
        now = moved[i, 0].numpy()
        assert ((now != base) & ~changed).sum() <= size


@pytest.mark.parametrize("alphabet", ALPHABETS)
@pytest.mark.parametrize("per", ["frame", "total"])
def test_projection_is_the_nearest_allowed_code(alphabet, per):
    threat, z0 = Flips(2, alphabet, per), letters_of(alphabet, (12, 2, 3), 5).double()
    v = z0 + torch.randn(z0.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    found = threat.project(v, z0)
    assert bool(threat.allows(found, z0).all())
    words = torch.tensor(list(product(alphabet, repeat=6)), dtype=torch.float64).view(-1, 2, 3)
    for i in range(12):
        inside = words[threat.allows(words, z0[i].expand_as(words))]
        nearest = (inside - v[i]).square().sum((1, 2)).min()
        assert float((found[i] - v[i]).square().sum()) == pytest.approx(float(nearest), abs=1e-12)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_starts_flip_k_letters_of_every_frame_evenly(alphabet):
    """Places and letters are even: chi-squared at level 1e-4 each, fixed seed."""
    from scipy.stats import chisquare

    z0 = letters_of(alphabet, (1, 2, 6), 7).expand(3000, 2, 6)
    threat = Flips(2, alphabet)
    z = threat.start(z0, Stream(0, torch.arange(3000)))
    assert torch.equal(threat.counts(z, z0), torch.full((3000, 2), 2.0))
    assert bool(threat.allows(z, z0).all())
    places = (z != z0).sum(0).flatten().numpy()  # negatively correlated inside a frame, so conservative
    assert chisquare(places).pvalue > 1e-4
    if alphabet == SIGNED:
        up = ((z - z0) % 3 == 1).sum() / (z != z0).sum()
        assert abs(float(up) - 0.5) < 4 * 0.5 / np.sqrt(3000 * 4)
    total = Flips(2, alphabet, "total")
    assert torch.equal(total.distance(total.start(z0, Stream(0, torch.arange(3000))), z0), torch.full((3000,), 2.0))


def test_starts_depend_on_seed_and_identity_alone():
    z0, threat = letters_of(SIGNED, (6, 2, 6), 8), Flips(2, SIGNED)
    whole = threat.start(z0, Stream(1, torch.arange(6)))
    assert torch.equal(whole[3:], threat.start(z0[3:], Stream(1, torch.arange(3, 6))))
    assert not torch.equal(whole, threat.start(z0, Stream(2, torch.arange(6))))


@pytest.mark.parametrize("per", ["frame", "total"])
def test_budgets_per_example(per):
    z0, g = letters_of(SIGNED, (4, 2, 8), 9).double(), torch.randn(4, 2, 8, dtype=torch.float64)
    budgets = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    each = Flips(3, SIGNED, per).for_each(budgets)
    for threat, rows in ((each, torch.arange(4)), (each.rows(torch.tensor([2, 1])), torch.tensor([2, 1]))):
        for step in (None, 1.0):
            moved = threat.move(g[rows], z0[rows], z0[rows], step)
            for row, i in enumerate(rows.tolist()):
                alone = Flips(int(budgets[i]), SIGNED, per).move(g[i : i + 1], z0[i : i + 1], z0[i : i + 1], step)
                assert torch.equal(moved[row], alone[0])
        started = threat.start(z0[rows], Stream(0, rows))
        assert torch.equal(threat.distance(started, z0[rows]), budgets[rows])
        assert bool(threat.allows(started, z0[rows]).all())
        assert torch.equal(threat.project(1 - 2 * z0[rows], z0[rows]), threat.project(1 - 2 * z0[rows], z0[rows]))
    assert each.scaled(5.0).tolist() == [0.0, 1.0, 2.0, 5.0]
    with pytest.raises(BudgetError, match="whole"):
        Flips(3).for_each(torch.tensor([0.5]))


def test_containment_and_resizing():
    assert Flips(3).contains(Flips(2))
    assert not Flips(2).contains(Flips(3))
    assert Flips(3, "signed").contains(Flips(3))
    assert not Flips(3).contains(Flips(3, "signed"))
    assert Flips(3).contains(Flips(3, per="total"))
    assert not Flips(3, per="total").contains(Flips(3))
    assert not Flips(3).contains(L0(2))
    assert Flips(3, "signed", "total").resized(5) == Flips(5, SIGNED, "total")
    assert (Flips(10).k, str(Flips(10)), Flips(float("inf")).k) == (10, "flips 10 per frame", float("inf"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((1.5,), "whole"),
        ((-1,), ">= 0"),
        ((1, (0, 2)), "alphabet"),
        ((1, "ternary"), "alphabet"),
        ((1, BINARY, "pixel"), "per="),
    ],
)
def test_refusals(arguments, told):
    with pytest.raises(BudgetError, match=told):
        Flips(*arguments)


@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_attacks_in_general_take_codes(alphabet):
    """One descent step reaches the exact worst case of a linear network, and more steps with any size stay there;
    random points stay in the threat. Codes in {-1, 0, 1} pass the checks of inputs."""
    z0, threat = letters_of(alphabet, (8, 3, 5), 11), Flips(2, alphabet)
    model = Line(torch.randn(3, 5, generator=torch.Generator().manual_seed(12)), 0.1)
    y = model(z0).argmax(1)
    worst = threat.move(torch.where(y.bool(), -1.0, 1.0)[:, None, None] * model.w, z0)
    for attack in (
        FGSM(threat),
        Descent(threat, 1),
        Descent(threat, 6, step_size=1.0, keep="best", drop_fooled=False),
    ):
        attacked = attack(model, z0, y)
        torch.testing.assert_close(model(attacked)[:, 1], model(worst)[:, 1])
    for attack in (RandomSearch(threat, 20), UniformNoise(threat)):
        assert bool(threat.allows(attack(model, z0, y), z0).all())


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        (torch.full((2, 3, 4), 0.5), "encoder"),
        (-torch.ones(2, 3, 4), "signed alphabet"),
        (torch.ones(2, 3), r"\[N,T,...\]"),
        (torch.ones(2, 3, 4, dtype=torch.long), "float"),
        (torch.full((2, 3, 4), torch.nan), "codes"),
    ],
)
def test_inputs_that_are_no_codes_are_refused_before_any_compute(codes, told):
    def never(z):
        raise AssertionError("the model was asked")

    with pytest.raises(ImagesError, match=told):
        FGSM(Flips(1))(never, codes, torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("name", [n for n in ATTACKS | CODE_ATTACKS if n != "transfer"])
def test_every_attack_serves_codes_or_refuses(name):
    """Attacks that move through the space between letters say so when they are built."""
    threat, z0 = Flips(2, SIGNED), letters_of(SIGNED, (4, 2, 5), 13)
    model = Line(torch.randn(2, 5, generator=torch.Generator().manual_seed(14)), 0.0)
    serves = {
        "fgsm", "bim", "ill", "pgd", "mifgsm", "uniform-noise", "random-search", "sea", "sea-masked",
    }  # fmt: skip
    if name in ("kubo2019-bim", "sea-oblivious"):  # no threat of codes around given codes
        return
    if name not in serves:
        with pytest.raises(StochadeError, match=r"threat|Linf|images|backpropagation"):
            parse_attack(name, threat)
        return
    options = {"random-search": "samples=5"}
    attack = parse_attack(f"{name} {options.get(name, '')}", threat)
    attacked = attack(model, z0, model(z0).argmax(1))
    if name != "sea-masked":
        assert bool(threat.allows(attacked, z0).all())


@pytest.mark.parametrize(
    "build",
    [
        lambda: NES(Flips(2)),
        lambda: PGD(Flips(2), gradient=Evolution(5, 0.1)),
        lambda: SEA(Flips(2), gradient=Averaged(2, 4, inner=Evolution(1, 0.1))),
        lambda: SEA(Flips(2), gradient=Ensemble((Backprop(), Evolution(1, 0.1)))),
        lambda: MaskedSampling(Flips(float("inf")), gradient=Evolution(5, 0.1)),
        lambda: ObliviousSEA(FixedFlips(2), gradient=Evolution(5, 0.1)),
        lambda: parse_attack("evolution", Flips(2)),
    ],
)
def test_gradients_by_queries_between_letters_are_refused_when_built(build):
    with pytest.raises(BudgetError, match=r"backpropagation under .*flips .* got (Evo|Aver|Ens).*RandomSearch"):
        build()
    PGD(L0(2), gradient=Evolution(5, 0.1))  # images between grey levels are images


@pytest.mark.parametrize("k", [1, 20, float("inf")])
@pytest.mark.parametrize("letters", ["binary", "signed"])
@pytest.mark.parametrize("per", ["frame", "total"])
def test_a_threat_is_read_as_it_is_written(k, letters, per):
    threat = Flips(k, letters, per)
    assert parse_flips(str(threat), "binary") == threat
    assert names_flips(str(threat))
    shown = f"flips={k}" + {"frame": "", "total": " in total"}[per]
    assert parse_flips(shown, letters) == threat
    assert parse_flips(f"{letters} {shown.upper()}") == threat


@pytest.mark.parametrize("text", ["flips", "flips=2.5", "flips=many", "flips=-1", "flips=3 per pixel", "flops=3"])
def test_other_words_for_flips_are_refused(text):
    with pytest.raises(BudgetError, match="flips"):
        parse_flips(text)
    assert names_flips(text) == (not text.startswith("flops"))
    assert not names_flips("linf=8/255")
