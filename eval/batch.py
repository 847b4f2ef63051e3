"""Batches: questions as request lines for `vllm run-batch` or OpenAI's batch API, and its reply lines as records.

For answers that are computed where no gateway is. A reply is read by the very code that reads a server's, so records
made of a batch are those that collecting over HTTP would have made, but for the seconds, which batches do not tell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from eval import records
from eval.collect import Plan, families_of, told, versions
from eval.datasets import Question
from eval.grade import Grade
from eval.records import MANIFEST, RECORDS, BadRecords, Collected, Manifest, Record
from gateway.engines import _reply
from gateway.engines.openai_http import Options, request_body
from gateway.errors import ConfigError, EngineError
from gateway.nouns import Ask, Completion, Prices

URL = "/v1/chat/completions"
Key = tuple[str, str]  # split, question


def requests(questions: Iterable[Question], model: str, plan: Plan) -> Iterator[str]:
    """One line per question, asking as collecting asks: greedily, with log-probs. `custom_id` is split/id."""
    options = Options.model_validate({"kind": "openai_http", "url": "http://batch/v1", "model": model})
    for question in questions:
        ask = Ask(plan.prompt.messages(question), 0.0, plan.max_tokens, top_k=plan.top_k)
        line = {"custom_id": name(question), "method": "POST", "url": URL, "body": request_body(ask, options)}
        yield json.dumps(line, ensure_ascii=False)


def name(question: Question) -> str:
    return f"{question.split}/{question.id}"


class Response(msgspec.Struct):
    status_code: int = 200
    body: msgspec.Raw = msgspec.Raw(b"null")


class Line(msgspec.Struct):
    """A line of replies. body: of the response, as the server would have sent it."""

    custom_id: str
    response: Response | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


@dataclass(slots=True)
class Replies:
    """What one file says. tier: its name.  model: as the server calls it.  rows: by question; text or why not."""

    file: Path
    tier: str
    model: str = ""
    lines: dict[Key, tuple[int, Line]] = field(default_factory=dict)


def read(file: Path, tier: str, questions: Sequence[Question]) -> Replies:
    """The lines of a file. tier: "" takes the model's name.

    Raises BadRecords naming the line: no reply, an id that no question has, one that comes twice, a second model.
    """
    known = {name(question): (question.split, question.id) for question in questions}
    often = Counter(question.id for question in questions)
    known |= {question.id: (question.split, question.id) for question in questions if often[question.id] == 1}
    found = Replies(file, tier)
    for number, raw in enumerate(_lines(file), start=1):
        if not raw.strip():
            continue
        try:
            line = msgspec.json.decode(raw, type=Line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRecords(file, f"line {number} is no reply of a batch ({error})") from None
        if line.custom_id not in known:
            told = f"no such question was asked; its id must be that of a question, such as {next(iter(known))!r}"
            raise BadRecords(file, f"line {number}: custom_id {line.custom_id!r}: {told}")
        key = known[line.custom_id]
        if key in found.lines:
            told = f"stands on line {found.lines[key][0]} already"
            raise BadRecords(file, f"line {number}: custom_id {line.custom_id!r} {told}")
        found.lines[key] = number, line
        model = _model(line)
        if found.model and model and model != found.model:
            told = f"{model} answers, and {found.model} above; put each model's replies into a file of its own"
            raise BadRecords(file, f"line {number}: {told}")
        found.model = found.model or model
    if not found.model:
        raise BadRecords(file, "no reply in it tells which model answered")
    found.tier = tier or found.model
    return found


def save(folder: Path, questions: Sequence[Question], every: Sequence[Replies], plan: Plan) -> Path:
    """Records and manifest of some files of replies, one tier each. Returns the Parquet file.

    plan: how was asked; its top_k is what can be had at most.  A question without a reply is kept as unasked.
    Raises ConfigError for a tier named twice or a folder that holds records, BadTarget.
    """
    tiers = [one.tier for one in every]
    if len(set(tiers)) < len(tiers):
        raise ConfigError(f"one file for each tier, got {', '.join(tiers)}; name them like small=FILE")
    if (folder / RECORDS).exists():
        raise ConfigError(f"{folder} holds records already; take another --out")
    folder.mkdir(parents=True, exist_ok=True)
    collected = [Collected(name=one.tier, fingerprint={"model": one.model}) for one in every]
    manifest = Manifest(
        dataset=questions[0].dataset,
        splits=dict(Counter(question.split for question in questions)),
        data_sha256=records.questions_sha256(questions),
        template=plan.prompt.template,
        system=plan.prompt.system,
        shots=tuple(shot.id for shot in plan.prompt.shots),
        prompt=plan.prompt.sha256,
        max_tokens=plan.max_tokens,
        top_k=plan.top_k,
        seed=plan.seed,
        tiers=tuple(collected),
        versions=dict(versions()),
        command=plan.command,
        created=plan.created,
    )
    widths = [min(plan.top_k, width(one)) for one in every]
    rows = (
        records.flatten(_record(question, family, one, tier, manifest.prompt, top_k, plan))
        for question, family in zip(questions, families_of(questions), strict=True)
        for one, tier, top_k in zip(every, collected, widths, strict=True)
    )
    records.write(folder / RECORDS, rows)
    records.write_manifest(folder / MANIFEST, manifest)
    return folder / RECORDS


def width(replies: Replies) -> int:
    """How many candidates every token of the first answers has. vLLM adds the chosen token where it is not among the k
    that were asked for, so it is the smallest number that counts; a later answer with fewer has no evidence."""
    smallest: list[int] = []
    for _, line in list(replies.lines.values())[:LOOK_AT]:
        if line.response is None:
            continue
        try:
            choices = _reply.READ_REPLY.decode(line.response.body).choices
            told = [_reply.READ_LEAN.decode(choice.logprobs) for choice in choices]
        except msgspec.DecodeError:
            continue
        smallest += [len(entry.top_logprobs) for one in told if one is not None for entry in one.content or ()]
    return min(smallest, default=0)


LOOK_AT = 50


def _record(
    question: Question, family: str, replies: Replies, tier: Collected, prompt: str, top_k: int, plan: Plan
) -> Record:
    facts: dict[str, Any] = {
        "question": question.id,
        "dataset": question.dataset,
        "split": question.split,
        "family": family,
        "slices": dict(question.slices),
        "tier": tier.name,
        "engine": tier.engine,
        "prompt": prompt,
    }
    number, line = replies.lines.get((question.split, question.id), (0, None))
    if line is None:
        return Record(**facts, grade=Grade.UNASKED, error=f"no reply in {replies.file.name}")
    if line.response is None or line.response.status_code != 200:
        why = bytes(line.error if line.response is None else line.response.body).decode("utf-8", "replace")[:300]
        return Record(**facts, grade=Grade.UNASKED, error=f"line {number}: the server said {why}")
    try:
        ask = Ask((), 0.0, plan.max_tokens, top_k=top_k)
        said = _reply.read(bytes(line.response.body), ask, tier.name)
    except EngineError as error:
        return Record(**facts, grade=Grade.UNASKED, error=f"line {number}: {error}")
    completion = Completion(
        said.text, said.finish, said.prompt_tokens, said.completion_tokens, tier.name, said.model, 0.0, said.trace,
        said.no_trace,
    )  # fmt: skip
    return Record(**facts, **told(completion, question, Prices()))


def _model(line: Line) -> str:
    if line.response is None or line.response.status_code != 200:
        return ""
    try:
        return msgspec.json.decode(line.response.body, type=_reply.BareReply).model
    except msgspec.DecodeError:
        return ""


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as lines:
            yield from lines
    except FileNotFoundError:
        raise BadRecords(file, "there is no such file") from None
    except OSError as error:
        raise BadRecords(file, f"cannot be read: {error.strerror or error}") from None
