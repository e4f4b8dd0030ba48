"""A made-up audit: two encoders with known strengths and the three controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from pathfm_kedro.pipelines.report.controls import check_controls
from pathfm_kedro.pipelines.report.findings import collect_findings
from pathfm_kedro.pipelines.report.plots import plot_design, plot_findings
from pathfm_kedro.pipelines.report.verdicts import verdict_by_encoder
from pathfm_kedro.pipelines.report.words import gather_words
from pathfm_kedro.statistics.measurements import (
    Estimate,
    Null,
    measurement,
    measurement_table,
    not_applicable,
)
from tests.conftest import base_parameters

#: Robustness index, m-kNN at 90°, macro-F1, label and center accuracy of each encoder.
TRUTH = {
    "alpha": (0.86, 0.90, 0.72, 0.85, 0.55),
    "beta": (0.20, 0.62, 0.45, 0.60, 0.95),
    "phantom_truth": (0.97, 0.99, 0.97, 0.98, 0.33),
    "noise": (0.40, 0.05, 0.17, 0.17, 0.34),
    "stain_statistics": (0.15, 0.97, 0.30, 0.35, 0.99),
}
PARAMETERS = {"alpha": 0.05, "chance_margin": 0.2}


def project_words() -> dict[str, Any]:
    """The words that come with the project."""
    return gather_words({k: v for k, v in base_parameters().items() if k.startswith("words_")})


WORDS = project_words()


def judged(
    measurements: pl.DataFrame,
    provenance: dict[str, Any],
    parameters: dict[str, Any] | None = None,
    words: dict[str, Any] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Findings, controls and verdicts of measurements."""
    told, parameters = words or WORDS, parameters or {}
    controls = check_controls(measurements, provenance, parameters, told)
    findings = collect_findings(measurements, controls, provenance, parameters, told)
    return findings, controls, verdict_by_encoder(findings, controls, told)


def around(value: float, half: float = 0.04) -> Estimate:
    return Estimate(value, value - half, value + half, 480, 24)


def robustness_rows(encoder: str) -> Iterator[dict[str, Any]]:
    ri, _, _, label, center = TRUTH[encoder]
    common: dict[str, Any] = {"experiment": "robustness_index", "encoder": encoder}
    setting = {"design": "all", "k": 11, "role": "cohort_k"}
    null = Null(0.375, 0.375)
    yield measurement(metric="ri", estimate=around(ri, 0.05), setting=setting, null=null, **common)
    yield measurement(metric="ri_ratio", estimate=around(ri + 0.3), setting=setting, **common)
    yield measurement(
        metric="ri_minus_null",
        estimate=around(ri - 0.375, 0.05),
        setting=setting,
        threshold=0.0,
        direction="above",
        **common,
    )
    # Below 1/6 and 1/3, with width: a query's patient never votes.
    for metric, accuracy, vote in (
        ("knn_accuracy_label", label, Null(0.08, 0.14)),
        ("knn_accuracy_center", center, Null(0.22, 0.32)),
    ):
        yield measurement(
            metric=metric, estimate=around(accuracy), setting=setting, null=vote, **common
        )
    for k in (1, 3, 5, 7, 9, 21, 31):
        yield measurement(
            metric="ri",
            estimate=around(0.375 + (ri - 0.375) / (1 + k / 60)),
            setting={"design": "all", "k": k},
            null=null,
            **common,
        )


def rotation_rows(encoder: str) -> Iterator[dict[str, Any]]:
    kept = TRUTH[encoder][1]
    common: dict[str, Any] = {"experiment": "rotation", "encoder": encoder}
    for angle in range(15, 360, 15):
        lossless = angle % 90 == 0
        for view, loss in (("rotated", 0.1), ("round_trip", 0.02)):
            value = kept if view == "rotated" else 1.0
            signature = lossless and angle == 90 and view == "rotated"
            yield measurement(
                metric="mknn",
                estimate=around(max(0.05, value - (0 if lossless else loss)), 0.03),
                setting={"angle": angle, "k": 10, "distance": "cosine", "view": view},
                null=Null(0.02, 0.02),
                threshold=0.8 if signature else None,
                direction="above" if signature else None,
                **common,
            )
    setting = {"k": 10, "distance": "cosine"}
    mean_setting = {**setting, "view": "rotated"}
    yield measurement(metric="mknn_mean", estimate=around(kept), setting=mean_setting, **common)
    yield measurement(
        metric="mknn_variance",
        estimate=around(0.004, 0.002),
        setting=setting,
        threshold=0.1,
        direction="below",
        **common,
    )
    excess = {**setting, "control": "round_trip"}
    yield measurement(metric="mknn_excess_drop", estimate=around(0.1), setting=excess, **common)


def retrieval_rows(encoder: str) -> Iterator[dict[str, Any]]:
    macro = TRUTH[encoder][2]
    common: dict[str, Any] = {"experiment": "retrieval", "encoder": encoder}
    for family, gain in (("mean", 0.0), ("median_min", 0.02), ("maxsim", 0.015)):
        for vote in ("mv3", "mv5"):
            setting = {"family": family, "scope": "within_organ", "vote": vote}
            for stratum, shift in (("all", 0.0), ("organ=kidney", 0.02), ("organ=lung", -0.02)):
                yield measurement(
                    metric="macro_f1",
                    estimate=around(macro + gain + shift, 0.06),
                    stratum=stratum,
                    setting=setting,
                    null=Null(0.12, 0.20),
                    **common,
                )
            yield from not_applicable(
                experiment="retrieval",
                encoder=encoder,
                metrics=["f1"],
                stratum="label=rare",
                setting=setting,
                reason="label rare has one patient; add slides of a second one",
            )
    yield measurement(
        metric="f1_range_over_organs",
        estimate=around(0.05) if encoder == "phantom_truth" else around(0.28, 0.13),
        setting={"family": "median_min", "scope": "within_organ", "vote": "mv5"},
        threshold=0.3,
        direction="below",
        **common,
    )


def other_rows(encoder: str) -> Iterator[dict[str, Any]]:
    label, center = TRUTH[encoder][3:]
    for target, value, null in (("label", label, 1 / 6), ("center", center, 1 / 3)):
        yield measurement(
            experiment="linear_probe",
            encoder=encoder,
            metric="balanced_accuracy",
            estimate=around(value),
            setting={"target": target},
            null=Null(null, null),
        )
    for metric, value in (("skewness", 3.2), ("kurtosis_excess", 57.0), ("mean_cosine", 0.41)):
        yield measurement(
            experiment="geometry",
            encoder=encoder,
            metric=metric,
            estimate=around(value + len(encoder) / 10, 0.2),
            null=Null(0.0, 0.1),
        )
    yield measurement(
        experiment="colour_swap",
        encoder=encoder,
        metric="keeps_its_shape",
        estimate=around(label),
        setting={"donor": "center B"},
    )


def audit_rows(encoders: list[str]) -> Iterator[dict[str, Any]]:
    for encoder in encoders:
        yield from robustness_rows(encoder)
        yield from rotation_rows(encoder)
        yield from retrieval_rows(encoder)
        yield from other_rows(encoder)


@pytest.fixture(scope="session")
def measurements() -> pl.DataFrame:
    return measurement_table(audit_rows(list(TRUTH)))


@pytest.fixture(scope="session")
def design() -> pl.DataFrame:
    labels = ["gland", "solid", "stroma", "necrosis", "papillary", "mucinous"]
    centers = ["north", "south", "west"]
    return pl.DataFrame(
        [
            {"label": label, "center": center, "n_patients": 2 + (i + j) % 2, "n_slides": 4}
            for i, label in enumerate(labels)
            for j, center in enumerate(centers)
        ]
    )


@pytest.fixture(scope="session")
def slides(design: pl.DataFrame) -> pl.DataFrame:
    rows = [
        {
            "slide_id": f"s{i:03d}",
            "path": f"/data/site/{i}.tiff",
            "patient_id": f"p{i // 3:02d}",
            "center": row["center"],
            "organ": ("kidney", "lung")[i % 2],
            "label": row["label"],
            "scanner": "one",
            "vendor": "generic-tiff",
            "width": 4096,
            "height": 4096,
            "levels": 3,
            "mpp": 0.5,
            "fingerprint": f"{i:064x}",
            "status": "unusable" if i % 9 == 4 else "usable",
            "reason": "cannot open '/data/site/x.tiff': truncated" if i % 9 == 4 else "",
        }
        for i, row in enumerate(design.iter_rows(named=True))
    ]
    return pl.DataFrame(rows)


@pytest.fixture(scope="session")
def tiles(slides: pl.DataFrame) -> pl.DataFrame:
    usable = slides.filter(status="usable")["slide_id"].to_list()
    names = [(slide, f"{slide}-{i}") for slide in usable for i in range(20)]
    return pl.DataFrame(names, schema=["slide_id", "tile_id"], orient="row")


@pytest.fixture(scope="session")
def tiling(slides: pl.DataFrame) -> pl.DataFrame:
    """Every usable slide was cut; the last gave no tile."""
    cut = slides.filter(status="usable").select("slide_id")
    last = pl.int_range(pl.len()) == pl.len() - 1
    return cut.with_columns(
        status=pl.when(last).then(pl.lit("unusable")).otherwise(pl.lit("tiled")),
        reason=pl.when(last).then(pl.lit("no tissue was found")).otherwise(pl.lit("")),
    )


@pytest.fixture(scope="session")
def provenance() -> dict[str, Any]:
    controls = {"phantom_truth", "noise", "stain_statistics"}
    return {
        "cohort": "phantom",
        "is_phantom": True,
        "site_bias": 0.6,
        "encoders": {
            name: {
                "model": f"hub/{name}",
                "role": "control" if name in controls else "encoder",
                "fingerprint": "0123456789abcdef" * 4,
                "preprocessing": {"size": 224, "mean": [0.5, 0.5, 0.5]},
                "dimension": 384,
                "n_slides": 16,
                "n_failed": 1 if name == "beta" else 0,
            }
            for name in TRUTH
        },
        "versions": {"torch": "2.14.0", "polars": "2.1.0"},
        "parameters": {"tile": {"field_um": 112}, "cache": "/data/site/cache"},
    }


@pytest.fixture(scope="session")
def report_inputs(
    measurements: pl.DataFrame,
    design: pl.DataFrame,
    slides: pl.DataFrame,
    tiles: pl.DataFrame,
    tiling: pl.DataFrame,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Arguments of ``render_report``."""
    findings, controls, verdicts = judged(measurements, provenance, PARAMETERS)
    return {
        "findings": findings,
        "controls": controls,
        "verdicts": verdicts,
        "measurements": measurements,
        "slides": slides,
        "design": design,
        "design_summary": {
            "cramers_v": 0.42,
            "warnings": ["papillary comes from north alone; add a second center"],
        },
        "tiles": tiles,
        "tiling": tiling,
        "provenance": provenance,
        "parameters": PARAMETERS,
        "words": WORDS,
        "examples": [],
        "findings_plot": plot_findings(findings, provenance, WORDS),
        "design_plot": plot_design(design),
    }
