"""One run of libFuzzer, by atheris: `python -m tests.fuzz.libfuzzer TARGET SECONDS PLACE`, which `fuzz.py` starts."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway", "calibrators"]):
    from tests.fuzz.targets import TARGETS, seeds

    for _name, _target in TARGETS.items():  # what is imported when it is needed is instrumented too
        for _seed in seeds(_name):
            _target(_seed)


def words(target: str) -> str:
    """A dictionary for libFuzzer: the names and words that its seeds are written in, which chance would not find."""
    found = {word for seed in seeds(target) for word in re.findall(rb'"[A-Za-z_][\w./@-]{1,30}"', seed)}
    plain = {"null", "true", "false", "NaN", "1e999", "-1e-9", "[]", "{}", '""', "\\\\ud800", "data: ", "[DONE]"}
    return "\n".join(f'"{escaped(word)}"' for word in sorted({*(word.decode() for word in found), *plain}))


def escaped(word: str) -> str:
    return word.replace('"', '\\"')


def main() -> None:
    target, seconds, place = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        for number, seed in enumerate(seeds(target)):
            (corpus / f"seed-{number}").write_bytes(seed)
        Path(folder, "words").write_text(words(target) + "\n")
        limits = ["-timeout=10", "-max_len=20000", "-rss_limit_mb=4096", f"-max_total_time={seconds}"]
        limits += [f"-artifact_prefix={place}/", f"-dict={folder}/words"]
        atheris.Setup([sys.argv[0], *limits, str(corpus), place], TARGETS[target])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
