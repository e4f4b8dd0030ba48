"""Draws the phantom's tissue: where haematoxylin and eosin lie, before any center touches it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pathfm_kedro.slides.phantom_fields import (
    Map,
    enlarge,
    fibres_along,
    noise,
    scatter,
    smoothstep,
    worley,
)
from pathfm_kedro.slides.phantom_morphology import Morphology, Pattern, local_change
from pathfm_kedro.slides.phantom_nuclei import Nuclei, stamp

#: Architecture (glands, cells, fibres) is drawn at half resolution: its edges are softer than that.
_STEP = 2
#: Mean and spread of both stains over tissue; equal for all classes so that colour stays silent
#: about the class. Close to what the patterns give before matching, so that matching is gentle.
_TARGET_H = (0.42, 0.40)
_TARGET_E = (0.40, 0.17)
#: Every class holds stretches of the same stroma, wider than a tile: there only stain and scanner
#: are left to go by, so that an encoder that sees the classes can still follow the center.
_STROMA_UM = 170.0
_STROMA_SHARE = (0.25, 0.45)


@dataclass(frozen=True)
class Tissue:
    """Amounts of stain per pixel, in optical-density units; float32 [h, w] each."""

    haematoxylin: Map
    eosin: Map


def draw_tissue(
    morphology: Morphology, seed: int, size_px: int, mpp: float, rng: np.random.Generator
) -> Tissue:
    """Draw where haematoxylin and eosin lie on a slide.

    Parameters
    ----------
    morphology
        The patient's tissue.
    seed
        Seed of the change within the slide (see `local_change`).
    size_px, mpp
        Side of the slide in pixels, micrometres per pixel.
    rng
        Everything else that is drawn.
    """
    coarse = -(-size_px // _STEP)
    unit = mpp * _STEP
    mask = _tissue_outline(coarse, rng)
    ground = _ground(morphology, coarse, unit, rng)
    parts = _with_stroma(_ARRANGEMENTS[morphology.pattern](morphology, ground, rng), ground, rng)
    parts = replace(parts, epithelial=parts.epithelial * mask, stromal=parts.stromal * mask)
    epithelial = _epithelial_nuclei(morphology, parts, seed, unit, rng)
    stromal = _stromal_nuclei(parts, ground.flow, unit, rng)
    nuclei = stamp((epithelial, stromal), size_px)
    tissue = enlarge(mask, size_px)
    stained = mask * (1 - parts.opening)
    eosin = enlarge(parts.eosin * stained, size_px) * (1 - np.float32(0.5) * nuclei)
    stained = enlarge(stained, size_px)
    return Tissue(
        haematoxylin=_match(nuclei * tissue, stained, tissue, *_TARGET_H),
        eosin=_match(eosin, stained, tissue, *_TARGET_E),
    )


@dataclass(frozen=True)
class _Ground:
    """What every arrangement of cells lies on; maps at half resolution [size, size]."""

    size: int
    #: Micrometres per pixel of the maps.
    unit: float
    #: Local direction, radians.
    flow: Map
    #: Eosin of the fibre texture, about 1.
    fibres: Map
    #: 1 in thin bands of fibrous tissue.
    septa: Map


@dataclass(frozen=True)
class _Architecture:
    """Maps at half resolution, and where nuclei may lie."""

    eosin: Map
    opening: Map
    #: Chance that a candidate nucleus is kept, epithelium and stroma apart.
    epithelial: Map
    stromal: Map
    #: Direction of the long axis of epithelial nuclei, radians.
    direction: Map
    #: Candidate epithelial nuclei, pixels at half resolution [n, 2] (row, column).
    candidates: Map


def _ground(form: Morphology, size: int, unit: float, rng: np.random.Generator) -> _Ground:
    # One direction per slide, bent smoothly.
    flow = np.float32(rng.uniform(0, np.pi)) + np.float32(0.5) * noise(size, 160 / unit, rng)
    fibres = 1 + form.fibre * 0.4 * fibres_along(flow, form.fibre_um / unit, size, rng)
    fibres += np.float32(0.10) * rng.standard_normal((size, size), dtype=np.float32)
    septa = 1 - smoothstep(np.abs(noise(size, 90 / unit, rng)), 0.08, 0.14)
    return _Ground(size=size, unit=unit, flow=flow, fibres=fibres, septa=septa)


def _with_stroma(parts: _Architecture, ground: _Ground, rng: np.random.Generator) -> _Architecture:
    """Replace part of the tissue by stroma that is alike in all classes."""
    size, unit = ground.size, ground.unit
    field = noise(size, _STROMA_UM / unit, rng) + 0.4 * noise(size, _STROMA_UM / 3 / unit, rng)
    level = float(np.quantile(field[::8, ::8], 1 - rng.uniform(*_STROMA_SHARE)))
    stroma = smoothstep(field, level - 0.03, level + 0.03)
    rest = 1 - stroma
    fibres = 0.9 + 0.35 * fibres_along(ground.flow, 7.0 / unit, size, rng)
    return replace(
        parts,
        eosin=parts.eosin * rest + fibres * stroma,
        opening=parts.opening * rest,
        epithelial=parts.epithelial * rest,
        stromal=parts.stromal * rest + 0.6 * stroma,
    )


def _glands(form: Morphology, ground: _Ground, rng: np.random.Generator) -> _Architecture:
    """Rings of tall cells around a lumen, in fibrous stroma."""
    near, gap, toward, _ = worley(form.structure_um / ground.unit, ground.size, rng, wobble=0.09)
    outside = np.maximum(1 - smoothstep(gap, 0.10, 0.16), smoothstep(near, 0.46, 0.50))
    lumen = 1 - smoothstep(near, 0.38 * form.opening, 0.38 * form.opening + 0.05)
    wall = smoothstep(near, 0.24, 0.28) * (1 - outside)
    return _Architecture(
        eosin=0.75 * (1 - outside) + outside * ground.fibres,
        opening=0.9 * lumen * (1 - outside),
        epithelial=wall,
        stromal=0.3 * outside,
        direction=toward,
        candidates=scatter(form.spacing_um / ground.unit, ground.size, rng),
    )


def _fronds(form: Morphology, ground: _Ground, rng: np.random.Generator) -> _Architecture:
    """Long fronds with a fibrous core, lined by nuclei, with space between them."""
    spacing = form.structure_um / ground.unit
    _, gap, toward, _ = worley(spacing, ground.size, rng, wobble=0.22, stretch=2.6)
    space = 1 - smoothstep(gap, 0.28 * form.opening, 0.28 * form.opening + 0.08)
    lining = smoothstep(gap, 0.12, 0.16) * (1 - smoothstep(gap, 0.42, 0.46))
    core = smoothstep(gap, 0.48, 0.55)
    return _Architecture(
        eosin=0.75 + core * (ground.fibres - 0.85),
        opening=0.95 * space,
        epithelial=lining,
        stromal=0.8 * core,
        direction=toward,
        candidates=scatter(form.spacing_um / ground.unit, ground.size, rng),
    )


def _cells(form: Morphology, ground: _Ground, rng: np.random.Generator) -> _Architecture:
    """A pavement of cells with visible borders, one nucleus each, cut by fibrous septa."""
    _, gap, _, points = worley(form.structure_um / ground.unit, ground.size, rng, wobble=0.0)
    border = 1 - smoothstep(gap, 0.10, 0.24)
    body = 1 - ground.septa
    # Keratin, where the cytoplasm is not cleared.
    keratin = np.maximum(0, noise(ground.size, 60 / ground.unit, rng) - 0.9)
    keratin *= form.opening < 0.3
    return _Architecture(
        eosin=body * (0.7 + 0.7 * border + keratin) + ground.septa * ground.fibres,
        opening=form.opening * body * (1 - border),
        epithelial=0.97 * body,
        stromal=0.5 * ground.septa,
        direction=ground.flow,
        candidates=points,
    )


def _sheet(form: Morphology, ground: _Ground, rng: np.random.Generator) -> _Architecture:
    """Nuclei without cell borders: fascicles along the fibres, or dense small cells."""
    patches = noise(ground.size, form.structure_um / ground.unit, rng)
    return _Architecture(
        eosin=(0.8 + 0.1 * patches) * ground.fibres,
        opening=form.opening * smoothstep(patches, 1.2, 1.8),
        epithelial=0.9 * (1 - ground.septa),
        stromal=0.3 * ground.septa,
        direction=ground.flow,
        candidates=scatter(form.spacing_um / ground.unit, ground.size, rng),
    )


_Arrangement = Callable[[Morphology, _Ground, np.random.Generator], _Architecture]
_ARRANGEMENTS: dict[Pattern, _Arrangement] = {
    "clear": _cells,
    "gland": _glands,
    "papillary": _fronds,
    "round": _sheet,
    "spindle": _sheet,
    "squamous": _cells,
}


def _epithelial_nuclei(
    form: Morphology,
    parts: _Architecture,
    seed: int,
    unit: float,
    rng: np.random.Generator,
) -> Nuclei:
    """Nuclei of the patient's form, changed a little from place to place."""
    at = _keep(parts.candidates, parts.epithelial, rng)
    nuclear, axis, spread, coherence = local_change(seed, at[:, 1] * unit, at[:, 0] * unit)
    row, column = at.astype(int).T
    loose = np.maximum(1 - form.coherence * (1 + coherence), 0) * np.pi / 2
    sizes = form.pleomorphism * (1 + spread) * np.clip(rng.standard_normal(len(at)), -2, 2)
    return Nuclei(
        at=at * _STEP,
        diameter=form.nuclear_um * np.exp(nuclear + sizes) / unit * _STEP,
        ratio=form.axis_ratio * np.exp(axis),
        angle=parts.direction[row, column] + loose * rng.uniform(-1, 1, len(at)),
        darkness=rng.uniform(0.75, 1.0, len(at)),
    )


def _stromal_nuclei(
    parts: _Architecture, flow: Map, unit: float, rng: np.random.Generator
) -> Nuclei:
    """Thin nuclei along the fibres, alike in all classes."""
    at = _keep(scatter(14.0 / unit, len(flow), rng), parts.stromal, rng)
    row, column = at.astype(int).T
    n = len(at)
    return Nuclei(
        at=at * _STEP,
        diameter=6.0 * np.exp(0.1 * rng.uniform(-1, 1, n)) / unit * _STEP,
        ratio=np.full(n, 3.0),
        angle=flow[row, column] + 0.2 * rng.uniform(-1, 1, n),
        darkness=rng.uniform(0.75, 1.0, n),
    )


def _keep(points: Map, chance: Map, rng: np.random.Generator) -> Map:
    """The points that a map of chances lets through."""
    row, column = points.astype(int).T
    kept: Map = points[rng.random(len(points)) < chance[row, column]]
    return kept


def _match(amount: Map, stained: Map, tissue: Map, mean: float, spread: float) -> Map:
    """Scale a stain so that its mean and spread over tissue are the same for every class.

    Solves ``max(gain * amount + rest * stained, 0)`` for the two moments, on every fourth pixel of
    every fourth row.
    """
    some = tissue[::4, ::4] > 0.5
    if not some.any():
        return amount * tissue
    values, weight = amount[::4, ::4][some], stained[::4, ::4][some]
    gain, rest = 1.0, 0.0
    for _ in range(4):  # the floor at zero moves the moments a little; a few passes settle them
        now = np.maximum(gain * values + rest * weight, 0)
        gain = min(max(gain * spread / max(float(now.std()), 1e-6), 0.3), 3.0)
        now = np.maximum(gain * values + rest * weight, 0)
        rest += (mean - float(now.mean())) / max(float(weight.mean()), 1e-6)
    matched: Map = amount * np.float32(gain)
    matched += np.float32(rest) * stained
    return np.maximum(matched, np.float32(0), out=matched)


def _tissue_outline(size: int, rng: np.random.Generator) -> Map:
    """One or two irregular pieces that cover 50-62% of the slide; soft mask [size, size]."""
    axis = np.linspace(-1, 1, 128, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    turn = rng.uniform(0, 2 * np.pi)
    apart = rng.choice([0.0, 0.38])
    score = np.maximum(*(_blob(x, y, turn, side * apart, rng) for side in (-1, 1)))
    score += 0.06 * noise(128, 10, rng)
    # Tissue bends away from the edge of the glass and never touches it.
    score -= 4 * np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.65, 0) ** 2
    score -= 30 * np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.95, 0)
    level = np.quantile(score, 1 - rng.uniform(0.50, 0.62))
    return smoothstep(enlarge(score, size), level - 0.004, level + 0.004)


def _blob(x: Map, y: Map, turn: float, shift: float, rng: np.random.Generator) -> Map:
    dx, dy = x - shift * np.cos(turn), y - shift * np.sin(turn)
    around = np.arctan2(dy, dx)
    radius = np.ones_like(around)
    for harmonic in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi)
        radius += rng.uniform(0.03, 0.12) * np.cos(harmonic * around + phase)
    height: Map = (1 - np.hypot(dx, dy) / radius).astype(np.float32)
    return height
