"""Attacks on codes: whether accuracy under them is real, or a label that the attack of training leaks."""

import numpy as np
import torch
from torch import nn

from stochade.attacks import Attack
from stochade.attacks.codes import checked_codes, encode, encoder_and_network, flips_of
from stochade.attacks.registry import parse_attack
from stochade.attacks.transfer import for_transfer
from stochade.evaluate.intervals import Estimate, mean, paired
from stochade.evaluate.records import CLEAN
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.result import Reproduction, budgets_of, named
from stochade.recipes.views.curves import PERCENT
from stochade.recipes.views.looking import device_of
from stochade.report.figures import Figure

TRANSFERRED = 2  # attacks
MOST = 200  # images
_COLOURS = ("single", "vote", "all", "claimed")


def label_leaking(r: Reproduction) -> list[Figure]:
    """Every attack on codes beside the clean accuracy of the same images: one that leaves more than no attack at all
    tells the network its label (first seed)."""
    rows, data = [], []
    chosen = [(a, b) for a in r.recipe.attack if a.norm == "flips" for b in a.budgets]
    for index, (name, records) in enumerate(r.records.items()):
        clean, block = records.right(CLEAN), records.noise_block()
        gains = []
        for attack, budget in chosen:
            right = records.right(named(attack, budget))
            gain = paired(right, clean, shared=block)
            gains.append(gain)
            above = "yes" if gain.low is not None and gain.low > 0 else "no"
            rows.append([name, attack.name, f"{budget:g}", mean(clean, shared=block), mean(right, shared=block)])
            rows[-1] += [points(gain), above]
        data.append(
            {"type": "bar", "name": name, "x": [f"{a.name}, k = {b:g}" for a, b in chosen],
             "y": [gain.value for gain in gains], "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
    layout = {"barmode": "group", "yaxis": {"title": {"text": "accuracy under attack - clean"}, "tickformat": ".0%"}}
    columns = ["network", "attack", "k", "clean", "under attack", "difference, points", "above clean"]
    note = (
        "Bars above zero are more accurate under attack than without: the attack tells the label. Differences are "
        "those of the same images, with 95 % intervals; the last column asks for all of it above 0."
    )
    return [Figure("leaking", "Accuracy under attack less clean accuracy", note, data, layout, columns, rows, True)]


def points(e: Estimate) -> str:
    """`-3.2 [-5.0, -1.4]`: a difference of accuracies in points."""
    if e.value is None:
        return "–"
    limits = "" if e.low is None or e.high is None else f" [{100 * e.low:+.1f}, {100 * e.high:+.1f}]"
    return f"{100 * e.value:+.1f}{limits}"


def code_transfer(r: Reproduction) -> list[Figure]:
    """The first two attacks on codes, made on one network and scored on another with the same letters: one draw is
    one encoding by the target, which the attacker knows, and one attack on it. Where codes of another network beat
    the target's own, its gradient hides the way."""
    assert r.test is not None
    x, y = r.test[:MOST]
    rows: list[list] = []
    for attack in [a for a in r.recipe.attack if a.norm == "flips"][:TRANSFERRED]:
        for budget, here in budgets_of(attack, r.settings):
            for target, net in r.networks.items():
                made_for = parse_attack(attack.attack, attack.threat(here, net.model))
                for source, other in r.networks.items():
                    if _letters(other.model) != _letters(net.model):
                        continue
                    right = transferred(made_for, net.model, other.model, x, y, r.settings.draws)
                    rows.append([target, source, attack.name, f"{budget:g}", mean(right)])
    data = []
    for index, name in enumerate(dict.fromkeys(f"{row[2]}, k = {row[3]}" for row in rows)):
        mine = [row for row in rows if f"{row[2]}, k = {row[3]}" == name]
        data.append(
            {"type": "bar", "name": name, "x": [f"{row[1]} on {row[0]}" for row in mine],
             "y": [row[4].value for row in mine], "meta": {"colour": _COLOURS[index % len(_COLOURS)]}}
        )  # fmt: skip
    columns = ["scored on", "made on", "attack", "k", "accuracy"]
    note = f"Codes made on one network and scored on another, {len(y)} images, {r.settings.draws} encodings of each."
    layout = {"yaxis": PERCENT, "barmode": "group"}
    return [Figure("code-transfer", "Codes that transfer", note, data, layout, columns, rows, True)]


def _letters(model: nn.Module) -> object:
    return getattr(getattr(model, "encoder", None), "alphabet", None)


def transferred(
    attack: Attack, target: nn.Module, source: nn.Module, x: torch.Tensor, y: torch.Tensor, draws: int
) -> np.ndarray:
    """[N, draws] whether the target is right on its own encodings, attacked on the source's network; equal draws for
    all sources."""
    attack, threat = for_transfer(attack), flips_of(attack)
    _, ours = encoder_and_network(target, threat)
    _, theirs = encoder_and_network(source, threat)
    x, y = x.to(device_of(target)), y.to(device_of(target))
    right = []
    with untouched(target), untouched(source):
        for draw in range(draws):
            seed = seed_for(0, "code transfer", draw)
            codes = encode(target, x, threat, seed)
            made = checked_codes(attack.run(theirs, codes, y, seed=seed).inputs, codes, threat, "code transfer")
            reseed(seed_for(seed, "score"))
            with torch.no_grad():
                right.append((ours(made).argmax(1) == y).cpu().numpy())
    return np.stack(right, 1)
