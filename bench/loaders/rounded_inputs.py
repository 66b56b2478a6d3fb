"""What a folder stands for whose layers' inputs its loader rounds too, as W8A8 and FP8 say in config.json: the
restored model, with the inputs of exactly these layers rounded.

A rounding of inputs feeds on itself: a router that sees other numbers chooses other experts. So a loaded folder is
held against this model and not against the restored one alone, from which it may lie as far as rounding takes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def round_inputs(model: Any, folder: Path) -> int:
    """Let the layers of a restored `model` round what they are given as the config.json of the quantized `folder`
    says, and tell how many do. Experts that transformers keeps in one tensor are no layers, and it rounds nothing
    there; nor does it where a layer's inputs are not to be rounded. Those of Llama 4 it makes layers where they are
    quantized, so the model's become such here."""
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp
    from compressed_tensors.utils.match import match_named_modules, match_targets

    _apart(model)
    said = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config") or {}
    if said.get("quant_method") != "compressed-tensors":
        return 0
    config = QuantizationConfig.model_validate(said)
    groups = {target: group for group in config.config_groups.values() for target in group.targets}
    count = 0
    for name, module in match_named_modules(model, groups, config.ignore):
        asked = groups[match_targets(name, module, groups)[0]].input_activations
        if asked is None:
            continue

        def rounded(layer: Any, given: tuple[Any, ...], asked: Any = asked) -> tuple[Any, ...]:
            if not given[0].numel():
                return given
            scale, zero = compute_dynamic_scales_and_zp(value=given[0], args=asked, module=layer)
            return (fake_quantize(given[0], scale, zero, asked), *given[1:])

        module.register_forward_pre_hook(rounded)
        count += 1
    return count


def _apart(model: Any) -> None:
    """Make layers of Llama 4's experts, with the same weights."""
    import torch
    from transformers.quantizers.base import SequentialLlama4TextExperts

    for name, module in list(model.named_modules()):
        if type(module).__name__ != "Llama4TextExperts":
            continue
        layers = SequentialLlama4TextExperts(model.config.get_text_config()).to(module.down_proj.dtype)
        with torch.no_grad():
            for number, layer in enumerate(layers):
                gate, up = module.gate_up_proj[number].T.chunk(2)
                layer.gate_proj.weight.copy_(gate)
                layer.up_proj.weight.copy_(up)
                layer.down_proj.weight.copy_(module.down_proj[number].T)
        model.set_submodule(name, layers.eval())
