"""Simulated cohorts with known truth, and what the experiments make of them; see error_rates.py.

Vectors are sums of effects of label, center and patient and of each tile's own noise. Each cohort goes
through the experiments themselves, with the criteria of conf/base; only what makes them slow is changed
(`QUICKER`): fewer draws, fewer settings beside the judged one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from pathfm_kedro.encoders.harmonised import center_maps
from pathfm_kedro.pipelines.inheritance.linear_probe import (
    LinearProbe,
    linear_probe_figures,
    linear_probe_statistics,
)
from pathfm_kedro.pipelines.retrieve.accuracy import retrieval_figures
from pathfm_kedro.pipelines.retrieve.search import Retrieval, search_slides
from pathfm_kedro.pipelines.robustness.adversarial import ADVERSARIAL_SCHEMA, adversarial_figures
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    CLEAN as UNATTACKED,
)
from pathfm_kedro.pipelines.robustness.adversarial_pool import (
    SIGN_NOISE,
    Adversarial,
)
from pathfm_kedro.pipelines.robustness.appearance import (
    TRANSFERS,
    Appearance,
    appearance_figures,
    appearance_statistics,
    appearance_views,
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
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    CueConflict,
    cue_conflict_figures,
    cue_conflict_statistics,
)
from pathfm_kedro.pipelines.robustness.field_of_view import (
    FieldOfView,
    field_of_view_figures,
    field_of_view_statistics,
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
from pathfm_kedro.pipelines.robustness.rotation import (
    Rotation,
    rotation_figures,
    rotation_statistics,
    rotation_views,
)
from pathfm_kedro.pipelines.robustness.stain_probe import (
    StainProbe,
    stain_probe_figures,
    stain_probe_statistics,
)
from pathfm_kedro.pipelines.robustness.stain_references import (
    MOMENTS,
    REFERENCE_SCHEMA,
    target_centers,
)
from pathfm_kedro.slides.nested_fields import Layout
from pathfm_kedro.statistics.figures import Criterion, Figure, measure
from pathfm_kedro.statistics.paired_comparison import Judged, compare_encoders
from pathfm_kedro.statistics.parameters import ExperimentParameters, read_parameters

Floats = NDArray[np.float64]
Generator = np.random.Generator

CONF = Path(__file__).parents[1] / "conf/base"
#: Dimensions of a vector; labels, centers and organs of a cohort.
D, LABELS, CENTERS = 32, 4, 3
#: Tiles of a slide, and of a patient in the pool that is shown changed: as in the quick size, and of
#: large cohorts half of conf/base's pool or more, which is twice as quick.
TILES, POOLED = 8, {24: 3, 48: 2, 100: 5, 200: 3, 400: 2}

#: What differs from conf/base: fewer draws, since a verdict of one cohort in some hundreds need not be
#: steady, and fewer settings beside the one that is judged.
QUICKER: dict[str, dict[str, Any]] = {
    "robustness_index": {
        "designs": ["all"],
        "k_grid": [3, 9, 21],
        "k": None,
        "n_permutations": 100,
    },
    "robustness_margins": {"m": [5], "sampled_queries": 200, "n_permutations": 100},
    "clustering_score": {
        "max_tiles": 300,
        "k_range": [2, 12],
        "restarts": 2,
        "n_permutations": 100,
    },
    "rotation": {"angle_step": 45, "k": [10], "distances": ["euclidean"]},
    "appearance": {"jitter": [0.1], "jpeg": [70], "blur": [1.0], "gamma": [0.8], "max_targets": 2},
    "cue_conflict": {"k": [5]},
    "field_of_view": {
        "fields": [224, 512],
        "n_permutations": 100,
        "attention": {
            "folds": 2,
            "components": 2,
            "hidden": 2,
            "steps": 0,
            "learning_rate": 0.01,
            "weight_decay": 0.01,
        },
    },
    "adversarial": {"epsilons": [2, 8], "pgd_steps": [10], "universal": None},
    "retrieval": {
        "families": ["mean", "median_min", "maxsim", "bm25", "hybrid"],
        "scopes": ["within_organ"],
        "votes": ["mv5"],
        "n_permutations": 100,
    },
    "performance_drop": {"repeats": 5, "max_pairs": 3, "cramers_v": [0.0, 0.5, 1.0]},
    "center_auc": {"n_permutations": 20, "max_tiles": 300},
    "linear_probe": {"max_tiles_per_slide": 4},
    "stain_probe": {"n_permutations": 20},
}
_DRAWS = 400
#: Correlation of what two compared encoders make of the same patient, tile or change.
_SHARED = 0.6


@dataclass(frozen=True)
class Simulated:
    """An encoder whose effects are known.

    Attributes
    ----------
    wrong
        The verdict that it must not get; empty where the mean over cohorts says which side of the
        threshold it lies on.
    right
        The one that it should get; empty for none.
    effects
        What the simulation makes it of.
    """

    wrong: str = "pass"
    right: str = ""
    effects: Mapping[str, Any] = field(default_factory=dict)


def knowing(wrong: str = "pass", right: str = "", **effects: Any) -> Simulated:
    """An encoder with these effects."""
    return Simulated(wrong, right, effects)


@dataclass(frozen=True)
class Simulation:
    """Cohorts of one kind, the encoders they are seen by and what is measured on them.

    Attributes
    ----------
    encoders
        By what is said of them.
    sizes
        Patients.
    measured
        ``(patients, generator, **effects) -> figures``.
    of_pairs
        What `measured` takes where two encoders are compared.
    """

    encoders: Mapping[str, Simulated]
    sizes: Sequence[int]
    measured: Callable[..., Sequence[Asked]]
    of_pairs: Mapping[str, Any] = field(default_factory=dict)

    def cohort(self, encoder: str, patients: int, seed: int) -> pl.DataFrame:
        """Rows of one cohort; the seed changes who the patients are and nothing else."""
        generator = np.random.default_rng([seed, patients])
        found = self.measured(patients, generator, **self.encoders[encoder].effects)
        return pl.concat(each.rows() for each in found)

    def pair(self, encoder: str, patients: int, seed: int) -> pl.DataFrame:
        """Rows of the comparison of two encoders that are alike, on one cohort."""
        effects = {**self.encoders[encoder].effects, **self.of_pairs}
        both = [
            self.measured(patients, Sharing([seed, patients], who), **effects) for who in (1, 2)
        ]
        compared = (
            compare_encoders({"a": a.judged(), "b": b.judged()}, a.experiment)
            for a, b in zip(*both, strict=True)
        )
        return pl.concat(compared).filter(encoder="a")


class Sharing:
    """Random numbers of which two encoders of one cohort share a part: the same patients and tiles."""

    def __init__(self, seed: Sequence[int], who: int) -> None:
        self.common = np.random.default_rng(seed)
        self.own = np.random.default_rng([*seed, who])

    def standard_normal(self, size: Any = None) -> Any:
        """Of correlation `_SHARED` between the two."""
        common, own = self.common.standard_normal(size), self.own.standard_normal(size)
        return np.sqrt(_SHARED) * common + np.sqrt(1 - _SHARED) * own

    def random(self, size: Any = None) -> Any:
        """The same, uniform on 0 … 1."""
        from scipy.special import ndtr

        return ndtr(self.standard_normal(size))


class Stored:
    """Tensors of each slide, as the experiments read them."""

    def __init__(self, **tensors: Mapping[str, NDArray[Any]]) -> None:
        self.tensors = tensors
        self.slide_ids = tuple(sorted(next(iter(tensors.values()))))

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[Any]:
        """Rows of the given slides."""
        return np.concatenate([self.tensors[name][slide] for slide in slide_ids])

    def load_slide(self, slide_id: str, name: str = "embedding") -> NDArray[Any]:
        """Rows of one slide."""
        return self.tensors[name][slide_id]


@cache
def _blocks() -> dict[str, dict[str, Any]]:
    files = (CONF / f"parameters_{name}.yml" for name in ("robustness", "retrieve", "inheritance"))
    blocks = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in files]
    return {name: block for part in blocks for name, block in part.items()}


def block(experiment: str) -> dict[str, Any]:
    """An experiment's parameters in conf/base, made quicker."""
    return {**_blocks()[experiment], "draws": _DRAWS, **QUICKER.get(experiment, {})}


@cache
def read(kind: type[ExperimentParameters], experiment: str) -> Any:
    """The same, read."""
    return read_parameters(kind, experiment, block(experiment))


@dataclass(frozen=True)
class Asked:
    """Figures of an experiment that are looked at, and what they are held against."""

    experiment: str
    figures: Sequence[Figure]
    criteria: Sequence[Criterion]

    def rows(self) -> pl.DataFrame:
        """Rows of the result table."""
        return measure(self.figures, self.experiment, "encoder", self.criteria)

    def judged(self) -> Judged:
        """To be compared with another encoder of the same patients."""
        at = [Criterion(f.metric, 0.0, "above", f.setting, f.stratum) for f in self.figures]
        return Judged.of(self.figures, at, pl.DataFrame())


def asked(
    figures: Iterable[Figure],
    experiment: str,
    p: ExperimentParameters,
    beside: Sequence[str] = (),
) -> Asked:
    """The judged figures and those named."""
    kept = [f for f in figures if f.metric in beside or any(c.asks(f) for c in p.criteria)]
    return Asked(experiment, kept, p.criteria)


@cache
def effects_of(n: int, scale: float, kind: int) -> Floats:
    """[n, D] effects of labels (kind 0), centers (1) or organs (2), the same in every cohort."""
    fixed = np.random.default_rng(kind).standard_normal((n, D))
    return np.asarray(scale * fixed)


def patients_table(patients: int, organs: int = 1) -> pl.DataFrame:
    """One slide a patient; labels and centers take turns, so that every cell has as many."""
    who = np.arange(patients)
    return pl.DataFrame(
        {
            "slide_id": [f"s{i:04d}" for i in who],
            "patient_id": [f"s{i:04d}" for i in who],
            "center": [f"center {i // LABELS % CENTERS}" for i in who],
            "organ": [f"organ {i % organs}" for i in who],
            "label": [f"label {i % LABELS}" for i in who],
            "status": "usable",
        }
    )


def tiles_of(slides: pl.DataFrame, each: int) -> pl.DataFrame:
    """As many tiles of every slide, all in its mosaic."""
    rows = [(f"{slide}-{i}", slide) for slide in slides["slide_id"] for i in range(each)]
    table = pl.DataFrame(rows, schema=["tile_id", "slide_id"], orient="row")
    return table.with_columns(in_mosaic=pl.lit(True))


def codes(names: pl.Series) -> NDArray[np.int64]:
    """[n] number at the end of each name."""
    return np.array([int(name.rpartition(" ")[2]) for name in names])


# --- neighbours: index, margins, clusters, probes on all tiles ----------------------------------------


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
    shards = {
        slide: (own + generator.standard_normal((TILES, D))).astype(np.float32)
        for slide, own in zip(slides["slide_id"], mean, strict=True)
    }
    vectors = Stored(embedding=shards)
    if variant:
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


# --- changed tiles: rotation, stain and scanner, cue conflict, stain probe ----------------------------


def pooled_tiles(patients: int) -> pl.DataFrame:
    """The pool whose views are embedded."""
    each = POOLED[patients]
    slides = patients_table(patients)
    rows = slides.with_columns(pl.lit(list(range(each))).alias("i")).explode("i")
    return rows.with_columns(tile_id=pl.format("{}-{}", "slide_id", "i"), field=pl.lit("wide"))


def stored_views(pool: pl.DataFrame, views: Floats) -> Stored:
    """Vectors [n, views, D] of the pool's tiles by slide."""
    slides = pool["slide_id"].to_numpy()
    return Stored(
        views={s: views[slides == s].astype(np.float32) for s in pool["slide_id"].unique()}
    )


def pooled_vectors(
    pool: pl.DataFrame, generator: Generator, label: float, center: float
) -> tuple[Floats, Floats]:
    """[n, D] what of the pool's tiles is not the center's, and the center's part."""
    owner = np.unique(pool["patient_id"].to_numpy(), return_inverse=True)[1]
    own = 0.5 * generator.standard_normal((int(owner.max()) + 1, D))[owner]
    own = own + effects_of(LABELS, label, 0)[codes(pool["label"])]
    own = own + generator.standard_normal((pool.height, D))
    return own, effects_of(CENTERS, center, 1)[codes(pool["center"])]


def changes(pool: pl.DataFrame, generator: Generator, views: int, size: float) -> Floats:
    """[n, views, D] how views move: by patients who differ, half alike in all views of a tile."""
    owner = np.unique(pool["patient_id"].to_numpy(), return_inverse=True)[1]
    strength = size * np.exp(0.4 * generator.standard_normal(int(owner.max()) + 1))[owner]
    shared = generator.standard_normal((pool.height, 1, D))
    moved = (shared + generator.standard_normal((pool.height, views, D))) / np.sqrt(2)
    return np.asarray(strength[:, None, None] * moved)


def rotated(
    patients: int, generator: Generator, quarter: float = 0.0, between: float = 0.0
) -> list[Asked]:
    """Rotation: how far tiles move at quarter turns, and between them."""
    p, pool = read(Rotation, "rotation"), pooled_tiles(patients)
    settings = rotation_views(p, 1).settings
    own, _ = pooled_vectors(pool, generator, 0.5, 0.0)
    angles = np.array([setting["angle"] for setting in settings])
    sizes = np.where(angles % 90, between, np.where(angles, quarter, 0.0))
    views = own[:, None] + sizes[:, None] * changes(pool, generator, len(settings), 1.0)
    figures = rotation_figures(rotation_statistics(stored_views(pool, views), pool, p), p)
    return [asked(figures, "rotation", p)]


@cache
def references() -> pl.DataFrame:
    """Looks of the centers; their numbers play no part, since no pixel is changed."""
    rows = [
        {
            "center": f"center {c}",
            "n_tiles": 24,
            "n_fitted": 24,
            "haematoxylin": [0.65, 0.70, 0.29],
            "eosin": [0.07, 0.99, 0.11],
            "high": [1.0 + c, 1.0],
            "lab_mean": [60.0, 20.0, -10.0],
            "lab_sd": [10.0, 5.0, 5.0],
            "reason": "",
        }
        for c in range(CENTERS)
    ]
    return pl.DataFrame(rows, schema=REFERENCE_SCHEMA)


def stained_views(
    pool: pl.DataFrame,
    generator: Generator,
    label: float = 0.0,
    center: float = 0.0,
    change: float = 0.0,
) -> Stored:
    """Tiles as they are and changed; a tile in another center's stain has that center's effect."""
    p = read(Appearance, "appearance")
    own, of_center = pooled_vectors(pool, generator, label, center)
    settings = appearance_views(references(), None, p).settings
    names = references()["center"].to_list()
    moved = changes(pool, generator, len(settings), change)
    effects, views = effects_of(CENTERS, center, 1), []
    for i, setting in enumerate(settings):
        seen = of_center
        if setting["view"] in TRANSFERS:
            place = setting["target"]
            targets = [target_centers(names, c, p.max_targets)[place] for c in pool["center"]]
            seen = effects[codes(pl.Series(targets))]
        views.append(own + seen + (moved[:, i] if setting["view"] != "clean" else 0.0))
    return stored_views(pool, np.stack(views, axis=1))


def stained(patients: int, generator: Generator, **effects: float) -> list[Asked]:
    """Stain and scanner."""
    p, pool = read(Appearance, "appearance"), pooled_tiles(patients)
    views = stained_views(pool, generator, **effects)
    found = appearance_statistics(views, pool, references(), p)
    return [asked(appearance_figures(found, p), "appearance", p)]


def in_conflict(patients: int, generator: Generator, **effects: float) -> list[Asked]:
    """Cue conflict."""
    p, pool = read(CueConflict, "cue_conflict"), pooled_tiles(patients)
    views = stained_views(pool, generator, **effects)
    found = cue_conflict_statistics(views, pool, references(), block("appearance"), p)
    return [asked(cue_conflict_figures(found, p), "cue_conflict", p)]


def stain_read(patients: int, generator: Generator, stain: float = 0.0) -> list[Asked]:
    """Stain probe: vectors that hold the stain of a tile, more or less."""
    p, pool = read(StainProbe, "stain_probe"), pooled_tiles(patients)
    owner = np.unique(pool["patient_id"].to_numpy(), return_inverse=True)[1]
    amount = generator.standard_normal((patients, len(MOMENTS)))[owner]
    amount = amount + 0.5 * generator.standard_normal(amount.shape)
    own, _ = pooled_vectors(pool, generator, 0.0, 0.0)
    vectors = own + stain * amount @ effects_of(len(MOMENTS), 1.0, 3)
    stains = pool.select("tile_id", "patient_id").with_columns(
        pl.Series(name, amount[:, i]) for i, name in enumerate(MOMENTS)
    )
    slides = patients_table(patients)
    shards = stored_views(pool, vectors[:, None]).tensors["views"]
    embedded = Stored(embedding={slide: shard[:, 0] for slide, shard in shards.items()})
    tiles = pool.select("tile_id", "slide_id")
    figures = stain_probe_figures(stain_probe_statistics(slides, tiles, embedded, stains, p), p)
    one = (f for f in figures if f.setting.get("target") == MOMENTS[0])
    return [asked(one, "stain_probe", p, ["r2", "selectivity"])]


# --- field of view, attacks, retrieval ----------------------------------------------------------------


def widened(
    patients: int, generator: Generator, tile: float = 0.0, wide: float = 0.0, alike: float = 0.9
) -> list[Asked]:
    """Field of view: how much of the label a tile and a wide field hold.

    Parameters
    ----------
    patients, generator
        How many, and their source.
    tile, wide
        Standard deviation of the label's effect in the vector of either.
    alike
        Share of the rest that both have in common.
    """
    p = read(FieldOfView, "field_of_view")
    slides = patients_table(patients)
    layout = Layout.of(p.fields)
    shown = effects_of(LABELS, 1.0, 0)[codes(slides["label"])]
    shared = generator.standard_normal((patients, 1, D))
    own = generator.standard_normal((patients, len(layout.parts), D))
    rest = np.sqrt(alike) * shared + np.sqrt(1 - alike) * own
    strength = np.full(len(layout.parts), tile)
    strength[list(layout.wholes[1:])] = wide
    parts = (strength[:, None] * shown[:, None] + rest).astype(np.float32)
    tensors = {
        "parts": parts,
        "native": parts[:, [layout.wholes[-1]]],
        "native_problem": np.ones((patients, 1), np.float32),
        "cost": np.ones((patients, 2, 3, 2), np.float32),
    }
    rows = {
        name: {s: v[[i]] for i, s in enumerate(slides["slide_id"])} for name, v in tensors.items()
    }
    pool = slides.with_columns(
        tile_id="slide_id", field=pl.lit("512"), field_um=pl.lit(112.0), mpp=pl.lit(0.5)
    )
    found = field_of_view_statistics(Stored(**rows), pool, p)
    room = pl.DataFrame(
        {"field": ["512"], "n_slides": patients, "n_slides_with_room": patients, "reason": ""}
    )
    return [asked(field_of_view_figures(found, room, p), "field_of_view", p)]


def attacked(
    patients: int, generator: Generator, clean: float = 0.95, lost: float = 0.0
) -> list[Asked]:
    """Adversarial changes of one tile a patient, from its accuracy and the share an attack takes."""
    p = read(Adversarial, "adversarial")
    right = generator.random(patients) < clean
    noisy = right ^ (generator.random(patients) < 0.02)
    taken = noisy & (generator.random(patients) >= lost)
    correct = {
        (UNATTACKED, 0): right,
        **{(SIGN_NOISE, e): noisy for e in p.epsilons},
        **{(v.attack, v.epsilon): taken for v in p.white_box if v.attack != UNATTACKED},
    }
    rows = [
        {
            "attack": attack,
            "epsilon": epsilon,
            "patient_id": f"s{i:04d}",
            "n_tiles": 1,
            "n_correct": int(hit),
            "n_correct_unrounded": int(hit),
            "cosine_sum": 1.0,
            "ssim_sum": 1.0,
            "cosine_between_sum": 0.5,
            "chance": 1 / LABELS,
        }
        for (attack, epsilon), hits in correct.items()
        for i, hit in enumerate(hits)
    ]
    table = pl.DataFrame(rows, schema=ADVERSARIAL_SCHEMA)
    return [asked(adversarial_figures(table, {}, p), "adversarial", p)]


def retrieved(
    patients: int, generator: Generator, first: float = 0.0, second: float = 0.0
) -> list[Asked]:
    """Retrieval in two organs of two labels, of which the vectors hold more or less."""
    p = read(Retrieval, "retrieval")
    slides = patients_table(patients, organs=2)
    organ, label = codes(slides["organ"]), codes(slides["label"])
    strength = np.where(organ == 0, first, second)
    mean = strength[:, None] * effects_of(LABELS, 1.0, 0)[label] + effects_of(2, 1.0, 2)[organ]
    mean = mean + 0.5 * generator.standard_normal((patients, D))
    shards = {
        s: (own + generator.standard_normal((4, D))).astype(np.float32)
        for s, own in zip(slides["slide_id"], mean, strict=True)
    }
    found = search_slides(slides, tiles_of(slides, 4), Stored(embedding=shards), p)
    return [asked(retrieval_figures(found, slides, p), "retrieval", p, ["macro_f1"])]


_NEIGHBOURS = {
    "knows nothing": knowing(),
    "knows nothing, patients far apart": knowing(patient=1.5),
    "knows nothing, centred": knowing(patient=1.0, variant="centring"),
    "knows nothing, ComBat": knowing(patient=1.0, variant="combat"),
    "knows nothing, whitened": knowing(patient=1.0, variant="whitening"),
    "follows the center": knowing(right="fail", center=1.0),
    "follows the center, knows a little": knowing(right="fail", label=0.35, center=1.0),
    "follows the center, centred": knowing(center=1.0, variant="centring"),
    "knows the label": knowing("fail", "pass", label=0.5, center=0.2),
    "knows the label, centred": knowing("fail", "pass", label=0.5, center=0.8, variant="centring"),
    "perfect": knowing("fail", "pass", label=2.0),
}
_SIZES = (24, 48)

#: By the checks that they are for.
SIMULATIONS = {
    "index and margins": Simulation(_NEIGHBOURS, _SIZES, index_and_margins, {"k": 9}),
    "clusters": Simulation(_NEIGHBOURS, _SIZES, clusters),
    "rotation": Simulation(
        {
            "keeps nothing": knowing(right="fail", quarter=9.0, between=9.0),
            "averages over quarter turns": knowing("", quarter=0.0, between=9.0),
            "near the threshold": knowing("", quarter=0.25, between=0.25),
            "invariant but for little": knowing("fail", "pass", quarter=0.1, between=0.1),
            "perfect": knowing("fail", "pass"),
        },
        _SIZES,
        rotated,
    ),
    "stain and scanner": Simulation(
        {
            "keeps nothing": knowing(right="fail", change=9.0),
            "follows the stain": knowing("", center=1.5),
            "near the threshold": knowing("", label=0.5, center=0.12, change=0.28),
            "invariant but for little": knowing("fail", "pass", label=0.5, center=0.04, change=0.1),
            "perfect": knowing("fail", "pass", label=2.0),
        },
        _SIZES,
        stained,
    ),
    "cue conflict": Simulation(
        {
            "knows nothing": knowing(),
            "knows nothing, keeps nothing": knowing(change=9.0),
            "follows the stain": knowing(right="fail", center=1.0),
            "follows the stain, knows a little": knowing(right="fail", label=0.3, center=0.6),
            "knows the label": knowing("fail", "pass", label=0.5, center=0.2, change=0.2),
            "perfect": knowing("fail", "pass", label=2.0),
        },
        _SIZES,
        in_conflict,
    ),
    "field of view": Simulation(
        {
            "knows nothing": knowing(),
            "sees the label in wide fields alone": knowing(right="fail", wide=1.0),
            "near the threshold": knowing("", tile=0.6, wide=0.7),
            "knows the label in both": knowing("fail", "pass", tile=0.7, wide=0.7),
            "perfect": knowing("fail", "pass", tile=2.0, wide=2.0),
        },
        (48, 96),
        widened,
    ),
    "adversarial": Simulation(
        {
            "knows nothing": knowing(clean=1 / LABELS),
            "loses all": knowing(right="fail", lost=1.0),
            "near the threshold": knowing("", lost=0.16),
            "loses little": knowing("fail", "pass", lost=0.03),
            "perfect": knowing("fail", "pass", clean=1.0),
        },
        _SIZES,
        attacked,
    ),
    "retrieval": Simulation(
        {
            "knows nothing": knowing(),
            "blind in one organ": knowing(right="fail", first=1.0),
            "near the threshold": knowing("", first=1.0, second=0.25),
            "knows the label in both": knowing("fail", "pass", first=0.6, second=0.6),
            "perfect": knowing("fail", "pass", first=2.0, second=2.0),
        },
        _SIZES,
        retrieved,
    ),
    "stain probe": Simulation(
        {
            "sees no stain": knowing("", stain=0.0),
            "sees some stain": knowing("", stain=0.2),
            "sees the stain": knowing("", stain=0.8),
        },
        _SIZES,
        stain_read,
    ),
    "probes": Simulation(
        {
            "knows nothing": knowing(""),
            "knows the label": knowing("", label=0.3, center=0.2),
            "follows the center, knows a little": knowing("", label=0.35, center=1.0),
        },
        _SIZES,
        probes,
    ),
}
