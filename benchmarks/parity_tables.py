"""The tables of attack_parity.py, built from its JSON alone."""

from provenance import as_lines
from stochade.evaluate.intervals import binomial

NAMES = {
    "mnist": "MNIST, undefended",
    "mnist-adversarial": "MNIST, adversarially trained",
    "cifar10": "CIFAR-10 (JPEG), undefended",
    "cifar10-adversarial": "CIFAR-10 (JPEG), adversarially trained",
}
SLACK = 0.01  # of the best peer's robust accuracy (in points / 100) or median distance (relative)


def percent(right: float, count: int) -> str:
    return f"{100 * right / count:.1f}"


def budget(norm: str, eps: float) -> str:
    """eps as people write it: 8/255 under linf on colour images, else a short number."""
    times = 255 * eps
    levels = norm == "linf" and abs(2 * times - round(2 * times)) < 1e-6
    return f"{norm} {times:.3g}/255" if levels else f"{norm} {eps:.3g}"


def absent(entry: dict | None) -> str:
    if entry is None:
        return "not measured"
    return "missing" if "missing" in entry else f"failed: {entry.get('error', '?')}"


def suite_verdict(row: dict) -> str:
    ours, theirs = row.get("stochade", {}), row.get("auto-attack", {})
    if "right" not in ours or "right" not in theirs:
        return "open"
    low, high = binomial(theirs["right"], row["images"])
    value = ours["right"] / row["images"]
    return "met" if low <= value <= high else "met (lower)" if value < low else "MISSED"


def suites(part: dict) -> list[str]:
    lines = [
        "## The suite `standard` beside the official AutoAttack",
        "",
        "linf. Robust accuracy in %, with the 95 % Clopper-Pearson interval. *only ours*, *only theirs*: images that",
        "one suite breaks and the other does not. Bar: ours lies within the interval of the official one.",
        "",
        "| network | budget | images | clean | AutoAttack | stochade | only ours | only theirs | bar |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    for row in part["rows"]:
        count = row["images"]
        cells = [NAMES[row["network"]], budget("linf", row["eps"]), str(count), percent(row["clean"], count)]
        for library in ("auto-attack", "stochade"):
            entry = row.get(library)
            if entry is None or "right" not in entry:
                cells.append(absent(entry))
                continue
            low, high = binomial(entry["right"], count)
            cells.append(f"{percent(entry['right'], count)} [{100 * low:.1f}, {100 * high:.1f}]")
        cells += [str(row.get("only ours", "")), str(row.get("only theirs", "")), suite_verdict(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def bounded_verdict(row: dict) -> tuple[str, float | None]:
    """The verdict and ours minus the best peer's, in points."""
    means = {k: sum(v["right"]) / len(v["right"]) for k, v in row["libraries"].items() if v.get("right")}
    ours = means.pop("stochade", None)
    if ours is None or not means:
        return "open", None
    gap = (ours - min(means.values())) / row["images"]
    return "met" if gap <= SLACK + 1e-9 else "MISSED", 100 * gap


def bounded(part: dict) -> list[str]:
    libraries = ["stochade", *dict.fromkeys(k for r in part["rows"] for k in r["libraries"] if k != "stochade")]
    lines = [
        "## Attacks inside a budget",
        "",
        "Robust accuracy in %, mean over the seeds. APGD: 100 steps, one start (targeted: the nine wrong classes in",
        "turn). Square: 1000 queries. *gap*: ours minus the best peer's, in points; bar: at most 1.",
        "",
        "| network | attack | budget | " + " | ".join(libraries) + " | gap | bar |",
        "|-" * (len(libraries) + 5) + "|",
    ]
    for row in part["rows"]:
        cells = [NAMES[row["network"]], row["attack"], budget(row["norm"], row["eps"])]
        for library in libraries:
            entry = row["libraries"].get(library)
            if entry is None:
                cells.append("")
            elif not entry.get("right"):
                cells.append(absent(entry))
            else:
                cells.append(percent(sum(entry["right"]) / len(entry["right"]), row["images"]))
        verdict, gap = bounded_verdict(row)
        lines.append("| " + " | ".join([*cells, "" if gap is None else f"{gap:+.1f}", verdict]) + " |")
    return lines


def minimal_verdict(row: dict) -> str:
    entries = dict(row["libraries"])
    ours = entries.pop("stochade", {})
    peers = [entry for entry in entries.values() if "median" in entry]
    if "median" not in ours or not peers:
        return "open"
    key = "mean" if row["norm"] == "l0" else "median"
    far = ours[key] > min(p[key] for p in peers) * (1 + SLACK)
    worst = (
        max(ours["right"][i] - min(p["right"][i] for p in peers) for i in range(len(row["budgets"]))) / row["images"]
    )
    if not far and worst <= SLACK + 1e-9:
        return "met"
    return f"MISSED ({f'{key}, ' if far else ''}{100 * worst:+.1f} points)"


def minimal(part: dict) -> list[str]:
    lines = [
        "## Attacks that look for the smallest change",
        "",
        "*median*, *mean*: distance over the images that are right; *failed*: images for which nothing was found, at",
        "infinite distance (in the mean: the number of values). Robust accuracy in % at the three budgets at which",
        "the best of all libraries together leaves 75, 50 and 25 % of the right images. *passes*: forwards and",
        "backwards per image that the model really saw. Bar: median (under l0, where distances are whole numbers:",
        "mean) at most 1 % above the best peer's, and robust accuracy at most 1 point.",
        "",
        "| network | attack | norm | budgets | library | median | mean | failed | robust accuracy | passes | bar |",
        "|-|-|-|-|-|-|-|-|-|-|-|",
    ]
    for row in part["rows"]:
        budgets = ", ".join(f"{b:.3g}" for b in row.get("budgets", []))
        for library, entry in row["libraries"].items():
            cells = [NAMES[row["network"]], row["attack"], row["norm"], budgets, library]
            if "median" in entry:
                left = ", ".join(percent(right, row["images"]) for right in entry["right"])
                passes = f"{entry['forwards']:.0f} + {entry['backwards']:.0f}"
                cells += [f"{entry['median']:.4g}", f"{entry['mean']:.4g}", str(entry["failed"]), left, passes]
            else:
                cells += [absent(entry), "", "", "", ""]
            lines.append("| " + " | ".join([*cells, minimal_verdict(row) if library == "stochade" else ""]) + " |")
    return lines


def changed(part: dict, names: tuple[str, ...]) -> list[str]:
    told = [f"- {name}: {part['changed'][name]}" for name in names if name in part["changed"]]
    return ["", "Peers' defaults that were changed:", "", *told]


CHANGED_IN = {
    "suites": ("standard",), "bounded": ("apgd", "square"), "minimal": ("cw", "deepfool", "fmn", "sigma-zero"),
}  # fmt: skip


def markdown(result: dict) -> str:
    lines = [
        "# Attacks beside their peers at equal budgets",
        "",
        "Same weights, same images, in one run; every returned image is scored here: it counts as broken when the",
        "network errs on it and it lies inside budget and box. What a library says about itself is not used.",
    ]
    for part, table in {"suites": suites, "bounded": bounded, "minimal": minimal}.items():
        if part in result:
            lines += ["", *table(result[part]), *changed(result[part], CHANGED_IN[part])]
            lines += ["", "Provenance:", "", *as_lines(result[part]["provenance"])]
    return "\n".join(lines) + "\n"
