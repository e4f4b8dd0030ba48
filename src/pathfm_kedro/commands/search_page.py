"""One HTML file of a search: the query, the slides that were found, and the tiles that match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin:0}
article{border-top:1px solid #ccc;padding:1rem 0;display:flex;gap:1.5rem;flex-wrap:wrap}
figure{margin:0}figcaption{font-size:.8rem;color:#555}
.pairs{display:flex;gap:1rem;flex-wrap:wrap}.pair{display:flex;gap:2px}
.pair img{width:112px;height:112px}.none{color:#777;font-size:.85rem;max-width:16rem}
dl{display:grid;grid-template-columns:auto 1fr;gap:0 .8rem;margin:.3rem 0}dt{color:#555}dd{margin:0}
"""
#: Nothing is fetched and nothing runs: pictures are in the file.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
    articles = "\n".join(
        _article(f"{rank}. {slide.name}", slide) for rank, slide in enumerate(found, 1)
    )
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{_facts(about)}\n"
        f"{_article(query.name, query)}\n{articles}\n"
        "<p class='none'>For research. In each pair the query's tile stands on the left.</p>\n"
        "</body></html>\n"
    )


def _article(heading: str, slide: ShownSlide) -> str:
    pairs = "".join(
        f"<figure><div class='pair'>{_image(pair.query)}{_image(pair.match)}</div>"
        f"<figcaption>cosine {pair.similarity:.2f}</figcaption></figure>"
        for pair in slide.pairs
    )
    return (
        f"<article><figure>{_image(slide.thumbnail)}</figure><div><h2>{escape(heading)}</h2>"
        f"{_facts(slide.facts)}<div class='pairs'>{pairs}</div></div></article>"
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _image(picture: Picture) -> str:
    if picture.pixels is None:
        return f"<span class='none'>no picture: {escape(picture.reason)}</span>"
    from pathfm_kedro.slides.thumbnails import jpeg_source

    return f"<img alt='' src='{jpeg_source(picture.pixels)}'>"
