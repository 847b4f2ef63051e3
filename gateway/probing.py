"""Whether a tier's server is still the one that its calibrator belongs to: one short greedy question, now and then.

A server tells its model's name, and not which weights it loaded. So what it makes of one fixed question is kept the
first time that a calibrator is used with it: how many tokens the prompt has, which shows another template or tokenizer,
and the log-probs of the answer, which show other weights. The question goes past the tier's guard, is in no client's
figures, and is not asked while the breaker is open.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from urllib.parse import quote

from gateway.engines._replicas import Replicas
from gateway.errors import ConfigError, StoreDown
from gateway.nouns import GREEDY, Ask, Engine, Message, Tier

SECONDS = 15.0  # for one question
# Nothing has one right answer to it: models that are both sure of the same words could not be told apart.
QUESTION = (Message("user", "Write one surprising sentence about a lighthouse, a spoon, 7 wolves and the sea."),)
TIE_NATS = log(0.5)  # two tokens that rounding may choose between have half of the probability each, at the most


@dataclass(frozen=True, slots=True)
class Print:
    """What one server says of itself, told: by the fingerprint's names, and what it makes of the question.

    tokens, nats: of the greedy answer, () where the server tells no log-probs; then text is all there is.
    """

    told: Mapping[str, str]
    model: str
    prompt_tokens: int
    text: str
    tokens: tuple[str, ...]
    nats: tuple[float, ...]


async def ask(engine: Engine, tokens: int) -> Print:
    """Raises EngineError, and TimeoutError when a server takes longer than SECONDS."""
    async with asyncio.timeout(SECONDS):
        told = await engine.fingerprint()
        deadline = asyncio.get_running_loop().time() + SECONDS
        answer = await engine.complete(Ask(QUESTION, deadline, max_tokens=tokens, sampling=GREEDY))
    trace = answer.trace
    return Print(
        dict(told),
        answer.model,
        answer.prompt_tokens,
        answer.text,
        () if trace is None else tuple(token.decode("utf-8", "backslashreplace") for token in trace.tokens),
        () if trace is None else tuple(trace.chosen.tolist()),
    )


def servers(tier: Tier) -> Sequence[tuple[str, Engine]]:
    """(address, engine) of all that answer for a tier; the address is "" where there is one."""
    return tier.engine.members if isinstance(tier.engine, Replicas) else [("", tier.engine)]


def may_ask(tier: Tier, now: float) -> bool:
    """Whether nothing speaks against bothering its server. now: seconds on the loop's clock."""
    return not tier.guard.breaker.is_open and not tier.guard.pause.left(now)


def difference(first: Print, now: Print, tolerance_nats: float) -> str:
    """In words, "" where both are the same model. tolerance_nats: mean difference of log-probs that is rounding's."""
    for name in sorted(first.told.keys() & now.told.keys()):
        if first.told[name] != now.told[name]:
            return f"{name} was {first.told[name]!r}, is {now.told[name]!r}"
    if first.model != now.model:
        return f"answers came from {first.model!r}, come from {now.model!r}"
    if first.prompt_tokens != now.prompt_tokens:
        told = f"had {first.prompt_tokens} tokens, has {now.prompt_tokens}"
        return f"the same prompt {told}: another template or tokenizer"
    if not first.nats or not now.nats:
        return "" if first.text == now.text else "the same question has another greedy answer"
    pairs = list(zip(first.tokens or first.nats, now.tokens or now.nats, strict=False))
    same = next((at for at, (old, new) in enumerate(pairs) if old != new), len(pairs)) if first.tokens else len(pairs)
    if same < len(pairs) and max(first.nats[same], now.nats[same]) > TIE_NATS + tolerance_nats:
        return f"greedy answers part after {same} tokens, and not for a tie: other weights"
    apart = [abs(old - new) for old, new in zip(first.nats[:same], now.nats[:same], strict=True)]
    if apart and (mean := sum(apart) / same) > tolerance_nats:
        return f"log-probs of the same tokens are {mean:.3f} nats apart in the mean: other weights"
    return ""


class Prints:
    """What was seen first, one file for each tier, server and artefact; beside the artefacts, shared like them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "fingerprints"

    def path(self, tier: str, server: str, sha256: str) -> Path:
        place = "@".join(part for part in (quote(tier, safe=""), quote(server, safe="")) if part)
        return self._folder / f"{place}.{sha256[:12]}.json"

    def first(self, tier: str, server: str, sha256: str, now: Print) -> Print:
        """What was seen first, which is this when there is nothing yet. Raises ConfigError for a file that is none."""
        path = self.path(tier, server, sha256)
        try:
            if not path.exists():
                self._keep(path, now)
            told = json.loads(path.read_bytes())
            return Print(**{**told, "tokens": tuple(told["tokens"]), "nats": tuple(told["nats"])})
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path} is no fingerprint ({error}); take it away to bind the tier anew") from None
        except OSError as error:
            raise StoreDown(f"{path}: {error.strerror or error}") from error

    def _keep(self, path: Path, seen: Print) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=self._folder, prefix=".draft-") as draft:
            json.dump(asdict(seen), draft)
            draft.flush()
            os.fsync(draft.fileno())
            try:
                os.link(draft.name, path)
            except FileExistsError:
                return  # another worker was faster: its counts
        path.chmod(0o644)
