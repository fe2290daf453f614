"""Imports go one way, heavy packages stay out of `import stochade`, and nothing needs torchvision."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src" / "stochade"

GROUND = {"errors", "randomness", "describe", "progress", "files"}
ALLOWED = {
    "errors": set(),
    "randomness": {"errors"},
    "describe": {"native"},  # which kernels run belongs to a result's provenance
    "progress": set(),
    "files": set(),
    "native": {"errors", "files"},
    "nn": GROUND | {"native"},
    "models": GROUND | {"nn", "attacks"},  # known-answer models state their truth for a threat
    "data": GROUND | {"nn.discrete"},
    "attacks": GROUND | {"nn.discrete"},
    "evaluate": GROUND | {"nn.discrete", "attacks", "native"},
    "audit": GROUND | {"nn.discrete", "attacks", "evaluate"},
    "report": GROUND | {"evaluate", "audit", "certify"},
    "metrics": GROUND | {"nn"},
    "adapters": GROUND | {"nn", "attacks"},
    "certify": GROUND | {"nn", "attacks", "models", "evaluate"},
    "detect": GROUND | {"nn.discrete", "attacks", "evaluate", "report"},
    "registry": GROUND | {"nn", "models"},
    "checkpoint": GROUND | {"nn.discrete", "registry", "models"},
    "train": GROUND | {"nn", "data", "attacks", "checkpoint"},
    "recipes": GROUND
    | {"nn", "models", "data", "attacks", "registry", "checkpoint", "train", "evaluate", "audit", "report"}
    | {"metrics"},
}
ONLY = {("models", "attacks"): {"models/known_answer.py"}}
TOP = {"__init__", "__main__", "cli", "targets", "listing"}  # may import everything


def imports_of(path: Path) -> list[str]:
    """Dotted stochade modules that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "stochade":
                found += [alias.name for alias in node.names if alias.name != "__version__"]
            elif node.module and node.module.startswith("stochade."):
                found.append(node.module.removeprefix("stochade."))
        elif isinstance(node, ast.Import):
            found += [a.name.removeprefix("stochade.") for a in node.names if a.name.startswith("stochade.")]
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    place = str(path.relative_to(ROOT))
    package = place.split("/")[0].removesuffix(".py")
    if package in TOP:
        return
    assert package in ALLOWED, f"{package} has no import rule yet: add it to ALLOWED"
    for module in imports_of(path):
        target = module.split(".")[0]
        if target == package:
            continue
        permitted = any(module == a or module.startswith(a + ".") for a in ALLOWED[package])
        assert permitted, f"{place} imports {module}; {package} may import {sorted(ALLOWED[package])}"
        if (package, target) in ONLY:
            assert place in ONLY[package, target], f"only {ONLY[package, target]} may import {target}"


def test_the_rule_catches_a_wrong_import(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from stochade.models import plain\n    import stochade.report.html\n")
    assert imports_of(wrong) == ["models", "report.html"]


def test_import_is_light():
    """`import stochade` must not load plotting, tables, training or a network client."""
    heavy = ["plotly", "pyarrow", "sklearn", "lightning_fabric", "huggingface_hub", "rich", "jinja2", "tyro"]
    code = f"import sys, stochade; print([m for m in {heavy} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_nothing_mentions_torchvision():
    assert not [p for p in ROOT.rglob("*.py") if "import torchvision" in p.read_text()]


def test_what_another_module_uses_has_a_public_name():
    private = {
        f"{path.relative_to(ROOT)} imports {alias.name} of {node.module}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stochade")
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    }
    assert private == set()


def test_files_stay_small():
    """A file is one idea: about 300 lines, 400 at the most."""
    long = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in ROOT.rglob("*.py")}
    assert {k: v for k, v in long.items() if v > 400} == {}
