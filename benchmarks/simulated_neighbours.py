"""Simulated cohorts whose tiles are neighbours: index, margins, clusters, probes."""

from __future__ import annotations

from typing import Any

import polars as pl
from simulated_cohorts import (
    CENTERS,
    LABELS,
    TILES,
    Asked,
    D,
    Generator,
    Stored,
    asked,
    block,
    codes,
    effects_of,
    one_shard_each,
    patients_table,
    read,
    tiles_of,
)

from pathfm_kedro.encoders.harmonised import center_maps
from pathfm_kedro.pipelines.inheritance.linear_probe import (
    LinearProbe,
    linear_probe_figures,
    linear_probe_statistics,
)
from pathfm_kedro.pipelines.robustness.center_auc import (
    CenterAuc,
    center_auc_figures,
    center_auc_statistics,
)
from pathfm_kedro.pipelines.robustness.clustering import (
    ClusteringScore,
    clustering_figures,
    clustering_statistics,
)
from pathfm_kedro.pipelines.robustness.margin_statistics import index_and_margin_statistics
from pathfm_kedro.pipelines.robustness.margins import (
    RobustnessMargins,
    robustness_margins_figures,
)
from pathfm_kedro.pipelines.robustness.performance_drop import (
    PerformanceDrop,
    performance_drop_figures,
    performance_drop_statistics,
)
from pathfm_kedro.pipelines.robustness.robustness_index import (
    RobustnessIndex,
    choose_k,
    robustness_index_figures,
)


def neighbours_cohort(
    patients: int,
    generator: Generator,
    label: float = 0.0,
    center: float = 0.0,
    patient: float = 0.5,
    variant: str = "",
) -> tuple[pl.DataFrame, pl.DataFrame, Stored]:
    """A cohort; effects are standard deviations in each dimension, a tile's own noise has 1.

    Parameters
    ----------
    patients, generator
        How many, and their source.
    label, center, patient
        Standard deviations of the effects.
    variant
        How centers are taken out, as the audit does; empty for not at all.
    """
    slides = patients_table(patients)
    mean = effects_of(LABELS, label, 0)[codes(slides["label"])]
    mean = mean + effects_of(CENTERS, center, 1)[codes(slides["center"])]
    mean = mean + patient * generator.standard_normal((patients, D))
    vectors = one_shard_each(
        slides, mean[:, None] + generator.standard_normal((patients, TILES, D))
    )
    if variant:
        shards = vectors.tensors["embedding"]
        maps = center_maps(slides, vectors, variant)  # type: ignore[arg-type]
        vectors = Stored(embedding={s: maps[s](shard) for s, shard in shards.items()})
    return slides, tiles_of(slides, TILES), vectors


def index_and_margins(
    patients: int, generator: Generator, k: int | None = None, **effects: Any
) -> list[Asked]:
    """Robustness index, at a k that is given or chosen, and margins."""
    data = neighbours_cohort(patients, generator, **effects)
    blocks = [block(name) for name in ("robustness_index", "robustness_margins")]
    blocks[0]["k"] = k
    counts, distances = index_and_margin_statistics(*data, *blocks)
    chosen = choose_k(blocks[0], encoder=counts)
    index = read(RobustnessIndex, "robustness_index")
    margins = read(RobustnessMargins, "robustness_margins")
    at_k = (
        f
        for f in robustness_index_figures(counts, chosen, index)
        if f.metric != "ri_ratio" or f.setting.get("role") == "cohort_k"
    )
    return [
        asked(at_k, "robustness_index", index, ["ri_ratio"]),
        asked(
            robustness_margins_figures(distances, chosen, margins), "robustness_margins", margins
        ),
    ]


def clusters(patients: int, generator: Generator, **effects: Any) -> list[Asked]:
    """Clusters."""
    p = read(ClusteringScore, "clustering_score")
    found = clustering_statistics(*neighbours_cohort(patients, generator, **effects), p)
    return [asked(clustering_figures(found, p), "clustering_score", p)]


def probes(patients: int, generator: Generator, **effects: Any) -> list[Asked]:
    """What probes read: described, so that only the intervals matter."""
    data = neighbours_cohort(patients, generator, **effects)
    linear = read(LinearProbe, "linear_probe")
    drop = read(PerformanceDrop, "performance_drop")
    auc = read(CenterAuc, "center_auc")
    figures = linear_probe_figures(linear_probe_statistics(*data, linear), linear)
    of_label = (f for f in figures if f.setting.get("target") == "label" and f.stratum == "all")
    of_embedding = (
        f
        for f in center_auc_figures(center_auc_statistics(*data, auc), auc)
        if f.setting.get("features") == "embedding" and f.stratum == "all"
    )
    dropped = performance_drop_figures(performance_drop_statistics(*data, drop), drop)
    overall = (f for f in dropped if f.stratum == "all")
    return [
        asked(of_label, "linear_probe", linear, ["balanced_accuracy"]),
        asked(overall, "performance_drop", drop, ["apd"]),
        asked(of_embedding, "center_auc", auc, ["center_auc"]),
    ]
