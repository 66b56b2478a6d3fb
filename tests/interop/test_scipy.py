"""SciPy opens the archives of `prune --store csr`, and what it writes itself has the same members."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compressor import api

pytestmark = pytest.mark.interop
sparse: Any = pytest.importorskip("scipy.sparse")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(40, 70), (1, 9), (300, 257)])
def test_scipy_opens_what_we_store(dtype: Any, shape: tuple[int, int], tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    weights[0, : shape[1] // 2] = 0
    np.save(tmp_path / "in.npy", weights)
    api.prune(tmp_path / "in.npy", tmp_path / "dense.npy", sparsity=0.8)
    api.prune(tmp_path / "in.npy", tmp_path / "out.npz", sparsity=0.8, store="csr")
    loaded = sparse.load_npz(tmp_path / "out.npz")
    expected = np.load(tmp_path / "dense.npy")
    assert loaded.format == "csr"
    assert loaded.dtype == dtype
    assert loaded.has_sorted_indices
    assert loaded.toarray().tobytes() == expected.tobytes()
    theirs = sparse.csr_matrix(expected)
    sparse.save_npz(tmp_path / "theirs.npz", theirs, compressed=False)
    with np.load(tmp_path / "out.npz") as ours, np.load(tmp_path / "theirs.npz") as other:
        assert set(ours.files) - {"compressor"} == set(other.files)
        for name in other.files:
            assert ours[name].dtype == other[name].dtype, name
            assert ours[name].tobytes() == other[name].tobytes(), name
