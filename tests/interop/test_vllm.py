"""vLLM loads what we write as it is, and gives the log-probabilities of the restored model (`make test-vllm`).

Schemes whose activations vLLM rounds too are near it only. What has no kernel on a CPU is not asked here.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.console import LLAMA
from support.moe_folders import runnable_moe

from compressor import api

pytestmark = pytest.mark.vllm
PYTHON = os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python")
READER = Path(__file__).with_name("vllm_reader.py")

# The options, and how far log-probabilities may lie from those of the restored model
SCHEMES: dict[str, tuple[dict[str, Any], float]] = {
    "int4 groups": ({"bits": 4, "group_size": 32}, 1e-3),
    "int4 channel": ({"bits": 4, "granularity": "channel"}, 1e-3),
    "int4 asymmetric": ({"bits": 4, "group_size": 32, "symmetric": False}, 1e-3),
    "int4 signed": ({"bits": 4, "group_size": 32, "signed_scales": True}, 1e-3),
    "int4 hqq": ({"bits": 4, "group_size": 32, "method": "hqq"}, 1e-3),
    "int8 W8A8": ({"bits": 8, "layout": "int-quantized"}, 0.05),
    "fp8 dynamic": ({"scheme": "fp8"}, 0.05),
}


def logprobs(folder: Path) -> list[dict[str, float]]:
    done = subprocess.run(
        [PYTHON, str(READER), str(folder)], capture_output=True, text=True, check=False, timeout=900
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("LOGPROBS ")]
    assert lines, done.stderr[-3000:]
    found: list[dict[str, float]] = json.loads(lines[0].removeprefix("LOGPROBS "))
    return found


# Of experts, whose codes are multiplied out where vLLM has loaded them (`vllm_reader.py`): activations are rounded
# in the attention, by fp8 about three times as coarsely as by int8
OF_EXPERTS = {"int4 groups": 1e-3, "int8 W8A8": 0.1, "fp8 dynamic": 0.25}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_vllm_computes_what_the_restored_model_computes(tmp_path: Path, scheme: str) -> None:
    check(LLAMA, tmp_path, scheme, SCHEMES[scheme][1])


@pytest.mark.parametrize("scheme", OF_EXPERTS)
def test_vllm_loads_experts(tmp_path: Path, scheme: str) -> None:
    check(runnable_moe(tmp_path / "model"), tmp_path, scheme, OF_EXPERTS[scheme])


def check(model: Path, place: Path, scheme: str, tolerance: float) -> None:
    """The log-probabilities of a model in a scheme are as near as they should be to those of the restored one."""
    options, _ = SCHEMES[scheme]
    api.quantize(model, place / "packed", **options, loader="vllm")
    api.restore(place / "packed", place / "dense")
    packed, dense = logprobs(place / "packed"), logprobs(place / "dense")
    assert len(packed) == len(dense)
    pairs = list(zip(packed, dense, strict=True))
    apart = [abs(ours[token] - theirs[token]) for ours, theirs in pairs for token in ours.keys() & theirs.keys()]
    print(scheme, "largest distance of log-probabilities", max(apart), "over", len(apart))
    assert len(apart) >= len(packed)
    assert max(apart) <= tolerance
