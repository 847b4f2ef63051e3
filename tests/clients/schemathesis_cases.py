"""Generated requests over the whole description: no 5xx, and nothing that the description does not say.

    BASE=... KEY=... .clients/schemathesis/bin/python tests/clients/schemathesis_cases.py --cases 50000 --workers 4

What the description cannot say is left out of the checks: rules about several fields, and what the tiers of one
configuration can do, so a request of the described form may get a 400.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

SETTINGS = """\
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "409", "413", "422", "429", "501", "503"]

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "413", "415", "422", "429", "501", "503"]
"""
# 501: /v1/feedback where no store is configured. 503: the same while it cannot write. No other 5xx is let pass:
# not_a_server_error is a check of its own.


def operations(description: bytes) -> int:
    return sum(len(methods) for methods in json.loads(description)["paths"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    least = int(os.environ.get("CASES", "1000"))
    parser.add_argument("--cases", type=int, default=least, help="at least so many requests, over all operations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    wanted = parser.parse_args()
    base, key = os.environ["BASE"], os.environ["KEY"]
    asked = urllib.request.Request(f"{base}/openapi.json", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(asked) as told:
        each = math.ceil(wanted.cases / operations(told.read()))
    with tempfile.TemporaryDirectory() as name:
        settings = Path(name) / "schemathesis.toml"
        settings.write_text(SETTINGS)
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(settings), "run",
                f"{base}/openapi.json", "--header", f"Authorization: Bearer {key}", "--max-examples", str(each),
                "--seed", str(wanted.seed), "--workers", str(wanted.workers), "--exclude-checks", "unsupported_method",
                "--no-color",
            ],
            cwd=name, capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        sys.exit(done.stdout[-20000:] + done.stderr[-2000:])
    counted = re.search(r"(\d[\d,]*) generated", done.stdout)
    assert counted, done.stdout[-2000:]
    print(f"{counted[1]} cases, none wrong")


if __name__ == "__main__":
    main()
