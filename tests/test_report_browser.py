"""The report in a real browser: plots, errors, widths, dark mode and keyboard. Skips where there is no Chromium."""

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from report_example import example
from stochade.report import build

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
    "--virtual-time-budget=3000",
    "--window-size=1280,900",
    "--dump-dom",
]

LISTEN = """
window.problems = [];
addEventListener("error", (e) => problems.push(String(e.message || e.target.src || e.target.href)), true);
addEventListener("unhandledrejection", (e) => problems.push(String(e.reason)));
addEventListener("securitypolicyviolation", (e) => problems.push(e.violatedDirective + " " + e.blockedURI));
"""

# Written into a data attribute, because the dumped page is all that comes back.
MEASURE = """
addEventListener("load", () => setTimeout(() => {
  const root = document.documentElement;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const shown = (e) => e.checkVisibility({ visibilityProperty: true });
  const focusable = all("a[href], button, summary, [tabindex]").filter(shown);
  const unreachable = focusable.filter((e) => {
    e.focus();
    return document.activeElement !== e || !e.matches(":focus-visible");
  });
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const scrolling = all("main *").filter((e) => e.scrollWidth > e.clientWidth + 1 && scrolls(e));
  const card = document.querySelector(".card");
  const over = (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, pre, .hidden");
  const wide = all("main *, header *").filter(over);
  const svg = (plot) => plot.querySelector("svg.main-svg");
  const facts = {
    problems, width: innerWidth, scrollWidth: root.scrollWidth,
    background: getComputedStyle(document.body).backgroundColor,
    plots: all(".plot").map((p) => p.querySelectorAll("svg.main-svg").length),
    plotWidths: all(".plot").map((p) => [p.clientWidth, svg(p)?.getBoundingClientRect().width]),
    errorBars: all(".errorbar").length, ink: document.querySelector(".xtick text")?.style.fill,
    focusable: focusable.length, unreachable: unreachable.map((e) => e.outerHTML.slice(0, 80)),
    scrollingWithoutTab: scrolling.filter((e) => e.tabIndex < 0).map((e) => e.outerHTML.slice(0, 80)),
    wide: wide.slice(0, 5).map((e) => e.outerHTML.slice(0, 80)),
    buttons: all(".modebar-btn").map((b) => b.dataset.title),
    resources: performance.getEntriesByType("resource").map((r) => r.name).filter((n) => !n.startsWith("data:")),
  };
  if (card) {
    card.focus(); card.click();
    const viewer = document.getElementById("viewer"), image = viewer.querySelector("img");
    facts.opened = viewer.open;
    facts.enlarged = image.getBoundingClientRect().width / card.querySelector("img").getBoundingClientRect().width;
    const before = viewer.getAttribute("aria-label");
    viewer.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    facts.moved = viewer.getAttribute("aria-label") !== before;
    viewer.close();
    facts.returned = document.activeElement.classList.contains("card");
  }
  const look = () => ({ ink: document.querySelector(".xtick text")?.style.fill,
    background: getComputedStyle(document.body).backgroundColor, closed: all("details:not([open])").length });
  dispatchEvent(new Event("beforeprint"));
  facts.printed = look();
  dispatchEvent(new Event("afterprint"));
  facts.after = look();
  root.dataset.facts = JSON.stringify(facts);
  if (parent !== window) parent.postMessage(root.dataset.facts, "*");
}, 300));
"""

FRAME = """<!DOCTYPE html><body style="margin:0">
<script>addEventListener("message", (e) => {{ document.documentElement.dataset.facts = e.data; }});</script>
<iframe src="{page}" width="{width}" height="800" style="border:0"></iframe>"""


def instrument(page: str) -> str:
    """The page with two scripts more; its policy stays in force and lets in exactly these by their hashes."""
    allowed = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in (LISTEN, MEASURE)
    )
    page = page.replace("script-src ", f"script-src {allowed} ", 1)
    page = page.replace("<title>", f"<script>{LISTEN}</script><title>", 1)
    return page.replace("</body>", f"<script>{MEASURE}</script></body>")


def browse(folder: Path, name: str, *flags: str, width: int = 1280) -> dict:
    """What the page says about itself. Narrow widths go through a frame: windows have a least width."""
    page = folder / "measured.html"
    if width < 600:
        frame = folder / f"{name}.html"
        frame.write_text(FRAME.format(page=page.name, width=width))
        page = frame
    command = [str(CHROMIUM), *FLAGS, *flags, f"--user-data-dir={folder / name}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    text = done.stdout.decode(errors="replace")
    found = re.search(r'data-facts="([^"]*)"', text)
    assert found, f"the page did not finish: {text[:300]} {done.stderr.decode(errors='replace')[-500:]}"
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> dict[str, dict]:
    """The page at desktop width with a mouse, in a phone's width, and in a dark desktop; all at once."""
    folder = tmp_path_factory.mktemp("browser")
    page = build(example(), folder / "report.html").read_text()
    (folder / "measured.html").write_text(instrument(page))
    mouse = "primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4"
    runs = {
        "desk": (f"--blink-settings={mouse},preferredColorScheme=1",),
        "phone": (),
        "dark": ("--blink-settings=preferredColorScheme=0",),
    }
    with ThreadPoolExecutor(3) as pool:
        jobs = {n: pool.submit(browse, folder, n, *f, width=360 if n == "phone" else 1280) for n, f in runs.items()}
        return {name: job.result() for name, job in jobs.items()}


PLOTS = 10  # three curves, successes over queries and seconds, two norms of smallest changes, the search, two probes
WHERE = ("desk", "phone", "dark")


@pytest.mark.parametrize("where", WHERE)
def test_no_error_and_no_request(facts, where):
    assert facts[where]["problems"] == []
    assert facts[where]["resources"] == []


@pytest.mark.parametrize("where", WHERE)
def test_every_plot_is_drawn_inside_its_column(facts, where):
    assert len(facts[where]["plots"]) == PLOTS
    assert all(facts[where]["plots"])
    assert facts[where]["errorBars"] > 20
    assert all(abs(outer - inner) <= 1 for outer, inner in facts[where]["plotWidths"])


@pytest.mark.parametrize("where", WHERE)
def test_nothing_is_wider_than_the_window(facts, where):
    assert facts[where]["width"] == (360 if where == "phone" else 1280)
    assert facts[where]["scrollWidth"] <= facts[where]["width"]
    assert facts[where]["wide"] == []


@pytest.mark.parametrize("where", WHERE)
def test_the_keyboard_reaches_everything(facts, where):
    assert facts[where]["focusable"] > 20
    assert facts[where]["unreachable"] == []
    assert facts[where]["scrollingWithoutTab"] == []


def test_an_image_opens_larger_and_arrow_keys_move_on(facts):
    assert facts["desk"]["opened"]
    assert facts["desk"]["enlarged"] > 2
    assert facts["desk"]["moved"]
    assert facts["desk"]["returned"]
    assert facts["phone"]["enlarged"] > 1.2


def test_dark_mode_changes_page_and_plots_and_print_is_light(facts):
    light, dark = facts["desk"], facts["dark"]
    assert light["background"] == "rgb(255, 255, 255)"
    assert dark["background"] == "rgb(20, 23, 26)"
    assert light["ink"] != dark["ink"]
    assert dark["printed"] == {"ink": light["ink"], "background": light["background"], "closed": 0}
    assert dark["after"] == {"ink": dark["ink"], "background": dark["background"], "closed": PLOTS}


def test_no_button_offers_to_upload(facts):
    assert "Reset axes" in facts["desk"]["buttons"]
    assert not [b for b in facts["desk"]["buttons"] if re.search("share|cloud|edit|studio", b, re.I)]
