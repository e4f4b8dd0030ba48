"""Calibration on the phantom: a dose of nuisance drives each check from pass to fail.

The vector of a dosed encoder is [√(1 − dose) · truth, √dose · nuisance]: what was drawn, and what a
control knows that no encoder should follow (colour; one corner of the tile). Both parts are scaled
to the same length, so that the dose is the share of the vector that is nuisance. At dose 0 a check
must pass, at dose 1 fail; in between the figure shows how much nuisance it takes.

The dosed encoders run through the functions of the experiments themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.appearance import (
    appearance_measurements,
    appearance_shifts,
)
from pathfm_kedro.pipelines.robustness.cue_conflict import (
    cue_conflict_counts,
    cue_conflict_measurements,
)
from pathfm_kedro.pipelines.robustness.field_of_view import (
    PARTS,
    FieldParameters,
    Layout,
    field_of_view,
    field_votes,
    side_of_tiles,
)
from pathfm_kedro.pipelines.robustness.robustness_index import count_neighbours, robustness_index
from pathfm_kedro.pipelines.robustness.rotation import rotation_measurements, rotation_overlaps
from pathfm_kedro.pipelines.robustness.texture import texture_measurements, texture_sums
from pathfm_kedro.pipelines.robustness.views import VIEWS
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings

EXPERIMENT = "calibration"


@dataclass(frozen=True)
class _Scale:
    """Middle of a block and the factor that gives its rows a mean squared length of 1."""

    middle: NDArray[np.float32]
    factor: float

    @classmethod
    def of(cls, clean: NDArray[np.float32]) -> _Scale:
        middle = clean.mean(axis=0)
        length = float(np.mean(((clean - middle) ** 2).sum(axis=1)))
        return cls(middle, length**-0.5 if length > 0 else 1.0)

    def __call__(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        return (block - self.middle) * np.float32(self.factor)


@dataclass(frozen=True)
class DosedEmbeddings:
    """Vectors of a dosed encoder; see the module.

    Attributes
    ----------
    truth, nuisance
        Vectors, or vectors of views, of the two controls.
    clean
        Name of the tensor whose rows (of their first view, where there are views) set the scales.
    dose
        Share of the nuisance, 0 … 1.
    """

    truth: Embeddings
    nuisance: Embeddings
    clean: str
    dose: float

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides that both controls embedded."""
        return tuple(sorted(set(self.truth.slide_ids) & set(self.nuisance.slide_ids)))

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """[n, …, d] float32, truth first."""
        parts = []
        for source, share in ((self.truth, 1 - self.dose), (self.nuisance, self.dose)):
            clean = source.stack(self.slide_ids, self.clean)
            scale = _Scale.of(clean if clean.ndim == 2 else clean[:, 0])
            parts.append(scale(source.stack(slide_ids, name)) * np.float32(share**0.5))
        return np.concatenate(parts, axis=-1)


@dataclass(frozen=True)
class BlindTiles:
    """Fields of which the wide ones show the tissue and tiles show a dose of noise in its place.

    Attributes
    ----------
    truth
        Vectors of fields and of the tiles that cover them.
    wide
        Places of the wide fields among the vectors.
    dose
        Share of the noise, 0 … 1.
    """

    truth: Embeddings
    wide: tuple[int, ...]
    dose: float

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides with fields."""
        return self.truth.slide_ids

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """[n, …] float32; only the vectors of tiles change."""
        stacked = self.truth.stack(slide_ids, name)
        if name != PARTS:
            return stacked
        scaled = _Scale.of(stacked[:, 0])(stacked)
        generator = np.random.default_rng(0)
        noise = generator.standard_normal(scaled.shape, np.float32) / scaled.shape[-1] ** 0.5
        blind = (1 - self.dose) ** 0.5 * scaled + self.dose**0.5 * noise
        wide = [place for place in self.wide if place < scaled.shape[1]]
        blind[:, wide] = scaled[:, wide]
        rounded: NDArray[np.float32] = blind.astype(np.float32)
        return rounded


def calibrate_robustness_index(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    truth: Embeddings,
    nuisance: Embeddings,
    chosen_k: Mapping[str, Any],
    parameters: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    encoder: str,
) -> pl.DataFrame:
    """Robustness index of encoders that know the tissue and a dose of the colour.

    Parameters
    ----------
    slides, tiles
        The tables.
    truth, nuisance
        Vectors of ``phantom_truth`` and of ``stain_statistics``.
    chosen_k
        The cohort's k.
    parameters
        ``robustness_index``.
    calibration
        ``doses``.
    encoder
        Under whose name the rows stand.
    """
    # Of the design that the check is read from; its own null needs no permutation.
    told = {**parameters, "designs": ["all"], "n_permutations": 0}

    def measure(dose: float) -> pl.DataFrame:
        dosed = DosedEmbeddings(truth, nuisance, "embedding", dose)
        counts = count_neighbours(slides, tiles, dosed, told)
        return robustness_index(counts, chosen_k, told, encoder)

    return _dose_response(measure, "robustness_index", "colour", calibration, encoder)


def calibrate_rotation(
    pool: pl.DataFrame,
    truth: Embeddings,
    nuisance: Embeddings,
    parameters: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    encoder: str,
) -> pl.DataFrame:
    """Rotation of encoders that know the tissue and a dose of what lies in one corner of the tile.

    Parameters
    ----------
    pool
        The tiles that are turned.
    truth, nuisance
        Views of ``phantom_truth`` and of ``tile_corner``.
    parameters
        ``rotation``.
    calibration
        ``doses``.
    encoder
        Under whose name the rows stand.
    """
    read_at = {"k": [parameters["signature_k"]], "metrics": [parameters["signature_metric"]]}
    told = {**parameters, **read_at}

    def measure(dose: float) -> pl.DataFrame:
        dosed = DosedEmbeddings(truth, nuisance, "rotated", dose)
        return rotation_measurements(rotation_overlaps(dosed, pool, told), told, encoder)

    return _dose_response(measure, "rotation", "corner", calibration, encoder)


def calibrate_appearance(
    pool: pl.DataFrame,
    references: pl.DataFrame,
    truth: Embeddings,
    nuisance: Embeddings,
    parameters: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    encoder: str,
) -> pl.DataFrame:
    """Stain and scanner, of encoders that know the tissue and a dose of the colour.

    Parameters
    ----------
    pool
        The tiles whose look is changed.
    references
        The look of each center.
    truth, nuisance
        Views of ``phantom_truth`` and of ``stain_statistics``.
    parameters
        ``appearance``.
    calibration
        ``doses``.
    encoder
        Under whose name the rows stand.
    """

    def measure(dose: float) -> pl.DataFrame:
        dosed = DosedEmbeddings(truth, nuisance, VIEWS, dose)
        shifts = appearance_shifts(dosed, pool, references, parameters)
        return appearance_measurements(shifts, parameters, encoder)

    return _dose_response(measure, "appearance", "colour", calibration, encoder)


def calibrate_cue_conflict(
    pool: pl.DataFrame,
    references: pl.DataFrame,
    truth: Embeddings,
    nuisance: Embeddings,
    appearance: Mapping[str, Any],
    parameters: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    encoder: str,
) -> pl.DataFrame:
    """Tissue against stain, of encoders that know the tissue and a dose of the colour.

    Parameters
    ----------
    pool, references, truth, nuisance, calibration, encoder
        As of :func:`calibrate_appearance`.
    appearance, parameters
        ``appearance`` and ``cue_conflict``.
    """

    def measure(dose: float) -> pl.DataFrame:
        dosed = DosedEmbeddings(truth, nuisance, VIEWS, dose)
        counts = cue_conflict_counts(dosed, pool, references, appearance, parameters)
        return cue_conflict_measurements(counts, parameters, encoder)

    return _dose_response(measure, "cue_conflict", "colour", calibration, encoder)


def calibrate_texture(
    pool: pl.DataFrame,
    truth: Embeddings,
    nuisance: Embeddings,
    parameters: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    encoder: str,
) -> pl.DataFrame:
    """Shuffled patches, of encoders that know the tissue and a dose of one corner of the tile.

    The experiment judges nothing by default: the figure shows that it answers to the dose.

    Parameters
    ----------
    pool
        The tiles that are shuffled.
    truth, nuisance
        Views of ``phantom_truth`` and of ``tile_corner``.
    parameters
        ``texture``.
    calibration
        ``doses``.
    encoder
        Under whose name the rows stand.
    """
    finest = max(parameters["grids"])

    def measure(dose: float) -> pl.DataFrame:
        dosed = DosedEmbeddings(truth, nuisance, VIEWS, dose)
        rows = texture_measurements(texture_sums(dosed, pool, parameters), parameters, encoder)
        return rows.filter(
            pl.col("metric") == "kept_neighbours",
            pl.col("setting").str.contains(f'"grid": {finest},'),
            pl.col("setting").str.contains('"shuffled"'),
        )

    return _dose_response(measure, "texture", "corner", calibration, encoder)


def calibrate_field_of_view(
    pool: pl.DataFrame,
    room: pl.DataFrame,
    truth: Embeddings,
    parameters: Mapping[str, Any],
    calibration: Mapping[str, Any],
    *,
    encoder: str,
) -> pl.DataFrame:
    """Field of view, of encoders that see the tissue in a wide field and a dose of noise in a tile.

    Parameters
    ----------
    pool, room
        The places, and why others have no room.
    truth
        Fields of ``phantom_truth``.
    parameters
        ``field_of_view``.
    calibration
        ``doses``.
    encoder
        Under whose name the rows stand.
    """
    asked = FieldParameters.parse(parameters).around(side_of_tiles(pool))
    wide = Layout.of(asked.fields).wholes[1:]

    # The check is read without attention, which is the slow part: it stays at its start, the mean.
    told = {**parameters, "attention": {**parameters["attention"], "steps": 0}}

    def measure(dose: float) -> pl.DataFrame:
        blind = BlindTiles(truth, wide, dose)
        return field_of_view(field_votes(blind, pool, told), room, told, encoder)

    return _dose_response(measure, "field_of_view", "noise in the tile", calibration, encoder)


def _dose_response(
    measure: Callable[[float], pl.DataFrame],
    experiment: str,
    nuisance: str,
    calibration: Mapping[str, Any],
    encoder: str,
) -> pl.DataFrame:
    """The experiment's checks at every dose, as rows without a threshold of their own."""
    rows: list[dict[str, Any]] = []
    for dose in sorted(calibration["doses"]):
        rows_at = measure(float(dose))
        checks = rows_at.filter(pl.col("threshold").is_not_null())
        judged = checks if checks.height else rows_at
        rows += _at_dose(judged, experiment, nuisance, float(dose), encoder)
    return measurement_table(rows)


def _at_dose(
    judged: pl.DataFrame, experiment: str, nuisance: str, dose: float, encoder: str
) -> Iterator[dict[str, Any]]:
    """A verdict of a dosed encoder is no finding about the cohort: it is told in the setting."""
    for row in judged.iter_rows(named=True):
        setting = {
            "of": experiment,
            "nuisance": nuisance,
            "dose": dose,
            "threshold": row["threshold"],
            "verdict": row["verdict"],
            "check": json.loads(row["setting"]),
        }
        shared: dict[str, Any] = {
            "experiment": EXPERIMENT,
            "encoder": encoder,
            "stratum": row["stratum"],
            "setting": setting,
        }
        if row["value"] is None:
            yield from not_applicable(metrics=[row["metric"]], reason=row["reason"], **shared)
            continue
        yield measurement(
            metric=row["metric"],
            estimate=Estimate(
                row["value"], row["ci_low"], row["ci_high"], row["n"], row["n_patients"]
            ),
            null=Null(row["null_low"], row["null_high"]),
            reason=f"dose {dose:g} of {nuisance}: {row['verdict']}",
            **shared,
        )
