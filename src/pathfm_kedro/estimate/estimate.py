"""What an audit will take, before it is run: passes, hours on this machine, gigabytes on disk.

A pass is one tile, or one changed tile, through the network. A step of an attack or of training is
three: forward, and back at twice the cost. Hours come from the recorded cost of an encoder, else from
its runtime's trial, else from a trial made now; statistics (neighbours, permutations, probes on
vectors, and so label budgets) are not in them. Of training that may end early all epochs are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pathfm_kedro.cohorts import harmonised_bases
from pathfm_kedro.encoders import EncoderSpec
from pathfm_kedro.encoders.presets import expanded
from pathfm_kedro.estimate.passes import attacks_on, work_on_pixels
from pathfm_kedro.estimate.sizes import CohortSize
from pathfm_kedro.estimate.speed import Speed
from pathfm_kedro.estimate.training import RivalWork, pixels_of_arms, work_of_arms, work_of_rival

_FLOAT32 = 4
#: Hours and gigabytes below are not distinguished.
_LEAST = 0.01
#: Models of which there are vectors already.
_FILES = "features:"
_VECTORS_ALONE = ("harmonised:", _FILES)
#: Small networks that are trained for arms and are no encoder of the cohort.
ARMS = "networks of arms"
_TRAINED = "trained:"


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
    ran = encoders_run(parameters)
    return [
        *(share for name in ran for share in _of_encoder(name, ran, parameters, size, speeds)),
        *_of_variants(ran, parameters, size, speeds),
        *(_of_arms(parameters, size, speeds) if ran else ()),
    ]


def _of_encoder(
    name: str,
    ran: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Any],
    size: CohortSize,
    speeds: Mapping[str, Speed],
) -> Iterator[Share]:
    """What it embeds; of one that is trained on the cohort first its training."""
    entry, speed = ran[name], speeds.get(name, Speed())
    trained = _trained(name, entry, size)
    if trained.passes:
        hours = _hours(trained.passes, speed, parameters)
        yield Share(name, "training", trained.passes, hours, trained.pixel_bytes / 1e9)
    others = [n for n, other in ran.items() if n != name and _shows_others(other)]
    for work in work_on_pixels(parameters, size, len(others), is_timed(entry)):
        yield _share(name, entry, work, trained.audited, speed, parameters)


def _trained(name: str, entry: Mapping[str, Any], size: CohortSize) -> RivalWork:
    """What an encoder takes before it embeds; nothing where it is not trained on the cohort."""
    if not str(entry["model"]).startswith(_TRAINED):
        return RivalWork(0, 0, 1.0)
    return work_of_rival(size.table, EncoderSpec.from_parameters(name, entry))


def _share(
    name: str,
    entry: Mapping[str, Any],
    work: tuple[str, int, int, int],
    audited: float,
    speed: Speed,
    parameters: Mapping[str, Any],
) -> Share:
    """What work on a share of the cohort takes."""
    experiment, whole, numbers, pixels = work
    passes, vectors = round(whole * audited), round(numbers * audited)
    stored = _gigabytes(vectors, speed)
    if stored is not None:
        stored += pixels * audited / 1e9
        if experiment == "embed":
            stored *= _bytes_over_float32(entry, parameters["embed"]["dtype"])
    return Share(name, experiment, passes, _hours(passes, speed, parameters), stored)


def _of_variants(
    ran: Mapping[str, Mapping[str, Any]],
    parameters: Mapping[str, Any],
    size: CohortSize,
    speeds: Mapping[str, Speed],
) -> Iterator[Share]:
    """Attacks on harmonised variants, through the network of the encoder whose vectors they take."""
    sources = sum(map(_shows_others, ran.values()))
    for name, base in _attacked_variants(parameters, ran).items():
        entry = ran[base]
        audited = _trained(base, entry, size).audited
        work = attacks_on(parameters, size, sources, is_timed(entry), universal=False)
        yield _share(name, entry, work, audited, speeds.get(base, Speed()), parameters)


def _attacked_variants(
    parameters: Mapping[str, Any], ran: Mapping[str, Mapping[str, Any]]
) -> dict[str, str]:
    """Of each harmonised variant that is attacked the encoder that it is attacked through."""
    if not parameters["adversarial"]["harmonised"]:
        return {}
    return {
        name: base for name, base in harmonised_bases(entries_of(parameters)).items() if base in ran
    }


def _bytes_over_float32(entry: Mapping[str, Any], dtype: str) -> float:
    """Bytes of a tile's vector and patch tokens over those of a float32 vector.

    Examples
    --------
    >>> _bytes_over_float32({"patch_tokens": 4}, "float16")
    2.5
    """
    # A token is taken to be as wide as the vector.
    return (0.5 if dtype == "float16" else 1.0) + (entry.get("patch_tokens") or 0) / 2


def _shows_others(entry: Mapping[str, Any]) -> bool:
    """Whether tiles that are made against an encoder are shown to the others."""
    return entry.get("role") != "control" and not str(entry["model"]).startswith(_TRAINED)


def _of_arms(
    parameters: Mapping[str, Any], size: CohortSize, speeds: Mapping[str, Speed]
) -> Iterator[Share]:
    """What is trained to compare ways of training, of the cohort's encoders and of small networks."""
    yield Share(ARMS, "arm_tiles", 0, 0.0, pixels_of_arms(parameters, size.table) / 1e9)
    for work in work_of_arms(parameters, size.table):
        small, speed = work.network.startswith(_TRAINED), speeds.get(work.network, Speed())
        if speed.seconds is not None and not small and work.side is not None:
            # Work goes with the area of the input.
            entry = entries_of(parameters)[work.network]
            own = entry.get("input_pixels") or parameters["tile"]["pixels"]
            speed = replace(speed, seconds=speed.seconds * (work.side / int(own)) ** 2)
        yield Share(
            ARMS if small else work.network,
            work.experiment,
            work.passes,
            _hours(work.passes, speed, parameters),
            _gigabytes(work.vectors, speed),
        )


def networks_of_arms(parameters: Mapping[str, Any], size: CohortSize) -> tuple[str, ...]:
    """Small networks that arms train, as a model of an entry; none where there are no pixels."""
    if not encoders_run(parameters):
        return ()
    names = (work.network for work in work_of_arms(parameters, size.table) if work.passes)
    return tuple(dict.fromkeys(name for name in names if name.startswith(_TRAINED)))


def _hours(passes: int, speed: Speed, parameters: Mapping[str, Any]) -> float | None:
    if speed.seconds is None:
        return None
    workers = int(parameters["engine"]["workers"]) or os.cpu_count() or 1
    return passes * speed.seconds / (1 if speed.device == "cuda" else workers) / 3600


def _gigabytes(vectors: int, speed: Speed) -> float | None:
    return None if speed.dimension is None else vectors * speed.dimension * _FLOAT32 / 1e9


def entries_of(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Encoders of the cohort with what their presets stand for: null leaves one out."""
    return {k: expanded(k, v) for k, v in parameters["encoders"].items() if v is not None}


def encoders_run(parameters: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Encoders of the cohort that are shown pixels: not those of which there are vectors in files."""
    if parameters["cohort"]["source"] == "features":
        return {}
    entries = entries_of(parameters)
    return {k: v for k, v in entries.items() if not str(v["model"]).startswith(_VECTORS_ALONE)}


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
    read = [n for n, e in entries_of(parameters).items() if str(e["model"]).startswith(_FILES)]
    lines += [f"{', '.join(read)}: vectors are read from files"] if read else []
    shares = estimate(parameters, size, speeds)
    ran = encoders_run(parameters)
    run_by = {name: name for name in ran} | _attacked_variants(parameters, ran)
    audited = [name for name, network in run_by.items() if is_timed(ran[network])]
    for name in audited:
        own = [share for share in shares if share.encoder == name]
        lines.append(f"{_line(name, _total(own))}; {speeds.get(run_by[name], Speed()).basis}")
        if by_experiment:
            lines += [f"  {_line(share.experiment, share)}" for share in own]
    if len(audited) > 1:
        lines.append(_line("together", _total(s for s in shares if s.encoder in audited)))
    trained = [share for share in shares if share.encoder == ARMS]
    if trained:
        lines.append(f"{_line(ARMS, _total(trained))}; {_basis_of_arms(speeds)}")
        if by_experiment:
            lines += [f"  {_line(share.experiment, share)}" for share in trained]
    controls = [share for share in shares if share.encoder not in (*audited, ARMS)]
    if controls:
        passes = sum(share.passes for share in controls)
        lines.append(f"controls: {passes:,} passes without a network, not timed")
    return lines


def _basis_of_arms(speeds: Mapping[str, Speed]) -> str:
    known = (speed.basis for network, speed in speeds.items() if network.startswith(_TRAINED))
    return next(known, Speed().basis)


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
