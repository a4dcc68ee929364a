"""`python -m vattention.chat` is the command `vattention chat`."""

from vattention.chat.cli import main

main("chat")
