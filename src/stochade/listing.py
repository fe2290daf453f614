"""What `stochade ls` and `stochade doctor` print."""

import contextlib
import importlib.util
import math
import os
import platform
import textwrap
from typing import Any


def _first_sentence(thing: object) -> str:
    paragraph = " ".join((getattr(thing, "__doc__", "") or "").strip().split("\n\n")[0].split())
    return paragraph.partition(". ")[0].rstrip(".")


def attack_details() -> dict[str, list[str]]:
    """For every attack the norms that it takes, and its options with their defaults, in lines of readable length."""
    from stochade.attacks.registry import ATTACKS, EVERYWHERE, options_of, parse_attack
    from stochade.attacks.threats import THREATS
    from stochade.errors import StochadeError

    details = {}
    for name in ATTACKS:
        made, text = {}, "transfer source=x" if name == "transfer" else name
        for norm, threat in THREATS.items():
            with contextlib.suppress(StochadeError):
                made[norm] = parse_attack(text, threat(1))
        options = []
        for option in [o for o in options_of(name) if o not in EVERYWHERE]:
            shown = _with_default(option, next(iter(made.values())))
            with contextlib.suppress(StochadeError):  # an option that the name itself fixes
                if "=" in shown:
                    parse_attack(f"{text} {shown}", next(iter(made.values())).threat)  # type: ignore[arg-type]
                options.append(shown)
        lines = [f"norms: {' '.join(made)}", *([f"options: {' '.join(options)}"] if options else [])]
        details[name] = [part for line in lines for part in textwrap.wrap(line, 100, subsequent_indent="  ")]
    return details


def _with_default(option: str, attack: Any) -> str:
    """`steps=40`, or only the name where the default is no plain word or number."""
    from stochade.attacks.objectives import OBJECTIVES
    from stochade.attacks.registry import GRADIENT

    gradient = getattr(attack, "gradient", None)
    part = gradient if gradient is not None and (option in GRADIENT or not hasattr(attack, option)) else attack
    value = getattr(part, option, None)
    words: dict[Any, str] = {f: name for name, f in OBJECTIVES.items()}
    if callable(value):
        value = words.get(value)
    if value is None or (isinstance(value, float) and math.isinf(value)):
        return option
    return f"{option}={('no', 'yes')[value] if isinstance(value, bool) else value}"


def _about(recipe: Any) -> str:
    return f"{recipe.title} ({recipe.paper}, {recipe.place})"


def listing() -> dict[str, dict[str, str]]:
    """Every attack, model, defence, certificate and recipe by the name that the command line takes."""
    from stochade import nn as layers
    from stochade.attacks.objectives import OBJECTIVES
    from stochade.attacks.registry import ATTACKS, CODE_ATTACKS
    from stochade.attacks.threats import THREATS
    from stochade.audit import CHECKS, EFFORTS
    from stochade.certify import FlipNoise, Gaussian, RateCode, SmoothingCode, Splitting, linear_radii, verify
    from stochade.data import KNOWN as KNOWN_DATA
    from stochade.models.known_answer import KNOWN
    from stochade.recipes import catalogue
    from stochade.registry import MODELS
    from stochade.targets import BUILT_IN

    targets = {n: f"{b.description} ({b.data}, {b.threat})" for n, b in BUILT_IN.items()}
    known = {f"known:{n}": case(0).description for n, case in KNOWN.items()}
    defences = {
        name: _first_sentence(getattr(layers, name))
        for name in layers.__all__
        if isinstance(cls := getattr(layers, name), type)
        and issubclass(cls, layers.Discrete)
        and cls != layers.Discrete
    }
    return {
        "targets": targets | known,
        "models": {name: entry.description for name, entry in MODELS.items()},
        "defences": defences,
        "attacks": {name: description for name, (_, description) in ATTACKS.items()},
        "attacks on codes": {name: description for name, (_, description) in CODE_ATTACKS.items()},
        "threats": {name: _first_sentence(cls) for name, cls in THREATS.items()},
        "objectives": {name: _first_sentence(f) for name, f in OBJECTIVES.items()},
        "efforts": {
            name: f"{e.steps} steps, {e.draws} draws per gradient, {e.pairs} pairs, {e.samples} random points"
            for name, e in EFFORTS.items()
        },
        "checks": {name: _first_sentence(check) for name, check in CHECKS.items()},
        "certificates": {
            found.__name__: _first_sentence(found)
            for found in (Gaussian, SmoothingCode, RateCode, FlipNoise, Splitting, linear_radii, verify)
        },
        "recipes": {name: _about(catalogue.load(name)) for name in catalogue.names()},
        "data": {"digits": "scikit-learn digits, 8x8, bundled"}
        | dict.fromkeys(KNOWN_DATA, "download by name (stochade[download])"),
    }


def doctor() -> dict[str, str]:
    """Versions, devices, kernels and data of this machine. Compiles kernels that were not compiled before."""
    import torch

    from stochade import __version__
    from stochade.describe import processor
    from stochade.native import gpu, status
    from stochade.targets import cache_folder

    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    facts = {
        "stochade": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": f"{processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "devices": ", ".join(devices),
        "kernels in C": ", ".join(f"{name} {told}" for name, told in status().items()),
        "kernels in Triton": f"lif {gpu.status()}",
        "cache": str(cache_folder()),
        "data digits": "bundled",
    }
    where = os.environ.get("STOCHADE_DATA")
    found = sorted(e.name for e in os.scandir(where) if e.is_dir()) if where and os.path.isdir(where) else []
    facts["data by STOCHADE_DATA"] = f"{where}: {', '.join(found) or 'nothing'}" if where else "not set"
    for package, use in (("huggingface_hub", "downloads"), ("pyarrow", "records"), ("plotly", "reports")):
        facts[package] = f"found ({use})" if importlib.util.find_spec(package) else f"missing ({use})"
    return facts
