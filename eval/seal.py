"""Seal: a fitted calibrator, with all that decides where it may be used, as the artefact that the gateway loads."""

from __future__ import annotations

import datetime as dt
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibrators import artifact as artifacts
from calibrators.artifact import Artifact
from eval.fit import FOLDS, Fitting
from eval.records import Manifest
from gateway import confidence
from gateway.confidence import Needs
from gateway.errors import ConfigError
from gateway.nouns import Source

EXTERNAL = "external"  # the source of confidences that another system computed; no engine of ours sends it


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all artefacts of one fit share.

    manifest: of the collection; None for a user's own table, which cannot say what server it came from.
    split: what was fitted on.  days: until they expire, None for never.
    """

    manifest: Manifest | None
    split: str
    seed: int
    created: dt.datetime
    days: int | None


def save(sealed: Sequence[Artifact], folder: Path) -> list[Path]:
    """One file per artefact, named by its id. Each is replaced as a whole."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{artifact.id}.json" for artifact in sealed]
    for artifact, path in zip(sealed, paths, strict=True):
        artifacts.dump(artifact, path)
    return paths


def seal(fitting: Fitting, terms: Terms, early_abort: Mapping[str, object] | None = None) -> Artifact:
    """The artefact of one tier. Raises ArtifactCorrupt when what was fitted cannot be written down.

    early_abort: as eval.early_abort learns it.
    """
    manifest, days = terms.manifest, terms.days
    return Artifact.seal(
        id=named(fitting),
        kind=fitting.calibrator.kind,
        features=fitting.data.names,
        params=fitting.calibrator.to_params(),
        fingerprint=fingerprint(fitting, manifest),
        fit=fit_facts(fitting, terms),
        metrics=fitting.metrics,
        validity={"conditions": conditions(fitting, manifest, terms.split), "checks": {}},
        created=terms.created,
        expires=None if days is None else terms.created.date() + dt.timedelta(days=days),
        early_abort=early_abort,
    )


def named(fitting: Fitting) -> str:
    """The artefact's id: its tier's name, and what it was fitted on where that is not the whole answer."""
    ending = "" if fitting.table.prefix is None else f"-prefix-{fitting.table.prefix}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", fitting.tier)[: 64 - len(ending)] + ending


def fingerprint(fitting: Fitting, manifest: Manifest | None) -> dict[str, str]:
    """Whose answers these were and how they were asked for."""
    if manifest is None:
        return {"model": fitting.tier, "source": EXTERNAL}
    engine = next((tier.fingerprint for tier in manifest.tiers if tier.name == fitting.tier), None)
    if engine is None:
        raise ConfigError(
            f"the manifest has no tier {fitting.tier!r}; have {', '.join(t.name for t in manifest.tiers)}"
        )
    needs, sent = needs_of(fitting), fitting.table.source
    assert sent is not None, "collected answers that are fitted on have evidence"
    # the chosen tokens' log-probs are the same with and without candidates, so the lesser need is what counts
    source = Source.CHOSEN if sent is Source.TOP_LOGPROBS and not needs.top_k else sent
    told = {**engine, "source": str(source), "sampling": "greedy", "prompt_template": manifest.prompt}
    told |= {"k": str(needs.top_k)} if needs.top_k else {}
    if fitting.table.prefix is not None:
        return told | {"span": f"prefix-{fitting.table.prefix}"}
    return told | ({"span": "answer"} if fitting.table.cut else {})


def needs_of(fitting: Fitting) -> Needs:
    return confidence.needs(fitting.data.names)


def fit_facts(fitting: Fitting, terms: Terms) -> dict[str, Any]:
    """What was fitted, on how much, and what was decided on the way."""
    data, gain = fitting.data, fitting.gain
    return {
        "data_sha256": fitting.data_sha256,
        "n": data.n,
        "n_rare": data.n_rare,
        "n_families": len(set(fitting.table.family.tolist())),
        "left_out": dict(fitting.table.left_out),
        "objective": fitting.objective.split("(")[0],
        "eta": fitting.eta,
        "seed": terms.seed,
        "folds": FOLDS,
        "split": terms.split,
        "slices": slice_sizes(fitting),
        "family": fitting.family,
        "reason": fitting.reason,
        "after": list(fitting.after),
        "pooled_with": list(fitting.pooled),
        "temperature": fitting.temperature,
        "routed_n": fitting.routed_n,
        "tune": sorted({split for row in fitting.tried for split in row.shifted}),
        "upstream": None if gain is None else {
            "used": gain.used, "gain_nats": gain.gain, "se": gain.se, "n": gain.n,
            "reached_gain_nats": gain.reached_gain, "reached_n": gain.reached_n,
        },
        "notes": list(fitting.notes),
    }  # fmt: skip


def slice_sizes(fitting: Fitting) -> Mapping[str, int]:
    data = fitting.data
    if data.slices is None:
        return {}
    sizes = Counter(data.slices.tolist())
    return {name: sizes[code] for code, name in enumerate(data.slice_names)}


def conditions(fitting: Fitting, manifest: Manifest | None, split: str) -> list[str]:
    """Outside which nothing is claimed, in words."""
    said = [f"questions like those of split {split!r}" + (f" of {manifest.dataset}" if manifest else "")]
    if manifest is None:
        said.append(f"confidences computed as in the table's columns {', '.join(fitting.data.names)}")
    else:
        before = ["a system message"] if manifest.system else []
        before += [f"{len(manifest.shots)} worked examples"] if manifest.shots else []
        after = f", after {' and '.join(before)}" if before else ""
        said.append(f"asked as {manifest.template!r}{after}, greedily")
        said.append("answers that ended by themselves and hold one final number; others have no confidence")
    if fitting.table.prefix is not None:
        said.append(f"the first {fitting.table.prefix} tokens of an answer, or all of a shorter one")
    if fitting.after:
        said.append(f"asked after {', '.join(fitting.after)}, in this order, some of which may be skipped or silent")
    return said
