"""What a model is asked, to the letter; and that a hash tells two prompts apart."""

import hashlib
from pathlib import Path

import pytest

from eval import datasets, prompts
from eval.datasets import Question
from eval.prompts import Prompt, ShownQuestion
from gateway.errors import ConfigError
from gateway.nouns import Message

SAMPLE = Path(__file__).parents[1] / "data/gsm8k"  # MIT, see its LICENSE
QUESTION = Question("q", "What is {x} + 2 in \\boxed{}?", "4", "own")


@pytest.fixture
def train() -> list[Question]:
    return datasets.load("gsm8k", SAMPLE, split="train")


def test_the_boxed_prompt_is_what_qwen_asks() -> None:
    assert prompts.boxed().messages(QUESTION) == (
        Message("system", "Please reason step by step, and put your final answer within \\boxed{}."),
        Message("user", QUESTION.text),
    )


def test_examples_are_earlier_turns_without_annotations_in_the_order_asked(train: list[Question]) -> None:
    ids = [train[2].id, train[0].id]
    turns = prompts.shots(train, ids).messages(QUESTION)
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant", "user"]
    assert [turns[0].content, turns[2].content] == [train[2].text, train[0].text]
    assert "<<" not in turns[1].content
    assert turns[1].content.splitlines()[-1].startswith("#### ")


def test_eight_examples_are_the_default_and_too_few_are_said(train: list[Question]) -> None:
    many = [Question(f"t{i}", f"text {i}", "1", "own", solution="so #### 1") for i in range(9)]
    assert [shot.id for shot in prompts.shots(many).shots] == [f"t{i}" for i in range(8)]
    with pytest.raises(ConfigError, match=f"got {len(train)}"):
        prompts.shots(train)


def test_a_question_with_its_solution_in_the_prompt_is_never_asked(train: list[Question]) -> None:
    prompt = prompts.shots(train, [train[0].id])
    with pytest.raises(ShownQuestion, match=train[0].id):
        prompt.messages(train[0])
    assert len(prompt.messages(train[1])) == 3


@pytest.mark.parametrize(
    ("ids", "told"), [(["nowhere"], "no question 'nowhere'"), (["bare"], "worked solutions"), ([], "got none")]
)
def test_examples_that_cannot_be_shown_are_named(ids: list[str], told: str, train: list[Question]) -> None:
    with pytest.raises(ConfigError, match=told):
        prompts.shots([*train, Question("bare", "x", "1", "own")], ids)
    with pytest.raises(ConfigError, match="distinct"):
        prompts.shots(train, [train[0].id] * 2)


def test_a_file_is_taken_to_the_last_byte_and_must_hold_the_question(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Solve: {question}\n{not a field}\n")
    (turn,) = prompts.from_file(path).messages(QUESTION)
    assert turn.content == f"Solve: {QUESTION.text}\n{{not a field}}\n"
    path.write_text("Solve")
    with pytest.raises(ConfigError, match="the prompt mine needs"):
        prompts.from_file(path)
    with pytest.raises(ConfigError, match="cannot read"):
        prompts.from_file(tmp_path / "absent.txt")


def test_the_hash_is_of_all_that_the_model_sees_and_of_nothing_else(train: list[Question]) -> None:
    ids = [question.id for question in train[:2]]
    every = [
        prompts.plain(), prompts.boxed(), prompts.shots(train, ids), prompts.shots(train, ids[::-1]),
        Prompt("x", "Q: {question}"), Prompt("x", "Q: {question}", system="Think."),
    ]  # fmt: skip
    assert len({prompt.sha256 for prompt in every}) == len(every)
    assert Prompt("another name").sha256 == prompts.plain().sha256
    assert prompts.plain().sha256 == hashlib.sha256(b"{question}").hexdigest()
