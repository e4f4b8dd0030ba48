"""Differences between two audits of the same patients, on the same resampled cohorts.

A table of measurements has intervals and no draws. Statistics per patient are kept with every version:
the judged figures are computed from them again, for both audits, and held against each other as two
encoders are (:mod:`pathfm_kedro.statistics.paired_comparison`). A figure that does not come out as it
was recorded, since the code has changed, is not paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pathfm_kedro.commands.audits import Audit

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.statistics.paired_comparison import Difference, Judged, Key
    from pathfm_kedro.wiring import Experiment

#: Experiment and encoder, then metric, stratum and setting.
FigureKey = tuple[str, str, str, str, str]
#: How far a figure may lie from the recorded one to be the same.
_SAME = 1e-6


def share_slides(one: Audit, other: Audit) -> bool:
    """Whether both audits are of the same slides: versions of a cohort, or equal fingerprints."""
    if one.cohort == other.cohort:
        return True
    if one.slides is None or other.slides is None:
        return False
    tables = one.slides, other.slides
    columns = {"slide_id", "patient_id", "fingerprint"}
    if any(not columns <= set(table.columns) for table in tables):
        return False
    first, second = (set(t.select(sorted(columns)).drop_nulls().iter_rows()) for t in tables)
    return bool(first) and first == second


def paired_differences(
    one: Audit, other: Audit, encoders: Sequence[str], both: pl.DataFrame
) -> dict[FigureKey, Difference]:
    """The second audit's judged figures less the first's, where patients are the same.

    Parameters
    ----------
    one, other
        The audits.
    encoders
        That both have.
    both
        Figures of both, ``value`` and ``value_after``: what was recorded.
    """
    from pathfm_kedro.pipeline_registry import experiments

    judged = both.drop_nulls(["threshold", "ci_low", "ci_low_after"])
    if judged.is_empty() or not share_slides(one, other):
        return {}
    found = {}
    for encoder in encoders:
        for pipeline, x in experiments():
            recorded = judged.filter(experiment=x.name, encoder=encoder)
            if recorded.is_empty():
                continue
            before, after = (_judged(audit, pipeline, x, encoder) for audit in (one, other))
            if before is None or after is None or before.patients != after.patients:
                continue
            values = {row[:3]: row[3:] for row in recorded.select(_RECORDED).iter_rows()}
            for key, difference in _differences(before, after, values):
                found[x.name, encoder, *key] = difference
    return found


_RECORDED = ["metric", "stratum", "setting", "value", "value_after"]


def _judged(audit: Audit, pipeline: str, x: Experiment, encoder: str) -> Judged | None:
    """The judged figures of an audit, computed again; None where they cannot be."""
    import polars as pl
    from kedro.io.core import DatasetError

    try:
        names = [f"statistics.{pipeline}.{x.name}.{encoder}", *x.beside]
        inputs = [_input(audit, name.format(e=encoder)) for name in names]
        return x.judged(*inputs, _input(audit, f"params:{x.name}"))
    # Statistics of another version of the project may lack anything.
    except (LookupError, ValueError, TypeError, DatasetError, pl.exceptions.PolarsError):
        return None


def _input(audit: Audit, name: str) -> Any:
    """A dataset of the audit, or parameters as its report prints them."""
    path = name.partition(":")[2]
    found: Any = audit.parameters if path else audit.load(name)
    if found is None:
        raise LookupError(name)
    for part in filter(None, path.split(".")):
        found = found[part]
    return found


def _differences(
    before: Judged, after: Judged, recorded: Mapping[tuple[str, ...], tuple[float, float]]
) -> Iterator[tuple[Key, Difference]]:
    from pathfm_kedro.statistics.figures import Value
    from pathfm_kedro.statistics.paired_comparison import simultaneous_differences

    for key, earlier in before.values.items():
        later, known = after.values.get(key), recorded.get(key)
        if not isinstance(earlier, Value) or not isinstance(later, Value) or known is None:
            continue
        pair = later.estimate, earlier.estimate
        # Without draws nothing is resampled together.
        if any(end.draws is None or end.ci_low is None for end in pair):
            continue
        if _as_recorded(earlier.estimate.value, known[0]) and _as_recorded(pair[0].value, known[1]):
            yield key, simultaneous_differences([pair])[0]


def _as_recorded(value: float | None, recorded: float | None) -> bool:
    return value is not None and recorded is not None and abs(value - recorded) <= _SAME
