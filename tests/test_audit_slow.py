"""False alarms of the audit: honest models raise a masking finding in at most 5 of 100 seeds."""

import pytest

from stochade import audit, data
from stochade.audit import Effort
from stochade.models.known_answer import KNOWN
from stochade.targets import BUILT_IN, train_built_in

EFFORT = Effort(steps=10, draws=5, pairs=10, evolution_steps=5, samples=20)
SEEDS = 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["linear", "coin-flip", "noisy-linear", "noisy-linear-per-call"])
def test_known_honest_models(name):
    alarms = []
    for seed in range(SEEDS):
        case = KNOWN[name](seed)
        result = audit(
            case.model, case.images, case.labels, case.threat, effort=EFFORT, seed=seed, show_progress=False
        )
        alarms += [(seed, f.check) for f in result.masking]
    assert len({seed for seed, _ in alarms}) <= 5, alarms


@pytest.mark.slow
def test_adversarially_trained_networks(tmp_path):
    """Four networks from four training seeds, 25 audits each, on another 100 test images every time."""
    test, alarms = data.load("digits", "test"), []
    for training in range(4):
        model = train_built_in(BUILT_IN["digits-adversarial"], training, tmp_path / str(training), show=False)
        for seed in range(25):
            images = test.take(100, seed=1000 * training + seed)
            result = audit(model, images, threat=0.1, effort=EFFORT, seed=seed, show_progress=False)
            alarms += [(training, seed, f.check) for f in result.masking]
    assert len({a[:2] for a in alarms}) <= 5, alarms
