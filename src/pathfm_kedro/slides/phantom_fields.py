"""Random fields and point patterns from which the phantom's tissue is built."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Map = NDArray[Any]


def noise(size: int, length: float, rng: np.random.Generator) -> Map:
    """Smooth noise of unit variance at its knots, `length` pixels apart; [size, size]."""
    knots = max(int(np.ceil(size / max(length, 1.0))), 1) + 1
    return enlarge(rng.standard_normal((knots, knots)).astype(np.float32), size, smooth=True)


def enlarge(image: Map, size: int, smooth: bool = False) -> Map:
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
    right: Map = rows.take(high, axis=1)
    right -= left
    right *= share
    right += left
    return right


def smoothstep(values: Map, low: float, high: float) -> Map:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((values - np.float32(low)) / np.float32(max(high - low, 1e-6)), 0, 1)
    eased: Map = t * t * (3 - 2 * t)
    return eased


def scatter(spacing: float, size: int, rng: np.random.Generator) -> Map:
    """A jittered grid of points over the map, [n, 2]."""
    grid = -(-size // max(int(spacing), 1)) + 1
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    points = np.stack([rows.ravel(), columns.ravel()], axis=1) + rng.uniform(0, 1, (grid**2, 2))
    return _on_map(points * spacing, size)


def _on_map(points: Map, size: int) -> Map:
    """The points [n, 2] that lie on a map as float32, which may round one up to its edge."""
    rounded = points.astype(np.float32)
    return rounded[(rounded < size).all(axis=1)]


def worley(
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
        v = v + np.float32(wobble) * noise(half, 0.17 * spacing, rng)
        u = u + np.float32(wobble) * noise(half, 0.17 * spacing, rng)
    turn = rng.uniform(0, np.pi) if stretch > 1 else 0.0
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    v, u = cos * v + sin * u, (cos * u - sin * v) / np.float32(stretch)
    near, second, toward = _two_nearest(v, u, jitter)
    place = (np.arange(size) // 2)[:, None], (np.arange(size) // 2)[None, :]
    rows, columns = np.meshgrid(np.arange(grid), np.arange(grid), indexing="ij")
    points = np.stack([(rows + jitter[0]).ravel(), (columns + jitter[1]).ravel()], 1) * spacing
    points = _on_map(points, size)
    gap = enlarge(second - near, size)
    return enlarge(near, size), gap, toward[place] + np.float32(turn), points


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


def fibres_along(flow: Map, wavelength: float, size: int, rng: np.random.Generator) -> Map:
    """Wavy bundles along the flow, in [-1, 1]."""
    heading = float(flow.mean())
    axis = np.arange(size, dtype=np.float32)
    across = np.cos(heading) * axis[:, None] - np.sin(heading) * axis[None, :]
    bend = 3.0 * noise(size, 8 * wavelength, rng) + 1.1 * noise(size, 1.5 * wavelength, rng)
    phase = (2 * np.pi / wavelength * across).astype(np.float32) + bend
    bundles: Map = np.sin(phase) * (0.65 + 0.35 * noise(size, 4 * wavelength, rng))
    return bundles
