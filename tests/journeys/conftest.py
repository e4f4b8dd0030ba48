"""Drive the project as a user does: in a copy of its own, through the command line.

For tests in this folder::

    from tests.journeys.conftest import dvc, fresh_clone, git, kedro

    def test_something(clone):            # one copy that a session's tests share
        result = kedro(clone, "registry", "list")
        assert "ingest" in result.stdout

    @pytest.fixture(scope="module")
    def own(tmp_path_factory):            # a copy that no other test touches
        return fresh_clone(tmp_path_factory)

`kedro`, `dvc` and `git` return a ``CompletedProcess`` with text in ``stdout`` and ``stderr``. A
command that ends with an error fails the test with the end of its output, unless ``check=False``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from tests.conftest import PROJECT

#: What a failing command's message shows of its output: enough for a traceback.
_TAIL = 6000
#: A command that takes longer hangs.
# An audit of real tiles takes ten minutes on two busy cores.
_LIMIT_SECONDS = 1700
_QUIET = {"DO_NOT_TRACK": "1", "KEDRO_DISABLE_TELEMETRY": "1", "DVC_NO_ANALYTICS": "1"}
_GIT_IDENTITY = (
    "-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false",
)  # fmt: skip


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in a git repository of its own, shared by the session's tests."""
    return fresh_clone(tmp_path_factory)


def fresh_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project as it is now, committed to a git repository of its own.

    Tracked files and those that git would track, so that work in progress is tested before it is
    committed; no data, no builds, no environment.
    """
    folder = tmp_path_factory.mktemp("clone") / "project"
    listed = run(PROJECT, "git", "ls-files", "-co", "--exclude-standard", "-z").stdout
    for name in filter(None, listed.split("\0")):
        # A tracked file may be deleted in the working tree.
        if (PROJECT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, folder / name)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--no-verify", "-m", "copy")
    return folder


def run(
    folder: Path,
    *words: str | Path,
    env: Mapping[str, str] | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; fail with the end of its output.

    Parameters
    ----------
    folder
        Where it runs, usually a clone.
    words
        The command and its arguments; programs of this Python's environment come first.
    env
        Variables beside those of the shell, from which ``KEDRO_ENV`` and ``PATHFM_*`` are removed.
    check
        Whether a command that ends with an error fails the test.
    """
    result = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=_environment() | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if check and result.returncode:
        told = (result.stdout + result.stderr)[-_TAIL:]
        pytest.fail(f"{' '.join(map(str, words))} ended with {result.returncode}:\n{told}")
    return result


def kedro(
    folder: Path, *words: str | Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``kedro ...`` in a clone; the clone's own ``src`` is what it imports."""
    return run(folder, sys.executable, "-m", "kedro", *words, env=env, check=check)


def dvc(
    folder: Path, *words: str | Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``dvc ...`` in a clone."""
    return run(folder, sys.executable, "-m", "dvc", *words, env=env, check=check)


def git(
    folder: Path, *words: str | Path, env: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run ``git ...`` in a clone, with an identity so that it can commit."""
    return run(folder, "git", *_GIT_IDENTITY, *words, env=env, check=check)


#: What is trained for a cohort, made small: journeys ask how runs go, not what these find.
SMALL_INHERITANCE: dict[str, Any] = {
    "arms": {"tiles_per_slide": 2},
    "pretraining_noise": {"pretraining": {"epochs": 1}, "nmtune": {"epochs": 1}, "draws": 100},
    "pretext_tasks": {"tasks": ["simclr"], "epochs": 1, "draws": 100},
    "label_budget": {"budgets": [1.0], "draws": 100},
    "task_specific": {"budgets": [1.0], "repeats": 1, "training": {"steps": 4}, "draws": 100},
}
SMALL_RETRIEVE: dict[str, Any] = {
    "capacity": {"dimensions": [4], "max_steps": 1000},
    "retrieval": {"draws": 500, "n_permutations": 50},
}

#: Fewer angles, draws and permutations than an audit takes: the figures stay, the time goes.
SMALL_ROBUSTNESS: dict[str, Any] = {
    "robustness_index": {"draws": 500, "n_permutations": 50},
    "robustness_margins": {"draws": 500, "n_permutations": 50},
    "tile_pool": {"max_tiles": 24},
    "rotation": {"angle_step": 45, "k": [5, 10], "draws": 500},
    "appearance": {"jitter": [0.1], "jpeg": [70], "blur": [1.0], "gamma": [0.8], "draws": 500},
    "texture": {"grids": [4], "draws": 500},
    "crop_coherence": {"n_local": 2, "draws": 500},
    "clustering_score": {"restarts": 3, "n_permutations": 50},
    "performance_drop": {"repeats": 5},
    "adversarial": {
        "max_tiles": 12,
        "epsilons": [2],
        "pgd_steps": [5],
        "universal": None,
        "transfer_epsilon": 2,
    },
}


def write_parameters(folder: Path, cohort: str, pipeline: str, **entries: Any) -> None:
    """Write what a cohort changes into its parameters_<pipeline>.yml, as a person does."""
    path = folder / "conf" / cohort / f"parameters_{pipeline}.yml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")


def newest(folder: Path, cohort: str, dataset: str) -> Path:
    """Newest version of a dataset: ``newest(clone, "phantom", "03_primary/tiles.parquet")``.

    Of a dataset that shares its versions with a family, name the family's folder and the file:
    ``04_feature/embeddings/*/stain_statistics``.
    """
    base = folder / "data" / cohort
    pattern = dataset if "*" in dataset else f"{dataset}/*/{Path(dataset).name}"
    found = sorted(base.glob(pattern))
    if not found:
        pytest.fail(f"no version of {dataset} below {base}")
    return found[-1]


def read_table(folder: Path, cohort: str, dataset: str) -> pl.DataFrame:
    """Newest version of a Parquet table of a cohort."""
    return pl.read_parquet(newest(folder, cohort, dataset))


def _environment() -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "KEDRO_ENV" and not name.startswith("PATHFM_")
    }
    # Not resolved: the link in a virtual environment's bin is what tells Python of it.
    programs = Path(sys.executable).parent
    return kept | _QUIET | {"PATH": f"{programs}{os.pathsep}{kept.get('PATH', '')}"}
