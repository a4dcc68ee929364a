"""What a user of the vLLM plugin may say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from vatt.errors import InvalidRequest
from vattention.config import TENANT_VARIABLE

SWITCH_VARIABLE = "VATTD_VLLM"
# The key of vLLM's --additional-config.
CONFIG_KEY = "vattd"
DEFAULT_TENANT = "vllm"


@dataclass(frozen=True, slots=True)
class Options:
    """`--additional-config '{"vattd": {"tenant": "chat"}}'`, or VATTD_VLLM=1 for all by default.

    `prefix_cache_bytes` bounds what cached prefixes hold that no request uses, on all ranks together; None: they stay
    until vattd wants the memory back or a request of the engine's own needs it.
    """

    tenant: str = DEFAULT_TENANT
    device: str | None = None
    socket_dir: str | None = None
    prefix_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.tenant, str) or not self.tenant:
            raise InvalidRequest(f"tenant must be a name, not {self.tenant!r}")
        cache = self.prefix_cache_bytes
        if cache is not None and (isinstance(cache, bool) or not isinstance(cache, int) or cache < 0):
            raise InvalidRequest(f"prefix_cache_bytes must be a number of bytes, not {cache!r}")

    @classmethod
    def are_given(cls, additional_config: object, environ: Mapping[str, str] = os.environ) -> bool:
        """Is the plugin switched on?"""
        switch = environ.get(SWITCH_VARIABLE, "")
        if switch not in ("", "0", "1"):
            raise InvalidRequest(f"{SWITCH_VARIABLE} is {switch!r}: it may be 1, or 0 or unset")
        if switch:
            return switch == "1"
        return isinstance(additional_config, dict) and CONFIG_KEY in additional_config

    @classmethod
    def of(cls, vllm_config: Any, environ: Mapping[str, str] = os.environ) -> Options:
        """Those of an engine. Raises InvalidRequest for an option that does not exist."""
        additional = vllm_config.additional_config
        given = additional.get(CONFIG_KEY, {}) if isinstance(additional, dict) else {}
        known = [field.name for field in fields(cls)]
        if not isinstance(given, dict) or not given.keys() <= set(known):
            raise InvalidRequest(f"additional_config[{CONFIG_KEY!r}] is {given!r}: it may have {', '.join(known)}")
        return cls(**{"tenant": environ.get(TENANT_VARIABLE) or DEFAULT_TENANT, **given})
