"""kedro-viz shows the lineage: the static site is built and a browser finds the nodes on it."""

from __future__ import annotations

import pytest

from docs.pictures import served
from tests.journeys.conftest import kedro, write_parameters
from tests.test_registry import SEVEN

pytestmark = pytest.mark.journey


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


def test_the_page_shows_seven_pipelines_and_the_layers(dumped_page, site, tmp_path):
    shown = dumped_page(site, tmp_path, 30_000)
    for name in SEVEN:
        assert f">{name}<" in shown, name
    for layer in ("raw", "intermediate", "primary", "feature", "model_output", "reporting"):
        assert f">{layer}<" in shown, layer
    for dataset in ("slides", "tiles", "embeddings.efficientnet_lite0", "summary"):
        assert f">{dataset}<" in shown, dataset
