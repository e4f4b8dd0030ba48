"""``kedro triplets``: ask a pathologist whether what an encoder finds alike is alike."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import polars as pl

    from pathfm_kedro.commands.search import EmbeddedCohort
    from pathfm_kedro.statistics.triplets import TripletAnswers

_DRAWS = 2_000


@click.group(name="triplets")
def triplets() -> None:
    """Blinded triplets of tiles for a pathologist, and what the answers say."""


@triplets.command("export")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--env", "-e", default=None, help="The cohort; phantom by default.")
@click.option("--encoder", help="Whose nearest tiles are shown; the cohort's first by default.")
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False),
              help="The key, not for readers; FOLDER-key.csv beside FOLDER by default.")  # fmt: skip
@click.option("--n", "wanted", type=click.IntRange(1), default=30, show_default=True,
              help="Triplets.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of all choices.")
def export(
    folder: Path, env: str | None, encoder: str | None, key: Path | None, wanted: int, seed: int
) -> None:
    """Write FOLDER/triplets.html and FOLDER/answers.csv for a reader, and the key elsewhere."""
    import polars as pl

    from pathfm_kedro.commands.search import EmbeddedCohort
    from pathfm_kedro.commands.triplet_page import render_triplets
    from pathfm_kedro.statistics.triplets import choose_triplets

    key = key or folder.with_name(f"{folder.resolve().name}-key.csv")
    if key.resolve().is_relative_to(folder.resolve()):
        raise click.ClickException(f"{key} lies in {folder}, which readers get: give another --key")
    for path in (folder, key):
        if path.exists():
            raise click.ClickException(f"{path} exists: give another name or remove it first")
    cohort = EmbeddedCohort.open(env, encoder)
    mosaic = cohort.archive
    slide_of = mosaic.slide_of_patch
    patients = mosaic.slides["patient"].to_numpy()[slide_of]
    try:
        chosen = choose_triplets(mosaic.vectors, patients, wanted, seed)
        shown = [
            (row["triplet"], tuple(_source(cohort, row[part]) for part in _PARTS))
            for row in chosen.iter_rows(named=True)
        ]
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    folder.mkdir(parents=True)
    (folder / "triplets.html").write_text(render_triplets(shown), encoding="utf-8")
    chosen.select("triplet", answer=pl.lit("")).write_csv(folder / "answers.csv")
    key.parent.mkdir(parents=True, exist_ok=True)
    _key(chosen, cohort).write_csv(key)
    click.echo(
        f"{folder} written for the reader: {chosen.height} triplets of "
        f"{chosen['patient'].n_unique()} patients\n{key} is the key: keep it from the reader\n"
        f"Then: kedro triplets read {folder / 'answers.csv'} --key {key}"
    )


@triplets.command("read")
@click.argument("answers", nargs=-1, required=True,
                type=click.Path(path_type=Path, exists=True, dir_okay=False))  # fmt: skip
@click.option("--key", type=click.Path(path_type=Path, exists=True, dir_okay=False), required=True,
              help="The key that was written with the triplets.")  # fmt: skip
@click.option("--env", "-e", default=None,
              help="The cohort whose report shows it; without one it is printed alone.")  # fmt: skip
def read(answers: tuple[Path, ...], key: Path, env: str | None) -> None:
    """Say how often ANSWERS, a file of each reader, chose the encoder's nearest tile.

    With a 95% interval over patients, and of several readers how far they agree with each other.
    """
    from pathfm_kedro.statistics.triplets import read_answers

    known = _table(key, ("triplet", "nearest", "patient", "encoder"))
    decided = read_answers(known, *(_answers(path, key, known) for path in answers))
    encoder = str(known["encoder"][0])
    for number, path in enumerate(answers if len(answers) > 1 else ()):
        click.echo(f"{path}: {_agreement_line(encoder, decided.of_reader(number))}")
    click.echo(_agreement_line(encoder, decided))
    if len(answers) > 1:
        click.echo(_kappa_line(decided))
    if env is not None and any(map(any, decided.readers)):
        click.echo(_into_parameters(env, encoder, decided))


def _agreement_line(encoder: str, answers: TripletAnswers) -> str:
    from pathfm_kedro.pipelines.report.text import interval_text
    from pathfm_kedro.statistics.triplets import CHANCE, agreement

    found = agreement(answers, _DRAWS, 0)
    if found.value is None:
        return f"Agreement with {encoder}: not measured, since nothing was answered"
    row = {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}
    low = 0.0 if found.ci_low is None else found.ci_low
    high = 1.0 if found.ci_high is None else found.ci_high
    said = "above" if low > CHANCE else "below" if high < CHANCE else "not distinguished from"
    undecided = sum(answer == 0 for reader in answers.readers for answer in reader)
    return (
        f"Agreement with {encoder}: {interval_text(row)}, {said} chance ({CHANCE:.2f}); "
        f"{found.n} answers on tiles of {found.n_patients} patients, {undecided} triplets undecided"
    )


def _kappa_line(answers: TripletAnswers) -> str:
    from pathfm_kedro.pipelines.report.text import interval_text
    from pathfm_kedro.statistics.figures import Undefined
    from pathfm_kedro.statistics.triplets import fleiss_kappa

    head = f"Agreement of {len(answers.readers)} readers with each other"
    try:
        found = fleiss_kappa(answers, _DRAWS, 0)
    except Undefined as reason:
        return f"{head}: not measured, since {reason}"
    row = {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}
    return (
        f"{head}: Fleiss' kappa {interval_text(row)}, 0 by chance; {found.n} triplets that all "
        "decided"
    )


def _into_parameters(env: str, encoder: str, answers: TripletAnswers) -> str:
    """Write the answers where the report reads them; what to do next."""
    from pathfm_kedro.cohorts import read_cohort_plan
    from pathfm_kedro.project import project_root

    root = project_root()
    try:
        plan = read_cohort_plan(env, str(root / "conf"))
        if encoder not in plan.encoders:
            raise ValueError(
                f"cohort {env} has no encoder {encoder}: give the cohort of the triplets"
            )
        path = root / "conf" / env / "parameters_report.yml"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        path.write_text(with_answers(text, encoder, answers), encoding="utf-8")
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    return (
        f"conf/{env}/{path.name}: triplets.answers.{encoder} written, numbers alone\n"
        f"Next: kedro run --env {env} --pipelines report"
    )


def with_answers(text: str, encoder: str, answers: TripletAnswers) -> str:
    r"""A file of parameters with readers' answers in place of earlier ones; what else it holds stays.

    Raises
    ------
    ValueError
        If the file is no YAML.

    Examples
    --------
    >>> from pathfm_kedro.statistics.triplets import TripletAnswers
    >>> answers = TripletAnswers((0, 1), (1, 2), ((1, 1), (1, 2)))
    >>> print(with_answers("report: {alpha: 0.01}  # ours\n", "uni", answers))
    report: {alpha: 0.01}  # ours
    triplets:
      answers:
        uni:
          patient: [0, 1]
          nearest: [1, 2]
          readers:
          - [1, 1]
          - [1, 2]
    <BLANKLINE>
    """
    import yaml

    try:
        before = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"parameters_report.yml is no YAML ({error}): correct it first") from error
    block = dict(before.get("triplets") or {})
    block["answers"] = dict(block.get("answers") or {}) | {
        encoder: {
            "patient": list(answers.patient),
            "nearest": list(answers.nearest),
            "readers": [list(reader) for reader in answers.readers],
        }
    }
    others = _BLOCK.sub("", text).rstrip("\n")
    own = yaml.safe_dump({"triplets": block}, sort_keys=False, default_flow_style=None, width=100)
    return "\n".join(filter(None, [others, own]))


#: The block of parameters with everything below it.
_BLOCK = re.compile(r"^triplets:.*\n?(?:(?:[ \t].*)?\n)*", re.MULTILINE)
_PARTS = ("tile", "first", "second")


def _source(cohort: EmbeddedCohort, patch: int) -> str:
    """The picture of a patch of the mosaic."""
    from pathfm_kedro.slides.thumbnails import jpeg_source, read_tile

    slide, tile = _slide_and_tile(cohort, patch)
    return jpeg_source(
        read_tile(cohort.files, slide, tile, int(cohort.parameters["tile"]["pixels"]))
    )


def _slide_and_tile(
    cohort: EmbeddedCohort, patch: int
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    mosaic = cohort.archive
    at = int(mosaic.slide_of_patch[patch])
    slide_id = mosaic.slides["slide_id"][at]
    slide = cohort.slides.filter(slide_id=slide_id).row(0, named=True)
    own = cohort.tiles.filter("in_mosaic", slide_id=slide_id).sort("tile_id")
    return slide, own.row(patch - int(mosaic.starts[at]), named=True)


def _key(chosen: pl.DataFrame, cohort: EmbeddedCohort) -> pl.DataFrame:
    """What each triplet is: no cell can be read as a formula, patients are numbers."""
    import polars as pl

    from pathfm_kedro.pipelines.report.text import safe_cells

    named = {
        f"{part}_id": pl.Series([_slide_and_tile(cohort, i)[1]["tile_id"] for i in chosen[part]])
        for part in _PARTS
    }
    key = chosen.select("triplet", "nearest", "patient", encoder=pl.lit(cohort.encoder))
    return safe_cells(key.with_columns(**named))


def _answers(path: Path, key: Path, known: pl.DataFrame) -> pl.DataFrame:
    """A reader's answers to triplets of the key."""
    from pathfm_kedro.statistics.triplets import FIRST, NEITHER, SECOND

    table = _table(path, ("triplet", "answer"))
    for row in table.iter_rows(named=True):
        if row["answer"] not in (FIRST, SECOND, NEITHER, ""):
            raise click.ClickException(
                f"{path}: triplet {row['triplet']} has the answer '{row['answer']}': give 1, 2, 0 for "
                "neither, or nothing"
            )
    twice = table.filter(table["triplet"].is_duplicated())
    if twice.height:
        raise click.ClickException(
            f"{path}: triplet {twice['triplet'][0]} is answered twice: keep one of the rows"
        )
    strange = table.join(known, on="triplet", how="anti")
    if strange.height:
        raise click.ClickException(
            f"{path}: triplet {strange['triplet'][0]} is not in {key}: give the key that was "
            "written with these triplets"
        )
    return table


def _table(path: Path, columns: tuple[str, ...]) -> pl.DataFrame:
    """A CSV with these columns, as text."""
    import polars as pl

    try:
        table = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise click.ClickException(f"{path} cannot be read as CSV: {error}") from error
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise click.ClickException(
            f"{path} has no column {missing[0]}: it needs {', '.join(columns)}"
        )
    return table.select(pl.col(columns).fill_null("").str.strip_chars())
