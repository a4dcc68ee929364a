"""What `vattctl` starts with: nothing but the standard library, until the packages here are known to fit together."""

from __future__ import annotations

import sys

EXIT_REFUSED = 1  # as in vatt.command_line, which needs click


def main() -> None:
    try:
        from vattctl.main import main as run
    except Exception as error:  # noqa: BLE001 - each package has its own for a neighbour that it does not get on with
        sys.stderr.write(f"vattctl: {type(error).__name__}: {error}: try `{_what_to_type()}`\n")
        sys.exit(EXIT_REFUSED)
    run()


def _what_to_type() -> str:
    from vattctl.doctor.probes.software import read_software

    wrong = [one.requirement for one in read_software({}).needed if not one.fits]
    return "pip install " + (" ".join(f"'{one}'" for one in wrong) or "--force-reinstall .  # in vattd's source folder")
