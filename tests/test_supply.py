"""What serving is made of: pinned, hashed, listed, without a file that runs at every start, and never more."""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
MOST = 34  # distributions on Linux, seven of them for the command line; this number may only fall
ENTRY = re.compile(
    r"^([a-z0-9.-]+)==(\S+)(?: ; (.+?))? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


def locked() -> dict[str, str]:
    """Versions by name of what is installed on this platform."""
    text = (REQUIREMENTS / "serve.lock").read_text()
    entries = [match.groups() for match in ENTRY.finditer(text)]
    assert len(entries) == len(re.findall(r"^\S+==", text, re.MULTILINE)), "an entry without a hash"
    return {name: version for name, version, marker, _ in entries if not marker or Marker(marker).evaluate()}


def test_the_count_of_what_serving_needs_may_only_fall(capsys: pytest.CaptureFixture[str]) -> None:
    count = len(locked())
    with capsys.disabled():
        print(f"\nrun-time dependencies: {count} (at most {MOST})")
    assert count <= MOST


def test_none_of_it_brings_a_file_that_runs_at_every_start_of_python() -> None:
    """litellm 1.82.7 was stolen by way of one: a `.pth` file runs whether its package is imported or not."""
    looked_at = 0
    for name in locked():
        try:
            files = metadata.files(name)
        except metadata.PackageNotFoundError:
            continue  # of another platform's marker, or not in this environment
        assert files, name
        looked_at += 1
        assert not [str(file) for file in files if str(file).endswith(".pth")], name
    assert looked_at > 20


def test_what_the_tests_run_on_is_what_serving_runs_on() -> None:
    tested = (REQUIREMENTS / "test.lock").read_text()
    for name, version in locked().items():
        assert f"\n{name}=={version} " in f"\n{tested}", name


def test_the_bill_of_materials_is_that_of_the_lock() -> None:
    bill = json.loads((REQUIREMENTS / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["metadata"]["component"]["name"]) == ("CycloneDX", "confidence-gateway")
    listed = {(part["name"], part["version"]) for part in bill["components"]}
    text = (REQUIREMENTS / "serve.lock").read_text()
    assert listed == {(match[1], match[2]) for match in ENTRY.finditer(text)}, "run make sbom"
    assert all(part["purl"].startswith("pkg:pypi/") for part in bill["components"])
    assert all(
        one["alg"] == "SHA-256"
        for part in bill["components"]
        for ref in part["externalReferences"]
        for one in ref["hashes"]
    )
