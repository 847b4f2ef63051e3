"""The GPUs of this machine, as its driver tells them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from gateway.errors import ConfigError
from gateway.fleet.memory import GIB, MIB
from gateway.fleet.plan import Device
from gateway.fleet.settings import Fleet

ASK = ("nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits")
ASK_SECONDS = 30.0


def there_are(environ: Mapping[str, str] = os.environ) -> list[Device]:
    """What nvidia-smi shows, of those that CUDA_VISIBLE_DEVICES lets us use; nothing without an NVIDIA driver."""
    try:
        asked = subprocess.run(ASK, capture_output=True, text=True, check=True, timeout=ASK_SECONDS)  # noqa: S603  ours
    except FileNotFoundError:
        return []
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stdout + error.stderr).split())[:500]
        raise ConfigError(
            f"nvidia-smi does not say which GPUs there are ({said or error}); repair the driver until it does"
        ) from None
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"nvidia-smi does not say which GPUs there are: {error}") from None
    return parse(asked.stdout, environ.get("CUDA_VISIBLE_DEVICES"))


def parse(told: str, visible: str | None) -> list[Device]:
    """Devices from nvidia-smi's lines `index, uuid, MiB, MiB`. visible: indices or UUIDs with commas, all if absent."""
    wanted = None if visible is None else [part.strip() for part in visible.split(",") if part.strip()]
    found = []
    for line in filter(None, map(str.strip, told.splitlines())):
        try:
            index, uuid, total, free = (part.strip() for part in line.split(","))
            device = Device(int(index), int(total) * MIB, int(free) * MIB)
        except ValueError:
            raise ConfigError(
                f"nvidia-smi says {line!r}, where a GPU's index and memory in MiB were asked for: `up` cannot plan for "
                "such a GPU; start vLLM by hand and leave serve: out"
            ) from None
        if wanted is None or index in wanted or any(uuid.startswith(part) for part in wanted if len(part) > 4):
            found.append(device)
    return found


def to_plan_for(fleet: Fleet, present: Sequence[Device]) -> list[Device]:
    """The GPUs that the file lists, with the memory that those present really have; all present ones without a list.

    present: nothing when the plan is only to be looked at, or when the machine cannot say.
    Raises ConfigError when there is none, or the file lists one that is not there.
    """
    if not fleet.gpus:
        if not present:
            raise ConfigError(
                "no GPU found (nvidia-smi); to plan without one, list fleet.gpus: [{index: 0, memory_gib: 79.1}]"
            )
        return list(present)
    written = [Device(gpu.index, int(gpu.memory_gib * GIB), int(gpu.memory_gib * GIB)) for gpu in fleet.gpus]
    if not present:
        return written
    real = {device.index: device for device in present}
    for device in written:
        if device.index not in real:
            raise ConfigError(f"fleet.gpus lists GPU {device.index}; there is: {', '.join(map(str, real)) or 'none'}")
    return [real[device.index] for device in written]
