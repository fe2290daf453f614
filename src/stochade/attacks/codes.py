"""Attacks on the codes of a model with an encoder in front: one draw is one fresh encoding and one attack on it."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from stochade.attacks.base import Attack, Attempt
from stochade.attacks.flips import BINARY, Flips
from stochade.errors import BudgetError, ModelError, ThreatError
from stochade.randomness import reseed, seed_for, untouched


class CodeAttempt(NamedTuple):
    """One draw: the encoding, what became of it [N, T, ...] each, and what the search says."""

    codes: Tensor
    attacked: Tensor
    attempt: Attempt


def attacks_codes(attack: object) -> bool:
    """Whether an attack changes codes, not images."""
    return isinstance(getattr(attack, "threat", None), Flips)


def flips_of(attack: object) -> Flips:
    """The threat of an attack on codes; BudgetError for other attacks."""
    threat = getattr(attack, "threat", None)
    if not isinstance(threat, Flips):
        raise BudgetError("an attack on codes, with a threat Flips(k)", repr(attack), "for example SEA(Flips(10))")
    return threat


def flips_for(model: object, k: float = 10) -> Flips:
    """Flips(k) in the letters of the model's encoder; {0, 1} where there is none that names its letters."""
    letters = getattr(getattr(model, "encoder", None), "alphabet", None)
    return Flips(k, BINARY if letters is None else letters)


def encoder_and_network(model: object, threat: Flips) -> tuple[nn.Module, nn.Module]:
    """The two parts of a model that flips need.

    Raises:
        ModelError: a model without an encoder and a network, or an encoder whose codes are of another alphabet.
    """
    encoder, network = getattr(model, "encoder", None), getattr(model, "network", None)
    if not (isinstance(encoder, nn.Module) and isinstance(network, nn.Module)):
        hint = "wrap the parts: stochade.models.Encoded(encoder, network)"
        raise ModelError("a model with an encoder and a network, for an attack on codes", type(model).__name__, hint)
    letters = getattr(encoder, "alphabet", threat.alphabet)
    if letters is None or tuple(letters) != tuple(threat.alphabet):
        got = f"{type(encoder).__name__} with {'codes of real numbers' if letters is None else f'codes in {letters}'}"
        hint = "attack the images: Linf(8/255)" if letters is None else "choose the encoder's: Flips(k, alphabet)"
        raise ModelError(f"an encoder with codes in {threat.alphabet}, for this threat", got, hint)
    return encoder, network


@torch.no_grad()
def encode(model: nn.Module, x: Tensor, threat: Flips, seed: int) -> Tensor:
    """One encoding of the images, checked; the generators are seeded by `seed`, so only inside `untouched`."""
    encoder, _ = encoder_and_network(model, threat)
    reseed(seed)
    codes = encoder(x)
    threat.bound.check(codes)
    return codes.contiguous()


def checked_codes(attacked: object, codes: Tensor, threat: Flips, name: str) -> Tensor:
    """The attacked codes, when each lies in its threat; ThreatError otherwise."""
    if not isinstance(attacked, Tensor) or attacked.shape != codes.shape:
        got = tuple(attacked.shape) if isinstance(attacked, Tensor) else type(attacked).__name__
        raise ThreatError(f"codes {tuple(codes.shape)} from attack {name!r}", str(got))
    allowed = threat.bound.allows(attacked, codes)
    if not bool(allowed.all()):
        worst = int((~allowed).nonzero()[0, 0])
        flips = float(threat.bound.distance(attacked, codes)[worst])
        hint = "project before returning: threat.project(codes, codes0)"
        raise ThreatError(f"codes within {threat} from attack {name!r}", f"{flips:g} at example {worst}", hint)
    return attacked


def attack_codes(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, *, targets: Tensor | None = None, seed: int = 0, ids=None
) -> CodeAttempt:
    """Encode the images once and attack that encoding. The model and the global generators come back as they were.

    Args:
        attack: with `Flips` as its threat, such as SEA(Flips(10)).
        model: with an `encoder` (images -> codes) and a `network` (codes -> logits).
        x, y, targets, ids: images [N,...] in [0,1] and the rest as in `Attack.run`.
        seed: another one is another encoding and another attack.

    Raises:
        BudgetError: another threat. ModelError: a model without these parts. ThreatError: an attack that leaves its
            threat. Else as in `Attack.run`.
    """
    threat = flips_of(attack)
    with untouched(model):
        codes = encode(model, x, threat, seed_for(seed, "codes"))
        _, network = encoder_and_network(model, threat)
        attempt = attack.run(network, codes, y, targets=targets, seed=seed, ids=ids)
        return CodeAttempt(codes, checked_codes(attempt.inputs, codes, threat, type(attack).__name__), attempt)
