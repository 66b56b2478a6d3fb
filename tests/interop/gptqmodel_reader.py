"""gptqmodel's own reading of GPTQ parts, in a process of its own.

It is installed beside the other libraries and not among them (`make test-interop`): where PEFT finds it, it wants
Optimum too, and its import patches torch, transformers and safetensors.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FOLDER = Path(sys.prefix) / "gptqmodel"


def find() -> None:
    sys.path.append(str(FOLDER))


@contextmanager
def reader() -> Iterator[ProcessPoolExecutor]:
    """A process that can import gptqmodel; `submit(read, …)` asks it."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, find) as pool:
        yield pool


def read(parts: Mapping[str, Any], bits: int, group: int, form: str) -> Any:
    """What gptqmodel makes of the parts, NumPy arrays, of one layer: [out, in]."""
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module

    rows, columns = parts["qweight"].shape[1], parts["g_idx"].shape[0]
    sorted_by_inputs = bool((parts["g_idx"][1:] < parts["g_idx"][:-1]).any())
    made = TorchLinear(bits, group, True, sorted_by_inputs, columns, rows, bias=False, register_buffers=True)
    for name, part in parts.items():
        getattr(made, name).data.copy_(torch.from_numpy(part))
    if form == "gptq":
        convert_gptq_v1_to_v2_format_module(made, bits, torch.int32)
    made._init_wf_unsqueeze_buffers()
    return made.dequantize_weight().T.numpy()


def load(packed: Path, dense: Path, name: str) -> dict[str, Any]:
    """How the family of this name loads by transformers and optimum: what they miss, how many `layers` have codes,
    how far their weights lie `apart` from those of the `dense` folder, at most, and how far the answers do."""
    import torch

    from bench.loaders.families import FAMILIES, output_of, quietly

    family = FAMILIES[name]
    with quietly():
        model, info = family.model.from_pretrained(packed, output_loading_info=True)
        restored = family.model.from_pretrained(dense).eval()
    layers, far = dict(restored.named_modules()), [0.0]
    for module, layer in model.named_modules():
        if hasattr(layer, "qweight"):
            wanted = layers[module].weight.float()
            far.append(float((layer.dequantize_weight().T.float() - wanted).norm() / wanted.norm()))
    with torch.no_grad():
        found, wanted = (output_of(one, family.given) for one in (model.eval(), restored))
    wrong = {key: sorted(map(str, one)) for key, one in info.items() if one}
    off = float((found - wanted).norm() / wanted.norm())
    return {"wrong": wrong, "layers": len(far) - 1, "apart": max(far), "answers": off}
