"""What the page on troubleshooting quotes is what the program says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    row.split("`")[1] for row in PAGE.splitlines() if row.startswith("| `") and row.count("|") == 4
]


@pytest.fixture(scope="module")
def asserted() -> str:
    """Every text in the tests of this folder, without the signs that make it a pattern."""
    found = []
    for path in sorted(Path(__file__).parent.glob("test_bad_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = (part.value for part in ast.walk(tree) if isinstance(part, ast.Constant))
        found += [re.sub(r"\\(.)", r"\1", text) for text in constants if isinstance(text, str)]
    return "\n".join(found)


def test_the_page_has_a_table_of_messages():
    assert len(QUOTED) >= 40
    assert len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_one_that_a_test_has_seen(message, asserted):
    for part in message.split("…"):
        assert part.strip() in asserted
