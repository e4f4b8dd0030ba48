"""ingest: from a manifest and files to a table of slides and what the cohort can show."""

from kedro.pipeline import Pipeline

from pathfm_kedro.pipelines.ingest.description import describe_slides
from pathfm_kedro.pipelines.ingest.design import summarise_design
from pathfm_kedro.pipelines.ingest.drawing import draw_phantom
from pathfm_kedro.pipelines.ingest.manifest import check_manifest
from pathfm_kedro.wiring import grouped, node


def create_pipeline(source: str) -> Pipeline:
    """Wire the pipeline; `source` is ``phantom`` where the project draws the slides itself."""
    drawing = [
        node(
            draw_phantom,
            ["params:phantom", "params:engine"],
            ["slide_files", "manifest"],
            name="draw_phantom",
            tags="draw",
        )
    ]
    reading = [
        node(check_manifest, "manifest", "listed_slides", name="check_manifest", tags="describe"),
        node(
            describe_slides,
            ["listed_slides", "slide_files", "params:ingest", "params:engine"],
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
