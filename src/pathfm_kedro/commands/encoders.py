"""Project commands: ``kedro encoders list | show | check | add``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pathfm_kedro.cohorts import DEFAULT_COHORT, read_cohort_plan
from pathfm_kedro.encoders.presets import (
    Preset,
    differs_from_training,
    find_preset,
    published_dimension,
    read_presets,
)
from pathfm_kedro.project import project_root, resolve_path
from pathfm_kedro.variants import expand_variants

if TYPE_CHECKING:
    from rich.table import Table

#: Below this many characters a line the table leaves out what `show` tells as well.
_NARROW = 100
_HEADINGS = (
    "name", "parameters", "dimension", "licence", "commercial", "gated", "cached", "needs",
)  # fmt: skip
_LEFT_OUT_WHERE_NARROW = ("parameters", "licence", "cached")
_OF_ONE_COHORT = click.option(
    "--env",
    "cohort",
    envvar="KEDRO_ENV",
    default=DEFAULT_COHORT,
    show_default=True,
    help="The cohort whose encoders and tiles are meant.",
)


@click.group(name="encoders")
def encoders() -> None:
    """Look published encoders up, check one, and add it to a cohort."""


@encoders.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print everything that is known, as JSON.")
@click.option("--usable", is_flag=True, help="Only those that something here loads.")
def list_encoders(as_json: bool, usable: bool) -> None:
    """List the published encoders that can be named by `preset`."""
    presets = [p for p in read_presets().values() if p.entry or not usable]
    if as_json:
        facts = [_facts(preset) | {"cached": _cached(preset)} for preset in presets]
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    _print_table(presets)


@encoders.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Show all that is known of the preset NAME, and its entry as YAML to paste."""
    preset = _found(name)
    for key, value in _rows_of(preset):
        click.echo(f"{key + ':':<14} {value}")
    _echo_list("Published figures", [f"{k}: {v}" for k, v in preset.published.items()])
    _echo_list("Where sources disagree", preset.conflicts)
    _echo_list("Sources", preset.sources)
    click.echo("\nTo paste into conf/<cohort>/parameters_encoders.yml:")
    click.echo(_as_written(preset.name, _shortest(preset)))
    if preset.entry:
        click.echo("\nwhich stands for:")
        click.echo(_as_written(preset.name, preset.entry))


@encoders.command("check")
@click.argument("name")
@_OF_ONE_COHORT
def check(name: str, cohort: str) -> None:
    """Load the encoder NAME of a cohort, or the preset NAME, and say whether it is what it should be.

    It embeds a few fixed tiles; dimension, determinism and finite numbers are looked at, and whether
    the weights came from a file: two loads under different seeds must be one network.
    """
    plan = read_cohort_plan(cohort, str(project_root() / "conf"))
    entry = plan.encoders.get(name)
    if entry is None:
        entry = {"preset": name}
        if name not in read_presets():
            raise click.ClickException(
                f"cohort {cohort} has no encoder '{name}' (it has {', '.join(sorted(plan.encoders))}), "
                "and there is no preset of that name ('kedro encoders list'): correct the name"
            )
    if str(entry.get("model", "")).startswith("features:"):
        _check_files(name, entry, cohort)
        return
    _refuse_failed(_checked(name, entry, plan.parameters))


@encoders.command("add")
@click.argument("name")
@click.option("--preset", help="A published encoder, as 'kedro encoders list' names it.")
@click.option("--model", help="Any other: hf-hub:, local-dir:, timm:, … as in docs/encoders.md.")
@click.option("--checkpoint", help="The file with weights of a timm: architecture.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Another key of the entry, as pooling=class_token; may be given several times.",
)
@click.option("--check", "load", is_flag=True, help="Load it too, as 'kedro encoders check' does.")
@click.option(
    "--env", "cohort", envvar="KEDRO_ENV", required=True, help="The cohort that gets the encoder."
)
def add(
    name: str,
    preset: str | None,
    model: str | None,
    checkpoint: str | None,
    settings: tuple[str, ...],
    load: bool,
    cohort: str,
) -> None:
    """Add the encoder NAME to a cohort: check its entry, write it, and let DVC know."""
    from pathfm_kedro.dvc_stages import sync_stages
    from pathfm_kedro.encoders.rivals import Training
    from pathfm_kedro.encoders.spec import EncoderSpec

    if preset is None and model is None:
        raise click.ClickException("give --preset or --model")
    given = {"preset": preset, "model": model, "checkpoint": checkpoint}
    entry = {key: value for key, value in given.items() if value is not None}
    entry |= dict(_setting(text) for text in settings)
    root = project_root()
    try:
        for one, written in expand_variants({name: entry}).items():
            spec = EncoderSpec.from_parameters(one, written)
            if spec.is_trained:
                Training.of(spec)
            if spec.features and not resolve_path(spec.features).is_dir():
                raise ValueError(
                    f"encoders.{one}.model is '{spec.model}', and there is no such folder: correct the "
                    "path, which starts from the project's folder"
                )
        plan = read_cohort_plan(cohort, str(root / "conf"))
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if name in plan.parameters["encoders"]:
        raise click.ClickException(
            f"cohort {cohort} has encoders.{name} already: choose another name, or change the entry in "
            f"conf/{cohort}/parameters_encoders.yml"
        )
    if load and entry.get("model", "").startswith("features:"):
        _check_files(name, entry, cohort)
    elif load:
        _refuse_failed(_checked(name, entry, plan.parameters))
    path = root / "conf" / cohort / "parameters_encoders.yml"
    before = path.read_text(encoding="utf-8") if path.is_file() else None
    try:
        written = with_encoder(before or "", name, entry)
    except ValueError as error:
        raise click.ClickException(f"conf/{cohort}/{path.name}: {error}") from error
    path.write_text(written, encoding="utf-8")
    try:
        sync_stages(root)
    except ValueError as error:
        # What an entry names may be missing from the cohort.
        if before is None:
            path.unlink()
        else:
            path.write_text(before, encoding="utf-8")
        raise click.ClickException(f"{error}; nothing was written") from error
    click.echo(f"conf/{cohort}/{path.name}: encoders.{name} written, and params.yaml for DVC")
    for line in _remarks(entry, plan.parameters):
        click.echo(line)
    if not load:
        click.echo(f"Next: kedro encoders check {name} --env {cohort}")


def with_encoder(text: str, name: str, entry: Mapping[str, Any]) -> str:
    r"""A file of parameters with one more encoder at the end of its list, and nothing else changed.

    Parameters
    ----------
    text
        The file, comments included; it may lack the key ``encoders``.
    name, entry
        The encoder.

    Raises
    ------
    ValueError
        If the file is no YAML, has the encoder, or lists encoders in a form that lines cannot be added
        to.

    Examples
    --------
    >>> print(with_encoder("encoders:\n  a: {model: timm:x}  # old\n", "b", {"preset": "uni"}))
    encoders:
      a: {model: timm:x}  # old
      b:
        preset: uni
    <BLANKLINE>
    """
    import yaml

    try:
        before = yaml.safe_load(text) or {}
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(
            f"it is no YAML ({' '.join(str(error).split())}): correct it first"
        ) from error
    if not isinstance(before, dict):
        raise ValueError("it holds no keys: write 'encoders:' into it first")
    listed = before.get("encoders") or {}
    by_hand = f"write into it by hand\n{_as_written(name, entry)}"
    if not isinstance(listed, dict):
        raise ValueError(f"its encoders are {listed!r} and no list of encoders: {by_hand}")
    if name in listed:
        raise ValueError(f"it has encoders.{name} already: change that entry")
    lines = text.splitlines()
    at, indent = _place(root, lines)
    if at is None:
        lines.append("encoders:")
        at = len(lines)
    lines[at:at] = _block(name, entry, indent)
    result = "\n".join(lines) + "\n"
    wanted = {**before, "encoders": {**listed, name: dict(entry)}}
    try:
        written = yaml.safe_load(result)
    except yaml.YAMLError:
        written = None
    if written != wanted:
        raise ValueError(f"its encoders stand in a form that no line can be added to: {by_hand}")
    return result


def _place(root: Any, lines: list[str]) -> tuple[int | None, int]:
    """Before which line an encoder is written, and how far to the right; no line where a key lacks."""
    listed = dict(getattr(root, "value", None) or ())
    found = [(key, value) for key, value in listed.items() if key.value == "encoders"]
    if not found:
        return None, 2
    key, value = found[0]
    if not isinstance(value.value, list) or not value.value:
        return key.start_mark.line + 1, 2
    # A block ends where the next key begins; comments and blank lines before that are the next one's.
    end = min(value.end_mark.line + (value.end_mark.column > 0), len(lines))
    while end > 0 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    return end, value.value[0][0].start_mark.column


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise click.ClickException(f"--set {text}: write KEY=VALUE, as pooling=class_token")
    return key.strip(), yaml.safe_load(value)


def _found(name: str) -> Preset:
    try:
        return find_preset(name)
    except ValueError as error:
        raise click.ClickException(str(error)) from error


def _checked(name: str, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    """Print each check of an encoder as it is made; whether none of them failed."""
    from pathfm_kedro.encoders.spec import EncoderSpec
    from pathfm_kedro.encoders.verification import check_encoder

    failed = 0
    try:
        spec = EncoderSpec.from_parameters(name, entry)
        if spec.has_network:
            click.echo(f"{name}: loading {spec.model}")
        tile = parameters.get("tile") or {}
        for one in check_encoder(spec, published_dimension(entry), int(tile.get("pixels", 224))):
            failed += one.passed is False
            mark = {True: "ok", False: "FAILED", None: "-"}[one.passed]
            click.echo(f"  {mark:<7}{one.name}: {one.detail}")
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    for line in _remarks(entry, parameters):
        click.echo(line)
    return not failed


def _check_files(name: str, entry: Mapping[str, Any], cohort: str) -> None:
    """Hold a folder of features against the cohort's manifest, and read a few of its files."""
    from pathfm_kedro.commands.new_features import check_features
    from pathfm_kedro.dvc_stages import cohort_globals

    root = project_root()
    given = cohort_globals(root, cohort).get("manifest")
    if given is None or not resolve_path(given).is_file():
        raise click.ClickException(
            f"encoders.{name} is features, and cohort {cohort} has no manifest to hold them against: "
            "correct 'manifest' in its globals.yml"
        )
    look = check_features(resolve_path(given), {name: entry})[name]
    click.echo(look.text)
    if not look.level:
        raise click.ClickException("no file that was looked at can be used: see above")


def _refuse_failed(passed: bool) -> None:
    if not passed:
        raise click.ClickException("the encoder is not what it should be: see above")


def _remarks(entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    """What a person should know of a preset before it is used on these tiles."""
    if "preset" not in entry:
        return []
    preset, tile = find_preset(entry["preset"]), parameters.get("tile") or {}
    remarks = []
    if preset.commercial is not True:
        may = "not for profit" if preset.commercial is False else "use for profit is unclear"
        remarks.append(f"Licence: {preset.licence or 'not known'}; {may}")
    if tile and (differs := differs_from_training(preset, int(tile["pixels"]), float(tile["mpp"]))):
        remarks.append(f"Warning: {preset.name} was {differs}")
    return remarks


def _shortest(preset: Preset) -> dict[str, Any]:
    """The entry that a person writes."""
    entry: dict[str, Any] = {"preset": preset.name}
    if not preset.entry:
        entry["model"] = "features:<folder>"
    elif preset.download:
        entry["checkpoint"] = "<file>"
    return entry


def _facts(preset: Preset) -> dict[str, Any]:
    return asdict(preset) | {
        "repository": preset.repository,
        "pinned": preset.pinned,
        "requirement": preset.requirement,
    }


def _rows_of(preset: Preset) -> list[tuple[str, str]]:
    """What is known, as key and text, in the order of its weight."""
    tile = preset.tile
    scales = " or ".join(f"{mpp:g}" for mpp in tile.get("mpp") or ())
    trained = f"{tile['pixels']} px" if tile else ""
    if scales:
        trained += f" at {scales} µm per px ({tile['stated']})"
    where = f"{preset.repository}@{preset.pinned}" if preset.pinned else preset.repository
    rows = (
        ("name", preset.name + (" (of slides)" if preset.slide_level else "")),
        ("needs", preset.requirement or "nothing"),
        ("licence", preset.licence or "not known"),
        ("commercial", _yes(preset.commercial) + _in_brackets(preset.commercial_note)),
        ("gated", _yes(preset.gated)),
        ("dimension", _or_unknown(preset.dimension)),
        ("parameters", _or_unknown(preset.parameters)),
        ("FLOPs", preset.flops),
        ("tiles", trained),
        ("tile encoder", preset.tile_encoder),
        ("precision", preset.precision),
        ("hub", where or preset.download),
        ("weights", preset.file),
        ("SHA-256", preset.sha256 or preset.entry.get("sha256")),
        ("cached", _yes(_cached(preset))),
        ("DOI", preset.doi),
        ("note", preset.note),
    )
    return [(key, str(value)) for key, value in rows if value]


def _in_brackets(text: str | None) -> str:
    return f" ({text})" if text else ""


def _or_unknown(value: Any) -> str:
    return "?" if value is None else str(value)


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[value]


def _cached(preset: Preset) -> bool | None:
    """Whether the weights lie in the hub's cache here; None where none are loaded from a hub."""
    if not preset.entry or not preset.repository:
        return None
    from huggingface_hub import try_to_load_from_cache

    names = [preset.file] if preset.file else ["model.safetensors", "pytorch_model.bin"]
    return any(
        isinstance(
            try_to_load_from_cache(preset.repository, name, revision=preset.pinned or None), str
        )
        for name in names
    )


def _print_table(presets: list[Preset]) -> None:
    """A table as wide as the terminal; elsewhere one line for each, with tabs between its cells."""
    rows = [_row(preset) for preset in presets]
    if not sys.stdout.isatty():
        for cells in (_HEADINGS, *rows):
            click.echo("\t".join(cells))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(rows, console.width))
    console.print(
        f"{len(rows)} presets; 'kedro encoders show <name>' tells all, where sources disagree too",
        style="dim",
    )


def _row(preset: Preset) -> tuple[str, ...]:
    cached = _cached(preset)
    return (
        preset.name,
        _or_unknown(preset.parameters),
        _or_unknown(preset.dimension),
        preset.licence or "?",
        _yes(preset.commercial),
        _yes(preset.gated),
        "" if cached is None else _yes(cached),
        preset.requirement,
    )


def _table(rows: list[tuple[str, ...]], width: int) -> Table:
    """The rows in a table that a terminal of that width can show, no name of an encoder cut."""
    from rich.table import Table

    left_out = _LEFT_OUT_WHERE_NARROW if width < _NARROW else ()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        if heading not in left_out:
            table.add_column(heading, overflow="fold", no_wrap=heading == "name")
    for cells in rows:
        row = zip(cells, _HEADINGS, strict=True)
        table.add_row(*(cell for cell, heading in row if heading not in left_out))
    return table


def _echo_list(title: str, lines: Any) -> None:
    if lines:
        click.echo(f"\n{title}:")
        for line in lines:
            click.echo(f"  - {line}")


def _block(name: str, entry: Mapping[str, Any], indent: int) -> list[str]:
    """An encoder's entry as lines of YAML, each key with all of its value in one."""
    import yaml

    def dumped(value: Any) -> str:
        text = yaml.safe_dump(
            value, sort_keys=False, allow_unicode=True, default_flow_style=True, width=10_000
        )
        return str(text).removesuffix("\n").removesuffix("\n...")

    lines = [f"{dumped(name)}:", *(f"  {key}: {dumped(value)}" for key, value in entry.items())]
    return [f"{' ' * indent}{line}" for line in lines]


def _as_written(name: str, entry: Mapping[str, Any]) -> str:
    return "\n".join(["encoders:", *_block(name, entry, 2)])
