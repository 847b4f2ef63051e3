"""Datasets from the Hugging Face hub, by the `datasets` library where it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.errors import ConfigError

PREFIX = "hf:"


def is_hub(place: Path) -> bool:
    """Whether a place says hf:owner/name or hf:owner/name:config, and no folder."""
    return str(place).startswith(PREFIX)


def download(place: Path, split: str, folder: Path) -> Path:
    """Write one split into the folder, as a JSONL file with the hub's columns. Returns the file.

    Raises ConfigError without the library, and when the hub has no such dataset, configuration or split.
    """
    name, _, config = str(place).removeprefix(PREFIX).partition(":")
    library = _library()
    try:
        rows = library.load_dataset(name, config or None, split=split)
        file = folder / f"{split}.jsonl"
        rows.to_json(file)
    except Exception as error:  # the library raises what its parts do: HTTP, files, its own
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{place}, split {split}: {told}; or name a folder with --data") from error
    return file


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"hf: needs: pip install datasets; or name a folder with --data ({error})") from error
    return datasets
