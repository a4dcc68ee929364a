"""The `vattention` command. Exit status: 0 done, 1 refused, 2 usage, 3 no vattd answers."""

from __future__ import annotations

import importlib
import ipaddress
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vatt.command_line import EXIT_REFUSED, EXIT_WORDS, HELP_OPTIONS, output_option, run
from vatt.errors import InvalidRequest
from vattention.config import DAEMON_VARIABLE, EMBEDDED, TENANT_VARIABLE

if TYPE_CHECKING:
    from vattention.chat.engine import ChatEngine

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEFAULT_MAX_TOKENS = 1024


@click.group(epilog=EXIT_WORDS, context_settings=HELP_OPTIONS)
@click.version_option(package_name="vattd", prog_name="vattention")
def vattention() -> None:
    """Chat with a language model whose KV cache lies in pages that vattd lends."""


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What becomes the ChatEngine: see `open_engine`."""
    options = [
        click.option(
            "--model",
            "model_name",
            metavar="NAME",
            default="microsoft/phi-2",
            show_default=True,
            help="A folder with a transformers model, or a name on the Hugging Face Hub.",
        ),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, or cuda:N."),
        click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="auto: the file's."),
        click.option(
            "--tenant",
            default="chat",
            envvar=TENANT_VARIABLE,
            show_envvar=True,
            show_default=True,
            help="Whose budget in vattd the memory counts to.",
        ),
        click.option(
            "--conversations",
            type=click.IntRange(min=1),
            default=16,
            show_default=True,
            help="That hold memory at a time; others are computed anew at their next turn.",
        ),
        click.option("--max-context", type=click.IntRange(min=2), help="Tokens of a conversation; unset: the model's."),
        click.option(
            "--socket-dir", type=click.Path(path_type=Path), help="Where vattd's sockets are; unset: the usual places."
        ),
        click.option("--embedded", is_flag=True, help="Start a private vattd that ends with this command."),
        click.option(
            "--no-vattention", is_flag=True, help="Use transformers' DynamicCache, and no vattd, for comparison."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@vattention.command(context_settings=HELP_OPTIONS, short_help="Chat in the terminal.")
@engine_options
@click.option("--system", metavar="TEXT", help="A system message for each conversation.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0: the likeliest token each time.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Choose among the likeliest tokens.")
@click.option("--seed", type=int, help="Of the choices, where temperature is above 0.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=DEFAULT_MAX_TOKENS, show_default=True, help="Of an answer."
)
def chat(
    system: str | None, temperature: float, top_p: float, seed: int | None, max_tokens: int, **options: Any
) -> None:
    """Chat in the terminal; without one, answer each line of standard input.

    /help lists what else can be typed. Ctrl-C ends an answer, Ctrl-D the chat.

    \b
    Examples:
      vattention chat --model ./SmolLM2-135M-Instruct
      vattention chat --embedded --system "Answer in one sentence."
      echo "What is a page?" | vattention chat --max-tokens 50
    """
    sampling = of_the_extra("vattention.chat.sampling").Sampling(
        temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens
    )
    with open_engine(**options) as engine:
        from vattention.chat.terminal import Terminal

        succeeded = Terminal(engine, sampling, system).run()
    if not succeeded:
        sys.exit(EXIT_REFUSED)


@vattention.command(context_settings=HELP_OPTIONS, short_help="Serve OpenAI's chat completions over HTTP.")
@engine_options
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at: this machine only.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any that is free.")
@click.option("--public", is_flag=True, help="Listen at an address that other machines reach. There is no password.")
@output_option
def serve(host: str, port: int, public: bool, output: str, **options: Any) -> None:
    """Serve OpenAI's chat completions over HTTP: /v1/models, /v1/chat/completions, /stats, /health.

    The first line on standard output says where, once requests can come.

    \b
    Examples:
      vattention serve --model ./SmolLM2-135M-Instruct
      vattention serve --device cuda --port 0 --tenant chat
      curl http://127.0.0.1:8000/v1/models
    """
    if not public and not _is_loopback(host):
        raise click.UsageError(
            f"--host {host} may be reached by other machines, and the server asks nobody for a password: leave --host "
            "out, or say --public as well"
        )
    with listen(host, port) as listener, open_engine(**options) as engine:
        from vattention.chat.server import serve as serve_engine

        bound_host, bound_port = listener.getsockname()[:2]
        shown_host = f"[{bound_host}]" if ":" in bound_host else bound_host
        url = f"http://{shown_host}:{bound_port}/v1"
        words = f"{engine.model_name} at {url}"
        click.echo(json.dumps({"model": engine.model_name, "url": url}) if output == "json" else words)
        sys.stdout.flush()
        serve_engine(engine, listener, any_host=public)


def open_engine(
    model_name: str,
    device: str,
    dtype: str,
    tenant: str,
    conversations: int,
    max_context: int | None,
    socket_dir: Path | None,
    embedded: bool,
    no_vattention: bool,
) -> ChatEngine:
    """Load the model; raises what ChatEngine does, and InvalidRequest where the extra is not installed."""
    if embedded:
        os.environ[DAEMON_VARIABLE] = EMBEDDED  # for this process: an option is another way to say it
    if model_name.startswith(("/", ".", "~")) and not Path(model_name).expanduser().is_dir():
        raise InvalidRequest(f"no folder {model_name}: give one with config.json and weights, or a name on the hub")
    if sys.stderr.isatty():
        click.echo(f"Loading {model_name} ...", err=True)
    quiet = of_the_extra("transformers.utils.logging")
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    made: ChatEngine = of_the_extra("vattention.chat.engine").ChatEngine(
        model_name,
        not no_vattention,
        device,
        dtype=None if dtype == "auto" else getattr(of_the_extra("torch"), dtype),
        tenant=tenant,
        max_conversations=conversations,
        max_context_length=max_context,
        socket_dir=socket_dir,
    )
    return made


def of_the_extra(module: str) -> Any:
    """A module that is there with the extra `chat`, imported; raises InvalidRequest where it is not."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidRequest(
            f"{error.name} is not installed: `pip install '.[chat]'` in vattd's source folder brings it"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidRequest(f"cannot listen at {host}, port {port}: {reason}: try another --port, or 0") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(*command: str) -> None:
    """Run what the command line says, or this command of it."""
    run(vattention, "vattention", [*command, *sys.argv[1:]])
