"""The state file when the system refuses, and after a kill."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vatt.errors import SystemLimit
from vattd.state_file import State, StateFile


def refusing_one_in(calls: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """The call, whose `calls`-th use finds no free descriptor or no room."""
    left = calls

    def may_refuse(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return call(*arguments, **options)

    return may_refuse


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("name", ["open", "fsync", "rename"])
def test_a_write_that_is_refused_has_changed_nothing(
    name: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StateFile(tmp_path / "host.tenants.json")
    file.write(State(revision=1))
    with monkeypatch.context() as patched:
        patched.setattr(os, name, refusing_one_in(at, getattr(os, name)))
        try:
            file.write(State(revision=2))
            refused = False
        except SystemLimit:
            refused = True
    assert file.read().revision == (1 if refused else 2)
    assert os.listdir(tmp_path) == ["host.tenants.json"]
    if at == 1:
        assert refused, "else this test tests nothing"


def test_what_a_killed_vattd_left_half_written_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "host.tenants.json")
    left, anothers = tmp_path / ".host.tenants.json-abcd1234", tmp_path / ".GPU-1.tenants.json-abcd1234"
    for path in (left, anothers):
        path.write_text("{")
    file.write(State(revision=1))
    with file.held():
        assert not left.exists()
    assert anothers.exists()
    assert file.read().revision == 1
