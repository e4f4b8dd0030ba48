"""The documentation becomes a site: every link holds, nothing is fetched from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import generate
from tests.conftest import PROJECT

FETCHED = re.compile(
    r"<(?:script|img|iframe)[^>]+src=\"?(https?:|//)|<link[^>]+href=\"?(https?:|//)"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_every_experiment_and_every_module_has_its_page(site: Path) -> None:
    text = generate.PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert len(titles) > 30
    for title in titles:
        assert (site / "experiments" / generate.anchor(title) / "index.html").is_file(), title
    for module in (PROJECT / "src/pathfm_kedro/statistics").glob("[a-z]*.py"):
        page = site / "reference/pathfm_kedro/statistics" / module.stem / "index.html"
        assert f"pathfm_kedro.statistics.{module.stem}" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_site_asks_no_other_host_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        assert not FETCHED.search(page.read_text(encoding="utf-8")), page


def test_every_page_is_in_the_navigation() -> None:
    text = (PROJECT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/.-]+\.md", text)) | {"experiments.md"}
    pages = {page.name for page in (PROJECT / "docs").glob("*.md")}
    assert pages <= named, "name the page in mkdocs.yml"
