"""One offline HTML file from records: nothing runs a model, nothing reaches a network."""

import base64
import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

import stochade
from stochade.audit.result import Audit
from stochade.describe import as_call
from stochade.evaluate.records import CLEAN, KINDS, Records
from stochade.files import write_atomically
from stochade.report import figures
from stochade.report.headline import headline, spoken
from stochade.report.pictures import gallery
from stochade.report.rows import (
    attack_row,
    composition,
    interval_text,
    is_random,
    number,
    passes,
    percent,
    severity_rank,
    shared_threats,
    threat_text,
    unpack,
    worst_row,
)
from stochade.report.search import search_figure, search_steps
from stochade.report.successes import distances, successes

FIRST = ("date", "data", "model", "git_revision", "git", "versions", "hardware", "seed", "draws")
GROUPS = ("about", "provenance")  # parts of a run's meta whose entries stand beside the others on the page


def build(audit: Audit | Records, out: str | Path, title: str | None = None) -> Path:
    """Write the report of an audit, or of bare records, as one self-contained HTML file; returns its path.

    The file holds its own script (plotly.js, 4.8 MB, once), styles and images; a content security policy inside
    it forbids every network request and every script but these two. All that comes from records is escaped.
    An existing file is replaced in one step. A folder as `out` means `report.html` inside it.

    Args:
        audit: what `stochade.audit` returned, or the Records of `evaluate`.
        out: the file, or a folder.
        title: heading of the page; the model's name in the records' meta, where it has one, otherwise.

    Raises:
        RecordsError: no examples, no attacks, or a claim that names no attack in the records.
    """
    records, known = unpack(audit)
    out = Path(out)
    if out.is_dir() or not out.suffix:
        out = out / "report.html"
    text = _render(records, known, title)
    write_atomically(out, text.encode())
    return out


def _render(records: Records, audit: Audit | None, title: str | None) -> str:
    from markupsafe import Markup

    curves = figures.curves(audit) if audit else []
    probe_figures, probe_rest = figures.probes(audit.probes) if audit else ([], {})
    bought = [*successes(records, audit), *distances(records, audit)]
    progress = search_figure(audit) if audit else None
    plots = figures.plot_document([*curves, *bought, *([progress] if progress else []), *probe_figures])
    script = asset("page.js")
    plotly = plotly_source() if plots else ""
    threat = audit.threat if audit else None
    random = is_random(records)
    environment = template_environment()
    environment.filters["sentence"] = _sentence(records)
    return environment.get_template("page.html").render(
        title=title or _title(records, audit),
        policy=content_policy([script, plotly]),
        css=Markup(asset("page.css")),
        script=Markup(script),
        plotly=Markup(plotly),
        plots=jsonable(plots),
        audit=audit,
        head=headline(records, audit),
        card=audit.card if audit else None,
        facts=_facts(records, audit),
        examples=len(records),
        draws=records.draws,
        random=random,
        target=_target(records),
        kinds=KINDS,
        groups=_groups(records, audit),
        composition=composition(records, threat) if threat else [],
        curves=[*curves, *bought],
        progress=progress,
        steps=search_steps(audit.search) if audit else [],
        suites=[row for row in (attack_row(records, name) for name in records.attacks) if row.members],
        probe_figures=probe_figures,
        probe_rest=probe_rest,
        gallery=gallery(records, threat),
        findings=sorted(audit.findings, key=severity_rank) if audit else [],
        command=audit.command if audit and audit.command else _command(records),
        provenance=_provenance(records),
        version=stochade.__version__,
    )


def template_environment():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.filters |= {
        "percent": lambda value: percent(value).replace(" ", "\u00a0"),
        "percent0": lambda value: f"{100 * value:.0f}\u00a0%",
        "css": lambda value: f"{min(max(100 * float(value), 0.0), 100.0):.3f}",
        "interval": interval_text,
        "spoken": spoken,
        "number": number,
        "passes": passes,
        "exact": _exact,
        "threat": threat_text,
        "words": lambda key: str(key).replace("_", " "),
        "simple": lambda items: all(not isinstance(i, dict | list | tuple) for i in items),
    }
    return environment


def asset(name: str) -> str:
    return resources.files("stochade.report").joinpath(name).read_text(encoding="utf-8")


def plotly_source() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs().replace("</script", "<\\/script")


def content_policy(scripts: list[str]) -> str:
    """Only these scripts run, only inline styles and data images load, nothing is fetched or sent."""
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts if s]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def jsonable(value: Any) -> Any:
    """Plain data for JSON: numpy to Python, NaN and infinities to null."""
    if isinstance(value, dict):
        return {str(key): jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _exact(value) -> str:
    """Provenance is repeated by others: integers in full, floats as Python writes them."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _meta(records: Records) -> dict:
    """The records' meta with what was said about the run and its provenance lifted to the top."""
    flat = {key: value for key, value in records.meta.items() if key not in GROUPS}
    for group in GROUPS:
        inner = records.meta.get(group)
        if not isinstance(inner, dict):
            flat |= {group: inner} if inner else {}
            continue
        for key, value in inner.items():
            if isinstance(flat.get(key), dict) and not isinstance(value, dict):
                flat[key] = {"name": value} | flat[key]
            elif isinstance(flat.get(key), dict) or key not in flat:
                flat[key] = (value | flat[key]) if key in flat else value
            else:
                flat[f"{key} ({group})"] = value
    return flat


def _title(records: Records, audit: Audit | None) -> str:
    meta = _meta(records)
    model = _named(meta.get("target")) or _named(meta.get("model"))
    kind = "Audit" if audit else "Evaluation"
    return f"{kind} of {model}" if model else kind


def _named(value) -> str:
    """The name in a meta entry that is text or a mapping with a name; empty otherwise."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("name", "note", "class") if value.get(key)), "")
    return value if isinstance(value, str) else ""


def _facts(records: Records, audit: Audit | None) -> list[str]:
    meta = _meta(records)
    facts = [f"{len(records)} examples", f"{records.draws} draw{'s' * (records.draws != 1)} each"]
    if audit:
        facts.insert(0, threat_text(audit.threat))
    return facts + [str(fact) for fact in (_named(meta.get("data")), meta.get("date")) if fact]


def _target(records: Records) -> str:
    target = records.score(next(iter(records.attacks))).target
    if target == "population":
        return (
            f"the population that these {len(records)} examples are a sample of; they cover the sampling of "
            "examples and of draws"
        )
    return f"exactly this test set of {len(records)} examples; they cover the sampling of draws"


def _groups(records: Records, audit: Audit | None) -> list[dict]:
    """The table's parts: for an audit what counts for its threat, then the rest; all in one for bare records."""
    if audit is None:
        rows = [attack_row(records, name) for name in records.attacks]
        return [{"heading": "", "rows": rows, "worst": [worst_row(records, t) for t in shared_threats(records)]}]
    inside = records.within(audit.threat)
    rest = [name for name in records.attacks if name not in inside]
    where = threat_text(audit.threat)
    tried = sum(name != CLEAN for name in inside)
    groups = [
        {
            "heading": f"Inside {where}: {tried} attack{'s' * (tried != 1)}" if rest else "",
            "rows": [attack_row(records, name) for name in inside],
            "worst": [worst_row(records, audit.threat)],
        }
    ]
    if rest:
        heading = f"Outside {where}, not counted in the worst"
        groups.append({"heading": heading, "rows": [attack_row(records, n) for n in rest], "worst": []})
    return groups


def _command(records: Records) -> str:
    command = _meta(records).get("command")
    if isinstance(command, list | tuple):
        import shlex

        return shlex.join(str(part) for part in command)
    return str(command) if command else ""


def _provenance(records: Records) -> dict:
    """The records' meta, known keys first, then what every attack was, as one line each."""
    meta = {key: value for key, value in _meta(records).items() if key not in ("command", "attacks", "parts")}
    ordered = {key: meta.pop(key) for key in FIRST if key in meta} | meta
    attacks = {name: as_call(r.info["attack"]) for name, r in records.attacks.items() if r.info.get("attack")}
    attacks.pop(CLEAN, None)
    ordered.pop("seconds", None)  # the plots have them
    if attacks:
        ordered["attacks"] = attacks
    return json.loads(json.dumps(jsonable(ordered), default=str))


def _sentence(records: Records):
    """A filter that gives a title its capital, except where it opens with the name of an attack."""
    names = tuple(records.attacks)

    def capital(title: str) -> str:
        return title if title.startswith(names) else title[:1].upper() + title[1:]

    return capital
