"""What simulated cohorts are made of; see simulated_checks.py.

Vectors are sums of effects of label, center and patient and of each tile's own noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from pathfm_kedro.statistics.figures import Criterion, Figure, measure
from pathfm_kedro.statistics.paired_comparison import Judged, compare_encoders
from pathfm_kedro.statistics.parameters import ExperimentParameters, read_parameters

Floats = NDArray[np.float64]
Generator = np.random.Generator

CONF = Path(__file__).parents[1] / "conf/base"
#: Dimensions of a vector; labels, centers and organs of a cohort.
D, LABELS, CENTERS = 32, 4, 3
#: Tiles of a slide, and of a patient in the pool that is shown changed.
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
        "families": ["median_min"],
        "scopes": ["within_organ"],
        "votes": ["mv5"],
        "n_permutations": 100,
    },
    "mosaic_field": {
        "families": ["median_min"],
        "fields": [224, 512],
        "same_tissue": [],
        "n_permutations": 100,
    },
    "same_tissue": {"k": [1]},
    "feature_agreement": {},
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
    """The judged figures and those named, with the criteria that ask for any of them."""
    found = list(figures)
    criteria = [c for c in p.criteria if any(c.asks(f) for f in found)]
    kept = []
    for figure in found:
        own = next((c for c in criteria if c.asks(figure)), None)
        if own:
            kept.append(replace(figure, metric=_told_apart(own, criteria)))
        elif figure.metric in beside:
            kept.append(figure)
    return Asked(experiment, kept, [replace(c, metric=_told_apart(c, criteria)) for c in criteria])


def _told_apart(criterion: Criterion, criteria: Sequence[Criterion]) -> str:
    """The criterion's metric, with what tells it from others that judge the same."""
    alike = [c for c in criteria if c.metric == criterion.metric]
    at = [str(v) for key, v in criterion.at.items() if any(c.at.get(key) != v for c in alike)]
    return ", ".join([criterion.metric, *at])


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


def one_shard_each(slides: pl.DataFrame, vectors: Floats) -> Stored:
    """Vectors [slides, tiles, ...] as embeddings."""
    shards = zip(slides["slide_id"], vectors.astype(np.float32), strict=True)
    return Stored(embedding=dict(shards))


def codes(names: pl.Series) -> NDArray[np.int64]:
    """[n] number at the end of each name."""
    return np.array([int(name.rpartition(" ")[2]) for name in names])
