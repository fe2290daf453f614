"""The audit: what it must find on broken models, what it must not say about honest ones, and its folder."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from doubles import Base, examples
from stochade import Linf, StochadeError, audit
from stochade.audit import Audit, Effort
from stochade.audit.checks import CHECKS
from stochade.audit.plan import alternatives, budgets
from stochade.audit.probes import probe_model
from stochade.errors import BudgetError, ModelError, RecordsError
from stochade.models.known_answer import KNOWN
from stochade.nn import GaussianNoise, StochasticBinary
from stochade.randomness import fingerprint

SMALL = Effort(steps=10, draws=5, pairs=10, evolution_steps=5, samples=20)


def audited(name: str, seed: int = 0, **options) -> Audit:
    case = KNOWN[name](seed)
    return audit(
        case.model, case.images, case.labels, case.threat, effort=SMALL, seed=seed, show_progress=False, **options
    )


@cache
def known(name: str, seed: int = 0) -> Audit:
    """The same audit for several tests that only read it."""
    return audited(name, seed)


def names(result: Audit, severity: str | None = None) -> set[str]:
    return {f.check for f in result.findings if severity in (None, f.severity)}


@pytest.mark.parametrize("name", ["linear", "coin-flip", "noisy-linear"])
def test_honest_models_raise_no_masking_finding(name):
    """Three seeds each; the rate over 100 seeds is in test_audit_slow.py."""
    for seed in range(3):
        assert names(known(name, seed), "masking") == set()


@pytest.mark.parametrize("name", ["integrate-and-fire", "dropout-linear", "bernoulli-linear"])
def test_honest_discrete_models_raise_no_masking_finding(name):
    assert names(known(name), "masking") == set()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("zero-gradient", "zero-gradient"),
        ("zero-gradient", "gradient-free-beats-gradient"),
        ("zero-gradient", "unbounded-survives"),
        ("exploding-gradient", "gradient-free-beats-gradient"),
        ("exploding-gradient", "gradient-explodes"),
        ("thresholded-input", "zero-gradient"),
        ("thresholded-input", "blocked-gradient"),
        ("thresholded-input", "substituted-backward-wins"),
        ("integrate-and-fire-stateful", "keeps-state"),
    ],
)
def test_broken_models_are_found_out(name, check):
    result = known(name)
    assert check in names(result)
    finding = next(f for f in result.findings if f.check == check)
    assert finding.title
    assert finding.next_step
    assert finding.source


def test_kept_state_is_not_mistaken_for_a_generator():
    result = known("integrate-and-fire-stateful")
    finding = next(f for f in result.findings if f.check == "keeps-state")
    assert "keeps state between calls" in finding.title
    assert "random" not in names(result)


def test_zero_gradient_headline():
    """Looks 100 % robust under FGSM; the gradient-free attack must find well below."""
    result = known("zero-gradient")
    assert result.claimed.value == 1.0
    assert result.found.value is not None
    assert result.found.value < 0.7


def test_found_is_never_far_above_truth():
    """The coin flip's truth is 0.9 of the clean accuracy; found must cover it."""
    case = KNOWN["coin-flip"](0)
    result = known("coin-flip")
    truth = float(case.model.truth(case.images, case.labels, case.threat).mean())
    assert result.found.low is not None
    assert result.found.high is not None
    assert result.found.low <= truth <= result.found.high


def test_hard_gates_are_seen_through():
    """Hard straight-through backwards on a saturated unit hide the way; the soft backward shows it."""
    torch.manual_seed(0)
    x, y = examples(120)
    unit = StochasticBinary(slope=1.0, backward="hard")

    class Net(nn.Module):
        scope = "composite"

        def __init__(self):
            super().__init__()
            self.unit = unit

        def forward(self, x):
            # Two paths: one useful and one whose straight-through derivative is large, though it never changes.
            mean = x.flatten(1).mean(1, keepdim=True)
            useful, dead = self.unit(60 * (mean - 0.5)), self.unit(400 * (0.5 - mean) + 400)
            score = 8 * (useful - 0.5) + 20 * (dead - 1)
            return torch.cat([-score, score], 1)

    result = audit(Net().eval(), x, y, Linf(0.35), effort=SMALL, show_progress=False)
    assert "substituted-backward-wins" in names(result, "masking")
    assert result.claimed.value is not None
    assert result.found.value is not None
    assert result.found.value < result.claimed.value - 0.3


def test_same_seed_same_findings_and_untouched_model():
    case = KNOWN["noisy-linear"](0)
    before = fingerprint()
    first = known("noisy-linear")
    second = audited("noisy-linear")
    assert fingerprint() == before
    assert [f.as_dict() for f in first.findings] == [f.as_dict() for f in second.findings]
    assert first.found == second.found
    assert not any(p.grad is not None for p in case.model.parameters())


def test_folder_round_trip_and_resumption(tmp_path):
    result = audited("coin-flip", out=tmp_path)
    loaded = Audit.load(tmp_path)
    assert loaded.found == result.found
    assert loaded.findings == result.findings
    assert loaded.curves == result.curves
    assert not (tmp_path / "work").exists()
    again = audited("coin-flip", out=tmp_path)
    assert again.found == result.found
    with pytest.raises(RecordsError, match="another"):
        audited("coin-flip", seed=1, out=tmp_path)


def test_a_killed_audit_goes_on(tmp_path, monkeypatch):
    from stochade.evaluate import run as module

    done, unit = [], module.run_unit

    def dies(*arguments):
        if len(done) == 15:
            raise KeyboardInterrupt
        done.append(1)
        return unit(*arguments)

    monkeypatch.setattr(module, "run_unit", dies)
    with pytest.raises(KeyboardInterrupt):
        audited("coin-flip", out=tmp_path / "broken")
    monkeypatch.setattr(module, "run_unit", lambda *a: done.append(1) or unit(*a))
    broken = audited("coin-flip", out=tmp_path / "broken")
    whole = len(done)
    done.clear()
    straight = audited("coin-flip", out=tmp_path / "straight")
    assert whole == len(done), "what was done before the interruption must not be done again"
    for file in sorted((tmp_path / "straight" / "records").rglob("*.parquet")):
        assert file.read_bytes() == (tmp_path / "broken" / file.relative_to(tmp_path / "straight")).read_bytes()
    assert broken.findings == straight.findings


def test_probabilities_are_attacked_through_the_logarithm():
    x, y = examples(120)
    model = nn.Sequential(Base(), nn.Softmax(1)).eval()
    result = audit(model, x, y, Linf(0.25), effort=SMALL, show_progress=False)
    assert "probabilities" in names(result)
    assert result.found.value == 0.0, "every margin is at most 0.2 in mean intensity"


def test_a_model_outside_autograd_gets_gradient_free_attacks_only():
    class Detached(Base):
        def forward(self, x):
            return super().forward(x.detach())

    x, y = examples(120)
    result = audit(Detached(), x, y, Linf(0.25), effort=SMALL, show_progress=False)
    assert "zero-gradient" in names(result, "masking")
    assert "fgsm" not in result.records.attacks
    assert result.found.value is not None
    assert result.found.value < 0.5


def test_probes_measure_scope_state_and_gradient():
    x, y = examples(16)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    per_example = nn.Sequential(GaussianNoise(0.5), linear)
    per_call = nn.Sequential(GaussianNoise(0.5, scope="call"), linear)
    facts = {k: probe_model(m.eval(), x, y) for k, m in (("e", per_example), ("c", per_call), ("d", linear))}
    assert facts["e"]["random"]
    assert facts["e"]["rows_of_one_call_differ"]
    assert facts["c"]["random"]
    assert not facts["c"]["rows_of_one_call_differ"]
    assert not facts["d"]["random"]
    assert facts["d"]["gradient"]["cosine_between_draws"] == pytest.approx(1.0)
    assert not any(f["differs_at_equal_seed"] for f in facts.values())

    class OwnGenerator(nn.Module):
        def __init__(self):
            super().__init__()
            self.generator = np.random.default_rng(0)
            self.linear = linear

        def forward(self, x):
            return self.linear(x) + torch.from_numpy(self.generator.normal(size=(len(x), 2))).float()

    own = probe_model(OwnGenerator().eval(), x, y)
    assert own["random"]
    assert own["differs_at_equal_seed"]
    assert own["differs_at_equal_state"]
    assert not own["uses_global_generators"]


def test_alternatives_leave_out_what_changes_nothing():
    hard, soft = StochasticBinary(backward="hard"), StochasticBinary(backward="soft")
    assert alternatives(nn.Sequential(hard)) == (["soft"], ["mean-field"])
    assert alternatives(nn.Sequential(soft)) == (["identity"], ["mean-field"])
    assert alternatives(nn.Linear(2, 2)) == ([], [])
    assert alternatives(lambda x: x) == ([], [])


def test_budgets_end_at_the_box():
    assert budgets(Linf(0.1), 64, (0.5, 1, 2)) == [0.05, 0.1, 0.2, 1.0]
    assert budgets(Linf(0.8), 64, (0.5, 1, 2)) == [0.4, 0.8, 1.0]


def test_bad_arguments():
    x, y = examples(8)
    for options, error in (
        ({"threat": 0}, BudgetError),
        ({"threat": -1}, BudgetError),
        ({"effort": "heroic"}, BudgetError),
        ({"claim": 93.1}, BudgetError),
        ({"draws": 0}, BudgetError),
    ):
        with pytest.raises(error):
            audit(Base(), x, y, **({"threat": 0.1, "effort": SMALL, "show_progress": False} | options))
    with pytest.raises(ModelError, match="batch norm"):
        audit(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)), x, y, show_progress=False)
    with pytest.raises(StochadeError, match="255"):
        audit(Base(), x * 255, y, show_progress=False)


def test_every_check_has_a_docstring_and_a_name():
    for name, check in CHECKS.items():
        assert check.__doc__
        assert "_" not in name
