"""Which experiments a cohort's design supports, known from its manifest before anything is computed.

The conditions are those of the experiments themselves: cells of label and center
(:func:`~pathfm_kedro.statistics.balanced_designs.scopes_of`), labels for the folds of a probe
(:func:`~pathfm_kedro.statistics.probe_splits.probed_labels`), labels that a search can find
(:func:`~pathfm_kedro.pipelines.retrieve.counted_queries.searchable_labels`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

#: Labels and centers in the table of patients; a larger design is summed up.
_MOST_LABELS, _MOST_CENTERS = 12, 8
_CELL = "min_patients_per_cell"
#: Experiments on pixels; a test holds them against an audit of features.
ON_PIXELS = (
    "rotation", "appearance", "cue_conflict", "texture", "stain_probe", "crop_coherence",
    "field_of_view", "adversarial", "mosaic_field", "task_specific", "pretraining_noise",
    "pretext_tasks", "adaptation", "initialisation",
)  # fmt: skip


@dataclass(frozen=True)
class Support:
    """Whether the design supports a part of an experiment.

    Attributes
    ----------
    name
        Of the experiment, and of its design or scope where there are several.
    reason
        Why it cannot be measured, with the mend; empty if it can.
    """

    name: str
    reason: str


def supported_checks(parameters: Mapping[str, Any], slides: pl.DataFrame) -> list[Support]:
    """What can be measured of a design, in the order of the parameters.

    Parameters
    ----------
    parameters
        All parameters, the audit's size applied.
    slides
        slide_id, patient_id, center, organ, label of the slides that can be used.

    Examples
    --------
    >>> import polars as pl
    >>> columns = {"slide_id": "abcd", "patient_id": "pqrs", "center": "AABB", "label": "xxyy"}
    >>> slides = pl.DataFrame({name: list(cells) for name, cells in columns.items()})
    >>> block = {"min_patients_per_cell": 2}
    >>> (found,) = supported_checks({"robustness_index": block}, slides)
    >>> found.reason.partition(":")[0]
    'label and center are confounded'
    """
    found: list[Support] = []
    for name, block in parameters.items():
        if not isinstance(block, Mapping) or block.get("encoders") == [] or slides.is_empty():
            continue
        if _CELL in block:
            found += _cells(name, block, slides)
        if isinstance(block.get("scopes"), list) and "min_patients" in block:
            found += _searches(name, block, slides)
        folds = block["probe"].get("folds") if isinstance(block.get("probe"), Mapping) else None
        if folds and (name != "same_tissue" or parameters["cohort"].get("same_tissue")):
            found.append(_probe(name, int(folds), slides))
    return found


def _cells(name: str, block: Mapping[str, Any], slides: pl.DataFrame) -> Iterator[Support]:
    """Designs over cells of label and center; how many tiles a cell has is not known yet."""
    from pathfm_kedro.statistics.balanced_designs import Subsampling, cohort_of, scopes_of

    usual = ["paired_2x2"] if "max_tiles_per_pair" in block else ["all"]
    designs = block.get("designs", usual)
    asked = Subsampling(
        designs=tuple(designs),
        min_patients_per_cell=int(block[_CELL]),
        min_tiles_per_cell=0,
        min_share_of_median_cell=0.0,
        max_tiles=len(slides),
        max_pairs=1,
    )
    _, unused = scopes_of(cohort_of(slides.with_columns(tile_id="slide_id"), "patient"), asked, 0)
    reasons = {row["design"]: row["reason"] for row in unused if row["label"] is None}
    for design in designs:
        # Cells that are left out stand in the table of patients.
        reason = str(reasons.get(design) or "").partition("; left out: ")[0]
        yield Support(f"{name} ({design})" if len(designs) > 1 else name, reason)


def _searches(name: str, block: Mapping[str, Any], slides: pl.DataFrame) -> Iterator[Support]:
    from pathfm_kedro.pipelines.retrieve.counted_queries import searchable_labels
    from pathfm_kedro.pipelines.retrieve.search import SCOPES
    from pathfm_kedro.statistics.balanced_designs import codes_of
    from pathfm_kedro.statistics.votes import LabelledQueries

    patient, label, organ = (codes_of(slides[c]) for c in ("patient_id", "label", "organ"))
    sizes = int(patient.max()) + 1, int(label.max()) + 1
    least = int(block["min_patients"])
    for scope in block["scopes"]:
        within, elsewhere = "organ" in SCOPES[scope].same, bool(SCOPES[scope].other)
        queries = LabelledQueries(patient, label, organ if within else organ * 0, *sizes)
        reason = ""
        if not searchable_labels(queries, least, within).any():
            where = "no organ holds two labels" if within else "no label is there"
            reason = f"{where} with {least} patients each: add patients"
        elif elsewhere and slides["center"].n_unique() < 2:
            reason = "one center: add slides from a second center with the same labels"
        yield Support(f"{name} ({scope})", reason)


def _probe(name: str, folds: int, slides: pl.DataFrame) -> Support:
    from pathfm_kedro.statistics.figures import Undefined
    from pathfm_kedro.statistics.probe_splits import probed_labels

    try:
        probed_labels(slides.select("label", "patient_id"), folds, f"{name}.probe.folds")
    except Undefined as problem:
        return Support(f"{name} (probe)", str(problem))
    return Support(f"{name} (probe)", "")


def support_lines(parameters: Mapping[str, Any], slides: pl.DataFrame) -> list[str]:
    """What the design supports, for a reader: what can be measured, then what cannot, and why.

    Parameters
    ----------
    parameters, slides
        As of :func:`supported_checks`.
    """
    from pathfm_kedro.statistics.measurements import MIN_PATIENTS

    without_slides = parameters["cohort"]["source"] == "features"
    found = supported_checks(_of_the_cohort(parameters), slides)
    reasons: dict[str, list[str]] = {}
    for support in found:
        # The parameter to lower is one experiment's; the rest of the reason is shared.
        reasons.setdefault(support.reason.partition(" or lower ")[0], []).append(support.name)
    lines = []
    if "" in reasons:
        lines.append(f"  can be measured: {', '.join(reasons.pop(''))}")
    lines += [f"  cannot: {', '.join(names)}: {reason}" for reason, names in reasons.items()]
    if without_slides:
        lines.append(f"  cannot: {', '.join(ON_PIXELS)}: they need pixels, and there are no slides")
    patients = slides["patient_id"].n_unique()
    if patients < MIN_PATIENTS:
        lines.append(
            f"  undecidable: every check, since {patients} patients are fewer than {MIN_PATIENTS}"
        )
    lines += [f"  {line}" for line in too_small_checks(parameters, patients)]
    return [*lines, "  every other experiment asks for patients alone"]


def _of_the_cohort(blocks: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the experiments on pixels where a cohort has features and no slides."""
    if blocks.get("cohort", {}).get("source") != "features":
        return blocks
    return {name: block for name, block in blocks.items() if name not in ON_PIXELS}


def too_small_checks(blocks: Mapping[str, Any], n_patients: int) -> list[str]:
    """Checks that cannot pass with so many patients, one line each.

    Parameters
    ----------
    blocks
        Parameters by experiment; of their ``criteria`` those with ``min_patients`` are asked, and
        ``max_tiles`` places belong to so many patients at most. ``cohort`` says whether there are
        slides.
    n_patients
        Of the cohort.

    Examples
    --------
    >>> criteria = [{"metric": "macro_f1_gain", "below": 0.05, "min_patients": 72}]
    >>> blocks = {"field_of_view": {"max_tiles": 48, "criteria": criteria}}
    >>> too_small_checks(blocks, 200)
    ['field_of_view: macro_f1_gain cannot pass at this size: it needs 72 patients, 48 take part']
    >>> too_small_checks(blocks | {"cohort": {"source": "features"}}, 200)
    []
    """
    lines = []
    for name, block in _of_the_cohort(blocks).items():
        criteria = block.get("criteria") if isinstance(block, Mapping) else None
        for criterion in criteria or ():
            needed = int(criterion.get("min_patients", 0))
            there = min(n_patients, int(block.get("max_tiles") or n_patients))
            if there < needed:
                lines.append(
                    f"{name}: {criterion['metric']} cannot pass at this size: it needs {needed} "
                    f"patients, {there} take part"
                )
    # A figure may be asked at several settings.
    return list(dict.fromkeys(lines))


def patients_by_cell(design: pl.DataFrame) -> list[str]:
    """Patients of each label at each center as aligned lines; of a large design the extremes alone.

    Parameters
    ----------
    design
        label, center, n_patients of every cell, zeros included.
    """
    import polars as pl

    cells = (
        design.group_by("label", "center").agg(pl.col("n_patients").sum()).sort("label", "center")
    )
    labels = cells["label"].unique(maintain_order=True).to_list()
    centers = cells["center"].unique().sort().to_list()
    if len(labels) > _MOST_LABELS or len(centers) > _MOST_CENTERS:
        filled = [int(n) for n in cells["n_patients"] if n]
        return [
            f"  {len(filled)} of {len(cells)} cells of label and center have patients, "
            f"{min(filled)} to {max(filled)} (median {median(filled):g})"
        ]
    counts = {(a, b): n for a, b, n in cells.iter_rows()}
    rows = [["", *centers]]
    rows += [[name, *(str(counts[name, at]) for at in centers)] for name in labels]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join([row[0].ljust(widths[0]), *(map(str.rjust, row[1:], widths[1:]))]).rstrip()
        for row in rows
    ]
