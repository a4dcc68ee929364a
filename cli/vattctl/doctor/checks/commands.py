"""Commands that fixes have in common: for the vattd that is meant.

Its directory is named only if that was chosen: `vattd start --socket-dir` keeps reservations there, too, and not where
they usually are.
"""

from __future__ import annotations

from pathlib import Path

from vattctl.doctor.facts import Daemon, Facts


def naming(facts: Facts, daemon: Daemon) -> str:
    """The options that name a vattd."""
    is_chosen = any(one.is_chosen for one in facts.directories if one.path == daemon.directory)
    return f"--gpu {daemon.device}" + (f" --socket-dir {daemon.directory}" if is_chosen else "")


def start_anew(facts: Facts, daemon: Daemon, *options: str) -> str:
    """Options that are not given again are the defaults, and what it was started with is not known here."""
    command = " ".join(["vattd start --replace --detach", naming(facts, daemon), *options])
    return f"{command}   # and its other options"


def ask_as_root(directory: Path) -> str:
    """root does not look where a user's vattd is, and sudo drops variables."""
    return f"sudo vattctl doctor --socket-dir {directory}"
