"""When pages are scrubbed."""

from __future__ import annotations

import enum


class Scrub(enum.Enum):
    """Which pages vattd zeroes before it lends them. The values are what `vattd start --scrub` takes."""

    CROSS_TENANT = "cross-tenant"  # what another tenant had, or unknown hands: the default
    ALWAYS = "always"  # also what came back and goes to another session of the same tenant
    NEVER = "never"  # none: an operator's word that all tenants may read each other's old bytes
