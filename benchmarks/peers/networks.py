"""The four networks that attacks are compared on: MNIST and CIFAR-10 (JPEG), undefended and adversarially trained.

    .venv/bin/python benchmarks/peers/networks.py [names]

Trains what is not yet cached in .data/benchmarks (one thread, fixed seeds, taken up again after an interruption; two
to fifteen minutes each) and says how accurate each network is. Adversarial training is PGD's (Madry et al. 2018):
every batch is replaced by linf PGD images, whose budget rises over the first epochs. Training uses plain torch only,
so that no attack that is compared has a hand in it; weights are .npz files that either environment reads.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from models import ColourNetwork, Network

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".data" / "benchmarks"
BATCH = 128


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, and the budgets at which it is attacked.

    Attributes:
        data: folder of the data set. about: for tables.
        eps: linf budget that is usual for the data. small: a budget at which an undefended network is neither
            whole nor broken; the same as eps where training was adversarial.
        train_eps: linf budget of the training images; 0: no attack. steps: PGD steps of adversarial training.
        epochs, rate: of Adam, with a one-cycle schedule where `cycle`.
        flips: whether images are mirrored at random.
    """

    data: str
    about: str
    build: Callable[[], nn.Module]
    eps: float
    small: float
    train_eps: float = 0.0
    steps: int = 0
    epochs: int = 2
    rate: float = 1e-3
    cycle: bool = False
    flips: bool = False
    seed: int = 0

    def digest(self) -> str:
        text = repr([self.build.__name__, self.train_eps, self.steps, self.epochs, self.rate, self.cycle, self.flips])
        return hashlib.sha256(f"{text} {self.data} {self.seed}".encode()).hexdigest()[:8]


COLOUR = {"data": "cifar10", "build": ColourNetwork, "eps": 8 / 255, "cycle": True, "flips": True}
RECIPES: dict[str, Recipe] = {
    "mnist": Recipe("mnist", "MNIST, undefended", Network, 0.3, 0.1),
    "mnist-adversarial": Recipe(
        "mnist", "MNIST, adversarially trained (linf 0.3)", Network, 0.3, 0.3, 0.3, 7, 5, 2e-3, True
    ),
    "cifar10": Recipe(about="CIFAR-10 (JPEG), undefended", small=1 / 255, epochs=8, rate=2e-3, **COLOUR),
    "cifar10-adversarial": Recipe(
        about="CIFAR-10 (JPEG), adversarially trained (linf 8/255)", small=8 / 255, train_eps=8 / 255, steps=3,
        epochs=6, rate=2e-3, **COLOUR,
    ),
}  # fmt: skip


def data_folder(name: str) -> Path | None:
    """$STOCHADE_DATA/<name>, then ../shared/data/<name>; None where there is neither."""
    for base in (os.environ.get("STOCHADE_DATA"), ROOT.parent / "shared" / "data"):
        if base and (Path(base) / name).is_dir():
            return Path(base) / name
    return None


def examples(name: str, split: str) -> tuple[Tensor, Tensor]:
    """All images and labels of a split (needs stochade).

    Raises:
        SystemExit: the data are not there.
    """
    from stochade.data import load

    folder = data_folder(name)
    if folder is None:
        raise SystemExit(f"{name} was not found: set STOCHADE_DATA to the folder that holds {name}/")
    images = load(folder, split, validation=0 if split == "train" else None, progress=False)
    return images[: len(images)]


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int, generator: torch.Generator) -> Tensor:
    """Training images: linf PGD from a random start, steps of 2.5 eps / steps."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    best = (x + eps * (2 * torch.rand(x.shape, generator=generator) - 1)).clamp(0, 1)
    for _ in range(steps):
        best.requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(best), y), best)
        step = best.detach() + 2.5 * eps / steps * gradient.sign()
        best = torch.clamp(torch.maximum(torch.minimum(step, x + eps), x - eps), 0, 1)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return best


def fit(recipe: Recipe, part: Path) -> nn.Module:
    """Train, keeping the state after every epoch in `part`."""
    torch.manual_seed(recipe.seed)
    model = recipe.build()
    images, labels = examples(recipe.data, "train")
    batches = -(-len(images) // BATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    total = recipe.epochs * batches
    if recipe.cycle:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=total, pct_start=0.2)
    else:
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=total)
    generator, first = torch.Generator().manual_seed(recipe.seed), 0
    if part.exists():
        state = torch.load(part, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        generator.set_state(state["generator"])
        first = state["epoch"]
    for epoch in range(first, recipe.epochs):
        start, losses = time.perf_counter(), []
        for index, rows in enumerate(torch.randperm(len(images), generator=generator).split(BATCH)):
            x, y = images[rows], labels[rows]
            if recipe.flips:
                mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
                x = torch.where(mirrored, x.flip(3), x)
            if recipe.train_eps:
                ramp = min(1.0, (epoch + index / batches) / (0.3 * recipe.epochs))
                x = pgd(model, x, y, ramp * recipe.train_eps, recipe.steps, generator)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1}
        torch.save(state | {"schedule": schedule.state_dict(), "generator": generator.get_state()}, f"{part}.tmp")
        os.replace(f"{part}.tmp", part)
        took = time.perf_counter() - start
        print(
            f"{recipe.about}: epoch {epoch + 1} of {recipe.epochs}, loss {np.mean(losses):.3f}, {took:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    model.zero_grad(set_to_none=True)
    return model


def read(path: Path, build: Callable[[], nn.Module]) -> nn.Module:
    """A network from its .npz, in eval mode."""
    model = build()
    with np.load(path, allow_pickle=False) as file:
        model.load_state_dict({key: torch.from_numpy(file[key]) for key in file.files})
    return model.eval()


def write(path: Path, model: nn.Module) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value.numpy() for key, value in model.state_dict().items()})


def network(name: str) -> nn.Module:
    """One of RECIPES, trained unless it is cached."""
    recipe = RECIPES[name]
    path = CACHE / f"{name}-{recipe.digest()}.npz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        print(f"training {recipe.about} (once) ...", file=sys.stderr, flush=True)
        part = path.with_suffix(".part")
        write(path, fit(recipe, part))
        part.unlink(missing_ok=True)
    return read(path, recipe.build)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)]
    return float(sum(right)) / len(labels)


def problem(name: str, count: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """The network, the first `count` test images, their labels, and the accuracy on the whole test set."""
    model = network(name)
    images, labels = examples(RECIPES[name].data, "test")
    return model, images[:count].clone(), labels[:count].clone(), accuracy(model, images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(RECIPES)} (default: all)")
    torch.set_num_threads(1)
    names = parser.parse_args().names or list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"expected names out of {', '.join(RECIPES)}, got {', '.join(unknown)}")
    for name in names:
        recipe = RECIPES[name]
        model, images, labels, clean = problem(name, 1000)
        attacked = pgd(model, images, labels, recipe.eps, 20, torch.Generator().manual_seed(1))
        left = accuracy(model, attacked, labels)
        print(f"{name}: clean {100 * clean:.2f} % of 10,000; PGD-20 at {recipe.eps:.4f} {100 * left:.1f} % of 1000")


if __name__ == "__main__":
    main()
