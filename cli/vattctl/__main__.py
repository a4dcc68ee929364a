"""`python -m vattctl` is the `vattctl` command."""

from vattctl.main import main

main()
