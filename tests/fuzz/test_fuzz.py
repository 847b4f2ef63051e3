"""What is written down of a run, read from lines that atheris 3.0.0's libFuzzer wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.fuzz import figures, written

BEGUN = [
    "INFO: Instrumenting gateway.engines._stream",
    "INFO: seed corpus: files: 1 min: 1019b max: 1019b total: 1019b rss: 80Mb",
    "#2\tINITED cov: 116 ft: 116 corp: 1/1019b exec/s: 0 rss: 81Mb",
    "#3\tNEW    cov: 119 ft: 120 corp: 2/1500b lim: 1019 exec/s: 0 rss: 81Mb L: 481/1019 MS: 1 EraseBytes-",
]
ENDED = [
    "#122975\tDONE   cov: 180 ft: 471 corp: 91/31Kb lim: 1098 exec/s: 292 rss: 82Mb",
    "###### Recommended dictionary. ######",
    "Done 122975 runs in 421 second(s)",
]


def test_a_run_is_told_by_its_first_and_last_line() -> None:
    told = {"edges_at_first": 116, "edges": 180, "features": 471, "inputs_kept": 91}
    assert figures([*BEGUN, *ENDED]) == told | {"executions": 122975, "seconds": 421}


def test_a_run_that_broke_off_has_no_seconds() -> None:
    told = figures([*BEGUN, "==12== ERROR: libFuzzer: fuzz target exited"])
    assert told["edges"] == 119
    assert "seconds" not in told


def test_a_run_that_told_nothing_is_no_run() -> None:
    with pytest.raises(ValueError, match="did not start"):
        figures(["ModuleNotFoundError: No module named 'atheris'"])


def test_a_later_run_takes_the_place_of_an_earlier_one_of_the_same_target(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    for target, executions in (("sse", 1), ("artefact", 2), ("sse", 3)):
        written(out, target, {"executions": executions})
    assert json.loads(out.read_text()) == {"artefact": {"executions": 2}, "sse": {"executions": 3}}
