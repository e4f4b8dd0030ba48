"""Pictures of the README: `make pictures`, from the phantom's newest report and its lineage.

A headless Chromium shows the first screen of the report and the graph of kedro-viz with its pipelines
folded; both are stored with few colours, small enough for a repository.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "images"
COHORT = "phantom"
REPORTS = "08_reporting/report.html/*/report.html"
#: Enough for text, lines and the colours of verdicts.
COLOURS = 48
#: What kedro-viz remembers of a reader who has seen its hints and folded everything beside the graph.
VIZ = {
    "theme": "light",
    "showFeatureHints": False,
    "visible": {"sidebar": False, "miniMap": False},
}
#: Milliseconds until a graph of some hundred nodes is drawn on a busy machine.
_PATIENCE = 180_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    """Take both pictures; without a report the lineage alone."""
    from playwright.sync_api import sync_playwright

    found = installed_browser()
    if found is None:
        sys.exit(f"no browser is installed: one of {', '.join(BROWSERS)} is needed")
    reports = sorted((ROOT / "data" / COHORT).glob(REPORTS))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        if reports:
            store(front(browser, reports[-1]), "report.png")
        else:
            print(f"data/{COHORT} has no report, its picture stays as it is: make demo")
        with lineage() as address:
            store(graph(browser, address), "lineage.png")
        browser.close()


def installed_browser() -> str | None:
    """A Chromium of the system; None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def front(browser: Any, report: Path) -> bytes:
    """The first screen of a report."""
    page = browser.new_page(viewport={"width": 1280, "height": 840})
    page.goto(report.as_uri())
    picture: bytes = page.locator(".front").screenshot()
    return picture


def graph(browser: Any, address: str) -> bytes:
    """The lineage from raw to reporting."""
    page = browser.new_page(viewport={"width": 1500, "height": 900})
    page.add_init_script(f"localStorage.setItem('KedroViz', {json.dumps(json.dumps(VIZ))})")
    page.set_default_timeout(_PATIENCE)
    page.goto(address)
    page.wait_for_selector(".pipeline-node")
    # The graph is zoomed in until it fills its place.
    page.wait_for_timeout(3000)
    picture: bytes = page.locator(".pipeline-flowchart").screenshot()
    return picture


@contextmanager
def lineage() -> Iterator[str]:
    """The address of kedro-viz's static site, built elsewhere and served on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(
            ROOT, project, ignore=shutil.ignore_patterns("data", ".git", ".dvc", ".venv")
        )
        command = [sys.executable, "-m", "kedro", "viz", "build"]
        subprocess.run(command, cwd=project, check=True)  # noqa: S603 (the project itself)
        with served(project / "build") as address:
            yield address


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address at which this machine serves a folder of static pages."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves without a word."""

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def store(picture: bytes, name: str) -> None:
    """Write a PNG of few colours."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    few = image.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(FOLDER / name, optimize=True)
    print(f"docs/images/{name}: {(FOLDER / name).stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
