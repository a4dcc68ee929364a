"""What shells complete: `vattctl completion` for the shell, and names that only a running vattd knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from vatt.errors import VattError
from vatt.sizes import format_size
from vatt.v1 import vatt_pb2 as pb
from vattctl.daemon import ask_all

SHELLS = ("bash", "zsh", "fish")
COMMANDS = ("vattctl", "vattd", "vattention")
# A key was pressed: what takes longer is not offered.
WITHIN_S = 0.5

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem[str]]]


@click.command(short_help="Print what makes a shell complete our commands.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what makes a shell complete vattctl, vattd and vattention: commands, options, devices, and the tenants and
    sessions of the vattd that runs.

    \b
    Examples:
      eval "$(vattctl completion bash)"
      echo 'eval "$(vattctl completion bash)"' >> ~/.bashrc
      echo 'eval "$(vattctl completion zsh)"' >> ~/.zshrc
      vattctl completion fish > ~/.config/fish/conf.d/vattd.fish

    In zsh that comes after `autoload -U compinit && compinit`.
    """
    kind = get_completion_class(shell)
    if kind is None:
        raise VattError(f"this click has no completion for {shell}: pip install --upgrade click")
    for name in COMMANDS:
        # Which command it is, only the completion itself needs to know.
        click.echo(kind(click.Group(name), {}, name, f"_{name.upper()}_COMPLETE").source())


def _of_status(items: Callable[[pb.GetStatusResponse], list[CompletionItem[str]]]) -> Complete:
    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        device: str | None = context.params.get("device")
        socket_dir: Path | None = context.params.get("socket_dir")
        if device is not None and device.isdecimal():  # the driver would have to be asked whose number it is
            device = None
        try:
            answers = ask_all(device, socket_dir, "completion", within_s=WITHIN_S)
        except (VattError, click.UsageError, OSError):
            return []
        every = [item for status in answers.statuses for item in items(status)]
        return [item for item in every if item.value.startswith(incomplete)]

    return complete


def _tenants(status: pb.GetStatusResponse) -> list[CompletionItem[str]]:
    return [CompletionItem(one.name, help=f"{format_size(one.leased_bytes)} leased") for one in status.tenants]


def _reserved(status: pb.GetStatusResponse) -> list[CompletionItem[str]]:
    known = {one.name for one in status.tenants if one.source == "command"}
    return [item for item in _tenants(status) if item.value in known]


def _sessions(status: pb.GetStatusResponse) -> list[CompletionItem[str]]:
    # No commas: click's script for fish ends a help text at the first.
    return [
        CompletionItem(
            one.session_id, help=f"tenant {one.tenant}; {format_size(one.leased_bytes)} leased; pid {one.pid}"
        )
        for one in status.sessions
    ]


complete_tenants = _of_status(_tenants)
complete_reserved = _of_status(_reserved)
complete_sessions = _of_status(_sessions)
