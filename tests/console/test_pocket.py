"""The console in front of the cascade of `make serve`: real models, answers and labels, in a real browser."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import BrowserContext, expect

from eval.datasets import pocket
from tests.console import picture
from tests.console.conftest import sign_in, visit
from tests.faults.gateway import free_port, running, until

pytest.importorskip("torch")
QUESTIONS = 4


def test_it_shows_what_a_pocket_gateway_answered_and_what_became_of_it(context: BrowserContext, tmp_path: Path) -> None:
    port = free_port()
    admin = f"http://127.0.0.1:{port}"
    plan = picture.plan(port) | {"exploration": {"share": 1.0}}
    with running(tmp_path, plan, ADMIN_KEY="sk-root") as gateway:
        right = picture.ask_all(gateway.url, pocket.load(split="test", n=QUESTIONS))
        until(lambda: wanting(admin) == QUESTIONS, 200)
        assert picture.label(gateway.url, admin, right) == QUESTIONS
        page = visit(context).page
        sign_in(page, f"{admin}/admin/console")
        tiles = page.locator("#tiles")
        expect(tiles).to_contain_text(f"Requests{QUESTIONS}")
        expect(tiles).to_contain_text(re.compile(rf"pocket-\w+\d+\.\d % .*of {QUESTIONS} answers"))
        rows = page.locator("#decisions tbody tr")
        expect(rows).to_have_count(QUESTIONS)
        expect(rows.locator("td:last-child", has_text=re.compile("^right$"))).to_have_count(sum(right.values()))
        expect(page.locator("#monitors")).to_contain_text(re.compile(r"expected by 1,000 answers of the reference"))
        expect(page.get_by_role("region", name="Rollout at pocket-nano", exact=True)).to_contain_text("pocket-nano@")


def wanting(admin: str) -> int:
    """Decisions that were explored and want a label."""
    told = httpx2.get(f"{admin}/admin/decisions", params={"wanting": True}, headers=picture.ADMIN, timeout=30)
    return len(told.json()["data"])
