"""The audit of a model with an encoder under flips: what it runs, what it finds, what it refuses, its folder."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from coded import Curved, images
from stochade import Linf, audit
from stochade.attacks import SEA, FixedFlips, Flips
from stochade.audit import Audit, Baseline, Effort, plan_codes
from stochade.audit.checks import CODE_CHECKS
from stochade.audit.codes import measure
from stochade.audit.plan import budgets
from stochade.audit.run import expected_cost
from stochade.errors import BudgetError, LogitsError, ModelError, ThreatError
from stochade.models import Encoded
from stochade.nn import Direct, GaussianNoise, SignedRate
from stochade.randomness import fingerprint, untouched
from stochade.report import build, summary, table

SMALL = Effort(steps=10, draws=4, pairs=2, evolution_steps=2, samples=6, curves=False)
FLIPS = Flips(1, "signed")


class Flat(nn.Module):
    """The curved network with its gradient multiplied by a factor."""

    scope = "none"

    def __init__(self, factor: float):
        super().__init__()
        self.inner, self.factor = Curved(24, seed=3), factor

    def forward(self, z):
        return self.inner(z.detach() + self.factor * (z - z.detach()))


def labels(model, x) -> torch.Tensor:
    with torch.no_grad(), untouched(model):
        torch.manual_seed(0)
        return torch.stack([model(x) for _ in range(30)]).mean(0).argmax(1)


@cache
def audited(factor: float = 1.0, noise: float = 0.0, curves: bool = False, search: int = 0) -> Audit:
    network = nn.Sequential(nn.Flatten(), GaussianNoise(noise), Flat(factor)) if noise else Flat(factor)
    model, x = Encoded(SignedRate(3, 0.45), network), images(40, seed=4)
    effort = replace(SMALL, curves=curves, search=search, searched=8)
    y = labels(model, x)
    return audit(model, x, y, FLIPS, effort=effort, draws=4, claim_attack="sea", show_progress=False)


def found(result: Audit) -> dict[str, str]:
    return {f.check: f.severity for f in result.findings}


def test_iterated_flips_find_more_than_the_papers_one_step():
    """A network whose gradient changes quickly: the claimed attack is not converged, and the card says so."""
    result = audited()
    assert found(result)["stronger-with-own-gradient"] == "incomplete"
    assert "masking" not in found(result).values()
    assert {"one-step-claim", "left-out-on-codes", "encoding-is-the-defence"} <= found(result).keys()
    assert result.claim_attack == "sea"
    assert result.claimed.value > result.found.value + 0.1
    assert result.card.undercut
    assert set(result.records.attacks) == {
        "clean", "sea", "sea iterated", "sea margin", "sea restarts", "sea to the runner-up",
        "sea without sight of the encoding", "masked sampling, any number of flips", "random flips", "random search",
    }  # fmt: skip
    inside = result.records.within(result.threat)
    assert set(result.records.attacks) - set(inside) == {plan_codes.MASKED}


def test_words_and_report_of_codes(tmp_path):
    result = audited(curves=True, search=200)
    assert result.threat == {"norm": "flips", "eps": 1.0, "per": "frame", "alphabet": "signed"}
    told = summary(result)
    assert "Audit under signed flips 1 per frame" in told
    assert "Flips(1, 'signed', 'frame')" in told
    assert "| random flips | signed flips 1 per frame |" in table(result)
    result.save(tmp_path)
    loaded = Audit.load(tmp_path)
    assert (loaded.found, loaded.findings, loaded.threat) == (result.found, result.findings, result.threat)
    page = build(loaded, tmp_path / "report.html").read_text()
    assert "budget (signed flips per frame)" in page
    assert result.probes["letters"] == 8
    assert [p["x"] for p in result.curves["budget"] if p["series"] == "best attack found"] == [1.0, 2.0, 8.0]
    searched = [line["attack"] for line in result.search]
    assert any(name.startswith("starts ") for name in searched)
    assert not any("evolution" in name or "square" in name or "apgd" in name for name in searched)


def test_a_gradient_of_zero_is_found_and_random_flips_do_as_well():
    result = audited(0.0)
    assert found(result)["zero-gradient"] == "masking"
    assert found(result)["random-flips-do-as-well"] == "incomplete"
    assert "letter" not in next(f.title for f in result.findings if f.check == "zero-gradient")


class Turned(nn.Module):
    """A linear network of codes whose gradient points the other way."""

    scope = "none"

    def __init__(self, sign: float, pixels: int = 24):
        super().__init__()
        self.sign = sign
        self.weight = torch.randn(pixels, 3, generator=torch.Generator().manual_seed(1))

    def forward(self, z):
        z = z.detach() + self.sign * (z - z.detach())
        return z.flatten(2).mean(1) @ self.weight


@cache
def turned(sign: float) -> Audit:
    model, x = Encoded(SignedRate(4, 0.45), Turned(sign)), images(60, pixels=24, seed=5)
    return audit(model, x, labels(model, x), Flips(3, "signed"), effort=SMALL, draws=4, show_progress=False)


def test_a_gradient_of_the_wrong_sign_is_found():
    """Every step then makes the label likelier: accuracy rises, and flips that are drawn blindly do better."""
    right, wrong = turned(1.0), turned(-1.0)
    assert "masking" not in found(right).values()
    assert found(wrong)["label-leaking"] == "masking"
    assert found(wrong)["random-flips-do-as-well"] == "incomplete"
    assert wrong.records.score("sea").value == 1.0 > wrong.records.score("clean").value
    assert right.found.value == 0.0 < wrong.found.value


def test_averages_are_over_the_networks_own_noise():
    quiet, noisy = audited(), audited(noise=0.4)
    assert not quiet.probes["network_random"]
    assert noisy.probes["network_random"]
    assert plan_codes.AVERAGED in noisy.records.attacks
    assert plan_codes.AVERAGED not in quiet.records.attacks
    assert quiet.probes["gradient"]["cosine_between_draws"] == pytest.approx(1.0)
    assert noisy.probes["gradient"]["cosine_between_draws"] < 0.99


def test_measuring_leaves_the_model_and_the_generators_alone():
    model, x = Encoded(SignedRate(3, 0.45), Curved(24)), images(8)
    before = fingerprint()
    facts = measure(model, x, torch.zeros(8, dtype=torch.long), Flips(3, "signed", "total"))
    assert fingerprint() == before
    assert facts["letters"] == 24
    assert facts["random"]
    assert facts["encodings"]["flips between two encodings"] > 0
    assert -1 <= facts["encodings"]["cosine of the gradients at two encodings"] < 0.99


class Never(nn.Module):
    scope = "none"

    def forward(self, z):
        raise AssertionError("the network was asked")


@pytest.mark.parametrize(
    ("encoder", "threat", "options", "error", "told"),
    [
        (SignedRate(2), Flips(1), {}, ModelError, "alphabet|codes in"),
        (Direct(2), Flips(1), {}, ModelError, "real numbers"),
        (SignedRate(2), FLIPS, {"eight_bit": True}, BudgetError, "eight_bit"),
        (SignedRate(2), FLIPS, {"planted": 4}, BudgetError, "active test"),
        (SignedRate(2), FLIPS, {"baseline": Baseline(images(2))}, BudgetError, "baseline"),
        (SignedRate(2), Flips(float("inf"), "signed"), {}, BudgetError, "finite"),
        (SignedRate(2), FLIPS, {"claim_attack": "fgsm eps=0.1"}, BudgetError, "whole"),
        (SignedRate(2), Linf(0.1), {"claim_attack": "sea"}, ThreatError, "linf"),
    ],
)
def test_refusals_come_before_any_compute(encoder, threat, options, error, told):
    x, y = images(2), torch.zeros(2, dtype=torch.long)
    with pytest.raises(error, match=told):
        audit(Encoded(encoder, Never()), x, y, threat, effort=SMALL, show_progress=False, **options)


def test_probabilities_behind_an_encoder_are_refused():
    model = Encoded(SignedRate(3, 0.45), nn.Sequential(Curved(24), nn.Softmax(1)))
    with pytest.raises(LogitsError, match="softmax"):
        audit(model, images(4), torch.zeros(4).long(), FLIPS, effort=SMALL, show_progress=False)


def test_the_threat_comes_from_the_claim_in_the_encoders_letters():
    from stochade.attacks.codes import flips_for
    from stochade.audit.claims import about_codes, claimed_attack

    usual = flips_for(Encoded(SignedRate(2), Never()))
    assert usual == Flips(10, "signed")
    assert claimed_attack("sea k=4 per=total", None, usual) == (
        SEA(Flips(4, "signed", "total")), Flips(4, "signed", "total"),
    )  # fmt: skip
    assert claimed_attack("sea-oblivious k=4", None, usual)[1] == Flips(4, "signed")
    assert claimed_attack("sea-masked", None, usual)[1] == usual
    assert [about_codes(t) for t in ("sea k=2", "fgsm", None, SEA(3))] == [True, False, False, True]


def test_cost_is_told_before():
    model, x = Encoded(SignedRate(3, 0.45), Curved(24)), images(8)
    y = torch.zeros(8, dtype=torch.long)
    few, many = (expected_cost(model, x, y, FLIPS, SMALL, draws) for draws in (2, 4))
    assert many["backwards"] > 1.8 * few["backwards"]  # an attack runs anew in every draw
    with pytest.raises(ModelError, match="codes in"):
        expected_cost(model, x, y, Flips(1), SMALL)


def test_budgets_and_checks():
    assert budgets(Flips(5), 64, (0.5, 1, 2)) == [2.0, 5.0, 10.0, 64.0]
    assert isinstance(plan_codes.code_attacks(Curved(24), FLIPS, False, True, SMALL)[plan_codes.OBLIVIOUS].threat,
                      FixedFlips)  # fmt: skip
    assert set(plan_codes.code_attacks(Curved(24), FLIPS, False, False, SMALL)) == {"random flips", "random search"}
    for name, check in CODE_CHECKS.items():
        assert check.__doc__
        assert "_" not in name
