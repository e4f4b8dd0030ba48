"""What the pages of the documentation hold: fenced blocks, commands, code within sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import PROJECT

PAGES = sorted(
    [
        *(PROJECT / "docs").glob("*.md"),
        PROJECT / "README.md",
        PROJECT / "CHANGELOG.md",
        PROJECT / "CONTRIBUTING.md",
        PROJECT / "SECURITY.md",
        PROJECT / "conf" / "README.md",
        PROJECT / "data" / "README.md",
    ]
)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(
    r"(?:^<!-- (?P<marker>[^\n]*?) -->\n+)?^(?P<indent> *)```(?P<language>\w*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, what it is, the comment before it."""

    page: str
    line: int
    language: str
    text: str
    marker: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        indent = found["indent"]
        body = "\n".join(row.removeprefix(indent) for row in found["text"].splitlines())
        name = page.relative_to(PROJECT).as_posix()
        yield Block(name, line, found["language"], body + "\n", found["marker"] or "")


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [block for block in BLOCKS if not block.language]


def spans_of(page: Path) -> Iterator[tuple[str, str]]:
    """Code within sentences, and where it stands."""
    without_blocks = FENCE.sub("", page.read_text(encoding="utf-8"))
    for span in CODE_SPAN.findall(without_blocks):
        yield span, page.relative_to(PROJECT).as_posix()


SPANS = [span for page in PAGES for span in spans_of(page)]


def commands_in(text: str) -> Iterator[list[str]]:
    """Commands of a block or a span, without comments, variables and what joins them."""
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command = command[1:]
            if command:
                yield command
