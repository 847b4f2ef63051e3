"""Engines turn an Ask into a Completion. One engine per file; the file's name is the `kind` in a configuration.

An engine file exports

    class Options(engines.Options):                  # what people may write under `engine:`; unknown keys are refused
        kind: Literal["x"]                           # the file's own name
    async def open_engine(options: Options, *, name: str) -> Engine

`name` is the tier's. `open_engine` is awaited once at start and may take long (load weights in a thread); it raises
ConfigError when the engine cannot exist at all (no such model, no such folder) and does not wait for a server that is
merely away: `ready()` and `complete` say that. Whoever opened an engine closes it.

Importing an engine file must stay cheap and must not import its heavy dependencies (torch): the configuration's schema
is made from every file's Options, whether the engine is used or not. Import those inside `open_engine`.

A field that names a folder or file gets its absolute path in a validator through `resolve(value, info)`, so that it is
relative to the configuration file; a ValueError raised there is reported with file and line.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import ClassVar, Protocol, cast

from pydantic import BaseModel, ConfigDict

from gateway.errors import ConfigError
from gateway.nouns import Ability, Engine
from gateway.written import Written, resolve

__all__ = ["EngineFile", "Options", "find", "kinds", "resolve"]


class Options(Written):
    """Base of every engine's options. abilities: of all its tiers.  forwards: fields that a tier allows are sent on."""

    model_config = ConfigDict(allow_inf_nan=False)  # whatever else they may be, no limit is infinite

    abilities: ClassVar[frozenset[Ability]] = frozenset()
    forwards: ClassVar[bool] = False

    kind: str


class EngineFile(Protocol):
    """What a module of this package looks like from outside. Options: a subclass of the class above."""

    @property
    def Options(self) -> type[Options]: ...  # noqa: N802  a class is exported under this name

    async def open_engine(self, options: BaseModel, *, name: str) -> Engine: ...


def kinds() -> list[str]:
    """Every engine there is: the public modules of this package."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def find(kind: str) -> EngineFile:
    """The engine file a kind names. Raises ConfigError that lists the right ones."""
    if kind not in kinds():
        raise ConfigError(f"no engine {kind!r}; have {', '.join(kinds())}")
    return cast(EngineFile, importlib.import_module(f"{__name__}.{kind}"))
