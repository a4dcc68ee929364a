"""A simulated CUDA driver: a libcuda.so.1 and a libnvidia-ml.so.1 that refuse whatever the real ones refuse.

Programs under test run in subprocesses with `World.env()`; the test process never loads the driver.
See README.md.
"""

from .faults import Faults, Holdings
from .library import build
from .world import LATENCIES_US, MIB, CallCount, World

__all__ = ["LATENCIES_US", "MIB", "CallCount", "Faults", "Holdings", "World", "build"]
