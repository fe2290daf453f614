"""Accuracy tables with intervals for papers: markdown, CSV and LaTeX, several runs side by side."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stochade.audit.result import Audit
from stochade.errors import RecordsError
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import KINDS, ON_CODES, WORST, Records, threat_info, threat_key
from stochade.report.rows import (
    UNKNOWN,
    Row,
    attack_row,
    interval_text,
    members_text,
    shared_threats,
    threat_text,
    unpack,
    worst_row,
)

FORMATS = ("markdown", "csv", "latex")


@dataclass(frozen=True)
class Run:
    """One run of a table: its name and its rows by (attack, threat)."""

    name: str
    rows: dict[tuple, Row]
    verdict: list[str] = field(default_factory=list)


def table(
    records: Audit | Records | Sequence[Audit | Records] | Mapping[str, Audit | Records],
    fmt: str = "markdown",
    kinds: Sequence[str] = KINDS,
    threat=None,
) -> str:
    """Accuracies in percent with 95 % intervals, one row an attack in the order given.

    Args:
        records: one run, several, or {name: run}; several stand side by side, rows joined by attack and threat.
        fmt: "markdown", "latex" (booktabs, everything escaped) or "csv" (one line per attack and run; value,
            low and high in columns of their own, as fractions of full precision, empty where unknown).
        kinds: which scores: "single", "vote", "all".
        threat: keep only attacks inside this Threat or {"norm", "eps"} and form "worst" there. Without it all
            attacks are shown; an audit has its worst row inside its own threat, bare records one for every
            threat that two attacks or more share.

    Raises:
        RecordsError: an unknown format or kind, no runs, or something that is not records.
    """
    if fmt not in FORMATS:
        raise RecordsError(f"fmt out of {FORMATS}", repr(fmt))
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds or any(kind not in KINDS for kind in kinds):
        raise RecordsError(f"kinds out of {KINDS}", repr(kinds))
    runs = _runs(records, kinds, threat)
    return {"markdown": _markdown, "csv": _csv, "latex": _latex}[fmt](runs, kinds)


def _runs(source, kinds: tuple[str, ...], threat) -> list[Run]:
    if isinstance(source, Audit | Records):
        source = [source]
    if isinstance(source, Mapping):
        named = [(str(name), run) for name, run in source.items()]
    else:
        named = [(None, run) for run in source]
    if not named:
        raise RecordsError("at least one run", "none")
    runs: list[Run] = []
    for position, (name, run) in enumerate(named, 1):
        opened, audit = unpack(run)
        name = name if name is not None else _name(opened, position)
        if name in [other.name for other in runs]:
            name = f"{name} ({position})"
        card = audit.card if audit else None
        runs.append(
            Run(name, _rows(opened, audit, kinds, threat), [] if card is None else [f"{card.title}.", *card.verdict])
        )
    return runs


def _name(records: Records, position: int) -> str:
    for key in ("name", "model"):
        if isinstance(records.meta.get(key), str) and records.meta[key]:
            return records.meta[key]
    return Path(records.folder).name if records.folder else f"run {position}"


def _rows(records: Records, audit: Audit | None, kinds: tuple[str, ...], threat) -> dict[tuple, Row]:
    names = records.within(threat) if threat is not None else list(records.attacks)
    rows = [attack_row(records, name, kinds) for name in names]
    if threat is not None:
        worst = [threat_info(threat)]
    else:
        worst = [audit.threat] if audit else shared_threats(records)
    rows += [worst_row(records, one, kinds) for one in worst]
    if audit is not None and audit.claim is not None:
        rows.insert(0, _published_row(audit, kinds))
    return {(row.name, threat_key(row.threat)): row for row in rows}


def _published_row(audit: Audit, kinds: tuple[str, ...]) -> Row:
    """The claim as printed: an accuracy of single predictions without an interval."""
    unknown = Estimate(None, None, None, 0, 0)
    printed = {kind: Estimate(audit.claim, None, None, 0, 0) if kind == "single" else unknown for kind in kinds}
    threat = audit.records.attacks[audit.claim_attack].threat
    return Row(f"published: {audit.claimed_as or audit.claim_attack}", "", threat, printed)


def _keys(runs: list[Run]) -> list[tuple]:
    """All rows in order of appearance, the worst ones last."""
    every = list(dict.fromkeys(key for run in runs for key in run.rows))
    return [k for k in every if k[0] != WORST] + [k for k in every if k[0] == WORST]


def _first(runs: list[Run], key: tuple) -> Row:
    return next(run.rows[key] for run in runs if key in run.rows)


def _markdown(runs: list[Run], kinds: tuple[str, ...]) -> str:
    several = len(runs) > 1
    columns = _columns(runs, kinds)
    heads = [f"{run.name}: {column}" if several else column for run in runs for column in columns]
    lines = [_pipes(["attack", "threat", *heads]), _pipes(["---", "---", *["---:"] * len(heads)], escape=False)]
    for key in _keys(runs):
        first = _first(runs, key)
        cells = [_plain(e) for run in runs for e in _estimates(run, key, columns)]
        lines.append(_pipes([first.name, threat_text(first.threat) or UNKNOWN, *cells]))
    return "\n".join([*lines, *(f"\n{_markdown_text(told)}" for told in _remarks(runs))]) + "\n"


REACHED = "target reached"


def _columns(runs: list[Run], kinds: tuple[str, ...]) -> list[str]:
    """The kinds, and how often targets were reached where an attack had any."""
    targeted = any(row.reached is not None for run in runs for row in run.rows.values())
    return [*kinds, *([REACHED] if targeted else [])]


def _estimates(run: Run, key: tuple, columns: list[str]) -> list[Estimate]:
    unknown = Estimate(None, None, None, 0, 0)
    if key not in run.rows:
        return [unknown] * len(columns)
    row = run.rows[key]
    return [row.scores.get(column, row.reached or unknown) for column in columns]


def _remarks(runs: list[Run]) -> list[str]:
    """What the numbers do not say: what members of suites broke, and the verdicts on claims."""
    told = []
    for run in runs:
        before = f"{run.name}: " if len(runs) > 1 else ""
        told += [before + members_text(row) for row in run.rows.values() if row.members]
        told += [before + sentence for sentence in run.verdict]
    return told


def _plain(estimate: Estimate) -> str:
    return UNKNOWN if estimate.value is None else str(estimate)


def _pipes(cells: list[str], escape: bool = True) -> str:
    return "| " + " | ".join(_markdown_text(cell) if escape else cell for cell in cells) + " |"


def _markdown_text(text: str) -> str:
    text = " ".join(str(text).split())
    for sign in "\\`*_|<>":
        text = text.replace(sign, f"\\{sign}")
    return text


def _csv(runs: list[Run], kinds: tuple[str, ...]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = _columns(runs, kinds)
    names = [column.replace(" ", "_") for column in columns]
    limits = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    suites = ["broken_by_member"] if any(row.members for run in runs for row in run.rows.values()) else []
    threats = [row.threat for run in runs for row in run.rows.values() if row.threat is not None]
    codes = ["per", "alphabet"] if any(threat["norm"] in ON_CODES for threat in threats) else []
    writer.writerow(["run", "attack", "norm", "eps", *codes, *limits, "examples", "draws", *suites])
    for key in _keys(runs):
        for run in runs:
            if key not in run.rows:
                continue
            row = run.rows[key]
            threat = row.threat or {"norm": "", "eps": ""}
            scores = _estimates(run, key, columns)
            numbers = [n for e in scores for n in (e.value, e.low, e.high)]
            shown = ["" if n is None else repr(float(n)) for n in numbers]
            counts = [scores[0].examples, scores[0].draws]
            members = ["; ".join(f"{m.name}={m.broken}" for m in row.members)] if suites else []
            letters = [threat.get(part, "") for part in codes]
            writer.writerow([run.name, row.name, threat["norm"], threat["eps"], *letters, *shown, *counts, *members])
    return out.getvalue()


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "[": "{[}", "–": "--",
}  # fmt: skip
_NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$", "l1": r"$\ell_1$", "l0": r"$\ell_0$"}


def _latex(runs: list[Run], kinds: tuple[str, ...]) -> str:
    several, columns = len(runs) > 1, _columns(runs, kinds)
    lines = [r"% needs \usepackage{booktabs}; accuracies in percent with 95 \% intervals"]
    lines += [f"% {' '.join(told.split())}" for told in _remarks(runs)]
    lines += [rf"\begin{{tabular}}{{ll{'r' * (len(runs) * len(columns))}}}", r"\toprule"]
    if several:
        width = len(columns)
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{_tex(run.name)}}}" for run in runs]
        rules = [rf"\cmidrule(lr){{{3 + i * width}-{2 + (i + 1) * width}}}" for i in range(len(runs))]
        lines += [" & ".join(["", "", *spans]) + r" \\", " ".join(rules)]
    heads = [_tex(column) for _ in runs for column in columns]
    lines += [" & ".join(["Attack", "Threat", *heads]) + r" \\", r"\midrule"]
    ruled = False
    for key in _keys(runs):
        if key[0] == WORST and not ruled:
            lines.append(r"\midrule")
            ruled = True
        first = _first(runs, key)
        cells = [_tex_cell(e) for run in runs for e in _estimates(run, key, columns)]
        lines.append(" & ".join([_tex(first.name), _tex_threat(first.threat), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(str(text).split()))


def _tex_cell(estimate: Estimate) -> str:
    if estimate.value is None:
        return "--"
    limits = interval_text(estimate)
    return f"{100 * estimate.value:.1f}" + (rf" {{\scriptsize {limits}}}" if limits else "")


def _tex_threat(threat: dict | None) -> str:
    if threat is None:
        return "--"
    if threat["norm"] in ON_CODES:
        return _tex(threat_text(threat))
    norm, rest = threat_text(threat).split(" ", 1)
    return f"{_NORMS.get(norm, _tex(norm))} {_tex(rest)}"
