"""One HTML file of a search: the query, the slides that were found, and the tiles that match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pathfm_kedro.pipelines.report.templates import template
from pathfm_kedro.slides.readers import Pixels
from pathfm_kedro.slides.thumbnails import jpeg_source


@dataclass(frozen=True)
class Picture:
    """A picture, or why there is none.

    Attributes
    ----------
    pixels
        uint8 [height, width, 3]; None where the slide cannot be read.
    reason
        Why.
    """

    pixels: Pixels | None
    reason: str = ""

    @property
    def source(self) -> str:
        """The picture itself: it is in the file."""
        assert self.pixels is not None
        return jpeg_source(self.pixels)


@dataclass(frozen=True)
class ShownPair:
    """Two tiles side by side."""

    query: Picture
    match: Picture
    similarity: float


@dataclass(frozen=True)
class ShownSlide:
    """A slide as a person sees it.

    Attributes
    ----------
    name
        Its slide_id.
    facts
        What is shown of it, in order.
    thumbnail
        The whole slide.
    pairs
        Tiles that match the query's; empty for the query.
    """

    name: str
    facts: Sequence[tuple[str, str]]
    thumbnail: Picture
    pairs: Sequence[ShownPair] = ()


def render_page(
    title: str, about: Sequence[tuple[str, str]], query: ShownSlide, found: Sequence[ShownSlide]
) -> str:
    """The page; every text that comes from data is escaped.

    Parameters
    ----------
    title
        Heading.
    about
        How it was searched, as name and value.
    query, found
        The slides.
    """
    return template("commands/search.html").render(
        title=title, about=about, query=query, found=found
    )
