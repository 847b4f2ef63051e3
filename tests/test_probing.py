"""What two looks at a server may differ in, and still be the same model."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from gateway import probing
from gateway.engines import local
from gateway.errors import ConfigError
from gateway.probing import Print, Prints, difference

MODELS = Path(__file__).parents[1] / "deploy/pocket/models"
SEEN = Print({"model": "small", "engine": "vllm"}, "small", 20, "a b c d", tuple("abcd"), (-0.1, -0.2, -0.3, -0.4))


def looks(*names: str) -> list[Print]:
    """One look at each of these pocket models, all served under one name."""

    async def look(name: str) -> Print:
        options = local.Options(model=str(MODELS / name), threads=1)
        engine = await local.open_engine(options, name="tier")
        try:
            return replace(await probing.ask(engine, 16), told={"model": "pocket"}, model="pocket")
        finally:
            await engine.close()

    return [asyncio.run(look(name)) for name in names]


def test_other_weights_behind_the_same_name_are_told_from_the_same_ones() -> None:
    nano, again, micro = looks("pocket-nano", "pocket-nano", "pocket-micro")
    assert len(nano.nats) > 3
    assert difference(nano, again, 0.05) == ""
    assert "other weights" in difference(nano, micro, 0.05)


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (replace(SEEN, told={"model": "small", "engine": "sglang"}), "engine was 'vllm'"),
        (replace(SEEN, model="large"), "come from 'large'"),
        (replace(SEEN, prompt_tokens=22), "template or tokenizer"),
        (replace(SEEN, tokens=tuple("axyz")), "part after 1 tokens, and not for a tie"),
        (replace(SEEN, nats=(-0.2, -0.3, -0.4, -0.5)), "0.100 nats apart"),
        (replace(SEEN, nats=(), tokens=(), text="x"), "another greedy answer"),
    ],
)
def test_what_differs_is_named(now: Print, told: str) -> None:
    assert told in difference(SEEN, now, 0.05)


@pytest.mark.parametrize(
    "now",
    [
        SEEN,
        replace(SEEN, told={"model": "small", "revision": "r1"}),  # it has learnt to tell more
        replace(SEEN, nats=(-0.11, -0.19, -0.32, -0.4)),
        replace(SEEN, nats=(), tokens=()),
    ],
)
def test_what_rounding_and_ties_do_is_no_difference(now: Print) -> None:
    assert difference(SEEN, now, 0.05) == ""


def test_a_tie_that_fell_the_other_way_is_no_difference() -> None:
    one = replace(SEEN, nats=(-0.1, -0.7, -0.3, -0.4))
    assert difference(one, replace(SEEN, tokens=tuple("axcd"), nats=(-0.1, -0.69, -1.0, -2.0)), 0.05) == ""
    assert "tie" in difference(one, replace(SEEN, tokens=tuple("axcd"), nats=(-0.1, -0.5, -1.0, -2.0)), 0.05)


def test_what_was_seen_first_stays_and_is_kept_for_each_calibrator(tmp_path: Path) -> None:
    prints = Prints(tmp_path)
    later = replace(SEEN, prompt_tokens=9)
    assert prints.first("org/small", "", "a" * 64, SEEN) == SEEN
    assert Prints(tmp_path).first("org/small", "", "a" * 64, later) == SEEN
    assert prints.first("org/small", "http://one:8000", "a" * 64, later) == later
    assert prints.first("org/small", "", "b" * 64, later) == later


def test_a_file_that_is_no_fingerprint_is_refused(tmp_path: Path) -> None:
    prints = Prints(tmp_path)
    prints.first("small", "", "a" * 64, SEEN)
    path = prints.path("small", "", "a" * 64)
    for wrong in ("{", json.dumps([1]), json.dumps({"model": "x"})):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="take it away"):
            prints.first("small", "", "a" * 64, SEEN)
