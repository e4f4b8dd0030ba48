"""What DVC makes its stages of: the cohorts of conf/ and their encoders, in params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pathfm_kedro.cohorts import (
    harmonised_bases,
    read_cohort_plan,
    refuse_unknown_cohort,
    seeds_of_rivals,
    tiles_of_cohort,
    weights_path,
)

#: What DVC watches where an entry names no weights of its own. A stage cannot leave a dependency out;
#: this one lies in a folder that the stage depends on anyway, so it changes nothing.
_NO_WEIGHTS = "src/pathfm_kedro/encoders/weights.py"
#: The same where no file says where the cohort's tiles lie.
_NO_PLACES = "src/pathfm_kedro/slides/mosaic.py"
#: Folders of conf/ that are no cohorts.
RESERVED = {"base", "local", "scenarios"}


def dvc_parameters(root: Path) -> dict[str, Any]:
    """What params.yaml must hold for the cohorts in conf/.

    Parameters
    ----------
    root
        The project's folder.

    Returns
    -------
    dict
        ``cohorts`` (what DVC watches of each: the manifest, or what was drawn),
        ``phantoms`` (cohorts whose slides are drawn),
        ``embeddings`` (every pair of cohort and encoder, and the encoder's weights where its entry
        names a file or folder), ``features`` (those that are read from files, of tiles of their own),
        ``rivals`` (encoders that are trained on the cohort, with their seed)
        and ``variants`` (those whose vectors are another encoder's with the center taken out).
    """
    plans = {name: read_cohort_plan(name, str(root / "conf")) for name in cohort_names(root)}
    tiles = {name: tiles_of_cohort(plan) for name, plan in plans.items()}
    brought = {name: own.grids.keys() & set(own.features) for name, own in tiles.items()}
    return {
        "cohorts": {
            name: {
                "input": cohort_globals(root, name)[_watched(plan.source)],
                "places": weights_path(plan.encoders.get(tiles[name].at, {})) or _NO_PLACES,
                "grids": ", ".join(sorted(tiles[name].sizes)),
            }
            for name, plan in plans.items()
        },
        "phantoms": {
            name: {"slides_root": cohort_globals(root, name)["slides_root"]}
            for name, plan in plans.items()
            if plan.source == "phantom"
        },
        "embeddings": {
            f"{name}-{encoder}": {
                "cohort": name,
                "encoder": encoder,
                "weights": weights_path(entry) or _NO_WEIGHTS,
            }
            for name, plan in plans.items()
            for encoder, entry in plan.encoders.items()
            if encoder not in harmonised_bases(plan.encoders) | seeds_of_rivals(plan.encoders)
            and encoder not in brought[name]
        },
        "rivals": {
            f"{name}-{encoder}": {"cohort": name, "encoder": encoder, "seed": str(seed)}
            for name, plan in plans.items()
            for encoder, seed in seeds_of_rivals(plan.encoders).items()
        },
        "features": {
            f"{name}-{encoder}": {
                "cohort": name,
                "encoder": encoder,
                "folder": weights_path(plans[name].encoders[encoder]),
            }
            for name, encoders in brought.items()
            for encoder in sorted(encoders)
        },
        "variants": {
            f"{name}-{encoder}": {"cohort": name, "encoder": encoder, "base": base}
            for name, plan in plans.items()
            for encoder, base in harmonised_bases(plan.encoders).items()
        },
    }


def _watched(source: str) -> str:
    """A manifest stands for terabytes of pixels; a phantom's pixels are few and change with it."""
    return "slides_root" if source == "phantom" else "manifest"


def sync_stages(root: Path) -> None:
    """Write params.yaml, from which DVC makes its stages."""
    import yaml

    text = (
        "# The cohorts that `dvc repro` audits. Written by `kedro cohort new` and `kedro cohort sync`\n"
        "# from the folders in conf/; run the latter after adding an encoder to a cohort.\n"
    )
    listed = yaml.safe_dump(dvc_parameters(root), sort_keys=True, default_flow_style=False)
    (root / "params.yaml").write_text(text + listed, encoding="utf-8")


def cohort_names(root: Path) -> list[str]:
    """Cohorts of the project, sorted."""
    found = {path.parent.name for path in (root / "conf").glob("*/globals.yml")} - RESERVED
    for name in sorted(found):
        refuse_unknown_cohort(name, root / "conf")
    return sorted(found)


def cohort_globals(root: Path, name: str) -> dict[str, str]:
    """Where a cohort's data, slides and manifest lie: its ``globals.yml``."""
    import yaml

    text = (root / "conf" / name / "globals.yml").read_text(encoding="utf-8")
    loaded: dict[str, str] = yaml.safe_load(text)
    return loaded
