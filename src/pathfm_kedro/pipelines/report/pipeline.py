"""report: every measurement held against its threshold and its controls, on one page."""

from collections.abc import Sequence

from kedro.pipeline import Pipeline

from pathfm_kedro.pipelines.report.findings import (
    check_controls,
    collect_findings,
    verdict_by_encoder,
)
from pathfm_kedro.pipelines.report.outputs import (
    draw_overview,
    findings_for_spreadsheets,
    robustness_curves,
    rotation_curves,
)
from pathfm_kedro.pipelines.report.page import render_report
from pathfm_kedro.pipelines.report.provenance import combine_measurements, describe_provenance
from pathfm_kedro.pipelines.report.summary import findings_metrics, render_summary
from pathfm_kedro.wiring import grouped, node


def create_pipeline(encoders: Sequence[str], measured: Sequence[str]) -> Pipeline:
    """Wire the pipeline; `measured` are the measurement datasets of all experiments."""
    return grouped(
        "report",
        [
            node(combine_measurements, list(measured), "measurements", name="combine_measurements"),
            node(
                describe_provenance,
                [
                    "parameters",
                    "package_versions",
                    "params:cohort.name",
                    *(f"encoder_card.{name}" for name in encoders),
                ],
                "provenance",
                name="describe_provenance",
            ),
            node(
                check_controls,
                ["measurements", "provenance", "params:report", "design"],
                "controls",
                name="check_controls",
            ),
            node(
                collect_findings,
                ["measurements", "provenance", "params:report", "design"],
                "findings",
                name="collect_findings",
            ),
            node(
                verdict_by_encoder, ["findings", "controls"], "verdicts", name="verdict_by_encoder"
            ),
            node(
                draw_overview,
                ["measurements", "findings", "design", "provenance"],
                ["findings_plot", "robustness_plot", "rotation_plot", "design_plot"],
                name="draw_overview",
            ),
            node(
                render_report,
                [
                    "findings",
                    "controls",
                    "verdicts",
                    "measurements",
                    "slides",
                    "design",
                    "design_summary",
                    "tiles",
                    "provenance",
                    "params:report",
                ],
                "report",
                name="render_report",
            ),
            node(
                render_summary,
                ["findings", "controls", "verdicts", "provenance"],
                "summary",
                name="render_summary",
            ),
            node(findings_metrics, ["findings", "verdicts"], "findings_metrics", name="metrics"),
            node(
                findings_for_spreadsheets,
                "findings",
                "findings_csv",
                name="findings_for_spreadsheets",
            ),
            node(robustness_curves, "measurements", "robustness_curves", name="robustness_curves"),
            node(rotation_curves, "measurements", "rotation_curves", name="rotation_curves"),
        ],
    )
