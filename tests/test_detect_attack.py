"""Attacks that know the detector: their objectives by hand, what they differentiate, and that they break it at the
distance at which it catches PGD; the study and its command take an interrupted run up."""

import json

import pytest
import torch
from torch import nn

from stochade import data
from stochade.attacks import PGD, Linf
from stochade.cli import main
from stochade.detect import Detector, InTheLoop, LogitMatching, Noise, bank
from stochade.detect.attack import Evasion, Matching, Statistics, UnderNoise
from stochade.detect.odds import Calibration
from stochade.detect.study import study
from stochade.errors import BudgetError, LabelsError
from stochade.randomness import fingerprint, forked


class Square(nn.Module):
    """Logits a_z |x|^2: noise eta moves them by a_z (2 x eta + |eta|^2)."""

    scope = "none"

    def __init__(self, *a):
        super().__init__()
        self.register_buffer("a", torch.tensor(a))

    def forward(self, x):
        return x.flatten(1).square().sum(1, keepdim=True) * self.a


def calibration(noises, classes=3, threshold=1.0):
    """Means 0, deviations 1."""
    flat = torch.zeros(len(noises), classes, classes, dtype=torch.float64)
    counts, held = torch.ones(classes, dtype=torch.long), torch.zeros(9, dtype=torch.float64)
    typical = torch.eye(classes, dtype=torch.float64) * 7
    return Calibration(tuple(noises), 4, flat, flat + 1, counts, held, 0.1, threshold, typical)


def test_statistics_cancel_what_is_linear_in_the_noise():
    """Pairs of Bernoulli noise move a_z |x|^2 by a_z pixels size^2 exactly, whatever is drawn."""
    model, noises = Square(1.0, -2.0, 0.5), [Noise("bernoulli", 0.1), Noise("bernoulli", 0.2)]
    x = torch.full((5, 1, 2, 3), 0.5)
    with forked(0):
        seen = Statistics(model, calibration(noises), 2)(x)
    assert torch.allclose(seen[:, :3], model(x))
    expected = torch.tensor([6 * size**2 * a for size in (0.1, 0.2) for a in (1.0, -2.0, 0.5)])
    assert torch.allclose(seen[:, 3:], expected.expand(5, 6), atol=1e-5)


def test_under_noise_every_row_meets_one_noise_or_none():
    noises = [Noise("bernoulli", 0.1), Noise("bernoulli", 0.2)]
    with forked(0):
        rows = UnderNoise(nn.Flatten(), calibration(noises))(torch.full((3000, 1, 2, 3), 0.5))
    sizes = (rows - 0.5).abs()
    assert torch.allclose(sizes, sizes[:, :1].expand_as(sizes), atol=1e-6)
    for size in (0.0, 0.1, 0.2):  # a third each, within five standard errors
        assert abs(float(((sizes[:, 0] - size).abs() < 1e-4).float().mean()) - 1 / 3) < 5 * (2 / 9 / 3000) ** 0.5


def test_objectives_by_hand():
    c = calibration([Noise("gaussian", 0.1)] * 2, threshold=1.0)
    logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 1.5, 0.0]])
    y = torch.tensor([0, 0])
    assert Matching(c.typical)(logits, y, torch.tensor([1, 1])).tolist() == [-(9 + 36) / 2, -(5.5**2) / 2]
    moved = torch.tensor([[[0.0, 0, 0], [0, 0, 0]], [[3.0, 0, 0], [2.0, 0, 1.0]]])
    value = Evasion(c, lead=1.0, slack=0.5, weight=2.0)(torch.cat([logits, moved.flatten(1)], 1), y)
    # wrong class 1: margin -2; margin 1.5 cut to 1, statistics 2.5 and 0.5 against 0.5
    assert value.tolist() == pytest.approx([-2.0, 1.0 - 2.0 * 2.0])
    aimed = Evasion(c, 1.0, 0.5, 2.0)(torch.cat([logits, moved.flatten(1)], 1), y, torch.tensor([2, 2]))
    assert aimed.tolist() == pytest.approx(
        [-3.0, -1.5 - 2.0 * 1.5]
    )  # statistics (3 + 1) / 2 of class 0 and -0.5 of class 1


def test_the_gradient_of_the_evasion_is_that_of_finite_differences():
    torch.manual_seed(0)
    c = calibration([Noise("gaussian", 0.1)], threshold=-1.0)
    seen = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 1, 2, 0])
    assert torch.autograd.gradcheck(lambda s: Evasion(c, 9.0, 0.5, 2.0)(s, y), seen)


def digits():
    """A small CNN on digits at 24 x 24, and images it has not seen: (model, calibration, x, y)."""
    train_x, train_y = data.load("digits", "train")[:]
    held, _ = data.load("digits", "validation")[:]
    x, y = data.load("digits", "test")[:]
    large = [t.repeat_interleave(3, -1).repeat_interleave(3, -2) for t in (train_x, torch.cat([held, x[:100]]), x)]
    with forked(0):
        model = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 144, 64), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(80):
            rows = torch.randint(len(train_y), (300,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(large[0][rows]), train_y[rows]).backward()
            optimizer.step()
    return model.eval(), large[1], large[2][100:150], y[100:150]


@pytest.fixture(scope="module")
def watched():
    model, held, x, y = digits()
    return Detector.calibrate(model, held, rate=0.05, noises=bank(0.1), draws=16), held, x, y


def caught(detector, x, y):
    """(share wrong, share flagged of the wrong ones)."""
    verdict = detector.examine(x)
    wrong = verdict.predicted != y
    return float(wrong.float().mean()), float(verdict.flags[wrong].float().mean())


def test_pgd_is_detected_and_the_attack_in_the_loop_is_not(watched):
    """At the same linf 0.3: PGD is caught at least 60 times in 100 (82 measured), the adaptive attack at most 5."""
    detector, _, x, y = watched
    assert float((detector.examine(x).predicted == y).float().mean()) > 0.9
    assert float(detector.flags(x).float().mean()) <= 0.2  # 5 % asked; more than 10 of 50 has probability 3e-5
    threat, c = Linf(0.3), detector.calibration
    plain = PGD(threat, 20, drop_fooled=False)(detector.model, x, y)
    wrong, found = caught(detector, plain, y)
    assert wrong > 0.95
    assert found > 0.6
    before = fingerprint()
    hidden = InTheLoop(c, threat, 40, warm=10).run(detector.model, x, y, seed=1)
    assert fingerprint() == before
    assert float((hidden.inputs - x).abs().max()) <= 0.3 + 1e-6
    assert int(hidden.backwards[0]) == 40 * 7 + 10 * 8
    wrong, left = caught(detector, hidden.inputs, y)
    assert wrong > 0.95
    assert left <= 0.05


def test_logit_matching_brings_logits_near_those_of_a_clean_image(watched):
    detector, _, x, y = watched
    x, y, c, threat = x[:20], y[:20], detector.calibration, Linf(0.3)
    attack = LogitMatching(c, threat, 20, draws=4)
    targets = (y + 1) % 10
    matched = attack(detector.model, x, y, targets=targets)
    assert float((matched - x).abs().max()) <= 0.3 + 1e-6
    with torch.no_grad():
        goal = c.typical[targets].float()
        distances = [(detector.model(t) - goal).norm(dim=1).mean() for t in (x, matched)]
    assert distances[1] < distances[0] / 3
    again = attack(detector.model, x, y)
    assert torch.equal(again, attack(detector.model, x, y, seed=0))
    runner = detector.model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    assert torch.equal(again, attack(detector.model, x, y, targets=runner))


def test_attacks_refuse_what_makes_no_sense(watched):
    detector, _, x, y = watched
    c = detector.calibration
    for made in (LogitMatching, InTheLoop):
        with pytest.raises(BudgetError, match="calibration of a detector"):
            made(None, Linf(0.1))
        with pytest.raises(BudgetError, match="threat"):
            made(c, 0.1)
        with pytest.raises(BudgetError, match="steps"):
            made(c, Linf(0.1), 0)
    for part in ({"weight": 0}, {"lead": -1}, {"slack": float("nan")}):
        with pytest.raises(BudgetError, match=next(iter(part))):
            InTheLoop(c, Linf(0.1), **part)
    unseen = calibration([Noise("gaussian", 0.1)], 10)
    unseen.counts[3] = 0
    with pytest.raises(LabelsError, match="saw predicted"):
        LogitMatching(unseen, Linf(0.1), 1)(detector.model, x, y, targets=torch.where(y == 3, 4, 3))


def test_a_study_goes_on_where_it_stopped(watched, tmp_path, monkeypatch):
    detector, held, x, y = watched
    options = {"rate": 0.1, "noises": bank(0.1)[:1], "draws": 2, "steps": 2, "chunk": 8}
    first = study(detector.model, held[:60], x[:16], y[:16], Linf(0.3), out=tmp_path, **options)
    result = first.attacks["pgd"]
    right = first.accuracy.value * 16
    assert result.wrong.examples == round(right)
    assert result.through.value * right == pytest.approx((1 - result.detected.value) * result.wrong.value * right)
    assert result.curve is not None
    assert len(result.scores) == round(result.wrong.value * right)
    kept = sorted((tmp_path / "records").iterdir())
    assert len(kept) == 4
    kept[1].write_bytes(b"cut off")
    searched = []
    monkeypatch.setattr(InTheLoop, "search", lambda *_: searched.append("in the loop"))
    monkeypatch.setattr(LogitMatching, "search", lambda *_: searched.append("matching"))
    assert "in_the_loop" in kept[1].name
    with pytest.raises(AttributeError):  # only what was damaged is done again, and there it stops
        study(detector.model, held[:60], x[:16], y[:16], Linf(0.3), out=tmp_path, **options)
    assert searched == ["in the loop"]
    monkeypatch.undo()
    second = study(detector.model, held[:60], x[:16], y[:16], Linf(0.3), out=tmp_path, **options)
    assert [r.detected for r in second.attacks.values()] == [r.detected for r in first.attacks.values()]
    assert (second.attacks["in the loop"].scores == first.attacks["in the loop"].scores).all()


NETWORK = """
import torch
from torch import nn
from stochade import data

def build():
    x, y = data.load("digits", "train")[:]
    means = torch.stack([x[y == k].flatten(1).mean(0) for k in range(10)])
    layer = nn.Linear(64, 10)
    with torch.no_grad():
        layer.weight.copy_(20 * means)
        layer.bias.copy_(-10 * means.square().sum(1))
    return nn.Sequential(nn.Flatten(), layer).eval()
"""


def test_the_command(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NETWORK)
    options = [
        "detect",
        f"{tmp_path}/net.py:build",
        "--data",
        "digits",
        "--threat",
        "linf=0.3",
        "--quiet",
        "--seed",
        "1",
    ]
    small = ["--rate", "0.1", "--noise", "0.1", "--noise-draws", "2", "--examples", "20", "--steps", "2"]
    out = tmp_path / "out"
    main([*options, *small, "--dry-run"])
    assert "20 images x 16 forwards and backwards" in capsys.readouterr().out
    main([*options, *small, "--out", str(out)])
    told = capsys.readouterr().out
    assert "false positives, measured" in told
    assert "in the loop" in told
    result = json.loads((out / "result.json").read_text())
    assert set(result["attacks"]) == {"pgd", "logit matching", "in the loop"}
    assert result["clean"]["accuracy"]["examples"] == 20
    assert result["detector"]["held-out images"] == 100
    page = (out / "page.html").read_text()
    assert "Detection over false positives" in page
    assert "stochade detect" in page
    assert str(tmp_path) not in page
    assert str(tmp_path) not in (out / "result.json").read_text()
    main([*options, *small, "--out", str(out)])
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["--rate", "1.5"], "false-positive rate in (0, 1)"), (["--rate", "0.0001"], "at least 9999 held-out"),
        (["--noise", "gaussian=0"], "sigma"), (["--noise", "loud"], "noise such as"), (["--steps", "0"], "--steps"),
        (["--noise-draws", "0"], "--noise-draws"), (["--threat", "linf"], "linf"),
    ],
)  # fmt: skip
def test_impossible_settings_end_in_one_line(wrong, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["detect", "no-such-model", *wrong])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
