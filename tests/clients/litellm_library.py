"""The LiteLLM library as a client."""

from __future__ import annotations

import json
import os
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it looks for prices on the internet

import litellm

litellm.num_retries = 0
litellm.suppress_debug_info = True


def ask(model: str = "openai/auto", small: dict[str, object] | None = None, **more: Any) -> Any:
    told = [{"role": "user", "content": json.dumps({"small": small or {}, "large": small or {}})}]
    address = {"api_base": f"{os.environ['BASE']}/v1", "api_key": os.environ["KEY"], "max_retries": 0}
    return litellm.completion(**{"model": model, "messages": told, **address, **more})


answer = ask(logprobs=True, top_logprobs=2)
assert answer.choices[0].message.content == "The answer is 42"
assert answer.usage.total_tokens == 12
assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2
headers = answer._hidden_params["additional_headers"]
assert headers["llm_provider-x-route-tier"] == "cheap", headers
assert 0.8 < float(headers["llm_provider-x-route-confidence"]) < 1

chunks = list(ask(stream=True, stream_options={"include_usage": True}))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "The answer is 42"
assert next(chunk.usage.total_tokens for chunk in reversed(chunks) if getattr(chunk, "usage", None)) == 12

weather = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
called = ask(small={"calls": [["weather", '{"city": "Bern"}']]}, tools=[weather])
assert called.choices[0].finish_reason == "tool_calls"
assert called.choices[0].message.tool_calls[0].function.name == "weather"

for wrong, error in (
    ({"small": {"fault": "overflow"}}, litellm.ContextWindowExceededError),
    ({"model": "openai/atuo"}, litellm.NotFoundError),
    ({"api_key": "wrong"}, litellm.AuthenticationError),
    ({"temperature": 9}, litellm.BadRequestError),
    ({"small": {"fault": "500"}}, (litellm.APIError, litellm.InternalServerError, litellm.BadGatewayError)),
):
    try:
        ask(**wrong)
    except error:
        continue
    raise AssertionError(f"{wrong} was taken")
