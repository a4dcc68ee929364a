"""The `vattd` command: start a daemon, stop one."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click

from vatt.command_line import (
    EXIT_REFUSED,
    EXIT_UNREACHABLE,
    EXIT_WORDS,
    HELP_OPTIONS,
    SIZE_WORDS,
    TIME_WORDS,
    Time,
    named_device,
    output_option,
    run,
)
from vatt.completion import complete_devices, complete_running
from vatt.errors import DaemonUnreachable, InvalidRequest, VattError
from vatt.sockets import default_socket_dir, find_only_daemon, make_directory, search_dirs
from vattd import __version__
from vattd.config import (
    DEFAULT_HEADROOM,
    DEFAULT_HUGE_POOL_MAX,
    DEFAULT_METRICS_ADDRESS,
    Config,
    default_state_dir,
    parse_address,
    parse_page_size,
)
from vattd.metrics_access import MetricsAccess
from vattd.predecessor import end_running
from vattd.ready import ReadyPipe
from vattd.rules import PoolRules
from vattd.scrub import Scrub
from vattd.wish import Timing
from vattention.vmm import device_uuid

_gpu = click.option(
    "--gpu",
    "device",
    metavar="N|UUID|host",
    help="A GPU by CUDA's number or by UUID, or `host` for host memory.  [default: GPU 0 if there is one, else host]",
    shell_complete=complete_devices,
)
_running_gpu = click.option(
    "--gpu",
    "device",
    metavar="N|UUID|host",
    help="Which one, where several run.",
    shell_complete=complete_running,
)
_socket_dir = click.option(
    "--socket-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the sockets are.  [default: VATTD_SOCKET_DIR, else /run/vattd for root, else the user's run directory]",
)


def _metrics_file(name: str, words: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(name, metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path), help=words)


@click.group(epilog=EXIT_WORDS, context_settings=HELP_OPTIONS)
@click.version_option(__version__, prog_name="vattd")
def vattd() -> None:
    """One owner for a device's KV-cache memory: creates its pages, lends them to engines, gets them back."""


@vattd.command(epilog=f"{SIZE_WORDS} {TIME_WORDS}")
@_gpu
@click.option(
    "--pool-max",
    metavar="SIZE|PERCENT",
    help="The most memory the pool takes.  [default: GPU 90%, host 50%, of huge pages all that are set aside]",
)
@click.option(
    "--pool-min", metavar="SIZE|PERCENT", default="0", help="Memory the pool keeps, even idle.", show_default=True
)
@click.option(
    "--headroom",
    metavar="SIZE",
    default=DEFAULT_HEADROOM,
    show_default=True,
    help="Memory kept ready for each tenant that has an engine attached, on top of what it leases.",
)
@click.option(
    "--page-size",
    metavar="SIZE",
    help="Size of a page.  [default: GPU its granularity (2MiB), host 64KiB, or more for a pool above 8GiB]",
)
@click.option(
    "--huge-pages",
    is_flag=True,
    help="Host only: take the kernel's 2 MiB pages, set aside with `sysctl -w vm.nr_hugepages=N`. A page is 2MiB then, "
    "or 4MiB.",
)
@click.option(
    "--config",
    "tenants_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A TOML file of tenants that exist from the start: see below.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where reservations and the audit log are kept over restarts.  [default: beside the sockets where "
    "--socket-dir says where those are, else /var/lib/vattd for root, else the user's state directory]",
)
@_socket_dir
@click.option(
    "--reclaim-within",
    metavar="TIME",
    type=Time(),
    default="1s",
    show_default=True,
    help="How long a session has to give pages back before it counts as overdue.",
)
@click.option(
    "--reclaim-kill-after",
    metavar="TIME",
    type=Time(),
    help="Kill (SIGKILL) a session by which another tenant's min is broken for so long, the longest asked first, and "
    "never one of a tenant within its own min.  [default: never]",
)
@click.option(
    "--head-hold",
    metavar="TIME",
    type=Time(),
    default="10s",
    show_default=True,
    help="How long free pages are gathered for the first in the queue before others may pass; 0: not at all.",
)
@click.option(
    "--idle-after",
    metavar="TIME",
    type=Time(),
    default="30s",
    show_default=True,
    help="Pages that nobody needed for so long go back to the device.",
)
@click.option(
    "--recovery-grace",
    metavar="TIME",
    type=Time(),
    default="30s",
    show_default=True,
    help="After a restart: how long sessions of the vattd before are expected to re-attach. Later ones may, too: until "
    "they do, or end, their memory is kept.",
)
@click.option(
    "--scrub",
    type=click.Choice([policy.value for policy in Scrub]),
    default=Scrub.CROSS_TENANT.value,
    show_default=True,
    help="Which pages are zeroed before they are lent: those that another tenant had, or that are new and nobody knows "
    "what is in them; always: also those that come back to their own tenant; never: none, where all tenants may read "
    "each other's old bytes. On a GPU the first scrub makes a CUDA context in vattd, some hundred MB; `vattctl status` "
    "says how much. New host memory is zeros whatever is chosen.",
)
@click.option(
    "--isolate",
    is_flag=True,
    help="Destroy pages that leave a tenant and make new ones, since CUDA cannot take a mapping back from a process "
    "that keeps one. Host memory never passes from tenant to tenant anyway.",
)
@click.option(
    "--allow-mps",
    is_flag=True,
    help="Let engines use the GPU through an MPS server, where the end of one does not prove that its kernels ended "
    "and its fault can be the end of others: see docs/security.md.",
)
@click.option(
    "--metrics-address",
    metavar="HOST:PORT|off",
    default=DEFAULT_METRICS_ADDRESS,
    show_default=True,
    help="Where Prometheus can scrape /metrics and browsers find the status page (/). An address that other machines "
    "reach needs TLS or a password.",
)
@_metrics_file("--metrics-cert", "TLS for the metrics: the certificate, and what signed it, as PEM.")
@_metrics_file("--metrics-key", "Its key, without a passphrase.")
@_metrics_file("--metrics-client-ca", "Only clients with a certificate that this one signed may read the metrics.")
@_metrics_file(
    "--metrics-password-file",
    "Lines `user:password`, one of which a client must give (HTTP basic authentication); without TLS it travels in the "
    "clear. Nobody else may read the file. All these files are read once, at the start.",
)
@click.option(
    "--metrics-insecure", is_flag=True, help="Serve the metrics to whoever reaches the address, without any of these."
)
@click.option(
    "--replace",
    is_flag=True,
    help="Take over from the vattd that runs for this device, if this one can go on with what it has lent; engines go "
    "on meanwhile. Options that are not given are the defaults, not those of the one that runs; only pages stay as "
    "large as engines have them.",
)
@click.option("--detach", is_flag=True, help="Run in the background; return once it serves.")
@output_option
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--exit-with-parent", is_flag=True, hidden=True)
def start(
    device: str | None,
    pool_max: str | None,
    pool_min: str,
    headroom: str,
    page_size: str | None,
    huge_pages: bool,
    tenants_path: Path | None,
    state_dir: Path | None,
    socket_dir: Path | None,
    reclaim_within: float,
    reclaim_kill_after: float | None,
    head_hold: float,
    idle_after: float,
    recovery_grace: float,
    scrub: str,
    isolate: bool,
    allow_mps: bool,
    metrics_address: str,
    metrics_cert: Path | None,
    metrics_key: Path | None,
    metrics_client_ca: Path | None,
    metrics_password_file: Path | None,
    metrics_insecure: bool,
    replace: bool,
    detach: bool,
    output: str,
    ready_fd: int | None,
    exit_with_parent: bool,
) -> None:
    """Own a device's pages and lend them, until SIGTERM.

    With -o json a line on standard output says where, once it serves.

    \b
    Examples:
      vattd start                        GPU 0, or host memory where there is none
      vattd start --gpu 1 --pool-max 60%
      vattd start --gpu host --pool-max 4GiB --page-size 64KiB --detach
      vattd start --config tenants.toml --reclaim-kill-after 30s
      vattd start --replace              an upgrade, or other options, while
                                         engines serve

    \b
    A configuration file:
      [tenants.chat]
      min = "8GiB"          # a promise; or a part of the pool: "25%"
      max = "40GiB"         # left out: the whole pool
      weight = 2            # left out: 1
      hard = true           # left out: what is unused of the min is lent
      allow = ["alice", 1001, "@staff"]  # left out: the user that runs vattd
    """
    state_dir = (state_dir or default_state_dir(socket_dir, os.environ)).absolute()
    socket_dir = (socket_dir or default_socket_dir(os.environ)).absolute()
    ready = ReadyPipe(os.dup(1) if output == "json" and not detach and ready_fd is None else ready_fd)
    try:
        config = Config(
            device=device,
            pool_min=pool_min,
            pool_max=pool_max or (DEFAULT_HUGE_POOL_MAX if huge_pages else None),
            headroom=headroom,
            page_size_bytes=parse_page_size(page_size),
            huge_pages=huge_pages,
            socket_dir=socket_dir,
            state_dir=state_dir,
            tenants_path=tenants_path,
            rules=PoolRules(
                timing=Timing(head_hold_s=head_hold),
                reclaim_within_s=reclaim_within,
                kill_after_s=reclaim_kill_after,
                idle_after_s=idle_after,
            ),
            scrub=Scrub(scrub),
            isolate=isolate,
            allow_mps=allow_mps,
            metrics_address=parse_address(metrics_address),
            metrics_access=MetricsAccess(
                metrics_cert, metrics_key, metrics_client_ca, metrics_password_file, metrics_insecure
            ),
            exit_with_parent=exit_with_parent,
            recovery_grace_s=recovery_grace,
            replace=replace,
        )
    except InvalidRequest as error:
        raise click.UsageError(str(error)) from error
    try:
        status = _start_detached(socket_dir, output) if detach else _start(config, ready)
    except (VattError, OSError) as error:
        if ready_fd is not None:
            with suppress(OSError):  # who waited may have gone
                ready.say({"error": str(error)})
        _fail(str(error), EXIT_REFUSED)
    sys.exit(status)


@vattd.command()
@_running_gpu
@_socket_dir
@output_option
def stop(device: str | None, socket_dir: Path | None, output: str) -> None:
    """Stop a running vattd. Engines keep the pages that they hold.

    \b
    Examples:
      vattd stop
      vattd stop --gpu 1
      vattctl drain --wait && vattd stop
    """
    directories = [socket_dir] if socket_dir is not None else search_dirs(os.environ)
    try:
        if device is not None:
            device = named_device(device, device_uuid)
        sockets = find_only_daemon(directories, device)
        pid = end_running(sockets)
    except DaemonUnreachable as error:
        _fail(str(error), EXIT_UNREACHABLE)
    except VattError as error:
        _fail(str(error), EXIT_REFUSED)
    if output == "json":
        click.echo(json.dumps({"device": sockets.device, "pid": pid}))
    click.echo(f"vattd (pid {pid}) has stopped", err=True)


def main() -> None:
    run(vattd, "vattd")


def _start(config: Config, ready: ReadyPipe) -> int:
    from vattd.daemon import serve  # late: `vattd stop` and `--help` need no gRPC

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return asyncio.run(serve(config, ready))


def _start_detached(socket_dir: Path, output: str) -> int:
    """Start the same command again in a session of its own, and wait until it says that it serves."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    make_directory(socket_dir)
    log_path = socket_dir / "vattd.log"
    ready, ready_child = os.pipe()
    try:
        opened = open(log_path, "ab")  # noqa: SIM115  closed below
    except OSError as error:
        _fail(f"cannot write {log_path} ({error.strerror}): is {socket_dir} another user's?", EXIT_REFUSED)
    with open(ready) as answers, opened as log_file:
        child = subprocess.Popen(
            [sys.executable, "-m", "vattd", *arguments, "--ready-fd", str(ready_child)],
            pass_fds=[ready_child],
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
            env={**os.environ, "PYTHONSAFEPATH": "1"},  # not whatever is called vattd in this directory
        )
        os.close(ready_child)
        line = answers.readline()
    answer = json.loads(line) if line else {"error": f"vattd ended with status {child.wait()}: see {log_path}"}
    if "error" in answer:
        _fail(answer["error"], EXIT_REFUSED)
    page = f", status page {answer['metrics'].removesuffix('metrics')}" if answer["metrics"].startswith("http") else ""
    where = f"(pid {answer['pid']}), metrics {answer['metrics']}{page}, log in {log_path}"
    if output == "json":
        click.echo(json.dumps({**answer, "log": str(log_path)}))
    click.echo(f"vattd serves {answer['device']} {where}", err=True)
    child.returncode = 0  # it is not ours to wait for: no warning about a child that still runs
    return 0


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"vattd: {message}", err=True)
    sys.exit(status)
