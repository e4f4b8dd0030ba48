"""The report in a browser: axe-core finds nothing, it fits three widths, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pathfm_kedro.pipelines.report.page import render_report
from tests.conftest import AXE_RULES

pytestmark = pytest.mark.slow

#: Schemes of what lies in the page itself.
OWN = ("file:", "data:", "blob:")
UNFOLD = "document.querySelectorAll('details').forEach(fold => { fold.open = true; })"


@pytest.fixture(scope="module")
def report(report_inputs: dict[str, Any]) -> str:
    return render_report(**report_inputs)


@pytest.fixture(scope="module")
def shown(browser: Any, report: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The report with everything unfolded, and what it asked for from outside."""
    file: Path = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(report, encoding="utf-8")
    # The page forbids what playwright waits with.
    page = browser.new_page(viewport={"width": 1280, "height": 900}, bypass_csp=True)
    page.asked = []
    page.on("request", lambda request: page.asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_function("window.Plotly")
    page.evaluate(UNFOLD)
    yield page
    page.close()


def test_the_report_parses_strictly(report: str) -> None:
    html5lib = pytest.importorskip("html5lib", reason="needs html5lib")
    html5lib.HTMLParser(strict=True).parse(report)


def test_axe_finds_nothing(shown: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-core")
    shown.set_viewport_size({"width": 1280, "height": 900})
    # A plot is one picture with a text of its own.
    outside = {"exclude": [[".plot"]]}
    answer = axe.Axe().run(shown, context=outside, options={"runOnly": AXE_RULES}).response
    found = [(v["id"], [node["target"] for node in v["nodes"]]) for v in answer["violations"]]
    assert found == []


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(shown: Any, width: int) -> None:
    shown.set_viewport_size({"width": width, "height": 900})
    assert shown.evaluate("document.documentElement.scrollWidth") <= width


def test_nothing_is_fetched(shown: Any) -> None:
    assert [url for url in shown.asked if not url.startswith(OWN)] == []
