"""Measure the size of a report, and how soon a browser shows it; after `make demo`.

python benchmarks/bench_report.py --repeat 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))

from docs.pictures import REPORTS, installed_browser  # noqa: E402 (its folder is named above)

#: What the browser itself measured since the page was asked for.
_TIMES = """() => ({
    nodes: document.querySelectorAll("*").length,
    paint: performance.getEntriesByName("first-contentful-paint")[0].startTime,
    loaded: performance.getEntriesByType("navigation")[0].loadEventEnd,
})"""


def opened(browser: Any, report: Path) -> dict[str, float]:
    """Nodes of the page, milliseconds until its first screen is painted and until all is loaded."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(report.as_uri(), wait_until="load")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
    found: dict[str, float] = page.evaluate(_TIMES)
    page.close()
    return found


def main() -> None:
    """Print megabytes, nodes and medians over fresh pages, beside the load of the machine."""
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--report", type=Path, help="the phantom's newest by default")
    options.add_argument("--repeat", type=int, default=5)
    given = options.parse_args()
    reports = sorted((PROJECT / "data" / "phantom").glob(REPORTS))
    if given.report is None and not reports:
        sys.exit("the phantom has no report: make demo")
    report = (given.report or reports[-1]).resolve()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=installed_browser(), args=["--no-sandbox"]
        )
        found = [opened(browser, report) for _ in range(given.repeat)]
        browser.close()
    seconds = {
        name: round(statistics.median(one[name] for one in found) / 1000, 2)
        for name in ("paint", "loaded")
    }
    size = {"megabytes": round(report.stat().st_size / 1e6, 2), "nodes": found[0]["nodes"]}
    print(json.dumps(size | seconds | {"load_of_machine": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
