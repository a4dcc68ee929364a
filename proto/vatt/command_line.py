"""What the commands `vattd`, `vattctl` and `vattention` have in common. Only they import this: the library needs no
click."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from vatt.durations import parse_duration
from vatt.errors import DaemonUnreachable, DeviceNotFound, DriverError, InvalidRequest, VattError

EXIT_REFUSED = 1
EXIT_UNREACHABLE = 3

MOST_S = 10 * 365 * 86400.0

# For --help.
EXIT_WORDS = "Exit status: 0 done, 1 refused, 2 wrong usage, 3 no vattd answers."
SIZE_WORDS = "A SIZE is in binary units, however it is written: 8GiB, 8G and 8gb are the same; a number is bytes."
TIME_WORDS = "A TIME is written 500ms, 30s, 5m, 2h or 7d; a number is seconds."

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command line, and exit with its status. What it could not do is one line on stderr."""
    try:
        command(arguments, prog_name=name)
    except VattError as error:
        click.echo(f"{name}: {error}", err=True)
        sys.exit(EXIT_UNREACHABLE if isinstance(error, DaemonUnreachable) else EXIT_REFUSED)
    except OSError as error:  # what it wrote to: a full disk, or a pipe that nobody reads any more, say
        click.echo(f"{name}: {error.strerror or error}", err=True)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - what is left in the buffer would fail again at exit
        sys.exit(EXIT_REFUSED)


def output_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`-o json`, as the argument `output`."""
    choice = click.Choice(["table", "json"])
    return click.option(
        "-o", "--output", type=choice, default="table", show_default=True, help="For people, or programs."
    )(command)


class Time(click.ParamType[float]):
    """Seconds."""

    name = "time"

    def __init__(self, least_s: float = 0.0, hint: str = "") -> None:
        self._least_s, self._hint = least_s, hint

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            length_s = parse_duration(value)
        except InvalidRequest as error:
            self.fail(f"{error}{self._hint}", param, ctx)
        if not self._least_s <= length_s <= MOST_S:
            self.fail(f"{value!r} is not {self._least_s:g} s to 10 years: write for example 30s, 5m or 2h", param, ctx)
        return length_s


def named_device(text: str, device_uuid: Callable[[str], str]) -> str:
    """`host`, or the UUID of the GPU that `--gpu` names, for who looks for its vattd.

    Only a number needs the driver, which `device_uuid` asks. Raises UsageError for what names no device, and
    DeviceNotFound with what to type where no driver knows the number.
    """
    if text != "host" and not text.isdecimal() and not text.startswith(("GPU-", "MIG-")):
        raise click.UsageError(f"--gpu {text}: write host, a GPU's number or its UUID (`vattctl status` shows it)")
    try:
        return device_uuid(text)
    except (DeviceNotFound, DriverError) as error:
        reason, _, advice = str(error).partition("; ")
        if isinstance(error, DeviceNotFound) and not advice:
            raise  # the driver works, and has no such GPU
        # The advice is for who starts a vattd, and here one may run.
        raise DeviceNotFound(
            f"--gpu {text}: there is no usable GPU driver here ({reason}), so a number cannot be turned into a GPU's "
            "UUID: write --gpu host, or the UUID as `vattctl status` shows it"
        ) from error
