"""Options of the whole suite."""

from __future__ import annotations

import importlib.util

import pytest

# An environment of its own has vLLM: `make test-vllm`.
collect_ignore = [] if importlib.util.find_spec("vllm") else ["vllm"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seconds", type=float, default=3.0, help="How long two engines share a pool.")
    # From the moment the kernel shows an engine's exit until its pages are in the pool again.
    parser.addoption("--back-within-s", type=float, default=1.0, help="Bound for pages of the killed; 0.1 where quiet.")
    parser.addoption("--policy-steps", type=int, default=20_000, help="Random steps that the policy is soaked in.")
    parser.addoption("--policy-seed", type=int, default=None, help="Only this world, as a failure named it.")
    parser.addoption("--vattd-kills", type=int, default=5, help="How often vattd is killed on each backend.")
    parser.addoption("--flat-minutes", type=float, default=0.05, help="How long eight engines run, to see what grows.")
    parser.addoption("--chaos-seed", type=int, default=20261125, help="Of the random blows.")
    parser.addoption("--kills", type=int, default=12, help="How many engines are killed on each backend.")
    parser.addoption("--handovers", type=int, default=40, help="How often a pool goes from engine to engine.")
    parser.addoption("--hostile-inputs", type=int, default=3000, help="Hostile inputs sent to vattd on each backend.")
    parser.addoption("--hostile-seed", type=int, default=20261126, help="Of the hostile inputs.")
