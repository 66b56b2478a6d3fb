"""Small networks with the tensor names of published ones, for tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

SMALL: Mapping[str, str] = {
    "lite": "efficientnet-lite",
    "mobile": "mobilenet-v2",
    "resnet18": "resnet",
    "resnet50": "resnet",
}
_REPEATS = {"lite": (1, 2, 2, 3, 3, 4, 1), "mobile": (1, 2, 3, 4, 3, 3, 1)}


def tensors_of_known(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tensors of a network of few channels, whose signal neither grows nor dies."""
    random = np.random.default_rng(seed)
    shapes = {"lite": _lite, "mobile": _mobile}.get(name)
    made = shapes() if shapes else _resnet((2, 2, 2, 2) if name == "resnet18" else (3, 4, 6, 3), name == "resnet50")
    found = {}
    for one, shape in made:
        if one.endswith("running_var"):
            found[one] = random.uniform(0.5, 1.5, shape)
        elif len(shape) == 1:
            found[one] = random.normal(0, 0.2, shape) + one.endswith("weight")
        else:
            found[one] = random.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    return {one: array.astype(np.float32) for one, array in found.items()}


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _norm(name: str, size: int) -> Shapes:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (size,)


def _dense(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (5, width)
    yield f"{name}.bias", (5,)


def _lite() -> Shapes:
    yield "_conv_stem.weight", (4, 3, 3, 3)
    yield from _norm("_bn0", 4)
    given, number = 4, 0
    for kind, repeats in enumerate(_REPEATS["lite"]):
        for _ in range(repeats):
            at, width, wide, kernel = f"_blocks.{number}.", kind + 5, given, 5 if kind in (2, 4, 5) else 3
            if number:
                wide = 2 * given
                yield f"{at}_expand_conv.weight", (wide, given, 1, 1)
                yield from _norm(f"{at}_bn0", wide)
            yield f"{at}_depthwise_conv.weight", (wide, 1, kernel, kernel)
            yield from _norm(f"{at}_bn1", wide)
            yield f"{at}_project_conv.weight", (width, wide, 1, 1)
            yield from _norm(f"{at}_bn2", width)
            given, number = width, number + 1
    yield "_conv_head.weight", (16, given, 1, 1)
    yield from _norm("_bn1", 16)
    yield from _dense("_fc", 16)


def _mobile() -> Shapes:
    yield "features.0.0.weight", (4, 3, 3, 3)
    yield from _norm("features.0.1", 4)
    given, number = 4, 1
    for kind, repeats in enumerate(_REPEATS["mobile"]):
        for _ in range(repeats):
            at, width, wide, last = f"features.{number}.conv.", kind + 5, given, 1
            if number > 1:
                wide, last = 2 * given, 2
                yield f"{at}0.0.weight", (wide, given, 1, 1)
                yield from _norm(f"{at}0.1", wide)
            yield f"{at}{last - 1}.0.weight", (wide, 1, 3, 3)
            yield from _norm(f"{at}{last - 1}.1", wide)
            yield f"{at}{last}.weight", (width, wide, 1, 1)
            yield from _norm(f"{at}{last + 1}", width)
            given, number = width, number + 1
    yield f"features.{number}.0.weight", (16, given, 1, 1)
    yield from _norm(f"features.{number}.1", 16)
    yield from _dense("classifier.1", 16)


def _resnet(repeats: tuple[int, ...], bottlenecks: bool) -> Shapes:
    yield "conv1.weight", (4, 3, 7, 7)
    yield from _norm("bn1", 4)
    given = 4
    for stage, blocks in enumerate(repeats, 1):
        inner = 4 + 2 * (stage - 1)
        width = 2 * inner if bottlenecks else inner
        for number in range(blocks):
            at = f"layer{stage}.{number}."
            sizes = [(inner, given, 1), (inner, inner, 3), (width, inner, 1)]
            for place, (out, into, kernel) in enumerate(
                sizes if bottlenecks else [(inner, given, 3), (inner, inner, 3)], 1
            ):
                yield f"{at}conv{place}.weight", (out, into, kernel, kernel)
                yield from _norm(f"{at}bn{place}", out)
            if number == 0 and (stage > 1 or bottlenecks):
                yield f"{at}downsample.0.weight", (width, given, 1, 1)
                yield from _norm(f"{at}downsample.1", width)
            given = width
    yield from _dense("fc", given)
