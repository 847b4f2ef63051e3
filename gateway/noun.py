"""What is made anew for every request: a frozen dataclass for who reads or checks the code, a plain one at run time.

A frozen dataclass is made by a call of object.__setattr__ for each of its fields, which took a twentieth of all that a
decision costs. mypy refuses to assign to a noun's fields all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

__all__ = ["noun"]

if TYPE_CHECKING:
    from dataclasses import dataclass as noun
else:

    def noun(*, frozen: bool, **how: Any) -> Callable[[type], type]:
        """dataclass, with frozen=True: hashed by its fields where it is compared by them."""
        assert frozen, "a noun is frozen"
        return dataclasses.dataclass(unsafe_hash=how.get("eq", True), **how)
