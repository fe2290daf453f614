"""How many flips per frame attacks on images are worth (mukhoty2025, equations 20 to 22, table 14, figure 4 d)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stochade.attacks.flip_budgets import coupled_flips, encoding_randomness, independent_flips, paper_budget
from stochade.nn import forward_as
from stochade.randomness import untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.schema import Attacked
from stochade.recipes.views.crafting import crafted
from stochade.recipes.views.looking import device_of
from stochade.recipes.views.styles import curve
from stochade.report.figures import Figure

MOST = {"smoke": 50, "small": 500, "paper": 50_000}  # training images
PIXEL = 255


@dataclass(frozen=True)
class Worth:
    """Mean flips per frame over images: the paper's k, k-hat, the randomness of the image's own code, and the
    coupling distance; with their standard errors."""

    paper: tuple[float, float]
    independent: tuple[float, float]
    randomness: tuple[float, float]
    coupled: tuple[float, float]


def rates(encoder: nn.Module, x: Tensor) -> Tensor:
    """What a rate encoder fires with, [N,C,H,W]: its expected code."""
    with untouched(encoder), torch.no_grad(), forward_as(encoder, {type(encoder): "mean-field"}):
        return encoder(x)[:, 0].double()


def worth(encoder: nn.Module, x: Tensor, attacked: Tensor) -> Worth:
    """What the change from images to attacked images is worth in flips of a frame."""
    before, after = rates(encoder, x), rates(encoder, attacked)
    each = (
        paper_budget(before, after), independent_flips(before, after), encoding_randomness(before),
        coupled_flips(before, after),
    )  # fmt: skip
    return Worth(*((float(v.mean()), float(v.std()) / len(v) ** 0.5 if len(v) > 1 else 0.0) for v in each))


def equivalent_budgets(r: Reproduction) -> list[Figure]:
    """Table 14 and figure 4 d: for every network and attack on images, over the budget, the k that the paper calls
    comparable, and the flips that an attacker who shares the encoder's random numbers gains. Training images, as in
    the paper (first seed)."""
    assert r.train is not None
    told = {(p.row, column): value for p in r.recipe.printed for column, value in p.values.items()}
    rows, data = [], []
    attacks = [a for a in r.recipe.attack if a.norm != "flips"]
    for name, net in r.networks.items():
        x, y = (t.to(device_of(net.model)) for t in r.train[: MOST[r.scale]])
        for attack in attacks:
            found = [(b, _worth(r, net.model, attack, b, x, y)) for b in attack.budgets]
            for kind, title in (("paper", "paper's k"), ("coupled", "coupled")):
                values = [getattr(value, kind)[0] for _, value in found]
                at = [b * PIXEL for b, _ in found]
                data.append(curve(len(data), f"{name}, {attack.name}: {title}", at, values))
            for budget, value in found:
                step = f"{round(budget * PIXEL)}/255"
                printed = told.get((f"{attack.name}, {name}", step))
                rows.append(
                    [name, attack.name, step, _cell(value.paper), "–" if printed is None else f"{printed:g}",
                     _cell(value.independent), _cell(value.randomness), _cell(value.coupled),
                     f"{value.coupled[0] / value.paper[0]:.1f}" if value.paper[0] else "–"]
                )  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "budget in grey levels, as in the paper"}, "type": "log"},
        "yaxis": {"title": {"text": "flips per frame"}, "type": "log"},
    }
    times = "" if r.settings.budgets == 1 else f" Budgets here are {r.settings.budgets:g} times those named."
    note = (
        f"{min(len(r.train), MOST[r.scale])} training images, mean ± standard error. The paper's k is the change of "
        "an expected number of flips, in which pixels that rise and pixels that fall cancel; coupled flips are those "
        f"that the change of the image makes in a code whose random numbers stay.{times}"
    )
    columns = ["network", "attack", "eps", "k = |k-hat - k1|, here", "k, paper", "k-hat", "k1 or k2 of the image",
               "coupled flips", "coupled / k"]  # fmt: skip
    return [Figure("equivalent", "Flips that a budget is worth", note, data, layout, columns, rows, wide=True)]


def _worth(r: Reproduction, model: nn.Module, attack: Attacked, budget: float, x: Tensor, y: Tensor) -> Worth:
    made = crafted(model, attack, budget * r.settings.budgets, x, y)
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    return worth(encoder, x, made)


def _cell(value: tuple[float, float]) -> str:
    return f"{value[0]:.2f} ± {value[1]:.2f}"
