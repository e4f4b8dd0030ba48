"""Shape of the embedding cloud: moments, spectrum and mean cosine on a fixed number of tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.bootstrap import (
    bootstrap_weights,
    patient_codes,
    percentile_interval,
    sum_by_patient,
)
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from pathfm_kedro.statistics.tables import Embeddings, tile_rows

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

EXPERIMENT = "geometry"
MOMENTS = ("skewness", "kurtosis_excess", "kurtosis_raw")
SPECTRAL = ("singular_value_entropy", "largest_singular_value_ratio", "effective_rank")
#: Entries of one batch of resampled power sums.
_BATCH_ENTRIES = 1 << 22


def balanced_tiles(tiles: pl.DataFrame, n_tiles: int, seed: int) -> Ints:
    """Choose tiles so that slides give equally many, as far as they have them.

    Parameters
    ----------
    tiles
        slide_id and tile_id; the choice does not depend on the order of rows.
    n_tiles
        Tiles to choose; all where there are fewer.
    seed
        Seed of the choice.

    Returns
    -------
    ndarray
        Rows of the chosen tiles, ordered by slide and tile.

    Examples
    --------
    >>> tiles = pl.DataFrame({"slide_id": ["s"] * 9 + ["t"], "tile_id": list("abcdefghij")})
    >>> chosen = balanced_tiles(tiles, 4, seed=0)
    >>> tiles[chosen]["slide_id"].to_list()
    ['s', 's', 's', 't']
    """
    turns = _turns(tiles, seed).sort("turn", "key").head(n_tiles)
    return turns.sort("slide_id", "tile_id")["row"].to_numpy().astype(np.int64)


def capped_tiles(tiles: pl.DataFrame, n_per_slide: int, seed: int) -> Ints:
    """Choose at most `n_per_slide` tiles of each slide; else as :func:`balanced_tiles`.

    Examples
    --------
    >>> tiles = pl.DataFrame({"slide_id": ["s"] * 9 + ["t"], "tile_id": list("abcdefghij")})
    >>> tiles[capped_tiles(tiles, 2, seed=0)]["slide_id"].to_list()
    ['s', 's', 't']
    """
    turns = _turns(tiles, seed).filter(pl.col("turn") <= n_per_slide)
    return turns.sort("slide_id", "tile_id")["row"].to_numpy().astype(np.int64)


def read_vectors(tiles: pl.DataFrame, chosen: Ints, embeddings: Embeddings) -> Floats:
    """Vectors of the chosen rows of all embedded tiles, read slide by slide.

    Parameters
    ----------
    tiles
        From ``tile_rows``: all tiles of each slide, in the order of its embeddings.
    chosen
        [m] rows, those of a slide next to each other.
    embeddings
        Vectors of one encoder.

    Returns
    -------
    ndarray
        [m, d] float64.
    """
    place = pl.int_range(pl.len()).over("slide_id").alias("place")
    rows = tiles.select("slide_id", place)[chosen]
    parts = [
        embeddings.stack([str(slide)])[of_slide["place"].to_numpy()]
        for (slide,), of_slide in rows.group_by("slide_id", maintain_order=True)
    ]
    return (np.concatenate(parts) if parts else np.zeros((0, 1))).astype(np.float64)


def varying_dimensions(vectors: Floats) -> Bools:
    """Which columns of [m, d] vary beyond float32 rounding; moments exist only for these.

    Examples
    --------
    >>> varying_dimensions(np.array([[1.0, 2.0], [1.0, 3.0]])).tolist()
    [False, True]
    """
    rounding = np.finfo(np.float32).eps * np.abs(vectors).max(axis=0)
    return cast(Bools, np.ptp(vectors, axis=0) > rounding)


def power_sums(vectors: Floats) -> Floats:
    """Powers 0 to 4 of standardised columns, the statistics that moments need: [m, 5, d].

    Standardised by the mean and spread of all rows, so that fourth powers do not cancel.
    """
    standard = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    return np.stack([standard**power for power in range(5)], axis=1)


def moments(sums: Floats) -> dict[str, Floats]:
    """Skewness and kurtosis per dimension, averaged over dimensions.

    ``skewness = m₃ / m₂^1.5``, ``kurtosis_raw = m₄ / m₂²``, ``kurtosis_excess = kurtosis_raw − 3``
    with central moments m of the rows (no small-sample correction, as scipy's default).

    Parameters
    ----------
    sums
        [..., 5, d] sums over rows of :func:`power_sums`.

    Returns
    -------
    dict
        [...] for each name in ``MOMENTS``.

    Examples
    --------
    >>> rows = np.array([[0.0], [0.0], [0.0], [4.0]])
    >>> round(float(moments(power_sums(rows).sum(axis=0))["skewness"]), 4)
    1.1547
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        _, a, b, c, d = np.moveaxis(sums / sums[..., :1, :], -2, 0)
        second = b - a**2
        second = np.where(second > 1e-12, second, np.nan)  # a resample without spread
        third = c - 3 * a * b + 2 * a**3
        fourth = d - 4 * a * c + 6 * a**2 * b - 3 * a**4
        skewness = _mean_over_dimensions(third / second**1.5)
        kurtosis = _mean_over_dimensions(fourth / second**2)
    return {
        "skewness": skewness,
        "kurtosis_excess": kurtosis - 3,
        "kurtosis_raw": kurtosis,
    }


def spectrum(vectors: Floats) -> dict[str, float]:
    """Figures of the singular values σ of the vectors, not centred: p = σ / Σσ.

    ``singular_value_entropy = −Σ p log p``, ``largest_singular_value_ratio = −log(σ₁ / Σσ)``,
    ``effective_rank = exp(entropy)``. Values below numerical rank count as zero.

    Parameters
    ----------
    vectors
        [m, d], not all zero.

    References
    ----------
    Chen et al., Understanding and mitigating the label noise in pre-training (ICLR 2024);
    Roy and Vetterli, The effective rank (EUSIPCO 2007).

    Examples
    --------
    >>> round(spectrum(np.eye(4, 8))["effective_rank"], 6)
    4.0
    """
    values = np.linalg.svd(vectors, compute_uv=False)
    values = values[values > values[0] * max(vectors.shape) * np.finfo(np.float64).eps]
    shares = values / values.sum()
    entropy = max(0.0, float(-(shares * np.log(shares)).sum()))
    return {
        "singular_value_entropy": entropy,
        "largest_singular_value_ratio": max(0.0, float(-np.log(shares[0]))),
        "effective_rank": float(np.exp(entropy)),
    }


def mean_cosine(vectors: Floats) -> float:
    """Mean cosine over all pairs of different rows of [m, d]; a zero row counts as orthogonal.

    ``(|Σ u|² − Σ |u|²) / (m (m − 1))`` with unit rows u.

    Examples
    --------
    >>> round(mean_cosine(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])), 4)
    0.3333
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    total = (units.sum(axis=0) ** 2).sum() - (units**2).sum()
    return float(total / (len(vectors) * (len(vectors) - 1)))


def shape_figures(vectors: Floats) -> dict[str, float]:
    """Spectral figures and mean cosine: what a rotation of the space leaves alone."""
    return {**spectrum(vectors), "mean_cosine": mean_cosine(vectors)}


def rotated_into_rows(vectors: Floats) -> Floats:
    """[m, d] turned into [m, min(m, d)] with the same inner products, for faster spectra."""
    if vectors.shape[1] <= vectors.shape[0]:
        return vectors
    triangular: Floats = np.linalg.qr(vectors.T, mode="r")  # type: ignore[assignment]
    return triangular.T


def patient_groups(patients: Ints, n_groups: int) -> Ints:
    """Group of each row: whole patients in groups of nearly equally many rows.

    Examples
    --------
    >>> patient_groups(np.array([0, 0, 0, 1, 2, 3]), 2).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    sizes = np.bincount(patients)
    filled = np.zeros(min(n_groups, len(sizes)), np.int64)
    group = np.zeros(len(sizes), np.int64)
    for patient in np.argsort(-sizes, kind="stable"):  # the largest first, into the emptiest group
        group[patient] = filled.argmin()
        filled[group[patient]] += sizes[patient]
    return group[patients]


def jackknife_interval(value: float, without_group: Floats) -> tuple[float | None, float | None]:
    """95% interval ``value ± t · SE`` with ``SE² = (G − 1)/G · Σ (θ₋g − mean)²``.

    Parameters
    ----------
    value
        Figure on all rows.
    without_group
        [G] figure without each group.

    Examples
    --------
    >>> jackknife_interval(1.0, np.array([1.0]))
    (None, None)
    """
    from scipy.stats import t

    groups = len(without_group)
    if groups < 2:
        return None, None
    squares = ((without_group - without_group.mean()) ** 2).sum()
    half = float(t.ppf(0.975, groups - 1) * np.sqrt((groups - 1) / groups * squares))
    return value - half, value + half


def embedding_geometry(
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    parameters: Mapping[str, Any],
    encoder: str,
) -> pl.DataFrame:
    """Moments, spectrum and mean cosine of one encoder's tiles.

    Kurtosis and spectra depend on the number of rows: they are taken on a fixed number of tiles,
    balanced over slides; the number used stands in the setting. Intervals of moments: bootstrap
    over patients, centred on the figure, since resampled kurtosis is biased low. Intervals of
    spectra and mean cosine: jackknife over groups of patients, since a bootstrap repeats rows and
    repeated rows lower the rank and raise the cosine. Null: the same figures for Gaussian noise of
    the same shape. Descriptive: no threshold.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    parameters
        ``n_tiles``, ``draws``, ``n_groups``, ``null_draws``, ``seed``.
    encoder
        Name for the table.
    """
    from threadpoolctl import threadpool_limits

    rows = tile_rows(slides, tiles, embeddings.slide_ids)
    chosen = balanced_tiles(rows, parameters["n_tiles"], parameters["seed"])
    vectors = read_vectors(rows, chosen, embeddings)
    rows = rows[chosen]
    patients, n_patients = patient_codes(rows["patient_id"].to_numpy())
    name: dict[str, Any] = {
        "experiment": EXPERIMENT,
        "encoder": encoder,
        "setting": {"n_tiles": len(rows)},
    }
    support: dict[str, Any] = {"n": len(rows), "n_patients": n_patients}
    if len(rows) < 2 or not vectors.any():
        every = (*MOMENTS, *SPECTRAL, "mean_cosine", "constant_dimensions")
        reason = "the figure needs two embedded tiles that are not all zero: embed more slides"
        return measurement_table(not_applicable(**name, **support, metrics=every, reason=reason))
    varying = varying_dimensions(vectors)
    # Small decompositions: more threads cost more than they give, and change the last digits.
    with threadpool_limits(1):
        null = gaussian_null(
            len(rows), vectors.shape[1], parameters["null_draws"], parameters["seed"]
        )
        estimates = _shape_estimates(vectors, patients, parameters["n_groups"])
    constant = Estimate(float((~varying).sum()), None, None, **support)
    table = [measurement(**name, metric="constant_dimensions", estimate=constant)]
    if varying.any():
        weights = bootstrap_weights(n_patients, parameters["draws"], parameters["seed"])
        estimates.update(_moment_estimates(vectors[:, varying], patients, weights))
    else:
        reason = "every dimension is constant, so that moments are undefined: check the encoder"
        table += not_applicable(**name, **support, metrics=MOMENTS, reason=reason)
    table += [
        measurement(**name, metric=metric, estimate=estimate, null=null[metric])
        for metric, estimate in estimates.items()
    ]
    return measurement_table(table)


def gaussian_null(n_rows: int, n_dimensions: int, draws: int, seed: int) -> dict[str, Null]:
    """Range of every figure over seeded draws of [n_rows, n_dimensions] Gaussian noise."""
    found: list[dict[str, float]] = []
    for generator in np.random.default_rng(seed).spawn(draws):
        noise = generator.standard_normal((n_rows, n_dimensions))
        moment = {name: float(x) for name, x in moments(power_sums(noise).sum(axis=0)).items()}
        found.append({**moment, **shape_figures(rotated_into_rows(noise))})
    return {
        metric: Null(min(draw[metric] for draw in found), max(draw[metric] for draw in found))
        for metric in (*MOMENTS, *SPECTRAL, "mean_cosine")
    }


def _moment_estimates(
    vectors: Floats, patients: Ints, weights: Floats
) -> Iterator[tuple[str, Estimate]]:
    n_patients = weights.shape[1]
    sums = sum_by_patient(power_sums(vectors), patients, n_patients)
    step = max(1, _BATCH_ENTRIES // sums[0].size)
    batches = [
        moments(np.tensordot(weights[start : start + step], sums, axes=1))
        for start in range(0, len(weights), step)
    ]
    for metric, value in moments(sums.sum(axis=0)).items():
        draws = np.concatenate([batch[metric] for batch in batches])
        low, high = (
            percentile_interval(draws - np.nanmean(draws) + value)
            if n_patients > 1
            else (None, None)
        )
        yield metric, Estimate(float(value), low, high, len(vectors), n_patients)


def _shape_estimates(vectors: Floats, patients: Ints, n_groups: int) -> dict[str, Estimate]:
    rows = rotated_into_rows(vectors)
    groups = patient_groups(patients, n_groups)
    kept = [rows[groups != group] for group in range(int(groups.max()) + 1)]
    without = [shape_figures(part) for part in kept if len(part) > 1 and part.any()]
    n_patients = int(patients.max()) + 1
    estimates = {}
    for metric, value in shape_figures(rows).items():
        parts = np.array([part[metric] for part in without])
        low, high = jackknife_interval(value, parts)
        estimates[metric] = Estimate(value, low, high, len(rows), n_patients)
    return estimates


def _turns(tiles: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Row, random key and turn (1, 2, … within its slide) of each tile, whatever their order."""
    return (
        tiles.select("slide_id", "tile_id")
        .with_row_index("row")
        .sort("slide_id", "tile_id")
        .with_columns(key=np.random.default_rng(seed).random(len(tiles)))
        .with_columns(turn=pl.col("key").rank("ordinal").over("slide_id"))
    )


def _mean_over_dimensions(values: Floats) -> Floats:
    finite = np.isfinite(values)
    return cast(Floats, np.where(finite, values, 0).sum(axis=-1) / finite.sum(axis=-1))
