"""The page that shows the API, the description behind it, and browsers that ask from another page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx2
import pytest

from gateway.http import reply
from tests.faults.ask import ask
from tests.faults.gateway import PATIENCE, Gateway, cascade, confgate_ends, running, write_artifact
from tests.faults.upstream import Upstream

PAGE = "https://chat.example"


@pytest.fixture(scope="module")
def locked(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With a key, and a web page that may ask."""
    folder = tmp_path_factory.mktemp("locked")
    write_artifact(folder / "cheap.json")
    config = cascade(upstream.url, keys={"clients": [{"name": "alice", "key": "env:ALICE_KEY"}]})
    config["server"]["cors_origins"] = [PAGE]
    with running(folder, config, ALICE_KEY="sk-alice") as process:
        yield process


def test_the_page_opens_with_the_key_as_a_password_and_with_nothing_else(locked: Gateway) -> None:
    for auth in (None, ("alice", "wrong"), ("sk-alice", "")):
        told = httpx2.get(f"{locked.url}/docs", auth=auth, timeout=PATIENCE)
        assert told.status_code == 401
        assert told.headers["www-authenticate"].startswith("Basic ")
        assert told.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(f"{locked.url}/docs", auth=("anybody", "sk-alice"), timeout=PATIENCE).status_code == 200
    assert (
        httpx2.get(f"{locked.url}/docs", headers={"authorization": "Bearer sk-alice"}, timeout=PATIENCE).status_code
        == 200
    )


def test_everything_the_page_loads_comes_from_here(http: httpx2.Client) -> None:
    page = http.get("/docs")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert "/docs/swagger-ui-bundle.js" in loaded
    for path in loaded:
        assert path == "data:," or (path.startswith("/docs/") and http.get(path).status_code == 200)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    told = http.get("/docs/openapi.json").json()
    assert told == http.get("/openapi.json").json()
    for wrong in ("nothing", "..%2fdocs.py", "README.md"):
        assert http.get(f"/docs/{wrong}").status_code == 404


def test_the_command_prints_what_the_gateway_serves(http: httpx2.Client) -> None:
    code, out, err = confgate_ends("openapi")
    assert code == 0, err
    served = http.get("/openapi.json").json()
    served["paths"].pop("/metrics")  # where no admin listener has it
    printed = json.loads(out)
    assert printed["paths"] == served["paths"]
    assert printed["components"] == served["components"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_every_status_that_a_client_may_meet_is_described(path: str, http: httpx2.Client) -> None:
    told = http.get("/openapi.json").json()["paths"][path]["post"]["responses"]
    assert {"200", "400", "401", "403", "404", "413", "415", "422", "429", "500", "502", "503", "504"} <= set(told)


def test_a_page_of_another_site_may_ask_and_read_our_headers_where_that_is_configured(
    locked: Gateway, http: httpx2.Client
) -> None:
    asks = {"origin": PAGE, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    with httpx2.Client(base_url=locked.url, timeout=PATIENCE) as browser:
        before = browser.options("/v1/chat/completions", headers=asks)
        assert before.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in before.headers["access-control-allow-headers"]
        key = {"authorization": "Bearer sk-alice"}
        answer = browser.post("/v1/chat/completions", json=ask(), headers=key | {"origin": PAGE})
        exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
        assert {name for name in answer.headers if name.startswith(("x-route-", "x-request-"))} <= exposed
        other = browser.post("/v1/chat/completions", json=ask(), headers=key | {"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    assert (
        "access-control-allow-origin"
        not in http.post("/v1/chat/completions", json=ask(), headers={"origin": PAGE}).headers
    )
    assert set(exposed) == set(reply.EXPOSED)


def test_what_another_sites_page_may_not_do_is_told_as_every_error_is(locked: Gateway) -> None:
    for origin, method in (("https://evil.example", "POST"), (PAGE, "DELETE")):
        asks = {"origin": origin, "access-control-request-method": method}
        told = httpx2.options(f"{locked.url}/v1/chat/completions", headers=asks, timeout=PATIENCE)
        assert (told.status_code, told.headers["content-type"]) == (400, "application/json")
        assert told.json()["error"]["message"].startswith("Disallowed CORS ")
