"""From the words of a command line to the questions that are asked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from eval._questions import Variants, asked, divide, prompt_of, questions, sifted
from eval.datasets import Question
from eval.prompts import boxed, shots
from eval.records import BadRecords, Manifest
from eval.splits import SharedQuestions
from gateway.errors import ConfigError

ANN = "Ann has {} red apples and then buys some more of these apples at the shop."


def question(name: str, split: str, text: str = "") -> Question:
    return Question(name, text or f"What is {name} in {split}?", "1", "made", split, solution="#### 1")


MIXED = [question("a", "train", ANN.format(3)), question("b", "train"), question("c", "test", ANN.format(4))]


def test_variants_are_left_out_kept_or_refused() -> None:
    kept, notes = sifted(MIXED, Variants.DROP, [])
    assert [q.id for q in kept] == ["b", "c"]
    assert notes == ["1 question(s) of train vary questions of test (a ~ c): left out"]
    kept, notes = sifted(MIXED, Variants.KEEP, [])
    assert [q.id for q in kept] == ["a", "b", "c"]
    assert notes == ["1 question(s) of train vary questions of test (a ~ c): asked all the same"]
    with pytest.raises(SharedQuestions, match="a ~ c"):
        sifted(MIXED, Variants.REFUSE, [])
    assert sifted(MIXED[:2], Variants.REFUSE, []) == (MIXED[:2], [])


def test_the_prompts_own_examples_are_not_asked() -> None:
    kept, notes = sifted(MIXED[:2], Variants.DROP, ["b"])
    assert [q.id for q in kept] == ["a"]
    assert "1 question(s) stand in the prompt as examples: left out" in notes


def test_a_split_is_dealt_out_by_question() -> None:
    many = [question(f"q{n}", "train") for n in range(300)]
    dealt = divide([*many, MIXED[2]], "train:calibration=0.7,validation=0.3", seed=0)
    assert {q.split for q in dealt} == {"calibration", "validation", "test"}
    assert sorted(q.id for q in dealt) == sorted([*(q.id for q in many), "c"])
    assert sum(q.split == "calibration" for q in dealt) == pytest.approx(210, abs=30)
    assert divide(many, "train:a=0.5,b=0.5", seed=1) != divide(many, "train:a=0.5,b=0.5", seed=2)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("train", "is written like"),
        ("train:a", "is written like"),
        ("train:a=x,b=0.5", "is written like"),
        ("dev:a=0.5,b=0.5", "no questions of 'dev' are asked; have train, test"),
        ("train:test=0.5,b=0.5", "test is a split already"),
    ],
)
def test_a_division_that_cannot_be_meant_is_refused(written: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        divide(MIXED, written, seed=0)


def test_records_find_their_questions_again_under_another_splits_name_too() -> None:
    found = asked(Path("r"), [("calibration", "a"), ("test", "c")], MIXED)
    assert [(q.split, q.id, q.text) for q in found] == [
        ("calibration", "a", MIXED[0].text), ("test", "c", MIXED[2].text)
    ]  # fmt: skip
    with pytest.raises(BadRecords, match="no question 'z'"):
        asked(Path("r"), [("test", "z")], MIXED)


def test_a_collections_prompt_is_made_again_from_its_manifest() -> None:
    folder = Path(__file__).parents[1] / "data"
    train = questions("gsm8k", ["train"], data=folder, n=None, seed=None)
    for made in (boxed(), shots(train, [train[2].id, train[1].id])):
        told = Manifest(
            dataset="gsm8k", splits={}, data_sha256="", template=made.template, system=made.system, max_tokens=None,
            top_k=0, seed=0, tiers=(), shots=tuple(shot.id for shot in made.shots), prompt=made.sha256,
        )  # fmt: skip
        assert prompt_of(told, "gsm8k", folder).sha256 == made.sha256


# What the library and the hub would do, from a folder of the published files.
HUB = """
import json
def load_dataset(name, config, *, split):
    if (name, config, split) != ("openai/gsm8k", "main", "test"):
        raise ValueError(f"Unknown split {split!r}\\nsecond line")
    return Rows()
class Rows:
    def to_json(self, file):
        file.write_text(json.dumps({"question": "2 + 2?", "answer": "<<2+2=4>>4\\n#### 4"}) + "\\n")
"""


def test_a_dataset_of_the_hub_is_read_as_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "datasets.py").write_text(HUB)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    place = Path("hf:openai/gsm8k:main")
    (found,) = questions("gsm8k", ["test"], data=place, n=None, seed=None)
    assert (found.id, found.text, found.target, found.slices["steps"]) == ("gsm8k-test-0", "2 + 2?", "4", 1)
    with pytest.raises(ConfigError, match="split train: Unknown split 'train'; or name a folder with --data"):
        questions("gsm8k", ["train"], data=place, n=None, seed=None)
    monkeypatch.delitem(sys.modules, "datasets")


def test_without_the_library_the_hub_is_answered_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="pip install datasets; or name a folder"):
        questions("gsm8k", ["test"], data=Path("hf:openai/gsm8k:main"), n=None, seed=None)
