"""A figure is a name and a computation; :func:`measure` computes, judges and tables all of them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pathfm_kedro.statistics.measurements import (
    Direction,
    Estimate,
    Null,
    measurement,
    measurement_table,
)

Subject = Literal["encoder", "arm", "cohort"]


class Undefined(ValueError):  # noqa: N818 (a reason, and no fault of anybody)
    """Raised by an estimator whose figure the design cannot support; the text is the reason.

    Parameters
    ----------
    reason
        What a reader gets in place of the figure: what is missing, and the mend.
    n, n_patients
        Rows and patients that there were, where the figure itself does not say.
    """

    def __init__(self, reason: str, n: int | None = None, n_patients: int | None = None) -> None:
        super().__init__(reason)
        self.n, self.n_patients = n, n_patients


@dataclass(frozen=True)
class Value:
    """What an estimator gives.

    Attributes
    ----------
    estimate
        The figure with its interval.
    null
        What it would be if the encoder knew nothing.
    caveat
        Why no verdict may rest on the figure although it was measured; empty where one may.
    reason
        What a reader must know of the figure in place of what the judge says; None for the judge's
        words.
    remark
        What a reader must know beside that.
    label_null
        Where the same vectors lie with labels permuted within centers, for figures whose verdict asks
        for the label: to pass, the value must lie above it and the interval above its middle. Where it
        is given, `null` does not make a criterion undecidable.
    permuted
        [permutations] behind `label_null`, alike for all encoders: the null of a difference.
    """

    estimate: Estimate
    null: Null = field(default_factory=Null)
    caveat: str = ""
    reason: str | None = None
    remark: str = ""
    label_null: Null | None = None
    permuted: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Figure:
    """One row of the measurements table, before it is computed.

    Attributes
    ----------
    metric
        Its name.
    compute
        Gives the value; raises :class:`Undefined`.
    setting
        What it was measured at, such as ``{"angle": 90}``.
    stratum
        ``all``, or ``label=…``, ``center=…``, ``organ=…``.
    n, n_patients
        Rows and patients it rests on, for the row of an undefined figure.
    """

    metric: str
    compute: Callable[[], Value | Estimate]
    setting: Mapping[str, Any] = field(default_factory=dict)
    stratum: str = "all"
    n: int = 0
    n_patients: int = 0


def undefined(reason: str) -> Callable[[], Value]:
    """Give a computation of what the design cannot support: it raises :class:`Undefined`."""

    def refuse() -> Value:
        raise Undefined(reason)

    return refuse


@dataclass(frozen=True)
class Criterion:
    """What a trustworthy encoder's figure must be.

    Attributes
    ----------
    metric
        Of which figure.
    threshold, direction
        The figure must lie above, or below, the threshold.
    at
        Entries that the figure's setting must have.
    stratum
        Of which stratum.
    min_patients
        With fewer patients no figure could pass: what is not decided then is undecidable.
    """

    metric: str
    threshold: float
    direction: Direction
    at: Mapping[str, Any] = field(default_factory=dict)
    stratum: str = "all"
    min_patients: int = 0

    @classmethod
    def parse(cls, entry: Mapping[str, Any]) -> Criterion:
        """Read ``{metric, at: {…}, above | below, stratum, min_patients}``.

        Raises
        ------
        ValueError
            If a key is unknown or missing, or there is not exactly one of above and below.

        Examples
        --------
        >>> Criterion.parse({"metric": "mknn", "at": {"angle": 90}, "above": 0.8}).direction
        'above'
        """
        unknown = sorted(set(entry) - _CRITERION_KEYS)
        ends: list[Direction] = [end for end in ("above", "below") if entry.get(end) is not None]  # type: ignore[misc]
        if unknown or "metric" not in entry or len(ends) != 1:
            raise ValueError(
                f"the criterion {dict(entry)} must read {{metric: <name>, at: {{<setting>}}, above: "
                f"<number>}}, or below in place of above{_naming(unknown)}"
            )
        return cls(
            str(entry["metric"]),
            float(entry[ends[0]]),
            ends[0],
            dict(entry.get("at") or {}),
            str(entry.get("stratum", "all")),
            int(entry.get("min_patients", 0)),
        )

    def asks(self, figure: Figure) -> bool:
        """Whether the figure is judged by this criterion."""
        return (
            self.metric == figure.metric
            and self.stratum == figure.stratum
            and all(figure.setting.get(key) == value for key, value in self.at.items())
        )


_CRITERION_KEYS = {"metric", "at", "above", "below", "stratum", "min_patients"}


def _naming(unknown: Sequence[str]) -> str:
    return f"; {', '.join(unknown)} is not known" if unknown else ""


def measure(
    figures: Iterable[Figure],
    experiment: str,
    name: str,
    criteria: Sequence[Criterion] = (),
    subject: Subject = "encoder",
) -> pl.DataFrame:
    """Compute figures and hold them against the criteria: rows of the measurements table.

    A figure that raises :class:`Undefined` becomes a row without a value and with the reason; one
    with a caveat keeps its value and gets no verdict. Where chance alone reaches a threshold that
    must be exceeded, nothing can be decided and the row says so.

    Parameters
    ----------
    figures
        In reading order.
    experiment
        Name of the experiment.
    name
        The encoder, or the arm, that was measured.
    criteria
        At most one for each figure.
    subject
        What `name` names.

    Raises
    ------
    ValueError
        If a criterion asks for a figure that the experiment does not give, naming those it gives, or
        two ask for the same.

    Examples
    --------
    >>> figure = Figure("mknn", lambda: Estimate(0.9, 0.85, 0.95, 64, 8), {"angle": 90})
    >>> rule = Criterion("mknn", 0.8, "above", {"angle": 90})
    >>> measure([figure], "rotation", "uni", [rule])["verdict"].to_list()
    ['pass']
    """
    from threadpoolctl import threadpool_limits

    # Sums in one order: the same figures on any number of cores. And threads of BLAS would wait for
    # each other longer than such small products take.
    with threadpool_limits(1):
        listed = list(figures)
        _refuse_unasked(criteria, listed, experiment)
        _refuse_asked_twice(criteria, listed, experiment)
        rows = (_row(figure, experiment, name, criteria, subject) for figure in listed)
        return measurement_table(rows)


def _row(
    figure: Figure, experiment: str, name: str, criteria: Sequence[Criterion], subject: Subject
) -> dict[str, Any]:
    criterion = next((c for c in criteria if c.asks(figure)), None)
    common: dict[str, Any] = {
        "experiment": experiment,
        "encoder": name,
        "subject": subject,
        "metric": figure.metric,
        "stratum": figure.stratum,
        "setting": figure.setting,
        "threshold": criterion.threshold if criterion else None,
        "direction": criterion.direction if criterion else None,
    }
    try:
        found = figure.compute()
    except Undefined as problem:
        n = figure.n if problem.n is None else problem.n
        patients = figure.n_patients if problem.n_patients is None else problem.n_patients
        nothing = Estimate(None, None, None, n, patients)
        return measurement(**common, estimate=nothing, reason=str(problem))
    value = found if isinstance(found, Value) else Value(found)
    row = measurement(
        **common,
        estimate=value.estimate,
        null=value.null,
        label_null=value.label_null,
        caveat=value.caveat,
        reason=value.reason,
    )
    if criterion and row["verdict"] == "inconclusive" and not row["caveat"]:
        row |= _too_small(criterion, row["n_patients"])
    if value.remark:
        # "Descriptive" needs no saying where there is something else to say.
        judged = row["reason"] if criterion or value.reason else ""
        row["reason"] = "; ".join(filter(None, [judged, value.remark]))
    return row


def _too_small(criterion: Criterion, n_patients: int) -> dict[str, str]:
    """What an open verdict becomes where so few patients could not have passed at all."""
    if n_patients >= criterion.min_patients:
        return {}
    return {
        "verdict": "undecidable",
        "reason": f"to pass needs {criterion.min_patients} patients, and there are {n_patients}: add "
        "patients",
    }


def _refuse_unasked(
    criteria: Sequence[Criterion], figures: Sequence[Figure], experiment: str
) -> None:
    for criterion in criteria:
        if any(criterion.asks(figure) for figure in figures):
            continue
        known = sorted({figure.metric for figure in figures})
        if criterion.metric in known:
            settings = [dict(f.setting) for f in figures if f.metric == criterion.metric]
            mend = f"it is measured at {'; '.join(json.dumps(s) for s in settings[:6])}"
        else:
            near = difflib.get_close_matches(criterion.metric, known, 1) or known
            mend = f"did you mean {near[0]}? It gives {', '.join(known)}" if known else ""
        raise ValueError(
            f"{experiment}.criteria: no figure {criterion.metric} at {json.dumps(dict(criterion.at))} "
            f"(stratum {criterion.stratum}) is measured: {mend}"
        )


def _refuse_asked_twice(
    criteria: Sequence[Criterion], figures: Sequence[Figure], experiment: str
) -> None:
    for figure in figures:
        if sum(criterion.asks(figure) for criterion in criteria) > 1:
            at = json.dumps(dict(figure.setting))
            raise ValueError(
                f"{experiment}.criteria: two judge {figure.metric} at {at} (stratum {figure.stratum}): "
                "leave one, or tell them apart with at"
            )
