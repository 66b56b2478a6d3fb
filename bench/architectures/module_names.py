"""Linear layers that transformers calls otherwise than its files do, and `architectures/renamed_modules.py` does
not know: `python -m bench.architectures.module_names [TYPES…]`.

A small model of each type is saved, and what it saved is told by its numbers. A config that names layers, or leaves
some out, has to give both names.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from bench.loaders.families import quietly
from bench.loaders.small_models import make, types
from compressor.architectures.renamed_modules import renamed
from compressor.architectures.roles import is_embedding

_SECONDS = 60  # for one type


def main() -> int:
    """Print the names of each type that are not known; 1 if there are any."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _late)
    wrong = False
    with quietly():
        for kind in sys.argv[1:] or types():
            signal.alarm(_SECONDS)
            try:
                found = unknown(kind)
            except Exception as error:
                found = {}
                sys.stderr.write(f"{kind}: not made: {type(error).__name__}\n")
            finally:
                signal.alarm(0)
            for stored, module in found.items():
                sys.stdout.write(f"{kind}: {stored} is {module}\n")
            sys.stdout.flush()
            wrong |= bool(found)
    return int(wrong)


def unknown(kind: str) -> dict[str, str]:
    """What modules of a type are called, by what their files call them, numbers as 0, where that is not known.
    Exceptions of transformers where no small model can be made."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        model = make(kind, folder).from_pretrained(folder)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        stored: dict[bytes, str] = {}
        for file in sorted(folder.glob("*.safetensors")):
            stored |= {part: name for name, tensor in load_file(file).items() for part in _parts(tensor)}
        found: dict[str, str] = {}
        for name, module in model.named_modules():
            if type(module) is not torch.nn.Linear:
                continue
            file_name = stored.get(_sum(module.weight))
            if file_name is None or not file_name.endswith(".weight") or is_embedding(file_name):
                continue
            written = file_name.removesuffix(".weight")
            if not any(_same(one, name) for one in renamed(config, written)):
                found[_zeros(written)] = _zeros(name)
        return found


def _zeros(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "0", name)


def _same(one: str, other: str) -> bool:
    """Whether two names are alike from the first number on, or to the end where there is none."""
    shown = re.search(r"[^.]+\.\d+\..*", one)
    tail = shown.group() if shown else one
    return other == tail or other.endswith(f".{tail}") or one.endswith(f".{other}")


def _parts(tensor: Any) -> Iterator[bytes]:
    """The sums of a matrix, and of what it may be divided into by rows."""
    if tensor.ndim == 2:
        yield _sum(tensor)
        for count in (2, 3):
            if tensor.shape[0] % count == 0:
                yield from (_sum(one) for one in tensor.chunk(count))


def _sum(tensor: Any) -> bytes:
    return hashlib.sha256(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()).digest()


def _late(*_: object) -> None:
    raise TimeoutError


if __name__ == "__main__":
    sys.exit(main())
