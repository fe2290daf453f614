"""Reports: one offline HTML file, tables for papers and a few lines for the terminal, all from records."""

from stochade.report.html import build
from stochade.report.summary import summary
from stochade.report.tables import table

__all__ = ["build", "summary", "table"]
