r"""The same tissue scanned or stained again: does a tile keep its vector.

Slides that show one tissue (``same_tissue_as`` in the manifest) are registered, and tiles are read at
the same places; a slide that lies askew is turned upright as it is read. All pairs of slides of one
tissue are compared, by what differs between them: the ``scanner``, the ``stain``, ``both``, and ``any``
for all pairs together, those whose columns tell no difference among them. With a_i, b_i the vectors of
place i on the two slides of a pair and n their common places:

- ``paired_cosine = mean_i cos(a_i, b_i)``, and ``cosine_excess``, the same minus
  ``mean_{i≠j} cos(a_i, b_j)``: an encoder that finds all tissue alike has a high cosine and no excess;
- ``paired_top_k``: share of places i whose own b_i is among the k of b_1 … b_n nearest to a_i, and the
  other way round; of equally near ones each counts in part. ``pool_size`` is n, chance is k/n;
- ``probe_agreement``: share of places to which one linear probe of the label, fitted on other patients,
  gives the same label on both slides; its null is the share among different places of the pair;
- ``calibration_shift``: expected calibration error of that probe,
  ``Σ_bins |Σ (correct − confidence)| / n``, on slides that show tissue again minus that on their
  reference slides; both on the same places.

Cosine, excess, top-k and agreement are medians over pairs of slides, with quartiles in the row's
reason; the interval resamples patients. With a single patient it resamples regions of the tissue and
says so: it holds for this tissue only, and no verdict rests on it.

Pitfalls
--------
- A cosine alone misleads: PLIP has .878 and finds the place among its ten nearest in 5% (Plismbench).
- Top-k falls with the pool: a figure with another n is not comparable. Published ones used 8,139
  places.
- What registration missed looks like a change of the vector: see ``residual_um`` in ``tissue_pairs``.
- Turning a tile upright interpolates once: a slide that lies askew is blurred by it, the other is not.
- The next section of a block is other tissue, and differs for good reasons.

References
----------
Filiot et al. 2025, "Distilling foundation models for robust and efficient models in digital pathology",
arXiv 2501.16239 (Plismbench); Thiringer et al. 2026, arXiv 2601.04163 (calibration across scanners).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Annotated, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

from pathfm_kedro.pipelines.robustness.tissue_pairs import LEAST_DEGREES
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.views import rotated_views, wide_side
from pathfm_kedro.statistics.bootstrap import percentile_interval
from pathfm_kedro.statistics.cross_validation import ProbeSettings, patient_folds
from pathfm_kedro.statistics.figures import Figure, Undefined, Value
from pathfm_kedro.statistics.linear_classifier import fit_linear_classifier
from pathfm_kedro.statistics.measurements import Estimate, Null
from pathfm_kedro.statistics.mutual_knn import unit
from pathfm_kedro.statistics.parameters import STRICT, ExperimentParameters
from pathfm_kedro.statistics.readable_numbers import number
from pathfm_kedro.statistics.sampling import balanced_over_cells
from pathfm_kedro.statistics.tables import Embeddings, chosen_vectors, tile_rows, to_schema
from pathfm_kedro.views import (
    EmbeddedViews,
    View,
    ViewSet,
    embedded_views,
    unchanged,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What differs between the slides of a pair; any is all of them, and those of which nothing is known.
ANY, SCANNER, STAIN, BOTH, UNKNOWN = "any", "scanner", "stain", "both", "unknown"
KINDS = (ANY, SCANNER, STAIN, BOTH)
#: Ten bins of confidence, as calibration errors are published.
_BINS = 10
#: Similarities closer than this are equal: rounding decides no rank.
_EQUAL = 1e-9
_UNSPECIFIED = "unspecified"

#: One row per pair of slides and region: sums over its n_tiles places. hits holds a sum for each k,
#: null where the pair has no more than k places. n_probed, agree_sum and agree_chance_sum are 0 where
#: no probe could be fitted; bins hold, of the reference slide and of the repeat, sums of (1,
#: confidence, correct) in ten bins of confidence, empty for pairs of two repeats.
SAME_TISSUE_SCHEMA: dict[str, pl.DataType] = {
    "kind": pl.String(),
    "first": pl.String(),
    "second": pl.String(),
    "patient_id": pl.String(),
    "region": pl.String(),
    "n_tiles": pl.Int64(),
    "n_pool": pl.Int64(),
    "cosine_sum": pl.Float64(),
    "excess_sum": pl.Float64(),
    "hits": pl.List(pl.Float64()),
    "n_probed": pl.Int64(),
    "agree_sum": pl.Float64(),
    "agree_chance_sum": pl.Float64(),
    "bins": pl.List(pl.Float64()),
}


@dataclass(frozen=True, config=STRICT, kw_only=True)
class SameTissue(ExperimentParameters):
    """Parameters of the experiment.

    Attributes
    ----------
    registration_mpp
        Micrometres per px at which slides are registered; coarser on slides of more than 2,048 px then.
    min_correlation
        Of the fine structure where registered slides overlap: below it they are not taken for
        registered.
    max_residual_um
        Median distance by which parts of the tissue may still lie apart.
    max_places
        Places of a tissue that are compared.
    k
        Nearest places that count.
    probe
        The linear probe of the label.
    probe_tiles
        Tiles of the cohort that the probe is fitted on, at most.
    """

    registration_mpp: Annotated[float, Field(gt=0)]
    min_correlation: Annotated[float, Field(ge=0, le=1)]
    max_residual_um: Annotated[float, Field(gt=0)]
    max_places: Annotated[int, Field(ge=2)]
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    probe: ProbeSettings
    probe_tiles: Annotated[int, Field(ge=2)]


def view_of_same_tissue(tiles: pl.DataFrame, pixels: int, p: SameTissue) -> ViewSet:
    """One slide's tiles as its reference slide lies."""
    angle, flip = float(tiles["rotation_deg"][0]), bool(tiles["flip"][0])
    if not flip and abs(angle) < LEAST_DEGREES:
        return ViewSet((View("upright", unchanged),))
    arguments = {"size": pixels, "angle": angle, "flip": flip}
    side = wide_side(pixels)
    return ViewSet((View("upright", upright, arguments),), (side, side))


def upright(wide: Pixels, size: int, angle: float, flip: bool) -> Pixels:
    """A field as its reference slide shows it: mirrored if need be, then turned counter-clockwise."""
    field = np.ascontiguousarray(wide[:, ::-1]) if flip else wide
    return rotated_views(field, size, [angle])


def same_tissue_statistics(
    views: Embeddings,
    paired: pl.DataFrame,
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    p: SameTissue,
) -> pl.DataFrame:
    """Compare slides of one tissue two by two and reduce each pair to sums per region.

    Parameters
    ----------
    views
        Vectors of the paired tiles.
    paired
        From :func:`~pathfm_kedro.pipelines.robustness.tissue_pairs.choose_paired_tiles`; slides without
        a shard are left out.
    slides, tiles, embeddings
        The cohort, on which probes are fitted.
    p
        The parameters.

    Returns
    -------
    DataFrame
        Columns :data:`SAME_TISSUE_SCHEMA`.
    """
    found = embedded_views(views, paired, ({"view": "upright"},), "same_tissue")
    if found.tiles.is_empty():
        return pl.DataFrame(schema=SAME_TISSUE_SCHEMA)
    probed = _probed(found, slides, tiles, embeddings, p)
    vectors = unit(found.vectors[:, 0])
    rows: list[dict[str, Any]] = []
    numbered = found.tiles.with_row_index("row")
    for (reference,), group in numbered.group_by("reference_id", maintain_order=True):
        members = {str(name): part for (name,), part in group.group_by("slide_id")}
        # The reference slide is the first of each of its pairs.
        names = sorted(members, key=lambda name: (name != reference, name))
        for first, second in combinations(names, 2):
            both = members[first].join(members[second], on="place", suffix="_second").sort("place")
            if both.height >= 2:
                rows += _of_pair(both, vectors, probed, p.k, first == reference)
    return to_schema(rows, SAME_TISSUE_SCHEMA)


def _kind(row: dict[str, Any]) -> str:
    """What differs between the slides of a pair, as far as both columns tell."""
    changed = []
    for column in (SCANNER, STAIN):
        names = {row[column] or _UNSPECIFIED, row[f"{column}_second"] or _UNSPECIFIED}
        if len(names) > 1 and _UNSPECIFIED not in names:
            changed.append(column)
    return BOTH if len(changed) > 1 else changed[0] if changed else UNKNOWN


def _of_pair(
    both: pl.DataFrame, vectors: Floats, probed: _Probed, k: tuple[int, ...], with_reference: bool
) -> Iterator[dict[str, Any]]:
    """Sums of one pair of slides for each region."""
    a, b = both["row"].to_numpy(), both["row_second"].to_numpy()
    n, similarity = both.height, vectors[a] @ vectors[b].T
    own = np.diag(similarity)
    others = ((similarity.sum(axis=0) + similarity.sum(axis=1)) / 2 - own) / (n - 1)
    hits = np.stack([(_hits(similarity, i) + _hits(similarity.T, i)) / 2 for i in k], axis=1)
    guess = probed.label[a], probed.label[b]
    known = (guess[0] >= 0) & (guess[1] >= 0)
    agree = known & (guess[0] == guess[1])
    by_chance = ((guess[0][:, None] == guess[1][None]).sum(axis=1) - agree) / (n - 1)
    bins = np.stack([probed.bins(rows) for rows in (a, b)], axis=1)
    regions = both["region"].to_numpy()
    first = both.row(0, named=True)
    for region in np.unique(regions):
        at = regions == region
        answered = at & known
        yield {
            "kind": _kind(first),
            "first": first["slide_id"],
            "second": first["slide_id_second"],
            "patient_id": first["patient_id"],
            "region": region,
            "n_tiles": int(at.sum()),
            "n_pool": n,
            "cosine_sum": float(own[at].sum()),
            "excess_sum": float((own - others)[at].sum()),
            "hits": [None if k_ >= n else float(hits[at, i].sum()) for i, k_ in enumerate(k)],
            "n_probed": int(answered.sum()),
            "agree_sum": float(agree[answered].sum()),
            "agree_chance_sum": float(by_chance[answered].sum()),
            "bins": bins[answered].sum(axis=0).ravel().tolist() if with_reference else [],
        }


def _hits(similarity: Floats, k: int) -> Floats:
    """How much of each row's own column is among the k most similar: of equal ones each in part.

    Examples
    --------
    >>> _hits(np.array([[1.0, 0.0], [0.5, 0.5]]), 1).tolist()
    [1.0, 0.5]
    """
    own = np.diag(similarity)[:, None]
    nearer = (similarity > own + _EQUAL).sum(axis=1)
    equal = (np.abs(similarity - own) <= _EQUAL).sum(axis=1)
    part: Floats = np.clip((k - nearer) / equal, 0.0, 1.0)
    return part


@dataclasses.dataclass(frozen=True)
class _Probed:
    """What a probe of other patients says of each paired tile.

    Attributes
    ----------
    label
        [n] code of the label it gives; -1 where there is none.
    confidence, correct
        [n] probability of that label, and whether it is the tile's own.
    """

    label: Ints
    confidence: Floats
    correct: Floats

    def bins(self, rows: Ints) -> Floats:
        """[n, bins, 3]: (1, confidence, correct) of each tile in its bin of confidence, else 0."""
        place = np.clip((self.confidence[rows] * _BINS).astype(np.int64), 0, _BINS - 1)
        out = np.zeros((len(rows), _BINS, 3))
        said = np.stack([np.ones(len(rows)), self.confidence[rows], self.correct[rows]], axis=1)
        out[np.arange(len(rows)), place] = said
        return out


def _probed(
    found: EmbeddedViews,
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    embeddings: Embeddings,
    p: SameTissue,
) -> _Probed:
    """Fit probes on the cohort's tiles, each without the patients that it is shown."""
    n = found.tiles.height
    out = _Probed(np.full(n, -1, np.int64), np.zeros(n), np.zeros(n))
    listed = tile_rows(slides, tiles, embeddings.slide_ids).with_row_index("_row")
    labelled = listed.filter(pl.col("label").is_not_null(), pl.col("patient_id").is_not_null())
    counts = labelled.group_by("label").agg(pl.col("patient_id").n_unique())
    classes = counts.filter(pl.col("patient_id") >= p.probe.folds)["label"].sort().to_list()
    if len(classes) < 2:
        return out
    candidates = labelled.filter(pl.col("label").is_in(classes)).sort("tile_id")
    rows = balanced_over_cells(candidates, p.seed).head(p.probe_tiles).sort("_row")
    vectors = chosen_vectors(listed, rows["_row"].to_numpy(), embeddings)
    patients, labels = rows["patient_id"].to_numpy(), rows["label"].to_numpy()
    shown = found.tiles["patient_id"].to_numpy()
    everyone = np.unique(np.concatenate([patients, shown]).astype(str))
    fold_of = dict(zip(everyone, patient_folds(everyone, p.probe.folds, p.seed), strict=True))
    fold, shown_fold = (np.array([fold_of[name] for name in who]) for who in (patients, shown))
    own = found.tiles["label"].to_numpy()
    for held_out in np.unique(shown_fold):
        train, test = fold != held_out, shown_fold == held_out
        if len(np.unique(labels[train])) < 2:
            continue
        model = fit_linear_classifier(vectors[train], labels[train], p.probe.C, p.probe.max_iter)
        logits = found.vectors[test, 0].astype(np.float64) @ model.weight.T + model.bias
        logits -= logits.max(axis=1, keepdims=True)
        chance = np.exp(logits)
        chance /= chance.sum(axis=1, keepdims=True)
        best = chance.argmax(axis=1)
        names = np.array(model.labels)[best]
        out.label[test] = [classes.index(name) for name in names]
        out.confidence[test], out.correct[test] = chance.max(axis=1), names == own[test]
    return out


def same_tissue_figures(
    statistics: pl.DataFrame, pairs: pl.DataFrame, p: SameTissue
) -> Iterator[Figure]:
    """Figures of the experiment, in reading order.

    Parameters
    ----------
    statistics
        From :func:`same_tissue_statistics`.
    pairs
        From :func:`~pathfm_kedro.pipelines.robustness.tissue_pairs.register_repeats`.
    p
        The parameters.
    """
    lost = pairs.filter(status="unregistered")
    why = _why_lost(lost)
    for kind in KINDS:
        table = statistics if kind == ANY else statistics.filter(kind=kind)
        of = _Pairs(table, p, _nothing(kind, pairs, why))
        for i, k in enumerate(p.k):
            yield of.figure("paired_top_k", partial(top_k, place=i, k=k), kind=kind, k=k)
        yield of.figure("paired_cosine", partial(median, column="cosine_sum"), kind=kind)
        yield of.figure("cosine_excess", excess, kind=kind)
        yield of.figure("probe_agreement", agreement, kind=kind)
        yield of.figure("calibration_shift", calibration_shift, kind=kind)
        yield of.figure("pool_size", pool_size, kind=kind)
    counted = Value(_count(lost.height, pairs.height), reason=why or None)
    yield Figure("unregistered", lambda: counted, n=pairs.height)


def _why_lost(lost: pl.DataFrame) -> str:
    """Reasons of slides that could not be registered, without their names."""
    return "; ".join(
        f"{n}: {reason.partition(' (')[0].partition(': ')[0]}"
        for reason, n in lost["reason"].value_counts(sort=True).sort("reason").iter_rows()
    )


def _nothing(kind: str, pairs: pl.DataFrame, why: str) -> str:
    """Why there may be no pair of a kind."""
    if pairs.is_empty():
        return (
            "no slide names another in 'same_tissue_as': fill that column in where tissue was scanned "
            "or stained again"
        )
    differ = {SCANNER: "the scanner alone", STAIN: "the stain alone", BOTH: "scanner and stain"}
    if kind in differ:
        return (
            f"no pair of registered slides differs in {differ[kind]}: bring such slides, or fill in "
            "the columns scanner and stain"
        )
    return f"no pair of slides was registered and embedded{f' ({why})' if why else ''}"


def _count(value: int, n: int) -> Estimate:
    return Estimate(float(value), None, None, n, 0)


@dataclasses.dataclass(frozen=True)
class _Pairs:
    """Pairs of slides of one kind, resampled by patients, or by regions where there is one patient.

    Attributes
    ----------
    table
        Rows of the statistics.
    parameters
        The experiment's.
    nothing
        Why there may be none.
    """

    table: pl.DataFrame
    parameters: SameTissue
    nothing: str

    def figure(self, metric: str, estimator: Callable[[_Pairs], Value], **setting: Any) -> Figure:
        """A figure of these pairs."""

        def compute() -> Value:
            if self.table.is_empty():
                raise Undefined(self.nothing)
            return estimator(self)

        n = int(self.table["n_tiles"].sum())
        return Figure(metric, compute, setting, n=n, n_patients=self.n_patients)

    @property
    def n_patients(self) -> int:
        """Whose tissue the pairs show."""
        return self.table["patient_id"].n_unique()

    @property
    def _unit(self) -> str:
        return "patient_id" if self.n_patients > 1 else "region"

    @property
    def caveat(self) -> str:
        """What an interval over one patient's regions cannot say; empty if there are several."""
        if self.n_patients > 1:
            return ""
        n = self.table["region"].n_unique()
        return (
            f"one patient: the interval is over {n} regions of this tissue and holds for no other; add "
            "patients"
        )

    def where(self, rows: pl.Expr) -> _Pairs:
        """Those that a figure rests on: patients who bring nothing to it are not resampled either."""
        return replace(self, table=self.table.filter(rows))

    @property
    def weights(self) -> Floats:
        """[draws, units] of the bootstrap."""
        return self.parameters.weights(self.table[self._unit].n_unique())

    def sums(self, *columns: str) -> list[Floats]:
        """[pairs, units] sums of each column."""
        pair = self.table.select(pl.struct("first", "second").rank("dense") - 1).to_series()
        unit_ = self.table[self._unit].rank("dense") - 1
        shape = int(pair.max()) + 1, int(unit_.max()) + 1  # type: ignore[arg-type]
        found = []
        for column in columns:
            out = np.zeros(shape)
            np.add.at(out, (pair.to_numpy(), unit_.to_numpy()), self.table[column].to_numpy())
            found.append(out)
        return found

    def median_ratio(self, numerator: str, denominator: str) -> tuple[Estimate, str]:
        """Median over pairs of a ratio of sums with its interval, and the quartiles in words."""
        above, below = self.sums(numerator, denominator)
        values = above.sum(axis=1) / below.sum(axis=1)
        if self._unit == "patient_id":
            # A pair is of one patient, and counts as often as its patient.
            draws = weighted_medians(values, self.weights[:, below.argmax(axis=1)])
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                draws = np.nanmedian((self.weights @ above.T) / (self.weights @ below.T), axis=1)
        low, high = percentile_interval(draws) if below.shape[1] > 1 else (None, None)
        quartiles = map(number, np.quantile(values, (0.25, 0.75)))
        n, units = len(values), int(below.sum())
        words = f"median of {n} pairs of slides, quartiles {' and '.join(quartiles)}"
        estimate = Estimate(float(np.median(values)), low, high, units, self.n_patients, draws)
        return estimate, words


def weighted_medians(values: Floats, weights: Floats) -> Floats:
    """Median of values of which each counts as often as its weight says; NaN where none counts.

    Parameters
    ----------
    values
        [n].
    weights
        [draws, n], whole numbers.

    Examples
    --------
    >>> weighted_medians(np.array([1.0, 5.0, 2.0]), np.array([[1, 1, 1], [2, 0, 2], [0, 0, 0]]))
    array([2. , 1.5, nan])
    """
    order = np.argsort(values)
    ordered, reached = values[order], np.cumsum(weights[:, order], axis=1)
    half = reached[:, -1:] / 2
    low = np.minimum((reached < half).sum(axis=1), len(values) - 1)
    high = np.minimum((reached <= half).sum(axis=1), len(values) - 1)
    found: Floats = np.where(half[:, 0] > 0, (ordered[low] + ordered[high]) / 2, np.nan)
    return found


def median(of: _Pairs, column: str) -> Value:
    """Median over pairs of the mean over places."""
    estimate, words = of.median_ratio(column, "n_tiles")
    return Value(estimate, caveat=of.caveat, remark=words)


def excess(of: _Pairs) -> Value:
    """Cosine of the same place minus that of other places of the pair; null 0."""
    return replace(median(of, "excess_sum"), null=Null(0.0, 0.0))


def top_k(of: _Pairs, place: int, k: int) -> Value:
    """Median over pairs of the share of places found among the k nearest; null k/n."""
    hits = of.table["hits"].list.get(place)
    hit = replace(of, table=of.table.with_columns(_hit=hits)).where(pl.col("_hit").is_not_null())
    if hit.table.is_empty():
        raise Undefined(
            f"no pair has more than {k} places that both slides show: raise same_tissue.max_places, or "
            "bring slides that show more of the tissue"
        )
    estimate, words = hit.median_ratio("_hit", "n_tiles")
    pools = hit.table.unique(["first", "second"])["n_pool"]
    least, most = (int(end) for end in (pools.min(), pools.max()))  # type: ignore[arg-type]
    chance = Null(k / most, k / least)
    pool = f"{least}" if least == most else f"{least} to {most}"
    remark = f"of {pool} places, chance {k}/n; {words}"
    return Value(estimate, chance, caveat=hit.caveat, remark=remark)


def agreement(of: _Pairs) -> Value:
    """Median over pairs of the share of places with one label on both; null: of different places."""
    asked = _probed_pairs(of)
    estimate, words = asked.median_ratio("agree_sum", "n_probed")
    chance, _ = asked.median_ratio("agree_chance_sum", "n_probed")
    null = Null(chance.value, chance.value)
    return Value(estimate, null, caveat=asked.caveat, remark=words)


def calibration_shift(of: _Pairs) -> Value:
    """Expected calibration error on the repeats minus that on their reference slides; null 0."""
    kept = _probed_pairs(of).where(pl.col("bins").list.len() > 0)
    if kept.table.is_empty():
        raise Undefined(
            "no pair holds a reference slide that was probed: embed the reference slides"
        )
    by_unit = kept.table.group_by(kept._unit).agg("bins").sort(kept._unit)["bins"].to_list()
    sums = np.array([np.sum(rows, axis=0) for rows in by_unit])
    resampled = np.concatenate([sums.sum(axis=0)[None], kept.weights @ sums])
    count, confidence, correct = np.moveaxis(resampled.reshape(len(resampled), 2, _BINS, 3), 3, 0)
    errors = np.abs(correct - confidence).sum(axis=2) / count.sum(axis=2)
    shift = errors[:, 1] - errors[:, 0]
    low, high = percentile_interval(shift[1:]) if len(sums) > 1 else (None, None)
    n = int(kept.table["n_probed"].sum())
    first, again = map(number, errors[0])
    words = f"{first} on reference slides, {again} on slides that show them again"
    estimate = Estimate(float(shift[0]), low, high, n, kept.n_patients, shift[1:])
    return Value(estimate, Null(0.0, 0.0), caveat=kept.caveat, remark=words)


def _probed_pairs(of: _Pairs) -> _Pairs:
    """Pairs of which a probe said something."""
    asked = of.where(pl.col("n_probed") > 0)
    if asked.table.is_empty():
        raise Undefined(
            f"fewer than two labels have {of.parameters.probe.folds} patients with embedded tiles, so "
            "no probe can be fitted on other patients: add patients, or lower same_tissue.probe.folds"
        )
    return asked


def pool_size(of: _Pairs) -> Value:
    """Median over pairs of the number of places that both slides show."""
    pools = of.table.unique(["first", "second"])["n_pool"]
    estimate = Estimate(float(np.median(pools)), None, None, len(pools), of.n_patients)
    return Value(estimate)
