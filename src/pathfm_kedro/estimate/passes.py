"""Passes of experiments that show an encoder tiles, changed tiles and wider fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from pathfm_kedro.encoders.operations import LEARNT_PASS
from pathfm_kedro.estimate.sizes import CohortSize
from pathfm_kedro.slides.nested_fields import name_of

_RGB = 3


def work_on_pixels(
    parameters: Mapping[str, Any], size: CohortSize, sources: int, network: bool
) -> Iterator[tuple[str, int, int, int]]:
    """Experiment, passes, vectors that are stored, and bytes of pixels, for one encoder.

    Parameters
    ----------
    parameters
        All parameters, the audit's size applied.
    size
        Of the cohort.
    sources
        Other encoders whose adversarial tiles it is shown.
    network
        Whether it is attacked itself.
    """
    yield "embed", size.tiles, size.tiles, 0
    for experiment, each in passes_per_tile(parameters, size.centers).items():
        pool = parameters["field_of_view" if experiment == "field_of_view" else "tile_pool"]
        tiles = min(int(pool["max_tiles"]), size.tiles)
        yield experiment, tiles * each, tiles * each, 0
    passes = passes_of_mosaic_fields(parameters, size)
    yield "mosaic_field", passes, passes, 0
    if parameters["cohort"].get("same_tissue"):
        passes = tiles_of_same_tissue(parameters, size.table)
        yield "same_tissue", passes, passes, 0
    yield attacks_on(parameters, size, sources, network)


def attacks_on(
    parameters: Mapping[str, Any],
    size: CohortSize,
    sources: int,
    network: bool,
    universal: bool = True,
) -> tuple[str, int, int, int]:
    """Adversarial noise alone, as of :func:`work_on_pixels`.

    Parameters
    ----------
    parameters, size, sources, network
        As there.
    universal
        Whether the perturbation for all tiles is fitted: a variant takes that of its encoder.
    """
    from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial

    p = _read(Adversarial, "adversarial", parameters)
    tiles, picture = min(p.max_tiles, size.tiles), _RGB * int(parameters["tile"]["pixels"]) ** 2
    # Without a gradient only noise is embedded, beside what was made against others.
    images = len(p.noises) + sources + (len(p.white_box) if network else 0)
    passes = tiles * images
    if network:
        steps = 1 + sum(p.pgd_steps)
        passes += tiles * LEARNT_PASS * len(p.epsilons) * steps
        if p.published is not None:
            passes += tiles * LEARNT_PASS * p.published.steps
        if p.universal is not None and universal:
            fit = p.universal
            passes += 2 * len(fit.epsilons) * fit.tiles * fit.steps * LEARNT_PASS
    # One picture for other encoders, and what was changed of one.
    return "adversarial", passes, tiles * images, 2 * tiles * picture if network else 0


def passes_per_tile(parameters: Mapping[str, Any], centers: int) -> dict[str, int]:
    """How often each experiment on changed pixels embeds a tile, or a place.

    Parameters
    ----------
    parameters
        All parameters.
    centers
        Of the cohort, whose stains tiles are given.
    """
    from pathfm_kedro.pipelines.robustness.appearance import Appearance
    from pathfm_kedro.pipelines.robustness.crop_coherence import CropCoherence, crop_views
    from pathfm_kedro.pipelines.robustness.field_of_view import FieldOfView
    from pathfm_kedro.pipelines.robustness.rotation import Rotation, rotation_views
    from pathfm_kedro.pipelines.robustness.texture import Texture, texture_views
    from pathfm_kedro.slides.nested_fields import Layout

    looks = _read(Appearance, "appearance", parameters)
    targets = min(looks.max_targets, max(centers - 1, 0))
    doses = sum(map(len, (looks.jitter, looks.jpeg, looks.blur, looks.gamma)))
    side = int(parameters["tile"]["pixels"])
    fields = _read(FieldOfView, "field_of_view", parameters).fields_around(side)
    # At native size a field costs as many tiles as its pixels hold.
    native = sum(round(width * height / side**2) for width, height in fields[1:])
    return {
        "rotation": len(rotation_views(_read(Rotation, "rotation", parameters), 1).settings),
        "appearance": 1 + doses + 2 * targets,
        "texture": len(texture_views(_read(Texture, "texture", parameters)).settings),
        "crop_coherence": len(
            crop_views(_read(CropCoherence, "crop_coherence", parameters)).settings
        ),
        "field_of_view": len(Layout.of(fields).parts) + native,
    }


def passes_of_mosaic_fields(parameters: Mapping[str, Any], size: CohortSize) -> int:
    """Passes of all places of mosaics: as tiles, as wider fields, and covered with tiles."""
    from pathfm_kedro.pipelines.retrieve.mosaic_field import MosaicField
    from pathfm_kedro.pipelines.retrieve.mosaic_views import view_of_mosaic_fields

    p, pixels = _read(MosaicField, "mosaic_field", parameters), int(parameters["tile"]["pixels"])
    if size.places is not None:
        places = size.places.group_by("field").agg(pl.len())
        by_field = [places.filter(field=name) for name in places["field"]]
        return sum(
            int(own["len"][0]) * len(view_of_mosaic_fields(own, pixels, p).parts)
            for own in by_field
        )
    whole = pl.DataFrame({"field": [name_of(p.fields_around(pixels)[-1])]})
    return size.slides * int(p.places) * len(view_of_mosaic_fields(whole, pixels, p).parts)


def tiles_of_same_tissue(parameters: Mapping[str, Any], slides: pl.DataFrame) -> int:
    """Tiles of slides that show one tissue: at most, since some places have no room on a repeat.

    Parameters
    ----------
    parameters
        All parameters.
    slides
        slide_id, same_tissue_as, status and n_tiles.
    """
    repeats = slides.filter(status="repeat").group_by("same_tissue_as").agg(repeats=pl.len())
    shown = slides.join(repeats, left_on="slide_id", right_on="same_tissue_as")
    places = pl.col("n_tiles").clip(0, int(parameters["same_tissue"]["max_places"]))
    return int(shown.select((places * (1 + pl.col("repeats"))).sum()).item())


def _read(kind: Any, name: str, parameters: Mapping[str, Any]) -> Any:
    from pathfm_kedro.statistics.parameters import read_parameters

    return read_parameters(kind, name, parameters[name])
