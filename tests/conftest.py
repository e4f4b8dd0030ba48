"""What several tests share."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import tifffile
import yaml
from hypothesis import settings

from docs.pictures import BROWSERS, installed_browser

#: Each worker has a core: small matrices and networks take several times as long where threads wait for
#: each other. Programs that a test starts have it from here.
for library in ("OMP", "OPENBLAS", "MKL"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

PROJECT = Path(__file__).parents[1]
#: Real slides and tiles to test against; they lie beside the project, or where the variable says.
REAL_DATA = Path(os.environ.get("PATHFM_REAL_DATA", PROJECT.parent / "shared" / "data"))

#: Property tests draw the same examples in every run: a failure on one machine is one on all.
#: HYPOTHESIS_PROFILE=random draws new ones, to look for what nobody thought of.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


#: What axe-core looks for on a page.
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser of the system."""
    found = installed_browser()
    if found is None:
        pytest.skip(f"no browser is installed: one of {', '.join(BROWSERS)} is needed")
    return found


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A headless Chromium of the system."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def dumped_page(chromium: str) -> Callable[[str, Path, int], str]:
    """What a page at an address is once its scripts have run for so many virtual milliseconds."""

    def dump(address: str, profile: Path, milliseconds: int) -> str:
        words = [
            "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", f"--virtual-time-budget={milliseconds}", "--dump-dom",
        ]  # fmt: skip
        return subprocess.run(
            [chromium, *words, address], capture_output=True, text=True, timeout=120, check=True
        ).stdout

    return dump


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Journeys first: what takes minutes is not left for one worker at the end."""
    items.sort(key=lambda item: item.get_closest_marker("journey") is None)


@functools.cache
def files_of_base() -> dict[str, dict[str, Any]]:
    """Parameters that each file of conf/base holds; not to be changed."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files = sorted((PROJECT / "conf" / "base").glob("parameters*.yml"))
    return {path.name: yaml.load(path.read_bytes(), loader) or {} for path in files}


def base_parameters() -> dict[str, Any]:
    """The parameters of conf/base, those of sizes included."""
    return copy.deepcopy({k: v for held in files_of_base().values() for k, v in held.items()})


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real slides and tiles, which lie beside the project and are not part of it."""
    if not (REAL_DATA / "index.csv").is_file():
        pytest.skip("the folder of real slides and tiles is not on this machine")
    return REAL_DATA


def write_tiff(path: Path, pixels: np.ndarray, mpp: float | None = 0.5) -> Path:
    """Write a pyramidal TIFF that OpenSlide opens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = {} if mpp is None else {"resolution": (1e4 / mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(
            pixels, tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None, **scale
        )
        half = {} if mpp is None else scale | {"resolution": (5e3 / mpp,) * 2}
        file.write(
            np.ascontiguousarray(pixels[::2, ::2]),
            tile=(256, 256),
            compression="jpeg",
            photometric="rgb",
            subfiletype=1,
            metadata=None,
            **half,
        )
    return path


@pytest.fixture
def pink_slide() -> np.ndarray:
    """White glass with a square of tissue: [1024, 1024, 3], tissue from 256 to 768."""
    generator = np.random.default_rng(0)
    pixels = np.full((1024, 1024, 3), 244, np.uint8)
    tissue = np.array([205, 120, 175]) + generator.normal(0, 12, (512, 512, 3))
    pixels[256:768, 256:768] = tissue.clip(0, 255).astype(np.uint8)
    return pixels


def manifest_row(slide_id: str, **changes: str) -> dict[str, str]:
    """One good row of a manifest."""
    return {
        "slide_id": slide_id,
        "path": f"{slide_id}.tiff",
        "patient_id": f"patient-{slide_id}",
        "center": "A",
        "label": "x",
    } | changes


def manifest(*rows: dict[str, str]) -> pl.DataFrame:
    """A manifest as it comes from a file: every cell text."""
    return pl.DataFrame(list(rows)).cast(pl.String)
