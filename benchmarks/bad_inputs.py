"""What stochade and its peers say to fifteen bad inputs: a clear error, an obscure one, a warning, or nothing.

    .venv/bin/python benchmarks/bad_inputs.py [--out results/peers]

Each library attacks a small CNN with its PGD (linf 0.1, three steps); every case is what a user does by mistake. Runs
in both environments (the peers' in .venv-peers). Writes bad_inputs.json and .md with the first line of every message.
"""

import argparse
import contextlib
import io
import json
import linecache
import logging
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from workers import NO_PEERS, PEERS, ROOT, environment

EPS, STEPS = 0.1, 3


class Small(nn.Module):
    """conv, dropout, dense on [N,1,12,12]; `output` turns its logits into something wrong."""

    def __init__(self, output: Callable[[Tensor], Tensor] = lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.drop, self.dense = nn.Conv2d(1, 4, 3, padding=1), nn.Dropout(0.5), nn.Linear(4 * 144, 10)
        self.output = output
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.dense(self.drop(torch.relu(self.conv(x)).flatten(1))))


def good() -> dict:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 1, 12, 12, generator=generator)
    model = Small()
    with torch.no_grad():
        labels = model(images).argmax(1)
    return {"model": model, "images": images, "labels": labels, "eps": EPS, "steps": STEPS}


def nan_pixel(g: dict) -> dict:
    images = g["images"].clone()
    images[3, 0, 5, 5] = torch.nan
    return {"images": images}


CASES: dict[str, Callable[[dict], dict]] = {
    "NaN pixel": nan_pixel,
    "pixels 0..255": lambda g: {"images": (g["images"] * 255).round()},
    "label out of range": lambda g: {"labels": torch.full_like(g["labels"], 10)},
    "float labels": lambda g: {"labels": g["labels"].float()},
    "fewer labels than images": lambda g: {"labels": g["labels"][:5]},
    "eps < 0": lambda g: {"eps": -0.1},
    "eps NaN": lambda g: {"eps": float("nan")},
    "steps = 0": lambda g: {"steps": 0},
    "empty batch": lambda g: {"images": g["images"][:0], "labels": g["labels"][:0]},
    "train mode with dropout": lambda g: {"model": Small().train()},
    "int64 images": lambda g: {"images": (g["images"] * 255).long()},
    "uint8 images": lambda g: {"images": (g["images"] * 255).to(torch.uint8)},
    "wrong channels": lambda g: {"images": g["images"].expand(-1, 3, -1, -1).clone()},
    "NaN logits": lambda g: {"model": Small(lambda z: z * torch.nan)},
    "probabilities for logits": lambda g: {"model": Small(lambda z: z.softmax(1))},
}


def stochade(model, images, labels, eps, steps):
    from stochade.attacks import PGD, Linf

    return PGD(Linf(eps), steps=steps)(model, images, labels)


def torchattacks(model, images, labels, eps, steps):
    from torchattacks import PGD

    return PGD(model, eps=eps, alpha=eps / 2, steps=steps)(images, labels)


def foolbox(model, images, labels, eps, steps):
    from foolbox import PyTorchModel
    from foolbox.attacks import LinfPGD

    wrapped = PyTorchModel(model, bounds=(0, 1))
    return LinfPGD(rel_stepsize=0.5, steps=steps)(wrapped, images, labels, epsilons=eps)[1]


def art(model, images, labels, eps, steps):
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 12, 12), 10, clip_values=(0, 1), device_type="cpu"
    )
    attack = ProjectedGradientDescentPyTorch(
        classifier, eps=eps, eps_step=abs(eps) / 2, max_iter=steps, verbose=False
    )
    return torch.from_numpy(attack.generate(x=images.numpy(), y=labels.numpy()))


def adv_lib(model, images, labels, eps, steps):
    from adv_lib.attacks import pgd_linf

    return pgd_linf(model, images, labels, eps, steps=steps)


def auto_attack(model, images, labels, eps, steps):
    from autoattack import AutoAttack

    attack = AutoAttack(
        model, eps=eps, version="custom", attacks_to_run=["apgd-ce"], device="cpu", verbose=False, seed=0
    )
    attack.apgd.n_iter, attack.apgd.n_restarts = steps, 1
    return attack.run_standard_evaluation(images, labels)


PACKAGES = ("stochade", "torchattacks", "foolbox", "eagerpy", "art", "adv_lib", "autoattack", "torch", "numpy")
MODULES = {"stochade": "stochade", "torchattacks": "torchattacks", "foolbox": "foolbox", "ART": "art"}
MODULES |= {"adv-lib": "adv_lib", "auto-attack": "autoattack"}
LIBRARIES = {
    "stochade": stochade,
    "torchattacks": torchattacks,
    "foolbox": foolbox,
    "ART": art,
    "adv-lib": adv_lib,
    "auto-attack": auto_attack,
}


def origin(problem: BaseException) -> tuple[str, bool]:
    """The package whose code was the last to run, and whether it raised on purpose (raise or assert)."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "nowhere", False
    path = trace.tb_frame.f_code.co_filename
    line = linecache.getline(path, trace.tb_lineno).strip()
    package = next((name for name in PACKAGES if name in Path(path).parts), "the model")
    return package, line.startswith(("raise", "assert"))


def attempt(library: str, case: str) -> dict:
    """One library on one bad input. Warnings count in whatever form they come: warning, log record or print."""
    parts = good()
    parts |= CASES[case](parts)
    printed, logged = io.StringIO(), []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings(record=True) as heard, contextlib.redirect_stdout(printed):
        warnings.simplefilter("always")
        try:
            LIBRARIES[library](**parts)
        except ImportError as problem:
            return {"outcome": "missing", "message": str(problem)}
        except Exception as problem:
            lines = str(problem).strip().splitlines() or [""]
            package, own = origin(problem)
            return {"outcome": type(problem).__name__, "from": package, "raised": own, "message": lines[0][:300]}
        finally:
            logging.getLogger().removeHandler(handler)
    told = [str(w.message) for w in heard if issubclass(w.category, UserWarning | RuntimeWarning)] + logged
    told += [line for line in printed.getvalue().splitlines() if "warning" in line.lower()]
    if told:
        return {"outcome": "warning", "message": told[0].splitlines()[0][:300]}
    return {"outcome": "silent", "message": ""}


def checked(library: str, answer: dict) -> bool:
    """Whether the library itself looked and refused."""
    return answer.get("raised", False) and answer["from"] == MODULES[library]


def here(libraries: list[str]) -> dict:
    torch.set_num_threads(1)
    return {name: {case: attempt(name, case) for case in CASES} for name in libraries}


def there(libraries: list[str]) -> dict:
    """The same in the peers' environment."""
    command = [str(PEERS), str(Path(__file__).resolve()), "--only", *libraries]
    done = subprocess.run(command, check=True, env=environment(), stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def cell(library: str, answer: dict) -> str:
    if answer["outcome"] in ("missing", "warning"):
        return answer["outcome"]
    if answer["outcome"] == "silent":
        return "**silent**"
    return f"{answer['outcome']}{'' if checked(library, answer) else ' from ' + answer['from']}"


def markdown(result: dict) -> str:
    names = list(result["answers"])
    lines = [
        "# Fifteen bad inputs",
        "",
        "What each library's PGD answers (auto-attack: APGD-CE alone). An error's class stands alone where the",
        "library itself looked and refused; *from* names the package in which an operation failed by itself.",
        "*Warning*: it only warned (or logged, or printed so) and returned images. **Silent**: it returned images",
        "as if nothing were wrong; a few of these are sensible casts (ART takes integer images and float labels).",
        "Whether a message is clear is for the reader: the first line of each is in bad_inputs.json.",
        "",
        "| | " + " | ".join(names) + " |",
        "|-" * (len(names) + 1) + "|",
    ]
    lines += [
        f"| {case} | " + " | ".join(cell(name, result["answers"][name][case]) for name in names) + " |"
        for case in CASES
    ]
    own = [sum(checked(name, a) for a in result["answers"][name].values()) for name in names]
    silent = [sum(a["outcome"] == "silent" for a in result["answers"][name].values()) for name in names]
    lines.append("| refused by a check of its own | " + " | ".join(map(str, own)) + " |")
    lines.append("| silent | " + " | ".join(map(str, silent)) + " |")
    lines += ["", "## Stochade's messages", ""]
    lines += [f"- {case}: `{a['outcome']}: {a['message']}`" for case, a in result["answers"]["stochade"].items()]
    from provenance import as_lines

    return "\n".join([*lines, "", "## Provenance", "", *as_lines(result["provenance"])]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "peers")
    parser.add_argument("--only", nargs="+", choices=list(LIBRARIES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    np.seterr(all="ignore")
    if arguments.only:
        print("\n" + json.dumps(here(arguments.only)))
        return
    from provenance import commit, provenance, save

    source = commit()
    answers = here(["stochade"])
    if PEERS.exists():
        answers |= there([name for name in LIBRARIES if name != "stochade"])
    else:
        print(NO_PEERS, file=sys.stderr)
    result = {"answers": answers, "provenance": provenance(commit=source, seed=0)}
    save(arguments.out, "bad_inputs", result, markdown(result))


if __name__ == "__main__":
    main()
