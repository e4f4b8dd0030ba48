r"""Shape of the embedding cloud: moments, spectrum, cosines, correlations; on a fixed number of tiles.

- ``skewness = m₃ / m₂^1.5``, ``kurtosis_raw = m₄ / m₂²``, ``kurtosis_excess = kurtosis_raw − 3`` of
  each dimension, averaged over dimensions that vary (``constant_dimensions`` do not);
- of the singular values σ of the vectors, not centred, with p = σ / Σσ:
  ``singular_value_entropy = −Σ p log p``, ``largest_singular_value_ratio = −log p₁``,
  ``effective_rank = exp(entropy)``, which the self-supervised call RankMe;
- of unit vectors u: ``mean_cosine`` over all pairs of different tiles; ``alignment``, the mean of
  ‖u − v‖² over pairs of tiles of one slide; ``uniformity = log mean exp(−2 ‖u − v‖²)`` over all pairs;
- of the correlation matrix R of the n dimensions that vary, on m tiles: ``off_diagonal_correlation``,
  the mean of |R_ij| over i ≠ j (ODCorr); ``above_marchenko_pastur``, the share of R's min(m − 1, n)
  eigenvalues that can differ from 0 which lie above ``(1 + √(n/m))²``, the edge that noise without any
  correlation does not pass; ``variance_above_marchenko_pastur``, the share of the variance they hold.

Alignment is defined by what should be mapped alike. Wang and Isola take two augmented views of an
image; here it is two tiles of one slide: it also falls where an encoder follows the slide's stain.

Where a few vectors are so long that they are most of the cloud, nothing is said of its shape: that is a
fault of the vectors.

Kurtosis and spectra depend on the number of rows: they are taken on a fixed number of tiles, balanced
over slides, and the number used stands in the setting. Intervals of moments: bootstrap over patients,
centred on the figure, since resampled kurtosis is biased low. Intervals of all others:
jackknife over groups of patients, since repeated rows lower the rank and raise the cosine. Intervals
end where the figure's possible range does. Null: the
same figures of Gaussian noise of the same shape. No value is good: described, not judged.

References: Chen et al., Understanding and mitigating the label noise in pre-training (ICLR 2024);
Roy and Vetterli, The effective rank (EUSIPCO 2007); Garrido et al., RankMe (ICML 2023), which adds 1e-7
to p; Wang and Isola, Alignment and uniformity on the hypersphere (ICML 2020); Marchenko and Pastur
(1967); ODCorr is named in arXiv 2404.15217, whose formula was not compared with this one.

Pitfalls
--------
- Between encoders the figures mean little: they depend on the number of dimensions and of tiles.
  Compare one encoder on two cohorts, or before and after a change.
- Singular values are not centred, so that a large mean vector shows as a small effective rank.
- Tiles of one patient are alike: what patients differ in lies above the Marchenko-Pastur edge too,
  which holds for independent rows. Eigenvalues are counted: where none crosses the edge when patients
  are left out, the interval reaches half an eigenvalue either way.
- The coverage of these intervals was not simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Annotated, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.statistics.bootstrap import patient_codes, percentile_interval, sum_by_patient
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.jackknife import jackknife_interval, patient_groups
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.patient_statistics import PatientStatistics
from pathfm_kedro.statistics.readable_numbers import number
from pathfm_kedro.statistics.ridge import standardised
from pathfm_kedro.statistics.sampling import balanced_tiles
from pathfm_kedro.statistics.tables import Embeddings, chosen_vectors, tile_rows, to_schema

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MOMENTS = ("skewness", "kurtosis_excess", "kurtosis_raw")
#: The least that a moment can be.
_LEAST = {"skewness": (-np.inf,), "kurtosis_excess": (-2.0,), "kurtosis_raw": (1.0,)}
SPECTRAL = ("singular_value_entropy", "largest_singular_value_ratio", "effective_rank")
ALIGNMENT = "alignment"
#: What a rotation of the space leaves alone.
ROTATED = (*SPECTRAL, "mean_cosine", ALIGNMENT, "uniformity")
#: What is counted in whole eigenvalues, and all that dimensions have in common: a rotation changes it.
COUNTED = "above_marchenko_pastur"
CORRELATED = (
    "off_diagonal_correlation",
    COUNTED,
    "variance_above_marchenko_pastur",
)
SHAPE = (*ROTATED, *CORRELATED)
#: Of uniformity, as published.
_T = 2.0
CONSTANT = "constant_dimensions"
#: Vectors longer than this many times the median are long; if they hold most of the squared length of
#: all, spectrum and moments speak of them alone.
_LONG = 10.0
_MOST = 0.5
#: Entries of one batch of resampled power sums.
_BATCH_ENTRIES = 1 << 22

#: One row per patient.
#:
#: - power_sums: of the standardised columns that vary, powers 1 to 4 one after the other;
#: - of each figure of the shape, its value on all tiles and, ``_without``, without the patient's group
#:   of the jackknife; null where the tiles have none;
#: - reason: why the cloud has no shape to speak of.
GEOMETRY_SCHEMA: dict[str, pl.DataType] = {
    "patient_id": pl.String(),
    "n_tiles": pl.Int64(),
    "n_slides": pl.Int64(),
    "n_dimensions": pl.Int64(),
    CONSTANT: pl.Int64(),
    "power_sums": pl.List(pl.Float64()),
    "group": pl.Int64(),
    **{name: pl.Float64() for name in SHAPE},
    **{f"{name}_without": pl.Float64() for name in SHAPE},
    "reason": pl.String(),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class Geometry(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    n_tiles
        Tiles that are looked at; all where there are fewer.
    n_groups
        Groups of patients of the jackknife.
    null_samples
        Samples of Gaussian noise.
    """

    n_tiles: Annotated[int, Field(ge=2)]
    n_groups: Annotated[int, Field(ge=2)]
    null_samples: Annotated[int, Field(ge=1)]


def geometry_statistics(
    slides: pl.DataFrame, tiles: pl.DataFrame, embeddings: Embeddings, p: Geometry
) -> pl.DataFrame:
    """Power sums per patient, and the cloud's shape with and without each patient's group.

    Parameters
    ----------
    slides, tiles
        The cohort's tables.
    embeddings
        Vectors of one encoder.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`GEOMETRY_SCHEMA`.
    """
    from threadpoolctl import threadpool_limits

    rows = tile_rows(slides, tiles, embeddings.slide_ids)
    chosen = balanced_tiles(rows, p.n_tiles, p.seed)
    vectors = chosen_vectors(rows, chosen, embeddings)
    names, slide_ids = (rows[key][chosen].to_numpy() for key in ("patient_id", "slide_id"))
    patients, n_patients = patient_codes(names)
    of_slide, _ = patient_codes(slide_ids)
    first = np.unique(of_slide, return_index=True)[1]
    own: dict[str, object] = {
        "patient_id": np.unique(names),
        "n_tiles": np.bincount(patients, minlength=n_patients),
        "n_slides": np.bincount(patients[first], minlength=n_patients),
    }
    problem = few_hold_most(vectors)
    if problem:
        own["reason"] = [problem] * n_patients
    elif len(vectors) >= 2 and vectors.any():
        # Small decompositions: more threads cost more than they give, and change the last digits.
        with threadpool_limits(1):
            own |= _of_cloud(vectors, patients, of_slide, p.n_groups)
    return to_schema(pl.DataFrame(own), GEOMETRY_SCHEMA)


def few_hold_most(vectors: Floats) -> str:
    """Why the cloud of [m, d] has no shape to speak of: a few long vectors; empty if it has.

    Examples
    --------
    >>> few_hold_most(np.ones((9, 2)))
    ''
    >>> few_hold_most(np.diag([1.0] * 8 + [1e10]))[:45]
    '1 of 9 vectors is up to 10,000,000,000 times '
    """
    lengths = np.linalg.norm(vectors, axis=1)
    usual = float(np.median(lengths)) if len(lengths) else 0.0
    long = lengths > _LONG * usual
    if not usual or (lengths[long] ** 2).sum() <= _MOST * (lengths**2).sum():
        return ""
    count, most = int(long.sum()), float(lengths.max() / usual)
    return (
        f"{count} of {len(lengths)} vectors {'is' if count == 1 else 'are'} up to {number(most)} "
        "times as long as the median, so that moments and spectrum would speak of nothing else: look "
        "for a fault in the encoder or in its input, and embed again"
    )


def _of_cloud(vectors: Floats, patients: Ints, slides: Ints, n_groups: int) -> dict[str, object]:
    n_patients = int(patients.max()) + 1
    varying = varying_dimensions(vectors)
    sums = sum_by_patient(power_sums(vectors[:, varying]), patients, n_patients)[:, 1:]
    groups = patient_groups(patients, n_groups)
    own_group = groups[np.unique(patients, return_index=True)[1]]
    of = partial(_shape_of_rows, vectors[:, varying], rotated_into_rows(vectors), slides)
    whole = of(np.ones(len(groups), np.bool_))
    without = [of(groups != group) for group in range(int(groups.max()) + 1)]
    return {
        "n_dimensions": np.full(n_patients, vectors.shape[1]),
        CONSTANT: np.full(n_patients, (~varying).sum()),
        "power_sums": list(sums.reshape(n_patients, -1)),
        "group": own_group,
        **{name: np.full(n_patients, value) for name, value in whole.items()},
        **{f"{name}_without": [without[g].get(name) for g in own_group] for name in SHAPE},
    }


def _shape_of_rows(varying: Floats, rotated: Floats, slides: Ints, kept: Bools) -> dict[str, float]:
    """Figures of the shape that some of the rows have."""
    if kept.sum() < 2 or not rotated[kept].any():
        return {}
    return shape_figures(rotated[kept], slides[kept]) | correlation_figures(varying[kept])


def geometry_figures(statistics: pl.DataFrame, p: Geometry) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`geometry_statistics`.
    p
        The parameters.
    """
    of = PatientStatistics(statistics, p)
    of = of.with_setting(n_tiles=of.n)
    values: dict[str, Value] = {}
    if not statistics["n_dimensions"].drop_nulls().is_empty():
        constant = float(statistics[CONSTANT][0])
        values[CONSTANT] = Value(Estimate(constant, None, None, of.n, of.n_patients))
        null = gaussian_null(
            of.n,
            int(statistics["n_dimensions"][0]),
            int(statistics["n_slides"].sum()),
            p.null_samples,
            p.seed,
        )
        estimates = {**moment_estimates(of), **shape_estimates(of)}
        values |= {name: Value(found, null[name]) for name, found in estimates.items()}
    for metric in (CONSTANT, *MOMENTS, *SHAPE):
        yield of.figure(metric, partial(known_value, metric=metric, values=values))


def known_value(of: PatientStatistics, metric: str, values: Mapping[str, Value]) -> Value:
    """One of the figures that there are.

    Raises
    ------
    Undefined
        If it is not among them, with the reason.
    """
    if metric in values:
        return values[metric]
    if of.table["reason"].count():
        raise Undefined(of.table["reason"][0])
    if values and metric == ALIGNMENT:
        raise Undefined("no slide has two of the chosen tiles: raise geometry.n_tiles")
    if values and metric in CORRELATED:
        raise Undefined("fewer than two dimensions vary, so that none correlate: check the encoder")
    if values:
        raise Undefined(
            "every dimension is constant, so that moments are undefined: check the encoder"
        )
    raise Undefined("the figure needs two embedded tiles that are not all zero: embed more slides")


def moment_estimates(of: PatientStatistics) -> dict[str, Estimate]:
    """Moments with their bootstrap intervals over patients; empty where every dimension is constant."""
    tiles = of.table["n_tiles"].to_numpy()
    powers = of.table["power_sums"].explode().drop_nulls().to_numpy()
    if not len(powers):
        return {}
    powers = powers.reshape(of.n_patients, 4, -1)
    counts = np.broadcast_to(tiles[:, None, None], (of.n_patients, 1, powers.shape[2]))
    sums = np.concatenate([counts, powers], axis=1)
    step = max(1, _BATCH_ENTRIES // sums[0].size)
    batches = [
        moments(np.tensordot(of.weights[start : start + step], sums, axes=1))
        for start in range(0, of.parameters.draws, step)
    ]
    found = {}
    for metric, value in moments(sums.sum(axis=0)).items():
        draws = np.concatenate([batch[metric] for batch in batches])
        bounds = (
            percentile_interval(draws - np.nanmean(draws) + value)
            if of.n_patients > 1
            else (None, None)
        )
        found[metric] = _within(
            Estimate(float(value), *bounds, of.n, of.n_patients, draws), *_LEAST[metric]
        )
    return found


def _within(estimate: Estimate, least: float, most: float = np.inf) -> Estimate:
    """The estimate with its interval cut to what the figure can be."""
    low, high = (
        None if end is None else min(max(end, least), most)
        for end in (estimate.ci_low, estimate.ci_high)
    )
    return replace(estimate, ci_low=low, ci_high=high)


def shape_estimates(of: PatientStatistics) -> dict[str, Estimate]:
    """Figures of the shape, as far as there are, with jackknife intervals over groups of patients."""
    groups = of.table.unique("group").sort("group")
    n_dimensions, constant = (int(of.table[name][0]) for name in ("n_dimensions", CONSTANT))
    rank = min(of.n, n_dimensions)
    half_step = 0.5 / max(min(of.n - 1, n_dimensions - constant), 1)
    ranges = {
        "singular_value_entropy": (0.0, np.log(rank)),
        "largest_singular_value_ratio": (0.0, np.log(rank)),
        "effective_rank": (1.0, float(rank)),
        "mean_cosine": (-1.0, 1.0),
        ALIGNMENT: (0.0, 4.0),
        "uniformity": (-4 * _T, 0.0),
    }
    found = {}
    for metric in SHAPE:
        if of.table[metric][0] is None:
            continue
        value = float(of.table[metric][0])
        without = groups[f"{metric}_without"].drop_nulls().to_numpy()
        low, high = jackknife_interval(value, without)
        if metric == COUNTED and low is not None and high is not None:
            low, high = min(low, value - half_step), max(high, value + half_step)
        estimate = Estimate(value, low, high, of.n, of.n_patients)
        found[metric] = _within(estimate, *ranges.get(metric, (0.0, 1.0)))
    return found


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
    square = standard**2
    powers = (np.ones_like(standard), standard, square, square * standard, square**2)
    return np.stack(powers, axis=1)


def moments(sums: Floats) -> dict[str, Floats]:
    """Skewness and kurtosis per dimension, averaged over dimensions.

    Of the central moments m of the rows, without small-sample correction, as scipy's default.

    Parameters
    ----------
    sums
        [..., 5, d] sums over rows of :func:`power_sums`.

    Returns
    -------
    dict
        [...] for each name in :data:`MOMENTS`.

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
    """Figures of the singular values of the vectors; those below numerical rank count as zero.

    Parameters
    ----------
    vectors
        [m, d], not all zero.

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
    units = _unit_rows(vectors)
    total = (units.sum(axis=0) ** 2).sum() - (units**2).sum()
    return float(total / (len(vectors) * (len(vectors) - 1)))


def _unit_rows(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return cast(Floats, np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0))


def alignment_and_uniformity(vectors: Floats, slides: Ints) -> dict[str, float]:
    """Mean ‖u − v‖² over pairs of one slide, and log mean exp(−2 ‖u − v‖²) over all pairs.

    Parameters
    ----------
    vectors
        [m, d], m ≥ 2; u and v are its rows on the unit sphere.
    slides
        [m] codes.

    Returns
    -------
    dict
        Without ``alignment`` where no slide has two rows.

    Examples
    --------
    >>> vectors = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    >>> alignment_and_uniformity(vectors, np.array([0, 0, 1]))["alignment"]
    2.0
    """
    units = _unit_rows(vectors)
    squares = (units**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares - 2 * (units @ units.T), 0.0)
    upper = np.triu(np.ones(distances.shape, np.bool_), 1)
    found = {"uniformity": float(np.log(np.exp(-_T * distances[upper]).mean()))}
    of_one_slide = upper & (slides[:, None] == slides)
    if of_one_slide.any():
        found[ALIGNMENT] = float(distances[of_one_slide].mean())
    return found


def correlation_figures(vectors: Floats) -> dict[str, float]:
    """Off-diagonal correlation of dimensions, and what lies above the Marchenko-Pastur edge.

    Parameters
    ----------
    vectors
        [m, n]; a dimension that does not vary in these rows counts for nothing.

    Returns
    -------
    dict
        :data:`CORRELATED`; empty with fewer than two dimensions that vary.

    Examples
    --------
    >>> x = np.arange(6.0)
    >>> found = correlation_figures(np.stack([x, -x, 2 * x], axis=1))
    >>> {name: round(value, 3) for name, value in found.items()}  # one eigenvalue, 3, above 2.914
    ... # doctest: +NORMALIZE_WHITESPACE
    {'off_diagonal_correlation': 1.0, 'above_marchenko_pastur': 0.333,
     'variance_above_marchenko_pastur': 1.0}
    """
    rows = standardised(vectors)
    rows = rows[:, rows.any(axis=0)]
    m, n = rows.shape
    if n < 2:
        return {}
    single = rows.astype(np.float32)  # twice as fast, and exact to far more digits than are shown
    correlations = np.abs(single.T @ single) / m
    np.fill_diagonal(correlations, 0.0)
    smaller = rows @ rows.T if m < n else rows.T @ rows
    eigenvalues = np.linalg.eigvalsh(smaller / m)
    above = eigenvalues > marchenko_pastur_edge(m, n)
    figures = (
        min(float(correlations.sum(dtype=np.float64) / (n * (n - 1))), 1.0),
        above.sum() / min(m - 1, n),
        eigenvalues[above].sum() / n,
    )
    return {name: float(value) for name, value in zip(CORRELATED, figures, strict=True)}


def marchenko_pastur_edge(n_rows: int, n_dimensions: int) -> float:
    """Largest eigenvalue of the correlation matrix of independent noise, as both numbers grow.

    ``(1 + √(n/m))²`` for m rows of n dimensions.

    Examples
    --------
    >>> marchenko_pastur_edge(400, 100)
    2.25
    """
    return float((1 + np.sqrt(n_dimensions / n_rows)) ** 2)


def shape_figures(vectors: Floats, slides: Ints) -> dict[str, float]:
    """Spectral figures, cosine, alignment, uniformity: what a rotation of the space leaves alone."""
    return {
        **spectrum(vectors),
        "mean_cosine": mean_cosine(vectors),
        **alignment_and_uniformity(vectors, slides),
    }


def rotated_into_rows(vectors: Floats) -> Floats:
    """[m, d] reduced to [m, min(m, d)] with the same inner products, for faster spectra."""
    if vectors.shape[1] <= vectors.shape[0]:
        return vectors
    triangular: Floats = np.linalg.qr(vectors.T, mode="r")  # type: ignore[assignment]
    return triangular.T


@lru_cache(maxsize=8)
def gaussian_null(
    n_rows: int, n_dimensions: int, n_slides: int, samples: int, seed: int
) -> Mapping[str, Null]:
    """Range of every figure over seeded samples of [n_rows, n_dimensions] Gaussian noise.

    Rows are given to slides in turn, for the pairs of alignment.

    An encoder and its variants have the same shape, so that the noise is sampled once for them.
    """
    from threadpoolctl import threadpool_limits

    found: list[dict[str, float]] = []
    slides = np.arange(n_rows) % n_slides
    every = np.ones(n_rows, np.bool_)
    with threadpool_limits(1):
        for generator in np.random.default_rng(seed).spawn(samples):
            noise = generator.standard_normal((n_rows, n_dimensions))
            moment = {name: float(x) for name, x in moments(power_sums(noise).sum(axis=0)).items()}
            shape = _shape_of_rows(noise, rotated_into_rows(noise), slides, every)
            found.append({**moment, **shape})
    return {
        metric: Null(min(one[metric] for one in found), max(one[metric] for one in found))
        for metric in found[0]
    }


def _mean_over_dimensions(values: Floats) -> Floats:
    finite = np.isfinite(values)
    return cast(Floats, np.where(finite, values, 0).sum(axis=-1) / finite.sum(axis=-1))
