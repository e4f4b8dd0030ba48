"""Calibration on the phantom: a dose of nuisance drives each check from pass to fail.

The vector of a dosed encoder is [√(1 − dose) · truth, √dose · nuisance]: what was drawn, and what a
control knows that no encoder should follow (colour; one corner of the tile). Both parts are scaled
to the same length, so that the dose is the share of the vector that is nuisance. At dose 0 a check
must pass, at dose 1 fail; in between the figure shows how much nuisance it takes. The field of view
has a dose of its own: noise in the place of what a tile shows.

The dosed encoders run through the functions of the experiments themselves.

Pitfalls
--------
- A dose is a share of a vector's length. It does not say how much nuisance a real encoder holds.
- What is drawn is not tissue. Margins, clusters and adversarial changes are not calibrated.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.pipelines.robustness.field_of_view import PARTS, FieldOfView
from pathfm_kedro.slides.fields import side_of_tiles
from pathfm_kedro.slides.nested_fields import Layout
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
)
from pathfm_kedro.statistics.parameters import Calibration
from pathfm_kedro.statistics.tables import Embeddings
from pathfm_kedro.views import VIEWS

EXPERIMENT = "calibration"


@dataclass(frozen=True)
class Scale:
    """Middle of a block and the factor that gives its rows a mean squared length of 1."""

    middle: NDArray[np.float32]
    factor: float

    @classmethod
    def of(cls, clean: NDArray[np.float32]) -> Scale:
        """The scale of vectors [n, d]."""
        middle = clean.mean(axis=0)
        length = float(np.mean(((clean - middle) ** 2).sum(axis=1)))
        return cls(middle, length**-0.5 if length > 0 else 1.0)

    def __call__(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors [..., d] of the same space, scaled."""
        return (block - self.middle) * np.float32(self.factor)


@dataclass(frozen=True)
class DosedEmbeddings:
    """Vectors of a dosed encoder; see the module.

    Attributes
    ----------
    truth, nuisance
        Vectors, or vectors of views, of the two controls; the first view sets the scales.
    dose
        Share of the nuisance, 0 … 1.
    """

    truth: Embeddings
    nuisance: Embeddings
    dose: float
    _scales: dict[tuple[int, str], Scale] = field(default_factory=dict, repr=False, compare=False)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Slides that both controls embedded."""
        return tuple(sorted(set(self.truth.slide_ids) & set(self.nuisance.slide_ids)))

    def stack(self, slide_ids: Sequence[str], name: str = "embedding") -> NDArray[np.float32]:
        """[n, …, d] float32, truth first."""
        parts = []
        for source, share in ((self.truth, 1 - self.dose), (self.nuisance, self.dose)):
            scale = self._scale(source, name)
            parts.append(scale(source.stack(slide_ids, name)) * np.float32(share**0.5))
        return np.concatenate(parts, axis=-1)

    def _scale(self, source: Embeddings, name: str) -> Scale:
        key = id(source), name
        if key not in self._scales:
            clean = source.stack(self.slide_ids, name)
            self._scales[key] = Scale.of(clean[:, 0] if name == VIEWS else clean)
        return self._scales[key]


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
        scaled = Scale.of(stacked[:, 0])(stacked)
        generator = np.random.default_rng(0)
        noise = generator.standard_normal(scaled.shape, np.float32) / scaled.shape[-1] ** 0.5
        blind = (1 - self.dose) ** 0.5 * scaled + self.dose**0.5 * noise
        wide = [place for place in self.wide if place < scaled.shape[1]]
        blind[:, wide] = scaled[:, wide]
        rounded: NDArray[np.float32] = blind.astype(np.float32)
        return rounded


def mix(
    truth: Embeddings, nuisance: Embeddings, dose: float, p: Any, inputs: Sequence[Any]
) -> DosedEmbeddings:
    """The dosed encoder of two controls, whatever the experiment."""
    return DosedEmbeddings(truth, nuisance, dose)


def noise_in_tiles(
    truth: Embeddings, nuisance: None, dose: float, p: FieldOfView, inputs: Sequence[Any]
) -> BlindTiles:
    """An encoder that sees the tissue in a wide field and a dose of noise in a tile."""
    pool = inputs[1]
    fields = p.fields_around(side_of_tiles(pool))
    return BlindTiles(truth, tuple(Layout.of(fields).wholes[1:]), dose)


def dose_response(
    measure_at: Callable[[float], pl.DataFrame],
    experiment: str,
    calibration: Calibration,
    doses: Sequence[float],
    encoder: str,
) -> pl.DataFrame:
    """An experiment's checks at every dose, as rows without a threshold of their own.

    A verdict of a dosed encoder is no finding about the cohort: it stands in the setting.

    Parameters
    ----------
    measure_at
        Gives the experiment's measurements of the encoder with a dose.
    experiment
        Its name.
    calibration
        What is mixed in, and which figures are read where none is judged.
    doses
        Shares of the nuisance, 0 … 1.
    encoder
        Under whose name the rows stand.

    Returns
    -------
    DataFrame
        Measurements table, experiment ``calibration``.

    Raises
    ------
    ValueError
        If a figure that is to be read is not measured.
    """
    rows: list[dict[str, Any]] = []
    for dose in sorted(map(float, doses)):
        found = measure_at(dose)
        judged = found.filter(pl.col("threshold").is_not_null())
        read = judged if judged.height else _read(found, experiment, calibration)
        rows += _at_dose(read, experiment, calibration.called, dose, encoder)
    return measurement_table(rows)


def _read(found: pl.DataFrame, experiment: str, calibration: Calibration) -> pl.DataFrame:
    """The figures that the calibration asks for; all of them where it asks for none."""
    if not calibration.reads:
        return found
    settings = [json.loads(text) for text in found["setting"]]
    keep = pl.repeat(False, found.height, dtype=pl.Boolean, eager=True)
    for asked in calibration.reads:
        at = dict(asked.get("at", {})).items()
        own = (found["metric"] == asked["metric"]) & pl.Series([at <= s.items() for s in settings])
        if not own.any():
            raise ValueError(f"{experiment}.calibration.reads: no figure {asked} is measured")
        keep |= own
    return found.filter(keep)


def _at_dose(
    read: pl.DataFrame, experiment: str, nuisance: str, dose: float, encoder: str
) -> Iterator[dict[str, Any]]:
    for row in read.iter_rows(named=True):
        setting: Mapping[str, Any] = {
            "of": experiment,
            "nuisance": nuisance,
            "dose": dose,
            "threshold": row["threshold"],
            "verdict": row["verdict"],
            "check": json.loads(row["setting"]),
        }
        ends = row["value"], row["ci_low"], row["ci_high"], row["n"], row["n_patients"]
        verdict = f"dose {dose:g} of {nuisance}: {row['verdict']}"
        yield measurement(
            experiment=EXPERIMENT,
            encoder=encoder,
            subject="arm",
            metric=row["metric"],
            stratum=row["stratum"],
            setting=setting,
            estimate=Estimate(*ends),
            null=Null(row["null_low"], row["null_high"]),
            reason=row["reason"] if row["value"] is None else verdict,
        )
