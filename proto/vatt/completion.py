"""What a shell offers for devices and directories, without asking anybody: a key that is pressed waits for it."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from vatt.errors import VattError
from vatt.sockets import find_daemons, search_dirs

# The kernel module lists its GPUs here; to ask the driver's library could take seconds.
GPUS = Path("/proc/driver/nvidia/gpus")


def complete_running(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Devices that a vattd has sockets for, alive or not. Nothing where something is wrong: that is told later."""
    chosen = context.params.get("socket_dir")
    try:
        found = find_daemons([Path(chosen)] if chosen else search_dirs(os.environ))
    except (VattError, OSError):
        return []
    return [
        CompletionItem(one.device, help=f"in {one.directory.parent}")
        for one in found
        if one.device.startswith(incomplete)
    ]


def complete_devices(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """What a vattd can be started for."""
    return [CompletionItem(name, help=words) for name, words in _devices(GPUS) if name.startswith(incomplete)]


def _devices(gpus: Path) -> list[tuple[str, str]]:
    found = [("host", "host memory")]
    for file in sorted(gpus.glob("*/information")):
        facts = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        if "GPU UUID" in facts:
            found.append((facts["GPU UUID"].strip(), facts.get("Model", "").strip()))
    return found
