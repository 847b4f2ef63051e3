"""What the demonstration prints: a line per question, a table per distribution, and what they show in words."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from calibrators.scores import Score
from eval._report import interval
from eval.demo import CASCADE, HOME, Reply, Standing, standings, verdict
from gateway.cli import table

ANSWER_MOST = 12  # and of an answer: a model that has lost its way writes numbers without end
QUESTION_LEAST = 20  # characters of a question that are shown, however narrow the terminal is
SHORT = {"truncated": "cut", "no_evidence": "none"}
Row = dict[str, Any]


def questions(replies: Sequence[Reply], *, width: int, colour: bool) -> str:
    """One line per question to the cascade: tiers tried with their p, who answered, right or wrong, tokens spent."""
    routed = [reply for reply in replies if reply.model == CASCADE]
    short = shortened([str(hop["tier"]) for reply in routed for hop in reply.hops])
    rows = [_line(reply, short) for reply in routed]
    rest = max(len(line) for line in table(rows).splitlines())
    room = max(QUESTION_LEAST, width - rest - 2)
    lines = table(
        [{"question": clipped(reply.question.text, room)} | row for reply, row in zip(routed, rows, strict=True)]
    )
    head, *body = lines.splitlines()
    if not colour:
        return lines
    return "\n".join([head, *(typer.style(line, fg="green" if r.right else "red")
                              for line, r in zip(body, routed, strict=True))])  # fmt: skip


def _line(reply: Reply, short: Mapping[str, str]) -> Row:
    if reply.route is None:
        return {"from": reply.question.split, "tiers tried, p": "-", "answer": "-", "": reply.error, "tokens": 0}
    tried = "  ".join(f"{short[hop['tier']]} {confidence(hop)}" for hop in reply.hops)
    wanted = f": {clipped(reply.answer or 'no number', ANSWER_MOST)}, not {reply.question.target}"
    return {
        "from": reply.question.split,
        "tiers tried, p": tried,
        "answer": short[reply.route["tier"]],
        "": str(reply.grade) + ("" if reply.right else wanted),
        "tokens": reply.tokens,
    }


def confidence(hop: Mapping[str, Any]) -> str:
    """ ".93", or why there is none."""
    p = hop["confidence"]
    if p is None:
        why = str(hop["null_reason"] or hop["reason"])
        return SHORT.get(why, why)
    return f"{p:.2f}".removeprefix("0")


def shortened(tiers: Sequence[str]) -> dict[str, str]:
    """Names without what all of them begin with: pocket-nano and pocket-base become nano and base."""
    starts = {tier.partition("-")[0] for tier in tiers}
    cut = len(starts) == 1 and len(set(tiers)) > 1 and all("-" in tier for tier in tiers)
    return {tier: tier.partition("-")[2] if cut else tier for tier in tiers}


def clipped(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 3] + "..."


def regions(replies: Sequence[Reply]) -> dict[str, list[Reply]]:
    """The replies in distribution and under shift."""
    return {
        "In distribution": [reply for reply in replies if reply.question.split == HOME],
        "Shifted": [reply for reply in replies if reply.question.split != HOME],
    }


def summary(replies: Sequence[Reply], models: Sequence[str]) -> list[tuple[str, list[Standing]]]:
    """(region, one row per model), the last model being the largest."""
    return [(where, standings(part, models, models[-1])) for where, part in regions(replies).items()]


def told(summed: Sequence[tuple[str, list[Standing]]], *, width: int) -> str:
    """A table for each region, and what it shows."""
    parts = []
    for where, rows in summed:
        lines = [
            {
                where: "cascade" if row.model == CASCADE else f"{row.model} alone",
                "right": ends(row.accuracy),
                "tokens": row.tokens,
                "usd per 1,000": f"{1000 * row.usd / row.n:.4f}",
                "saves, of the largest": "" if row.saving is None else ends(row.saving),
                "right more often by": "" if row.gain is None else ends(row.gain),
            }
            for row in rows
        ]
        parts.append(f"{table(lines)}\n\n{textwrap.fill(verdict(rows, where), width)}")
    return "\n\n".join(parts)


def ends(score: Score) -> str:
    return interval(score.value, score.low, score.high, ".0%") or "-"


def as_json(replies: Sequence[Reply], summed: Sequence[tuple[str, list[Standing]]], wrong: Sequence[str]) -> Row:
    """Everything that was seen, for programs."""
    return {
        "questions": [
            {
                "id": reply.question.id,
                "split": reply.question.split,
                "text": reply.question.text,
                "target": reply.question.target,
                "model": reply.model,
                "grade": str(reply.grade),
                "answer": reply.answer,
                "tokens": reply.tokens,
                "usd": reply.usd,
                "route": reply.route,
                "error": reply.error,
            }
            for reply in replies
        ],
        "summary": [
            {
                "where": where,
                "verdict": verdict(rows, where),
                "models": [
                    {
                        "model": row.model,
                        "n": row.n,
                        "accuracy": row.accuracy.as_json(),
                        "tokens": row.tokens,
                        "usd": row.usd,
                        "saving": row.saving and row.saving.as_json(),
                        "gain": row.gain and row.gain.as_json(),
                    }
                    for row in rows
                ],
            }
            for where, rows in summed
        ],
        "mistakes": list(wrong),
    }
