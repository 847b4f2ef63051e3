"""`confgate batch|import|export`: questions and answers on their way to other tools and back. Heavy imports happen
inside the commands."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.cli import Implausible, listed, moment, one_line, one_of
from gateway.cli import AsJson

if TYPE_CHECKING:
    from eval.collect import Plan
    from eval.datasets import Question
    from eval.records import Manifest
    from gateway.nouns import Policy

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

SPARE = 1_000  # questions of a generated dataset that collecting may have left out

Dataset = Annotated[str | None, typer.Option(help="The dataset that was asked. Without it: the one the records name.")]
Data = Annotated[
    Path | None, typer.Option(envvar="CONFGATE_DATA", help="Folder or file of the dataset, where it has one.")
]


Splits = Annotated[str, typer.Option(help="One split, or several with commas between.")]
Number = Annotated[int | None, typer.Option("--n", min=1, help="Questions per split. Without it: all.")]
PromptName = Annotated[str, typer.Option(help="plain, boxed, shots, or a text file with {question}.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Per answer. Without it: the server's limit.")]
TopK = Annotated[int, typer.Option(min=0, help="Most likely tokens per position.")]
SeedOption = Annotated[int | None, typer.Option(help="For datasets that are generated, and for --divide.")]
Divide = Annotated[str | None, typer.Option(help="Deal a split out to others: train:calibration=0.7,validation=0.3")]
VariantsOption = Annotated[
    str, typer.Option(help="drop, keep or refuse: questions that vary a question of a later split.")
]


@app.command()
def batch(
    model: Annotated[str, typer.Option(help="As the server calls it.")],
    out: Annotated[Path, typer.Option(help="File of request lines.")],
    dataset: Annotated[str, typer.Option(help="A dataset's name; a wrong one lists them.")] = "pocket",
    split: Splits = "calibration",
    n: Number = None,
    data: Data = None,
    prompt: PromptName = "plain",
    max_tokens: MaxTokens = None,
    top_k: TopK = 20,
    seed: SeedOption = None,
    divide: Divide = None,
    variants: VariantsOption = "drop",
) -> None:
    """Write questions as a batch for `vllm run-batch` or OpenAI's batch API; `confgate import` reads its replies.

    Example:  confgate batch --dataset gsm8k --split test --prompt boxed --model Qwen/Qwen2.5-7B-Instruct --out 7b.jsonl
    """
    with one_line():
        from eval import batch as batches
        from eval.records import replacing

        plan, asked = planned(dataset, split, n, data, prompt, max_tokens, top_k, seed, divide, variants)
        with replacing(out) as draft:
            draft.write_text("".join(f"{line}\n" for line in batches.requests(asked, model, plan)), encoding="utf-8")
    typer.echo(f"{out}: {len(asked):,} requests")


@app.command("import")
def import_(
    replies: Annotated[list[str], typer.Argument(help="Files of reply lines, as FILE or as TIER=FILE.")],
    out: Annotated[Path, typer.Option(help="Folder for the records.")] = Path("records"),
    dataset: Annotated[str, typer.Option(help="The dataset that was asked.")] = "pocket",
    split: Splits = "calibration",
    n: Number = None,
    data: Data = None,
    prompt: PromptName = "plain",
    max_tokens: MaxTokens = None,
    top_k: TopK = 20,
    seed: SeedOption = None,
    divide: Divide = None,
    variants: VariantsOption = "drop",
    implausible: Implausible = False,
    as_json: AsJson = False,
) -> None:
    """Make records of a batch's replies. The options are those that `confgate batch` had.

    Example:  confgate import small=7b-said.jsonl large=32b-said.jsonl --dataset gsm8k --split test --prompt boxed
    """
    from eval import _report
    from eval.cli import plausible

    with one_line():
        from eval import batch as batches
        from eval.collect import summary

        plan, asked = planned(dataset, split, n, data, prompt, max_tokens, top_k, seed, divide, variants)
        named = [word.rpartition("=") for word in replies]
        path = batches.save(out, asked, [batches.read(Path(file), tier, asked) for tier, _, file in named], plan)
        rows = summary(path)
    typer.echo(
        json.dumps({"records": str(path), "tiers": rows}, indent=2) if as_json else _report.collected(rows, path)
    )
    plausible([out], implausible=implausible)


def planned(
    dataset: str,
    split: str,
    n: int | None,
    data: Path | None,
    prompt: str,
    max_tokens: int | None,
    top_k: int,
    seed: int | None,
    divide: str | None,
    variants: str,
) -> tuple[Plan, list[Question]]:
    """How to ask, and what, from the words on the command line; what is left out is said on stderr."""
    from eval import _questions
    from eval.collect import Plan

    plan = Plan(
        prompt=_questions.prompt(prompt, dataset, data), max_tokens=max_tokens, top_k=top_k, seed=seed or 0,
        command=shlex.join(["confgate", *sys.argv[1:]]),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    asked, notes = _questions.chosen(
        dataset, listed(split), data=data, n=n, seed=seed, divided=divide,
        variants=one_of(_questions.Variants, variants, "--variants"), shown=[shot.id for shot in plan.prompt.shots],
    )  # fmt: skip
    for note in notes:
        typer.echo(f"note: {note}", err=True)
    return plan, asked


@app.command()
def export(
    records: Annotated[Path, typer.Option("--records", "-r", help="Folder of `collect`.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    to: Annotated[str, typer.Option(help="lm-eval, inspect, or both with a comma between.")] = "lm-eval,inspect",
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Export what this cascade would have served, too.")
    ] = None,
    policy: Annotated[str, typer.Option(help="Which policy of the configuration.")] = "default",
    dataset: Dataset = None,
    split: Annotated[
        str | None, typer.Option(help="Splits of the dataset, with commas between. Without it: those of the records.")
    ] = None,
    data: Data = None,
    seed: Annotated[int | None, typer.Option(help="For datasets that are generated, as when collecting.")] = None,
    created: Annotated[str | None, typer.Option(help="ISO time, to write the same files again.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write recorded answers as lm-evaluation-harness results and samples, and as inspect logs.

    Example:  confgate export -r runs/pocket/test -c deploy/pocket/cascade.yaml --out runs/exported
    """
    with one_line():
        from eval import _questions
        from eval import records as answers
        from eval.export import Format
        from eval.export import export as write

        formats = [one_of(Format, word, "--to") for word in listed(to)]
        manifest = answers.read_manifest(records / answers.MANIFEST)
        name = dataset or manifest.dataset
        file = records / answers.RECORDS
        keys = answers.asked(file)
        wanted = listed(split) or tuple(dict.fromkeys(one for one, _ in keys))
        known = _questions.questions(name, wanted, data=data, n=len(keys) + SPARE, seed=seed)
        questions = _questions.asked(file, keys, known)
        paths = write(
            records,
            questions,
            _questions.prompt_of(manifest, name, data),
            out,
            formats,
            moment(created).astimezone(dt.UTC),
            None if config is None else opened(config, policy, manifest),
        )
    typer.echo(json.dumps({"files": list(map(str, paths))}) if as_json else "\n".join(map(str, paths)))


def opened(config: Path, policy: str, manifest: Manifest) -> Policy:
    """The policy with its calibrators, held against the engines that the answers came from."""
    from eval import card
    from gateway import config as configs

    return asyncio.run(card.opened(configs.read(config), policy, [manifest]))
