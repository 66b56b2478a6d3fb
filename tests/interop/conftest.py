"""The files in the hands of the libraries that load them, and their files in ours.

What torch and transformers warn of is theirs; what `compressor` warns of stays an error.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

HERE = Path(__file__).parent
SAMPLES = HERE.parents[1] / "sample_weights"

# Imported here first, so that a warning at import does not fail the collection
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for package in ("torch", "transformers", "compressed_tensors", "mlx.core", "bitsandbytes"):
        with suppress(ImportError):
            importlib.import_module(package)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore", r"error:::compressor(\..*)?"))


@pytest.fixture
def tiny_llama() -> Path:
    """A bf16 folder of two shards; rows are 128 and 256 long."""
    return SAMPLES / "tiny-llama"


@pytest.fixture
def library_compressed() -> Callable[..., Any]:
    """compressed-tensors' own way from a model to its compressed state, without calibration data."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    def compress(model: Any, groups: Mapping[str, Any], ignore: Sequence[str] = ()) -> Any:
        """Compress `model` in place; the ModelCompressor that knows its configuration."""
        config = QuantizationConfig(config_groups=dict(groups), ignore=list(ignore))
        apply_quantization_config(model, config, show_progress=False)
        for module in model.modules():
            scheme = getattr(module, "quantization_scheme", None)
            if scheme is None or scheme.weights is None:
                continue
            args, weight = scheme.weights, module.weight.data
            grouped = {
                "tensor": lambda w: w.reshape(1, -1),
                "channel": lambda w: w.unsqueeze(1),
                "group": lambda w, size=args.group_size: w.unflatten(-1, (-1, size)),
            }[args.strategy](weight)
            scale, zero_point = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero_point)
        compressor = ModelCompressor.from_pretrained_model(model)
        compressor.compress_model(model)
        return compressor

    return compress
