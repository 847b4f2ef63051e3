"""How a question is put to a model. The prompt decides what a confidence means, so each has a hash that goes with it.

boxed    zero-shot chat, the answer in a box: how Qwen's own mathematics evaluation asks
shots    chain of thought by example: questions with worked solutions, shown as earlier turns of the chat
file     a text file of the user's own, {question} where the question goes
plain    the question alone, for models that were trained on just that
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.datasets import Question
from gateway.errors import ConfigError
from gateway.nouns import Message

PLACE = "{question}"

# System text of the template qwen25-math-cot in QwenLM/Qwen2.5-Math; temperature 0, no examples.
BOXED_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."

# Eight, as in Wei et al. 2022 (arXiv:2201.11903), whose exemplars are not from GSM8K; ours are, by id.
SHOTS = 8


class ShownQuestion(ConfigError):
    """A question that is to be asked stands in the prompt with its solution."""

    def __init__(self, question: str) -> None:
        super().__init__(
            f"question {question!r} is one of the prompt's own examples; take other examples, or leave it out"
        )
        self.question = question


@dataclass(frozen=True, slots=True)
class Shot:
    """One example in a prompt. id: the question's, so that it is never asked."""

    id: str
    question: str
    solution: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """name: for people.  template: the user's turn, {question} where the question goes.  system: "" for no such turn.
    shots: shown before, in this order, in the same template."""

    name: str
    template: str = PLACE
    system: str = ""
    shots: tuple[Shot, ...] = ()

    def __post_init__(self) -> None:
        if PLACE not in self.template:
            raise ConfigError(f"the prompt {self.name} needs {PLACE} where the question goes, got {self.template!r}")

    def messages(self, question: Question) -> tuple[Message, ...]:
        """The chat that ends with this question. Raises ShownQuestion."""
        if question.id in {shot.id for shot in self.shots}:
            raise ShownQuestion(question.id)
        turns = [Message("system", self.system)] if self.system else []
        for shot in self.shots:
            turns += [Message("user", self._put(shot.question)), Message("assistant", shot.solution)]
        return (*turns, Message("user", self._put(question.text)))

    def _put(self, text: str) -> str:
        return self.template.replace(PLACE, text)  # not format: questions and templates hold braces of their own

    @property
    def sha256(self) -> str:
        """Hash of everything a model sees but the question. Of a template alone it is the template's own hash, which
        is what records of such a prompt carry."""
        if not self.system and not self.shots:
            return hashlib.sha256(self.template.encode()).hexdigest()
        told = [self.template, self.system, [[shot.question, shot.solution] for shot in self.shots]]
        return hashlib.sha256(json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def plain() -> Prompt:
    return Prompt("plain")


def boxed() -> Prompt:
    """Zero-shot, as Qwen2.5's mathematics evaluation asks instruct models. What our reference accuracies were had
    with (science 8.2)."""
    return Prompt("boxed", system=BOXED_SYSTEM)


def shots(train: Iterable[Question], ids: Sequence[str] | None = None) -> Prompt:
    """Worked examples out of the user's own training questions, which are never shipped with this program.

    train: eval.datasets.load("gsm8k", folder, split="train"), or any that carry solutions.  ids: which to show, in
    this order; None shows the first eight that have a solution. Solutions come without the <<...>> annotations and end
    in "#### answer", as published. Raises ConfigError that names what is missing.
    """
    known = {question.id: question for question in train}
    if ids is None:
        ids = [question.id for question in known.values() if question.solution][:SHOTS]
        if len(ids) < SHOTS:
            raise ConfigError(f"{SHOTS} examples need as many worked solutions, got {len(ids)}; name fewer by id")
    absent = [one for one in ids if one not in known]
    if absent:
        raise ConfigError(f"no question {absent[0]!r} to show as an example, among {len(known)} given")
    bare = [one for one in ids if not known[one].solution]
    if bare or len(set(ids)) < len(ids) or not ids:
        raise ConfigError(
            f"examples need distinct questions with worked solutions, got {', '.join(bare or ids) or 'none'}"
        )
    chosen = [known[one] for one in ids]
    return Prompt(f"{len(ids)}-shot", shots=tuple(Shot(one.id, one.text, one.solution) for one in chosen))


def from_file(path: Path) -> Prompt:
    """The user's own template, taken to the last byte. Raises ConfigError."""
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompt {path}: {getattr(error, 'strerror', None) or error}") from None
    return Prompt(path.stem, template)
