"""The page of blinded triplets: tiles alone, answers kept in the page until they are saved."""

from __future__ import annotations

from collections.abc import Sequence

from pathfm_kedro.pipelines.report.templates import template


def render_triplets(triplets: Sequence[tuple[int, Sequence[str]]]) -> str:
    """One page that names no encoder, label, center, slide or patient.

    Parameters
    ----------
    triplets
        Number of each triplet, and the sources of its three pictures: the tile and two candidates.
    """
    return template("commands/triplets.html").render(triplets=triplets)
