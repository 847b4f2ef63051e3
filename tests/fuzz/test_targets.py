"""Strangers' bytes, drawn: none of them breaks a parser, and none that once did does so again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calibrators import artifact
from gateway import config
from gateway.engines import _compact, _reply
from tests.fuzz.targets import ASKS, CASES, SEAL, TARGETS, reply, seeds, stream, streamed

KEPT = sorted(CASES.glob("*/*"))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
OFTEN = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def cut_and_pasted(draw: st.DrawFn, target: str) -> bytes:
    """Something sound with a few bytes dropped, doubled or changed."""
    raw = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        until = min(len(raw), at + draw(st.integers(0, 12)))
        raw[at:until] = draw(st.sampled_from([b"", bytes(raw[at:until]) * 2, b"\r", b"\x00"]) | st.binary(max_size=4))
    return bytes(raw)


@st.composite
def replaced(draw: st.DrawFn, document: Any) -> Any:
    """A document of which one part is something else."""
    if isinstance(document, dict) and document and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(document)))
        return document | {key: draw(replaced(document[key]))}
    if isinstance(document, list) and document and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], draw(replaced(document[at])), *document[at + 1 :]]
    return draw(JUNK)


@pytest.mark.parametrize("target", sorted(TARGETS))
@given(st.data())
@OFTEN
def test_damaged_bytes_do_no_harm(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(cut_and_pasted(target) | st.binary(max_size=200)))


@pytest.mark.parametrize("target", ["logprobs", "artefact", "resealed"])
@given(st.data())
@OFTEN
def test_a_document_with_one_part_of_another_kind_does_no_harm(target: str, data: st.DataObject) -> None:
    sound = json.loads(data.draw(st.sampled_from(seeds(target))))
    TARGETS[target](json.dumps(data.draw(replaced(sound))).encode())


@pytest.mark.parametrize("case", KEPT, ids=lambda path: f"{path.parent.name}-{path.name[:20]}")
def test_what_once_did_harm_does_so_no_more(case: Path) -> None:
    TARGETS[case.parent.name](case.read_bytes())


def test_what_it_begins_with_is_sound() -> None:
    assert isinstance(streamed(ASKS[2], [stream()[2:]]), tuple)
    answered = _reply.read(json.dumps(reply()).encode(), ASKS[2], "fuzz")
    assert answered.trace is not None
    assert _compact.read(answered.confidence, 4, 20, answered.trace).signals
    assert _compact.summary(answered.confidence, 4, 20, 32).views
    for raw in seeds("artefact"):
        assert artifact.Artifact._from_document(artifact._parse(raw, "seed"), "seed").calibrator()
    for raw in seeds("configuration"):
        assert config.parse(raw.decode(), Path("seed.yaml")).tiers
    [made] = seeds("decision_id")
    assert SEAL.open(made.decode(), "somebody else").tier == "t"
