"""Makes the golden files: small inputs, what every method makes of them today, and the values that come back.

Run by hand, never by tests, when a method is added (existing files are kept) or when the bytes of one are meant
to change (delete its files first): `PYTHONPATH=tests python -m golden.make_golden`.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from support import (
    archives,
    console,
)
from support.laws import GGML_BLOCKS, every_method, numbers, store

from compressor import api
from compressor.calibration.fingerprint import fingerprint
from compressor.calibration.statistics import write_statistics
from compressor.checkpoint import record as provenance
from compressor.checkpoint.checkpoint import open_checkpoint
from compressor.core.ggml_types import BY_NAME
from compressor.core.layer_inputs import Gather
from compressor.core.version import __version__
from compressor.files.gguf.values import text
from compressor.files.gguf.writing import GgufTensor, layout
from compressor.methods.quantize.ggml.decoder import DECODE

HERE = Path(__file__).resolve().parent
VERSION = "golden"  # in place of the version that outputs carry, so that a release changes no golden file


def _ints(bits: int, dtype: str = "F32", **options: Any) -> tuple[str, str, dict[str, Any]]:
    return "quantize", dtype, {"bits": bits, "method": "absmax", **options}


def _floats(scheme: str, dtype: str, **options: Any) -> tuple[str, str, dict[str, Any]]:
    return "quantize", dtype, {"scheme": scheme, **options}


REPORTS = ("table", "json")
OLD = HERE / "0.1.0"  # files of names below as older versions wrote them: only read
# OpenBLAS's name for the processor that the files of methods with `linear_algebra` were written on.
PROCESSOR = "SkylakeX"
TYPES = HERE / "ggml-types.gguf"  # only read
TEACHER = HERE / "input-teacher.safetensors"  # and the base of differences
STATS = {"stats": HERE / "input-stats.safetensors"}
# Name of the output: verb, input, options.
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "prune-threshold-f32.safetensors": ("prune", "F32", {"threshold": 0.02}),
    "prune-magnitude-f32.safetensors": ("prune", "F32", {"sparsity": 0.6}),
    "prune-magnitude-global-f64.safetensors": ("prune", "F64", {"sparsity": 0.3, "scope": "global"}),
    "prune-magnitude-row-bf16.safetensors": ("prune", "BF16", {"sparsity": 0.5, "granularity": "row"}),
    "prune-magnitude-floor-f32.safetensors": (
        "prune",
        "F32",
        {"sparsity": 0.5, "scope": "global", "min_keep": 0.3},
    ),
    "prune-layer-adaptive-f16.safetensors": (
        "prune",
        "F16",
        {"method": "layer-adaptive", "sparsity": 0.5},
    ),
    "prune-nm-f32.safetensors": ("prune", "F32", {"pattern": "2:4"}),
    "prune-wanda-f32.safetensors": ("prune", "F32", {"method": "wanda", "sparsity": 0.5, **STATS}),
    "prune-wanda-pattern-bf16.safetensors": ("prune", "BF16", {"method": "wanda", "pattern": "2:4", **STATS}),
    "prune-sparsegpt-f32.safetensors": ("prune", "F32", {"method": "sparsegpt", "sparsity": 0.5, **STATS}),
    "prune-sparsegpt-pattern-bf16.safetensors": (
        "prune",
        "BF16",
        {"method": "sparsegpt", "pattern": "2:4", **STATS},
    ),
    "prune-alps-f32.safetensors": ("prune", "F32", {"method": "alps", "sparsity": 0.7, **STATS}),
    "prune-magnitude-scores-f16.safetensors": (
        "prune",
        "F16",
        {"sparsity": 0.6, "scores": HERE / "input-scores.safetensors"},
    ),
    "prune-random-f32.safetensors": ("prune", "F32", {"method": "random", "sparsity": 0.5, "seed": 3}),
    **{
        f"store-{layout}-{dtype.lower()}.safetensors": ("prune", dtype, {**how, "store": layout})
        for layout, dtype, how in (
            ("bitmask", "BF16", {"sparsity": 0.7}),
            ("bitmask", "F8_E4M3", {"sparsity": 0.9}),
            ("csr", "F32", {"sparsity": 0.7}),
            ("nm", "F16", {"pattern": "2:4"}),
        )
    },
    **{
        f"store-{layout}-int{bits}-f32.safetensors": (
            "quantize",
            "F32",
            {"bits": bits, "group_size": 8, "method": "absmax", "store": layout},
        )
        for layout, bits in (("bitmask", 3), ("bitmask", 8), ("csr", 4))
    },
    "store-archive-f16.safetensors": ("pipeline", "F16", {"store": "archive"}),
    "store-archive-bf16.safetensors": ("prune", "BF16", {"sparsity": 0.7, "store": "archive"}),
    "store-archive-codebook-f32.safetensors": (
        "quantize",
        "F32",
        {"scheme": "codebook", "entries": 5, "store": "archive", "effort": "small"},
    ),
    "prune-mask-f32.safetensors": ("prune", "F32", {"mask": HERE / "prune-nm-f32.safetensors"}),
    "store-mask-f32.safetensors": ("prune", "F32", {"pattern": "2:4", "save_mask": True}),
    "store-scipy-f32.npz": ("prune", "F32", {"sparsity": 0.7, "store": "csr"}),
    "distill-blend-bf16.safetensors": ("distill", "BF16", {"method": "blend", "alpha": 0.3}),
    "distill-reweight-f32.safetensors": ("distill", "F32", {"method": "reweight"}),
    "distill-low-rank-f32.safetensors": ("distill", "F32", {"method": "low-rank", "rank": 3}),
    "distill-low-rank-energy-bf16.safetensors": ("distill", "BF16", {"method": "low-rank", "energy": 0.6}),
    "distill-low-rank-ratio-fp8.safetensors": ("distill", "F8_E4M3", {"method": "low-rank", "ratio": 0.8}),
    "distill-low-rank-randomized-bf16.safetensors": (
        "distill",
        "BF16",
        {"method": "low-rank", "rank": 2, "svd": "randomized"},
    ),
    "distill-low-rank-dense-f16.safetensors": (
        "distill",
        "F16",
        {"rank": 1, "method": "low-rank", "store": "dense"},
    ),
    "distill-low-rank-stats-bf16.safetensors": ("distill", "BF16", {"method": "low-rank", "rank": 2, **STATS}),
    "distill-residual-bf16.safetensors": ("distill", "BF16", {"method": "residual", "rank": 2}),
    "distill-residual-error-f32.safetensors": ("distill", "F32", {"method": "residual", "error": 0.4}),
    "distill-delta-f32.safetensors": ("distill", "F32", {"method": "delta"}),
    "distill-delta-2-bf16.safetensors": ("distill", "BF16", {"method": "delta", "bits": 2}),
    "distill-delta-2-fp8.safetensors": ("distill", "F8_E4M3", {"method": "delta", "form": "sign", "bits": 2}),
    "distill-delta-mixed-f16.safetensors": ("distill", "F16", {"method": "delta", "form": "mixed", "bits": 4}),
    "distill-refit-f32.safetensors": ("distill", "F32", {"method": "refit", **STATS}),
    "distill-depth-f32.safetensors": ("distill", "CHAIN-F32", {"method": "depth", "layers": "0,2"}),
    "distill-subclone-bf16.safetensors": ("distill", "CHAIN-BF16", {"method": "subclone", "widths": "6,4,5,3"}),
    "quantize-factor-f32.safetensors": ("quantize", "F32", {"factor": 64}),
    "quantize-factor-codes8-f16.safetensors": ("quantize", "F16", {"factor": 50, "code_bits": 8}),
    "quantize-step-bf16.safetensors": ("quantize", "BF16", {"scheme": "step", "bits": 2}),
    "quantize-int-dense-f32.npy": _ints(4, granularity="channel"),
    "quantize-int-codes-symmetric-f32.npz": _ints(8),
    "quantize-int-codes-asymmetric-f32.npz": _ints(5, symmetric=False, group_size=8, store="codes"),
    "quantize-int-codes-in-bits-f32.npz": _ints(4, group_size=8),
    "quantize-int-int-quantized-channel-bf16.safetensors": _ints(8, "BF16", layout="int-quantized"),
    "quantize-int-int-quantized-tensor-f16.safetensors": _ints(8, "F16", granularity="tensor"),
    "quantize-int-pack-quantized-4-group-bf16.safetensors": _ints(4, "BF16", group_size=8),
    "quantize-int-pack-quantized-4-asymmetric-f32.safetensors": _ints(4, symmetric=False, group_size=8),
    "quantize-int-pack-quantized-4-tensor-f32.safetensors": _ints(4, symmetric=False, granularity="tensor"),
    "quantize-int-pack-quantized-8-group-f16.safetensors": _ints(8, "F16", group_size=16),
    "quantize-int-pack-quantized-8-asymmetric-f64.safetensors": _ints(8, "F64", symmetric=False),
    "quantize-int-pack-quantized-8-fp8.safetensors": _ints(8, "F8_E4M3", layout="pack-quantized"),
    "quantize-codebook-f32.safetensors": ("quantize", "F32", {"scheme": "codebook"}),
    "quantize-codebook-5-rows-bf16.safetensors": ("quantize", "BF16", {"entries": 5, "rows": 4}),
    "quantize-codebook-linear-f64.safetensors": ("quantize", "F64", {"entries": 7, "init": "linear"}),
    "quantize-codebook-density-fp8.safetensors": ("quantize", "F8_E4M3", {"entries": 4, "init": "density"}),
    "quantize-codebook-plus-plus-f16.safetensors": (
        "quantize",
        "F16",
        {"entries": 8, "init": "kmeans++", "seed": 3},
    ),
    "quantize-uniform-bf16.safetensors": ("quantize", "BF16", {"scheme": "uniform", "bits": 3.0}),
    "quantize-uniform-high-f32.safetensors": (
        "quantize",
        "F32",
        {"scheme": "uniform", "bits": 7.5, "code_bytes": 2},
    ),
    "quantize-uniform-rows-f16.safetensors": (
        "quantize",
        "F16",
        {"scheme": "uniform", "bits": 2.5, "step_rows": 3, "rounding": "nearest"},
    ),
    "quantize-uniform-model-f64.safetensors": ("quantize", "F64", {"scheme": "uniform", "scope": "model"}),
    "quantize-uniform-step-fp8.safetensors": ("quantize", "F8_E4M3", {"scheme": "uniform", "step": 0.01}),
    # of rows of 256 some have factors
    "quantize-uniform-factors-bf16.safetensors": ("quantize", "ROWS-BF16", {"scheme": "uniform", "bits": 3.0}),
    "quantize-trellis-bf16.safetensors": ("quantize", "ROWS-BF16", {"scheme": "trellis", "bits": 3.0}),
    "quantize-trellis-high-f64.safetensors": (
        "quantize",
        "F64",
        {"scheme": "trellis", "bits": 9.0, "code_bytes": 2, "factors": "both"},
    ),
    "store-archive-uniform-bf16.safetensors": (
        "quantize",
        "BF16",
        {"scheme": "uniform", "bits": 2.0, "store": "archive"},
    ),
    "quantize-binary-bf16.safetensors": ("quantize", "BF16", {"scheme": "binary"}),
    "quantize-binary-group-fp8.safetensors": ("quantize", "F8_E4M3", {"scheme": "binary", "group_size": 8}),
    "quantize-ternary-f32.safetensors": ("quantize", "F32", {"scheme": "ternary"}),
    "quantize-ternary-2bit-group-f16.safetensors": (
        "quantize",
        "F16",
        {"scheme": "ternary", "layout": "2bit", "group_size": 8},
    ),
    "quantize-int-search-4-group-bf16.safetensors": _ints(4, "BF16", group_size=8, method="search"),
    "quantize-int-search-8-channel-f32.safetensors": _ints(8, layout="int-quantized", method="search"),
    "quantize-int-default-8-f32.safetensors": ("quantize", "F32", {}),
    "quantize-int-default-8-bf16.safetensors": ("quantize", "ROWS-BF16", {}),
    "quantize-int-default-4-bf16.safetensors": ("quantize", "ROWS-BF16", {"bits": 4}),
    "quantize-int-search-3-asymmetric-f16.safetensors": _ints(
        3, "F16", symmetric=False, group_size=16, method="search"
    ),
    "quantize-int-search-4-tensor-f32.safetensors": _ints(4, granularity="tensor", method="search"),
    "quantize-int-search-4-signed-f64.safetensors": _ints(
        4, "F64", granularity="channel", signed_scales=True, method="search"
    ),
    "quantize-int-gptq-method-4-bf16.safetensors": _ints(4, "BF16", group_size=8, method="gptq", **STATS),
    "quantize-int-gptq-method-3-asymmetric-f32.safetensors": _ints(
        3, symmetric=False, granularity="channel", method="gptq", act_order=True, **STATS
    ),
    "quantize-int-awq-4-bf16.safetensors": _ints(4, "BF16", group_size=8, method="awq", **STATS),
    "quantize-int-hqq-4-asymmetric-f32.safetensors": _ints(4, symmetric=False, group_size=8, method="hqq"),
    **{f"quantize-int-compressor-{bits}-f32.safetensors": _ints(bits, group_size=8) for bits in (2, 3, 5, 6, 7)},
    **{
        f"quantize-int-compressor-{bits}-asymmetric-bf16.safetensors": _ints(
            bits, "BF16", symmetric=False, granularity=grain, layout="compressor"
        )
        for bits, grain in ((3, "tensor"), (4, "channel"), (8, "channel"))
    },
    "quantize-nf4-absmax-f16.safetensors": ("quantize", "F16", {"scheme": "nf4", "method": "absmax"}),
    "quantize-nf4-search-f32.safetensors": ("quantize", "F32", {"scheme": "nf4", "group_size": 32}),
    "quantize-nf4-signed-f32.safetensors": ("quantize", "F32", {"scheme": "nf4", "signed_scales": True}),
    "quantize-nf4-double-bf16.safetensors": ("quantize", "BF16", {"scheme": "nf4", "double_quant": True}),
    "quantize-int-mlx-4-bf16.safetensors": _ints(4, "WIDE-BF16", group_size=32, layout="mlx"),
    "quantize-int-mlx-6-f16.safetensors": _ints(6, "WIDE-F16", group_size=64, layout="mlx"),
    "quantize-int-mlx-3-asymmetric-bf16.safetensors": _ints(
        3, "WIDE-BF16", symmetric=False, group_size=32, layout="mlx"
    ),
    "quantize-int-gptq-4-bf16.safetensors": _ints(4, "WIDE-BF16", group_size=32, layout="gptq"),
    "quantize-int-gptq-8-f16.safetensors": _ints(8, "WIDE-F16", layout="gptq"),
    "quantize-fp8-channel-bf16.safetensors": _floats("fp8", "BF16"),
    "quantize-fp8-tensor-f16.safetensors": _floats("fp8", "F16", granularity="tensor"),
    "quantize-fp8-block-f32.safetensors": _floats("fp8", "F32", granularity="block"),
    "quantize-fp8-e5m2-f64.safetensors": _floats("fp8", "F64", element="e5m2", method="absmax"),
    "quantize-nvfp4-bf16.safetensors": _floats("nvfp4", "BF16"),
    "quantize-nvfp4-absmax-f32.safetensors": _floats("nvfp4", "F32", method="absmax"),
    **{f"quantize-{scheme}-wide.safetensors": _floats(scheme, "WIDE") for scheme in ("nvfp4", "mxfp4", "mxfp8")},
    "quantize-nvfp4-gptq-bf16.safetensors": _floats("nvfp4", "BF16", method="gptq", **STATS),
    "quantize-mxfp4-absmax-wide.safetensors": _floats("mxfp4", "WIDE", method="absmax"),
    # rows of 256; of 192 and 13, which blocks of 256 and 32 do not divide
    **{f"quantize-{scheme}-rows-bf16.safetensors": _floats(scheme, "ROWS-BF16") for scheme in GGML_BLOCKS},
    **{f"quantize-{scheme}-f32.safetensors": _floats(scheme, "F32") for scheme in ("f16", "bf16")},
    "quantize-f32-bf16.safetensors": _floats("f32", "BF16"),
}


def produce(name: str, folder: Path) -> Path:
    """Make a case's output in a folder. The caller has put VERSION in the version's place."""
    verb, dtype, options = CASES[name]
    taught = verb == "distill" and not dtype.startswith("CHAIN") and options["method"] != "low-rank"
    more = {"base" if "-delta-" in name else "teacher": TEACHER} if taught else {}
    source = HERE / ("input-f32.npy" if name.endswith((".npy", ".npz")) else f"input-{dtype.lower()}.safetensors")
    if "save_mask" in options:  # the case is the mask, and not what is pruned
        with TemporaryDirectory() as other:
            api.prune(source, Path(other) / name, **{**options, "save_mask": folder / name})
        return folder / name
    if options.get("method") == "residual":  # the case is what its folder holds
        with TemporaryDirectory() as other:
            api.distill(source, Path(other) / "adapter", **options, **more)
            (folder / name).write_bytes((Path(other) / "adapter" / "adapter_model.safetensors").read_bytes())
        return folder / name
    getattr(api, verb)(source, folder / name, **options, **more)
    return folder / name


def every_ggml_type(path: Path) -> None:
    """A GGUF file of three blocks of each of ggml's types: random bytes that stand for finite numbers."""
    random = np.random.default_rng(22)
    data = {}
    for name in DECODE:
        blocks: list[np.ndarray] = []
        found = np.empty((1, BY_NAME[name].block), np.float32)
        while len(blocks) < 3:
            raw = random.integers(0, 256, (1, BY_NAME[name].nbytes), np.uint8)
            with np.errstate(all="ignore"):
                DECODE[name](raw, found)
                if np.abs(found).max() < 1e5:
                    blocks.append(raw)
        data[f"{name.lower()}.weight"] = np.concatenate(blocks).tobytes()
    tensors = [GgufTensor(f"{name.lower()}.weight", BY_NAME[name], (3, BY_NAME[name].block)) for name in DECODE]
    planned = layout(tensors, {"general.architecture": text("none")})
    out = bytearray(planned.size)
    for offset, piece in (*planned.pieces, *((planned.offsets[name], raw) for name, raw in data.items())):
        out[offset : offset + len(piece)] = piece
    path.write_bytes(out)


def needs_linear_algebra(name: str) -> bool:
    """Whether a case's bytes may depend on the processor."""
    verb, _, options = CASES[name]
    if verb == "quantize" and "method" in options:
        scheme = every_method()[verb, options.get("scheme", "int")]
        return bool(
            scheme(**{key: said for key, said in options.items() if key in ("bits", "method")}).linear_algebra
        )
    method = every_method().get((verb, options.get("method", options.get("scheme", ""))))
    if "form" in options and method is not None:
        return bool(method(form=options["form"]).linear_algebra)  # type: ignore[call-arg]
    return method is not None and method.linear_algebra is True


def restore(path: Path, folder: Path) -> np.ndarray:
    """The values that an output comes back as, float64; those of several tensors below one another."""
    api.restore(path, folder / "restored.safetensors", base=TEACHER if "-delta-" in path.name else None)
    found = []
    for _, (dtype, shape, data) in sorted(archives.read(folder / "restored.safetensors").items()):
        raw = np.frombuffer(data, np.dtype(store(0, dtype).dtype)).reshape(shape)
        found.append(numbers(raw, dtype).astype(np.float64))
    if len({array.shape[1:] for array in found}) > 1:
        found = [array.reshape(-1) for array in found]
    return np.concatenate(found)


def report(style: str, folder: Path) -> str:
    """What the command line prints of a small run, with short paths and without the version."""
    values = {"a.bias": [1, 2], "a.weight": [[1, 2, 3, 4], [0, -1, 0.5, 8]], "lm_head.weight": [[1]]}
    tensors = {name: ("F32", store(value, "F32")) for name, value in values.items()}
    source = archives.write(folder / "in.safetensors", {**tensors, "steps": ("I64", np.array([7], "<i8"))})
    stages = ["--stage", "prune:sparsity=0.25", "--stage", "quantize:bits=8,method=absmax,layout=int-quantized"]
    done = console.compressor("pipeline", source, "-o", folder / "out.safetensors", *stages, "--format", style)
    return done.out.replace(f"{folder}/", "").replace(f"compressor {__version__}", "compressor")


def inputs() -> None:
    """A matrix with zeros of both signs, a row of zeros, ties and an outlier, in every dtype; and a teacher."""
    random = np.random.default_rng(20)
    values = random.standard_normal((9, 16)) * 0.05
    values[random.random((9, 16)) < 0.2] = 0
    values[2], values[4, 3], values[5, :4], values[6, 9] = 0, -0.0, 0.03, 1.5
    for dtype in ("F64", "F32", "F16", "BF16", "F8_E4M3"):
        archives.write(HERE / f"input-{dtype.lower()}.safetensors", {"layer.weight": (dtype, store(values, dtype))})
    np.save(HERE / "input-f32.npy", store(values, "F32"))
    teacher = store(random.random((9, 16)) + 0.1, "F32")
    archives.write(HERE / "input-teacher.safetensors", {"layer.weight": ("F32", teacher)})


def wide_inputs() -> None:
    """A matrix of whole words and groups both ways, for layouts that hold nothing else."""
    random = np.random.default_rng(21)
    values = random.standard_normal((8, 64)) * 0.05
    values[2], values[4, 3], values[5, :4], values[6, 9], values[7, ::3] = 0, -0.0, 0.03, 1.5, 0
    for dtype in ("F16", "BF16"):
        path = HERE / f"input-wide-{dtype.lower()}.safetensors"
        archives.write(path, {"layer.weight": (dtype, store(values, dtype))})


def wide_input() -> None:
    """Two parts of one layer with rows of 64, in bfloat16: one larger, with blocks of zeros and outliers."""
    random = np.random.default_rng(21)
    tensors = {}
    for name, size in (("gate_proj", 0.05), ("up_proj", 0.4)):
        values = random.standard_normal((5, 64)) * size
        values[2, :40], values[4, 3], values[1, 50] = 0, -0.0, 12 * size
        tensors[f"mlp.{name}.weight"] = ("BF16", store(values, "BF16"))
    archives.write(HERE / "input-wide.safetensors", tensors)


def chain_inputs() -> None:
    """A chain of three layers, the first two as wide as their input, with zeros of both signs."""
    random = np.random.default_rng(22)
    tensors = {f"fc{number}.weight": random.standard_normal((rows, 6)) for number, rows in ((1, 6), (2, 6), (3, 3))}
    tensors["fc1.weight"][2, :4], tensors["fc2.weight"][3, 3] = 0, -0.0
    for dtype in ("F32", "BF16"):
        path = HERE / f"input-chain-{dtype.lower()}.safetensors"
        archives.write(path, {name: (dtype, store(values, dtype)) for name, values in tensors.items()})


def rows_input() -> None:
    """Rows that groups of 128 divide, that groups of 64 do, and that none does."""
    random = np.random.default_rng(23)
    tensors = {
        f"{name}.weight": random.standard_normal((3, width))
        for name, width in zip("abc", (256, 192, 13), strict=True)
    }
    tensors["a.weight"][1, :140] = 0
    path = HERE / "input-rows-bf16.safetensors"
    archives.write(path, {name: ("BF16", store(values, "BF16")) for name, values in tensors.items()})


def statistics() -> None:
    """Of the inputs of that matrix, with one that is never active; and scores of them."""
    rows = np.random.default_rng(22).standard_normal((40, 16)) * np.arange(16) ** 2 / 50
    gather = Gather(16, gram=True)
    gather.add(rows)
    model, weights = fingerprint(open_checkpoint(HERE / "input-f32.safetensors"))
    told = {"model": model, "weights": weights, "source": "random rows"}
    write_statistics(STATS["stats"], [("layer", gather.layer)], **told)
    scores = store(np.abs(rows[0]), "F32")
    archives.write(HERE / "input-scores.safetensors", {"layer.weight": ("F32", scores)})


def main() -> None:
    provenance.__version__ = VERSION
    if not (HERE / "input-teacher.safetensors").exists():
        inputs()
    if not (HERE / "input-wide-bf16.safetensors").exists():
        wide_inputs()
    if not (HERE / "input-wide.safetensors").exists():
        wide_input()
    if not (HERE / "input-chain-f32.safetensors").exists():
        chain_inputs()
    if not (HERE / "input-rows-bf16.safetensors").exists():
        rows_input()
    if not STATS["stats"].exists():
        statistics()
    if not TYPES.exists():
        every_ggml_type(TYPES)
        np.save(TYPES.with_suffix(".restored.npy"), restore(TYPES, HERE).astype("<f4"))
        (HERE / "restored.safetensors").unlink()
    for name in CASES:
        if not (HERE / name).exists():
            path = produce(name, HERE)
            np.save(HERE / f"{path.stem}.restored.npy", restore(path, HERE))
            (HERE / "restored.safetensors").unlink()
            print(name, path.stat().st_size)
    for style in REPORTS:
        if not (HERE / f"report.{style}").exists():
            with TemporaryDirectory() as folder:
                (HERE / f"report.{style}").write_text(report(style, Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
