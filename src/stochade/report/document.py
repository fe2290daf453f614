"""A page of tables, plots and pictures in the dress of the reports, for results that are no single audit."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import stochade
from stochade.files import write_atomically
from stochade.report import figures as plots_of
from stochade.report.figures import Figure
from stochade.report.html import asset, content_policy, jsonable, plotly_source, template_environment


@dataclass(frozen=True)
class Table:
    """A table of text cells; the first column names the row."""

    heading: str
    columns: list[str]
    rows: list[list[str]]
    note: str = ""


@dataclass(frozen=True)
class Strip:
    """Pictures in a row: (data URI, caption) each."""

    title: str
    images: list[tuple[str, str]]
    note: str = ""


@dataclass(frozen=True)
class Document:
    """What a page shows, from top to bottom."""

    title: str
    eyebrow: str = ""
    facts: list[str] = field(default_factory=list)
    intro: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    reasons: list[tuple[str, str]] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    command: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, out: str | Path) -> Path:
        """One self-contained HTML file, as `report.build` writes them; replaced in one step. Returns its path."""
        from markupsafe import Markup

        plots = plots_of.plot_document(self.figures)
        script, plotly = asset("page.js"), plotly_source() if plots else ""
        text = (
            template_environment()
            .get_template("document.html")
            .render(
                **{name: getattr(self, name) for name in self.__dataclass_fields__ if name != "provenance"},
                provenance=jsonable(self.provenance),
                policy=content_policy([script, plotly]),
                css=Markup(asset("page.css")),
                script=Markup(script),
                plotly=Markup(plotly),
                plots=jsonable(plots),
                version=stochade.__version__,
            )
        )
        out = Path(out)
        write_atomically(out, text.encode())
        return out
