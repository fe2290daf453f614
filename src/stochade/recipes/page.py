"""The page of a reproduction: tables, figures, provenance; and the files that a run leaves."""

from pathlib import Path

from stochade.evaluate.store import write_json
from stochade.files import write_atomically
from stochade.recipes import tables
from stochade.recipes.result import Reproduction
from stochade.recipes.views import VIEWS
from stochade.report.document import Document, Strip, Table
from stochade.report.figures import Figure


def save(r: Reproduction, folder: str | Path) -> Path:
    """Write `result.json`, `table.md` and `page.html` into a folder; returns the page's path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shown = views_of(r)
    write_json(folder / "result.json", tables.document(r, shown))
    write_atomically(folder / "table.md", tables.markdown(r, shown).encode())
    return page(r, shown).write(folder / "page.html")


def views_of(r: Reproduction) -> list[Figure | Strip]:
    """The recipe's figures and pictures, but for those that its scale hides."""
    return [item for name in r.recipe.views if name not in r.settings.hidden for item in VIEWS[name](r)]


def page(r: Reproduction, shown: list[Figure | Strip]) -> Document:
    """The result as a page, with these figures."""
    recipe, facts = r.recipe, r.meta
    found = tables.all_tables(r)
    return Document(
        title=recipe.title,
        eyebrow=f"{recipe.paper}, {recipe.place}",
        facts=[f"scale {r.scale}", r.data, f"{facts['train']} training images", f"{facts['test']} test images",
               f"{facts['draws']} draws each", f"seeds: {facts['seeds']}"],
        intro=[f"Claim: {recipe.claim}", *([recipe.notes] if recipe.notes else []), tables.READING],
        tables=[Table(heading, columns, rows, note) for heading, columns, rows, note in found],
        reasons=[(row.name, title) for row in r.rows for title in tables.explained(row)],
        figures=[item for item in shown if isinstance(item, Figure)],
        strips=[item for item in shown if isinstance(item, Strip)],
        command=facts["command"],
        provenance=tables.provenance_of(r),
    )  # fmt: skip
