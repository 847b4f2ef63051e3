"""Commands that ask a running gateway: to whom the key goes, and what is told of one that is given wrong."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from gateway import remote
from gateway.errors import ConfigError, GatewayError


class Seen(http.server.BaseHTTPRequestHandler):
    """Answers everything, and says who was asked for what."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{self.path} {self.headers['authorization']}".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Seen) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_an_admins_key_goes_past_the_environments_proxy(
    variable: str, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_KEY", "sk-root")
    monkeypatch.setenv(variable, "http://127.0.0.1:1")
    assert remote.ask(f"{address}/", "/metrics", "env:A_KEY") == "/metrics Bearer sk-root"


@pytest.mark.parametrize("pasted", ["sk-root", "SK_ROOT", "sk:root", "env:sk-root", "env:A\nsk-root"])
def test_a_key_that_was_pasted_is_not_repeated(pasted: str, address: str) -> None:
    with pytest.raises(ConfigError, match="--key wants env:NAME or file:PATH") as caught:
        remote.ask(address, "/metrics", pasted)
    assert pasted not in str(caught.value)


def test_what_is_no_address_is_told_in_one_line() -> None:
    for url in ("http://[", "nowhere", "http://127.0.0.1:1"):
        with pytest.raises(GatewayError) as caught:
            remote.ask(url, "/metrics", None)
        assert str(caught.value).startswith(url)
