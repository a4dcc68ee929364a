"""How large the pool may be, and its pages, as the options and the device say."""

from __future__ import annotations

import logging
from dataclasses import replace

from vatt.errors import InvalidRequest
from vatt.sizes import format_size, parse_size_or_percent
from vatt.sockets import Sockets
from vattd.config import DEFAULT_POOL_MAX, Config
from vattd.journal import noted_page_size_bytes
from vattd.rules import PoolLimits
from vattention.vmm import host_page_size_bytes
from vattention.vmm.driver import PhysicalDriver

log = logging.getLogger(__name__)


def page_size_bytes_of(config: Config, device: str) -> int | None:
    """None: the driver's own default. On the host it goes by the pool's size, unless engines hold pages already.

    Raises InvalidRequest for a journal that cannot be read."""
    if config.page_size_bytes is not None or device != "host" or config.huge_pages:
        return config.page_size_bytes
    noted = noted_page_size_bytes(Sockets(config.socket_dir / device).journal)
    if noted is not None:
        return noted
    from vattention.vmm.host_memory import HostMemory

    pool_max = config.pool_max or DEFAULT_POOL_MAX[device]
    return host_page_size_bytes(parse_size_or_percent(pool_max, HostMemory().read().total_bytes))


def limits_of(config: Config, driver: PhysicalDriver) -> PoolLimits:
    """Bytes, rounded down to whole pages. Raises InvalidRequest with the numbers."""
    page, total = driver.page_size_bytes, driver.memory().total_bytes
    max_text = config.pool_max or DEFAULT_POOL_MAX[driver.device.backend]
    max_bytes = parse_size_or_percent(max_text, total) // page * page
    min_bytes = parse_size_or_percent(config.pool_min, total) // page * page
    if max_bytes < page:
        raise InvalidRequest(f"--pool-max {max_text} is less than one page of {format_size(page)}")
    if max_bytes > total:
        raise InvalidRequest(
            f"--pool-max {max_text} is more than the {format_size(total)} that {driver.device.uuid} has: try 90%"
        )
    if min_bytes > max_bytes:
        raise InvalidRequest(f"--pool-min {config.pool_min} is more than --pool-max {max_text}")
    headroom_bytes = min(parse_size_or_percent(config.headroom, total), max_bytes)
    return PoolLimits(min_bytes, max_bytes, headroom_bytes)


def with_room_for(in_use_bytes: int, limits: PoolLimits, config: Config) -> PoolLimits:
    """The vattd that was replaced may have lent more after this one looked, and that cannot be taken back."""
    if not config.replace or in_use_bytes <= limits.max_bytes:
        return limits
    log.warning("%s are in use: so much is the pool, and not --pool-max", format_size(in_use_bytes))
    return replace(limits, max_bytes=in_use_bytes)
