"""`make pictures`: those of docs/console.md, of the console of a pocket gateway that has really answered.

The gateway is the one of `make serve` on ports and in a folder of its own. Held-out questions are asked of it over
HTTP, an operator labels the explored ones by the target, the monitors look, and Chromium takes the pictures. Nothing
is recorded beforehand. More is explored than one would, so that some hundred questions are enough, and a look at
drift takes fewer rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import yaml
from playwright.sync_api import FloatRect, Page, sync_playwright

from eval.datasets import Question, pocket
from eval.grade import Grade, grade
from gateway import ids
from gateway.store.base import Source
from tests.console.conftest import FLAGS, chromium, sign_in
from tests.faults.gateway import ROOT, free_port, running

LIVE, DOCS = ROOT / "deploy/pocket/live.yaml", ROOT / "docs"
CLIENTS = 4  # more wait for each other, and the objective for latency breaks
EXPLORED, ROWS = 0.5, 200
ADMIN = {"authorization": "Bearer sk-root"}
WIDTH, GAP = 1280, 16
PATIENCE_MS = 60_000
QUIET_LOOKS = 10


def plan(port: int) -> dict[str, Any]:
    """live.yaml with its files named from here and everything that is learnt kept in its own folder."""
    told: dict[str, Any] = yaml.safe_load(LIVE.read_text())
    for tier in told["tiers"]:
        tier["engine"]["model"] = str(LIVE.parent / tier["engine"]["model"])
        for name in {"calibrator", "prefix_calibrator"} & tier.keys():
            tier[name] = str(LIVE.parent / tier[name])
    for name in ("reference", "card"):
        told["monitors"][name] = str(LIVE.parent / told["monitors"][name])
    told["monitors"] |= {"rows": ROWS, "every_seconds": 1}
    told["keys"]["admins"][0]["key"] = "env:ADMIN_KEY"
    told["ids"], told["store"] = {"keep": "ids.secret"}, {"sqlite": "decisions.sqlite", "seconds": 20}
    told["rollout"] |= {"folder": "rollout"}
    told["exploration"] = {"share": EXPLORED}
    return told | {"server": {"port": 0}, "admin": {"port": port}}


def ask_all(url: str, questions: list[Question]) -> dict[str, bool]:
    """Ask them all; by decision, whether the answer was right."""

    def ask(question: Question) -> tuple[str, bool]:
        body = {"model": "auto", "messages": [{"role": "user", "content": question.text}]}
        answer = client.post("/v1/chat/completions", json=body).raise_for_status()
        text = answer.json()["choices"][0]["message"]["content"]
        return answer.headers["x-route-id"], grade(text, question.target).grade is Grade.RIGHT

    with httpx2.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(CLIENTS) as pool:
        return dict(pool.map(ask, questions))


def label(url: str, admin: str, right: dict[str, bool]) -> int:
    """As an operator does who is asked for labels: of what was explored, and of nothing else."""
    wanting = httpx2.get(f"{admin}/admin/decisions", params={"wanting": True, "limit": 1000}, headers=ADMIN, timeout=60)
    numbers = [row["number"] for row in wanting.raise_for_status().json()["data"]]
    known = {ids.number_of(one): (one, was) for one, was in right.items()}
    items = [
        {"id": known[number][0], "label": known[number][1], "source": str(Source.OPERATOR)}
        for number in numbers
        if number in known
    ]
    httpx2.post(f"{url}/v1/feedback", json={"items": items}, headers=ADMIN, timeout=60).raise_for_status()
    return len(items)


def rest(admin: str) -> None:
    """Wait for the shadows of explored decisions: until no tier has had anything to do for a while."""
    quiet = 0
    while quiet < QUIET_LOOKS:
        time.sleep(1)
        tiers = httpx2.get(f"{admin}/admin/tiers", headers=ADMIN, timeout=60).raise_for_status().json()
        quiet = 0 if any(tier["in_flight"] or tier["waiting"] for tier in tiers) else quiet + 1


def draw(admin: str, out: Path) -> None:
    """The upper half of the page, light and dark, and what the monitors say by itself."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        for scheme in ("light", "dark"):
            context = browser.new_context(
                viewport={"width": WIDTH, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
            )
            context.set_default_timeout(PATIENCE_MS)
            page = context.new_page()
            sign_in(page, f"{admin}/admin/console")
            another_threshold(page)
            name = "console" if scheme == "light" else "console-dark"
            save(page, out / f"{name}.png", 0, reach(page, "replay")[1])
            if scheme == "light":
                save(page, out / "console-drift.png", *reach(page, "monitors"))
            context.close()
        browser.close()


def reach(page: Page, section: str) -> tuple[float, float]:
    """Where a section begins and ends, from the page's top."""
    box = page.locator(f"section[aria-labelledby={section}-title]").bounding_box()
    assert box is not None
    return box["y"] - GAP, box["y"] + box["height"] + GAP


def save(page: Page, path: Path, top: float, bottom: float) -> None:
    """A part of the page as it lies, not as it is scrolled to: the header would lie on it."""
    clip: FloatRect = {"x": 0, "y": top, "width": WIDTH, "height": bottom - top}
    page.screenshot(path=path, full_page=True, clip=clip)


def another_threshold(page: Page) -> None:
    """The slider, some steps from the policy, so that both points are to be seen."""
    page.locator("#replay-tier").select_option("pocket-small")
    page.locator("#replay-chart svg[aria-label*=pocket-small]").wait_for()
    page.get_by_role("slider").focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    page.locator("#replay-readout tbody tr").first.wait_for()
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")


def main() -> int:
    parser = argparse.ArgumentParser(description="Picture the console of a pocket gateway that really answers.")
    parser.add_argument("--questions", type=int, default=300, help="to ask, of split test")
    parser.add_argument("--out", type=Path, default=DOCS, help="a folder")
    given = parser.parse_args()
    port = free_port()
    admin = f"http://127.0.0.1:{port}"
    with (
        tempfile.TemporaryDirectory(prefix="confgate-picture-") as folder,
        running(Path(folder), plan(port), ADMIN_KEY="sk-root") as gateway,
    ):
        right = ask_all(gateway.url, pocket.load(split="test", n=given.questions))
        print(f"{len(right)} questions asked, {sum(right.values())} answered right")

        rest(admin)
        print(f"{label(gateway.url, admin, right)} of them labelled")
        draw(admin, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
