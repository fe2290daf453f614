"""Transfer: adversarial examples made on one model, or on several at once, and tried on another."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from stochade.attacks.base import Attack, Attempt, Task
from stochade.attacks.gradients import Model
from stochade.attacks.inputs import check_model
from stochade.attacks.targeted import Targeted
from stochade.errors import BudgetError, ModelError
from stochade.nn.discrete import as_module
from stochade.randomness import untouched

OF = ("logits", "probabilities")


class EnsembleModel(nn.Module):
    """Several models as one: the mean of their logits, or the logarithm of the mean of their probabilities.

    Args:
        models: at least one, all for the same classes.
        of: "logits" (attacks on an ensemble in logits transfer best, Dong et al. 2018) or "probabilities".
    """

    scope = "composite"

    def __init__(self, models: Sequence[Model], of: str = "logits"):
        super().__init__()
        if not isinstance(models, Sequence) or not models or not all(callable(m) for m in models):
            raise ModelError("a list of models", repr(models), "pass at least one")
        if of not in OF:
            raise ModelError(f"of out of {', '.join(OF)}", repr(of))
        self.models, self.of = nn.ModuleList(as_module(m) for m in models), of

    def forward(self, x: Tensor) -> Tensor:
        outputs = [model(x) for model in self.models]
        if len({z.shape for z in outputs}) > 1:
            raise ModelError("models for the same classes", ", ".join(str(tuple(z.shape)) for z in outputs))
        if self.of == "logits":
            return torch.stack(outputs).mean(0)
        return torch.stack([z.softmax(1) for z in outputs]).mean(0).clamp_min(1e-30).log()


def for_transfer(attack: Attack) -> Attack:
    """The same attack with nobody leaving: a point that has just fooled its source transfers worst."""
    if any(f.name == "drop_fooled" for f in fields(attack)):  # type: ignore[arg-type]
        return replace(attack, drop_fooled=False)  # type: ignore[type-var]
    if isinstance(attack, Targeted):
        return replace(attack, attack=for_transfer(attack.attack))
    return attack


@dataclass(frozen=True)
class Transfer(Attack):
    """Runs another attack on a source model of the attacker's own; the model under attack is never asked.

    On a random or discrete model whose gradient hides the way, a transfer that beats white-box attacks is the
    cheapest proof that the gradient hides it (kubo2019, table 4.8).

    Args:
        source: a model in eval mode, or several, which are attacked as one (`EnsembleModel`).
        attack: what is run on it; examples do not leave early.
    """

    source: Model | Sequence[Model]
    attack: Attack
    probabilities_allowed = True

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise BudgetError("an attack to run on the source", repr(self.attack), "for example PGD(Linf(0.3))")
        source = EnsembleModel(self.source) if isinstance(self.source, Sequence) else self.source
        check_model(source)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "attack", for_transfer(self.attack))

    @property
    def threat(self):  # type: ignore[override]
        return self.attack.threat

    def cost(self) -> tuple[int, int]:
        """Passes through the source; none through the model under attack."""
        return self.attack.cost()

    def search(self, task: Task) -> Attempt:
        with untouched(self.source):
            return self.attack.search(replace(task, model=self.source))
