"""Make weight files smaller: the command line's verbs as functions.

    import compressor

    report = compressor.quantize("model.safetensors", "small.safetensors", bits=4)
    print(report.ratio, report.total.error)

Paths may be `.npy`, `.safetensors` or Hugging Face folders. Every function raises a subclass of
`CompressorError` that says what is wrong and what to do. The functions are described in `compressor.api`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compressor.core.errors import CompressorError, GateFailed, InputError, OutputError, UsageError

if TYPE_CHECKING:
    from compressor.api import (
        calibrate,
        compare,
        distill,
        inspect,
        merge,
        merge_statistics,
        pipeline,
        prune,
        quantize,
        report,
        restore,
        survey,
        tune,
    )
    from compressor.recipe.gates import Gates
    from compressor.workflows.results import Report

from compressor.core.version import __version__ as __version__

__all__ = [
    "CompressorError",
    "GateFailed",
    "Gates",
    "InputError",
    "OutputError",
    "Report",
    "UsageError",
    "calibrate",
    "compare",
    "distill",
    "inspect",
    "merge",
    "merge_statistics",
    "pipeline",
    "prune",
    "quantize",
    "report",
    "restore",
    "survey",
    "tune",
]


def __getattr__(name: str) -> Any:
    """The verbs are imported when first used: `compressor --help` must not wait for NumPy."""
    if name not in __all__:
        raise AttributeError(f"module 'compressor' has no attribute {name!r}")
    from compressor import api
    from compressor.recipe import gates
    from compressor.workflows import results

    found = getattr({"Gates": gates, "Report": results}.get(name, api), name)
    if name not in ("Gates", "Report"):
        from compressor.workflows.in_python import speaking_python

        found = speaking_python(found)
    globals()[name] = found  # from now on the same object
    return found


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
