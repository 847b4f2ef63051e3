"""`make drill`: a calibrator grows old under load and is replaced, and a bad one is taken back, with nobody waiting.

Two model servers say what pocket models once said (recorded.py), so log-probs, right and wrong are real, and an
operator's labels are true. The small one answers first, the large one what it is unsure of. Traffic shifts to harder
problems; the monitors raise an alarm; graded questions are asked of the tier; a calibrator is fitted on them, offered,
and goes by shadow and canary to live on its own evidence. Then a bad one is promoted by hand, and its labels roll it
back. All through the commands and listeners that operators use, on a gateway process of its own. Exits with 1, naming
the step, when one fails. There are 800 shifted answers, asked again and again, so wealth grows as if there were more.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from calibrators import artifact as artifacts
from calibrators import logistic
from calibrators._linear import Linear
from calibrators.artifact import Artifact
from calibrators.base import FitData, Missing, Preprocess
from eval.grade import Grade, grade
from gateway import confidence
from gateway.monitor import reference
from gateway.monitor.reference import Reference, tier_reference
from gateway.monitor.registry import Registry
from gateway.store.base import Role, Source, pages
from gateway.store.sqlite import Sqlite
from tests.drill.recorded import Answered, Recorded, answers
from tests.faults.gateway import ROOT, free_port, running

TIER, LAST = "small", "large"
HOME, SHIFT = ("test",), ("reworded", "larger_numbers", "extra_clause", "new_names")
FEATURES = ("lp_mean", "lp_bottom", "lp_quantile(q=0)", "ans_min", "calc_min", "end_lp", "length")
ACCEPT_AT = 0.2  # low, so that a small model's answers are served, and their labels tell of it
CLIENTS = 8
HOME_REQUESTS, QUIET_REQUESTS, GRADED = 300, 220, 400
STEP_SECONDS = 300.0  # for one step; all of them together take less
ADMIN = {"authorization": "Bearer sk-root"}
ENVIRONMENT = {"ROOT_KEY": "sk-root", "ROUTE_SECRET": "0123456789abcdef0123456789abcdef"}


class Failed(Exception):
    """A step that did not come about."""


def plan(url: str, port: int, *, watched: bool) -> dict[str, Any]:
    """The configuration. watched: there is a reference for drift by now."""

    def tier(name: str, price: float) -> dict[str, Any]:
        engine = {"kind": "openai_http", "url": url, "model": name}
        return {"name": name, "engine": engine, "prices": {"usd_per_mtok_in": price, "usd_per_mtok_out": price}}

    known = {"reference": "reference.npz"} if watched else {}
    return {
        "server": {"port": 0, "request_seconds": 30},
        "keys": {"allow_anonymous": True, "admins": [{"name": "operator", "key": "env:ROOT_KEY"}]},
        "ids": {"secret": "env:ROUTE_SECRET"},
        "admin": {"port": port},
        "store": {"sqlite": "decisions.sqlite", "seconds": 10},
        "exploration": {"share": 1.0, "in_flight": 8},
        "monitors": {"every_seconds": 1, "rows": 200, "labels_of": "all"} | known,
        "rollout": {
            "folder": "rollout", "poll_seconds": 1, "settle_seconds": 3, "share": 0.5, "min_shadow": 200,
            "max_flips": 0.6, "min_labels": 100, "worse_accepted": 0.1, "worse_cost": None, "probe": {"seconds": 20},
        },
        "tiers": [tier(TIER, 0.11) | {"calibrator": "first.json"}, tier(LAST, 0.17)],
        "policies": {"default": {"steps": [{"tier": TIER, "accept_at": ACCEPT_AT}, {"tier": LAST}]}},
    }  # fmt: skip


def fitted(X: Sequence[Sequence[float]], right: Sequence[bool], name: str, path: Path) -> Artifact:
    """A calibrator on features and labels, in a file."""
    data = FitData(np.array(X, dtype=np.float64), np.array(right, dtype=np.float64), FEATURES)
    made = logistic.fit(data)
    return sealed(name, made.to_params(), data.n, min(sum(right), len(right) - sum(right)), path)


def sealed(name: str, params: Any, n: int, rare: int, path: Path) -> Artifact:
    made = Artifact.seal(
        id=name, kind=logistic.Logistic.kind, features=FEATURES, params=params,
        fingerprint={"model": TIER, "source": "chosen", "sampling": "greedy"},
        fit={
            "data_sha256": "0" * 64, "n": n, "n_rare": rare, "objective": "erm", "eta": 0, "seed": 0, "split": "live",
            "slices": [],
        },
        metrics={}, validity={"conditions": [], "checks": {}}, created=dt.datetime.now(dt.UTC),
    )  # fmt: skip
    artifacts.dump(made, path)
    return made


class Line:
    """Prints what happens, with seconds since the start and labels so far."""

    def __init__(self) -> None:
        self.began, self.labels = time.monotonic(), 0

    def say(self, told: str) -> None:
        print(f"{time.monotonic() - self.began:7.1f} s  {self.labels:5d} labels  {told}", flush=True)


class Traffic:
    """Clients that never rest. labelling: an operator labels every answer a client gets."""

    def __init__(self, url: str, http: aiohttp.ClientSession, line: Line, first: Sequence[Answered]) -> None:
        self._url, self._http, self._line = url, http, line
        self._source, self._sessions = itertools.cycle(first), itertools.count()
        self.statuses: Counter[int] = Counter()
        self.lost: list[str] = []
        self.labelling = False
        self.calibrators: Counter[str] = Counter()

    @property
    def answered(self) -> int:
        return self.statuses[200]

    def turn_to(self, asked: Sequence[Answered]) -> None:
        self._source = itertools.cycle(asked)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(self._client())

    async def _client(self) -> None:
        while True:
            labelling = self.labelling
            told = await self.ask(next(self._source), "auto")
            if told is not None:
                self.calibrators[told[0].get("x-route-calibrator", "")] += 1
                if labelling and self.labelling:
                    await self.label([told])

    async def ask(self, one: Answered, model: str) -> tuple[dict[str, str], bool] | None:
        """One answer's headers and whether it was right; None for a request that was lost, which is counted."""
        session = {"role": "system", "content": f"session {next(self._sessions)}"}  # a conversation of its own
        body = {"model": model, "messages": [session, {"role": "user", "content": one.question}]}
        try:
            async with self._http.post(f"{self._url}/v1/chat/completions", json=body) as answer:
                self.statuses[answer.status] += 1
                whole = await answer.json()
                if answer.status != 200:
                    self.lost.append(json.dumps(whole)[:200])
                    return None
                text = whole["choices"][0]["message"]["content"]
                return dict(answer.headers), grade(text, one.target).grade is Grade.RIGHT
        except (aiohttp.ClientError, TimeoutError) as error:
            self.statuses[0] += 1
            self.lost.append(repr(error))
            return None

    async def label(self, answers: Sequence[tuple[dict[str, str], bool]]) -> None:
        """Say as an operator which answers were right."""
        items = [
            {"id": headers["x-route-id"], "label": right, "source": str(Source.OPERATOR)} for headers, right in answers
        ]
        async with self._http.post(f"{self._url}/v1/feedback", json={"items": items}, headers=ADMIN) as told:
            if told.status not in (200, 201):
                raise Failed(f"labels were refused: {told.status} {await told.text()}")
        self._line.labels += len(items)


class Drill:
    """The steps, in order; each raises Failed."""

    def __init__(self, site: Site, http: aiohttp.ClientSession) -> None:
        self.folder, self._site, self._http = site.folder, site, http
        self.line = Line()
        self.traffic = Traffic(site.gateway, http, self.line, mixed(site.answers, HOME))
        shifted = mixed(site.answers, SHIFT)
        self._graded, self._shifted = shifted[:GRADED], shifted[GRADED:]  # nothing is fitted on what is judged by

    async def admin(self, path: str, body: dict[str, Any] | None = None) -> Any:
        where, method = f"http://127.0.0.1:{self._site.port}{path}", "GET" if body is None else "POST"
        async with self._http.request(method, where, json=body, headers=ADMIN) as answer:
            if answer.status >= 400:
                raise Failed(f"{method} {path}: {answer.status} {await answer.text()}")
            return await answer.json()

    async def rollout(self) -> dict[str, Any]:
        told: dict[str, Any] = (await self.admin("/admin/calibrators"))["tiers"][TIER]
        return told

    async def until(self, what: str, true: Callable[[], Any]) -> Any:
        """Wait for something, and what it came to. true: an async function."""
        began = time.monotonic()
        while not (found := await true()):
            if time.monotonic() - began > STEP_SECONDS:
                raise Failed(f"{what} did not happen within {STEP_SECONDS:.0f} s; the rollout: {await self.rollout()}")
            await asyncio.sleep(0.5)
        return found

    async def answers(self, n: int) -> None:
        wanted = self.traffic.answered + n

        async def enough() -> bool:
            return self.traffic.answered >= wanted

        await self.until(f"{n} answers", enough)

    async def drifted(self) -> list[str]:
        report = await self.admin("/admin/monitors")
        return [alarm["why"] for alarm in report.get("alarms", ()) if alarm["kind"] == "drift"]

    async def reachable(self) -> Any:
        """The admin listener comes up a moment after the other one."""
        with suppress(aiohttp.ClientConnectorError):
            return await self.rollout()

    async def all(self) -> None:
        await self.until("an admin listener", self.reachable)
        await self.home()
        await self.shift()
        await self.labels()
        await self.replace()
        await self.bad()
        if self.traffic.lost:
            raise Failed(f"{len(self.traffic.lost)} requests were lost, the first: {self.traffic.lost[0]}")
        self.line.say(f"{self.traffic.answered} requests answered, none lost")

    async def home(self) -> None:
        """Traffic as the calibrator knows it: it is kept as the reference, and more of it raises no alarm."""
        self.line.say(f"traffic of {', '.join(HOME)}: {(await self.rollout())['live']} is live")
        await self.answers(HOME_REQUESTS)
        await asyncio.sleep(1)
        known = await asyncio.to_thread(self._reference)
        reference.dump(Reference({("default", TIER): known}), self.folder / "reference.npz")
        (self.folder / "cascade.yaml").write_text(json.dumps(plan(self._site.models, self._site.port, watched=True)))
        await self.admin("/admin/reload", {})
        self.line.say(f"a reference for drift, of {len(known.rows)} answers, reloaded under load")
        await self.answers(QUIET_REQUESTS)
        await asyncio.sleep(2)
        if found := await self.drifted():
            raise Failed(f"an alarm on traffic that did not shift: {found}")
        self.line.say(f"{QUIET_REQUESTS} more requests: no alarm")

    def _reference(self) -> Any:
        store = Sqlite(self.folder / "decisions.sqlite", read_only=True)
        try:
            hops = [
                hop
                for _, hops in pages(store)
                for hop in hops
                if hop.tier == TIER and hop.role is Role.HOP and hop.p_correct is not None
            ]
        finally:
            store.close()
        if not hops:
            raise Failed("no answer with evidence is in the log")
        names = list(hops[0].features)
        rows = np.array([[*(hop.features[name] for name in names), hop.p_correct] for hop in hops], dtype=np.float64)
        return tier_reference(hops[0].calibrator, names, rows)

    async def shift(self) -> None:
        """Harder problems. Nobody has labelled anything of it yet."""
        self.traffic.turn_to(self._shifted)
        before, began = self.traffic.answered, time.monotonic()
        self.line.say(f"traffic shifts to {', '.join(SHIFT)}")
        [why, *_] = await self.until("a drift alarm", self.drifted)
        asked, seconds = self.traffic.answered - before, time.monotonic() - began
        self.line.say(f"ALARM after {asked} requests, {seconds:.1f} s: {why}")

    async def labels(self) -> None:
        """Graded questions, asked of the tier alone so that nothing chooses among them."""
        graded: list[tuple[dict[str, str], bool]] = []
        for start in range(0, GRADED, CLIENTS):
            some = [self.traffic.ask(one, TIER) for one in self._graded[start : start + CLIENTS]]
            graded += [told for told in await asyncio.gather(*some) if told is not None]
        await asyncio.sleep(1)
        await self.traffic.label(graded)
        right = sum(right for _, right in graded)
        self.line.say(f"an operator graded {len(graded)} answers of {TIER}: {right / len(graded):.0%} right")

    async def replace(self) -> None:
        """A fit by the command that people use; then nobody does anything but answer and label."""
        old = (await self.rollout())["live"]
        await self.command("refit", "--tier", TIER, "--why", "drift alarm", "--offer")
        began = time.monotonic()

        async def at(stage: str) -> Any:
            told = await self.rollout()
            if told["stage"] == "none" and told["live"] == old and told["history"][-1]["action"] in ("reject", "safe"):
                raise Failed(f"the candidate was turned down: {told['history'][-1]}")
            return told if told["stage"] == stage else None

        told = await self.until("shadow", lambda: at("shadow"))
        self.line.say(f"{told['candidate']} in shadow")
        told = await self.until("canary", lambda: at("canary"))
        self.line.say(f"canary for {told['share']:.0%} of conversations: {'; '.join(told['history'][-1]['why'])}")
        self.traffic.labelling = True

        async def promoted() -> Any:
            told = await at("none")
            return told if told is not None and told["live"] != old else None

        told = await self.until("promotion", promoted)
        self.traffic.labelling = False
        step = told["history"][-1]
        self.line.say(
            f"PROMOTED {told['live']} {time.monotonic() - began:.1f} s after it was offered: {'; '.join(step['why'])}; "
            f"Brier score {step['interval']['brier'][0]:+.3f} to {step['interval']['brier'][1]:+.3f}"
        )

    async def bad(self) -> None:
        """One that is sure of everything, promoted by hand against all advice."""
        good = (await self.rollout())["live"]
        line = Linear(
            Preprocess(FEATURES, (Missing.REFUSE,) * 7, np.zeros(7), np.ones(7), np.full(7, -1e6), np.full(7, 1e6)),
            np.zeros(7),
            4.0,
        )
        bad = sealed("bad", logistic.Logistic(line).to_params(), 0, 0, self.folder / "bad.json")
        registry = Registry(self.folder / "rollout" / "artefacts")
        at = dt.datetime.now(dt.UTC).isoformat()
        registry.put(bad, parent=None, who="drill", at=at, why="somebody was in a hurry")
        await self.command("rollout", "promote", TIER, bad.label, "--why", "somebody was in a hurry")
        told = await self.until("the bad one live", lambda: self._serving(bad.label))
        before, labels, began = self.traffic.answered, self.line.labels, time.monotonic()
        self.line.say(f"{told['live']}, which is sure of everything, promoted by hand")
        self.traffic.labelling = True
        told = await self.until("a rollback", lambda: self._serving(good))
        self.traffic.labelling = False
        step = told["history"][-1]
        if step["action"] != "rollback" or not step["who"].startswith("gateway"):
            raise Failed(f"it went, but not by an automatic rollback: {step}")
        took = time.time() - dt.datetime.fromisoformat(step["at"]).timestamp()
        if took > 10:
            raise Failed(f"{took:.1f} s passed between the decision and the old one's service")
        self.line.say(
            f"ROLLED BACK to {good} after {self.line.labels - labels} labels, {time.monotonic() - began:.1f} s, "
            f"{self.traffic.answered - before} requests; in service {took:.1f} s after the decision at most: "
            f"{'; '.join(step['why'])}"
        )

    async def _serving(self, label: str) -> Any:
        told = await self.rollout()
        return told if told["serving"] == label else None

    async def command(self, *words: str) -> None:
        """confgate, as at a terminal."""
        line = [sys.executable, "-m", "gateway", *words, "-c", str(self.folder / "cascade.yaml")]
        done = await asyncio.to_thread(subprocess.run, line, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"confgate {' '.join(words)}: {done.stderr.strip()}")
        self.line.say(f"$ confgate {' '.join(words)}\n{' ' * 26}{done.stdout.strip()}")


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything is. gateway, models: URLs.  port: of the admin listener."""

    folder: Path
    gateway: str
    models: str
    port: int
    answers: Mapping[str, Sequence[Answered]]


def mixed(known: Mapping[str, Sequence[Answered]], splits: Sequence[str]) -> list[Answered]:
    """One of each split in turn."""
    return [one for several in zip(*(known[split] for split in splits), strict=True) for one in several]


async def drilled(site: Site) -> None:
    limit = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=limit, trust_env=False) as http:
        drill = Drill(site, http)
        load = asyncio.ensure_future(drill.traffic.run())
        work = asyncio.ensure_future(drill.all())
        try:
            await asyncio.wait({load, work}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                load.result()  # clients do not end by themselves
            await work
        finally:
            for job in (load, work):
                job.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(load, work, return_exceptions=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="A calibrator is replaced under load, and a bad one taken back.")
    parser.add_argument("--keep", type=Path, help="a folder for the gateway's files, to look at afterwards")
    given = parser.parse_args()
    known, port = answers(), free_port()
    with (
        tempfile.TemporaryDirectory(prefix="confgate-drill-") as temporary,
        Recorded(known={one.question: one for some in known.values() for one in some}) as models,
    ):
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        home = known["calibration"]
        X = [confidence.measure(FEATURES, one.evidence).values.tolist() for one in home]
        fitted(X, [one.right for one in home], "first", folder / "first.json")
        with running(folder, plan(models.url, port, watched=False), **ENVIRONMENT) as gateway:
            try:
                asyncio.run(drilled(Site(folder, gateway.url, models.url, port, known)))
            except Failed as error:
                print(f"FAILED: {error}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
