"""Records: what every attack did to every example, raw. All tables, figures and reports are built from them."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stochade.attacks.flips import in_words
from stochade.errors import RecordsError, ThreatError
from stochade.evaluate import intervals
from stochade.evaluate.intervals import Estimate

SCHEMA = 2
KINDS = ("single", "vote", "all")
CLEAN = "clean"
ON_CODES = ("flips", "fixed-flips")
WORST = "worst"


@dataclass
class AttackRecord:
    """One attack on all examples.

    Attributes:
        predictions: [N, draws] int16, the class of every scoring draw, on fresh seeds.
        selection: [N, draws] int16, other draws, on which "worst" chooses.
        vote_logits, vote_probabilities: [N] int16, argmax of the mean logits / probabilities of scoring draws.
        distance: [N] float32 in the units of the threat; of a minimum-norm attack the smallest it found, whether or
            not that is inside the threat, and inf where it found nothing. value: [N] the attacker's mean objective.
        forwards, backwards: [N] int32 passes spent. found_at: [N] of them, when the inputs were found.
        winner: [N] int16, the member of a suite that the inputs come from; -1 for none, and for single attacks.
        targets: [N] int16, the class that the attack pulled to; -1 for none.
        trace: [N, steps] float32 objective before each step, NaN after leaving.
        trace_distance, trace_passes: [N, steps] float32 and int32, distance and passes at each of these steps.
        images: {row: float32 [C,H,W]} of the first kept rows.
        info: {"attack": described, "threat": {"norm", "eps"} or None, "label": text}, "minimal": True for
            minimum-norm attacks, "members": [names] for suites.
        threat: that of `info`, {"norm", "eps"} or None, and for codes {"per", "alphabet"}.
    """

    predictions: np.ndarray
    selection: np.ndarray
    vote_logits: np.ndarray
    vote_probabilities: np.ndarray
    distance: np.ndarray
    value: np.ndarray
    forwards: np.ndarray
    backwards: np.ndarray
    found_at: np.ndarray
    winner: np.ndarray
    targets: np.ndarray
    trace: np.ndarray
    trace_distance: np.ndarray
    trace_passes: np.ndarray
    images: dict[int, np.ndarray] = field(default_factory=dict)
    info: dict = field(default_factory=dict)

    @property
    def threat(self) -> dict | None:
        threat = self.info.get("threat")
        if threat is None or threat["norm"] not in ON_CODES or "alphabet" in threat:
            return threat
        letters = _letters(self.info.get("attack"))
        return threat if letters is None else threat | {"alphabet": letters}


def _letters(described: object) -> str | None:
    """The alphabet in the description of an attack on codes, or of one inside it."""
    if not isinstance(described, dict):
        return None
    letters = described.get("alphabet")
    if isinstance(letters, list | tuple):
        return "signed" if min(letters) < 0 else "binary"
    return next((found for part in described.values() if (found := _letters(part)) is not None), None)


class Records:
    """Raw results of one evaluation.

    Attributes:
        ids: [N] int64, identity of each example (hash of image and label). labels: [N] int64.
        attacks: name -> AttackRecord, in the order they were given; "clean" comes first.
        meta: configuration and provenance (JSON-able): data, model, seed, draws, versions, hardware, ...
        folder: where they lie on disk, or None.
    """

    def __init__(self, ids, labels, attacks: dict[str, AttackRecord], meta: dict, folder: Path | None = None):
        self.ids, self.labels, self.attacks, self.meta, self.folder = ids, labels, attacks, meta, folder

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Records({len(self)} examples, attacks: {', '.join(self.attacks)})"

    def right(self, attack: str, kind: str = "single", threat=None, of: str = "predictions") -> np.ndarray:
        """[N, draws] bool for "single", [N, 1] for "vote" and "all": whether the model was right.

        Raises:
            RecordsError: unknown attack or kind. ThreatError: "worst" across several threats.
        """
        if kind not in KINDS:
            raise RecordsError(f"a kind out of {KINDS}", repr(kind))
        if of not in ("predictions", "logits", "probabilities"):
            raise RecordsError("of='predictions', 'logits' or 'probabilities'", repr(of))
        predictions, votes = self._chosen(attack, threat, of)
        labels = self.labels[:, None]
        if kind == "single":
            return predictions == labels
        if kind == "all":
            return (predictions == labels).all(1, keepdims=True)
        return (votes if votes is not None else majority(predictions))[:, None] == labels

    def score(
        self, attack: str, kind: str = "single", *, threat=None, target: str = "population", of: str = "predictions"
    ) -> Estimate:
        """Accuracy under an attack given to `evaluate`, on "clean" images, or under the "worst" attack per example.

        Args:
            kind: "single" (one prediction), "vote" (majority of the draws) or "all" (right in every draw: what
                is left when an attacker may retry).
            threat: for "worst" where the run holds several threats: only attacks inside this one count.
            target: "population" that the examples stand for, or exactly this "test set".
            of: what a vote counts: "predictions", or the argmax of mean "logits" or "probabilities".

        "worst" is chosen per example on the selection draws and
        scored on the scoring draws; `choose_worst` says how.
        """
        right = self.right(attack, kind, threat, of)
        estimate = intervals.mean(right, kind, target, shared=self.noise_block() if kind == "single" else None)
        draws = self.draws
        return Estimate(estimate.value, estimate.low, estimate.high, estimate.examples, draws, target, kind)

    def reached(self, attack: str) -> Estimate | None:
        """How often the class that an attack pulled to was predicted, over its scoring draws and the examples that
        had such a class; None for an attack without targets."""
        record = self._get(attack)
        rows = record.targets >= 0
        if not rows.any():
            return None
        hits = record.predictions[rows] == record.targets[rows, None]
        estimate = intervals.mean(hits, "single", shared=self.noise_block())
        if self.noise_block() is not None and not rows.all():  # blocks of noise with holes: no interval for these
            return replace(estimate, low=None, high=None)
        return estimate

    @property
    def draws(self) -> int:
        """Scoring draws per example."""
        return next(iter(self.attacks.values())).predictions.shape[1] if self.attacks else 0

    def _get(self, attack: str) -> AttackRecord:
        if attack not in self.attacks:
            import difflib

            near = difflib.get_close_matches(str(attack), [*self.attacks, WORST], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.attacks)} and 'worst'"
            raise RecordsError("the name of an attack in these records", repr(attack), hint)
        return self.attacks[attack]

    def _chosen(self, attack: str, threat, of: str) -> tuple[np.ndarray, np.ndarray | None]:
        def votes(record: AttackRecord) -> np.ndarray | None:
            return {"logits": record.vote_logits, "probabilities": record.vote_probabilities}.get(of)

        if attack != WORST:
            record = self._get(attack)
            return record.predictions, votes(record)
        names = self.within(threat)
        pick = self.worst_choice(threat)
        rows = np.arange(len(self))
        stacked = np.stack([self.attacks[n].predictions for n in names])[pick, rows]
        if of == "predictions":
            return stacked, None
        table = [v for n in names if (v := votes(self.attacks[n])) is not None]
        return stacked, np.stack(table)[pick, rows]

    def within(self, threat=None) -> list[str]:
        """The attacks that "worst" chooses among: clean, and all whose threat lies inside `threat`.

        `threat` is a Threat or {"norm", "eps"}; None needs all attacks to share one threat.
        """
        threats = {n: r.threat for n, r in self.attacks.items() if r.threat is not None}
        distinct = {threat_key(t): threat_words(t) for t in threats.values()}
        if threat is None:
            if len(distinct) > 1:
                shown = ", ".join(sorted(distinct.values()))
                raise ThreatError("one threat for 'worst'", f"attacks under {shown}", "pass threat=Linf(0.3), say")
            return list(self.attacks)
        wanted = threat_info(threat)
        assert wanted is not None
        inside = [n for n, t in threats.items() if _inside(t, wanted)]
        return [n for n in self.attacks if n == CLEAN or n in inside]

    def worst_choice(self, threat=None) -> np.ndarray:
        """[N] index into `within(threat)`: the attack with the lowest accuracy on the selection draws."""
        names = self.within(threat)
        right = np.stack([self.attacks[n].selection == self.labels[:, None] for n in names])
        return choose_worst(right, last=names.index(CLEAN) if CLEAN in names else None)

    def compare(self, first: str, second: str, threat=None) -> Estimate:
        """mean over examples of accuracy(first) - accuracy(second), paired, with an interval."""
        sides = self.right(first, threat=threat), self.right(second, threat=threat)
        return intervals.paired(*sides, shared=self.noise_block())

    def noise_block(self) -> int | None:
        """Examples that saw the same noise in each draw (a chunk), or None where every example has its own. A model
        of unknown scope counts as one of shared noise if any of its answers ever changed."""
        model, chunk = self.meta.get("model"), self.meta.get("chunk")
        scope = model.get("scope") if isinstance(model, dict) else None
        if scope not in ("call", "unknown") or chunk is None:
            return None
        if scope == "unknown" and not any(
            (r.predictions != r.predictions[:, :1]).any() for r in self.attacks.values()
        ):
            return None
        return int(chunk)

    def prefix(self, name: str, contains: str = "") -> list[str]:
        """The attacks whose names start with `name`, in order."""
        return [n for n in self.attacks if n.startswith(name) and contains in n]

    def save(self, folder: str | Path) -> Path:
        """Write these records to a folder; `Records.load` reads them back."""
        from stochade.evaluate.store import save_records

        return save_records(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Records":
        """Read the records of a finished run.

        Raises:
            RecordsError: no records there, an unfinished run, a damaged file or a newer schema.
        """
        from stochade.evaluate.store import load_records

        return load_records(Path(folder))

    def to_json(self) -> str:
        """Scores of every attack as JSON, for other programs."""
        table = {n: {k: self.score(n, k).as_dict() for k in KINDS} for n in self.attacks}
        return json.dumps({"schema": SCHEMA, "scores": table, "meta": self.meta}, indent=1)


def threat_info(threat) -> dict | None:
    """A threat as plain data: {"norm": "linf", "eps": 0.3}; {"norm": "flips", "eps": 5.0, "per": "frame", "alphabet":
    "signed"}; None stays None, dicts pass."""
    if threat is None or isinstance(threat, dict):
        return threat
    info = {"norm": getattr(threat, "name", type(threat).__name__), "eps": float(threat.size)}
    if getattr(threat, "per", "value") != "value":
        info["per"] = threat.per
    if info["norm"] in ON_CODES:
        info["alphabet"] = threat.letters
    return info


def threat_key(threat) -> tuple | None:
    """What makes two threats the same one."""
    info = threat_info(threat)
    return None if info is None else (info["norm"], float(info["eps"]), info.get("per"), info.get("alphabet"))


def threat_words(threat) -> str:
    """A threat in words: "linf 0.2", "l0 12 per pixel", "signed flips 10 in total"; empty for none."""
    info = threat_info(threat)
    if info is None:
        return ""
    if info["norm"] in ON_CODES:
        words = in_words(info["eps"], info.get("alphabet"), info.get("per", "frame"))
        return f"fixed {words}" if info["norm"] == "fixed-flips" else words
    per = f" per {info['per']}" if info.get("per") else ""
    return f"{info['norm']} {info['eps']:.4g}{per}"


def _inside(inner: dict, outer: dict) -> bool:
    """Whether what `inner` allows `outer` allows. Flips fixed before the encoding is drawn are flips of it; k flips
    in total are at most k in every frame; old records of codes may not say their alphabet."""
    if inner["eps"] > outer["eps"] * (1 + 1e-9):
        return False
    if outer["norm"] in ON_CODES and inner["norm"] in ON_CODES:
        letters = inner.get("alphabet"), outer.get("alphabet")
        spelled = letters[0] == letters[1] or None in letters or letters == ("binary", "signed")
        fits = outer["norm"] == "flips" or inner["norm"] == "fixed-flips"
        return spelled and fits and outer.get("per", "frame") in ("frame", inner.get("per", "frame"))
    return inner["norm"] == outer["norm"] and inner.get("per", "value") in ("value", outer.get("per", "value"))


def choose_worst(right: np.ndarray, last: int | None = None) -> np.ndarray:
    """[N] the attack to take for each example, from the selection draws right [attacks, N, draws] (bool).

    The lowest row mean would chase luck where attacks differ little: row means are therefore shrunk towards the mean
    of their attack, by as many pseudo-draws as do best when half of the draws choose and the other half judge (none,
    a few, or so many that one attack serves all examples). Ties go to the attack with the lower mean over all
    examples, then to the first, and to attack `last` (the clean images) only when nothing else is as low.
    """
    draws = right.shape[2]
    overall = right.mean((1, 2))

    def pick(part: np.ndarray, pseudo: float) -> np.ndarray:
        level = part.mean((1, 2))[:, None]
        rows = level if np.isinf(pseudo) else (part.sum(2) + pseudo * level) / (part.shape[2] + pseudo)
        rows = np.broadcast_to(rows, right.shape[:2]) + 1e-9 * overall[:, None]
        if last is not None:
            rows = rows + 1e-6 * (np.arange(len(rows)) == last)[:, None]
        return rows.argmin(0)

    if draws < 2:
        return pick(right, 0.0)
    halves, examples = (right[:, :, ::2], right[:, :, 1::2]), np.arange(right.shape[1])
    options = (0.0, 1.0, 3.0, 10.0, 30.0, np.inf)
    judged = [
        sum(float(judge[pick(choose, pseudo), examples].mean()) for choose, judge in (halves, halves[::-1]))
        for pseudo in options
    ]
    return pick(right, options[int(np.argmin(judged))])


def majority(predictions: np.ndarray) -> np.ndarray:
    """[N] the class most draws choose; ties go to the lower class number."""
    classes = int(predictions.max()) + 1 if predictions.size else 1
    counts = np.stack([(predictions == c).sum(1) for c in range(classes)], axis=1)
    return counts.argmax(1)
