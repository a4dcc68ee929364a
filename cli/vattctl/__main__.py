"""`python -m vattctl` is the `vattctl` command."""

from vattctl.entry import main

main()
