"""`python -m vattd` is the `vattd` command."""

from vattd.app import main

main()
