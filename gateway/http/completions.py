"""POST /v1/completions: OpenAI's older form. A raw prompt goes on; no message, no chat template.

The prompt reaches a tier's own completions endpoint as it is. Calibrators are fitted on chat, with its template around
the question, so what they say about such an answer is nothing: `overrides.able` leads the request to the last tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Discriminator, Field, Tag

from gateway.http import reply
from gateway.http.wire import Request, Text, Tokens, written_as
from gateway.nouns import Ability, CallPart, Completion, Message

Json = dict[str, Any]

READ_TEXT = msgspec.json.Decoder(str)
UNTOLD_TOKENS = 16  # OpenAI's own default, and vLLM's

Prompt = Annotated[
    Annotated[Text, Field(min_length=1), Tag("<string>")]
    | Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=1), Tag("<parts>")],
    Discriminator(written_as),
]


class CompletionRequest(Request):
    """The body of POST /v1/completions. A field that is null counts as absent."""

    prompt: Prompt = Field(description="one text; lists of several, and of token ids, are not taken")
    max_tokens: Tokens | None = Field(default=None, description=f"absent: {UNTOLD_TOKENS}")
    logprobs: int | None = Field(default=None, ge=0, le=5)
    echo: Literal[False] | None = Field(default=None, description="not supported, but false is taken")
    suffix: str | None = Field(default=None, max_length=0, description="not supported, but an empty one is taken")
    best_of: int | None = Field(default=None, ge=1, le=1, description="not supported, but 1 is taken")

    @property
    def tokens_wanted(self) -> int:
        return self.max_tokens or UNTOLD_TOKENS

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    @property
    def candidates(self) -> int:
        return self.logprobs or 0

    @property
    def asked(self) -> tuple[tuple[Message, ...], str]:
        return (), self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def needs(self) -> dict[Ability, str]:
        return {Ability.RAW_PROMPT: "prompt"} | super().needs()


class TextForm:
    """Text completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def choice(self, number: int, completion: Completion, request: Request) -> Json:
        logprobs = self.logprobs(reply.entries(completion.trace, request)) if reply.asked(request) else None
        return self.delta(number, completion.text, logprobs) | {"finish_reason": completion.finish}

    def first(self, number: int) -> None:
        """Nobody has a role here."""

    def delta(self, number: int, text: str, logprobs: Any = None, calls: Sequence[CallPart] = ()) -> Json:  # noqa: ARG002
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": None}

    def last(self, number: int, finish: Any) -> Json:
        return self.delta(number, "") | {"finish_reason": finish}

    def logprobs(self, told: list[reply.Entry] | None, offset: int = 0) -> Json:
        """Parallel lists. text_offset: where each token begins, in characters of the answer."""
        entries = told or []
        tokens = [text_of(one) for one in entries]
        return {
            "tokens": tokens,
            "token_logprobs": [one.logprob for one in entries],
            "top_logprobs": [{text_of(rival): rival.logprob for rival in one.top_logprobs} or None for one in entries],
            "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
        }


def text_of(one: reply.Spoken) -> str:
    return READ_TEXT.decode(one.token)


TEXT = TextForm()
