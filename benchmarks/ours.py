"""Stochade's attacks behind the signature of `peers/contenders.py`: (model, x, y, **options) -> images."""

from collections.abc import Callable

from torch import Tensor

Attack = Callable[..., Tensor]


def bounded(name: str, word: str = "steps") -> Attack:
    """An attack inside a budget, by the name that the command line takes."""

    def run(model, x, y, norm, eps, seed=0, **options) -> Tensor:
        count = options[{"steps": "steps", "queries": "queries"}[word]]
        return parsed(f"{name} {word}={count}", norm, eps)(model, x, y, seed=seed)

    return run


def parsed(text: str, norm: str, eps: float):
    from stochade import attacks
    from stochade.attacks.registry import parse_attack

    kinds = {"linf": attacks.Linf, "l2": attacks.L2, "l1": attacks.L1, "l0": attacks.L0}
    return parse_attack(text, kinds[norm](eps))


CONTENDERS: dict[str, dict[str, Attack]] = {
    name: {"stochade": bounded(name)} for name in ("apgd-ce", "apgd-dlr", "apgd-t")
}
