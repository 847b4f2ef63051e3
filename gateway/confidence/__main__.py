"""The reference table of all features, as Markdown: python -m gateway.confidence > docs/features.md"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable

from gateway.confidence import Needs, find, names

FIELDS = ("Formula", "Unit", "Undefined", "Source")
HEAD = """\
# Confidence features

Written by `python -m gateway.confidence > docs/features.md`; edit the features' docstrings, not this page.

A feature is named in a configuration with the parameters that differ from the defaults: `lp_tail(window=16)`. N: tokens
in the answer, the end token apart. l_t: natural-log probability of the emitted token. l_t,(j), p_t,(j): the j-th
largest log-probability and probability at step t. All values are model-specific: compare them across models only after
calibration. Undefined features are NaN, and the calibrator says what that is worth.

| feature | what it is | formula | unit | higher means | undefined | needs | source |
|---|---|---|---|---|---|---|---|
"""


def table() -> str:
    """The whole page."""
    return HEAD + "".join(f"| {' | '.join(cells)} |\n" for cells in map(row, names()))


def row(name: str) -> list[str]:
    """One feature's cells, Markdown, bars escaped."""
    module = importlib.import_module(f"gateway.confidence.{name}")
    function = module.feature
    sentence, told = describe(function)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    spelled = f"{name}({', '.join(f'{p.name}={p.default:g}' for p in parameters)})" if parameters else name
    feature = find(name)
    formula, unit, undefined, source = (told[field] for field in FIELDS)
    cells = [
        f"{module.__doc__} {sentence}",
        formula,
        unit,
        feature.higher.value,
        undefined,
        tell_needs(feature.needs),
        source,
    ]
    return [f"`{spelled}`", *(cell.replace("|", "\\|") for cell in cells)]


def describe(function: Callable[..., float]) -> tuple[str, dict[str, str]]:
    """A feature's docstring as its sentence and its labelled fields, line breaks undone."""
    parts = re.split(rf"^({'|'.join(FIELDS)}):", inspect.getdoc(function) or "", flags=re.MULTILINE)
    sentence, *rest = (" ".join(part.split()) for part in parts)
    return sentence, dict(zip(rest[::2], rest[1::2], strict=True))


def tell_needs(needs: Needs) -> str:
    """What an engine has to report, in words."""
    told = [f"top {needs.top_k}"] if needs.top_k else []
    if needs.stand_ins:
        told[-1] += f" or the engine's {', '.join(f'`{name}`' for name in needs.stand_ins)}"
    told += [f"the engine's `{name}`" for name in needs.signals]
    told += ["token texts"] if needs.tokens else []
    told += ["earlier tiers' answers"] if needs.earlier else []
    return "; ".join(told) or "chosen tokens"


if __name__ == "__main__":
    sys.stdout.write(table())
