"""Where several rows share a scale, they are looked at together: however large a tensor is, and however stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.methods.numerics.even_steps import Classes
from compressor.methods.quantize.uniform import Counting


@pytest.fixture
def source(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)  # two blocks, of 1310 rows if nothing else is asked
    values = random.standard_normal((2000, 200)) * np.exp(random.standard_normal((2000, 1)))
    save_file({"a.weight": values.astype(np.float32)}, tmp_path / "in.safetensors")
    return tmp_path / "in.safetensors"


@pytest.mark.parametrize(
    "options",
    [
        {"scheme": "uniform", "step_rows": 7, "bits": 4.0},
        {"scheme": "nf4"},
        {"scheme": "nf4", "group_size": 128, "double_quant": True},
    ],
)
def test_what_is_stored_dense_is_what_codes_are_restored_to(source: Path, options: dict[str, Any]) -> None:
    coded, restored, dense = (source.parent / f"{name}.safetensors" for name in ("coded", "restored", "dense"))
    compressor.quantize(source, coded, **options)
    compressor.restore(coded, restored)
    compressor.quantize(source, dense, store="dense", **options)
    assert np.array_equal(load_file(dense)["a.weight"], load_file(restored)["a.weight"])


def test_rows_of_one_step_are_counted_together(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begins = []
    observe = Counting.observe

    def noted(self: Counting, block: Any, stats: dict[str, Classes]) -> dict[str, Classes]:
        begins.append(block.start)
        return observe(self, block, stats)

    monkeypatch.setattr(Counting, "observe", noted)
    compressor.quantize(source, source.parent / "o.safetensors", scheme="uniform", step_rows=7, workers=1)
    assert len(begins) > 1
    assert not any(begin % 7 for begin in begins)
