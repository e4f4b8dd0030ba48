"""``kedro search``: the nearest slides of a slide of the cohort, or of an image from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.commands.search_page import Picture, ShownSlide
    from pathfm_kedro.pipelines.retrieve.nearest import FoundSlide
    from pathfm_kedro.pipelines.retrieve.search import Retrieval
    from pathfm_kedro.slides.files import SlideFiles
    from pathfm_kedro.statistics.mosaic import Mosaic

#: Longest side of a slide's thumbnail, in px.
_THUMBNAIL = 240
#: Name of an image from outside in the tables made of it.
_OUTSIDE = "query"


@click.command()
@click.argument("query")
@click.option("--env", "-e", default=None, help="The cohort that is searched; phantom by default.")
@click.option("--encoder", help="Whose vectors are compared; the cohort's first one by default.")
@click.option("--family", default="median_min", show_default=True, help="How slides are compared.")
@click.option(
    "--scope",
    default="across_organs",
    show_default=True,
    help="across_organs, within_organ or within_organ_other_centers.",
)
@click.option(
    "--top", type=click.IntRange(1), default=10, show_default=True, help="Slides to find."
)
@click.option("--mpp", type=float, help="Micrometres per pixel of an image that does not say it.")
@click.option(
    "--html",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write a page with thumbnails and the tiles that match side by side.",
)
def search(
    query: str,
    env: str | None,
    encoder: str | None,
    family: str,
    scope: str,
    top: int,
    mpp: float | None,
    html: Path | None,
) -> None:
    """Find the slides most like QUERY: a slide_id of the cohort, or an image file.

    The query's own patient is held out. An image from outside is cut into tiles and embedded first.
    """
    if html is not None and html.exists():
        raise click.ClickException(f"{html} exists: give another --html or remove it first")
    if html is not None and not html.parent.is_dir():
        raise click.ClickException(f"{html.parent} does not exist: make the folder first")
    from pathfm_kedro.statistics.figures import Undefined

    try:
        cohort = EmbeddedCohort.open(env, encoder)
        asked = cohort.ask(query, mpp)
        found = cohort.search(asked, family, scope, top)
    except (Undefined, ValueError, RuntimeError) as error:
        raise click.ClickException(str(error)) from error
    title = f"Slides most like {asked.name}"
    about = [
        ("cohort", cohort.name),
        ("encoder", cohort.encoder),
        ("compared by", family),
        ("searched", scope.replace("_", " ")),
        ("held out", asked.held_out_text),
    ]
    click.echo(f"{title}\n" + "\n".join(f"  {name}: {value}" for name, value in about))
    _echo_table(found, cohort.archive.slides)
    if html is not None:
        from pathfm_kedro.commands.search_page import render_page

        page = render_page(title, about, cohort.shown_query(asked), cohort.shown(asked, found))
        html.write_text(page, encoding="utf-8")
        click.echo(f"{html} written")


@dataclass(frozen=True)
class _Asked:
    """What is searched for.

    Attributes
    ----------
    name
        slide_id, or the image's file name.
    mosaic
        Its vectors.
    slides, tiles
        Tables with its slide and its mosaic's tiles.
    files
        Where its pixels are.
    patients
        Held out: its own.
    """

    name: str
    mosaic: Mosaic
    slides: pl.DataFrame
    tiles: pl.DataFrame
    files: SlideFiles
    patients: tuple[str, ...]

    @property
    def held_out_text(self) -> str:
        """Whose slides are not found, without a name."""
        return "the query's own patient" if self.patients else "nobody: it is none of the cohort's"


@dataclass(frozen=True)
class EmbeddedCohort:
    """A cohort whose slides were embedded.

    Attributes
    ----------
    name, encoder
        Of the cohort, and of the encoder.
    slides, tiles
        Its tables.
    files
        Its folder.
    archive
        Mosaics of its slides.
    parameters
        All parameters.
    runtime
        What runs the encoder.
    """

    name: str
    encoder: str
    slides: pl.DataFrame
    tiles: pl.DataFrame
    files: SlideFiles
    archive: Mosaic
    parameters: Mapping[str, Any]
    runtime: Mapping[str, Any] | None

    @classmethod
    def open(cls, env: str | None, encoder: str | None) -> EmbeddedCohort:
        """Read the tables and vectors that the pipelines made."""
        from kedro.io.core import DatasetError

        from pathfm_kedro.cohorts import DEFAULT_COHORT, read_cohort_plan
        from pathfm_kedro.context import CohortSession
        from pathfm_kedro.project import project_root
        from pathfm_kedro.statistics.mosaic import read_mosaic_with_tokens

        name, root = env or DEFAULT_COHORT, project_root()
        plan = read_cohort_plan(name, str(root / "conf"))
        chosen = encoder or _first_encoder(plan.encoders)
        if chosen not in plan.encoders:
            raise click.ClickException(
                f"cohort {name} has no encoder '{chosen}': give --encoder one of "
                f"{', '.join(plan.encoders)}"
            )
        with CohortSession.create(project_path=root, env=name) as session:
            catalog = session.load_context().catalog  # type: ignore[attr-defined]
            try:
                slides, tiles = catalog.load("slides"), catalog.load("tiles")
                embeddings = catalog.load(f"embeddings.{chosen}")
                archive = read_mosaic_with_tokens(slides, tiles, embeddings)
            except DatasetError as error:
                raise click.ClickException(
                    f"cohort {name} has no vectors of {chosen} yet: run first kedro run --env {name} "
                    "--pipelines ingest,tile,embed"
                ) from error
            runtime = None
            with suppress(DatasetError):
                runtime = catalog.load(f"encoder_runtime.{chosen}")
            files = catalog.load("slide_files")
        return cls(name, chosen, slides, tiles, files, archive, plan.parameters, runtime)

    def ask(self, query: str, mpp: float | None) -> _Asked:
        """The slide of that name, or the image of that path."""
        import numpy as np

        names = self.archive.slides["slide_id"].to_list()
        if query in names:
            row = np.array([names.index(query)])
            mosaic = self.archive.select(row)
            patient = str(mosaic.slides["patient"][0])
            return _Asked(query, mosaic, self.slides, self._mosaic_tiles, self.files, (patient,))
        if self.slides.filter(slide_id=query).height:
            raise click.ClickException(
                f"slide {query} has no tile of the mosaic, or was not embedded: see its reason in the "
                "tables slides and tiling, then run the embed pipeline"
            )
        path = Path(query).expanduser()
        if not path.is_file():
            raise click.ClickException(
                f"'{query}' is no slide of cohort {self.name} and no file: give a slide_id of its "
                f"{len(names)} slides, such as {names[0]}, or the path of an image"
                if names
                else f"cohort {self.name} has no embedded slides: run its embed pipeline"
            )
        return self._ask_outside(path, mpp)

    def search(self, asked: _Asked, family: str, scope: str, top: int) -> list[FoundSlide]:
        """The nearest slides by the settings of the cohort's parameters."""
        from pathfm_kedro.pipelines.retrieve.families.registry import known_families
        from pathfm_kedro.pipelines.retrieve.nearest import nearest_slides
        from pathfm_kedro.pipelines.retrieve.search import SCOPES

        known_families([family])
        if scope not in SCOPES:
            raise click.ClickException(
                f"--scope {scope} is unknown: give one of {', '.join(SCOPES)}"
            )
        if asked.slides is not self.slides and scope != "across_organs":
            raise click.ClickException(
                "nobody says which organ an image from outside shows: leave --scope out"
            )
        p = self._settings()
        return nearest_slides(
            asked.mosaic,
            self.archive,
            family,
            p,
            scope,
            asked.patients,
            top,
        )

    def shown_query(self, asked: _Asked) -> ShownSlide:
        """The query as the page shows it."""
        from pathfm_kedro.commands.search_page import ShownSlide

        slide = asked.slides.filter(slide_id=asked.mosaic.slides["slide_id"][0]).row(0, named=True)
        inside = asked.slides is self.slides
        names = ("label", "organ", "center") if inside else ()
        facts = [(name, str(slide[name])) for name in names]
        return ShownSlide(f"Query: {asked.name}", facts, _thumbnail(asked.files, slide))

    def shown(self, asked: _Asked, found: Sequence[FoundSlide]) -> list[ShownSlide]:
        """The slides that were found as the page shows them."""
        from pathfm_kedro.commands.search_page import ShownPair, ShownSlide

        own = asked.slides.filter(slide_id=asked.mosaic.slides["slide_id"][0]).row(0, named=True)
        side = int(self.parameters["tile"]["pixels"])
        shown = []
        for one in found:
            row = self.archive.slides.row(one.row, named=True)
            slide = self.slides.filter(slide_id=row["slide_id"]).row(0, named=True)
            facts = [(name, str(row[name])) for name in ("label", "organ", "center")]
            facts.append(("distance", f"{one.distance:.4g}"))
            pairs = [
                ShownPair(
                    _tile(asked.files, own, asked.tiles, pair.query, side),
                    _tile(self.files, slide, self._mosaic_tiles, pair.match, side),
                    pair.similarity,
                )
                for pair in one.pairs
            ]
            shown.append(ShownSlide(row["slide_id"], facts, _thumbnail(self.files, slide), pairs))
        return shown

    @property
    def _mosaic_tiles(self) -> pl.DataFrame:
        return self.tiles.filter("in_mosaic")

    def _settings(self) -> Retrieval:
        from pathfm_kedro.pipelines.retrieve.search import Retrieval
        from pathfm_kedro.statistics.parameters import read_parameters

        return read_parameters(Retrieval, "retrieval", self.parameters["retrieval"])

    def _ask_outside(self, path: Path, mpp: float | None) -> _Asked:
        """Tile and embed an image as the cohort's slides were."""
        import numpy as np
        import polars as pl

        from pathfm_kedro.encoders import EncoderSpec
        from pathfm_kedro.pipelines.embed.embedding import plan_embedding
        from pathfm_kedro.pipelines.ingest.description import describe_slides
        from pathfm_kedro.pipelines.ingest.manifest import check_manifest
        from pathfm_kedro.pipelines.tile.tiles import cut_tiles
        from pathfm_kedro.slides.files import SlideFiles
        from pathfm_kedro.statistics.mosaic import PATCH_TOKENS, Mosaic

        entry = self.parameters["encoders"][self.encoder]
        if EncoderSpec.from_parameters(self.encoder, entry).base:
            raise click.ClickException(
                f"{self.encoder} is fitted on the cohort's centers and cannot embed an image from "
                "outside: give --encoder another one"
            )
        row = {"slide_id": _OUTSIDE, "path": path.name, "patient_id": _OUTSIDE, "center": "outside",
               "label": "unknown"}  # fmt: skip
        if mpp is not None:
            row["mpp"] = str(mpp)
        files = SlideFiles(path.resolve().parent)
        engine = {**self.parameters["engine"], "max_failed_share": 1.0, "workers": 1}
        listed = check_manifest(pl.DataFrame([row]))
        slides = describe_slides(listed, files, self.parameters["ingest"], engine)
        _refuse_reason(path, slides["status"][0] == "usable", slides["reason"][0])
        tiles, tiling = cut_tiles(slides, files, self.parameters["tile"], engine)
        _refuse_reason(path, tiles.height > 0, tiling["reason"][0])
        chosen = tiles.filter("in_mosaic").sort("tile_id")
        embed = {"dtype": "float32"}
        plan = plan_embedding(
            slides, chosen, files, entry, self.runtime or {}, self.parameters["tile"], embed, engine,
            name=self.encoder,
        )  # fmt: skip
        tensors = next(iter(plan.jobs)).compute()
        described = slides.select(
            "slide_id", pl.col("patient_id").alias("patient"), "center", "organ", "label"
        )
        same = self.slides.filter(fingerprint=slides["fingerprint"][0])
        patients = tuple(same["patient_id"].unique().sort().to_list())
        first = np.zeros(1, np.int64)
        mosaic = Mosaic(described, tensors["embedding"].astype(np.float32), first)
        if PATCH_TOKENS in tensors:
            tokens = tensors[PATCH_TOKENS].astype(np.float32)
            flat = tokens.reshape(-1, tokens.shape[-1])
            mosaic = replace(mosaic, tokens=Mosaic(described, flat, first))
        return _Asked(path.name, mosaic, slides, chosen, files, patients)


def _first_encoder(encoders: Mapping[str, Mapping[str, Any]]) -> str:
    real = [name for name, entry in encoders.items() if entry.get("role") != "control"]
    return next(iter([*real, *encoders]), "")


def _refuse_reason(path: Path, usable: bool, reason: str) -> None:
    if not usable:
        reason = reason.replace("give 'mpp' in the manifest", "give --mpp")
        raise click.ClickException(f"{path.name} cannot be searched for: {reason}")


def _echo_table(found: Sequence[FoundSlide], slides: pl.DataFrame) -> None:
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    slide = Column("slide", overflow="fold")
    table = Table("", slide, "label", "organ", "center", "distance", "best tile")
    for rank, one in enumerate(found, 1):
        row = slides.row(one.row, named=True)
        best = f"{one.pairs[0].similarity:.2f}" if one.pairs else ""
        texts = (row["slide_id"], row["label"], row["organ"], row["center"])
        cells = [Text(str(text)) for text in texts]  # [names] in brackets are no markup
        table.add_row(str(rank), *cells, f"{one.distance:.4g}", best)
    Console().print(table)


def _thumbnail(files: SlideFiles, slide: Mapping[str, Any]) -> Picture:
    from pathfm_kedro.commands.search_page import Picture
    from pathfm_kedro.slides.readers import resize
    from pathfm_kedro.slides.tissue import read_overview

    try:
        with files.open(slide["path"]) as reader:
            longest = max(reader.description.width, reader.description.height)
            overview = read_overview(
                reader, slide["mpp"], slide["mpp"] * longest / _THUMBNAIL
            ).image
    except (OSError, ValueError) as error:
        return Picture(None, _without_path(error, slide))
    scale = min(1.0, _THUMBNAIL / max(overview.shape[:2]))
    height, width = (max(1, round(side * scale)) for side in overview.shape[:2])
    return Picture(resize(overview, width, height))


def _tile(
    files: SlideFiles, slide: Mapping[str, Any], tiles: pl.DataFrame, place: int, pixels: int
) -> Picture:
    """A tile of a mosaic, by its place among the slide's in the order of their names."""
    from pathfm_kedro.commands.search_page import Picture
    from pathfm_kedro.slides.thumbnails import read_tile

    row = tiles.filter(slide_id=slide["slide_id"]).sort("tile_id").row(place, named=True)
    try:
        return Picture(read_tile(files, slide, row, pixels))
    except (OSError, ValueError) as error:
        return Picture(None, _without_path(error, slide))


def _without_path(error: Exception, slide: Mapping[str, Any]) -> str:
    from pathfm_kedro.slides.files import without_patient

    return without_patient(str(error), slide["path"], slide["patient_id"])
