"""ingest: from a manifest and files to a table of slides and what the cohort can show."""

from kedro.pipeline import Pipeline

from pathfm_kedro.pipelines.ingest.description import describe_slides, list_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_features_manifest, check_manifest
from pathfm_kedro.wiring import grouped, node


def create_pipeline(source: str) -> Pipeline:
    """Wire the pipeline.

    `source` is ``phantom`` where the project draws the slides itself, ``features`` where there are
    features and no slides.
    """
    drawing = [
        node(
            draw_phantom,
            ["params:phantom", "params:engine"],
            ["slide_files", "manifest"],
            name="draw_phantom",
            tags="draw",
        )
    ]
    without_files = source == "features"
    check = check_features_manifest if without_files else check_manifest
    inputs = ["listed_slides", "slide_files", "params:ingest", "params:engine"]
    reading = [
        node(
            check,
            ["manifest", "params:cohort.subgroups"],
            "listed_slides",
            name="check_manifest",
            tags="describe",
        ),
        node(
            list_slides if without_files else describe_slides,
            inputs[:1] if without_files else inputs,
            "slides",
            name="describe_slides",
            tags="describe",
        ),
        node(
            summarise_design,
            ["slides", "params:ingest"],
            ["design", "design_summary"],
            name="summarise_design",
            tags="describe",
        ),
    ]
    return grouped("ingest", (drawing if source == "phantom" else []) + reading)
