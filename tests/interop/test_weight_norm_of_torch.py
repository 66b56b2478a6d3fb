"""Weight norm as torch writes it, in both spellings, folded: what torch makes of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")

from safetensors.torch import load_file, save_file

import compressor

pytestmark = pytest.mark.interop

LAYERS: dict[str, tuple[Any, int | None]] = {
    "linear": (lambda: torch.nn.Linear(96, 64), 0),
    "convolution": (lambda: torch.nn.Conv1d(32, 48, 3), 0),
    "positions": (lambda: torch.nn.Conv1d(32, 32, 128, groups=4), 2),  # as wav2vec2 has them
    "columns": (lambda: torch.nn.Linear(96, 64), 1),
    "transposed": (lambda: torch.nn.ConvTranspose2d(8, 16, 3), 1),
    "one number": (lambda: torch.nn.Linear(96, 64), None),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("spelling", ["old", "new"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.filterwarnings("ignore::FutureWarning")  # the old spelling is deprecated
def test_folded_weights_are_torchs(tmp_path: Path, layer: str, spelling: str, dtype: str) -> None:
    torch.manual_seed(0)
    make, axis = LAYERS[layer]
    plain = make().to(getattr(torch, dtype))
    if spelling == "new":
        module = torch.nn.utils.parametrizations.weight_norm(copy.deepcopy(plain), dim=axis)
        gain, direction = module.parametrizations.weight.original0, module.parametrizations.weight.original1
    else:
        module = torch.nn.utils.weight_norm(copy.deepcopy(plain), dim=axis)
        gain, direction = module.weight_g, module.weight_v
    with torch.no_grad():
        gain.mul_(torch.rand_like(gain) + 0.5)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, tmp_path / "in.safetensors")
    compressor.restore(tmp_path / "in.safetensors", tmp_path / "o.safetensors", fold_weight_norm=True)
    found = load_file(tmp_path / "o.safetensors")
    assert set(found) == set(plain.state_dict())

    axes = [k for k in range(direction.dim()) if k != axis]
    wide = torch.float64 if dtype == "float64" else torch.float32
    norm = direction.detach().double().pow(2).sum(axes, keepdim=True).sqrt().to(wide)
    exact = (direction.detach().to(wide) * (gain.detach().to(wide) / norm)).to(direction.dtype)
    if dtype != "float64":  # there a norm's own sum may differ in its last bit
        assert (found["weight"].to(wide) == exact.to(wide)).all()
    if spelling == "new":
        torch.nn.utils.parametrize.remove_parametrizations(module, "weight")
    else:
        torch.nn.utils.remove_weight_norm(module)
    # torch's own sums are of the weight's dtype, in an order of the processor's
    torch.testing.assert_close(
        found["weight"],
        module.weight.detach(),
        rtol=6 * torch.finfo(wide).eps if wide == direction.dtype else 2**-7,
        atol=0,
    )
