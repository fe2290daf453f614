"""An audit made up in memory: 60 small images, a model that errs at known rates, attacks with sweeps."""

import numpy as np

from stochade.audit.findings import Finding
from stochade.audit.result import Audit
from stochade.evaluate.records import AttackRecord, Records

N, DRAWS, SIDE, CLASSES = 60, 12, 8, 10
EPS = 0.2


def pictures() -> np.ndarray:
    """[N, 1, SIDE, SIDE] smooth blobs in [0,1]."""
    grid = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    phase = np.arange(N)[:, None, None]
    wave = np.sin(5 * grid[0] + phase) * np.cos(4 * grid[1] - 0.7 * phase)
    return (0.5 + 0.4 * wave)[:, None].astype(np.float32)


def attack(
    rng: np.random.Generator,
    labels: np.ndarray,
    images: np.ndarray,
    right: float,
    threat: dict | None = None,
    steps: int = 0,
    draws: int = 1,
    label: str = "",
    random: bool = True,
    kept: int = 8,
    info: dict | None = None,
    **fields,
) -> AttackRecord:
    """A record in which a prediction is right with probability `right` on average, beta over the examples; inputs are
    found anywhere on the way. `info` and `fields` replace or add what is given."""
    rate = rng.beta(max(6 * right, 0.05), max(6 * (1 - right), 0.05), len(labels))[:, None]

    def predictions() -> np.ndarray:
        hit = rng.random((len(labels), DRAWS if random else 1)) < rate
        hit = np.broadcast_to(hit, (len(labels), DRAWS))
        return np.where(hit, labels[:, None], (labels[:, None] + 3) % CLASSES).astype(np.int16)

    eps = threat["eps"] if threat else 0.0
    moved = images + eps * np.sign(rng.normal(size=images.shape)).astype(np.float32)
    scored = predictions()
    record = AttackRecord(
        predictions=scored,
        selection=predictions() if random else scored,
        vote_logits=scored[:, 0],
        vote_probabilities=scored[:, 0],
        distance=np.full(len(labels), eps, np.float32),
        value=rng.normal(size=len(labels)).astype(np.float32),
        forwards=np.full(len(labels), steps * draws, np.int32),
        backwards=np.full(len(labels), steps * draws, np.int32),
        found_at=np.random.default_rng(steps * draws)
        .integers(0, 2 * steps * draws + 1, len(labels))
        .astype(np.int32),
        winner=np.full(len(labels), -1, np.int16),
        targets=np.full(len(labels), -1, np.int16),
        trace=np.zeros((len(labels), steps), np.float32),
        trace_distance=np.full((len(labels), steps), np.nan, np.float32),
        trace_passes=np.zeros((len(labels), steps), np.int32),
        images={row: moved[row].clip(0, 1) for row in range(kept)},
        info={"attack": f"PGD(steps={steps}, draws={draws})" if threat else "", "threat": threat, "label": label}
        | (info or {}),
    )
    for name, value in fields.items():
        setattr(record, name, value)
    return record


def example(random: bool = True, images: np.ndarray | None = None, labels: np.ndarray | None = None) -> Audit:
    """A masked defence: fgsm leaves about 80 %, iterated attacks with many draws a few percent."""
    rng = np.random.default_rng(7)
    images = pictures() if images is None else images
    labels = np.arange(len(images)) % CLASSES if labels is None else labels
    full = {"norm": "linf", "eps": EPS}
    attacks = {"clean": attack(rng, labels, images, 0.93, random=random)}

    def add(name: str, right: float, threat: dict | None = None, **more) -> str:
        attacks[name] = attack(rng, labels, images, right, threat or full, random=random, **more)
        return name

    add("fgsm", 0.82, steps=1, label="FGSM, one draw")
    steps = [{"x": s, "attack": add(f"pgd-steps-{s}", r, steps=s)}
             for s, r in [(1, 0.8), (5, 0.6), (20, 0.4), (100, 0.3)]]  # fmt: skip
    draws = [
        {"x": d, "attack": add(f"pgd-draws-{d}", r, steps=40, draws=d)} for d, r in [(1, 0.38), (5, 0.2), (20, 0.1)]
    ]
    budget = [{"x": e, "attack": add(f"pgd-budget-{e}", r, {"norm": "linf", "eps": e}, steps=40, draws=20)}
              for e, r in [(0.05, 0.7), (0.1, 0.4), (0.3, 0.03), (0.4, 0.01)]]  # fmt: skip
    budget.insert(2, {"x": EPS, "attack": "pgd-draws-20"})
    add("square", 0.5, steps=500)
    add("standard", 0.15, steps=300, info={"members": ["apgd-ce", "apgd-t", "square"]},
        winner=(np.arange(len(images)) % 4 - 1).astype(np.int16))  # fmt: skip
    add("pgd to the runner-up", 0.45, steps=40, targets=((labels + 3) % CLASSES).astype(np.int16))
    far = rng.lognormal(-1, 0.5, len(images)).astype(np.float32)
    add("fmn", 0.12, steps=100, info={"minimal": True}, distance=0.2 * far)
    add("cw", 0.5, {"norm": "l2", "eps": 1.0}, steps=900, info={"minimal": True},
        distance=np.where(np.arange(len(images)) % 10 == 0, np.inf, far))  # fmt: skip
    records = Records(np.arange(len(images), dtype=np.int64), labels.astype(np.int64), attacks, meta())
    curves = {"budget": budget, "steps": steps, "draws": draws}
    return Audit(
        records, findings(), full, "fgsm", 0.851, curves, probes(), search=search(), claimed_as="fgsm eps=0.2",
        command=COMMAND,
    )  # fmt: skip


COMMAND = "stochade audit bernoulli-gates --claim 0.851 --claim-attack 'fgsm eps=0.2' --data cifar10"


def search() -> list[dict]:
    """Three rounds; one trial that could not run."""
    lines = []
    for rung, (examples, accuracies) in enumerate([(8, (0.9, 0.6, 0.75, 0.5)), (16, (0.55, 0.4)), (32, (0.12,))]):
        for i, accuracy in enumerate(accuracies):
            lines.append({
                "attack": f"pgd backward soft-{rung}-{i}", "parts": "backward soft, margin, pgd, 4 draws",
                "rung": rung, "examples": examples, "passes": 30.0 * (rung + 1), "accuracy": accuracy,
                "low": accuracy - 0.1, "high": accuracy + 0.1, "kept": i == len(accuracies) - 1, "note": "",
            })  # fmt: skip
    lines.insert(1, lines[0] | {"attack": "pgd own backward", "note": "no gradient reaches the images", "passes": 0.0,
                                "accuracy": 1.0, "low": None, "high": None})  # fmt: skip
    return lines


def meta() -> dict:
    return {
        "model": "bernoulli-gates",
        "data": {"name": "CIFAR-10 (JPEG)", "split": "test", "images": N},
        "seed": 1234567890123,
        "draws": DRAWS,
        "command": ["stochade", "audit", "bernoulli-gates", "--data", "cifar10", "--norm", "linf", "--eps", "0.2"],
        "versions": {"stochade": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        "hardware": {"device": "cpu", "threads": 2},
        "git": "1212970abc",
        "provenance": {
            "seconds": {
                "fgsm": [0.12, 120.0],
                "square": [12.0, 60000.0],
                "fmn": [3.0, 12000.0],
                "pgd-draws-20": [9.0, 96000.0],
            }
        },
        "something_new": {"nested": [1, 2, {"deep": None}]},
    }


def findings() -> list[Finding]:
    return [
        Finding("randomness", "notice", "The model is random", {"draws that disagree": 0.31}),
        Finding(
            "one-draw", "masking", "One draw per gradient overstates accuracy by 28 points.",
            {"accuracy at 1 draw": 0.38, "accuracy at 20 draws": 0.1, "cosine between draws": 0.18},
            "Average at least 20 draws per gradient.", "Athalye et al. 2018, section 4.2",
        ),
        Finding("still-falling", "incomplete", "More steps still lower the accuracy", {"steps": [20, 100]},
                "Run 400 steps."),
        Finding("one-step-beats-iterated", "masking", "The authors’ attack takes a single step", {"steps": 1},
                "Iterate.", "Carlini et al. 2019"),
    ]  # fmt: skip


def probes() -> dict:
    rng = np.random.default_rng(1)
    return {
        "gradient_norm": rng.lognormal(-2, 0.6, 200).tolist(),
        "cosine_between_draws": np.clip(rng.normal(0.2, 0.15, 200), -1, 1).tolist(),
        "scope": "example",
        "zero_gradients": 0.0,
    }
