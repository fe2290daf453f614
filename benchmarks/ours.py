"""Stochade's attacks behind the signature of `peers/contenders.py`: (model, x, y, **options) -> images."""

from collections.abc import Callable

from torch import Tensor

Attack = Callable[..., Tensor]


def parsed(text: str, norm: str, eps: float):
    """An attack by the words that the command line takes."""
    from stochade import attacks
    from stochade.attacks.registry import parse_attack

    kinds = {"linf": attacks.Linf, "l2": attacks.L2, "l1": attacks.L1, "l0": attacks.L0}
    return parse_attack(text, kinds[norm](eps))


def bounded(name: str) -> Attack:
    """An attack inside a budget."""

    def run(model, x, y, norm, eps, seed=0, **options) -> Tensor:
        words = [name, *(f"{key}={value}" for key, value in options.items())]
        return parsed(" ".join(words), norm, eps)(model, x, y, seed=seed)

    return run


def smallest(text: str) -> Attack:
    """An attack that looks for the smallest change: every distance counts. `text` has the options as {fields}."""

    def run(model, x, y, norm="l2", **options) -> Tensor:
        eps = float(x[0].numel()) if norm == "l0" else float("inf")
        return parsed(text.format(**options), norm, eps)(model, x, y)

    return run


def cw(model, x, y, steps, searches=1, rate=0.01, c=0.001) -> Tensor:
    text = f"cw steps={steps} search_steps={searches} rate={rate} initial={c} abort_early=no"
    return smallest(text)(model, x, y)


def sigma_zero(model, x, y, steps) -> Tensor:
    return smallest("sigma-zero steps={steps}")(model, x, y, norm="l0", steps=steps)


CONTENDERS: dict[str, dict[str, Attack]] = {
    **{name: {"stochade": bounded(name)} for name in ("apgd-ce", "apgd-dlr", "apgd-t", "square", "standard", "fast")},
    "cw": {"stochade": cw},
    "deepfool": {"stochade": smallest("deepfool steps={steps}")},
    "fmn": {"stochade": smallest("fmn steps={steps}")},
    "sigma-zero": {"stochade": sigma_zero},
}
