"""The peers' attacks behind one signature: (model, x, y, **options) -> images. Run in .venv-peers.

`CONTENDERS[attack][library]`. Options mean the same everywhere: norm ("linf", "l2", "l1", "l0"), eps, steps, and what
belongs to one attack. Where a library's own default differs from what is passed here, `CHANGED` says so.
"""

import contextlib
import io
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Attack = Callable[..., Tensor]
P = {"linf": math.inf, "l2": 2, "l1": 1, "l0": 0}
NORM = {"linf": "Linf", "l2": "L2", "l1": "L1"}
CHANGED = {
    "apgd": "one restart and the same steps for all; l1 in one phase (no larger radii first)",
    "square": "queries as stated (default: 5000); sizes of squares stretched to them (class default)",
    "cw": "steps, searches and first c as stated (adv-lib and foolbox: 10,000, 9, 0.001), learning rate 0.01 as in "
    "all, no early abort in adv-lib and foolbox (default: on). torchattacks (50 steps) has no search over c, so it "
    "gets all steps in one go at c = 1, and no switch for its early abort",
    "deepfool": "50 steps (adv-lib: 100), overshoot 0.02, all ten classes",
    "fmn": "steps as stated (foolbox: 100, adv-lib: 10); first step size 1 and gamma 0.05 are their defaults",
    "sigma-zero": "steps as stated (adv-lib: 1000)",
    "standard": "none: one restart, 100 steps, 9 target classes, 5000 queries",
}


def quiet() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(io.StringIO())


def auto_attack_apgd(loss: str) -> Attack:
    def run(model, x, y, norm, eps, steps, seed=0) -> Tensor:
        from autoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        common = {"n_iter": steps, "norm": NORM[norm], "n_restarts": 1, "eps": eps, "seed": seed, "device": "cpu"}
        with quiet():
            if loss == "targeted":
                return APGDAttack_targeted(model, n_target_classes=9, **common).perturb(x, y)
            return APGDAttack(model, loss=loss, **common).perturb(x, y)

    return run


def adv_lib_apgd(loss: str) -> Attack:
    def run(model, x, y, norm, eps, steps, seed=0) -> Tensor:
        from adv_lib.attacks import apgd, apgd_targeted

        torch.manual_seed(seed)
        if loss == "targeted":
            return apgd_targeted(model, x, y, eps, P[norm], n_iter=steps, num_targets=9)
        return apgd(model, x, y, eps, P[norm], n_iter=steps, loss_function=loss)

    return run


def torchattacks_apgd(loss: str) -> Attack:
    def run(model, x, y, norm, eps, steps, seed=0) -> Tensor:
        from torchattacks import APGD, APGDT

        kinds = {"norm": NORM[norm], "eps": eps, "steps": steps, "n_restarts": 1, "seed": seed}
        if loss == "targeted":
            return APGDT(model, n_classes=10, **kinds)(x, y)
        return APGD(model, loss=loss, **kinds)(x, y)

    return run


def art_apgd(model, x, y, norm, eps, steps, seed=0) -> Tensor:
    from art.attacks.evasion import AutoProjectedGradientDescent

    torch.manual_seed(seed)
    attack = AutoProjectedGradientDescent(
        art_classifier(model, x), norm=P[norm] if norm != "linf" else "inf", eps=eps, eps_step=2 * eps,
        max_iter=steps, nb_random_init=1, batch_size=len(x), loss_type="cross_entropy", verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x=x.numpy(), y=y.numpy()))


def art_classifier(model: nn.Module, x: Tensor):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        model, nn.CrossEntropyLoss(), tuple(x.shape[1:]), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )


def auto_attack_square(model, x, y, norm, eps, queries, seed=0) -> Tensor:
    from autoattack.square import SquareAttack

    attack = SquareAttack(
        model, norm=NORM[norm], n_queries=queries, eps=eps, seed=seed, device="cpu", resc_schedule=True
    )
    return attack.perturb(x, y)


def auto_attack_standard(model, x, y, norm, eps, seed=0, batch=256) -> Tensor:
    from autoattack import AutoAttack

    with quiet():
        attack = AutoAttack(
            model, norm=NORM[norm], eps=eps, version="standard", device="cpu", seed=seed, verbose=False
        )
        return attack.run_standard_evaluation(x, y, bs=batch)


def adv_lib_cw(model, x, y, steps, searches=1, rate=0.01, c=0.001) -> Tensor:
    from adv_lib.attacks import carlini_wagner_l2

    return carlini_wagner_l2(
        model, x, y, learning_rate=rate, initial_const=float(c), binary_search_steps=searches, max_iterations=steps,
        abort_early=False,
    )  # fmt: skip


def foolbox_cw(model, x, y, steps, searches=1, rate=0.01, c=0.001) -> Tensor:
    from foolbox.attacks import L2CarliniWagnerAttack

    attack = L2CarliniWagnerAttack(
        binary_search_steps=searches, steps=steps, stepsize=rate, initial_const=c, abort_early=False
    )
    return through_foolbox(attack, model, x, y)


def torchattacks_cw(model, x, y, steps, searches=1, rate=0.01, c=1.0) -> Tensor:
    from torchattacks import CW

    return CW(model, c=c if searches == 1 else 1.0, steps=steps * searches, lr=rate)(x, y)


def art_cw(model, x, y, steps, searches=1, rate=0.01, c=0.001) -> Tensor:
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        art_classifier(model, x), learning_rate=rate, binary_search_steps=searches, max_iter=steps, initial_const=c,
        batch_size=len(x), verbose=False,
    )  # fmt: skip
    return torch.from_numpy(attack.generate(x=x.numpy(), y=y.numpy()))


def through_foolbox(attack, model, x, y) -> Tensor:
    from foolbox import PyTorchModel

    _, images, _ = attack(PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    return images


def foolbox_deepfool(model, x, y, steps=50, norm="l2") -> Tensor:
    from foolbox.attacks import L2DeepFoolAttack, LinfDeepFoolAttack

    kind = {"l2": L2DeepFoolAttack, "linf": LinfDeepFoolAttack}[norm]
    return through_foolbox(kind(steps=steps, candidates=10, overshoot=0.02), model, x, y)


def torchattacks_deepfool(model, x, y, steps=50, norm="l2") -> Tensor:
    from torchattacks import DeepFool

    return DeepFool(model, steps=steps, overshoot=0.02)(x, y)


def adv_lib_deepfool(model, x, y, steps=50, norm="l2") -> Tensor:
    from adv_lib.attacks import df

    return df(model, x, y, steps=steps, overshoot=0.02, norm=P[norm])


def adv_lib_fmn(model, x, y, norm, steps) -> Tensor:
    from adv_lib.attacks import fmn

    return fmn(model, x, y, P[norm], steps=steps)


def foolbox_fmn(model, x, y, norm, steps) -> Tensor:
    from foolbox import attacks

    kind = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack", "l0": "L0FMNAttack"}[norm]
    return through_foolbox(getattr(attacks, kind)(steps=steps), model, x, y)


def adv_lib_sigma_zero(model, x, y, steps) -> Tensor:
    from adv_lib.attacks import sigma_zero

    return sigma_zero(model, x, y, num_steps=steps)


CONTENDERS: dict[str, dict[str, Attack]] = {
    "apgd-ce": {
        "auto-attack": auto_attack_apgd("ce"),
        "adv-lib": adv_lib_apgd("ce"),
        "torchattacks": torchattacks_apgd("ce"),
        "ART": art_apgd,
    },
    "apgd-dlr": {"auto-attack": auto_attack_apgd("dlr"), "adv-lib": adv_lib_apgd("dlr")},
    "apgd-t": {"auto-attack": auto_attack_apgd("targeted"), "adv-lib": adv_lib_apgd("targeted")},
    "square": {"auto-attack": auto_attack_square},
    "cw": {"adv-lib": adv_lib_cw, "foolbox": foolbox_cw, "torchattacks": torchattacks_cw, "ART": art_cw},
    "deepfool": {
        "foolbox": foolbox_deepfool,
        "torchattacks": torchattacks_deepfool,
        "adv-lib": adv_lib_deepfool,
    },
    "fmn": {"adv-lib": adv_lib_fmn, "foolbox": foolbox_fmn},
    "sigma-zero": {"adv-lib": adv_lib_sigma_zero},
    "standard": {"auto-attack": auto_attack_standard},
}
