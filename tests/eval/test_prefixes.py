"""The table of first tokens, on answers of which it is known from where on they tell anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from eval import prefixes, tables
from eval.prefixes import Row
from eval.records import BadRecords
from eval.tables import Table
from gateway.nouns import Floats

TELLING = 16  # tokens; before them an answer that will be wrong sounds like any other


def answers(split: str, k: int | None, n: int, seed: int) -> Table:
    """One model's answers, measured on k first tokens by one feature; half of them are right."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.5).astype(float)
    seen: Floats = rng.normal(size=n) + (2 * y if k is None or k >= TELLING else 0)
    names = np.array([f"{split}-{number}" for number in range(n)])
    return Table("one", ("lp_mean",), seen[:, np.newaxis], y, names, names, np.full(n, split), {}, prefix=k)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    def read(paths: Sequence[Path], prefix: int | None = None) -> tuple[dict[str, Table], None]:
        parts = [answers(str(path), prefix, 400, seed) for seed, path in enumerate(paths)]
        return {"one": tables._stacked(parts)}, None

    monkeypatch.setattr(tables, "read_all", read)
    monkeypatch.setattr(prefixes, "the_split", str)
    return prefixes.study(Path("fitted"), Path("unseen"), [8, 16, None])


def test_first_tokens_tell_from_where_they_tell(study: list[Row]) -> None:
    before, after, whole = (row.scores["auroc"] for row in study)
    assert before["low"] < 0.5 < before["high"]
    for told in (after, whole):
        assert told["low"] < 0.921 < told["high"]  # two normals, two standard deviations apart
    assert [row.n for row in study] == [400, 400, 400]  # of the unseen ones alone


def test_what_is_accepted_is_as_right_as_promised(study: list[Row]) -> None:
    nothing, some, _ = study
    assert (nothing.accepted, nothing.accepted_right) == (0.0, None)
    assert some.accepted > 0.2
    assert some.accepted_right is not None
    assert some.accepted_right > prefixes.THRESHOLD


def test_the_page_names_every_length_and_how_it_was_made(study: list[Row]) -> None:
    told = prefixes.page(study, "python -m eval.prefixes --fit a --test b")
    assert "Made by `python -m eval.prefixes --fit a --test b`." in told
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| one")]
    assert [row[1] for row in rows] == ["8", "16", "whole"]
    assert rows[0][-1] == "none accepted |"


def test_a_folder_without_records_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(BadRecords, match="there is no such file"):
        prefixes.study(tmp_path, tmp_path, [8])
