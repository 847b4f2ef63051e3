"""Coverage-guided fuzzing of one target by atheris: `python -m tests.fuzz.fuzz sse --seconds 3600`.

atheris is no dependency of anything: install it next to the test environment where this is to run (Linux, CPython). It
starts from sound inputs and from all found before; what breaks a target is left in tests/fuzz/cases/TARGET/. With
--out the run's figures are written, in the place of an earlier run's of the same target.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

from tests.fuzz.targets import CASES, TARGETS

# libFuzzer's own lines: `#2  INITED cov: 116 ft: 116 corp: 1/1019b ...`, `#122975  DONE  cov: 180 ...`.
STATUS = re.compile(r"#(\d+)\s+(\w+)\s+cov: (\d+) ft: (\d+) corp: (\d+)/")
ENDED = re.compile(r"Done (\d+) runs in (\d+) second")


def figures(lines: Iterable[str]) -> dict[str, int]:
    """What libFuzzer told: executions, seconds, and the edges of our code that inputs reached, at first and in the end.

    Without `seconds` the run did not come to its end. Raises ValueError when there is no status line.
    """
    told: dict[str, int] = {}
    for line in lines:
        if status := STATUS.search(line):
            executions, edges, features, kept = (int(status[group]) for group in (1, 3, 4, 5))
            told.setdefault("edges_at_first", edges)
            told |= {"executions": executions, "edges": edges, "features": features, "inputs_kept": kept}
        if ended := ENDED.search(line):
            told |= {"executions": int(ended[1]), "seconds": int(ended[2])}
    if not told:
        raise ValueError("libFuzzer told nothing: it did not start")
    return told


def written(out: Path, target: str, run: Mapping[str, object]) -> None:
    """The run's figures beside those of other targets."""
    runs = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(dict(sorted((runs | {target: run}).items())), indent=1) + "\n")


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("target", choices=sorted(TARGETS))
    cli.add_argument("--seconds", type=int, default=3600)
    cli.add_argument("--out", type=Path, help="a JSON file for the figures")
    args = cli.parse_args()
    places = CASES / args.target
    places.mkdir(parents=True, exist_ok=True)
    before = set(places.iterdir())
    # libFuzzer ends its whole process, so it gets one of its own.
    command = [sys.executable, "-m", "tests.fuzz.libfuzzer", args.target, str(args.seconds), str(places)]
    lines = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as fuzzer:
        assert fuzzer.stderr is not None
        for line in fuzzer.stderr:
            sys.stderr.write(line)
            lines.append(line)
    found = sorted(path.name for path in set(places.iterdir()) - before)
    run = figures(lines) | {"found": found, "atheris": version("atheris")}
    print(json.dumps(run, indent=1))
    if args.out:
        written(args.out, args.target, run)
    if found or fuzzer.returncode:
        sys.exit(f"{args.target}: {', '.join(found) or 'no input kept'} (exit status {fuzzer.returncode})")


if __name__ == "__main__":
    main()
