"""What strangers' bytes reach: each target takes any bytes and raises only what must never happen.

`hypothesis` draws for them in the suite; `python -m tests.fuzz.fuzz TARGET --seconds N` drives them by coverage. What a
run finds goes to tests/fuzz/cases/TARGET/ and is tried in every suite from then on.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calibrators import artifact
from calibrators.base import CalibrationError
from gateway import config, ids
from gateway.engines import _compact, _reply, _stream
from gateway.errors import BadId, BadTrace, ConfigError, EngineError, ForeignId
from gateway.nouns import Ask, TokenTrace

ASKS = tuple(
    Ask((), 0.0, max_tokens=50, top_k=top_k, texts=texts, evidence=True)
    for top_k, texts in ((0, False), (2, False), (2, True), (0, True))
)
SEAL = ids.Seal(b"s" * 32)
CASES = Path(__file__).parent / "cases"  # by target


def sse(raw: bytes) -> None:
    """A stream, whole and in pieces: the same end either way, and what was told piece by piece is the text."""
    if len(raw) < 2:
        return
    ask, size, told = ASKS[raw[0] % len(ASKS)], 1 + raw[1] % 37, raw[2:]
    ends = [streamed(ask, [told]), streamed(ask, [told[at : at + size] for at in range(0, len(told), size)])]
    assert ends[0] == ends[1], (ends, told)


def streamed(ask: Ask, pieces: list[bytes]) -> object:
    assembly, heard = _stream.Assembly(ask, "fuzz", "small"), []
    try:
        for piece in pieces:
            found = assembly.take(piece)
            heard.append(found.text if found else "")
            if assembly.done:
                break
        answered, end = assembly.finished()
    except EngineError as error:
        return type(error)
    heard.append(end.text if end else "")
    assert "".join(heard) == answered.text
    sound(answered.trace)
    return answered.text, answered.finish, answered.trace is None


def logprobs(raw: bytes) -> None:
    """A whole reply: an answer, or an EngineError; its evidence is sound, or there is a reason why there is none."""
    for ask in ASKS:
        try:
            answered = _reply.read(raw, ask, "fuzz")
        except EngineError:
            continue
        assert (answered.trace is None) == bool(answered.no_trace)
        sound(answered.trace)
        with contextlib.suppress(BadTrace):
            sound(_compact.read(answered.confidence, answered.completion_tokens, 20, answered.trace))
        with contextlib.suppress(BadTrace):
            summed = _compact.summary(answered.confidence, answered.completion_tokens, 20, 32)
            assert summed.length > 0
            assert all(math.isfinite(number) for views in summed.views.values() for number in views.values())
            assert summed.views.get("top1", {}).get("max", 0.0) <= 1e-4


def sound(trace: TokenTrace | None) -> None:
    if trace is not None:
        assert np.isfinite(trace.chosen).all()
        assert trace.chosen.max() <= 1e-4
        assert not trace.tokens or len(trace.tokens) == trace.chosen.size
        assert all(np.isfinite(signal).all() for signal in trace.signals.values())


def artefact(raw: bytes) -> None:
    """A file that says it is a calibrator: refused in words, or one that gives probabilities."""
    try:
        loaded = artifact.Artifact._from_document(artifact._parse(raw, "fuzz"), "fuzz")
        calibrator = loaded.calibrator()
    except artifact.ArtifactError:
        return
    with contextlib.suppress(CalibrationError):
        p = calibrator.predict(np.zeros((1, len(loaded.features))))
        assert p.shape == (1,)
        assert 0 <= float(p[0]) <= 1


def resealed(raw: bytes) -> None:
    """The same behind the seal: a document whose hash is right, whatever it says."""
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(raw)
        if isinstance(document, dict):
            document.pop("sha256", None)
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                document["sha256"] = artifact._sha256(document)
            artefact(json.dumps(document).encode())


def configuration(raw: bytes) -> None:
    with contextlib.suppress(ConfigError, UnicodeDecodeError):
        config.parse(raw.decode(), Path("fuzz.yaml"))


def decision_id(raw: bytes) -> None:
    """No bytes are an id, but for those that were made here."""
    with contextlib.suppress(BadId, ForeignId):
        SEAL.open(raw.decode("utf-8", "surrogateescape"), "tenant")
        raise AssertionError(f"an id that nobody made was taken: {raw!r}")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "sse": sse,
    "logprobs": logprobs,
    "artefact": artefact,
    "resealed": resealed,
    "configuration": configuration,
    "decision_id": decision_id,
}


# Where each begins: something sound.


def entry(text: str, nats: float) -> dict[str, Any]:
    told = {"token": text, "logprob": nats, "bytes": list(text.encode())}
    return told | {"top_logprobs": [told, {"token": "x", "logprob": nats - 1, "bytes": [120]}]}


def reply() -> dict[str, Any]:
    entries = [entry(text, -0.1) for text in ("Hé", " 4", "2", "<|im_end|>")]
    arrays = dict.fromkeys(_compact.NAMES, "ALAAsACwALA=")
    confidence = {"schema": _compact.SCHEMA, "tokens": 4, "k": 20, "window": 32, "greedy": True, "ended": True}
    summary = {"top1": {"mean": -0.1, "max": -0.05, "bottom_tokens": -0.2, "end": -0.1}, "margin": {"min": 0.5}}
    return {
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hé 42"},
                "logprobs": {"content": entries},
                "finish_reason": "stop",
                "confidence": confidence | {"arrays": {"dtype": "float16"} | arrays, "summary": summary},
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }


def stream() -> bytes:
    parts = []
    for text in ("Hé", " 4", "2"):
        choice = {"index": 0, "delta": {"content": text}, "logprobs": {"content": [entry(text, -0.1)]}}
        parts.append({"model": "m", "choices": [choice | {"finish_reason": None}]})
    parts.append({"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    events = [json.dumps(part).encode() for part in parts] + [b"[DONE]"]
    return b"\x02\x05" + b"".join(b"data: " + event + b"\n\n" for event in events)


def seeds(target: str) -> list[bytes]:
    root = Path(__file__).parents[2]
    match target:
        case "sse":
            return [stream()]
        case "logprobs":
            return [json.dumps(reply()).encode()]
        case "artefact" | "resealed":
            return [path.read_bytes() for path in sorted((root / "deploy/pocket/calibrators").glob("*.json"))]
        case "configuration":
            return [
                path.read_bytes() for path in sorted(root.glob("deploy/*/c*.yaml")) if b"tiers:" in path.read_bytes()
            ]
        case _:
            return [SEAL.seal(ids.number(1e9), "somebody else", tier="t", p_correct=math.e / 3).encode()]
