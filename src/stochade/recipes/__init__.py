"""Recipes: every table and figure of the papers as one command, `stochade reproduce NAME`."""

from stochade.recipes.catalogue import load, names
from stochade.recipes.reproduce import reproduce
from stochade.recipes.result import Reproduction, Row
from stochade.recipes.schema import SCALES, Recipe

__all__ = ["SCALES", "Recipe", "Reproduction", "Row", "load", "names", "reproduce"]
