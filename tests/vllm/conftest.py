"""The model that all engines run."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():  # of what vLLM's own imports do
    warnings.simplefilter("ignore")
    import vllm.v1.core.block_pool  # noqa: F401

from tests.vllm.engine_process import MODEL


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory: Path = tmp_path_factory.mktemp("tiny-llama")
    (directory / "config.json").write_text(json.dumps(MODEL))
    return str(directory)
