"""The table of options under which our own methods' laws are tested; the laws are in `compressor/methods/laws.py`.

A method that is missing from `OPTIONS` fails `test_laws.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from compressor.core.floats import largest
from compressor.core.floats import smallest as smallest
from compressor.core.tensor import TensorSpec
from compressor.methods import laws
from compressor.methods.contract import Method
from compressor.methods.laws import FLOATS as FLOATS
from compressor.methods.laws import LAWS as LAWS
from compressor.methods.laws import Array as Array
from compressor.methods.laws import Outcome as Outcome
from compressor.methods.laws import align_of as align_of
from compressor.methods.laws import blocks as blocks
from compressor.methods.laws import cut as cut
from compressor.methods.laws import decode as decode
from compressor.methods.laws import edges as edges
from compressor.methods.laws import fresh as fresh
from compressor.methods.laws import inputs_of as inputs_of
from compressor.methods.laws import numbers as numbers
from compressor.methods.laws import refusal as refusal
from compressor.methods.laws import resolve as resolve
from compressor.methods.laws import run as run
from compressor.methods.laws import same_bits as same_bits
from compressor.methods.laws import store as store
from compressor.methods.laws import views_of as views_of
from compressor.methods.options import VERBS
from compressor.methods.quantize.codebook import Codebook
from compressor.methods.quantize.int import Int
from compressor.methods.registry import methods_of

_INTS: tuple[dict[str, Any], ...] = (
    *({"bits": bits, "granularity": "channel", "layout": "compressor"} for bits in range(2, 9)),
    *({"bits": bits, "symmetric": False, "granularity": "channel", "layout": "compressor"} for bits in (2, 3, 8)),
    *({"bits": bits, "symmetric": True, "granularity": "tensor"} for bits in (3, 4, 8)),
    *({"bits": bits, "symmetric": False, "granularity": "tensor"} for bits in (4, 5, 8)),
    *({"bits": bits, "symmetric": False, "granularity": "channel"} for bits in (4, 8)),
    *({"bits": bits, "group_size": 8} for bits in (3, 4, 8)),
    *({"bits": bits, "group_size": 8, "symmetric": False} for bits in (4, 6, 8)),
    {"bits": 4, "granularity": "channel", "layout": "pack-quantized"},
    {"bits": 8, "granularity": "channel", "layout": "int-quantized"},
    {"bits": 8, "granularity": "channel", "layout": "plain"},
    {"bits": 5, "symmetric": False, "group_size": 8, "layout": "plain"},
)
# ggml's schemes of blocks, and how many weights these have
GGML_BLOCKS = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "iq4_nl", "ggml-mxfp4"), 32),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0", "tq2_0"), 256),
}
OPTIONS: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("prune", "threshold"): ({"threshold": 0.01}, {"threshold": 0.0}, {"threshold": 1e300}),
    ("prune", "magnitude"): (
        {"sparsity": 0.0},
        {"sparsity": 0.5},
        {"sparsity": 0.9, "scope": "global"},
        {"sparsity": 0.999},
        {"sparsity": 0.7, "scope": "global", "min_keep": 0.2},
        {"sparsity": 0.5, "granularity": "row"},
        {"sparsity": 0.5, "granularity": "block", "block_size": 8},
        {"sparsity": 0.5, "scored": True},
        {"sparsity": 0.5, "granularity": "block", "block_size": 8, "scored": True},
    ),
    ("prune", "layer-adaptive"): ({"sparsity": 0.6}, {"sparsity": 0.9, "min_keep": 0.1}),
    ("prune", "random"): ({"sparsity": 0.5}, {"sparsity": 0.3, "seed": 7, "respect_zeros": True}),
    ("prune", "wanda"): ({"sparsity": 0.0}, {"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "5:20"}),
    ("prune", "alps"): ({"sparsity": 0.0}, {"sparsity": 0.7}, {"pattern": "2:4"}, {"pattern": "5:20"}),
    ("prune", "sparsegpt"): ({"sparsity": 0.0}, {"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "5:20"}),
    ("prune", "nm"): ({"pattern": "2:4"}, {"pattern": "1:3"}, {"pattern": "5:20"}),
    ("distill", "blend"): ({"alpha": 0.0}, {"alpha": 0.3}, {"alpha": 1.0}),
    ("distill", "reweight"): ({},),
    ("distill", "low-rank"): (
        {"rank": 1},
        {"rank": 3},
        {"rank": 2, "svd": "randomized"},
        {"energy": 0.5},
        {"energy": 1.0},
        {"ratio": 0.7},
        {"rank": 2, "informed": True},
        {"ratio": 0.7, "informed": True, "svd": "randomized"},
    ),
    ("distill", "residual"): (
        {"rank": 2},
        {"error": 0.1},
        {"energy": 0.5, "svd": "randomized"},
        {"error": 0.1, "informed": True},
    ),
    ("distill", "delta"): (
        {},
        {"form": "sign"},
        {"form": "sign", "bits": 2},
        {"form": "mixed"},
        {"form": "mixed", "ranks": "1,0,1,2"},
        {"form": "base"},
    ),
    ("distill", "refit"): (
        {},
        {"damp": 0.1},
        {"stored": Int(bits=4, group_size=8)},
        {"stored": Int(bits=3, symmetric=False, granularity="channel")},
        {"stored": Int(bits=4, symmetric=False, group_size=8), "zero_points": True},
        {"stored": Int(bits=4, granularity="tensor")},
        {"stored": Int(bits=8, group_size=16, layout="gptq")},
        {"stored": Codebook(entries=5)},
        {"stored": Codebook(entries=4, rows=3)},
    ),
    # whole models: their laws are in test_students.py
    ("distill", "depth"): (),
    ("distill", "subclone"): (),
    ("quantize", "factor"): ({"factor": 64}, {"factor": 3, "code_bits": 32}, {"factor": 10, "code_bits": 8}),
    ("quantize", "step"): ({"bits": 1}, {"bits": 3}, {"bits": 32, "code_bits": 8}),
    ("quantize", "uniform"): (
        {},
        {"bits": 0.5},
        {"bits": 2.0, "rounding": "nearest"},
        {"bits": 9.0, "scope": "model"},
        {"bits": 3.0, "step_rows": 1},
        {"step_rows": 3, "rounding": "nearest"},
        {"bits": 12.0, "code_bytes": 2},
        {"bits": 2.0, "sparsity": 0.6},
        {"bits": 4.0, "sparsity": 0.3, "step_rows": 2},
        {"step": 0.01},
        {"bits": 3.0, "factors": "both"},
        {"bits": 3.0, "factors": "both", "scope": "model"},
        {"bits": 5.0, "factors": "both", "informed": True},
        {"bits": 3.0, "method": "gptq"},
        {"bits": 4.0, "method": "gptq", "act_order": True, "factors": "none"},
        {"bits": 9.0, "method": "gptq", "factors": "both", "scope": "model", "code_bytes": 2},
    ),
    ("quantize", "trellis"): (
        {},
        {"bits": 1.0},
        {"bits": 9.0, "factors": "both"},
        {"bits": 3.0, "factors": "none", "code_bytes": 2},
        {"bits": 2.5, "factors": "both", "informed": True},
    ),
    ("quantize", "binary"): ({}, {"group_size": 8}),
    ("quantize", "ternary"): ({}, {"layout": "2bit"}, {"group_size": 8}),
    ("quantize", "codebook"): (
        *({"entries": entries} for entries in (2, 5, 16, 256)),
        *({"entries": 4, "rows": rows} for rows in (1, 3)),
        {"entries": 40, "rows": 2},
        *({"entries": 4, "init": init} for init in ("linear", "kmeans++", "density")),
        {"entries": 3, "rows": 2, "init": "kmeans++", "seed": 7},
    ),
    ("quantize", "int"): (
        *({**chosen, "method": method} for chosen in _INTS for method in ("absmax", "search")),
        *({"bits": bits, "granularity": "channel", "signed_scales": True} for bits in (2, 4)),
        *({"bits": bits, "group_size": 8, "signed_scales": True} for bits in (3, 8)),
        {"bits": 4, "granularity": "tensor", "signed_scales": True},
        *({"bits": bits, "group_size": 8, "method": "hqq"} for bits in (2, 8)),
        *({"bits": bits, "granularity": "channel", "symmetric": False, "method": "hqq"} for bits in (3, 4)),
        *(
            {"bits": bits, "symmetric": symmetric, "group_size": 32, "layout": "mlx", "method": method}
            for bits in (2, 3, 4, 5, 6, 8)
            for symmetric in (True, False)
            for method in ("absmax", "search")
        ),
        *({"bits": 4, "group_size": 16, "layout": "gptq", "method": method} for method in ("absmax", "search")),
        {"bits": 8, "granularity": "channel", "layout": "gptq"},
        *(
            {"bits": bits, "symmetric": symmetric, **grain, "method": "gptq", "act_order": act_order}
            for bits in (3, 4, 8)
            for symmetric in (True, False)
            for grain in ({"group_size": 8}, {"granularity": "channel"})
            for act_order in (False, True)
        ),
        *(
            {"bits": bits, "symmetric": symmetric, **grain, "method": "awq"}
            for bits in (2, 4, 8)
            for symmetric in (True, False)
            for grain in ({"group_size": 8}, {"granularity": "channel"})
        ),
        {"bits": 4, "group_size": 32, "layout": "mlx", "method": "awq"},
        {"bits": 4, "group_size": 16, "layout": "gptq", "method": "awq"},
    ),
    ("quantize", "nf4"): (
        *(
            {"method": method, "double_quant": double}
            for method in ("absmax", "search")
            for double in (False, True)
        ),
        {"group_size": 32},
        {"group_size": 128, "double_quant": True},
        {"group_size": 32, "method": "gptq"},
        {"group_size": 32, "method": "gptq", "act_order": True},
        {"group_size": 32, "method": "gptq", "double_quant": True},
        {"group_size": 32, "signed_scales": True},
        {"group_size": 32, "signed_scales": True, "method": "gptq"},
    ),
    ("quantize", "fp8"): tuple(
        {"element": element, "granularity": grain, "method": method}
        for element in ("e4m3", "e5m2")
        for grain in ("tensor", "channel", "block")
        for method in ("absmax", "search")
        if (grain, method) != ("tensor", "absmax")
    ),
    **{
        ("quantize", name): (
            {"method": "absmax"},
            {},
            {"method": "gptq"},
            {"method": "gptq", "act_order": True},
        )
        for name in ("nvfp4", "mxfp4", "mxfp8")
    },
    **{("quantize", name): ({}, {"informed": True}) for name in GGML_BLOCKS},
    ("quantize", "f16"): ({},),
    ("quantize", "f32"): ({},),
    ("quantize", "bf16"): ({},),
    **{
        ("store", layout): (
            {},
            {"inner": Int(bits=8, granularity="channel", layout="plain")},
            {"inner": Int(bits=3, granularity="tensor", layout="plain")},
            {"inner": Int(bits=2, group_size=None if layout == "nm" else 8, granularity=grain, layout="plain")},
        )
        for layout, grain in (("bitmask", "group"), ("csr", "group"), ("nm", "channel"))
    },
    ("store", "scipy"): ({},),
    ("store", "mask"): ({},),
    ("prune", "mask"): ({},),
}
# What may say no to an array: a code that does not fit, a sum that is zero, a result out of the dtype's range.
# More than two values in four neighbours.
MAY_REFUSE = {("quantize", "factor"), ("quantize", "step"), ("distill", "reweight"), ("store", "nm")}
# An even step that was given, and codes that two bytes do not hold.
GIVEN_STEP = ("quantize", "uniform")
# float16 scales, and float16 itself.
IN_FLOAT16 = {("quantize", name) for name in (*GGML_BLOCKS, "f16", "bf16")}
# What keeps float32 scales, as its layout wants them, may say no to a float64 beyond their range.
IN_FLOAT32 = {("quantize", name) for name in ("nf4", "nvfp4", "mxfp4", "mxfp8", "f32")}


def every_method() -> dict[tuple[str, str], type[Method]]:
    """All methods that the package finds, by verb and id; and the layouts of what pruning and quantizing leave."""
    return {(verb, name): method for verb in (*VERBS, "store") for name, method in methods_of(verb).items()}


def combinations() -> Iterator[tuple[str, Method]]:
    """Every method under every option combination of the table, with a name for the test."""
    for key, method in every_method().items():
        for given in OPTIONS.get(key, ()):
            said = ",".join(f"{name}={getattr(value, 'label', value)}" for name, value in given.items())
            yield f"{key[0]}-{key[1]}-{said}", method(**given)


def fitting(method: Method, raw: Array) -> Array:
    """The array repeated, the last time in part, to a matrix of whole groups and words, for layouts that hold
    nothing else. As few as there can be: grams of inputs grow with the square of the width."""
    if method.id in GGML_BLOCKS:
        sizes = (1, GGML_BLOCKS[method.id])
    elif getattr(getattr(method, "stored", None) or method, "layout", "") in ("mlx", "gptq"):
        sizes = (8, 32)
    else:
        return raw
    matrix = raw.reshape(TensorSpec("", "F32", raw.shape).matrix)
    rows, columns = (
        np.arange(-(-length // size) * size) % length for size, length in zip(sizes, matrix.shape, strict=True)
    )
    return matrix[np.ix_(rows, columns)]


def check_laws(method: Method, name: str, dtype: str, raw: Array) -> bool:
    """All laws on one stored array; False where the method says no to it, as it may."""
    high = np.max(np.abs(numbers(raw, dtype)))
    beyond = dtype == "F64" and largest("F32") < high
    may = MAY_REFUSE | (IN_FLOAT32 if beyond else set())
    may |= IN_FLOAT16 if high > 0.9 * min(largest(dtype), largest("F16")) else set()
    may |= {GIVEN_STEP} if getattr(method, "step", None) is not None else set()
    return laws.check_laws(method, name, dtype, raw, may_refuse=(method.verb, method.id) in may)
