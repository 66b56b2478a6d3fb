"""vLLM's log-probabilities for a fixed text of token ids, in a process of its own: `vllm_reader.py FOLDER`.

Prints a line of JSON: for each token but the first its log-probability and those of the likeliest five. On a
processor vLLM has no kernels for codes of experts: it reads the config, chooses the scheme and loads the codes as
anywhere, and what it has loaded is multiplied out here, for its own kernel of dense experts.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
TOKENS = [1, 5, 9, 33, 77, 12, 200, 140, 3, 66]


def experts_as_numbers() -> None:
    """Let vLLM go on without a kernel for codes of experts, and take what they stand for."""
    from importlib import import_module

    import torch
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    at = "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe.compressed_tensors_moe"

    def multiplied(method: Any, layer: Any) -> None:
        for part in ("w13", "w2"):
            dense = numbers(layer, part, getattr(method, "num_bits", 8)).to(torch.bfloat16)
            setattr(layer, f"{part}_weight", torch.nn.Parameter(dense, requires_grad=False))
        layer.quant_method = UnquantizedFusedMoEMethod(method.moe)
        layer.quant_method.process_weights_after_loading(layer)

    def numbers(layer: Any, part: str, bits: int) -> Any:
        scale = getattr(layer, f"{part}_weight_scale").float()
        packed = getattr(layer, f"{part}_weight_packed", None)
        if packed is None:
            codes = getattr(layer, f"{part}_weight").float()
        else:
            shifts = torch.arange(0, 32, bits, dtype=torch.int32)
            codes = ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2).float() - 2 ** (bits - 1)
        return codes * scale.repeat_interleave(codes.shape[-1] // scale.shape[-1], -1)

    for name, selects, kind in (
        ("wna16", "select_wna16_moe_backend", "CompressedTensorsWNA16MoEMethod"),
        ("w8a8_int8", "select_int8_moe_backend", "CompressedTensorsW8A8Int8MoEMethod"),
        ("w8a8_fp8", "select_fp8_moe_backend", "CompressedTensorsW8A8Fp8MoEMethod"),
    ):
        module = import_module(f"{at}_{name}")
        setattr(module, selects, lambda **_: (None, None))
        getattr(module, kind).process_weights_after_loading = multiplied


if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    experts_as_numbers()
    model = LLM(model=sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, dtype="bfloat16")
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=5, detokenize=False, temperature=0)
    (answer,) = model.generate([{"prompt_token_ids": TOKENS}], wanted)
    told = [
        {str(token): float(one.logprob) for token, one in found.items()} for found in answer.prompt_logprobs[1:]
    ]
    print("LOGPROBS", json.dumps(told))
