"""What the phantom's tissue looks like, before any stain: where haematoxylin and eosin would go."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Pattern = Literal["clear", "gland", "papillary", "round", "spindle", "squamous"]
Map = NDArray[np.float32]

#: Architecture (glands, cells, fibres) is drawn at half resolution: its edges are softer than that.
_STEP = 2
#: Mean and spread of both stains over tissue; equal for all classes so that colour stays silent
#: about the class. Close to what the patterns give before matching, so that matching is gentle.
_TARGET_H = (0.42, 0.40)
_TARGET_E = (0.40, 0.17)
#: Largest relative change of a quantity between patients, and between tiles of one patient. Small
#: beside the differences between classes, so that the drawn truth never confuses two classes.
_PATIENT_SPREAD = 0.06
_TILE_SPREAD = 0.04
#: Wavelengths of the change within a slide, in micrometres: tiles differ, neighbours less so.
_TILE_WAVELENGTH_UM = (300.0, 900.0)


@dataclass(frozen=True)
class Morphology:
    """The drawn form of one tissue: everything that separates classes, nothing of colour.

    Attributes
    ----------
    pattern
        How cells are arranged.
    nuclear_um, axis_ratio, pleomorphism
        Mean nuclear diameter (micrometres), long over short axis, SD of the log diameter.
    spacing_um
        Distance between neighbouring nuclei, micrometres.
    coherence
        1: all nuclei follow the local direction; 0: none does.
    structure_um
        Size of a gland, frond or cell, micrometres.
    opening
        Share of a structure without stain: lumen, cleared cytoplasm, space between fronds.
    fibre_um, fibre
        Wavelength of the fibre texture in micrometres, and its strength in [0, 1].
    """

    pattern: Pattern
    nuclear_um: float
    axis_ratio: float
    pleomorphism: float
    spacing_um: float
    coherence: float
    structure_um: float
    opening: float
    fibre_um: float
    fibre: float


ARCHETYPES: dict[Pattern, Morphology] = {
    "clear": Morphology("clear", 6.0, 1.1, 0.08, 17.0, 0.1, 17.0, 0.60, 9.0, 0.2),
    "papillary": Morphology("papillary", 7.0, 1.4, 0.10, 8.0, 0.8, 46.0, 0.20, 7.0, 0.4),
    "gland": Morphology("gland", 7.5, 1.9, 0.12, 8.5, 0.9, 70.0, 0.40, 6.0, 0.7),
    "squamous": Morphology("squamous", 10.5, 1.3, 0.22, 19.0, 0.2, 19.0, 0.05, 11.0, 0.3),
    "spindle": Morphology("spindle", 8.0, 3.4, 0.15, 11.0, 0.95, 120.0, 0.02, 5.0, 1.0),
    "round": Morphology("round", 5.5, 1.05, 0.05, 8.5, 0.0, 90.0, 0.05, 8.0, 0.1),
}

#: A label that holds one of these words is drawn as that pattern; others take what is left.
_WORDS: dict[str, Pattern] = {
    "clear": "clear",
    "papil": "papillary",
    "adeno": "gland",
    "gland": "gland",
    "squam": "squamous",
    "spindle": "spindle",
    "sarcoma": "spindle",
    "lymph": "round",
    "round": "round",
}

#: Quantities that differ by factors between classes are compared as logarithms.
_LOG = ("nuclear_um", "axis_ratio", "spacing_um", "structure_um", "fibre_um")
_LINEAR = ("pleomorphism", "coherence", "opening", "fibre")
_QUANTITIES = _LOG + _LINEAR


def assign_patterns(labels: Iterable[str]) -> dict[str, Pattern]:
    """Give each label a pattern of its own, by its name where the name says one.

    Parameters
    ----------
    labels
        At most six distinct labels; the order does not matter.

    Raises
    ------
    ValueError
        If there are more labels than patterns.

    Examples
    --------
    >>> assign_patterns(["kidney_clear", "tumour"])
    {'kidney_clear': 'clear', 'tumour': 'gland'}
    """
    names = sorted(labels)
    free: list[Pattern] = sorted(get_args(Pattern))
    if len(names) > len(free):
        raise ValueError(
            f"labels: {len(names)} labels, but the phantom draws {len(free)} distinct tissues "
            f"({', '.join(free)}); name at most {len(free)}"
        )
    chosen: dict[str, Pattern] = {}
    for name in names:
        said = next((p for word, p in _WORDS.items() if word in name.lower() and p in free), None)
        if said:
            chosen[name] = said
            free.remove(said)
    for name in names:
        if name not in chosen:
            chosen[name] = free.pop(0)
    return {name: chosen[name] for name in names}


def patient_morphology(pattern: Pattern, rng: np.random.Generator) -> Morphology:
    """The class's morphology with one patient's own bounded deviation.

    Examples
    --------
    >>> one = patient_morphology("gland", np.random.default_rng(0))
    >>> one.pattern, abs(one.nuclear_um / 7.5 - 1) < 0.1
    ('gland', True)
    """
    base = ARCHETYPES[pattern]
    drawn = rng.uniform(-_PATIENT_SPREAD, _PATIENT_SPREAD, len(_QUANTITIES))
    own = {
        name: round(getattr(base, name) * math.exp(change), 6)
        for name, change in zip(_QUANTITIES, drawn, strict=True)
    }
    return replace(base, **{**own, "coherence": min(own["coherence"], 1.0)})


def as_description(morphology: Morphology, seed: int) -> dict[str, Any]:
    """What `truth_vector` needs to know of a slide, ready for JSON."""
    return {"morphology": asdict(morphology), "seed": seed}


def truth_vector(description: Mapping[str, Any], x_um: float, y_um: float) -> Map:
    """The drawn morphology at one place as a standardised vector.

    One entry per quantity, standardised over the six archetypes (logarithms for sizes), followed by
    one entry per pattern (+1 for the slide's own, -1 otherwise). The quantities hold the class's
    value, the patient's deviation and the drawn change at this place.

    Parameters
    ----------
    description
        Of one slide, from `as_description`.
    x_um, y_um
        The place on the slide, micrometres from its upper left corner.

    Returns
    -------
    ndarray
        float32 [15].
    """
    form = Morphology(**description["morphology"])
    change = local_change(description["seed"], np.float32(x_um), np.float32(y_um))
    all_forms = np.array([_quantities(other) for other in ARCHETYPES.values()])
    place = _quantities(form) + _relative_step(form, change)
    scaled = (place - all_forms.mean(axis=0)) / all_forms.std(axis=0)
    kind = np.where(np.array(list(ARCHETYPES)) == form.pattern, 1.0, -1.0)
    return np.concatenate([scaled, kind]).astype(np.float32)


def local_change(seed: int, x_um: Any, y_um: Any) -> Map:
    """Smooth relative change of each quantity over a slide, bounded by 4%.

    Parameters
    ----------
    seed
        The slide's own seed.
    x_um, y_um
        Places, micrometres, arrays of one shape [...].

    Returns
    -------
    ndarray
        float32 [9, ...]: one plane wave per quantity.
    """
    rng = np.random.default_rng(seed)
    n = len(_QUANTITIES)
    shape = (n,) + (1,) * np.ndim(x_um)
    heading = rng.uniform(0, 2 * np.pi, n).reshape(shape)
    wave = 2 * np.pi / rng.uniform(*_TILE_WAVELENGTH_UM, n).reshape(shape)
    phase = rng.uniform(0, 2 * np.pi, n).reshape(shape)
    along = np.cos(heading) * x_um + np.sin(heading) * y_um
    return (_TILE_SPREAD * np.sin(wave * along + phase)).astype(np.float32)


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
    parts = _architecture(morphology, coarse, unit, rng)
    nuclei = _draw_nuclei(morphology, parts, mask, seed, size_px, mpp, rng)
    tissue = _enlarge(mask, size_px)
    stained = mask * (1 - parts.opening)
    eosin = _enlarge(parts.eosin * stained, size_px) * (1 - np.float32(0.5) * nuclei)
    stained = _enlarge(stained, size_px)
    return Tissue(
        haematoxylin=_match(nuclei * tissue, stained, tissue, *_TARGET_H),
        eosin=_match(eosin, stained, tissue, *_TARGET_E),
    )


def _quantities(form: Morphology) -> NDArray[np.float64]:
    logs = [math.log(getattr(form, name)) for name in _LOG]
    return np.array(logs + [getattr(form, name) for name in _LINEAR])


def _relative_step(form: Morphology, change: Map) -> NDArray[np.float64]:
    """A relative change, in the scale in which `_quantities` holds each quantity."""
    scale = [1.0] * len(_LOG) + [getattr(form, name) for name in _LINEAR]
    return np.asarray(change, dtype=np.float64) * np.array(scale)


@dataclass(frozen=True)
class _Architecture:
    """Maps at half resolution, and where nuclei may lie."""

    eosin: Map
    opening: Map
    #: Chance that a candidate nucleus is kept, epithelium and stroma apart.
    epithelial: Map
    stromal: Map
    #: Direction of the long axis of nuclei, radians.
    direction: Map
    flow: Map
    #: Candidate epithelial nuclei, pixels at half resolution [n, 2] (row, column).
    candidates: Map


def _architecture(
    form: Morphology, size: int, unit: float, rng: np.random.Generator
) -> _Architecture:
    flow = _flow(size, unit, rng)
    fibres = 1 + form.fibre * 0.4 * _fibres(flow, form.fibre_um / unit, size, rng)
    fibres = fibres + np.float32(0.10) * rng.standard_normal((size, size), dtype=np.float32)
    septa = 1 - _smoothstep(np.abs(_noise(size, 90 / unit, rng)), 0.08, 0.14)
    draw = {"gland": _glands, "papillary": _fronds}.get(form.pattern, _sheet)
    if form.pattern in ("clear", "squamous"):
        draw = _cells
    return draw(form, size, unit, flow, fibres, septa, rng)


def _glands(
    form: Morphology,
    size: int,
    unit: float,
    flow: Map,
    fibres: Map,
    septa: Map,
    rng: np.random.Generator,
) -> _Architecture:
    """Rings of tall cells around a lumen, in fibrous stroma."""
    near, gap, toward, _ = _worley(form.structure_um / unit, size, rng, wobble=0.09)
    outside = np.maximum(1 - _smoothstep(gap, 0.10, 0.16), _smoothstep(near, 0.46, 0.50))
    lumen = 1 - _smoothstep(near, 0.38 * form.opening, 0.38 * form.opening + 0.05)
    wall = _smoothstep(near, 0.24, 0.28) * (1 - outside)
    return _Architecture(
        eosin=0.75 * (1 - outside) + outside * fibres,
        opening=0.9 * lumen * (1 - outside),
        epithelial=wall,
        stromal=0.3 * outside,
        direction=toward,
        flow=flow,
        candidates=_scatter(form.spacing_um / unit, size, rng),
    )


def _fronds(
    form: Morphology,
    size: int,
    unit: float,
    flow: Map,
    fibres: Map,
    septa: Map,
    rng: np.random.Generator,
) -> _Architecture:
    """Long fronds with a fibrous core, lined by nuclei, with space between them."""
    near, gap, toward, _ = _worley(form.structure_um / unit, size, rng, wobble=0.22, stretch=2.6)
    space = 1 - _smoothstep(gap, 0.28 * form.opening, 0.28 * form.opening + 0.08)
    lining = _smoothstep(gap, 0.12, 0.16) * (1 - _smoothstep(gap, 0.42, 0.46))
    core = _smoothstep(gap, 0.48, 0.55)
    return _Architecture(
        eosin=0.75 + core * (fibres - 0.85),
        opening=0.95 * space,
        epithelial=lining,
        stromal=0.8 * core,
        direction=toward,
        flow=flow,
        candidates=_scatter(form.spacing_um / unit, size, rng),
    )


def _cells(
    form: Morphology,
    size: int,
    unit: float,
    flow: Map,
    fibres: Map,
    septa: Map,
    rng: np.random.Generator,
) -> _Architecture:
    """A pavement of cells with visible borders, one nucleus each, cut by fibrous septa."""
    _, gap, _, points = _worley(form.structure_um / unit, size, rng, wobble=0.0)
    border = 1 - _smoothstep(gap, 0.10, 0.24)
    body = 1 - septa
    whorls = np.maximum(0, _noise(size, 60 / unit, rng) - 0.9) if form.opening < 0.3 else 0.0
    return _Architecture(
        eosin=body * (0.7 + 0.7 * border + whorls) + septa * fibres,
        opening=form.opening * body * (1 - border),
        epithelial=0.97 * body,
        stromal=0.5 * septa,
        direction=flow,
        flow=flow,
        candidates=points,
    )


def _sheet(
    form: Morphology,
    size: int,
    unit: float,
    flow: Map,
    fibres: Map,
    septa: Map,
    rng: np.random.Generator,
) -> _Architecture:
    """Nuclei without cell borders: fascicles along the fibres, or dense small cells."""
    patches = _noise(size, form.structure_um / unit, rng)
    return _Architecture(
        eosin=(0.8 + 0.1 * patches) * fibres,
        opening=form.opening * _smoothstep(patches, 1.2, 1.8),
        epithelial=0.9 * (1 - septa),
        stromal=0.3 * septa,
        direction=flow,
        flow=flow,
        candidates=_scatter(form.spacing_um / unit, size, rng),
    )


def _draw_nuclei(
    form: Morphology,
    parts: _Architecture,
    mask: Map,
    seed: int,
    size_px: int,
    mpp: float,
    rng: np.random.Generator,
) -> Map:
    """Haematoxylin of all nuclei, [size_px, size_px], about 1 inside a nucleus."""
    lining = _keep(parts.candidates, parts.epithelial * (mask > 0.5), rng)
    spread = _scatter(14.0 / (mpp * _STEP), len(mask), rng)
    stroma = _keep(spread, parts.stromal * (mask > 0.5), rng)
    at = np.concatenate([lining, stroma])
    first = np.arange(len(at)) < len(lining)
    row, column = at.astype(int).T
    change = local_change(seed, at[:, 1] * mpp * _STEP, at[:, 0] * mpp * _STEP)
    loose = (1 - form.coherence) * np.pi / 2
    angle = np.where(first, parts.direction[row, column], parts.flow[row, column])
    angle = angle + np.where(first, loose, 0.2) * rng.uniform(-1, 1, len(at))
    mean = np.where(first, form.nuclear_um * np.exp(change[0]), 6.0)
    sizes = np.exp(np.clip(rng.standard_normal(len(at)), -2, 2) * form.pleomorphism)
    ratio = np.where(first, form.axis_ratio * np.exp(change[1]), 3.0)
    return _stamp(at * _STEP, mean * sizes / mpp, ratio, angle, size_px, rng)


def _stamp(
    at: Map,
    diameter: NDArray[np.float64],
    ratio: NDArray[np.float64],
    angle: NDArray[np.float64],
    size_px: int,
    rng: np.random.Generator,
) -> Map:
    """Soft ellipses, the darkest wins where they overlap."""
    canvas = np.zeros(size_px * size_px, dtype=np.float32)
    if not len(at):
        return canvas.reshape(size_px, size_px)
    long = (diameter * np.sqrt(ratio) / 2).astype(np.float32)
    short = (diameter / np.sqrt(ratio) / 2).astype(np.float32)
    dark = rng.uniform(0.75, 1.0, len(at)).astype(np.float32)
    reach = np.ceil(long + 1).astype(int)
    # Nuclei of like size share an array, so that one large nucleus does not widen all patches.
    edges = np.unique(np.quantile(reach, (0.5, 0.9, 1.0), method="higher"))
    bins = np.searchsorted(edges, reach)
    for which, half in enumerate(edges):
        some = bins == which
        _stamp_group(canvas, at[some], long[some], short[some], angle[some], dark[some], int(half))
    return canvas.reshape(size_px, size_px)


def _stamp_group(
    canvas: Map,
    at: Map,
    long: Map,
    short: Map,
    angle: NDArray[np.float64],
    dark: Map,
    half: int,
) -> None:
    size_px = math.isqrt(len(canvas))
    offset = np.arange(-half, half + 1, dtype=np.int32)
    centre = np.floor(at).astype(np.int32)
    row = centre[:, :1] + offset
    column = centre[:, 1:] + offset
    dy = (row - at[:, :1]).astype(np.float32)[:, :, None]
    dx = (column - at[:, 1:]).astype(np.float32)[:, None, :]
    cos, sin = (f(angle).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
    along, across = long[:, None, None], short[:, None, None]
    u = (dx * cos + dy * sin) / along
    v = (dy * cos - dx * sin) / across
    depth = (1 - np.sqrt(u * u + v * v)) * across
    value = dark[:, None, None] * np.clip(depth / 1.5 + 0.5, 0, 1)
    inside = ((row >= 0) & (row < size_px))[:, :, None] & ((column >= 0) & (column < size_px))[
        :, None, :
    ]
    hit = inside & (value > 0)
    index = row[:, :, None] * size_px + column[:, None, :]
    np.maximum.at(canvas, index[hit], value[hit])


def _keep(points: Map, chance: Map, rng: np.random.Generator) -> Map:
    """The points that a map of chances lets through."""
    row, column = points.astype(int).T
    return points[rng.random(len(points)) < chance[row, column]]


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
    matched = np.float32(gain) * amount
    matched += np.float32(rest) * stained
    return np.maximum(matched, 0, out=matched)


def _tissue_outline(size: int, rng: np.random.Generator) -> Map:
    """One or two irregular pieces that cover 50-62% of the slide; soft mask [size, size]."""
    axis = np.linspace(-1, 1, 128, dtype=np.float32)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    turn = rng.uniform(0, 2 * np.pi)
    apart = rng.choice([0.0, 0.38])
    score = np.maximum(*(_blob(x, y, turn, side * apart, rng) for side in (-1, 1)))
    score += 0.06 * _noise(128, 10, rng)
    # Tissue bends away from the edge of the glass and never touches it.
    score -= 4 * np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.65, 0) ** 2
    score -= 30 * np.maximum(np.maximum(np.abs(x), np.abs(y)) - 0.95, 0)
    level = np.quantile(score, 1 - rng.uniform(0.50, 0.62))
    return _smoothstep(_enlarge(score, size), level - 0.004, level + 0.004)


def _blob(x: Map, y: Map, turn: float, shift: float, rng: np.random.Generator) -> Map:
    dx, dy = x - shift * np.cos(turn), y - shift * np.sin(turn)
    around = np.arctan2(dy, dx)
    radius = np.ones_like(around)
    for harmonic in (2, 3, 5):
        phase = rng.uniform(0, 2 * np.pi)
        radius += rng.uniform(0.03, 0.12) * np.cos(harmonic * around + phase)
    return (1 - np.hypot(dx, dy) / radius).astype(np.float32)


def _worley(
    spacing: float, size: int, rng: np.random.Generator, wobble: float, stretch: float = 1.0
) -> tuple[Map, Map, Map, Map]:
    """Cells around jittered grid points (Worley 1996).

    Returns
    -------
    tuple
        Distance to the nearest point and how much farther the second is, both in units of
        `spacing`; direction towards the nearest; the points in pixels [n, 2].
    """
    grid = -(-size // max(int(spacing), 1)) + 3
    jitter = rng.uniform(0.15, 0.85, (2, grid, grid)).astype(np.float32)
    # Distances are smooth but for ridges, so they are found on half the map and interpolated.
    half = -(-size // 2)
    axis = np.linspace(0, size, half, dtype=np.float32) / np.float32(spacing)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    if wobble:
        v = v + np.float32(wobble) * _noise(half, 0.17 * spacing, rng)
        u = u + np.float32(wobble) * _noise(half, 0.17 * spacing, rng)
    turn = rng.uniform(0, np.pi) if stretch > 1 else 0.0
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    v, u = cos * v + sin * u, (cos * u - sin * v) / np.float32(stretch)
    near, second, toward = _two_nearest(v, u, jitter)
    place = (np.arange(size) // 2)[:, None], (np.arange(size) // 2)[None, :]
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    points = np.stack([(rows + jitter[0]).ravel(), (columns + jitter[1]).ravel()], 1) * spacing
    points = points[(points < size).all(axis=1)].astype(np.float32)
    gap = _enlarge(second - near, size)
    return _enlarge(near, size), gap, toward[place] + np.float32(turn), points


def _two_nearest(v: Map, u: Map, jitter: Map) -> tuple[Map, Map, Map]:
    """Distance to the nearest and the second point, and the direction towards the nearest."""
    grid = jitter.shape[1]
    cell_v, cell_u = np.floor(v).astype(np.int32), np.floor(u).astype(np.int32)
    near = np.full(v.shape, np.inf, dtype=np.float32)
    second = near.copy()
    best_v, best_u = np.zeros_like(v), np.zeros_like(v)
    for i in (-1, 0, 1):
        for j in (-1, 0, 1):
            index = ((cell_v + i) % grid) * grid + (cell_u + j) % grid
            dv = jitter[0].take(index) + (cell_v + np.float32(i)) - v
            du = jitter[1].take(index) + (cell_u + np.float32(j)) - u
            far = dv * dv + du * du
            closer = far < near
            second = np.where(closer, near, np.minimum(second, far))
            near = np.where(closer, far, near)
            best_v, best_u = np.where(closer, dv, best_v), np.where(closer, du, best_u)
    return np.sqrt(near), np.sqrt(second), np.arctan2(best_v, best_u)


def _scatter(spacing: float, size: int, rng: np.random.Generator) -> Map:
    """A jittered grid of points over the map, [n, 2]."""
    grid = -(-size // max(int(spacing), 1)) + 1
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    points = np.stack([rows.ravel(), columns.ravel()], axis=1) + rng.uniform(0, 1, (grid**2, 2))
    points = points * spacing
    return points[(points < size).all(axis=1)].astype(np.float32)


def _flow(size: int, unit: float, rng: np.random.Generator) -> Map:
    """Local direction of the tissue, radians: one direction per slide, bent smoothly."""
    turn = np.float32(rng.uniform(0, np.pi))
    return turn + np.float32(0.5) * _noise(size, 160 / unit, rng)


def _fibres(flow: Map, wavelength: float, size: int, rng: np.random.Generator) -> Map:
    """Wavy bundles along the flow, in [-1, 1]."""
    heading = float(flow.mean())
    axis = np.arange(size, dtype=np.float32)
    across = np.cos(heading) * axis[:, None] - np.sin(heading) * axis[None, :]
    bend = 3.0 * _noise(size, 8 * wavelength, rng) + 1.1 * _noise(size, 1.5 * wavelength, rng)
    phase = (2 * np.pi / wavelength * across).astype(np.float32) + bend
    return np.sin(phase) * (0.65 + 0.35 * _noise(size, 4 * wavelength, rng))


def _noise(size: int, length: float, rng: np.random.Generator) -> Map:
    """Smooth noise of unit variance at its knots, `length` pixels apart; [size, size]."""
    knots = max(int(np.ceil(size / max(length, 1.0))), 1) + 1
    return _enlarge(rng.standard_normal((knots, knots)).astype(np.float32), size, smooth=True)


def _enlarge(image: Map, size: int, smooth: bool = False) -> Map:
    """Interpolate a square map to [size, size]: linear, or eased at the knots."""
    n = len(image)
    place = np.linspace(0, n - 1, size, dtype=np.float64)
    low = np.minimum(place.astype(int), max(n - 2, 0))
    high = np.minimum(low + 1, n - 1)
    share = (place - low).astype(np.float32)
    if smooth:
        share = share * share * (3 - 2 * share)
    rows = image[low]
    rows += share[:, None] * (image[high] - rows)
    left = rows.take(low, axis=1)
    right = rows.take(high, axis=1)
    right -= left
    right *= share
    return np.add(left, right, out=right)


def _smoothstep(values: Map, low: float, high: float) -> Map:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)
    return t * t * (3 - 2 * t)
