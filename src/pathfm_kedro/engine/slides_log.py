"""One line per slide in a file: what was done, how long it took, and why it failed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)
#: ``conf/logging.yml`` sends it to a file and to nothing else. Where nothing is configured, as in a
#: script, its lines go nowhere: they are below the level of warnings.
slides_logger = logging.getLogger("pathfm_kedro.slides_log")

#: The columns after the time.
COLUMNS = ("stage", "slide", "status", "tiles", "seconds", "reason")


@dataclass(frozen=True)
class Note:
    """What a job's result means to the progress bar and the log.

    Attributes
    ----------
    tiles
        Tiles that the result stands for; 0 where the job is about none.
    computed
        False where an earlier result was found and taken.
    reason
        Why a slide cannot be used, where the job found that out without failing.
    """

    tiles: int = 0
    computed: bool = True
    reason: str = ""

    @property
    def status(self) -> str:
        """``computed``, ``linked`` or ``failed``."""
        if self.reason:
            return "failed"
        return "computed" if self.computed else "linked"


def slide_of(item: object) -> str:
    """What a job is about: its slide_id, else its path; of a tuple, its first part.

    Examples
    --------
    >>> slide_of(({"slide_id": "S-1"}, "tiles"))
    'S-1'
    """
    if isinstance(item, tuple) and item:
        item = item[0]
    if isinstance(item, Mapping):
        return str(item.get("slide_id", ""))
    return str(getattr(item, "slide_id", None) or getattr(item, "path", None) or item)


def escaped(text: str) -> str:
    r"""Text on one line, its line breaks, tabs and other control characters written out.

    A slide's id comes from a manifest and a reason from a file: neither may begin a line of its own,
    colour a terminal or turn the direction of writing. What is escaped can be read back.

    Examples
    --------
    >>> escaped("S-1 µ\n2026 forged")
    'S-1 µ\\n2026 forged'
    """
    return "".join(
        letter
        if letter.isprintable() and letter != "\\"
        else letter.encode("unicode_escape").decode("ascii")
        for letter in text
    )


def line_of(stage: str, slide: str, note: Note, seconds: float) -> str:
    r"""The columns of one slide, separated by tabs.

    Examples
    --------
    >>> line_of("embedding with uni", "S-1", Note(tiles=256), 8.25).split("\t")
    ['embedding with uni', 'S-1', 'computed', '256', '8.25', '']
    """
    cells = (stage, slide, note.status, str(note.tiles), f"{seconds:.2f}", note.reason)
    return "\t".join(escaped(cell) for cell in cells)


def log_slide(stage: str, slide: str, note: Note, seconds: float) -> None:
    """Write a slide's line."""
    if slides_logger.isEnabledFor(logging.INFO):
        slides_logger.info("%s", line_of(stage, slide, note, seconds))


def prepare_log() -> None:
    """Make the log's folder; where it cannot be written, say so once and do without.

    Python's logging would print a traceback for every slide.
    """
    for handler in list(slides_logger.handlers):
        if not isinstance(handler, logging.FileHandler):
            continue
        path = Path(handler.baseFilename)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("a").close()
        except OSError as error:
            slides_logger.removeHandler(handler)
            logger.warning("no log of slides: %s cannot be written (%s)", path, error.strerror)
