"""Hostile requests over everything the gateway says it has, against a real one: none may be answered with a 5xx.

`python -m tests.fuzz.http_cases --cases 50000`. Cases are drawn from the gateway's own OpenAPI document: sound values,
values of the wrong kind, missing and unknown fields; wrong methods, paths, headers and framing; and bytes that are no
HTTP at all. The upstream behaves, so a 5xx is the gateway's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import string
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench import servers

CONNECTIONS = 16
ANSWER_SECONDS = 30.0
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "FOO")
ODD_TEXT = (
    "",
    "\x00",
    "\ud800",
    "é" * 50,
    "a" * 5000,
    "../../etc/passwd",
    "${jndi:x}",
    "{{7*7}}",
    "\r\nx: y",
    "0",
    "null",
)
ODD_NUMBERS = (0, -1, 1, 1e308, -1e308, 2**31, 2**63, 2**64, 10**400, 0.1, -0.0)
ODD_HEADERS = (
    "authorization: Bearer", "authorization: Basic x", "content-type: text/plain", "content-type: application/json;x=y",
    "content-encoding: gzip", "x-request-id: \x01", "x-route-debug: true", "accept: */*", "expect: 100-continue",
    "host: evil.example", "x-route-debug: \xff", "cookie: a=b", "range: bytes=0-1", "content-length: 3",
    "transfer-encoding: chunked", "connection: close", "upgrade: h2c", "x: " + "y" * 70_000,
)  # fmt: skip

Json = Any


@dataclass
class Drawn:
    """Requests from a seed. document: the gateway's OpenAPI document."""

    document: dict[str, Json]
    rng: random.Random

    def request(self) -> bytes:
        if self.rng.random() < 0.03:
            return self.rng.randbytes(self.rng.randrange(1, 300)) + b"\r\n\r\n"
        path, methods = self.rng.choice(sorted(self.document["paths"].items()))
        method, told = self.rng.choice(sorted(methods.items()))
        body = self.body(told)
        method = method.upper() if self.rng.random() < 0.93 else self.rng.choice(METHODS)
        path = "".join(self.odd_path() if "{" in part else part for part in path.replace("{", "\n{").split("\n"))
        if self.rng.random() < 0.05:
            path += self.odd_path()
        if self.rng.random() < 0.1:
            path += "?" + self.odd_path()
        lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
        if body:
            lines.append("content-type: application/json")
        lines += [self.rng.choice(ODD_HEADERS) for _ in range(self.rng.choice((0, 0, 0, 0, 1, 2)))]
        length = len(body) if self.rng.random() < 0.98 else self.rng.randrange(0, 2 * len(body) + 2)
        lines.append(f"content-length: {length}")
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body

    def odd_path(self) -> str:
        letters = string.ascii_letters + string.digits + "/%._-~&=?;@:\x00\xff "
        return "".join(self.rng.choice(letters) for _ in range(self.rng.randrange(0, 30)))

    def body(self, told: dict[str, Json]) -> bytes:
        schema = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if schema is None and self.rng.random() < 0.9:
            return b""
        value = self.value(schema or {}, wrong=0.0 if self.rng.random() < 0.15 else 0.06)
        raw = json.dumps(value, ensure_ascii=self.rng.random() < 0.9).encode("utf-8", "surrogatepass")
        if self.rng.random() < 0.08:
            at = self.rng.randrange(len(raw) + 1)
            raw = raw[:at] + self.rng.choice((b"", b"\x00", b"\xff", b"[" * 300, b"{", b'"', b"1e999")) + raw[at + 1 :]
        return raw

    def value(self, schema: dict[str, Json], wrong: float, depth: int = 0) -> Json:
        """Mostly what the schema wants."""
        if self.rng.random() < wrong or depth > 8:
            return self.junk(depth)
        if "$ref" in schema:
            at: Json = self.document
            for part in schema["$ref"].removeprefix("#/").split("/"):
                at = at[part]
            return self.value(at, wrong, depth + 1)
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.value(self.rng.choice(schema[several]), wrong, depth + 1)
        if "enum" in schema or "const" in schema:
            return self.rng.choice(schema.get("enum", [schema.get("const")]))
        match schema.get("type"):
            case "object":
                return self.thing(schema, wrong, depth)
            case "array":
                least = schema.get("minItems", 0)
                return [
                    self.value(schema.get("items", {}), wrong, depth + 1)
                    for _ in range(self.rng.randrange(least, least + 3))
                ]
            case "string":
                if self.rng.random() < 0.3:
                    return self.rng.choice(ODD_TEXT)
                return self.rng.choice(
                    ("auto", "auto:default", "user", "system", "default", "compact", "hello", "1", "text")
                )
            case "integer" | "number" as kind:
                low = schema.get("minimum", schema.get("exclusiveMinimum", -5))
                high = min(schema.get("maximum", schema.get("exclusiveMaximum", 100)), 200)
                if self.rng.random() < 0.2:
                    return self.rng.choice(ODD_NUMBERS)
                drawn = self.rng.uniform(max(low, -200), high)
                return int(drawn) if kind == "integer" else drawn
            case "boolean":
                return self.rng.random() < 0.5
            case "null":
                return None
        return self.junk(depth)

    def thing(self, schema: dict[str, Json], wrong: float, depth: int) -> dict[str, Json]:
        known, needed = schema.get("properties", {}), set(schema.get("required", ()))
        told = {
            name: self.value(inner, wrong, depth + 1)
            for name, inner in known.items()
            if (name in needed and self.rng.random() > wrong) or self.rng.random() < 0.15
        }
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict) and self.rng.random() < 0.5:
            told[self.rng.choice(("1", "7", *ODD_TEXT))] = self.value(extra, wrong, depth + 1)
        elif self.rng.random() < 0.05:
            told[self.rng.choice(("tools", "functions", "response_format", "chat_template", "zzz", "n", *ODD_TEXT))] = (
                self.junk(depth)
            )
        return told

    def junk(self, depth: int) -> Json:
        kind = self.rng.randrange(8 if depth < 8 else 5)
        if kind < 2:
            return self.rng.choice(ODD_TEXT)
        if kind < 4:
            return self.rng.choice(ODD_NUMBERS)
        if kind == 4:
            return self.rng.choice((None, True, False, float("nan"), float("inf")))
        if kind < 7:
            return [self.junk(depth + 1) for _ in range(self.rng.randrange(3))]
        return {self.rng.choice(ODD_TEXT): self.junk(depth + 1) for _ in range(self.rng.randrange(3))}


@dataclass
class Found:
    """statuses: by number; 0 where a connection was closed without an answer.  wrong: requests with their replies."""

    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[tuple[bytes, bytes]] = field(default_factory=list)
    silent: list[bytes] = field(default_factory=list)

    def told(self) -> dict[str, Json]:
        return {
            "cases": self.statuses.total(),
            "statuses": {str(status): n for status, n in sorted(self.statuses.items())},
            "answered_5xx": len(self.wrong),
            "unanswered_in_time": len(self.silent),
        }


async def one(port: int, told: bytes, found: Found) -> None:
    """A connection of its own: what is left of a broken request must not be read as the next one's start."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(told)
        async with asyncio.timeout(ANSWER_SECONDS):
            line = await reader.readline()
            while line.startswith(b"HTTP/1.1 100"):
                await reader.readline()
                line = await reader.readline()
            status = int(line.split()[1]) if line.startswith(b"HTTP/") else 0
            rest = await reader.read(2000) if status >= 500 else b""
        found.statuses[status] += 1
        if status >= 500:
            found.wrong.append((told, line + rest))
    except TimeoutError:
        found.silent.append(told)
        found.statuses[0] += 1
    except ConnectionError:
        found.statuses[0] += 1
    finally:
        writer.transport.abort()


async def run(port: int, drawn: Drawn, cases: int) -> Found:
    found, left = Found(), cases

    async def work() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one(port, drawn.request(), found)

    async with asyncio.TaskGroup() as group:
        for _ in range(CONNECTIONS):
            group.create_task(work())
    return found


def attack(cases: int, seed: int, folder: Path) -> Found:
    upstream = servers.free_port()
    command = [sys.executable, "-m", "tests.bench.upstream", str(upstream)]
    more = {"store": {"sqlite": str(folder / "store.db")}, "server": {"receive_seconds": 1}}
    with (
        servers.running("upstream", command, upstream, 0, folder / "upstream.log"),
        servers.gateway(f"http://127.0.0.1:{upstream}/v1", 0, folder, **more) as gateway,
    ):
        address = f"http://127.0.0.1:{gateway.port}"
        with urllib.request.urlopen(f"{address}/openapi.json") as reply:
            document = json.load(reply)
        found = asyncio.run(run(gateway.port, Drawn(document, random.Random(seed)), cases))
        with urllib.request.urlopen(f"{address}/health") as reply:
            assert reply.status == 200
        return found


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("--cases", type=int, default=50_000)
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--out", type=Path, help="a file for the figures")
    args = cli.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = attack(args.cases, args.seed, Path(folder))
    told = {"command": f"python -m tests.fuzz.http_cases --cases {args.cases} --seed {args.seed}"} | found.told()
    print(json.dumps(told | {"seconds": round(time.monotonic() - began)}, indent=1))
    for request, reply in found.wrong[:10]:
        print(f"{request[:1500]!r}\n -> {reply[:600]!r}\n")
    if args.out:
        args.out.write_text(json.dumps(told, indent=1) + "\n")
    sys.exit(1 if found.wrong or found.silent else 0)


if __name__ == "__main__":
    main()
