"""docs/failure-tests.md names the test of every fault; here it is held to the tests there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.faults.upstream import EDIT, IN_STREAM, STATUS, STREAMED, WIRE

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "failure-tests.md"
NAMED = re.compile(r"`(?P<file>tests/[\w/]+\.py)::(?P<test>test_\w+)(?:\[(?P<fault>\w+)\])?`")
FAULTS = {*WIRE, *STATUS, *EDIT, *IN_STREAM, *STREAMED}


def rows() -> list[tuple[str, str]]:
    """(fault, tests) of every line of a table."""
    lines = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [(line[0], line[1]) for line in lines if line[0] not in ("fault", "---")]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0][:50])
def test_every_row_names_tests_that_exist(row: tuple[str, str]) -> None:
    named = list(NAMED.finditer(row[1]))
    assert named, f"no test for: {row[0]}"
    assert len(named) == row[1].count("::")
    for one in named:
        tree = ast.parse((ROOT / one["file"]).read_text())
        known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert one["test"] in known, f"{one['file']} has no {one['test']}"
        if one["fault"]:
            assert one["fault"] in FAULTS, f"the fault-injecting upstream knows no {one['fault']}"


def test_the_table_has_a_row_for_every_kind_of_fault() -> None:
    assert len(rows()) >= 50
