"""What to call attacks that came without a name: the members of suites."""

from stochade.attacks.base import Attack
from stochade.attacks.registry import ATTACKS
from stochade.describe import describe
from stochade.errors import StochadeError


def member_names(attack: object) -> list[str]:
    """The names of a suite's members, in the order that `Attempt.winner` counts them; empty for other attacks."""
    while isinstance(inner := getattr(attack, "attack", None), Attack):  # pulled to a class, or run on another model
        attack = inner
    members = getattr(attack, "attacks", None)
    if not isinstance(members, tuple) or not all(isinstance(member, Attack) for member in members):
        return []
    plain = [known_name(member) for member in members]
    return [f"{n} {plain[: i + 1].count(n)}" if plain.count(n) > 1 else n for i, n in enumerate(plain)]


def known_name(attack: Attack) -> str:
    """The command line's name for the attack most like this one; the name of its class where it has none."""
    told, best, most = _told(attack), type(attack).__name__.lower(), 0
    for name, (factory, _) in ATTACKS.items():
        try:
            other = factory(attack.threat)
        except (StochadeError, TypeError):  # not for this norm, or not without further parts
            continue
        alike = sum(told.get(key) == value for key, value in _told(other).items())
        if type(other) is type(attack) and alike > most:
            best, most = name, alike
    return best


def _told(attack: Attack) -> dict:
    told = describe(attack)
    return told if isinstance(told, dict) else {}
