"""What ties the companions of GSM8K to its test questions."""

from __future__ import annotations

from collections.abc import Mapping


def family(row: Mapping[str, object]) -> str:
    """The GSM8K test question that a row varies, as the family name its gsm8k counterpart bears; empty when unknown."""
    index = row.get("gsm8k_test_index")
    return "" if index is None else f"gsm8k-test-{index}"
