"""How long every attack took: kept beside the records, never in them, because equal units give equal bytes."""

import json
import time
from pathlib import Path

from stochade.describe import provenance
from stochade.evaluate.records import AttackRecord
from stochade.evaluate.store import write_json

EVERY = 5.0  # seconds between writes, so that a session that is killed loses little

Times = dict[str, list[float]]


class Clock:
    """Wall seconds and passes of the attacks of one run, added up over its sessions and worker processes, and written
    to `provenance.json` as "seconds": {attack: [seconds, passes]}.

    Seconds are those of the attack itself, without the scoring of its images, summed over processes; passes are
    forwards and backwards summed over examples. Their ratio is the time of one pass of one example on this machine.

    Args:
        folder: of the run, or None to keep nothing on disk.
    """

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else folder / "provenance.json"
        self.before = _earlier(self.path)
        self.times: Times = _times(self.before)
        self.facts: dict = {}
        self.ran = False
        self.written = time.monotonic()

    def add(self, name: str, seconds: float, record: AttackRecord) -> None:
        """One more unit of an attack."""
        self.ran = True
        passes = float(record.forwards.sum() + record.backwards.sum())
        if passes == 0:
            return
        before = self.times.get(name, [0.0, 0.0])
        self.times[name] = [round(before[0] + seconds, 6), before[1] + passes]
        if time.monotonic() - self.written > EVERY:
            self.save()

    def save(self) -> dict:
        """Write, and return, the provenance with the times so far; a run that was only read again keeps its own."""
        if not self.ran and self.before:
            return self.before
        self.facts = self.facts or provenance()  # asks git: once
        facts = self.facts | self._revisions() | {"seconds": self.times}
        if self.path is not None:
            write_json(self.path, facts)
        self.written = time.monotonic()
        return facts

    def _revisions(self) -> dict:
        """The commits of all sessions that measured something, in their order, where there are several."""
        told = self.before.get("git_revisions") or [self.before.get("git_revision")]
        found = list(dict.fromkeys(str(t) for t in [*told, self.facts.get("git_revision")] if t))
        return {"git_revisions": found} if len(found) > 1 else {}


def _earlier(path: Path | None) -> dict:
    """The provenance of earlier sessions; empty where there is none that can be read."""
    try:
        found = {} if path is None else json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _times(facts: dict) -> Times:
    """The times in a provenance; none where they are no times."""
    try:
        return {str(name): [float(s), float(p)] for name, (s, p) in facts.get("seconds", {}).items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def seconds_per_pass(facts: object) -> dict[str, float]:
    """{attack: seconds of one pass of one example} from a run's provenance; empty where it holds no times."""
    times = facts.get("seconds") if isinstance(facts, dict) else None
    if not isinstance(times, dict):
        return {}
    pairs = {str(n): t for n, t in times.items() if isinstance(t, list | tuple) and len(t) == 2}
    return {name: float(t[0]) / float(t[1]) for name, t in pairs.items() if t[1] and t[0] > 0}
