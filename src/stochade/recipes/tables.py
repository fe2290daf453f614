"""What a reproduction says, as text and as plain data: the paper's number, ours and the adaptive one side by side."""

from collections.abc import Sequence
from typing import Any

from stochade.evaluate.intervals import Estimate
from stochade.recipes.result import Reproduction, Row, budgets_of, claimed_number
from stochade.recipes.schema import Published
from stochade.report.document import Strip
from stochade.report.figures import Figure

NONE = "–"
EXPLAINING = ("masking", "incomplete")  # severities of findings that say why a number is too high, gravest first


def document(r: Reproduction, shown: Sequence[Figure | Strip] = ()) -> dict[str, Any]:
    """The whole result as JSON can hold it, with the numbers of the figures that are shown."""
    return {
        "schema": 1,
        "recipe": r.recipe.name,
        "scale": r.scale,
        "title": r.recipe.title,
        "paper": r.recipe.paper,
        "place": r.recipe.place,
        "claim": r.recipe.claim,
        "data": r.data,
        "audit": None if r.recipe.audit is None else r.recipe.audit.model_dump(),
        "budgets_times": r.settings.budgets,
        "flips_times": r.settings.flips,
        "rows": [_row(r, row) for row in r.rows],
        "published": [p.model_dump() for p in r.recipe.published],
        "printed": [p.model_dump() for p in r.recipe.printed],
        "transfer": None if r.matrix is None else _matrix(r),
        "figures": [_figure(item) for item in shown],
        "meta": r.meta,
    }


def _figure(item: Figure | Strip) -> dict[str, Any]:
    """The table behind a figure, or the captions of pictures."""
    told = {"title": item.title, "note": item.note}
    if isinstance(item, Strip):
        return told | {"captions": [caption for _, caption in item.images]}
    rows = [[c.as_dict() if isinstance(c, Estimate) else c for c in row] for row in item.rows]
    return told | {"columns": item.columns, "rows": rows}


def _row(r: Reproduction, row: Row) -> dict[str, Any]:
    found, claimed, printed = row.found, row.claimed, claimed_number(r.recipe, row.name)
    return {
        "network": row.name,
        "scores": [
            {"attack": attack, "budget": budget, "spread": row.spread.get((attack, budget))} | score.as_dict()
            for (attack, budget), score in row.scores.items()
        ],
        "published": None if printed is None else printed.model_dump(),
        "claimed": None if claimed is None else claimed.as_dict(),
        "adaptive": None if found is None else found.as_dict(),
        "reasons": explained(row),
        "training": row.facts,
        "audits": [
            {"command": a.command, "clean": a.clean.as_dict(), "claimed": a.claimed.as_dict(),
             "found": a.found.as_dict(), "threat": a.threat, "findings": [f.as_dict() for f in a.findings]}
            for a in row.audits
        ],
    }  # fmt: skip


def _matrix(r: Reproduction) -> dict[str, Any]:
    assert r.matrix is not None
    cells = {f"{s} -> {t}": r.matrix.score(s, t).as_dict() for s, t in r.matrix.records}
    return {"attack": r.matrix.attack, "cells": cells, "stronger_from_outside": r.matrix.stronger_from_outside()}


def reasons_of(findings: list[dict[str, Any]]) -> list[str]:
    """Titles of the findings that say why the claimed accuracy is too high, one for each check over all seeds: a way
    that is hidden first, then attacks that stopped too early."""
    explaining = [f for f in findings if f["severity"] in EXPLAINING]
    told: dict[str, str] = {}
    for finding in sorted(explaining, key=lambda f: EXPLAINING.index(f["severity"])):
        told.setdefault(finding["check"], finding["title"])
    return list(told.values())


def explained(row: Row) -> list[str]:
    """`reasons_of` all audits of a row."""
    return reasons_of([f.as_dict() for a in row.audits for f in a.findings])


def printed(r: Reproduction, network: str, what: str, attack: str = "", budget: float | None = None) -> str:
    """A number of the paper as it stands there, or a dash."""
    found = published(r, network, what, attack, budget)
    if found is None:
        return NONE
    return f"{found.value:g}" + (f" ± {found.spread:g}" if found.spread is not None else "")


def published(
    r: Reproduction, network: str, what: str, attack: str = "", budget: float | None = None, source: str = ""
) -> Published | None:
    """The paper's number for one cell."""
    for p in r.recipe.published:
        if (p.network, p.what, p.source) == (network, what, source) and (
            what != "attack" or (p.attack, p.budget) == (attack, budget)
        ):
            return p
    return None


def cell(score: Estimate | None, spread: float | None = None) -> str:
    """`98.3 [97.4, 99.0]`, in percent, with the standard deviation over seeds where there are several."""
    if score is None or score.value is None:
        return NONE
    text = f"{100 * score.value:.1f}"
    if spread is not None:
        text += f" ± {100 * spread:.1f}"
    if score.low is not None and score.high is not None:
        text += f" [{100 * score.low:.1f}, {100 * score.high:.1f}]"
    return text


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table as lines."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines]


Named = tuple[str, list[str], list[list[str]], str]  # heading, columns, rows, note


def summary_table(r: Reproduction) -> Named:
    """Clean accuracy, accuracy under the paper's attack, and the lowest accuracy found."""
    about = r.recipe.audit
    head, key = ["network", "clean, paper", "clean, here"], None
    if about is not None:
        key = next(((a.name, b) for a in r.recipe.attack for b in a.budgets if _is(a, about, b)), None)
        label = f"{about.attack}, {about.norm} {about.budget:g}"
        head += [f"{label}, paper", f"{label}, here", "adaptive, here"]
    rows = []
    for row in r.rows:
        cells = [row.name, printed(r, row.name, "clean"), cell(*_at(row, ("clean", 0.0)))]
        if about is not None:
            here = _at(row, key) if key else (row.claimed, None)
            paper = printed(r, row.name, "attack", *key) if key else NONE
            cells += [paper, cell(*here), cell(row.found)]
        rows.append(cells)
    times = r.settings.budgets
    notes = [] if times == 1 else [f"Budgets here are {times:g} times those of the paper, which the tables name."]
    if r.settings.flips != 1 and any(a.norm == "flips" for a in r.recipe.attack):
        ks = sorted({pair for a in r.recipe.attack if a.norm == "flips" for pair in budgets_of(a, r.settings)})
        told = ", ".join(f"{here:g} for its {paper:g}" for paper, here in ks)
        notes.append(f"Flips per frame here: {told}, because images are smaller.")
    return "Published, replicated, adaptive", head, rows, " ".join(notes)


def budget_tables(r: Reproduction) -> list[Named]:
    """One table for each attack with several budgets, and one for all that have a single one (unless the summary
    shows it); rows of the paper where it printed numbers."""
    found, about = [], r.recipe.audit
    single = [a for a in r.recipe.attack if len(a.budgets) == 1]
    if len(single) > 1 or not all(about is not None and _is(a, about, a.budgets[0]) for a in single):
        columns = [f"{a.name}, {a.norm} {a.budgets[0]:.4g}" for a in single]
        rows = _attacked(r, [(a.name, a.budgets[0]) for a in single])
        found.append(("Accuracy under every attack", ["network", *columns], rows, ""))
    for attack in r.recipe.attack:
        if len(attack.budgets) > 1:
            rows = _attacked(r, [(attack.name, b) for b in attack.budgets])
            columns = ["network", *[f"{b:g}" for b in attack.budgets]]
            found.append((f"{attack.name} ({attack.norm})", columns, rows, ""))
    return found


def _attacked(r: Reproduction, keys: list[tuple[str, float]]) -> list[list[str]]:
    """Ours, and below it the paper's where it printed any."""
    rows = []
    for row in r.rows:
        rows.append([row.name, *[cell(*_at(row, key)) for key in keys]])
        told = [printed(r, row.name, "attack", *key) for key in keys]
        if any(t != NONE for t in told):
            rows.append([f"{row.name}, paper", *told])
    return rows


def gap_tables(r: Reproduction) -> list[Named]:
    """Training and test accuracy on clean images, where training accuracy was measured."""
    if not any(("train", 0.0) in row.scores for row in r.rows):
        return []
    rows = [
        [
            row.name, printed(r, row.name, "train"), cell(*_at(row, ("train", 0.0))),
            printed(r, row.name, "clean"), cell(*_at(row, ("clean", 0.0))),
        ]
        for row in r.rows
    ]  # fmt: skip
    head = ["network", "train, paper", "train, here", "test, paper", "test, here"]
    return [("Training and test accuracy on clean images", head, rows, "")]


def transfer_tables(r: Reproduction) -> list[Named]:
    """Accuracy of every target (columns) on the examples of every source (rows), the paper's in brackets."""
    if r.matrix is None:
        return []
    rows = []
    for source in r.matrix.sources:
        cells = [source]
        for target in r.matrix.targets:
            told = published(r, target, "transfer", source=source) if source in r.matrix.targets else None
            text = cell(r.matrix.score(source, target))
            cells.append(text if told is None else f"{text} (paper {told.value:g})")
        rows.append(cells)
    note = " ".join(
        f"Examples made on {s} beat {t}'s own: its gradient hides the way."
        for s, t in r.matrix.stronger_from_outside()
    )
    heading = f"Transfer: {r.recipe.transfer}, linf {r.recipe.transfer_budget:g}"
    return [(heading, ["made on", *r.matrix.targets], rows, note)]


def printed_tables(r: Reproduction) -> list[Named]:
    """The paper's own tables that no network of the recipe answers to, as they stand there."""
    found = []
    for name in dict.fromkeys(p.table for p in r.recipe.printed):
        mine = [p for p in r.recipe.printed if p.table == name]
        columns = list(dict.fromkeys(column for p in mine for column in p.values))
        rows = [[p.row, *[f"{p.values[c]:.10g}" if c in p.values else NONE for c in columns]] for p in mine]
        notes = " ".join(dict.fromkeys(p.note for p in mine if p.note))
        found.append((f"{name} of the paper", ["", *columns], rows, notes))
    return found


def _is(attack: Any, about: Any, budget: float) -> bool:
    return (attack.attack, attack.norm, budget) == (about.attack, about.norm, about.budget)


def _at(row: Row, key: tuple[str, float]) -> tuple[Estimate | None, float | None]:
    return row.scores.get(key), row.spread.get(key)


def all_tables(r: Reproduction) -> list[Named]:
    """Every table that a result has; of a recipe without networks those of the paper alone."""
    measured = [summary_table(r), *budget_tables(r), *gap_tables(r), *transfer_tables(r)] if r.rows else []
    return [*measured, *printed_tables(r)]


READING = (
    "Accuracies in percent, here with 95 % intervals (± is the standard deviation over trainings, where there are "
    "several). Every accuracy under attack is an upper bound; the adaptive one takes for each image the attack that "
    "did best on other draws than those it is scored on, so on noisy rows it may come out above a single attack."
)


def _told(item: Figure | Strip) -> list[str]:
    """A figure's numbers, or what is on pictures, as Markdown."""
    lines = ["", f"## {item.title}", ""]
    if isinstance(item, Strip):
        lines += [f"Pictures: {'; '.join(caption for _, caption in item.images)}."]
    elif item.rows:
        text = [[cell(c) if isinstance(c, Estimate) else str(c) for c in row] for row in item.rows]
        lines += table(item.columns, text)
    else:
        lines += ["A picture without numbers, on the page."]
    return [*lines, *(["", item.note] if item.note else [])]


def markdown(r: Reproduction, shown: Sequence[Figure | Strip] = ()) -> str:
    """The result as a page of Markdown, with the numbers of the figures that are shown."""
    recipe, facts = r.recipe, r.meta
    lines = [
        f"# {recipe.title}",
        "",
        f"{recipe.paper}, {recipe.place}. Scale {r.scale}: {r.data}, {facts['train']} training images, "
        f"{facts['test']} test images, {facts['draws']} draws each, {facts['seeds']} training(s) per row.",
        "",
        f"Claim: {recipe.claim}",
        *(["", recipe.notes] if recipe.notes else []),
        "",
        READING,
    ]
    for heading, columns, rows, note in all_tables(r):
        lines += ["", f"## {heading}", "", *table(columns, rows), *(["", note] if note else [])]
    for item in shown:
        lines += _told(item)
    reasons = [(row.name, title) for row in r.rows for title in explained(row)]
    if reasons:
        lines += ["", "## Why claims are too high", "", *[f"- {name}: {title}." for name, title in reasons]]
    told = {"command": facts["command"]} | provenance_of(r)
    return "\n".join([*lines, "", "## Provenance", "", *[f"- {k}: {v}" for k, v in told.items()]]) + "\n"


def provenance_of(r: Reproduction) -> dict[str, Any]:
    """Where the numbers come from, in one flat table."""
    trained = {row.name: _trained(row.facts[0]) for row in r.rows}
    told = {"seed": r.meta["seed"], "audit effort": r.meta["effort"], "data": r.data, "training": trained}
    measured = {name: ", ".join(found) for name, found in r.meta.get("revisions", {}).items() if found}
    return told | ({"measured at": measured} if measured else {}) | r.meta["provenance"]


def _trained(facts: dict[str, Any]) -> str:
    return f"{facts['epochs']} epochs, best {facts['best'] + 1}" if facts["epochs"] else "given"


def text(r: Reproduction) -> str:
    """The summary for a terminal."""
    if not r.rows:
        return f"{r.recipe.title} ({r.recipe.paper}, {r.recipe.place}): see the page"
    heading, columns, rows, note = summary_table(r)
    widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [columns, *rows]]
    return "\n".join(
        [f"{r.recipe.title} ({r.recipe.paper}, {r.recipe.place}): {heading.lower()}", *lines, *filter(None, [note])]
    )
