"""Pictures before and after attacks, with what the network says, and their differences amplified."""

import torch
from torch import Tensor, nn

from stochade.recipes.result import Reproduction
from stochade.recipes.views.looking import attack_of, device_of, draws_for, logits_of
from stochade.report.document import Strip
from stochade.report.pictures import png

EXAMPLES = 3
LOOKED = 64  # images among which examples are looked for
DRAWS = 20
TIMES = 50  # amplification of the excursion's noise pictures


def attack_pictures(r: Reproduction) -> list[Strip]:
    """For every network and attack of the recipe: images that the network gets right, as they are and attacked, first
    those that fool it, then those that it still gets right (kaspar2024, figures 1 and 3). Verdicts are those of the
    mean probability over draws."""
    assert r.test is not None
    strips, names = [], _names(r)
    for name, net in r.networks.items():
        x, y = (t.to(device_of(net.model)) for t in r.test[:LOOKED])
        before, _ = verdict(net.model, x, "clean")
        x, y = x[before == y][:16], y[before == y][:16]
        if not len(x):
            continue
        for index, attack in enumerate(r.recipe.attack):
            made = attack_of(r, index)(net.model, x, y)
            after, sure = verdict(net.model, made, attack.name)
            order = (after == y).long().argsort(stable=True)  # fooled ones first
            half = EXAMPLES // 2
            fooled, held = order[after[order] != y[order]], order[after[order] == y[order]]
            chosen = [
                *fooled[: max(half, EXAMPLES - len(held))].tolist(),
                *held[: max(half, EXAMPLES - len(fooled))].tolist(),
            ]
            images = []
            for i in chosen[:EXAMPLES]:
                images.append((png(x[i].cpu().numpy()), f"{names[int(y[i])]}, as it is"))
                word = "still right" if after[i] == y[i] else "wrong"
                told = f"{attack.name}: {names[int(after[i])]} ({100 * float(sure[i]):.0f} %), {word}"
                images.append((png(made[i].cpu().numpy()), told))
            note = f"{attack.attack}, {attack.norm} {max(attack.budgets) * r.settings.budgets:.3g}."
            strips.append(Strip(f"{name} under {attack.name}", images, note))
    return strips


def amplified(r: Reproduction) -> list[Strip]:
    """For every network: an image that it gets right, then for every attack of the recipe its change amplified 50
    times around grey, and the attacked image, each with the predicted class and its probability (pallaprolu2020,
    section 3)."""
    assert r.test is not None
    strips, names = [], _names(r)
    for name, net in r.networks.items():
        x, y = (t.to(device_of(net.model)) for t in r.test[:LOOKED])
        before, sure = verdict(net.model, x, "clean")
        right = before == y
        x, y, sure = x[right][:EXAMPLES], y[right][:EXAMPLES], sure[right][:EXAMPLES]
        if not len(x):
            continue
        made = [attack_of(r, i)(net.model, x, y) for i in range(len(r.recipe.attack))]
        told = [verdict(net.model, m, a.name) for m, a in zip(made, r.recipe.attack, strict=True)]
        for i in range(len(x)):
            images = [(png(x[i].cpu().numpy()), f"{names[int(y[i])]}, {100 * float(sure[i]):.2f} %")]
            for attack, points, (found, surety) in zip(r.recipe.attack, made, told, strict=True):
                images.append(
                    (png(noise_picture(x[i], points[i]).cpu().numpy()), f"{attack.name}: change, {TIMES} times")
                )
                said = f"{attack.name}: {names[int(found[i])]}, {100 * float(surety[i]):.2f} %"
                images.append((png(points[i].cpu().numpy()), said))
            strips.append(Strip(f"{name}, image {i + 1}", images, "Grey: no change."))
    return strips


def noise_picture(image: Tensor, attacked: Tensor) -> Tensor:
    """The difference, amplified around grey and clipped."""
    return (0.5 + TIMES * (attacked - image)).clamp(0, 1)


def verdict(model: nn.Module, x: Tensor, *purpose: object) -> tuple[Tensor, Tensor]:
    """[N] the class of the highest mean probability over draws, and that probability."""
    mean = logits_of(model, x, "verdict", *purpose, draws=draws_for(model, DRAWS)).softmax(2).mean(0)
    sure, found = torch.max(mean, 1)
    return found, sure


def _names(r: Reproduction) -> list[str]:
    assert r.test is not None
    return r.test.classes or [str(c) for c in range(r.test.num_classes)]
