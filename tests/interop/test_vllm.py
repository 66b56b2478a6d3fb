"""vLLM loads what we write as it is, and gives the log-probabilities of the restored model, family by family
(`make test-vllm`): or the plan was refused.

Schemes whose activations vLLM rounds too are near it only. What has no kernel on a CPU is loaded as anywhere and
multiplied out (`bench/loaders/vllm_reader.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.console import LLAMA

pytest.importorskip("torch", reason="needs torch: make test-interop")
pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

from bench.loaders.families import FAMILIES
from bench.loaders.matrix import cells
from bench.loaders.vllm_loader import Vllm
from compressor import api

pytestmark = pytest.mark.vllm
SOME = ("llama", "mistral", "qwen2", "qwen3", "qwen3-moe", "mixtral", "gemma2", "gemma3", "phi3", "opt", "gpt2")
SOME += ("qwen2-moe", "qwen3.5", "llama4", "whisper", "clip")
# Ways and layouts that the matrix has not
MORE: dict[str, dict[str, Any]] = {
    "signed": {"bits": 4, "group_size": 32, "signed_scales": True},
    "hqq": {"bits": 4, "group_size": 32, "method": "hqq"},
    "groups of 32": {"bits": 4, "group_size": 32},
}


@pytest.fixture(scope="module")
def vllm() -> Iterator[Vllm]:
    loader = Vllm()
    if not loader.there:
        pytest.skip("needs vLLM: make test-vllm")
    yield loader
    loader.end()


@pytest.mark.parametrize("name", SOME)
def test_vllm_computes_what_the_restored_model_computes(vllm: Vllm, name: str) -> None:
    family = FAMILIES[name]
    found = dict(cells(family, vllm, vllm.schemes_of(family), {"loader": "vllm"}))
    print(name, {scheme: cell.off for scheme, cell in found.items() if cell.off is not None})
    assert {scheme: cell for scheme, cell in found.items() if not cell.right or cell.alone} == {}
    assert all(cell.treated for cell in found.values() if not cell.refused)
    assert all(cell.refused for cell in found.values()) == (name == "gpt2")


@pytest.mark.parametrize("way", MORE)
def test_vllm_takes_every_way_to_four_bits(vllm: Vllm, tmp_path: Path, way: str) -> None:
    api.quantize(LLAMA, tmp_path / "packed", **MORE[way], loader="vllm")
    api.restore(tmp_path / "packed", tmp_path / "dense")
    wanted, found = (vllm.answers(tmp_path / place, FAMILIES["llama"]) for place in ("dense", "packed"))
    assert (found - wanted).norm() <= 0.01 * wanted.norm()
