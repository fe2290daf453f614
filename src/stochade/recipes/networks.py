"""The networks of a recipe, trained or taken up again. Equal settings share one folder across recipes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stochade import checkpoint
from stochade.attacks import Attack, Descent
from stochade.attacks.threats import Linf
from stochade.data import Images
from stochade.describe import digest
from stochade.randomness import forked, seed_for
from stochade.recipes.schema import Network, Recipe, Scale, Training
from stochade.registry import build
from stochade.train import train
from stochade.train.augment import parse_augment
from stochade.train.codes import adversarial_by, parse_for
from stochade.train.elbo import ELBO
from stochade.train.extra_class import ExtraClass
from stochade.train.mixture import Mixture
from stochade.train.objectives import Standard, TrainingObjective
from stochade.train.optimizers import optimizer_named
from stochade.train.penalties import Penalised
from stochade.train.reinforced import Reinforced
from stochade.train.schedules import parse_schedule
from stochade.train.settings import fingerprint_of
from stochade.train.setups import SETUPS
from stochade.train.state import Epoch
from stochade.train.temporal import NAMES, temporal


@dataclass
class Trained:
    """A network of a recipe, ready to be attacked.

    Attributes:
        name: of the row. seed: of its weights and training.
        model: in evaluation mode.
        facts: epochs, best epoch, validation accuracy.
        history: of its training, epoch by epoch; empty for a given network.
    """

    name: str
    seed: int
    model: nn.Module
    facts: dict[str, Any]
    history: Sequence[Epoch] = ()


def settings_of(network: Network, scale: Scale, name: str) -> tuple[dict[str, Any], Training]:
    """(options of the model, its training) at a scale, with the scale's limit on epochs."""
    options, training = network.at(name)
    if scale.epochs is not None:
        training = training.model_copy(update={"epochs": min(training.epochs, scale.epochs)})
    return options, training


def trained(
    recipe: Recipe,
    scale_name: str,
    seed: int,
    images: Images,
    validation: Images,
    folder: Path,
    only: Collection[str],
    *,
    given: Mapping[str, nn.Module] | None = None,
    device: str = "cpu",
    say: Callable[[str], None] = lambda text: None,
    show_progress: bool = True,
) -> Iterator[Trained]:
    """The networks of a recipe one after the other, in its order; finished ones are taken up without training.

    Args:
        seed: of weights and training.
        folder: where networks are kept; one subfolder for each combination of model, options, training, data and
            seed, so that recipes share them.
        only: the rows that are wanted; those that they start from come too.
        given: networks of the caller's own by the name of their row, which are taken as they are.
        say: told what is being trained.
    """
    scale, done = recipe.scale[scale_name], dict[str, Trained]()
    wanted = set(only)
    for network in reversed(recipe.network):  # what a row needs stands above it
        if network.name in wanted and not (given and network.name in given):
            wanted |= {network.before, network.teacher}
    for network in (n for n in recipe.network if n.name in wanted):
        if given and network.name in given:
            done[network.name] = Trained(network.name, seed, given[network.name], {"epochs": 0, "best": -1})
            yield done[network.name]
            continue
        options, training = settings_of(network, scale, scale_name)
        own = seed + network.seed
        with forked(seed_for(own, "initial weights", network.model_at(scale_name))):
            model = build(network.model_at(scale_name), images.shape[1:], images.num_classes, **options)
        if network.before:
            source = done[network.before]
            checkpoint.load_into(model, checkpoint.tensors_of(source.model))
            made = Trained(network.name, own, model.eval(), source.facts, source.history)
        else:
            teacher = done[network.teacher].model if training.objective == "e-rsct" else None
            about = [model.description, training.told(), fingerprint_of(images), len(validation), own]
            place = folder / digest(about if teacher is None else [*about, teacher])[:16]
            say(f"training {network.name}, seed {own}")
            made = _one(network.name, own, model, training, images, validation, place, device, show_progress, teacher)
        done[network.name] = made
        yield made


def _one(
    name: str, seed: int, model: nn.Module, training: Training, images: Images, validation: Images, folder: Path,
    device: str, show_progress: bool, teacher: nn.Module | None = None,
) -> Trained:  # fmt: skip
    """A finished run is taken up with no epoch left to train."""
    home = None if teacher is None else next((p.device for p in teacher.parameters()), torch.device("cpu"))
    try:
        if teacher is not None:
            teacher.to(device)
        history = train(
            model, images, validation, epochs=training.epochs, batch=training.batch, lr=training.lr, seed=seed,
            out=folder, device=device, progress=show_progress, **parts_of(training, model, teacher),
        )  # fmt: skip
    finally:
        if teacher is not None:
            teacher.to(home)
    facts = {"epochs": len(history.epochs), "best": history.best, "validation": history.best_accuracy}
    return Trained(name, seed, model.eval(), facts, history.epochs)


def _whole_batch(attack: Attack) -> Attack:
    """Nobody leaves: every image is trained on."""
    return replace(attack, drop_fooled=False) if isinstance(attack, Descent) else attack


def parts_of(training: Training, model: nn.Module | None = None, teacher: nn.Module | None = None) -> dict[str, Any]:
    """The options of `train` that a recipe's training stands for; attacks on codes take the letters of the model's
    encoder, "e-rsct" needs the teacher."""

    def attacked(inner: TrainingObjective) -> TrainingObjective:
        return adversarial_by(attacks[0], training.tau, inner, start=training.start) if attacks else inner

    objective: TrainingObjective = ELBO() if training.elbo else Standard()
    attacks = [_whole_batch(parse_for(text, Linf(0.1), model)) for text in training.attacks()]
    if training.objective == "reinforce":
        objective = Reinforced()
    elif training.objective == "extra-class":
        objective = ExtraClass(attacks[0], training.tau, training.start)
    elif training.objective == "mixture":
        objective = Mixture(tuple(attacks), training.tau, training.start, objective)
    elif training.objective in NAMES:
        objective = temporal(training.objective, model, teacher, attacked)
    elif training.objective:
        objective = SETUPS[training.objective](objective).objective
    else:
        objective = attacked(objective)
    if training.l1 or training.l2:
        objective = Penalised(objective, training.l1, training.l2)
    return {
        "objective": objective,
        "optimizer": optimizer_named(training.optimizer, weight_decay=training.weight_decay),
        "schedule": parse_schedule(training.schedule, training.epochs) if training.schedule else None,
        "patience": training.patience or None,
        "augment": parse_augment(training.augment),
    }
