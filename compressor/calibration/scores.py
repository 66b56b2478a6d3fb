"""Scores of layer inputs that a user brings: a safetensors file with one vector [in] for each layer.

A vector is called `LAYER` or `LAYER.weight`. To methods they are statistics whose `square` has the scores as its
roots, so that a file of statistics serves as well.
"""

from __future__ import annotations

import os
from hashlib import sha256

from compressor.calibration.statistics import FORMAT, Statistics, open_statistics
from compressor.core.errors import InputError
from compressor.core.floats import widen
from compressor.core.layer_inputs import Layer
from compressor.core.lazy import np
from compressor.core.tensor_names import layer_of
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files import safetensors
from compressor.files.input_file import InputFile
from compressor.files.source import StoredTensor


class Scores(Statistics):
    """An opened file of scores, which methods see as statistics."""

    noun = "scores"

    def read(self, layer: str, gram: bool = False) -> Layer:
        found = self._scores(layer)
        bad = found.size - int(np.count_nonzero(np.isfinite(found) & (found >= 0)))
        if bad:
            raise InputError(
                f"holds {bad} score{'s' if bad != 1 else ''} that are NaN, infinite or negative",
                file=self.path,
                tensor=self.tensors[layer].spec.name,
                remedy="Scores must be numbers of at least 0",
            )
        with np.errstate(over="ignore", under="ignore"):
            peak = found.max() or 1.0
            scaled = np.ldexp(found, -np.frexp(peak)[1])  # only their order counts, and squares of 1e300 are none
            return Layer(1, np.zeros_like(scaled), scaled * scaled)

    def identity(self, *, grams: bool = False) -> str:
        digest = sha256()
        for layer in self.layers:
            digest.update(f"{layer}\0".encode())
            digest.update(self._scores(layer).astype("<f8").tobytes())
        return digest.hexdigest()

    def _scores(self, layer: str) -> Array:
        stored, work = self.tensors[layer], Workspace()
        raw = stored.read_rows(self.widths[layer], 0, 1, work, "raw")
        found: Array = widen(raw, stored.spec.dtype, work)[0].astype(np.float64)
        return found


def open_scores(path: str | os.PathLike[str]) -> Statistics:
    """Open a file of scores, or of statistics. InputError when it is neither."""
    file = InputFile.open(path)
    header = safetensors.read_header(file)
    if header.metadata.get("format") == FORMAT:
        return open_statistics(path)
    tensors: dict[str, StoredTensor] = {}
    for placed in header.tensors:
        spec = placed.spec
        layer = layer_of(spec.name)
        if not spec.is_float or len(spec.shape) != 1 or not spec.size:
            raise InputError(
                f"is {spec.dtype} {list(spec.shape)}, not a vector of float scores",
                file=file.path,
                tensor=spec.name,
            )
        if layer in tensors:
            raise InputError(
                f"is there with and without .weight, as '{printable(tensors[layer].spec.name)}' and "
                f"'{printable(spec.name)}'",
                file=file.path,
                tensor=layer,
            )
        tensors[layer] = StoredTensor(file, placed)
    if not tensors:
        raise InputError("holds no scores", file=file.path)
    widths = {layer: tensors[layer].spec.size for layer in sorted(tensors)}
    return Scores(file, "", "", "", widths, dict.fromkeys(widths, 1), frozenset(), tensors)
