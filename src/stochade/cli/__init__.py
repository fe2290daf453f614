"""The command line: `stochade audit | train | attack | report | diff | ls | doctor`."""

from stochade.cli.main import main

__all__ = ["main"]
