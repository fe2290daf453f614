"""The recipes that come with the library, and those in files of your own."""

import difflib
import tomllib
from functools import cache
from importlib import resources
from pathlib import Path

from stochade.errors import UsageError
from stochade.recipes.schema import Recipe, checked


@cache
def _packaged() -> dict[str, str]:
    folder = resources.files("stochade.recipes").joinpath("library")
    found = {entry.name.removesuffix(".toml"): entry for entry in folder.iterdir() if entry.name.endswith(".toml")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def names() -> list[str]:
    """Names of the recipes that come with the library."""
    return list(_packaged())


def load(name: str | Path) -> Recipe:
    """A recipe by name, or from a `.toml` file.

    Raises:
        UsageError: no such recipe or file, text that is no TOML, unknown keys or impossible values.
    """
    text = str(name)
    if text.endswith(".toml"):
        path = Path(text).expanduser()
        if not path.is_file():
            raise UsageError("a recipe file that exists", text, "`stochade ls recipes` lists the recipes by name")
        return parse(path.read_text(encoding="utf-8"), path.stem, path.name)
    if text not in _packaged():
        near = difflib.get_close_matches(text, _packaged(), n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else "`stochade ls recipes` lists them"
        raise UsageError("a recipe by name, or a .toml file", repr(text), hint)
    return parse(_packaged()[text], text, f"{text}.toml")


def parse(text: str, name: str, place: str) -> Recipe:
    """The recipe in a TOML text; `place` is what errors call it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as problem:
        raise UsageError(f"TOML in {place}", str(problem), "see the recipes in stochade/recipes/library") from None
    return checked({"name": name} | document, place)
