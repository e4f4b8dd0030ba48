"""``kedro features export``: an encoder's vectors in the layouts of other tools."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.cohorts import DEFAULT_COHORT, read_cohort_plan, tiles_of_cohort
from pathfm_kedro.project import project_root

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.datasets.sharded_tensors import ShardedTensors
    from pathfm_kedro.encoders.features import SlideFeatures

#: Written out, so that `kedro --help` needs no arrays; a test holds them against the writer's.
_FORMATS = ("trident", "anndata", "stamp")
#: Slides named on the screen.
_NAMED = 5


@click.group(name="features")
def features() -> None:
    """Features of encoders as files."""


@features.command("export")
@click.argument("encoder")
@click.option("--format", "layout", type=click.Choice(_FORMATS), required=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The folder to write into, one file for each slide; it is made if it is not there.",
)
@click.option("--env", "-e", help=f"The cohort; {DEFAULT_COHORT} if not given.")
@click.option("--version", help="Version of the vectors; the newest if not given.")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def export(
    encoder: str, layout: str, out: Path, env: str | None, version: str | None, force: bool
) -> None:
    """Write the vectors of ENCODER in the layout of another tool, one file for each slide."""
    from pathfm_kedro.datasets.paths import atomic_path
    from pathfm_kedro.encoders.features import FeatureFileError, write_features
    from pathfm_kedro.engine import Note
    from pathfm_kedro.engine.progress import progress

    try:
        embedded = _load(encoder, env, version)
    except (FeatureFileError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    targets = {slide: out / _file_name(slide, layout) for slide in embedded.vectors.slide_ids}
    there = [path for path in targets.values() if path.exists()]
    if there and not force:
        raise click.ClickException(
            f"{len(there)} of {len(targets)} files exist in {out}, {there[0].name} first: give "
            "another --out, or --force to replace them"
        )
    written: list[tuple[int, int, int]] = []
    with progress(f"writing {encoder} for {layout}", len(targets)) as tell:
        for slide, brought in embedded.slides(encoder):
            try:
                with atomic_path(targets[slide["slide_id"]]) as temporary:
                    size = {"width": slide["width"], "height": slide["height"]}
                    write_features(temporary, layout, brought, **size)
            except (FeatureFileError, OSError) as error:
                raise click.ClickException(f"{error}; {len(written)} files are whole") from error
            written.append((len(brought), brought.dimension, brought.vectors.nbytes))
            tell(Note(tiles=len(brought)))
    click.echo(_summary(embedded.vectors, written, layout, out))


@dataclass(frozen=True)
class _Embedded:
    """Vectors of one encoder with the slides and tiles that they stand for.

    ``files`` holds what files of features say of a slide; empty where we made the vectors.
    """

    vectors: ShardedTensors
    slides_table: pl.DataFrame
    tiles: pl.DataFrame
    files: dict[str, dict[str, Any]]

    def slides(self, encoder: str) -> Iterator[tuple[dict[str, Any], SlideFeatures]]:
        """Each slide's row and features, read when asked for."""
        rows = {row["slide_id"]: row for row in self.slides_table.to_dicts()}
        tiles = self.tiles.partition_by("slide_id", as_dict=True, maintain_order=True)
        for slide_id in self.vectors.slide_ids:
            slide = rows[slide_id]
            made = self._features(slide_id, tiles[(slide_id,)], encoder)
            yield slide, made.on_slide(slide["mpp"]) if slide["mpp"] else made

    def _features(self, slide_id: str, tiles: pl.DataFrame, encoder: str) -> SlideFeatures:
        from pathfm_kedro.encoders.features import SlideFeatures

        vectors, file = self.vectors.load_slide(slide_id), self.files.get(slide_id, {})
        known: dict[str, Any] = {"encoder": encoder, "dtype": str(vectors.dtype)}
        if file.get("level") == "slide":
            return SlideFeatures(slide_id, vectors, "slide", "pathfm", **known)
        return SlideFeatures(
            slide_id,
            vectors,
            "tile",
            "pathfm",
            x=tiles["x"].to_numpy(),
            y=tiles["y"].to_numpy(),
            field_px=file.get("field_px"),
            field_um=tiles["field_um"][0],
            mpp=tiles["mpp"][0],
            **known,
        )


def _load(encoder: str, env: str | None, version: str | None) -> _Embedded:
    """Vectors and tables of a cohort, held against each other.

    Raises
    ------
    ValueError
        If the cohort has no such encoder, or its vectors are missing or of other tiles.
    """
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project
    from kedro.io.core import DatasetError

    from pathfm_kedro.statistics.tables import refuse_other_tiles

    root, cohort = project_root(), env or DEFAULT_COHORT
    plan = read_cohort_plan(cohort, str(root / "conf"))
    known = plan.encoders
    if encoder not in known:
        raise ValueError(f"cohort '{cohort}' has no encoder '{encoder}'; it has {', '.join(known)}")
    own = tiles_of_cohort(plan).grids.get(encoder)
    of_tiles = f"tiles.{own}" if own else "tiles"
    from_files = str(known[encoder].get("model", "")).startswith("features:")
    bootstrap_project(root)
    session: Any
    with KedroSession.create(project_path=root, env=cohort) as session:
        catalog = session.load_context().catalog
        name = f"embeddings.{encoder}"
        make = f"make them by kedro run --env {cohort} --pipelines ingest,tile,embed"
        if version is None and not catalog[name].exists():
            raise ValueError(f"cohort '{cohort}' has no vectors of '{encoder}' yet: {make}")
        try:
            vectors = catalog.load(name, version=version)
            slides, tiles = (_table(catalog, key, version) for key in ("slides", of_tiles))
            of_files = of_tiles.replace("tiles", "tiling", 1)
            files = _table(catalog, of_files, version).to_dicts() if from_files else []
        except DatasetError as error:
            which = f"version {version} of " if version else ""
            raise ValueError(
                f"{which}the vectors of '{encoder}' in cohort '{cohort}', or their slides and "
                f"tiles, cannot be loaded ({_first_line(error)}): {make}"
            ) from error
    refuse_other_tiles(
        tiles,
        vectors,
        f"embeddings.{encoder}",
        f"run kedro run --env {cohort} --pipelines embed, or give the --version that is theirs",
    )
    return _Embedded(vectors, slides, tiles, {row["slide_id"]: row for row in files})


def _table(catalog: Any, name: str, version: str | None) -> pl.DataFrame:
    """A table in the version of the vectors, or the newest where a run made vectors alone."""
    from kedro.io.core import DatasetError

    table: pl.DataFrame
    try:
        table = catalog.load(name, version=version)
    except DatasetError:
        if version is None:
            raise
        table = catalog.load(name)
    return table


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _file_name(slide_id: str, layout: str) -> str:
    """Named after the slide, and safe whatever that is called."""
    from pathfm_kedro.datasets.shard_files import shard_name
    from pathfm_kedro.encoders.features import suffix_of

    return f"{shard_name(slide_id).removesuffix('.safetensors')}{suffix_of(layout)}"


def _summary(
    vectors: ShardedTensors, written: list[tuple[int, int, int]], layout: str, out: Path
) -> str:
    from pathfm_kedro.encoders.features.cohort import plain_reason

    tiles, size = sum(n for n, _, _ in written), sum(nbytes for _, _, nbytes in written)
    dimension = written[0][1] if written else 0
    lines = [
        f"{len(written)} slides, {tiles:,} tiles with {dimension} numbers each ({size / 1e6:,.1f} "
        f"MB) written to {out} in the layout of {layout}"
    ]
    failed = vectors.failures
    lines += [
        f"  left out, {slide}: {plain_reason(why)}" for slide, why in list(failed.items())[:_NAMED]
    ]
    if len(failed) > _NAMED:
        lines.append(f"  … and {len(failed) - _NAMED} more that embedding failed on")
    return "\n".join(lines)
