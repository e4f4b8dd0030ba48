"""What an audit will take, before it is run: passes, hours on this machine, gigabytes on disk.

A pass is one tile, or one changed tile, through the network. A step of an attack is three: forward, and
back at twice the cost. Hours come from the recorded cost of an encoder, else from its runtime's trial,
else from a trial made now; statistics (neighbours, permutations, probes) are not in them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

#: Forward and backward pass of an attack's step.
_PASSES_OF_STEP = 3
#: Slides without a limit of tiles: of published cohorts' whole slides at 20x about so many are tissue.
_TILES_OF_WHOLE_SLIDE = 5000
_FLOAT32, _RGB = 4, 3
#: Hours and gigabytes below are not distinguished.
_LEAST = 0.01
_TRIAL_TILES, _TRIAL_TURNS = 8, 3
#: Models of which there are vectors already.
_VECTORS_ALONE = ("harmonised:", "features:")


@dataclass(frozen=True)
class CohortSize:
    """How much there is to audit.

    Attributes
    ----------
    slides, patients, centers
        How many.
    tiles
        Of all slides.
    basis
        Where these numbers come from, for the reader.
    """

    slides: int
    patients: int
    centers: int
    tiles: int
    basis: str


@dataclass(frozen=True)
class Speed:
    """How fast an encoder is here.

    Attributes
    ----------
    seconds
        For a tile, on one thread or on the GPU; None where nothing was measured.
    device
        ``cpu`` or ``cuda``.
    basis
        Where it comes from, for the reader.
    dimension
        Of the vectors; None where it is not known yet.
    """

    seconds: float | None = None
    device: str = "cpu"
    basis: str = "not measured yet"
    dimension: int | None = None


@dataclass(frozen=True)
class Share:
    """What one experiment takes of one encoder.

    Attributes
    ----------
    encoder, experiment
        Whose.
    passes
        Through the network.
    hours
        On this machine; None where no speed is known.
    gigabytes
        On disk; None where the dimension is not known.
    """

    encoder: str
    experiment: str
    passes: int
    hours: float | None
    gigabytes: float | None


def cohort_size(parameters: Mapping[str, Any], listed: Any = None, tiles: Any = None) -> CohortSize:
    """How much there is to audit: from tiles where they are cut, else from the manifest.

    Parameters
    ----------
    parameters
        All parameters.
    listed
        Slides table or manifest: patient_id, center; None for a phantom that is not drawn yet.
    tiles
        Tiles table; None before tiles are cut.
    """
    if listed is None:
        drawn = parameters["phantom"]
        centers = len(drawn["centers"])
        patients = len(drawn["labels"]) * centers * int(drawn["patients_per_cell"])
        slides, source = patients * int(drawn["slides_per_patient"]), "the phantom's design"
    else:
        usable = listed.filter(status="usable") if "status" in listed.columns else listed
        slides, source = usable.height, "the manifest"
        patients, centers = (usable[c].n_unique() for c in ("patient_id", "center"))
    if tiles is not None:
        return CohortSize(slides, patients, centers, tiles.height, "tiles that were cut")
    most = parameters["tile"]["max_tiles_per_slide"]
    typical = _TILES_OF_WHOLE_SLIDE if most is None else int(most)
    basis = f"{source}; tiles are not cut yet, {typical:,} of each slide are assumed"
    return CohortSize(slides, patients, centers, slides * typical, basis)


def estimate(
    parameters: Mapping[str, Any], size: CohortSize, speeds: Mapping[str, Speed]
) -> list[Share]:
    """What every experiment takes of every encoder, in the order of the parameters.

    Parameters
    ----------
    parameters
        All parameters, the audit's size applied.
    size
        Of the cohort.
    speeds
        Of each encoder that is run; one whose vectors are another's is not.
    """
    engine = parameters["engine"]
    workers = int(engine["workers"]) or os.cpu_count() or 1
    ran = _run(parameters)
    sources = sum(1 for entry in ran.values() if entry.get("role") != "control")
    found = []
    for name in ran:
        speed = speeds.get(name, Speed())
        at_once = 1 if speed.device == "cuda" else workers
        own = sources - (ran[name].get("role") != "control")
        network = is_timed(ran[name])
        for experiment, passes, numbers, pixels in _work(parameters, size, own, network):
            hours = None if speed.seconds is None else passes * speed.seconds / at_once / 3600
            stored = None
            if speed.dimension is not None:
                stored = (numbers * speed.dimension * _FLOAT32 + pixels) / 1e9
                if experiment == "embed" and parameters["embed"]["dtype"] == "float16":
                    stored /= 2
            found.append(Share(name, experiment, passes, hours, stored))
    return found


def _run(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Encoders that see pixels."""
    if parameters["cohort"]["source"] == "features":
        return {}
    entries = {k: v for k, v in parameters["encoders"].items() if v is not None}
    return {k: v for k, v in entries.items() if not str(v["model"]).startswith(_VECTORS_ALONE)}


def _work(
    parameters: Mapping[str, Any], size: CohortSize, sources: int, network: bool
) -> Iterator[tuple[str, int, int, int]]:
    """Experiment, passes, vectors that are stored, and bytes of pixels."""
    yield "embed", size.tiles, size.tiles, 0
    views = passes_per_tile(parameters, size.centers)
    for experiment, each in views.items():
        pool = parameters["field_of_view" if experiment == "field_of_view" else "tile_pool"]
        tiles = min(int(pool["max_tiles"]), size.tiles)
        yield experiment, tiles * each, tiles * each, 0
    places = size.slides * int(parameters["mosaic_field"]["places"])
    each = parts_of_mosaic_fields(parameters)
    yield "mosaic_field", places * each, places * each, 0
    from pathfm_kedro.pipelines.robustness.adversarial_pool import Adversarial

    p = _read(Adversarial, "adversarial", parameters)
    tiles, picture = min(p.max_tiles, size.tiles), _RGB * int(parameters["tile"]["pixels"]) ** 2
    # Without a gradient only noise is embedded, beside what was made against others.
    images = len(p.noises) + sources + (len(p.white_box) if network else 0)
    passes = tiles * images
    if network:
        steps = 1 + sum(p.pgd_steps)
        passes += tiles * _PASSES_OF_STEP * len(p.epsilons) * steps
        if p.universal is not None:
            fit = p.universal
            passes += 2 * len(fit.epsilons) * fit.tiles * fit.steps * _PASSES_OF_STEP
    yield "adversarial", passes, tiles * images, tiles * picture if network else 0


def passes_per_tile(parameters: Mapping[str, Any], centers: int) -> dict[str, int]:
    """How often each experiment on changed pixels embeds a tile, or a place.

    Parameters
    ----------
    parameters
        All parameters.
    centers
        Of the cohort, whose stains tiles are given.
    """
    from pathfm_kedro.pipelines.robustness.appearance import Appearance
    from pathfm_kedro.pipelines.robustness.crop_coherence import CropCoherence, crop_views
    from pathfm_kedro.pipelines.robustness.field_of_view import FieldOfView
    from pathfm_kedro.pipelines.robustness.rotation import Rotation, rotation_views
    from pathfm_kedro.pipelines.robustness.texture import Texture, texture_views
    from pathfm_kedro.slides.nested_fields import Layout

    looks = _read(Appearance, "appearance", parameters)
    targets = min(looks.max_targets, max(centers - 1, 0))
    doses = sum(map(len, (looks.jitter, looks.jpeg, looks.blur, looks.gamma)))
    side = int(parameters["tile"]["pixels"])
    fields = _read(FieldOfView, "field_of_view", parameters).fields_around(side)
    # At native size a field costs as many tiles as its pixels hold.
    native = sum(round(width * height / side**2) for width, height in fields[1:])
    return {
        "rotation": len(rotation_views(_read(Rotation, "rotation", parameters), 1).settings),
        "appearance": 1 + doses + 2 * targets,
        "texture": len(texture_views(_read(Texture, "texture", parameters)).settings),
        "crop_coherence": len(
            crop_views(_read(CropCoherence, "crop_coherence", parameters)).settings
        ),
        "field_of_view": len(Layout.of(fields).parts) + native,
    }


def parts_of_mosaic_fields(parameters: Mapping[str, Any]) -> int:
    """How often each place of a mosaic is embedded: as a tile, as wider fields, and covered."""
    from pathfm_kedro.pipelines.retrieve.mosaic_field import MosaicField
    from pathfm_kedro.slides.nested_fields import Layout

    p = _read(MosaicField, "mosaic_field", parameters)
    fields = p.fields_around(int(parameters["tile"]["pixels"]))
    return len(Layout.of(fields, p.same_tissue, p.coarser).parts)


def _read(kind: Any, name: str, parameters: Mapping[str, Any]) -> Any:
    from pathfm_kedro.statistics.parameters import read_parameters

    return read_parameters(kind, name, parameters[name])


def recorded_speed(
    cost: Mapping[str, Any] | None,
    runtime: Mapping[str, Any] | None,
    card: Mapping[str, Any] | None,
) -> Speed:
    """What the records of an encoder say of its speed, the most telling first.

    Parameters
    ----------
    cost, runtime, card
        ``encoder_cost``, ``encoder_runtime`` and ``encoder_card``; None where there is none.
    """
    dimension = None if card is None or not card["dimension"] else int(card["dimension"])
    if cost is not None and cost["turns"]:
        seconds = float(np.mean([turn["seconds"] for turn in cost["turns"]])) / cost["tiles"]
        return Speed(seconds, cost["device"], "its recorded cost, reading included", dimension)
    if runtime is not None:
        fast = runtime["tiles_per_second"].get(runtime["runtime"])
        device = runtime["device"]
        if fast:
            return Speed(1 / fast, device, "its recorded trial, reading left out", dimension)
        return Speed(None, device, "its runtime was given and not timed", dimension)
    return Speed(dimension=dimension)


def tried_speed(name: str, entry: Mapping[str, Any], known: Speed, pixels: int) -> Speed:
    """The speed of an encoder on blank tiles, measured now.

    Parameters
    ----------
    name, entry
        The encoder and its entry.
    known
        What its records say.
    pixels
        Side of a tile.
    """
    from pathfm_kedro.encoders import EncoderSpec, load_encoder
    from pathfm_kedro.engine.threads import one_thread

    spec = EncoderSpec.from_parameters(name, entry)
    if spec.is_trained:  # timed once it is fitted
        return known
    encoder = load_encoder(spec)
    tiles = np.full((_TRIAL_TILES, pixels, pixels, _RGB), 200, np.uint8)
    with one_thread():
        vectors = encoder.embed(tiles)
        seconds = []
        for _ in range(_TRIAL_TURNS):
            start = time.perf_counter()
            encoder.embed(tiles)
            seconds.append((time.perf_counter() - start) / len(tiles))
    device = str(getattr(encoder, "device", "cpu"))
    return replace(
        known,
        seconds=min(seconds),
        device=device,
        basis="a trial made now, reading left out",
        dimension=int(vectors.shape[1]),
    )


def estimate_lines(
    parameters: Mapping[str, Any],
    size: CohortSize,
    speeds: Mapping[str, Speed],
    *,
    by_experiment: bool = True,
) -> list[str]:
    """The estimate for a reader.

    Parameters
    ----------
    parameters, size, speeds
        As in :func:`estimate`.
    by_experiment
        Whether every experiment has a line, or the encoder alone.
    """
    lines = [
        f"size {parameters['audit']['size']}: {size.slides:,} slides of {size.patients:,} patients, "
        f"{size.tiles:,} tiles ({size.basis})"
    ]
    shares = estimate(parameters, size, speeds)
    audited = [name for name in _run(parameters) if is_timed(parameters["encoders"][name])]
    for name in audited:
        own = [share for share in shares if share.encoder == name]
        lines.append(f"{_line(name, _total(own))}; {speeds.get(name, Speed()).basis}")
        if by_experiment:
            lines += [f"  {_line(share.experiment, share)}" for share in own]
    if len(audited) > 1:
        lines.append(_line("together", _total(s for s in shares if s.encoder in audited)))
    controls = [share for share in shares if share.encoder not in audited]
    if controls:
        passes = sum(share.passes for share in controls)
        lines.append(f"controls: {passes:,} passes without a network, not timed")
    return lines


def is_timed(entry: Mapping[str, Any]) -> bool:
    """Whether an entry is a network: controls need truth or hardly any time.

    Examples
    --------
    >>> is_timed({"model": "timm:resnet18"}), is_timed({"model": "control:noise"})
    (True, False)
    """
    return not str(entry["model"]).startswith("control:")


def _total(shares: Iterable[Share]) -> Share:
    """Sums; what is unknown of one is unknown of all."""
    listed = list(shares)

    def added(numbers: list[float | None]) -> float | None:
        known = [number for number in numbers if number is not None]
        return sum(known) if len(known) == len(numbers) else None

    return Share(
        "",
        "",
        sum(share.passes for share in listed),
        added([share.hours for share in listed]),
        added([share.gigabytes for share in listed]),
    )


def _line(name: str, share: Share) -> str:
    """One line: what is not known is said so.

    Examples
    --------
    >>> _line("uni", Share("", "", 120_000, 2.5, None))
    'uni: 120,000 passes, 2.5 h, size on disk not known yet'
    """
    hours = _shown(share.hours, "h") or "hours not known yet"
    disk = _shown(share.gigabytes, "GB") or "size on disk not known yet"
    return f"{name}: {share.passes:,} passes, {hours}, {disk}"


def _shown(number: float | None, unit: str) -> str:
    """Two digits and no more than hundredths; empty for what is not known."""
    if number is None:
        return ""
    if number < _LEAST:
        return f"less than {_LEAST} {unit}"
    return f"{number:,.0f} {unit}" if number >= 10 else f"{number:.2g} {unit}"
