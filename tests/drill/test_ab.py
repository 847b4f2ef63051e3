"""What calibrating is worth, asked of a gateway that serves what pocket models once said, with true labels."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from eval.grade import Grade, grade
from gateway import confidence
from tests.drill.drill import ADMIN, ENVIRONMENT, FEATURES, TIER, fitted, mixed, plan
from tests.drill.recorded import Answered, Recorded, answers
from tests.faults.gateway import PATIENCE, ROOT, free_port, running, until

Json = dict[str, Any]
MOST = 500  # requests


def confgate(folder: Path, *words: str) -> str:
    line = [sys.executable, "-m", "gateway", *words, "-c", str(folder / "cascade.yaml")]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def known() -> dict[str, list[Answered]]:
    return answers()


@pytest.fixture(scope="module")
def served(
    known: dict[str, list[Answered]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, int]]:
    folder, port = tmp_path_factory.mktemp("ab"), free_port()
    with Recorded(known={one.question: one for some in known.values() for one in some}) as models:
        X = [confidence.measure(FEATURES, one.evidence).values.tolist() for one in known["calibration"]]
        fitted(X, [one.right for one in known["calibration"]], "first", folder / "first.json")
        given = plan(models.url, port, watched=False)
        given["rollout"] |= {
            "poll_seconds": 0.5,
            "settle_seconds": 1,
            "max_flips": 0.1,
            "min_labels": 100,
            "worse_accepted": 0.02,
        }
        given["rollout"] |= {"labels_of": "explored", "min_shadow": 20}
        given["policies"]["default"]["steps"][0]["accept_at"] = 0.8
        with running(folder, given, **ENVIRONMENT) as gateway:
            yield folder, gateway.url, port


def test_the_raw_confidence_on_trial_is_found_out_by_labels_and_never_decides(
    served: tuple[Path, str, int], known: dict[str, list[Answered]]
) -> None:
    folder, url, port = served

    where = f"http://127.0.0.1:{port}/admin/calibrators"

    def told() -> Json:
        whole = httpx2.get(where, headers=ADMIN, timeout=PATIENCE)
        return whole.raise_for_status().json()["tiers"][TIER]  # type: ignore[no-any-return]

    until(lambda: httpx2.get(where, headers=ADMIN, timeout=PATIENCE).status_code == 200)
    live = told()["live"]
    assert "uncalibrated@" in confgate(folder, "rollout", "ab", TIER, "--why", "what is calibrating worth?")
    worn = set()
    with httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        for number, one in enumerate(mixed(known, ("test",))[:MOST]):
            answer = client.post(
                "/v1/chat/completions", json={"model": "auto", "messages": [{"role": "user", "content": one.question}]}
            ).raise_for_status()
            worn.add(answer.headers.get("x-route-calibrator", "none"))
            text = answer.json()["choices"][0]["message"]["content"]
            label = {"id": answer.headers["x-route-id"], "label": right(text, one), "source": "operator"}
            client.post("/v1/feedback", json=label, headers=ADMIN).raise_for_status()
            if number % 50 == 49:
                time.sleep(0.6)
                if told()["stage"] == "none":
                    break
        until(lambda: told()["stage"] == "none")
    assert worn <= {live, "none"}
    assert told()["live"] == live
    end = told()["history"][-1]
    assert (end["action"], end["tried"].partition("@")[0], end["against"]) == ("reject", "uncalibrated", live)
    shown = json.loads(confgate(folder, "rollout", "evidence", TIER, "--json"))
    assert f"{shown['labels']:,} labels" in confgate(folder, "rollout", "evidence", TIER)
    assert shown["labels"] >= 100
    assert shown["flipped"] / shown["seen"] > 0.1  # more than a canary may change, and yet it was not given up for that
    low, high = shown["interval"]["accepted_wrong"]
    assert 0.02 < low < high
    assert shown["interval"]["cost"][1] < 0  # it escalates less: that is what is paid for
    assert shown["why"][0].startswith("worse in accepted_wrong; no worse in cost")


def right(text: str, one: Answered) -> bool:
    return grade(text, one.target).grade is Grade.RIGHT
