"""Parameters and buffers of all models of the installed transformers that would be treated as weights of layers
though their modules are no layers: `python -m bench.architectures.parameters`.

Builds each model class with its default config, cut to four layers, on the meta device (some minutes), and prints
a line for each name, numbers as 0, with its shape and the models that have it. What is left in the list should be
matrices that inputs are multiplied with; those of kinds that are known to be such are not listed. Needs torch and
transformers.
"""

from __future__ import annotations

import re
import signal
import warnings
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from compressor.architectures.roles import Role, is_embedding, role_of

_LAYERS = frozenset(
    ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "QuantLinear")
)
_SIZES = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "depth")
_MOST = 4  # layers
_SECONDS = 60  # for one class
# Matrices that inputs are multiplied with, of modules that keep them as parameters of their own
MATRICES = re.compile(
    r"experts\.(gate_up_proj|gate_proj|up_proj|down_proj)$|in_proj_weight$|original[01]$|weight_[ih]h(_l\d)?$"
    r"|rel_attn\.[qkvor]$|r_kernel$|_gate_weight$|_projection(_weight)?$|(plddt|resolved|x_proj)_weight$"
    r"|(input|output)_linear\.weight$|kpool_compress_gate$"
)


def suspects() -> dict[str, set[str]]:
    """What would be treated and is the weight of no layer, with the model types and shapes that it has there."""
    found: dict[str, set[str]] = defaultdict(set)
    for kind, model in _models():
        for path, module in model.named_modules():
            layer = bool({one.__name__ for one in type(module).__mro__} & _LAYERS)
            for called, tensor in _own(module):
                name, shape = f"{path}.{called}".removeprefix("."), tuple(tensor.shape)
                if len(shape) < 2 or (layer and called == "weight") or not tensor.is_floating_point():
                    continue
                table = "Embedding" in type(module).__name__ and is_embedding(name)
                if role_of(name, shape) is Role.LAYER and not table and not MATRICES.search(name):
                    found[re.sub(r"\d+", "0", name)].add(f"{kind.config_class.model_type} {list(shape)}")
    return dict(sorted(found.items()))


def _own(module: Any) -> Iterator[tuple[str, Any]]:
    """Parameters and buffers of this very module that a checkpoint holds."""
    yield from module.named_parameters(recurse=False)
    for name, buffer in module.named_buffers(recurse=False):
        if name not in module._non_persistent_buffers_set:
            yield name, buffer


def _models() -> Iterator[tuple[Any, Any]]:
    """Each model class with a model on the meta device; those that need packages or sizes of their own are left
    out."""
    import transformers

    signal.signal(signal.SIGALRM, _late)
    names = [name for name in dir(transformers) if re.search(r"(For[A-Z]\w+|Model|LMHead\w*)$", name)]
    for name in sorted(names):
        try:
            kind = getattr(transformers, name)
            known = kind.config_class is not None
        except (ImportError, AttributeError):
            continue
        model = next((made for cut in (True, False) if (made := _built(kind, cut)) is not None), None)
        if known and model is not None:
            yield kind, model


def _built(kind: Any, cut: bool) -> Any:
    """A model of this class, with few layers if `cut`; None where its default config does not make one."""
    import torch

    signal.alarm(_SECONDS)
    try:
        config = kind.config_class()
        if cut:
            _shorten(config)
        with torch.device("meta"):
            return kind(config)
    except Exception:  # whatever a default config lacks
        return None
    finally:
        signal.alarm(0)


def _shorten(config: Any, deepest: int = 3) -> None:
    """Few layers, in the configs within it too."""
    from transformers import PretrainedConfig

    for key, value in list(vars(config).items()):
        if isinstance(value, PretrainedConfig) and deepest:
            _shorten(value, deepest - 1)
        elif key == "layer_types" and isinstance(value, list):
            config.layer_types = value[:_MOST]
        elif key in _SIZES and isinstance(value, int) and value > _MOST:
            setattr(config, key, _MOST)


def _late(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    warnings.simplefilter("ignore")
    for name, where in suspects().items():
        print(f"{name}: {', '.join(sorted(where)[:3])}")


if __name__ == "__main__":
    main()
