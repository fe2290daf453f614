"""What tests of the report read from a page: its texts, links, ids and plots."""

from html.parser import HTMLParser

import pytest

from report_example import example
from stochade.audit.result import Audit
from stochade.report import build


class Page(HTMLParser):
    """What a reader meets (text outside scripts and styles), the elements, and the scripts."""

    def __init__(self, source: str):
        super().__init__()
        self.words, self.elements, self.scripts, self._inside = [], [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag
            if tag == "script":
                self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def audit() -> Audit:
    return example()


@pytest.fixture(scope="module")
def source(audit, tmp_path_factory) -> str:
    return build(audit, tmp_path_factory.mktemp("report") / "a.html").read_text()


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)
