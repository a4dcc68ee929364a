"""Python, our own packages, and what the environment says."""

from __future__ import annotations

from vatt.errors import InvalidRequest
from vatt.protocol import MAX_VERSION, MIN_VERSION
from vattctl.doctor.facts import Facts
from vattctl.doctor.finding import Finding, broken, note, ok
from vattention.config import read_config, read_upstream_config

# The newest that the tests ran under.
NEWEST_PYTHON = (3, 13)


def python(facts: Facts) -> Finding:
    words = "Python " + ".".join(map(str, facts.software.python))
    if facts.software.python[:2] > NEWEST_PYTHON:
        return note("python", f"{words}, which is newer than what vattd was tested with")
    return ok("python", words)


def packages(facts: Facts) -> Finding:
    software = facts.software
    wrong = [one for one in software.needed if not one.fits]
    if wrong:
        words = ", ".join(f"{one.requirement}, and {_found(one.version)}" for one in wrong)
        wanted = " ".join(f"'{one.requirement}'" for one in wrong)
        return broken("packages", f"vattd needs {words}", f"pip install {wanted}")
    wire = f"{MIN_VERSION}" if MIN_VERSION == MAX_VERSION else f"{MIN_VERSION} to {MAX_VERSION}"
    return ok("packages", f"vattd {software.version}, wire version {wire}; the packages that it needs are there")


def environment(facts: Facts) -> Finding:
    """The variables that engines and vattctl read."""
    environ = facts.software.environ
    for read in (read_config, read_upstream_config):
        try:
            read(environ)
        except InvalidRequest as error:
            name = str(error).split()[0]
            return broken("environment", str(error), f"unset {name}")
    own = [f"{name}={value}" for name, value in environ.items() if name.startswith("VATT")]
    return ok("environment", ", ".join(own) or "no variable of ours is set")


def _found(version: str) -> str:
    return f"{version} is installed" if version else "it is not installed"
