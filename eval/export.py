"""Records in the formats of other tools: lm-evaluation-harness (results and samples) and inspect (a JSON log).

One run per tier, and one for the cascade as a whole where a policy is given. What those formats have no place for
(features, probabilities, hops, cost) stands under one key of our own, `route`; in an inspect log, in the metadata.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from eval import records, tables
from eval.datasets import Question
from eval.grade import Grade, Graded
from eval.prompts import Prompt
from eval.records import MANIFEST, RECORDS, BadRecords, Collected, Manifest, Record
from eval.replay import Replayed, replay
from gateway import confidence
from gateway.errors import BadTrace
from gateway.nouns import Evidence, Finish, Policy, TokenTrace

Json = dict[str, Any]


class Format(StrEnum):
    """Whose format."""

    LM_EVAL = "lm-eval"
    INSPECT = "inspect"


class OtherQuestions(BadRecords):
    """The questions at hand are not those that were answered."""

    def __init__(self, file: Path, why: str) -> None:
        super().__init__(
            file, f"these are not the questions that were answered ({why}); name the same --dataset, --data and --seed"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One answer, ready to be written. number: from 0, of its question.  route: what only we know."""

    number: int
    question: Question
    record: Record
    messages: tuple[Mapping[str, str], ...]
    route: Json

    @property
    def graded(self) -> Graded:
        truncated = self.record.finish is Finish.LENGTH
        return Graded(self.record.grade, self.record.rule, self.record.answer, truncated)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything about a run but its samples.

    model: the tier's name, or the name under which clients ask for the cascade.  about: who answered.
    n: questions asked of it.  route: what only we know.
    """

    model: str
    manifest: Manifest
    created: dt.datetime
    task: str
    n: int
    about: Mapping[str, str]
    route: Json = field(default_factory=dict)

    @property
    def stamp(self) -> str:
        """The time as file names have it, in UTC."""
        return self.created.strftime("%Y-%m-%dT%H-%M-%S.%f")

    @property
    def folder(self) -> str:
        """The model's name as a folder, as lm-evaluation-harness makes it."""
        return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", self.model)


@dataclass(slots=True)
class Tally:
    """What a run comes to."""

    right: int = 0
    strict: int = 0
    asked: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0

    def add(self, sample: Sample) -> None:
        self.asked += 1
        self.right += sample.record.grade is Grade.RIGHT
        self.strict += sample.graded.strict is Grade.RIGHT
        self.prompt_tokens += sample.record.prompt_tokens
        self.completion_tokens += sample.record.completion_tokens
        self.usd += sample.record.usd


class Writer(Protocol):
    """Takes a run's samples one by one; `close` finishes its files and tells which they are."""

    def add(self, sample: Sample) -> None: ...

    def close(self, tally: Tally) -> list[Path]: ...


def export(
    source: Path,
    questions: Sequence[Question],
    prompt: Prompt,
    out: Path,
    formats: Iterable[Format],
    created: dt.datetime,
    route: Policy | None = None,
) -> list[Path]:
    """Write every tier's run, and the cascade's where a policy is given, each format into a folder of its own. Returns
    the files.

    source: the folder of a collection.  questions, prompt: what was asked, which records do not hold.
    Answers that never came are in no sample; their number shows in the run's sizes.
    Raises OtherQuestions, BadRecords, and BadTrace when a calibrator's feature cannot be had.
    """
    manifest = records.read_manifest(source / MANIFEST)
    check_same(source / MANIFEST, manifest, questions, prompt)
    known = {(question.split, question.id): (number, question) for number, question in enumerate(questions)}
    makers = [partial(WRITERS[one], out / one.value) for one in formats]

    def sample(record: Record, told: Json) -> Sample:
        number, question = known[record.split, record.question]
        messages = tuple({"role": turn.role, "content": turn.content} for turn in prompt.messages(question))
        return Sample(number, question, record, messages, told)

    def run_of(model: str, about: Mapping[str, str], **told: Any) -> Run:
        return Run(model, manifest, created, manifest.dataset, len(questions), about, told)

    tiers = {
        tier.name: Book(run_of(tier.name, tier.fingerprint, tier=tier_facts(tier)), makers) for tier in manifest.tiers
    }
    features: dict[str, tuple[str, ...]] = {}
    for record in records.read(source / RECORDS):
        if record.text is not None:
            tiers[record.tier].add(sample(record, {**own(record), "features": measured(record, features)}))
    books = list(tiers.values())
    if route is not None:
        name = "auto" if route.name == "default" else f"auto:{route.name}"
        steps = [
            {"tier": tier.name, "accept_at": tier.threshold, "calibrator": tier.calibrator_id} for tier in route.tiers
        ]
        books.append(Book(run_of(name, {"model": name}, policy=route.name, steps=steps), makers))
        for replayed in replay(records.read(source / RECORDS), route):
            books[-1].add(sample(*served(replayed, name)))
    return [path for book in books for path in book.close()]


class Book:
    """One run while it is written, in every format asked for."""

    def __init__(self, run: Run, makers: Sequence[Callable[[Run], Writer]]) -> None:
        self._tally = Tally()
        self._writers = [make(run) for make in makers]

    def add(self, sample: Sample) -> None:
        self._tally.add(sample)
        for writer in self._writers:
            writer.add(sample)

    def close(self) -> list[Path]:
        return [path for writer in self._writers for path in writer.close(self._tally)]


def check_same(file: Path, manifest: Manifest, questions: Sequence[Question], prompt: Prompt) -> None:
    """Raises OtherQuestions when the questions or the prompt are not those of the collection."""
    if prompt.sha256 != manifest.prompt:
        raise OtherQuestions(file, f"their prompt has the hash {prompt.sha256[:12]}, not {manifest.prompt[:12]}")
    if records.questions_sha256(questions) != manifest.data_sha256:
        raise OtherQuestions(file, f"{len(questions)} with another hash, {sum(manifest.splits.values())} there")


# What only we know


def tier_facts(tier: Collected) -> Json:
    return {
        "engine": tier.engine,
        "fingerprint": dict(tier.fingerprint),
        "usd_per_mtok_in": tier.usd_per_mtok_in,
        "usd_per_mtok_out": tier.usd_per_mtok_out,
    }


def own(record: Record) -> Json:
    return {
        "tier": record.tier,
        "split": record.split,
        "question": record.question,
        "family": record.family,
        "slices": dict(record.slices),
        "answer": record.answer,
        "rule": record.rule.value,
        "grade": record.grade.value,
        "finish": record.finish and record.finish.value,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "seconds": record.seconds,
        "usd": record.usd,
    }


def measured(record: Record, known: dict[str, tuple[str, ...]]) -> dict[str, float]:
    """The usual features of one answer, those that are defined. known: by tier, those its evidence supports."""
    if record.trace is None or record.text is None:
        return {}
    evidence = Evidence(record.trace, record.text)
    if record.tier not in known:
        known[record.tier] = tuple(tables.supported(tables.FEATURES, evidence))
    try:
        told = confidence.measure(known[record.tier], evidence)
    except BadTrace:
        return {}
    return {name: float(value) for name, value in zip(told.names, told.values, strict=True) if math.isfinite(value)}


def served(replayed: Replayed, model: str) -> tuple[Record, Json]:
    """The cascade's answer to one question as a record of its own: it cost what all hops up to it cost."""
    hops = replayed.hops[: replayed.at + 1]
    paid = [replayed.records[hop.tier] for hop in hops]
    record = replace(
        paid[-1],
        tier=model,
        prompt_tokens=sum(one.prompt_tokens for one in paid),
        completion_tokens=sum(one.completion_tokens for one in paid),
        seconds=sum(one.seconds for one in paid),
        usd=sum(one.usd for one in paid),
    )
    told = [
        {"tier": hop.tier, "p_correct": hop.p_correct, "seconds": one.seconds, "usd": one.usd}
        for hop, one in zip(hops, paid, strict=True)
    ]
    return record, {**own(record), "tier": hops[-1].tier, "p_correct": hops[-1].p_correct, "hops": told}


# lm-evaluation-harness

FILTERS: Mapping[str, Callable[[Graded], Grade]] = {
    "strict-match": lambda graded: graded.strict,
    "flexible-extract": lambda graded: graded.grade,
}
INVALID = "[invalid]"  # what that tool's own filters say where they find no answer


class LmEval:
    """{model}/results_{time}.json and {model}/samples_{task}_{time}.jsonl, two lines a sample as its GSM8K task has:
    `strict-match` wants a box or "####", `flexible-extract` takes any final number."""

    def __init__(self, out: Path, run: Run) -> None:
        self._run = run
        folder = out / run.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._results = folder / f"results_{run.stamp}.json"
        self._samples = folder / f"samples_{run.task}_{run.stamp}.jsonl"
        self._file: TextIO = self._samples.open("w", encoding="utf-8")
        self._hashes = hashlib.sha256()

    def add(self, sample: Sample) -> None:
        for name, read in FILTERS.items():
            line = lm_eval_sample(sample, self._run, name, read(sample.graded))
            self._hashes.update("".join(line[part] for part in ("doc_hash", "prompt_hash", "target_hash")).encode())
            self._file.write(dumped(line) + "\n")

    def close(self, tally: Tally) -> list[Path]:
        self._file.close()
        told = lm_eval_results(self._run, tally, self._hashes.hexdigest())
        self._results.write_text(json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")
        return [self._results, self._samples]


def lm_eval_sample(sample: Sample, run: Run, filter_name: str, grade: Grade) -> Json:
    question, record = sample.question, sample.record
    doc = {"id": question.id, "question": question.text, "answer": question.target, "split": question.split}
    prompt = json.dumps(sample.messages, ensure_ascii=False)
    read = record.answer if grade in (Grade.RIGHT, Grade.WRONG) and record.answer else INVALID
    return {
        "doc_id": sample.number,
        "doc": doc,
        "target": question.target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": generation(run)}},
        "resps": [[record.text]],
        "filtered_resps": [read],
        "filter": filter_name,
        "metrics": ["exact_match"],
        "doc_hash": sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256(prompt),
        "target_hash": sha256(question.target),
        "exact_match": float(grade is Grade.RIGHT),
        "route": sample.route,
    }


def lm_eval_results(run: Run, tally: Tally, task_hash: str) -> Json:
    """The file of results. Standard errors are of a mean over independent questions, as that tool computes them."""
    scores: Json = {"alias": run.task, "sample_len": tally.asked}
    for name, right in (("strict-match", tally.strict), ("flexible-extract", tally.right)):
        if tally.asked:
            scores[f"exact_match,{name}"] = right / tally.asked
            scores[f"exact_match_stderr,{name}"] = standard_error(right, tally.asked)
    manifest = run.manifest
    return {
        "results": {run.task: scores},
        "group_subtasks": {run.task: []},
        "configs": {
            run.task: {
                "task": run.task,
                "dataset_path": manifest.dataset,
                "output_type": "generate_until",
                "description": manifest.system,
                "doc_to_text": manifest.template.replace("{question}", "{{question}}"),
                "doc_to_target": "{{answer}}",
                "num_fewshot": len(manifest.shots),
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
                "generation_kwargs": generation(run),
                "repeats": 1,
                "metadata": {"version": manifest.schema_version, "data_sha256": manifest.data_sha256},
            }
        },
        "versions": {run.task: manifest.schema_version},
        "n-shot": {run.task: len(manifest.shots)},
        "higher_is_better": {run.task: {"exact_match": True}},
        "n-samples": {run.task: {"original": run.n, "effective": tally.asked}},
        "config": {
            "model": run.about.get("engine", "confidence-gateway"),
            "model_args": dict(run.about),
            "batch_size": None,
            "limit": None,
            "gen_kwargs": generation(run),
            "random_seed": manifest.seed,
        },
        "git_hash": None,
        "date": run.created.timestamp(),
        "task_hashes": {run.task: task_hash},
        "model_source": "confidence-gateway",
        "model_name": run.model,
        "model_name_sanitized": run.folder,
        "system_instruction": manifest.system or None,
        "system_instruction_sha": sha256(manifest.system) if manifest.system else None,
        "chat_template": None,
        "chat_template_sha": run.about.get("chat_template_sha256"),
        "route": {**run.route, "records": facts(manifest)},
    }


# inspect

STOP_REASONS = {
    Finish.STOP: "stop",
    Finish.LENGTH: "max_tokens",
    Finish.TOOL_CALLS: "tool_calls",
    Finish.CONTENT_FILTER: "content_filter",
}
SCORER = "exact_rational"


class Inspect:
    """{time}_{task}_{id}.json, a log of version 2. Samples go to the end of the file as they come: the head, which
    needs their sum, is written first and put before them when they are all there."""

    def __init__(self, out: Path, run: Run) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._run = run
        self.id = identifier(run.model, run.manifest.data_sha256, run.stamp)
        self._path = out / f"{run.created:%Y-%m-%dT%H-%M-%S+00-00}_{slug(run.task)}-{slug(run.model)}_{self.id}.json"
        self._draft = self._path.with_suffix(records.DRAFT)
        self._file: TextIO = self._draft.open("w", encoding="utf-8")
        self._ids: list[str] = []

    def add(self, sample: Sample) -> None:
        told = inspect_sample(sample, self._run)
        self._file.write(("," if self._ids else "") + "\n" + dumped(told))
        self._ids.append(told["id"])

    def close(self, tally: Tally) -> list[Path]:
        self._file.close()
        head = json.dumps(inspect_head(self._run, tally, self._ids, self.id), ensure_ascii=False, allow_nan=False)
        with self._path.open("w", encoding="utf-8") as whole, self._draft.open(encoding="utf-8") as samples:
            whole.write(head[:-1] + ', "samples": [')
            whole.writelines(samples)
            whole.write("]}\n")
        self._draft.unlink()
        return [self._path]


def inspect_head(run: Run, tally: Tally, ids: Sequence[str], eval_id: str) -> Json:
    manifest, when = run.manifest, run.created.isoformat(timespec="seconds")
    metrics = {}
    if tally.asked:
        error = standard_error(tally.right, tally.asked)
        metrics = {
            "accuracy": {"name": "accuracy", "value": tally.right / tally.asked, "params": {}},
            "stderr": {"name": "stderr", "value": error, "params": {}},
        }
    usage = {run.model: usage_of(tally.prompt_tokens, tally.completion_tokens, tally.usd)}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": eval_id,
            "run_id": identifier(manifest.data_sha256, run.stamp),
            "created": when,
            "task": run.task,
            "task_id": identifier(run.task),
            "task_version": manifest.schema_version,
            "task_attribs": {},
            "task_args": {},
            "dataset": {"name": manifest.dataset, "samples": len(ids), "sample_ids": list(ids), "shuffled": False},
            "model": run.model,
            "model_generate_config": inspect_config(manifest),
            "model_args": dict(run.about),
            "config": {"epochs": 1, "log_samples": True},
            "packages": dict(manifest.versions),
            "metadata": {"route": {**run.route, "records": facts(manifest)}},
            "scorers": [{"name": SCORER, "metrics": [{"name": "accuracy"}, {"name": "stderr"}]}],
        },
        "plan": {
            "name": "plan",
            "steps": [{"solver": "generate", "params": {"template": manifest.template, "system": manifest.system}}],
            "config": inspect_config(manifest),
        },
        "results": {
            "total_samples": run.n,
            "completed_samples": tally.asked,
            "scores": [{"name": SCORER, "scorer": SCORER, "scored_samples": tally.asked, "metrics": metrics}],
        },
        "stats": {"started_at": when, "completed_at": when, "model_usage": usage},
    }


def inspect_sample(sample: Sample, run: Run) -> Json:
    question, record = sample.question, sample.record
    said = {"role": "assistant", "content": record.text, "source": "generate", "model": run.model}
    usage = usage_of(record.prompt_tokens, record.completion_tokens, record.usd)
    choice: Json = {"message": said, "stop_reason": STOP_REASONS[record.finish] if record.finish else "unknown"}
    if record.trace is not None and record.trace.tokens:
        choice["logprobs"] = {"content": logprobs(record.trace)}
    return {
        "id": f"{question.split}/{question.id}",
        "epoch": 1,
        "input": [dict(message) for message in sample.messages],
        "target": question.target,
        "messages": [*(dict(message) for message in sample.messages), said],
        "output": {
            "model": run.model,
            "choices": [choice],
            "completion": record.text,
            "usage": usage,
            "time": record.seconds,
        },
        "scores": {
            SCORER: {
                "value": "C" if record.grade is Grade.RIGHT else "I",
                "answer": record.answer,
                "explanation": f"rule {record.rule.value}: {record.grade.value}",
            }
        },
        "metadata": {"route": sample.route},
        "store": {},
        "events": [],
        "model_usage": {run.model: usage},
        "total_time": record.seconds,
    }


def logprobs(trace: TokenTrace) -> list[Json]:
    """Of every token the emitted one; the candidates' texts were never recorded, so no list of them can be given."""
    return [
        {"token": token.decode("utf-8", "replace"), "logprob": float(nats), "bytes": list(token)}
        for token, nats in zip(trace.tokens, trace.chosen, strict=True)
    ]


def inspect_config(manifest: Manifest) -> Json:
    return {"temperature": 0.0, **({"max_tokens": manifest.max_tokens} if manifest.max_tokens else {})}


def usage_of(prompt_tokens: int, completion_tokens: int, usd: float) -> Json:
    return {
        "input_tokens": prompt_tokens,
        "output_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "total_cost": usd,
    }


# Small parts of both


def generation(run: Run) -> Json:
    told: Json = {"do_sample": False, "temperature": 0.0, "until": []}
    return told | ({"max_gen_toks": run.manifest.max_tokens} if run.manifest.max_tokens else {})


def facts(manifest: Manifest) -> Json:
    return {
        name: getattr(manifest, name)
        for name in ("data_sha256", "prompt", "top_k", "seed", "command", "created", "schema", "schema_version")
    } | {"splits": dict(manifest.splits), "versions": dict(manifest.versions)}


def standard_error(right: int, n: int) -> float:
    """Of a mean of zeros and ones, with n - 1 as both tools do; 0 for a single one."""
    share = right / n
    return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def identifier(*parts: str) -> str:
    """22 letters and digits that are the same for the same run, as inspect's ids look."""
    return sha256("\0".join(parts))[:22]


def slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def dumped(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


WRITERS: Mapping[Format, Callable[[Path, Run], Writer]] = {Format.LM_EVAL: LmEval, Format.INSPECT: Inspect}
