"""Runs a recipe: trains its networks, attacks them as the paper does, audits them, and puts the three numbers of
every row side by side."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from stochade import data as images_of
from stochade.attacks.registry import parse_attack
from stochade.audit import audit
from stochade.audit.plan import EFFORTS, Effort
from stochade.audit.result import Audit
from stochade.data import Images
from stochade.data.cluttered import cluttered
from stochade.describe import provenance
from stochade.errors import UsageError
from stochade.evaluate import evaluate
from stochade.evaluate.records import CLEAN, Records
from stochade.evaluate.store import slug
from stochade.evaluate.transfer import TransferMatrix, transfer_matrix
from stochade.models.encoded import Aggregated
from stochade.nn import discrete_layers
from stochade.recipes import catalogue
from stochade.recipes.networks import Trained, trained
from stochade.recipes.result import Reproduction, Row, budgets_of, claimed_number, named, pooled
from stochade.recipes.schema import NORMS, SCALES, Recipe, Scale
from stochade.recipes.views import VIEWS

EFFORT = {
    "smoke": Effort(
        steps=5, draws=2, pairs=3, evolution_steps=3, samples=5, queries=10, curves=False
    ),
    "brief": Effort(
        steps=20, draws=5, pairs=10, evolution_steps=10, samples=20, search=1000, searched=24, queries=100,
        curves=False,
    ),
    "small": Effort(
        steps=40, draws=5, pairs=10, evolution_steps=20, samples=20, search=1500, searched=24, queries=200,
        curves=False,
    ),
} | EFFORTS  # fmt: skip


def reproduce(
    recipe: str | Path | Recipe,
    scale: str = "small",
    *,
    out: str | Path | None = None,
    data: str | None = None,
    seed: int = 0,
    seeds: int | None = None,
    only: list[str] | None = None,
    download: bool = False,
    models: dict[str, nn.Module] | None = None,
    workers: int = 0,
    device: str = "cpu",
    show_progress: bool = True,
) -> Reproduction:
    """Train, attack and audit what a recipe names; resumable with the same `out`.

    Args:
        recipe: a name (`stochade ls recipes`), a `.toml` file, or a Recipe.
        scale: "smoke" (seconds, digits), "small" (minutes) or "paper" (the paper's own setting).
        out: folder for networks, records and audits; default runs/reproduce.
        data: other images than the scale's: a name or a path.
        seed: of everything; networks of further seeds use seed + 1, seed + 2, ...
        seeds: networks per row, in place of the scale's number.
        only: names of rows; others are left out (their published numbers stay).
        download: whether images that are nowhere may be downloaded by name.
        models: networks of your own by the name of the row whose network they replace, in evaluation mode; they are
            attacked and audited as they are. With one for every row no training images are needed.
        workers, device, show_progress: as for `evaluate`.

    Raises:
        UsageError: an unknown recipe, scale or row, or one that is not there at this scale.
        DataError: images that are missing or of another kind.
    """
    found = recipe if isinstance(recipe, Recipe) else catalogue.load(recipe)
    if scale not in SCALES or scale not in found.scale:
        raise UsageError(f"a scale of {found.name}: {', '.join(found.scale)}", repr(scale))
    for name in found.views:
        if name not in VIEWS:
            raise UsageError(f"views among {', '.join(VIEWS)}", repr(name), f"in the recipe {found.name}")
    settings = found.scale[scale]
    count = settings.seeds if seeds is None else seeds
    if not isinstance(count, int) or count < 1:
        raise UsageError("at least one seed", repr(seeds))
    if isinstance(only, str):
        only = [only]
    if only:
        unknown = [name for name in only if name not in [n.name for n in found.network]]
        if unknown:
            raise UsageError(f"rows of {found.name}: {', '.join(n.name for n in found.network)}", repr(unknown[0]))
    unknown = [name for name in models or {} if name not in [n.name for n in found.network]]
    if unknown:
        raise UsageError(f"models for rows of {found.name}: {', '.join(n.name for n in found.network)}", unknown[0])
    root = Path("runs/reproduce") if out is None else Path(out)
    source = data or settings.data
    alone = models is not None and all(n.name in models for n in found.network if not only or n.name in only)
    splits = ("test", "test") if alone else ("train", "validation")
    train_set = _some(images_of.load(source, splits[0], download=download), settings.train)
    held_out = max(50, settings.train // 5) if settings.train else 0
    validation = _some(images_of.load(source, splits[1], download=download), held_out)
    test = _some(images_of.load(source, "test", download=download), settings.test)
    if settings.clutter:
        parts_of_data = (train_set, validation, test)
        train_set, validation, test = (
            cluttered(part, settings.clutter, seed=number) for number, part in enumerate(parts_of_data)
        )
    place = root / f"{found.name}-{scale}"
    options: dict[str, Any] = {"workers": workers, "device": device, "show_progress": show_progress, "seed": seed}
    rows = {n.name: Row(n.name) for n in found.network if not only or n.name in only}
    parts: dict[str, list[dict[str, Records]]] = {name: [] for name in rows}
    first: dict[str, Trained] = {}

    def say(text: str) -> None:
        if show_progress:
            print(f"{found.name}: {text}", file=sys.stderr, flush=True)

    for s in range(seed, seed + count):
        for net in trained(
            found, scale, s, train_set, validation, root / "networks", rows, given=models, device=device, say=say,
            show_progress=show_progress,
        ):  # fmt: skip
            net = _aggregated(found, net, models)
            first.setdefault(net.name, net)
            if net.name not in rows:
                continue  # only there because another row starts from it
            kind = "given" if models and net.name in models else s
            row, folder = rows[net.name], place / f"{slug(net.name)}-{kind}"
            row.facts.append(net.facts)
            say(f"attacking {net.name}, seed {s}")
            parts[net.name].append(_attacked(found, settings, net, test, train_set, folder, options))
            if _audits(found, settings, net.name):
                say(f"auditing {net.name}, seed {s}")
                row.audits.append(_audit(found, settings, net, test, folder / "audit", options))
    for name, row in rows.items():
        _score(found, row, parts[name])
    matrix = _transfer(found, settings, first, rows, test, place / "transfer", options)
    facts = {
        "train": len(train_set), "validation": len(validation), "test": len(test), "seeds": count, "seed": seed,
        "draws": settings.draws, "effort": settings.effort,
        "revisions": {name: _revisions(parts[name], row) for name, row in rows.items()},
        "provenance": {k: v for k, v in provenance().items() if k != "command"},  # the one below names no folders
        "command": shlex.join(
            ["stochade", "reproduce", found.name, "--scale", scale, *(["--seeds", str(seeds)] if seeds else []),
             *(["--seed", str(seed)] if seed else []), *(["--data", Path(data).name] if data else []),
             *(["--rows", *rows] if only else []),
             *(["--models", *(f"{name}=TARGET" for name in models)] if models else [])]
        ),
    }  # fmt: skip
    records = {name: all_seeds[0]["test"] for name, all_seeds in parts.items()}
    return Reproduction(
        found, scale, list(rows.values()), matrix, test.note or test.name, facts, first, records, test, validation,
        show_progress, train_set,
    )  # fmt: skip


def _revisions(parts: list[dict[str, Records]], row: Row) -> list[str]:
    """The commits at which a row's records were measured, in short, whatever the commit of the command that puts them
    together; of runs from before sessions were listed, that of the last session."""
    kept = [records for seed in parts for records in seed.values()] + [audit.records for audit in row.audits]
    facts = [records.meta.get("provenance", {}) for records in kept]
    told = [t for f in facts for t in f.get("git_revisions") or [f.get("git_revision")]]
    return sorted({f"{t[:7]}{'+' * t.endswith('+')}" for t in told if t})


def _some(images: Images, count: int) -> Images:
    return images.take(count, seed=0) if count and count < len(images) else images


def _aggregated(recipe: Recipe, net: Trained, given: dict[str, nn.Module] | None) -> Trained:
    """The network with as many encodings averaged as its row says; a given one as it is."""
    count = next(n.encodings for n in recipe.network if n.name == net.name)
    if count == 1 or (given and net.name in given):
        return net
    return replace(net, model=Aggregated(net.model, count).eval())  # type: ignore[arg-type]


def _attacked(
    recipe: Recipe, settings: Scale, net: Trained, test: Images, train_set: Images, folder: Path, options: dict
) -> dict[str, Records]:
    """Records of the test images under every attack, and of as many training images without one."""
    attacks = {
        named(a, paper): parse_attack(_seen_by(a.attack, net.model), a.threat(here, net.model))
        for a in recipe.attack
        for paper, here in budgets_of(a, settings)
    }
    told = {"draws": settings.draws, "meta": {"target": net.name, "recipe": recipe.name, "data": test.note}} | options
    parts = {"test": evaluate(net.model, test, None, attacks, out=folder / "test", **told)}
    if any(p.what == "train" for p in recipe.published) or "train-test-gap" in recipe.views:
        seen = _some(train_set, len(test))
        parts["train"] = evaluate(net.model, seen, None, {}, out=folder / "train", **told)
    return parts


def _seen_by(attack: str, model: Any) -> str:
    """The attack without backwards and forwards that no layer of this network declares: a row that stands beside a
    defence for comparison is attacked through its own gradient."""
    layers = discrete_layers(model).values()
    known = {
        "backward": {name for layer in layers for name in layer.substitutes},
        "forward": {name for layer in layers for name in layer.relaxed},
    }
    words = (word.partition("=") for word in attack.split())
    return " ".join("".join(w) for w in words if w[0] not in known or w[2] in known[w[0]])


def _score(recipe: Recipe, row: Row, parts: list[dict[str, Records]]) -> None:
    """Scores over all seeds, and how much the seeds differ."""
    keys = {named(a, budget): (a.name, budget) for a in recipe.attack for budget in a.budgets}
    for part in parts[0]:
        for attack in parts[0][part].attacks:
            key = ("clean" if part == "test" else "train", 0.0) if attack == CLEAN else keys[attack]
            rights = [p[part].right(attack) for p in parts]
            row.scores[key] = pooled(rights, [p[part].noise_block() for p in parts])
            row.spread[key] = float(np.std([r.mean() for r in rights], ddof=1)) if len(rights) > 1 else None


def _audits(recipe: Recipe, settings: Scale, name: str) -> bool:
    network = next(n for n in recipe.network if n.name == name)
    return recipe.audit is not None and network.audited and settings.effort != "none"


def _audit(recipe: Recipe, settings: Scale, net: Trained, test: Images, folder: Path, options: dict) -> Audit:
    about = recipe.audit
    assert about is not None
    budget = about.budget if about.norm == "l0" else about.budget * settings.budgets
    threat = NORMS[about.norm](int(budget) if about.norm == "l0" else budget)
    printed = claimed_number(recipe, net.name)
    claim = printed.value / 100 if printed and printed.value <= 100 else None
    return audit(
        net.model, _some(test, settings.audited), None, threat, effort=EFFORT[settings.effort], draws=settings.draws,
        claim=claim, claim_attack=parse_attack(about.attack, threat),  # type: ignore[arg-type]
        out=folder, meta={"target": net.name, "recipe": recipe.name, "data": test.note}, **options,
    )  # fmt: skip


def _transfer(
    recipe: Recipe, settings: Scale, first: dict[str, Trained], rows: dict[str, Row], test: Images, folder: Path,
    options: dict,
) -> TransferMatrix | None:  # fmt: skip
    if not recipe.transfer or len(rows) < 2:
        return None
    budget = (recipe.transfer_budget or 0) * settings.budgets
    attack = parse_attack(recipe.transfer, NORMS["linf"](budget))  # type: ignore[arg-type]
    models = {name: first[name].model for name in rows}
    return transfer_matrix(models, test, None, attack, draws=settings.draws, out=folder, **options)
