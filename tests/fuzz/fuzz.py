"""Coverage-guided fuzzing of one target by atheris: `python -m tests.fuzz.fuzz sse --seconds 3600`.

atheris is no dependency of anything: install it next to the test environment where this is to run (Linux, CPython). It
starts from sound inputs and from all found before; what breaks a target is left in tests/fuzz/cases/TARGET/.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "calibrators"]):
    from tests.fuzz.targets import TARGETS, seeds

CASES = Path(__file__).parent / "cases"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__)
    cli.add_argument("target", choices=sorted(TARGETS))
    cli.add_argument("--seconds", type=int, default=3600)
    args = cli.parse_args()
    found = CASES / args.target
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(args.target)):
            (Path(corpus) / f"seed-{number}").write_bytes(seed)
        limits = [f"-max_total_time={args.seconds}", "-timeout=10", "-max_len=20000", "-rss_limit_mb=4096"]
        atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}/", corpus, str(found)], TARGETS[args.target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
