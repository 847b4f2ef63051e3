"""The console over HTTP: what is open to anybody, what takes a key, and what is refused in words."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from gateway.errors import StoreDown
from gateway.http import console
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, ROOT, SURE, UNSURE, running, write_artifact
from tests.faults.upstream import Upstream
from tests.http.test_admin import ADMIN, CLIENT, SECRETS, planned


@pytest.fixture(scope="module")
def bare(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """The admin listener of a gateway without a store that has answered twice."""
    folder = tmp_path_factory.mktemp("console")
    write_artifact(folder / "cheap.json")
    plan = planned(upstream.url)
    with (
        running(folder, plan, **SECRETS) as gateway,
        httpx2.Client(base_url=f"http://127.0.0.1:{plan['admin']['port']}", headers=ADMIN, timeout=PATIENCE) as admin,
    ):
        for nats in (SURE, UNSURE):
            httpx2.post(
                f"{gateway.url}/v1/chat/completions", json=ask({"nats": nats}), headers=CLIENT, timeout=PATIENCE
            )
        yield admin


def test_the_page_opens_for_anybody_and_everything_it_loads_is_ours_and_packaged(bare: httpx2.Client) -> None:
    page = httpx2.get(f"{bare.base_url}/admin/console", follow_redirects=True, timeout=PATIENCE)
    assert page.status_code == 200
    seen, waiting = set(), re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert "style=" not in page.text
    assert "<script>" not in page.text
    while waiting:
        path = waiting.pop()
        told = httpx2.get(f"{bare.base_url}{path}", timeout=PATIENCE)
        assert told.status_code == 200, path
        assert told.headers["content-security-policy"] == console.POLICY
        assert told.headers["x-content-type-options"] == "nosniff"
        seen.add(path)
        waiting += {f"/admin/console/page/{name}" for name in re.findall(r'from "\./([^"]+)"', told.text)} - seen
    assert {f"/admin/console/page/{name}" for name in console.FILES} - seen == {"/admin/console/page/index.html"}
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", "".join(bare.get(path).text for path in seen))
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "gateway.console" in packaged["packages"]
    assert {Path(name).suffix for name in console.FILES} <= set(console.KINDS)
    assert "console/page/*" in packaged["package-data"]["gateway"]


def test_its_policy_lets_nothing_in_from_elsewhere_and_nothing_inline(bare: httpx2.Client) -> None:
    policy = bare.get("/admin/console/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


@pytest.mark.parametrize("name", ["nothing.js", "..%2f__init__.py", "%2e%2e/estimates.py", "console.py", ""])
def test_no_other_file_is_given_out(name: str, bare: httpx2.Client) -> None:
    assert bare.get(f"/admin/console/page/{name}").status_code == 404


def test_without_a_store_it_says_so_and_figures_are_refused_in_words(bare: httpx2.Client) -> None:
    told = bare.get("/admin/console/data").json()
    assert told["kept"] is False
    assert [step["tier"] for step in told["policies"][0]["steps"]] == ["cheap", "dear"]
    assert "traffic" not in told
    for path in ("decisions", "replay?policy=default&tier=cheap"):
        refused = bare.get(f"/admin/console/{path}")
        assert refused.status_code == 503
        assert refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("data?window=2y", 400, "there are 15m, 1h"),
        ("data?policy=none", 404, "no such policy"),
        ("replay?policy=none&tier=cheap", 404, "no such policy"),
        ("replay?policy=default&tier=dear", 400, "no threshold for such a tier"),
        ("replay?policy=default", 422, "right form"),
        ("decisions?limit=100000", 422, "right form"),
        ("decisions?before=soon", 422, "right form"),
    ],
)
def test_rubbish_is_refused_in_words(path: str, status: int, words: str, bare: httpx2.Client) -> None:
    told = bare.get(f"/admin/console/{path}")
    assert (told.status_code, words in told.json()["error"]["message"]) == (status, True)


def test_many_who_ask_at_once_are_given_one_answer_and_a_failure_is_not_kept() -> None:
    async def asked() -> None:
        kept, made = console.Kept(), []

        async def make() -> dict[str, object]:
            made.append(1)
            await asyncio.sleep(0.01)
            if len(made) == 1:
                raise StoreDown("away")
            return {"n": len(made)}

        with pytest.raises(StoreDown):
            await kept.get("a", 60.0, make)
        assert await asyncio.gather(*(kept.get("a", 60.0, make) for _ in range(10))) == [{"n": 2}] * 10
        assert await kept.get("b", 60.0, make) == {"n": 3}

    asyncio.run(asked())
