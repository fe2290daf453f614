"""The tables of known_answers.py, built from its JSON alone."""

import numpy as np

from provenance import as_lines

FAR = 0.08  # a report this far from what the returned images are worth stands in bold


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mark(inside: bool, text: str) -> str:
    return text if inside else f"**{text}**"


def covered(scores: list[list], value: float) -> int:
    """How many of the intervals cover the value; half a rounding step of float32 means is forgiven."""
    return sum(low is not None and low - 1e-6 <= value <= high + 1e-6 for _, low, high in scores)


def peers_table(cases: dict, key: str) -> list[str]:
    """One row per entry, one column per case; `key` "reported" or "worth"."""
    names = [name for name in cases if "peers" in cases[name]]
    if not names:
        return ["No peers: there is no .venv-peers."]
    lines = ["| library | attack | " + " | ".join(names) + " |", "|-" * (len(names) + 2) + "|"]
    lines.append("| | **truth** | " + " | ".join(f"**{percent(cases[name]['truth'])}**" for name in names) + " |")
    lines.append("| | clean | " + " | ".join(percent(cases[name]["clean"]) for name in names) + " |")
    for index, first in enumerate(cases[names[0]]["peers"]):
        if key == "worth" and first["source"].startswith("save()"):
            continue
        cells = []
        for name in names:
            entry = cases[name]["peers"][index]
            if key not in entry:
                cells.append(entry.get("missing") or entry.get("error", "").split(":")[0])
                continue
            value = float(np.mean(entry[key]))
            near = key == "worth" or abs(value - float(np.mean(entry["worth"]))) <= FAR
            cells.append(mark(near, percent(value)))
        label = first["attack"] + (", save()" if first["source"].startswith("save()") else "")
        lines.append("| " + " | ".join([first["library"], label, *cells]) + " |")
    return lines


def ours_table(cases: dict) -> list[str]:
    """One row per attack: its score of the first seed, the interval, the worth, the truth."""
    lines = [
        "| model | attack | truth | score [interval], first seed | exact worth | truth covered | worth covered |",
        "|-|-|-|-|-|-|-|",
    ]
    for name, case in cases.items():
        for row in case["stochade"]:
            label = row["attack"] if row["norm"] == "linf" else f"{row['attack'].split()[0]} {row['norm']}"
            if "missing" in row:
                why = "missing" if row["missing"].startswith("UsageError") else row["missing"]
                lines.append(f"| {name} | {label} | {percent(row['truth'])} | {why} | | | |")
                continue
            value, low, high = row["population"][0]
            interval = "none" if low is None else f"[{percent(low)}, {percent(high)}]"
            seeds, hits = len(row["population"]), covered(row["population"], row["truth"])
            kind = " (vote)" if row["kind"] == "vote" else ""
            exact = worth_covered(row)
            cells = [name, label + kind, percent(row["truth"]), f"{percent(value)} {interval}", percent(row["worth"])]
            cells += [mark(hits == seeds, f"{hits} of {seeds}"), mark(exact == 1, "yes" if exact else "no")]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def worth_covered(row: dict) -> int:
    """1 where the first seed's interval covers the exact worth of its images: the one for this test set, but for
    votes the one for the population, because a single vote for each image has no other."""
    return covered(row["population" if row["kind"] == "vote" else "test set"][:1], row["worth"])


def totals(cases: dict) -> list[str]:
    """How many (model, attack, seed) intervals cover the truth, and how many cover what the images are worth."""
    lines = []
    for honest, about in ((True, "models whose robustness is real"), (False, "models that only hide their gradient")):
        rows = [r for c in cases.values() if c["honest"] == honest for r in c["stochade"] if "missing" not in r]
        hits = sum(covered(r["population"], r["truth"]) for r in rows)
        worth = sum(worth_covered(r) for r in rows)
        seeds = sum(len(r["population"]) for r in rows)
        lines.append(
            f"- {about}: the interval covers the truth in {hits} of {seeds} runs (model x attack x seed), and the "
            f"exact worth of the returned images in {worth} of {len(rows)}"
        )
    return lines


def markdown(result: dict) -> str:
    cases = result["cases"]
    lines = [
        "# Known answers",
        "",
        f"Models whose accuracy under attack is known exactly; {result['examples']} images each, numbers in %.",
        "",
        "| model | threat | clean | truth under attack | |",
        "|-|-|-|-|-|",
        *(
            f"| {name} | {case['threat']} | {percent(case['clean'])} | {percent(case['truth'])} | {case['about']} |"
            for name, case in cases.items()
        ),
        "",
        "## What the peers report",
        "",
        "Mean over the seeds of the number that comes with the attack. **Bold**: more than "
        f"{100 * FAR:.0f} points from what the",
        "images that it returned are worth (next table). A number below the truth claims what no attack can do; one",
        "above it may be honest about an attack that is weak here. Both suites fail with an IndexError on models of",
        "two classes; they are shown the same models with eight classes more that are always lowest.",
        "",
        *peers_table(cases, "reported"),
        "",
        "## What the peers' images are worth",
        "",
        "The exact accuracy of one prediction of the returned images, mean over the seeds. No entry can lie below",
        "the truth unless it left the budget. Above it: the attack is not the strongest one.",
        "",
        *peers_table(cases, "worth"),
        "",
        "## Stochade",
        "",
        f"Scores by `evaluate`, {result['draws']} draws per example. Minimum-norm attacks aim at the decision of a",
        "vote, so votes of as many draws are compared with the truth of such votes; every other attack by single",
        "predictions. They hand an image back only where a vote errs beyond doubt, so on noisy models, where that is",
        "farther than the boundary, they stay above the truth. *truth",
        "covered*: in how many seeds the 95 % interval (population) covers the truth; an attack that is too weak for",
        "a model, such as backpropagation through a zero gradient, does not. *worth covered*: whether the interval",
        "(for this very test set; of votes, for the population) covers the exact worth of the returned images, which",
        "is what the score must do, at 95 %. Rows of images that no attack changes repeat each other's draws.",
        "",
        *totals(cases),
        "",
        *ours_table(cases),
        "",
        "## Provenance",
        "",
        *as_lines(result["provenance"]),
    ]
    return "\n".join(lines) + "\n"
