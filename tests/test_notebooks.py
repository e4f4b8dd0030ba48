"""The notebooks run from top to bottom, and are committed without what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
#: What the first notebook loads: datasets of a whole run of the phantom cohort.
AUDIT = (
    "02_intermediate/slides.parquet",
    "02_intermediate/design.parquet",
    "02_intermediate/design_summary.json",
    "03_primary/tiles.parquet",
    "07_model_output/robustness_k.json",
    "08_reporting/measurements.parquet",
    "08_reporting/findings.parquet",
    "08_reporting/verdicts.parquet",
    "08_reporting/controls.parquet",
    "08_reporting/provenance.json",
)


def read(name: str) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOKS / name, as_version=4)


def execute(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook where it lies, as a person does; the first error ends it."""
    nbclient = pytest.importorskip("nbclient")
    for variable in ("KEDRO_ENV", "PATHFM_PIN_VERSION", "PATHFM_CONF_SOURCE"):
        monkeypatch.delenv(variable, raising=False)
    notebook = read(name)
    resources = {"metadata": {"path": str(NOTEBOOKS)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    return notebook


def shown(notebook: Any) -> list[str]:
    """Kinds of everything that the cells displayed."""
    return [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind in output.get("data", {})
    ]


def test_an_audit_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    audited = PROJECT / "data" / "phantom"
    missing = [path for path in AUDIT if not any((audited / path).glob("*/" + Path(path).name))]
    if missing:
        pytest.skip(f"no whole audit of the phantom cohort, no {missing[0]}: run `make demo`")
    kinds = shown(execute("01_read_an_audit.ipynb", monkeypatch))
    assert sum("plotly" in kind for kind in kinds) == 2


def test_vectors_of_ones_own_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    execute("02_measure_your_own_vectors.ipynb", monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "00_a_first_audit",
        "03_your_own_encoder",
        "04_your_own_features",
        "05_a_new_experiment",
    ],
)
def test_what_a_person_brings_can_be_tried(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("h5py")
    execute(f"{name}.ipynb", monkeypatch)


def test_every_notebook_is_run() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    assert all(path.stem in text for path in NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_committed_notebooks_hold_no_outputs(path: Path) -> None:
    notebook = read(path.name)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_name_no_place_on_anyones_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for place in ("/home/", "/Users/", "/tmp/", "C:\\\\"):
        assert place not in text
