"""kedro-viz shows the lineage: the static site is built and a browser finds the nodes on it."""

from __future__ import annotations

import subprocess

import pytest

from docs.pictures import BROWSERS, installed_browser, served
from tests.journeys.conftest import kedro, write_parameters
from tests.test_registry import SEVEN

pytestmark = pytest.mark.journey

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> str:
    found = installed_browser()
    if found is None:
        pytest.skip(f"no browser is installed: one of {', '.join(BROWSERS)} is needed")
    return found


@pytest.fixture(scope="module")
def site(clone):
    """The static site of the phantom cohort with one encoder, served on this machine."""
    # kedro-viz takes the square of the number of boxes.
    truth = {"model": "control:phantom_truth", "role": "control"}
    encoders = {"noise": None, "stain_statistics": None, "phantom_truth": truth}
    write_parameters(clone, "phantom", "encoders", encoders=encoders)
    kedro(clone, "viz", "build")
    with served(clone / "build") as address:
        yield address


def page(browser: str, address: str, folder) -> str:
    return subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={folder}", "--virtual-time-budget=30000",
         "--dump-dom", address],
        capture_output=True, text=True, timeout=120, check=True,
    ).stdout  # fmt: skip


def test_the_page_shows_seven_pipelines_and_the_layers(browser, site, tmp_path):
    shown = page(browser, site, tmp_path)
    for name in SEVEN:
        assert f">{name}<" in shown, name
    for layer in ("raw", "intermediate", "primary", "feature", "model_output", "reporting"):
        assert f">{layer}<" in shown, layer
    for dataset in ("slides", "tiles", "embeddings.efficientnet_lite0", "summary"):
        assert f">{dataset}<" in shown, dataset
