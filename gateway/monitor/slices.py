"""Parts of a tier's traffic whose drift is looked at by themselves, too: by who asks, by how long the prompt is, and by
what requests say of themselves.

Which parts there are stands in the configuration, so their number is bounded, and all that are looked at together are
adjusted for together. A part is held against the same part of the reference: long questions look other than short ones
on any day, and that is no drift.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from gateway.monitor.drift import MIN_ROWS
from gateway.monitor.reference import Marks, Reference, TierReference, tagged
from gateway.monitor.windows import Block
from gateway.nouns import Floats

Bools = npt.NDArray[np.bool_]
Part = tuple[str, str, str]  # policy, tier, name of the slice


@dataclass(frozen=True, slots=True)
class Slicing:
    """clients: names of keys, each a slice.  edges: rising, of prompt tokens; N of them make N + 1 slices.  metadata:
    name and value of a request's, each pair a slice."""

    clients: tuple[str, ...] = ()
    edges: tuple[int, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> list[str]:
        said = [f"metadata {name}={value}" for name, value in self.metadata]
        return [f"client {client}" for client in self.clients] + self._lengths + said

    @property
    def _lengths(self) -> list[str]:
        if not self.edges:
            return []
        between = [f"{low + 1} to {high} prompt tokens" for low, high in pairwise(self.edges)]
        return [f"up to {self.edges[0]} prompt tokens", *between, f"over {self.edges[-1]} prompt tokens"]

    def masks(self, marks: Marks) -> dict[str, Bools]:
        """By name, which rows are of a slice, (n,) each. A row of unknown length is in none by length."""
        found: dict[str, Bools] = {f"client {client}": marks.clients == client for client in self.clients}
        if self.edges:
            known = np.isfinite(marks.prompt_tokens)
            place = np.searchsorted(np.array(self.edges, dtype=np.float64), marks.prompt_tokens, "left")
            found |= {name: known & (place == at) for at, name in enumerate(self._lengths)}
        for name, value in self.metadata:
            told = np.zeros(len(marks.clients), dtype=np.bool_)
            if marks.metadata is not None:
                told = np.char.find(marks.metadata, tagged({name: value})) >= 0
            found[f"metadata {name}={value}"] = told
        return found


class Slices:
    """Of one process, for the thread that looks. rows: of a slice in one look, or more, as whole blocks are put in.

    references: what slices are held against.  blind: why one can never be judged by this reference.
    """

    def __init__(self, reference: Reference, slicing: Slicing, rows: int) -> None:
        self._slicing, self._size = slicing, rows
        self.references: dict[Part, TierReference] = {}
        self.blind: dict[Part, str] = {}
        for (policy, tier), known in reference.tiers.items():
            masks = {} if known.marks is None else slicing.masks(known.marks)
            for name in slicing.names:
                n = int(masks[name].sum()) if name in masks else 0
                if n >= MIN_ROWS:
                    self.references[policy, tier, name] = known.part(masks[name])
                else:
                    told = "does not tell slices apart" if known.marks is None else f"has {n} of {MIN_ROWS} rows of it"
                    self.blind[policy, tier, name] = f"the reference {told}"
        self._rows: dict[Part, list[Floats]] = {part: [] for part in self.references}

    def take(self, blocks: Mapping[tuple[str, str], Block]) -> dict[Part, tuple[TierReference, Floats]]:
        """Put blocks in; slices that have enough rows now, with their references, which are empty again afterwards."""
        for place, block in blocks.items():
            for name, mask in self._slicing.masks(block.marks).items():
                if (*place, name) in self._rows and mask.any():
                    self._rows[*place, name].append(block.rows[mask])
        full = [part for part in self._rows if self.waiting(part) >= self._size]
        taken = {part: (self.references[part], np.concatenate(self._rows[part])) for part in full}
        for part in full:
            self._rows[part] = []
        return taken

    def waiting(self, part: Part) -> int:
        """Rows that a slice has so far."""
        return sum(len(rows) for rows in self._rows.get(part, ()))

    def of(self, policy: str, tier: str) -> list[Part]:
        """All that are configured, in their order, judged or not."""
        return [(policy, tier, name) for name in self._slicing.names]
