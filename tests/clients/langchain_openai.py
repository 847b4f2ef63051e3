"""LangChain's ChatOpenAI, unchanged but for base_url."""

from __future__ import annotations

import asyncio
import json
import os
import sys

sys.path.pop(0)  # this script's folder: it must not stand in for the package of its name

from langchain_openai import ChatOpenAI

chat = ChatOpenAI(base_url=f"{os.environ['BASE']}/v1", api_key=os.environ["KEY"], model="auto", max_retries=0)


def said(**small: object) -> str:
    return json.dumps({"small": small, "large": small})


answer = chat.bind(logprobs=True, top_logprobs=3).invoke(said())
assert answer.content == "The answer is 42"
entries = answer.response_metadata["logprobs"]["content"]
assert "".join(entry["token"] for entry in entries) == "The answer is 42"
assert len(entries[0]["top_logprobs"]) == 3
assert answer.response_metadata["finish_reason"] == "stop"
assert answer.usage_metadata["total_tokens"] == 12

pieces = list(chat.stream(said(), stream_usage=True))
assert "".join(piece.content for piece in pieces) == "The answer is 42"
assert sum(piece.usage_metadata["total_tokens"] for piece in pieces if piece.usage_metadata) == 12

many = asyncio.run(chat.abatch([said(text=f"nonce {n}") for n in range(20)]))
assert [one.content for one in many] == [f"nonce {n}" for n in range(20)]


def weather(city: str) -> str:
    """How warm it is in a city."""
    return city


called = chat.bind_tools([weather]).invoke(said(calls=[["weather", '{"city": "Bern"}']]))
assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Bern"})]
try:
    chat.invoke(said(fault="overflow"))
    raise AssertionError("a prompt over the window was taken")
except Exception as error:
    assert "context" in str(error).lower(), error
