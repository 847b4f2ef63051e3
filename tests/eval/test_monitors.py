"""`confgate monitors` on traffic made up here; the command itself runs on pocket records, docs/results/monitors.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import monitors
from eval.card import Absent
from eval.monitors import Asked, Drifted, Endless, Quiet, Request
from gateway import config as configs
from gateway.errors import ConfigError
from gateway.monitor import reference as references
from gateway.monitor.feed import PAGE
from gateway.monitor.labels import ROUTED
from gateway.monitor.reference import Reference
from gateway.monitor.slices import Slices, Slicing
from gateway.nouns import Policy, Tier
from gateway.store.base import Entry
from gateway.store.sqlite import Sqlite
from tests.faults.gateway import confgate_ends
from tests.store.rows import decision, hop, numbers
from tests.store.test_feedback import SECRETS, planned


def asked(n: int, seed: int, *, shift: float = 0.0, over: float = 0.0) -> list[Asked]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2)) + shift
    p = np.clip(1 / (1 + np.exp(-X[:, 0] - 1)), 0.05, 0.95)
    right = rng.random(n) < p - over
    return [
        Asked(((("default", "small"), np.append(x, a)),), "small", float(a), bool(b), 61 - place % 2)
        for place, (x, a, b) in enumerate(zip(X, p, right, strict=True))
    ]


def route() -> Policy:
    return Policy(
        "default", (Tier("small", Absent("small", {}), features=("lp_mean", "length"), calibrator_id="small@1"),)
    )


def test_halves_of_the_same_traffic_raise_no_alarm() -> None:
    rng = np.random.default_rng(0)
    found = monitors.quiet(asked(1_000, 1), route(), Request(halves=5, slicing=Slicing(edges=(60,))), rng)
    assert (found.drift, found.labels) == (0, 0)
    assert found.looks == 10
    assert found.slices >= 5  # of 400 rows that were looked at, at least one half has 200


def test_traffic_that_never_shifts_raises_an_alarm_in_hardly_any_gateway() -> None:
    request = Request(gateways=20, gateway_requests=800, slicing=Slicing(edges=(60,)))
    found = monitors.endless(asked(600, 12), route(), request, np.random.default_rng(13))
    assert found.alarms <= 2  # P(more than 2 of 20 | 1 %) = .001
    assert found.looks == 80
    assert found.slices >= 20


def test_delays_of_a_shift_are_counted_from_its_first_request() -> None:
    known = monitors.reference_of(asked(1_000, 2), route())
    found = monitors.loud(
        "harder", asked(300, 3, shift=-1, over=0.3), asked(800, 4), known, Request(orders=3), np.random.default_rng(5)
    )
    assert found.drift == (monitors.ROWS,) * 3
    assert len(found.labels) == 3
    assert all(0 < labels <= 300 for labels in found.labels)
    assert found.claimed > found.accuracy


def test_tiers_that_see_too_little_have_no_reference_and_raise_no_alarm() -> None:
    known = monitors.reference_of(asked(monitors.ROWS - 1, 6), route())
    assert known.tiers == {}
    assert monitors.drift_alarm(asked(300, 7, shift=5), Reference({}), Slicing()) == Drifted(None, 0, 0)


def test_the_page_says_n_and_interval_of_what_was_measured() -> None:
    request = Request(streams=20, stream_labels=200, orders=2)
    rng = np.random.default_rng(8)
    known = monitors.reference_of(asked(1_000, 9), route())
    found = monitors.Found(
        request=request, n_reference={"small": 1_000}, n_home=800, quiet=Quiet(0, 0, 4, 2),
        endless=Endless(50, 0, 90, 80),
        false_alarms=monitors.false_alarms(request, rng),
        stream_delays={0.3: monitors.stream_delay(0.3, request, rng)},
        delays=[monitors.loud("harder", asked(300, 10, over=0.4), asked(800, 11), known, request, rng)],
    )  # fmt: skip
    page = monitors.told(found, "confgate monitors")
    assert "(4 looks at tiers, 2 at slices" in page
    assert "drift alarms in 0, 0.00% [0.00%, 7.11%] (90 looks at tiers, 80 at slices)" in page
    assert "0 alarms, 0.00% [0.00%, 16.84%]" in page
    assert "| harder | 300 |" in page
    assert "0 of 20 |" in page
    assert ROUTED not in page


def kept(n: int, first: int = 0, **hops: Any) -> list[Entry]:
    """Decisions of a gateway that asked one tier."""
    rng = np.random.default_rng(first)
    found = []
    for place, number in enumerate(numbers(n, at=1_700_000_000.0 + first)):
        told = {"features": {"lp_mean": float(rng.normal()), "length": 5.0}, "prompt_tokens": 40 + place % 2} | hops
        at, client = 1_700_000_000.0 + first + place, "alice" if place % 2 else "bob"
        said = {"lang": "de"} if place % 2 else {}
        found.append(Entry(decision(number, at=at, client=client, metadata=said), (hop(number, **told),)))
    return found


def test_a_reference_is_written_from_the_log_and_tells_clients_and_lengths(tmp_path: Path) -> None:
    plan = planned("http://127.0.0.1:1") | {"monitors": {"slices": {"clients": ["bob"], "prompt_tokens": [40]}}}
    plan["monitors"]["slices"]["metadata"] = {"lang": ["de", "en"]}
    plan["policies"] = {"default": {"steps": [{"tier": "cheap", "accept_at": 0.8}, {"tier": "dear"}]}}
    (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
    store = Sqlite(tmp_path / "store.db", seconds=5)
    store.write(
        kept(450)
        + kept(30, 1_000, threshold=0.5)  # a request that bent its own route
        + kept(30, 2_000, error="gone", p_correct=None)
        + kept(250, 3_000, calibrator="cheap@bbbbbbbbbbbb")  # after the time that is asked for
    )
    store.close()
    where = ("--from-log", "-c", str(tmp_path / "cascade.yaml"), "--until", "2023-11-14T23:00:00")
    code, out, err = confgate_ends("monitors", *where, "--write", str(tmp_path / "then.npz"), "--json", **SECRETS)
    assert (code, err) == (0, "")
    assert json.loads(out) == {"default/cheap": 450}
    known = references.load(tmp_path / "then.npz")
    assert known.tiers["default", "cheap"].calibrator == "cheap@0123456789ab"
    slices = Slices(known, configs.read(tmp_path / "cascade.yaml").monitors.slices.slicing(), 200)
    assert {name: len(one.rows) for (*_, name), one in slices.references.items()} == {
        "client bob": 225, "up to 40 prompt tokens": 225, "over 40 prompt tokens": 225, "metadata lang=de": 225
    }  # fmt: skip
    store = Sqlite(tmp_path / "store.db", seconds=5, read_only=True)
    with pytest.raises(ConfigError, match="there is: nothing"):
        monitors.logged(configs.read(tmp_path / "cascade.yaml"), store, 1_800_000_000.0, np.inf)
    store.close()


def test_a_long_log_is_looked_at_all_over_and_not_read_as_a_whole(tmp_path: Path) -> None:
    store = Sqlite(tmp_path / "store.db", seconds=5)
    store.write(kept(3_000))
    since, until = 1_700_000_000.0, 1_700_002_999.5
    assert len(list(monitors.spread(store, since, until))) == 3_000
    some = [row.at - since for row, _ in monitors.spread(store, since, until, 1_000)]
    assert len(some) == 3 * PAGE
    assert some[0] == 0
    assert np.diff(some).max() == pytest.approx(1_000 - PAGE + 1)
    assert len(list(monitors.spread(store, since, until, 10))) == 3_000  # fewer than a page in each part
    store.close()


def test_a_slice_of_a_client_that_has_no_key_is_refused_with_those_who_have(tmp_path: Path) -> None:
    plan = planned("http://127.0.0.1:1") | {"monitors": {"slices": {"clients": ["alise"]}}}
    (tmp_path / "cascade.yaml").write_text(json.dumps(plan))
    with pytest.raises(ConfigError, match=r"no client 'alise'; did you mean 'alice'\?"):
        configs.read(tmp_path / "cascade.yaml")
