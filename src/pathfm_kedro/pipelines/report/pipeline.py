"""report: every measurement judged by its criterion and its controls, on one page."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from pathfm_kedro.pipelines.report.controls import check_controls
from pathfm_kedro.pipelines.report.cost import Cost, cost_figures, cost_statistics
from pathfm_kedro.pipelines.report.examples import draw_examples, no_examples
from pathfm_kedro.pipelines.report.findings import collect_findings
from pathfm_kedro.pipelines.report.model_card import render_model_cards
from pathfm_kedro.pipelines.report.outputs import findings_for_programs, findings_for_spreadsheets
from pathfm_kedro.pipelines.report.page import render_report
from pathfm_kedro.pipelines.report.plots import (
    plot_design,
    plot_experiment,
    plot_findings,
    plotted_curves,
)
from pathfm_kedro.pipelines.report.provenance import describe_provenance
from pathfm_kedro.pipelines.report.summary import findings_metrics, render_summary
from pathfm_kedro.pipelines.report.triplets import Triplets, measure_triplets
from pathfm_kedro.pipelines.report.verdicts import verdict_by_encoder
from pathfm_kedro.pipelines.report.words import gather_words
from pathfm_kedro.statistics.measurements import combine_measurements
from pathfm_kedro.wiring import (
    Experiment,
    collected,
    encoder_nodes,
    grouped,
    named_partial,
    node,
    with_parameters,
)

#: The experiment that is measured here, since it holds figures of other pipelines against each other.
COST = "cost"
#: Answers of a person, which no pipeline can measure.
_TRIPLETS = "triplets"
_TABLES = [
    "robustness_measurements",
    "retrieve_measurements",
    "inheritance_measurements",
    f"measurements.report.{COST}",
    f"measurements.report.{_TRIPLETS}",
]


def create_pipeline(
    experiments: Sequence[str], encoders: Sequence[str], *, without_slides: bool = False
) -> Pipeline:
    """Wire the pipeline for the cohort's encoders.

    Parameters
    ----------
    experiments
        Those of other pipelines whose plot is a dataset of its own.
    encoders
        All encoders of the cohort.
    without_slides
        Whether the cohort has no pixels.
    """
    experiments = [*experiments, COST]
    judged = ["measurements", "controls", "provenance", "params:report", "words"]
    page = [
        "findings",
        "controls",
        "verdicts",
        "measurements",
        "slides",
        "design",
        "design_summary",
        "tiles",
        "tiling",
        "provenance",
        "params:report",
        "words",
        "examples",
        "findings_plot",
        "design_plot",
    ]
    return grouped(
        "report",
        [
            _cost(encoders),
            _triplets(encoders),
            node(combine_measurements, _TABLES, "measurements", name="combine_measurements"),
            node(gather_words, "parameters", "words", name="gather_words"),
            node(
                describe_provenance,
                ["parameters", "package_versions", "params:cohort.name", "encoder_cards"],
                "provenance",
                name="describe_provenance",
            ),
            node(
                check_controls,
                ["measurements", "provenance", "params:report", "words"],
                "controls",
                name="check_controls",
            ),
            node(collect_findings, judged, "findings", name="collect_findings"),
            node(
                verdict_by_encoder,
                ["findings", "controls", "words", "provenance"],
                "verdicts",
                name="verdict_by_encoder",
            ),
            grouped("plots", _plots(experiments)),
            _without_examples() if without_slides else _examples(),
            node(
                named_partial(render_report, experiments=tuple(experiments)),
                [*page, *(f"{experiment}_plot" for experiment in experiments)],
                "report",
                name="render_report",
            ),
            node(
                render_summary,
                ["findings", "controls", "verdicts", "provenance", "words"],
                "summary",
                name="render_summary",
            ),
            node(
                render_model_cards,
                ["findings", "verdicts", "provenance", "words"],
                "model_cards",
                name="render_model_cards",
            ),
            node(findings_metrics, ["findings", "verdicts"], "findings_metrics", name="metrics"),
            node(
                findings_for_spreadsheets,
                "findings",
                "findings_csv",
                name="findings_for_spreadsheets",
            ),
            node(
                findings_for_programs,
                "findings",
                "findings_rows",
                name="findings_for_programs",
            ),
            node(
                plotted_curves, ["measurements", "words"], "plotted_curves", name="plotted_curves"
            ),
        ],
    )


def _cost(encoders: Sequence[str]) -> Pipeline:
    """What each encoder costs, beside what it is worth."""
    inputs = ["encoder_costs", "encoder_cards", "slides", "tiles"]
    inputs += ["retrieve_measurements", "robustness_measurements"]
    parts = []
    for e in encoders:
        of_encoder = named_partial(cost_statistics, name=e)
        x = Experiment(COST, Cost, of_encoder, cost_figures, inputs)
        parts.append(grouped(e, encoder_nodes("report", x, e)))
    tables = [f"measurements.report.{COST}.{e}" for e in encoders]
    return grouped(COST, [*parts, collected(tables, f"measurements.report.{COST}", tags=[COST])])


def _triplets(encoders: Sequence[str]) -> Pipeline:
    """What a pathologist answered, if one was asked."""
    measured = node(
        named_partial(
            with_parameters(Triplets, _TRIPLETS, measure_triplets), encoders=tuple(encoders)
        ),
        f"params:{_TRIPLETS}",
        f"measurements.report.{_TRIPLETS}",
        name="measurements",
        tags=[_TRIPLETS],
    )
    return grouped(_TRIPLETS, [measured])


def _examples() -> Node:
    """Tiles that show how checks fail."""
    return node(
        draw_examples,
        [
            "robustness_examples",
            "findings",
            "slides",
            "slide_files",
            "params:report",
            "params:tile",
        ],
        "examples",
        name="draw_examples",
    )


def _without_examples() -> Node:
    return node(no_examples, "params:report", "examples", name="draw_examples")


def _plots(experiments: Sequence[str]) -> list[Node]:
    """A node for the plot of each experiment, of the findings and of the design."""
    own = [
        node(
            named_partial(plot_experiment, experiment=experiment),
            ["measurements", "provenance", "words"],
            f"{experiment}_plot",
            name=f"plot_{experiment}",
            tags=experiment,
        )
        for experiment in experiments
    ]
    return [
        *own,
        node(
            plot_findings,
            ["findings", "provenance", "words"],
            "findings_plot",
            name="plot_findings",
        ),
        node(plot_design, "design", "design_plot", name="plot_design"),
    ]
