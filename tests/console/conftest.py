"""A real browser, and a gateway that has answered real requests and been told which answers were right."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, running, until, write_artifact
from tests.faults.upstream import Upstream
from tests.store.test_feedback import SECRETS, bearer, planned

PATIENCE_MS = 60_000  # this machine stands still for seconds
expect.set_options(timeout=PATIENCE_MS)

REQUESTS = 60
EVIL = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script> \' " &lt; \u202e javascript:alert(1)'
# A sandbox of its own needs rights that containers do not give; the others keep it from calling home.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> str:
    """Skipped where there is no browser, unless one was promised (CI): then it is a failure."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next((path for name in names if (path := shutil.which(name))), "")
    if not found:
        assert not os.environ.get("CI"), "CI has no Chromium: .ci/run is to install it"
        pytest.skip("no Chromium here; apt-get install chromium")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of one file: as long as it lives, its event loop runs in this thread, where others want theirs."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Running:
    """A gateway. admin: where its console is.  folder: of its configuration and store.  ids: of what was answered."""

    admin: str
    folder: Path
    client: httpx2.Client
    ids: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.admin}/admin/console"

    def get(self, path: str, **parameters: Any) -> httpx2.Response:
        return httpx2.get(f"{self.admin}{path}", params=parameters, headers=bearer("root"), timeout=PATIENCE)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def served(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """With traffic, labels, all of it explored, and texts kept that are as hostile as they come."""
    folder, chance = tmp_path_factory.mktemp("console"), random.Random(1)
    write_artifact(folder / "cheap.json")
    texts = {"redact": "gateway.store.redact:nothing"}
    plan = planned(
        upstream.url,
        exploration={"share": 1.0, "in_flight": 8, "waiting": 500},
        store={"sqlite": "store.db", "seconds": PATIENCE, "texts": texts},
    )
    with (
        running(folder, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=gateway.url, headers=bearer("alice"), timeout=PATIENCE) as client,
    ):
        made = Running(f"http://127.0.0.1:{plan['admin']['port']}", folder, client)
        for _ in range(REQUESTS):
            request(made, chance)
        evil(made)
        until(lambda: replayable(made) > REQUESTS, 60)
        yield made


def replayable(made: Running) -> int:
    """Explored decisions that every tier has answered by now."""
    return int(made.get("/admin/console/replay", policy="default", tier="cheap").json()["rows"])


def request(made: Running, chance: random.Random) -> None:
    """One with a cheap answer whose p is about true, and a label."""
    p = min(0.99, max(0.05, chance.betavariate(4, 1)))
    nats = min(-0.001, (math.log(p / (1 - p)) - 4) / 10)  # the calibrator of tests/faults/gateway.py
    small = "The answer is 42" if chance.random() < p else "The answer is 41"
    large = "The answer is 42" if chance.random() < 0.95 else "The answer is 40"
    answer = made.client.post("/v1/chat/completions", json=ask({"nats": nats, "text": small}, {"text": large}))
    assert answer.status_code == 200, answer.text
    told = answer.json()
    right = told["choices"][0]["message"]["content"].endswith("42")
    made.ids.append(told["id"])
    assert made.client.post("/v1/feedback", json={"id": told["id"], "label": right}).status_code == 201


def evil(made: Running) -> None:
    """A prompt, an answer and a comment that would run if anybody took them for markup."""
    body = ask({"nats": -0.1, "text": EVIL})
    body["messages"].insert(0, {"role": "user", "content": EVIL})
    headers = {"content-type": "application/json"}
    told = made.client.post("/v1/chat/completions", content=json.dumps(body), headers=headers)
    assert told.status_code == 200, told.text
    label = {"id": told.json()["id"], "label": False, "comment": EVIL}
    assert made.client.post("/v1/feedback", json=label).status_code == 201
    made.ids.append(told.json()["id"])


@dataclass
class Visit:
    """A page, with everything it asked for and complained of."""

    page: Page
    asked: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


def visit(context: BrowserContext) -> Visit:
    made = Visit(context.new_page())
    made.page.on("request", lambda request: made.asked.append(request.url))
    made.page.on("pageerror", lambda error: made.complaints.append(str(error)))
    made.page.on("console", lambda told: made.complaints.append(told.text) if told.type in BAD else None)
    made.page.on("dialog", lambda dialog: (made.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    return made


BAD = ("error", "warning")


def sign_in(page: Page, url: str, key: str = "sk-root") -> None:
    """As an operator does, and wait for the figures."""
    page.goto(url)
    page.get_by_label("Admin key").fill(key)
    page.keyboard.press("Enter")
    shown(page)


def shown(page: Page) -> None:
    """Wait for the figures."""
    page.locator("#decisions table").wait_for()
    page.locator("#replay-chart svg, #replay-chart .empty").first.wait_for()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light") as made:
        made.set_default_timeout(PATIENCE_MS)
        yield made


@pytest.fixture(scope="module")
def tab(browser: Browser, served: Running) -> Iterator[Page]:
    """In which somebody has signed in."""
    with browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light") as made:
        made.set_default_timeout(PATIENCE_MS)
        page = visit(made).page
        sign_in(page, served.url)
        yield page


@pytest.fixture
def page(tab: Page) -> Page:
    """Loaded anew in a tab that has the key."""
    tab.reload()
    shown(tab)
    return tab
