"""Claim cards: verdicts against hand-made records and models whose accuracy under the claimed attack is known."""

import json

import numpy as np
import pytest

import stochade
from doubles import Base, examples
from report_example import attack, pictures
from stochade import FGSM, L2, PGD, Linf, audit
from stochade.audit import Audit, Effort
from stochade.audit.claims import check_claim, claimed_attack, with_claim, written
from stochade.errors import BudgetError, StochadeError, ThreatError, UsageError
from stochade.evaluate.records import Records
from stochade.models.known_answer import KNOWN

SMALL = Effort(steps=10, draws=5, pairs=10, evolution_steps=5, samples=20, queries=0)
LINF = {"norm": "linf", "eps": 0.2}


def made(clean=0.95, fgsm=0.8, pgd=0.1, n=400, pgd_eps=0.2, scope="example", **audit_fields) -> Audit:
    """An audit whose accuracies are exactly these, without any spread over draws."""
    rng, labels = np.random.default_rng(0), np.zeros(n, np.int64)

    def record(right: float, threat: dict | None):
        one = attack(rng, labels, pictures()[:1].repeat(n, 0), 0.5, threat, kept=0)
        one.predictions = one.selection = np.repeat((np.arange(n) >= round(right * n))[:, None], 2, 1).astype(
            np.int16
        )
        return one

    table = {"clean": record(clean, None), "fgsm": record(fgsm, LINF)}
    table["pgd"] = record(pgd, {"norm": "linf", "eps": pgd_eps})
    records = Records(np.arange(n), labels, table, {"model": {"scope": scope}, "chunk": n})
    return Audit(records, [], audit_fields.pop("threat", LINF), "fgsm", **audit_fields)


def card(**fields):
    found = made(**fields).card
    assert found is not None
    return found


def test_nobody_claimed_anything():
    assert made().card is None
    assert json.loads(json.dumps({"card": made().card})) == {"card": None}


def test_a_claim_inside_the_interval_replicates_and_what_is_left_is_its_share():
    one = card(claim=0.82, claimed_as="fgsm eps=0.2", command="stochade audit x")
    assert one.replicates is True
    assert (one.replicated.value, one.found.value, one.clean.value) == (0.8, 0.1, 0.95)
    assert one.survives == pytest.approx(0.1 / 0.82)
    assert one.undercut
    assert one.title == "The claim replicates, and at most 12 % of it survives the strongest attack found"
    assert one.verdict[0].startswith("82.0 % was published, fgsm eps=0.2 leaves 80.0 % [")
    assert one.verdict[0].endswith("] here: the interval holds the claim.")
    assert one.verdict[1].endswith("at most 12 % of the 82.0 % survives.")
    assert len(one.verdict) == 2
    assert one.command == "stochade audit x"


@pytest.mark.parametrize(
    ("claim", "points", "far"), [(0.851, "5.1 points less", False), (0.71, "9.0 points more", False),
                                 (0.93, "13.0 points less", True), (0.1, "70.0 points more", True)],
)  # fmt: skip
def test_a_claim_outside_the_interval_does_not_replicate_and_far_off_another_model_is_suspected(claim, points, far):
    one = card(claim=claim)
    assert one.replicates is False
    assert one.title.startswith("The claim does not replicate")
    assert points in one.verdict[0]
    assert ("another model" in one.verdict[0]) == far


def test_a_claim_above_clean_accuracy_is_pointed_out():
    one = card(claim=0.99, clean=0.9, fgsm=0.99)
    assert one.replicates is True
    assert one.verdict[1].startswith("The claim is above the accuracy on clean images here, 90.0 %")
    assert not any("clean" in sentence for sentence in card(claim=0.96).verdict), "inside the interval of clean"


@pytest.mark.parametrize(("pgd", "beyond"), [(0.9, False), (0.78, True)])
def test_a_claim_that_nothing_undercuts_is_not_called_good(pgd, beyond):
    one = card(claim=0.79, pgd=pgd)
    assert not one.undercut
    assert one.title.endswith("no attack tried here undercuts it")
    assert "a stronger attack may leave less" in one.verdict[-1]
    assert ("not beyond the interval" in one.verdict[-1]) == beyond


def test_without_a_published_figure_the_replication_is_what_is_left_of():
    one = card(claimed_as="fgsm eps=0.2")
    assert one.replicates is None
    assert one.survives == pytest.approx(0.1 / 0.8)
    assert one.title == "Of the accuracy under fgsm eps=0.2, at most 12 % survives the strongest attack found"
    assert one.verdict[0].startswith("No published accuracy was given; fgsm eps=0.2 leaves 80.0 %")
    assert card(claimed_as="fgsm eps=0.2", pgd=0.9).title == "No attack tried here undercuts fgsm eps=0.2"


def test_without_an_interval_nothing_is_said_about_replication():
    """One draw of noise that all examples share says nothing of its own spread."""
    audited = made(claim=0.9, scope="call")
    for record in audited.records.attacks.values():
        record.predictions, record.selection = record.predictions[:, :1], record.selection[:, :1]
    one = audited.card
    assert one is not None
    assert (one.replicates, one.undercut) == (None, False)
    assert "cannot be said" in one.title
    assert "without an interval" in one.verdict[0]


def test_a_claim_of_zero_has_no_share():
    one = card(claim=0.0, fgsm=0.0, pgd=0.0)
    assert (one.survives, one.undercut, one.replicates) == (None, False, True)


def test_a_claim_at_another_budget_is_judged_there_and_says_what_counted():
    """The audit searched at 0.3, where PGD ran; only FGSM lies inside the claim's 0.2."""
    one = card(claim=0.8, pgd_eps=0.3, threat={"norm": "linf", "eps": 0.3})
    assert one.threat == LINF
    assert one.found.value == 0.8
    assert "only 1 of its attacks count" in one.verdict[-1]
    assert "searched inside linf 0.3, the claim is about linf 0.2" in one.verdict[-1]


def test_true_claims_replicate_as_often_as_the_interval_says():
    """300 true claims of 80 % on 200 examples: at 95 % coverage fewer than 273 would happen once in 10^3 times."""
    rng, agreed = np.random.default_rng(5), 0
    audited = made(n=200, claim=0.8)
    fgsm = audited.records.attacks["fgsm"]
    for _ in range(300):
        fgsm.predictions = np.repeat((rng.random((200, 1)) >= 0.8), 2, 1).astype(np.int16)
        agreed += audited.card.replicates  # type: ignore[operator, union-attr]
    assert agreed >= 273


@pytest.mark.parametrize("fields", [{}, {"claim": 0.82}, {"claim": 0.1}, {"claim": 0.99, "clean": 0.5, "pgd": 1.0}])
def test_no_verdict_promises_anything(fields):
    one = card(claimed_as="fgsm eps=0.2", **fields)
    text = " ".join([one.title, *one.verdict]).lower()
    for word in ("passed", "safe", "robust", "secure", "verified"):
        assert word not in text


def test_percentages_and_nonsense_are_refused_with_the_fix():
    with pytest.raises(BudgetError, match=r"for 93.1 % write 0.931$"):
        check_claim(93.1)
    for bad in (-0.1, 101, float("nan"), True, "0.9", float("inf")):
        with pytest.raises(BudgetError, match=r"for 93.1 % write 0.931$"):
            check_claim(bad)  # type: ignore[arg-type]
    for good in (None, 0, 1, 0.5):
        check_claim(good)


def test_the_audit_runs_at_the_claims_threat_unless_told_otherwise():
    assert claimed_attack(None, None) == (None, Linf(0.1))
    assert claimed_attack(None, None, L2(3.0)) == (None, L2(3.0))
    assert claimed_attack(None, 0.2) == (None, Linf(0.2))
    assert claimed_attack("fgsm eps=8/255", None)[1] == Linf(8 / 255)
    assert claimed_attack("fgsm", None, L2(3.0)) == (FGSM(L2(3.0)), L2(3.0))
    assert claimed_attack("fgsm norm=l2 eps=1", None) == (FGSM(L2(1.0)), L2(1.0))
    assert claimed_attack(PGD(Linf(0.2), 7), None) == (PGD(Linf(0.2), 7), Linf(0.2))
    assert claimed_attack("fgsm eps=0.3", Linf(0.1)) == (FGSM(0.3), Linf(0.1))
    assert claimed_attack("fgsm", Linf(0.25)) == (FGSM(0.25), Linf(0.25))


def test_a_claim_in_another_norm_and_other_mistakes_are_named():
    with pytest.raises(ThreatError, match="leave the threat out"):
        claimed_attack("fgsm norm=l2 eps=1", Linf(0.1))
    for bad in ("", "  ", "fgsn", "fgsm epz=1"):
        with pytest.raises(UsageError):
            claimed_attack(bad, None)
    with pytest.raises(UsageError, match="claimed attack"):
        claimed_attack(3, None)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="budget"):
        claimed_attack("fgsm eps=x", None)


def test_an_attack_of_the_audit_is_not_run_twice():
    table = {"fgsm": FGSM(0.1), "bim": PGD(0.1, 3)}
    assert with_claim(table, FGSM(0.1), "fgsm eps=0.1") == ("fgsm", table)
    name, more = with_claim(table, PGD(Linf(0.1), 7), "pgd steps=7 eps=0.1")
    assert name == "claimed pgd(steps=7, eps=0.1)"
    assert list(more) == [name, *table]
    assert with_claim({}, FGSM(0.1), "fgsm")[0] == "claimed fgsm"
    assert written(" fgsm   eps=0.1 ") == "fgsm eps=0.1"
    assert written(FGSM(0.1)).startswith("Descent(threat=Linf(eps=0.1), steps=1")


def audited(name: str, **options) -> Audit:
    case = KNOWN[name](0)
    return audit(case.model, case.images, case.labels, effort=SMALL, show_progress=False, **options)


def test_the_true_accuracy_of_a_linear_model_replicates_exactly():
    """FGSM is the worst case of a linear model, so the true accuracy is the claim, its replication and the lowest."""
    case = KNOWN["linear"](0)
    truth = float(case.model.truth(case.images, case.labels, case.threat).mean())
    result = audited("linear", claim=truth, claim_attack=f"fgsm eps={case.threat.eps}")
    one = result.card
    assert one is not None
    assert result.threat["eps"] == pytest.approx(case.threat.eps)
    assert one.name == "fgsm", "the audit's own FGSM is this one"
    assert one.replicated.value == pytest.approx(truth)
    assert (one.replicates, one.undercut) == (True, False)


def test_a_claim_by_zero_gradients_replicates_and_falls(tmp_path):
    """FGSM leaves 100 % of a network whose gradient is zero; the truth is far below. The card survives the disk."""
    eps = KNOWN["zero-gradient"](0).threat.eps
    result = audited("zero-gradient", claim=1.0, claim_attack=f"bim steps=3 eps={eps}", out=tmp_path)
    one = result.card
    assert one is not None
    assert one.name == f"claimed bim(steps=3, eps={eps})"
    assert (one.replicated.value, one.replicates, one.undercut) == (1.0, True, True)
    assert one.survives is not None
    assert one.survives < 0.7
    result.search = [{"attack": "pgd", "rung": 0, "accuracy": 0.5}]
    result.save(tmp_path)
    assert Audit.load(tmp_path).search == result.search
    assert Audit.load(tmp_path).card == one
    told = json.loads((tmp_path / "audit.json").read_text())["card"]
    assert told["title"] == one.title
    assert told["found"]["value"] == one.found.value


def test_the_call_on_the_card_repeats_the_audit():
    case = KNOWN["linear"](0)
    first = audited(
        "linear", threat=case.threat, claim=0.5, claim_attack="pgd steps=2", draws=3, chunk=50, seed=4, planted=2
    )
    call = first.command.removesuffix(")") + ", show_progress=False)"
    names = {"stochade": stochade, "Linf": Linf, "Effort": Effort}
    second = eval(call, names | {"model": case.model, "images": case.images, "labels": case.labels})
    assert second.command == first.command
    assert second.card == first.card
    assert second.request == first.request


def test_a_claim_at_another_budget_does_not_make_findings_here():
    """A claim at a tenth of the budget leaves much more than the audit's own attacks; at equal budgets that would say
    that the claimed attack had not converged."""
    eps = KNOWN["linear"](0).threat.eps
    result = audited("linear", threat=eps, claim_attack=f"pgd steps=3 eps={eps / 10}")
    assert result.claim_attack == f"claimed pgd(steps=3, eps={eps / 10})"
    assert result.claimed.value is not None
    assert result.found.value is not None
    assert result.claimed.value > result.found.value + 0.2
    assert "stronger-with-own-gradient" not in [f.check for f in result.findings]


def test_audits_from_before_claims_had_attacks_still_load(tmp_path):
    made(claim=0.9).save(tmp_path)
    document = json.loads((tmp_path / "audit.json").read_text())
    for key in ("claim_attack", "claimed_as", "command", "search", "card"):
        del document[key]
    (tmp_path / "audit.json").write_text(json.dumps(document | {"schema": 1, "claim": "fgsm", "published": 0.9}))
    old = Audit.load(tmp_path)
    assert (old.claim_attack, old.claim, old.search) == ("fgsm", 0.9, [])


def test_mistakes_are_raised_before_any_compute():
    def never(x):
        raise AssertionError("called")

    x, y = examples(4)
    for options in (
        {"claim": 93.1}, {"claim_attack": "fgsm norm=l2 eps=1", "threat": 0.1}, {"claim_attack": "nothing"},
    ):  # fmt: skip
        with pytest.raises(StochadeError):
            audit(never, x, y, show_progress=False, **options)
    assert Base()(x).shape == (4, 2)
