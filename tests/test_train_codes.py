"""Adversarial training on codes: what the loss sees, and what stays as it was."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stochade.attacks import PGD, SEA, FixedFlips, Flips, Linf, ObliviousSEA, attack_codes
from stochade.attacks.codes import encode, flips_for
from stochade.errors import BudgetError, ModelError, UsageError
from stochade.models.encoded import Encoded
from stochade.nn import BernoulliRate, Direct, SignedRate
from stochade.nn.over_time import OverTime
from stochade.randomness import fingerprint, forked, seed_for
from stochade.registry import build
from stochade.train import train
from stochade.train.codes import AdversarialCodes, adversarial_by, names_codes, parse_for
from stochade.train.objectives import Adversarial, Standard
from stochade.train.temporal import TET

OPTIONS = {"rate": {"encoder": "rate"}, "srate": {"encoder": "srate", "encoder_options": {"mean": 0.4}}}


def problem(encoder="srate", n=6):
    with forked(0):
        model = build("snn", (1, 8, 8), 4, width=0.5, **OPTIONS[encoder])
        x, y = torch.rand(n, 1, 8, 8), torch.arange(n) % 4
    return model.train(), x, y


def seen_by(model):
    """The codes that the network got, one entry a forward with gradients."""
    told = []

    def tell(_module, inputs):
        if torch.is_grad_enabled() and model.training:
            told.append(inputs[0])

    return told, model.network.register_forward_pre_hook(tell)


@pytest.mark.parametrize("encoder", ["rate", "srate"])
def test_the_loss_sees_codes_in_the_alphabet_and_within_the_budget(encoder):
    model, x, y = problem(encoder)
    threat = flips_for(model, 3)
    before = deepcopy(model)  # the loss pass moves the running statistics
    told, _ = seen_by(model)
    loss, _, terms = AdversarialCodes(SEA(threat))(model, x, y, model=model, seed=5)
    made = attack_codes(SEA(threat), before.eval(), x, y, seed=5)
    assert len(told) == 1
    assert torch.equal(told[0], made.attacked)
    threat.check(told[0])
    assert (threat.counts(told[0], made.codes) == 3).all()
    with forked():
        torch.testing.assert_close(loss, F.cross_entropy(model.network(made.attacked), y))
    assert terms == {}
    assert not model.encoder._forward_hooks
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_budget_of_nothing_is_standard_training_on_that_encoding():
    model, x, y = problem()
    none = AdversarialCodes(SEA(flips_for(model, 0)))
    loss, logits, _ = none(model, x, y, model=model, seed=3)
    codes = encode_alone(model, x, seed_for(3, "codes"))
    expected = model.network(codes)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(loss, F.cross_entropy(expected, y))
    some = AdversarialCodes(SEA(flips_for(model, 4)))(model, x, y, model=model, seed=3)[0]
    assert float(some.detach()) > float(loss.detach()) + 0.01


def encode_alone(model, x, seed):
    with forked():
        return encode(model, x, flips_for(model), seed)


def test_the_attack_may_push_away_from_what_the_model_says():
    model, x, y = problem(n=12)
    before = deepcopy(model).eval()
    told, _ = seen_by(model)
    AdversarialCodes(SEA(flips_for(model, 2)), labels="predicted")(model, x, y, model=model, seed=1)
    with forked(1):
        predicted = before(x).argmax(1)
    assert not torch.equal(predicted, y)
    assert torch.equal(told[0], attack_codes(SEA(flips_for(model, 2)), before, x, predicted, seed=1).attacked)
    asked = []
    before.network.register_forward_pre_hook(lambda _m, inputs: asked.append(inputs[0]))
    for state in (3, 4):  # which class is asked for follows the seed, wherever the generators stand
        with forked(state):
            AdversarialCodes(SEA(flips_for(model, 2)), labels="predicted")(before, x, y, model=before, seed=1)
    assert torch.equal(asked[0], asked[len(asked) // 2])


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_modes_gradients_buffers_and_generators_are_those_of_the_loss_pass_alone(weight):
    model, x, y = problem()
    objective, passes = AdversarialCodes(SEA(flips_for(model, 2)), weight), 1 if weight == 0 else 2
    kept = {name: b.clone() for name, b in model.named_buffers()}

    def standard_passes():
        with torch.no_grad():
            for _ in range(passes):
                model(x)
        return fingerprint()

    with forked(9):
        drawn = standard_passes()
    counted = {n: b.clone() for n, b in model.named_buffers() if n.endswith("num_batches_tracked")}
    with torch.no_grad():
        for name, b in model.named_buffers():
            b.copy_(kept[name])
    with forked(9):
        objective(model, x, y, model=model, seed=0)
        assert fingerprint() == drawn  # the encoder draws once in each pass, and nothing else does
    assert all(torch.equal(dict(model.named_buffers())[n], b) for n, b in counted.items())
    assert all(m.training for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not model.encoder._forward_hooks


def test_nothing_stays_on_the_model_when_the_loss_fails():
    model, x, y = problem()

    def fails(forward, x, y, *, model, seed):
        forward(x)
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        AdversarialCodes(SEA(flips_for(model, 1)), inner=fails)(model, x, y, model=model, seed=0)

    def broken(images):
        raise RuntimeError("forward")

    with pytest.raises(RuntimeError, match="forward"):
        AdversarialCodes(SEA(flips_for(model, 1)))(broken, x, y, model=model, seed=0)
    assert not model.encoder._forward_hooks


def test_losses_and_terms_are_weighted_and_tet_sees_the_steps_of_attacked_codes():
    """TET's parts on either codes by hand, with a network without batch statistics."""
    with forked(2):
        body = nn.Sequential(nn.Flatten(2), nn.Linear(4, 3))
        x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    model = Encoded(SignedRate(3, 0.45), OverTime(body))
    objective = AdversarialCodes(SEA(Flips(1, "signed")), 0.25, TET(0.3, 0.7))
    told, _ = seen_by(model)
    with forked(4):
        loss, logits, terms = objective(model, x, y, model=model, seed=0)
    attacked, clean = told
    assert not torch.equal(attacked, clean)

    def by_hand(codes):
        o = [body[1](codes[:, t].flatten(1)) for t in range(3)]
        ce = sum(F.cross_entropy(part, y) for part in o) / 3
        return 0.7 * ce, 0.3 * sum(F.mse_loss(part, torch.full_like(part, 0.7)) for part in o) / 3

    expected = [0.25 * c + 0.75 * a for c, a in zip(by_hand(clean), by_hand(attacked), strict=True)]
    torch.testing.assert_close(list(terms.values()), expected)
    torch.testing.assert_close(loss, sum(expected))
    torch.testing.assert_close(logits, model.network(clean))


def test_it_starts_late_and_may_stay_clean():
    model, x, y = problem()
    told, _ = seen_by(model)
    late = AdversarialCodes(SEA(flips_for(model, 30)), start=2)
    with forked(6):
        plain = Standard()(model, x, y, model=model, seed=0)[0]
    for objective, epoch in ((late, 1), (AdversarialCodes(SEA(flips_for(model, 30)), weight=1.0), 5)):
        with forked(6):
            torch.testing.assert_close(objective(model, x, y, model=model, seed=0, epoch=epoch)[0], plain)
    late(model, x, y, model=model, seed=0, epoch=2)
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[3])


def test_what_cannot_be_trained_on_is_refused():
    model, x, y = problem()
    with pytest.raises(BudgetError, match="Flips"):
        AdversarialCodes(PGD(Linf(0.1)))
    with pytest.raises(BudgetError, match="given codes"):
        AdversarialCodes(ObliviousSEA(FixedFlips(3)))
    with pytest.raises(UsageError, match="weight"):
        AdversarialCodes(SEA(1), 1.5)
    with pytest.raises(UsageError, match="labels"):
        AdversarialCodes(SEA(1), labels="none")
    with pytest.raises(BudgetError, match="epoch"):
        AdversarialCodes(SEA(1), start=-1)
    never = pytest.fail
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    for wrong in (plain, Encoded(Direct(3), OverTime(nn.Flatten(2))), model):  # SEA(1) is in {0, 1}
        with pytest.raises(ModelError):
            AdversarialCodes(SEA(1))(lambda _: never("computed"), x, y, model=wrong, seed=0)


def test_attacks_by_text_take_the_letters_of_the_encoder():
    signed, binary = (Encoded(e, nn.Flatten()) for e in (SignedRate(2), BernoulliRate(2)))
    assert parse_for("sea k=5", Linf(0.1), signed).threat == Flips(5, "signed")
    assert parse_for("sea k=5", Linf(0.1), binary).threat == Flips(5)
    assert parse_for("sea k=5", Linf(0.1), None).threat == Flips(5)
    for wrong in ("sea k=5 alphabet=binary", "sea-oblivious alphabet=binary"):
        with pytest.raises(ModelError, match="encoder"):
            parse_for(wrong, Linf(0.1), signed)
    assert parse_for("fgsm", Linf(0.1), signed).threat == Linf(0.1)
    assert [names_codes(text) for text in ("sea", "sea-masked steps=2", "fgsm", "")] == [True, True, False, False]
    assert isinstance(adversarial_by(SEA(2), 0.5, Standard()), AdversarialCodes)
    assert isinstance(adversarial_by(PGD(Linf(0.1)), 0.5, Standard()), Adversarial)


def test_training_on_codes_runs_through_fabric_and_repeats_itself(tmp_path):
    from stochade.data import load

    images = load("digits", "train").take(20, seed=0)

    def run(precision=None):
        with forked(1):
            model = build("snn", (1, 8, 8), 10, width=0.25, **OPTIONS["srate"])
        objective = AdversarialCodes(SEA(flips_for(model, 2)), inner=TET())
        train(model, images, images, epochs=1, batch=10, objective=objective, precision=precision, progress=False)
        return model.network.state_dict()

    first, second = run(), run()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(v.isfinite().all() for v in run("bf16-mixed").values())
