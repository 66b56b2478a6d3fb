"""Small networks of every kind of layer, for tests: their TOML and tensors to fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compressor.networks.description import fit, parse_description
from compressor.networks.network import Network


def toml(shape: str, *layers: str, divide: str = "") -> str:
    """A description; each layer as `kind key=value; key=value`."""
    text = f"input = {shape}\n{divide}\n"
    for layer in layers:
        kind, _, options = layer.partition(" ")
        text += f'[[layer]]\nkind = "{kind}"\n' + "".join(f"{one.strip()}\n" for one in options.split(";"))
    return text


# name → (description, shapes of its tensors)
NETWORKS: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]]]] = {
    "dense": (
        toml("[7]", 'dense name="a"', "relu", 'dense name="b"', "tanh", 'dense name="c"'),
        {"a.weight": (6, 7), "a.bias": (6,), "b.weight": (5, 6), "c.weight": (3, 5), "c.bias": (3,)},
    ),
    "activations": (
        toml(
            "[6]",
            "flatten",
            "relu",
            'dense name="a"',
            "sigmoid",
            "relu",
            'dense name="b"',
            "gelu",
            'dense name="c"',
            'gelu approximate="tanh"',
            'dense name="d"',
            "tanh",
            "flatten",
            "tanh",
            "softmax",
        ),
        {"a.weight": (5, 6), "b.weight": (4, 5), "c.weight": (5, 4), "c.bias": (5,), "d.weight": (4, 5)},
    ),
    "norms": (
        toml(
            "[2, 5, 4]",
            'conv2d name="a"',
            'batch-norm name="n"',
            "relu",
            "flatten",
            'dense name="b"',
            'layer-norm name="l"; epsilon=0.01',
            "gelu",
            'dense name="c"',
            'batch-norm name="m"; weight=false; bias=false',
        ),
        {
            "a.weight": (3, 2, 3, 2),
            "n.weight": (3,),
            "n.bias": (3,),
            "n.running_mean": (3,),
            "n.running_var": (3,),
            "b.weight": (6, 27),
            "b.bias": (6,),
            "l.weight": (6,),
            "l.bias": (6,),
            "c.weight": (4, 6),
            "m.running_mean": (4,),
            "m.running_var": (4,),
        },
    ),
    "planes": (
        toml(
            "[2, 9, 8]",
            'conv2d name="a"; stride=[2, 1]; padding=[1, 2]; kernel=[3, 5]',
            "relu",
            "max-pool size=[3, 2]; stride=[1, 2]; padding=1",
            'conv2d name="b"; padding=[0, 1]',
            "tanh",
            "average-pool size=2; stride=1; padding=1",
            "average-pool",
            "flatten",
            'dense name="c"',
        ),
        {
            "a.weight": (4, 2, 3, 5),
            "a.bias": (4,),
            "b.weight": (3, 4, 2, 3),
            "b.bias": (3,),
            "c.weight": (3, 3),
            "c.bias": (3,),
        },
    ),
    "mobile": (  # depthwise and grouped convolutions, residual connections
        toml(
            "[3, 7, 6]",
            'conv2d name="a"; stride=2; padding="same"',
            'batch-norm name="n"',
            'relu6 output="x"',
            'conv2d name="b"; padding="same"; groups=4',
            'swish output="y"',
            'conv2d name="c"; groups=2',
            'add other="x"; output="z"',
            "relu",
            'conv2d name="d"; stride=[2, 1]; padding="same"; groups=4; output="main"',
            'conv2d name="e"; stride=[2, 1]; input="z"',
            'batch-norm name="m"',
            'add other="main"',
            "relu6",
            "average-pool",
            "flatten",
            'dense name="f"',
        ),
        {
            "a.weight": (4, 3, 3, 3),
            "n.weight": (4,),
            "n.bias": (4,),
            "n.running_mean": (4,),
            "n.running_var": (4,),
            "b.weight": (4, 1, 3, 3),
            "b.bias": (4,),
            "c.weight": (4, 2, 1, 1),
            "d.weight": (8, 1, 2, 3),
            "e.weight": (8, 4, 1, 1),
            "e.bias": (8,),
            "m.running_mean": (8,),
            "m.running_var": (8,),
            "f.weight": (2, 8),
        },
    ),
    "tiles": (  # pools without gaps, and convolutions of few channels and of many
        toml(
            "[1, 13, 9]",
            'conv2d name="a"; padding=1',
            "relu",
            "max-pool size=[1, 3]",
            'conv2d name="b"',
            "relu",
            "max-pool size=[11, 1]",
            'conv2d name="c"; padding=[0, 1]',
            "average-pool size=[1, 2]",
            "flatten",
            'dense name="d"',
        ),
        {
            "a.weight": (6, 1, 3, 3),
            "a.bias": (6,),
            "b.weight": (6, 6, 3, 3),
            "c.weight": (3, 6, 1, 2),
            "c.bias": (3,),
            "d.weight": (2, 3),
        },
    ),
    "planes out": (
        toml("[1, 6, 6]", 'conv2d name="a"', "max-pool size=2", 'conv2d name="b"'),
        {"a.weight": (3, 1, 3, 3), "b.weight": (2, 3, 2, 2)},
    ),
}


def tensors_of(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers for these tensors; variances positive."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.uniform(0.5, 2, shape) if name.endswith("var") else rng.normal(size=shape) * 0.6
        for name, shape in shapes.items()
    }


def network(name: str, dtype: str = "<f4", seed: int = 0) -> Network:
    """One of the networks with its numbers."""
    text, shapes = NETWORKS[name]
    return Network(fit(parse_description(text, name), shapes), tensors_of(shapes, seed), dtype)


def samples(of: Network, count: int, seed: int = 1) -> np.ndarray:
    """Inputs of it."""
    return np.random.default_rng(seed).normal(size=(count, *of.input)).astype(of.dtype)
