"""The bench's figures as a page, each next to what it has to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Json = dict[str, Any]

MOST_CPU_MS = {"gateway compact": 0.45, "gateway chosen": 0.7, "gateway top-5": 1.9, "gateway top-20": 3.5}
LITELLM_CPU_MS = 20.0  # what its pass-through took where the four figures above were set
ADDED_P99_MS = 10.0
RESIDENT_MIB = 120.0
TIMES_LITELLM = 25.0
TIMES_BARE = 2.0


def markdown(found: Json) -> str:
    return "\n".join(
        [*head(found), "", *figures(found), "", *latencies(found), "", *processes(found), "", *bars(found), ""]
    )


def head(found: Json) -> Iterator[str]:
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    peers = ", ".join(f"{name} {version}" for name, version in machine.get("peers", {}).items())
    yield "# What a decision costs"
    yield ""
    yield f"Written by `{found['command']}`, commit {machine['commit']}; do not edit."
    yield ""
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, {versions}"
        f"{'; others: ' + peers if peers else ''}. Load average of the machine "
        f"{found['load']['average_before']:.1f} before, {found['load']['average_after']:.1f} after; "
        f"the run itself is about 2. It took {found['seconds']} s."
    )
    yield ""
    sizes = ", ".join(f"{kind} {size / 1000:.1f} kB" for kind, size in found["bytes"].items())
    yield (
        f"Answers of {found['tokens']} tokens from one fast upstream: {sizes}. Servers on one core, load and upstream "
        f"on another, {found['connections']} connections. Medians of rounds in turn [least, largest]. "
        "`gateway`: one tier decides by a calibrator of 8 to 10 features; its clients see no log-probs. "
        "The others pass the same bytes on to a client who asked for them."
    )


def figures(found: Json) -> Iterator[str]:
    yield "| server, evidence | CPU ms/request | requests/s | n |"
    yield "| --- | --: | --: | --: |"
    for name, one in found["figures"].items():
        yield f"| {name} | {told(one['cpu_ms'], '.3g')} | {told(one['per_second'], '.0f')} | {one['n']} |"


QUEUE_P99 = 5.5  # of an M/D/1 queue at 60 %, in service times: what arrivals by chance make of it without any pause


def latencies(found: Json) -> Iterator[str]:
    """What servers add, beside what the machine itself makes of the least proxy there can be."""
    yield (
        "Added latency: quantiles at 60 % of the server's own requests/s, looked up anew before each turn of a second, "
        "less those straight to the upstream at the same rate; medians of turns [least, largest], and those of all "
        "turns together. `bare` is what the bare pass-through adds at that rate, in turn with it. Busy: what the "
        "server used of its core meanwhile. Others' share: what the hypervisor kept of both cores and what other "
        "processes had of the server's, in seconds per second. Queue: what Poisson arrivals make of a server that "
        f"takes its CPU per request for each and never pauses ({QUEUE_P99:g} times that, M/D/1 at 60 %)."
    )
    yield ""
    yield (
        "| server, evidence | per second | busy | added p50 | added p99 | of all together | "
        "bare p99 | of all together | others' share | queue p99 | turns | n |"
    )
    yield "| --- |" + " --: |" * 11
    for name, one in found["figures"].items():
        added = one.get("added")
        if added:
            queue = QUEUE_P99 * one["cpu_ms"]["median"]
            yield (
                f"| {name} | {added['per_second']:.0f} | {added['busy_share']:.0%} | {told(added['p50_ms'], '.2f')} | "
                f"{told(added['p99_ms'], '.2f')} | {added['p99_ms']['together']:.2f} | "
                f"{told(added['bare_p99_ms'], '.2f')} | {added['bare_p99_ms']['together']:.2f} | "
                f"{added['taken_share']:.0%} | {queue:.1f} | {added['turns']} | {added['n']} |"
            )


def told(value: Json, form: str) -> str:
    return f"{value['median']:{form}} [{value['least']:{form}}, {value['largest']:{form}}]"


def processes(found: Json) -> Iterator[str]:
    yield "| process | listening after, s | resident, MiB |"
    yield "| --- | --: | --: |"
    for name, one in found["servers"].items():
        yield f"| {name} | {one['ready_seconds']:.2f} | {one['resident_mib']:.0f} |"


def bars(found: Json) -> Iterator[str]:
    """Each bar with what was found; nothing is said of what was not measured."""
    figures = found["figures"]
    yield "| bar | wanted | found | |"
    yield "| --- | --: | --: | --- |"

    def row(what: str, wanted: str, value: str, met: bool) -> str:
        return f"| {what} | {wanted} | {value} | {'met' if met else '**missed**'} |"

    litellm = figures.get("litellm plain")
    for name, most in MOST_CPU_MS.items():
        if name in figures:
            cpu = figures[name]["cpu_ms"]["median"]
            yield row(f"CPU of {name}, ms", f"<= {most}", f"{cpu:.3g}", cpu <= most)
            if litellm:
                share = cpu / litellm["cpu_ms"]["median"]
                wanted = most / LITELLM_CPU_MS
                yield row("the same where LiteLLM takes 1", f"<= {wanted:.4g}", f"{share:.4g}", share <= wanted)
    compact = figures.get("gateway compact")
    if compact and litellm:
        times = compact["per_second"]["median"] / litellm["per_second"]["median"]
        yield row("requests/s, compact, x LiteLLM", f">= {TIMES_LITELLM:g}", f"{times:.1f}", times >= TIMES_LITELLM)
    if compact and "pass-through compact" in figures:
        for what, key in (("CPU", "cpu_ms"), ("time per request", "per_second")):
            ours, bare = compact[key]["median"], figures["pass-through compact"][key]["median"]
            times = ours / bare if key == "cpu_ms" else bare / ours
            yield row(
                f"{what}, compact, x bare pass-through", f"<= {TIMES_BARE:g}", f"{times:.2f}", times <= TIMES_BARE
            )
    for name, one in figures.items():
        if name.startswith("gateway") and "added" in one:
            p99 = one["added"]["p99_ms"]["median"]
            yield row(f"added p99 of {name}, ms", f"< {ADDED_P99_MS:g}", f"{p99:.2f}", p99 < ADDED_P99_MS)
    memory = found["servers"]["gateway"]["resident_mib"]
    yield row("resident memory, MiB", f"< {RESIDENT_MIB:g}", f"{memory:.0f}", memory < RESIDENT_MIB)
    idle = found.get("idle")
    if idle:
        without, crowded = (idle["cpu_ms"][name] for name in ("without", "with"))
        what = f"CPU per request with {idle['connections']} idle connections, ms"
        yield row(what, f"as without: {without:.2f}", f"{crowded:.2f}", crowded <= 1.1 * without)
        for at in ("p50", "p99"):
            without, crowded = (idle[f"{at}_ms"][name]["median"] for name in ("without", "with"))
            # as good as unchanged: within a quarter or a millisecond, whichever is more
            met = crowded <= without + max(1.0, without / 4)
            what = f"{at} with {idle['connections']} idle connections, ms"
            yield row(what, f"as without: {without:.2f}", f"{crowded:.2f}", met)
