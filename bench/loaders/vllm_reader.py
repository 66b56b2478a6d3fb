"""vLLM's log-probabilities for a fixed text of token ids, folder by folder: a process of its own, in a Python that
has vLLM.

It reads a line of JSON, `{"folder": "…", "plain": false, "embeds": false, "hears": false, "sees": false}`, and
answers with one, `{"answers": [[…], …]}`: for each token but the first the log-probabilities of the whole
vocabulary, or, of a model that `embeds`, for each token its vector; or `{"failed": "…"}`. One that `hears` is
given a sound. Of models that also see the part for texts is asked, without the other, but where vLLM wants both,
which `sees` says. Where it is to be `plain`, codes whose inputs vLLM rounds are multiplied out too. On a processor
vLLM has kernels for some codes only. Of others it reads the config, chooses the scheme and loads the codes as
anywhere, and what it has loaded is multiplied out here, for its own kernels of dense layers; the answer then names
these schemes, under `multiplied`.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
TOKENS = [1, 5, 9, 33, 77, 12, 200, 140, 3, 66]
_AT = "vllm.model_executor.layers.quantization.compressed_tensors"
_FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
multiplied: set[str] = set()
plain = False
_collect = gc.collect


def answers_of(folder: str, *, embeds: bool, hears: bool, sees: bool) -> list[list[float]]:
    """For each token but the first the log-probabilities of the vocabulary; for each its vector where a model
    `embeds`."""
    import torch
    from vllm import LLM, SamplingParams
    from vllm.config import PoolerConfig
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    model = None
    try:
        model = LLM(
            model=folder,
            runner="pooling" if embeds else "generate",
            pooler_config=PoolerConfig(task="token_embed") if embeds else None,
            skip_tokenizer_init=not embeds and not sees,
            language_model_only=not sees,
            enforce_eager=True,
            max_model_len=32,
            max_num_batched_tokens=64,
            max_num_seqs=1,
            max_logprobs=-1,
            dtype="bfloat16",
            kv_cache_memory_bytes=1 << 26,
        )
        if embeds:
            (told,) = model.encode([{"prompt_token_ids": TOKENS}], pooling_task="token_embed", use_tqdm=False)
            return [[float(number) for number in row] for row in told.outputs.data]
        wanted = SamplingParams(max_tokens=1, prompt_logprobs=-1, detokenize=False, temperature=0)
        prompt: Any = {"prompt_token_ids": TOKENS}
        if hears:
            sound = torch.sin(torch.arange(9600) * 0.1).numpy()
            heard = {"prompt": "", "multi_modal_data": {"audio": (sound, 16000)}}
            prompt = {"encoder_prompt": heard, "decoder_prompt": prompt}
        (answer,) = model.generate([prompt], wanted, use_tqdm=False)
        found = answer.prompt_logprobs[1:]
        return [[one[token].logprob for token in sorted(one)] for one in found]
    finally:
        del model
        with suppress(AssertionError):  # of a model that was not made there is nothing to clean up
            cleanup_dist_env_and_memory()
        _collect()


def look_through_imports_once() -> None:
    """Leave all that was imported out of the collection of garbage, which vLLM does nine times a model, and let it
    look there for kernels of Triton once: most of the time that a small model takes."""
    import vllm.v1.engine.llm_engine  # noqa: F401
    from vllm.platforms import current_platform

    register = cache(current_platform.register_triton_kernel_overrides)
    type(current_platform).register_triton_kernel_overrides = staticmethod(register)
    gc.freeze()
    gc.collect = lambda *_: 0
    gc.freeze = gc.unfreeze = lambda: None


def look_in_this_process() -> None:
    """Let vLLM look at its models' classes here, not in a process for each; and let torchvision be imported, which
    some of them want, where its kernels are for another processor: its import asks for two of them by name."""
    import torch

    for one in ("nms", "qnms"):
        torch.library.define(f"torchvision::{one}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    from vllm.model_executor.models import registry

    registry._run_in_subprocess = lambda look: look()


# ---- what codes stand for ------------------------------------------------------------------------------


def numbers(layer: Any, weight: str, scale: str) -> Any:
    """The matrices of a layer, as vLLM has loaded their codes under these names."""
    import torch

    codes, scales = getattr(layer, weight), getattr(layer, scale)
    if codes.dtype == torch.uint8:
        table = torch.tensor([*_FP4, *(-number for number in _FP4)])
        values = table[torch.stack([codes & 15, codes >> 4], -1).long()].flatten(-2)
    elif codes.dtype == torch.int32:
        columns = getattr(layer, weight.replace("_packed", "_columns"))
        bits = 32 * codes.shape[-1] // columns
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        values = ((codes.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2).float()
        zeros = getattr(layer, weight.replace("_packed", "_zero_point"), None)
        if zeros is None:
            values -= 2 ** (bits - 1)
        else:  # packed down the rows, each for a group
            zeros = ((zeros.unsqueeze(-2) >> shifts.unsqueeze(-1)) & (2**bits - 1)).flatten(-3, -2)
            values -= zeros.repeat_interleave(values.shape[-1] // zeros.shape[-1], -1)
    else:
        values = codes.float()
    scales = torch.exp2(scales.float() - 127) if scales.dtype == torch.uint8 else scales.float()
    high, wide = getattr(layer, "weight_block_size", None) or (1, 1)  # of blocks the last may be cut
    for axis, block in ((-2, high), (-1, wide)):  # a scale each row, and one for groups of columns; or for blocks
        size = values.shape[axis]
        by = max(block, size // scales.shape[axis])
        scales = scales.repeat_interleave(by, axis).narrow(axis, 0, size)
    return values * scales


def of_gptq(layer: Any) -> Any:
    """The matrix of a layer in GPTQ's layout, as vLLM has loaded its words down the columns: symmetric codes."""
    import torch

    words, scales = layer.qweight, layer.scales.float()
    bits = 32 * words.shape[0] // layer.input_size_per_partition
    shifts = torch.arange(0, 32, bits, dtype=torch.int32).unsqueeze(-1)
    codes = ((words.unsqueeze(1) >> shifts) & (2**bits - 1)).flatten(0, 1).float() - 2 ** (bits - 1)
    return (codes * scales.repeat_interleave(len(codes) // len(scales), 0)).T


class Multiplied:
    """In the place of a kernel for codes of linear layers that vLLM has not here: multiplied out once loaded."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.config = SimpleNamespace()

    def process_weights_after_loading(self, layer: Any) -> None:
        """Keep the matrix that the codes stand for."""
        import torch

        if self.scheme == "wNa16":
            layer.weight_columns = layer.input_size_per_partition
            dense = numbers(layer, "weight_packed", "weight_scale")
        elif self.scheme == "gptq":
            dense = of_gptq(layer)
        elif self.scheme in ("w8a16_fp8", "w8a8_fp8") and not self.blocks(layer):
            # [in, out], with a scale an output
            dense = (layer.weight.float() * layer.weight_scale.float().reshape(1, -1)).T
        else:
            dense = numbers(layer, "weight", "weight_scale")
            if hasattr(layer, "weight_global_scale"):
                dense *= layer.weight_global_scale.float()  # of which vLLM has made one for all parts
        layer.dense = dense.to(torch.bfloat16)
        multiplied.add(f"{self.scheme} of linear layers")

    @staticmethod
    def blocks(layer: Any) -> bool:
        """Whether a scale is for a block of some rows and columns."""
        return getattr(layer, "weight_block_size", None) is not None

    @staticmethod
    def input_quant_key() -> None:
        """Inputs stay as they are."""

    @staticmethod
    def apply_weights(layer: Any, x: Any, bias: Any = None) -> Any:
        """The product with that matrix."""
        import torch

        return torch.nn.functional.linear(x, layer.dense, bias)


def linear_layers_as_numbers() -> None:
    """Let vLLM go on where it finds no kernel for codes of linear layers."""
    for scheme, chooser, made in (
        ("wNa16", "choose_mp_linear_kernel", False),
        ("w8a16_fp8", "init_wfp8_a16_linear_kernel", True),
        ("w4a4_nvfp4", "init_nvfp4_linear_kernel", True),
        ("w4a4_mxfp4", "init_mxfp4_linear_kernel", True),
        ("w8a8_mxfp8", "init_mxfp8_linear_kernel", True),
        ("w8a8_int8", "init_int8_linear_kernel", True),
        ("w8a8_fp8", "init_fp8_linear_kernel", True),
    ):
        module = import_module(f"{_AT}.schemes.compressed_tensors_{scheme}")
        setattr(module, chooser, _choosing(getattr(module, chooser), scheme, made))
    module = import_module("vllm.model_executor.layers.quantization.auto_gptq")
    module.choose_mp_linear_kernel = _choosing(module.choose_mp_linear_kernel, "gptq", False)
    module.verify_marlin_supported = lambda **_: None  # which has 8 bits elsewhere, and none on a processor


def latent_attention_finds_weights() -> None:
    """vLLM's attention of latent vectors asks its layer of keys and values for its weight, if only to see where it
    lies, and multiplies an identity with the layer; the kernel of int8 for processors has dropped it by then."""
    import torch
    from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

    process = CPUInt8ScaledMMLinearKernel.process_weights_after_loading

    def keeping(kernel: Any, layer: Any) -> None:
        process(kernel, layer)
        if getattr(layer, "_cpu_skip_gemm_dispatch", False) and layer.weight is None:
            layer.weight = torch.nn.Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False)
            multiplied.add("weights for latent attention")

    CPUInt8ScaledMMLinearKernel.process_weights_after_loading = keeping


def _choosing(choose: Any, scheme: str, made: bool) -> Any:
    def chosen(*given: Any, **named: Any) -> Any:
        try:
            if plain and scheme in ("w8a8_int8", "w8a8_fp8"):
                raise ValueError(scheme)
            return choose(*given, **named)
        except ValueError:
            kind = type(scheme, (), {"__new__": lambda *_, **__: Multiplied(scheme)})
            return kind() if made else kind

    return chosen


def experts_as_numbers() -> None:
    """Let vLLM go on without a kernel for codes of experts, and take what they stand for."""
    import torch
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    def after_loading(method: Any, layer: Any) -> None:
        for part in ("w13", "w2"):
            packed = hasattr(layer, f"{part}_weight_packed")
            weight = f"{part}_weight{'_packed' if packed else ''}"
            inputs = layer.hidden_size if part == "w13" else layer.intermediate_size_per_partition
            setattr(layer, f"{part}_weight_columns", inputs)
            dense = numbers(layer, weight, f"{part}_weight_scale")
            shared = getattr(layer, f"{part}_weight_global_scale", None)
            if shared is not None:  # of gate and up vLLM takes the first
                dense /= shared.reshape(len(shared), -1)[:, :1, None]
            setattr(layer, f"{part}_weight", torch.nn.Parameter(dense.to(torch.bfloat16), requires_grad=False))
        called = type(method).__name__.removeprefix("CompressedTensors").removesuffix("MoEMethod")
        multiplied.add(f"{called} of experts")
        layer.quant_method = UnquantizedFusedMoEMethod(method.moe)
        layer.quant_method.process_weights_after_loading(layer)

    for name, selects, kind in (
        ("wna16", "select_wna16_moe_backend", "WNA16"),
        ("w8a8_int8", "select_int8_moe_backend", "W8A8Int8"),
        ("w8a8_fp8", "select_fp8_moe_backend", "W8A8Fp8"),
        ("w8a8_mxfp8", "select_mxfp8_moe_backend", "W8A8Mxfp8"),
        ("w4a4_nvfp4", "select_nvfp4_moe_backend", "W4A4Nvfp4"),
        ("w4a4_mxfp4", "select_mxfp4_moe_backend", "W4A4Mxfp4"),
    ):
        module = import_module(f"{_AT}.compressed_tensors_moe.compressed_tensors_moe_{name}")
        setattr(module, selects, lambda **_: (None, None))
        if name == "wna16":  # of Marlin's kernels, which take one scale a row as well
            setattr(module, selects, lambda marlin=module.WNA16MoEBackend.MARLIN, **_: (marlin, None))
            module.check_moe_marlin_supports_config = lambda *_, **__: True
        if name == "w4a4_nvfp4":
            module.is_global_sf_supported_for_nvfp4_backend = lambda _: False
        getattr(module, f"CompressedTensors{kind}MoEMethod").process_weights_after_loading = after_loading


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr
    look_in_this_process()
    linear_layers_as_numbers()
    experts_as_numbers()
    latent_attention_finds_weights()
    look_through_imports_once()
    for line in sys.stdin:
        multiplied.clear()
        asked = json.loads(line)
        plain = asked["plain"]
        try:
            how = {one: asked[one] for one in ("embeds", "hears", "sees")}
            told: dict[str, object] = {"answers": answers_of(asked["folder"], **how)}
        except Exception as error:
            told = {"failed": re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:300]}
        answers.write(json.dumps({**told, "multiplied": sorted(multiplied)}) + "\n")
        answers.flush()
