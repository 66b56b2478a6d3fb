"""Networks of convolutions that are known by their tensors' names: small ones of each kind."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from support.known_networks import SMALL, tensors_of_known

from compressor.core.errors import InputError
from compressor.networks.description import fit
from compressor.networks.kinds import Add, Conv2d
from compressor.networks.known import known
from compressor.networks.network import Network


@pytest.mark.parametrize("name", SMALL)
def test_small_ones_are_known_and_run(name: str) -> None:
    tensors = tensors_of_known(name)
    described = known({one: array.shape for one, array in tensors.items()})
    assert described is not None
    assert described.name == SMALL[name]
    made = Network(fit(described, {one: array.shape for one, array in tensors.items()}), tensors)
    outputs = made.forward(np.random.default_rng(1).normal(size=(1, *made.input)).astype(np.float32))
    assert outputs.shape == (1, 5)
    assert np.isfinite(outputs).all()
    assert np.ptp(outputs) > 0


@pytest.mark.parametrize(("name", "joined"), [("lite", 9), ("mobile", 10), ("resnet18", 8), ("resnet50", 16)])
def test_as_many_residual_connections_as_published(name: str, joined: int) -> None:
    described = known({one: array.shape for one, array in tensors_of_known(name).items()})
    assert described is not None
    assert sum(isinstance(layer, Add) for layer in described.layers) == joined
    strides = [
        layer.stride for layer in described.layers if isinstance(layer, Conv2d) and layer.name.find("downs") < 0
    ]
    assert strides.count((2, 2)) == (5 if name in ("lite", "mobile") else 4)


def test_what_only_begins_like_one_is_none_of_them() -> None:
    assert known({"fc1.weight": (2, 2)}) is None
    tensors = {one: array.shape for one, array in tensors_of_known("mobile").items()}
    short = {one: shape for one, shape in tensors.items() if not one.startswith("features.9.")}
    assert known(short) is None
    tensors["features.3.conv.2.weight"] = (7, 3, 1, 1)
    described = known(tensors)
    assert described is None or _unfit(described, tensors)


def _unfit(described: object, tensors: Mapping[str, tuple[int, ...]]) -> bool:
    with pytest.raises(InputError):
        fit(described, tensors)  # type: ignore[arg-type]
    return True
