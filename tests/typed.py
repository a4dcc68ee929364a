"""Commands that texts tell people to type: would they be taken?"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click

from manual.__main__ import COMMANDS

OURS = re.compile(rf"\b({'|'.join(COMMANDS)}) [a-z]")
# What a reader puts something in for.
BLANKS = {
    "SESSION": "7-1",
    "TENANT": "chat",
    "OTHER": "batch",
    "SIZE": "1GiB",
    "UUID": "GPU-1",
    "TIME": "30s",
    "HOST:PORT": "127.0.0.1:1",
}


def quoted_in(text: str) -> Iterator[str]:
    """Ours of those in `backticks`."""
    for command in re.findall(r"`([^`]+)`", text):
        if OURS.match(command):
            yield " ".join(command.split())


def refusal(line: str) -> str:
    """What click has against one of our commands; empty if nothing. It is parsed, and not run."""
    filled = re.sub(r"{{.*?}}", "chat", line)
    root, *words = (BLANKS.get(word, word) for word in shlex.split(filled, comments=True) if word != "...")
    command = COMMANDS[root]
    try:
        while isinstance(command, click.Group) and words:
            verb, *words = words
            if verb not in command.commands:
                return f"there is no {verb}"
            command = command.commands[verb]
        if words:  # else it is only spoken of
            command.make_context(line, list(words))
    except click.ClickException as error:
        return error.format_message()
    return ""
