"""`python -m vattention` is the command `vattention`."""

from vattention.chat.cli import main

main()
