"""The gateway serves exactly what was scored: sweep, replay and live HTTP agree decision for decision."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from eval import agreement, collect, policy_file, records
from eval._server import gateway
from eval.agreement import TOLERANCE, Decided, compare
from eval.crossing import cross
from eval.datasets import pocket
from eval.material import open_tiers
from eval.prompts import plain
from eval.recommend import steps_of
from eval.replay import answers
from eval.sweep import Route, grid, replay
from gateway import config as configs
from gateway.errors import ConfigError
from gateway.nouns import Mix, Policy

POCKET = Path(__file__).parents[2] / "deploy/pocket"
TIERS = ("pocket-nano", "pocket-micro")  # the larger ones would take longer than all of these
N = 32  # that chance sends all of them one way through the mix happens once in ten million runs


def decided(**changes: Any) -> Decided:
    told: dict[str, Any] = {
        "tier": "a", "text": "7", "p_correct": 0.9, "threshold": 0.8, "reason": "confident", "policy": "default",
        "tiers_tried": ("a",),
    }  # fmt: skip
    return Decided(**told | changes)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"tier": "b"}, "tier"),
        ({"text": "8"}, "text"),
        ({"p_correct": 0.9 + 2 * TOLERANCE}, "p_correct"),
        ({"p_correct": None}, "p_correct"),
        ({"threshold": 0.80001}, "threshold"),
        ({"threshold": None}, "threshold"),
        ({"reason": "last"}, "reason"),
        ({"policy": "other"}, "policy"),
        ({"tiers_tried": ("z", "a")}, "tiers_tried"),
    ],
)
def test_any_field_that_is_not_the_same_is_a_difference(changes: dict[str, Any], what: str) -> None:
    found = compare({"q": decided(), "r": decided()}, {"q": decided(**changes), "r": decided()})
    assert [(one.question, one.what) for one in found.differences] == [("q", what)]
    assert (found.n, found.differing) == (2, 1)


def test_the_last_bits_of_a_confidence_are_none() -> None:
    found = compare({"q": decided()}, {"q": decided(p_correct=0.9 + TOLERANCE / 2)})
    assert found.differences == ()
    assert found.largest_gap == pytest.approx(TOLERANCE / 2)


def test_nothing_in_common_is_no_agreement() -> None:
    with pytest.raises(ConfigError, match="no question was both recorded and served"):
        compare({"q": decided()}, {"r": decided()})


def plan() -> dict[str, Any]:
    """The pocket cascade's smaller tiers, with a policy to write to and a mix."""
    shipped = configs.read(POCKET / "cascade.yaml")
    entries = [
        {
            "name": entry.name,
            "engine": {"kind": "local", "model": str(POCKET / "models" / entry.name), "max_tokens": 256, "threads": 1},
            "calibrator": str(entry.calibrator),
            "patience_seconds": 120,
        }
        for entry in shipped.tiers
        if entry.name in TIERS
    ]
    chain = [{"tier": TIERS[0], "accept_at": 0.5}, {"tier": TIERS[1]}]
    return {
        "keys": {"allow_anonymous": True},
        "tiers": entries,
        "policies": {
            "default": {"steps": chain},
            "large": {"steps": [{"tier": TIERS[1]}]},
            "mixed": {"mix": [{"policy": "large", "share": 0.4}, {"policy": "default", "share": 0.6}]},
        },
    }


def test_the_gateway_serves_exactly_what_was_scored(tmp_path: Path) -> None:
    """From collecting over sweeping and writing to serving; all 1,000: `confgate verify`, docs/results."""
    pytest.importorskip("torch")
    file = tmp_path / "swept.yaml"
    file.write_text(json.dumps(plan(), indent=1))
    config = configs.read(file)
    questions = pocket.load(split="test", n=N)
    path = asyncio.run(collect.collect(config, questions, tmp_path / "records", collect.Plan(concurrency=N)))
    rows = list(records.read(path))
    manifest = records.read_manifest(tmp_path / "records" / records.MANIFEST)

    tiers = open_tiers(config, [manifest], TIERS)[0]
    table = cross(rows, tiers)["test"].table
    route = Route((0, 1), (float(grid(table, (0,), 3)[1]),))
    swept = replay(table, route)
    policy_file.write(file, "default", steps_of(table, route))

    config = configs.read(file)
    chain, mix = (agreement.opened(config, name, [manifest]) for name in ("default", "mixed"))
    assert isinstance(chain, Policy)
    assert isinstance(mix, Mix)
    with gateway(file) as address:
        for name, opened in (("default", chain), ("mixed", mix)):
            heard = asyncio.run(agreement.served(address, f"auto:{name}", questions, plain(), None, concurrency=16))
            numbers = {question: number for question, (number, _) in heard.items()}
            online = {question: one for question, (_, one) in heard.items()}
            offline = agreement.scored(rows, opened, numbers)
            found = compare(offline, online)
            assert found.n == len(questions)
            assert [str(one) for one in found.differences] == []
            if name == "default":
                assert {TIERS[tier] for tier in set(swept.served.tolist())} == set(TIERS)
                for place, question in enumerate(table.questions):
                    assert online[question].tier == TIERS[swept.served[place]]
                    assert len(online[question].tiers_tried) == swept.asked[place]
            else:
                assert {one.policy for one in online.values()} == {"default", "large"}
    assert len({answer.reason for _, answer in answers(rows, chain)}) == 2
