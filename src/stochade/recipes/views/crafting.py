"""What several views ask of a network: its adversarial examples and its input gradients, with seeds of their own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.attacks.registry import parse_attack
from stochade.randomness import reseed, seed_for, untouched
from stochade.recipes.schema import Attacked

CHUNK = 100  # images; a network of gates has filters of its own for each of them


def crafted(model: nn.Module, attack: Attacked, budget: float, x: Tensor, y: Tensor) -> Tensor:
    """Adversarial examples of images [N,C,H,W] at a budget; the model stays as it was."""
    made = parse_attack(attack.attack, attack.threat(budget))  # type: ignore[arg-type]
    parts = []
    with untouched(model):
        model.eval()
        for start in range(0, len(x), CHUNK):
            reseed(seed_for(0, "view", attack.attack, budget, start))
            parts.append(made(model, x[start : start + CHUNK], y[start : start + CHUNK]))
    return torch.cat(parts)


def input_gradients(model: nn.Module, x: Tensor, y: Tensor, purpose: str = "gradients") -> Tensor:
    """The gradient of every image's own cross-entropy, one draw, through the model's own backward."""
    parts = []
    with untouched(model):
        model.eval()
        for start in range(0, len(x), CHUNK):
            reseed(seed_for(0, "view", purpose, start))
            part = x[start : start + CHUNK].clone().requires_grad_()
            loss = F.cross_entropy(model(part), y[start : start + CHUNK], reduction="sum")
            parts.append(torch.autograd.grad(loss, part)[0])
    return torch.cat(parts)


def predicted(model: nn.Module, x: Tensor, draw: int = 0) -> Tensor:
    """[N]: classes of one draw, the same ones at every call with the same `draw`; the model stays as it was."""
    parts = []
    with untouched(model), torch.no_grad():
        model.eval()
        for start in range(0, len(x), CHUNK):
            reseed(seed_for(0, "view", "prediction", draw, start))
            parts.append(model(x[start : start + CHUNK]).argmax(1))
    return torch.cat(parts)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, draws: int = 5) -> float:
    """Mean accuracy of one prediction over `draws` draws."""
    return sum(float((predicted(model, x, draw) == y).double().mean()) for draw in range(draws)) / draws
