"""Networks of convolutions that are known by their tensors' names, and described by their sizes.

* EfficientNet-lite as its PyTorch port names it (`_blocks.0._depthwise_conv`): zeros padded as in TensorFlow
* MobileNetV2 (arXiv 1801.04381) and ResNet (arXiv 1512.03385) as torchvision names them

What no tensor tells is the published networks': strides, by the width of what each block gives; a ResNet of
bottlenecks strides in their middle, as torchvision's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count

from compressor.networks.description import Description
from compressor.networks.kinds import (
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Dense,
    Flatten,
    Kind,
    MaxPool,
    Relu,
    Relu6,
    Shape,
)

_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # of the first block of each width; MobileNetV2's are EfficientNet's
# of EfficientNet-lite, by the blocks and the width of the second kind of them: pixels a side
_SIDES = {(16, 24): 224, (21, 24): 240, (23, 24): 260, (25, 32): 280, (33, 32): 300}


def known(shapes: Mapping[str, Shape]) -> Description | None:
    """The network that tensors of these names and shapes are of, as far as their names tell; it may not fit."""
    for mark, describe in _FAMILIES:
        if mark in shapes:
            return describe(shapes)
    return None


def _lite(shapes: Mapping[str, Shape]) -> Description | None:
    blocks = _counted(shapes, "_blocks.{}._depthwise_conv.weight")
    widths = [shapes.get(f"_blocks.{n}._project_conv.weight", (0,))[0] for n in range(blocks)]
    strides = _strides(widths)
    if strides is None:
        return None
    second = min(widths[1:], default=0)
    side = _SIDES.get((blocks, second), 224)

    def step(at: str, conv: str, norm: str, stride: int = 1, groups: int = 1) -> list[Kind]:
        return [
            Conv2d(f"{at}{conv}", stride=(stride, stride), padding="same", groups=groups),
            BatchNorm(f"{at}{norm}", epsilon=1e-3),
        ]

    layers = [*step("", "_conv_stem", "_bn0", 2), Relu6()]
    given = shapes.get("_conv_stem.weight", (0,))[0]
    for number, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        at, inner = f"_blocks.{number}.", list[Kind]()
        if f"{at}_expand_conv.weight" in shapes:
            inner += [*step(at, "_expand_conv", "_bn0"), Relu6()]
        across = shapes[f"{at}_depthwise_conv.weight"][0]
        inner += [*step(at, "_depthwise_conv", "_bn1", stride, across), Relu6(), *step(at, "_project_conv", "_bn2")]
        layers = _joined(layers, inner, f"before {number}", residual=stride == 1 and given == width)
        given = width
    layers += [*step("", "_conv_head", "_bn1"), Relu6(), AveragePool(), Flatten(), Dense("_fc")]
    return Description((3, side, side), tuple(layers), "efficientnet-lite")


def _mobilenet(shapes: Mapping[str, Shape]) -> Description | None:
    blocks = _counted(shapes, "features.{}.conv.0.0.weight", 1)
    last = {
        n: 2 if f"features.{n}.conv.2.weight" in shapes and f"features.{n}.conv.3.weight" in shapes else 1
        for n in range(1, blocks + 1)
    }
    widths = [shapes.get(f"features.{n}.conv.{last[n]}.weight", (0,))[0] for n in last]
    strides = _strides(widths)
    if strides is None:
        return None
    layers = [*_torch("features.0.0", "features.0.1", 2, 1), Relu6()]
    given = shapes["features.0.0.weight"][0]
    for number, width, stride in zip(last, widths, strides, strict=True):
        at = f"features.{number}.conv."
        inner = [*_torch(f"{at}0.0", f"{at}0.1"), Relu6()] if last[number] == 2 else []
        deep = f"{at}{last[number] - 1}."
        across = shapes.get(f"{deep}0.weight", (1,))[0]
        inner += [*_torch(f"{deep}0", f"{deep}1", stride, 1, across), Relu6()]
        inner += _torch(f"{at}{last[number]}", f"{at}{last[number] + 1}")
        layers = _joined(layers, inner, f"before {number}", residual=stride == 1 and given == width)
        given = width
    end = f"features.{blocks + 1}."
    layers += [*_torch(f"{end}0", f"{end}1"), Relu6(), AveragePool(), Flatten(), Dense("classifier.1")]
    return Description((3, 224, 224), tuple(layers), "mobilenet-v2")


def _resnet(shapes: Mapping[str, Shape]) -> Description | None:
    layers = [*_torch("conv1", "bn1", 2, 3), Relu(), MaxPool((3, 3), (2, 2), (1, 1))]
    for stage in (1, 2, 3, 4):
        for number in range(_counted(shapes, f"layer{stage}.{{}}.conv1.weight")):
            at, stride = f"layer{stage}.{number}.", 2 if stage > 1 and number == 0 else 1
            if f"{at}conv3.weight" in shapes:
                groups = _ratio(shapes, f"{at}conv1.weight", f"{at}conv2.weight")
                main = [*_torch(f"{at}conv1", f"{at}bn1"), Relu()]
                main += [*_torch(f"{at}conv2", f"{at}bn2", stride, 1, groups), Relu()]
                main += _torch(f"{at}conv3", f"{at}bn3")
            else:
                main = [
                    *_torch(f"{at}conv1", f"{at}bn1", stride, 1),
                    Relu(),
                    *_torch(f"{at}conv2", f"{at}bn2", 1, 1),
                ]
            before, after = f"before {at}", f"after {at}"
            layers[-1] = _named(layers[-1], before)
            if f"{at}downsample.0.weight" in shapes:
                main[-1] = _named(main[-1], after)
                conv, norm = _torch(f"{at}downsample.0", f"{at}downsample.1", stride)
                layers += [*main, _taking(conv, before), norm, Add(after), Relu()]
            else:
                layers += [*main, Add(before), Relu()]
    layers += [AveragePool(), Flatten(), Dense("fc")]
    return Description((3, 224, 224), tuple(layers), "resnet")


_FAMILIES: tuple[tuple[str, Callable[[Mapping[str, Shape]], Description | None]], ...] = (
    ("_blocks.0._depthwise_conv.weight", _lite),
    ("features.1.conv.0.0.weight", _mobilenet),
    ("layer1.0.conv1.weight", _resnet),
)


def _torch(conv: str, norm: str, stride: int = 1, padding: int = 0, groups: int = 1) -> list[Kind]:
    """A convolution and its norm as torch has them."""
    return [Conv2d(conv, stride=(stride, stride), padding=(padding, padding), groups=groups), BatchNorm(norm)]


def _joined(before: list[Kind], block: list[Kind], name: str, *, residual: bool) -> list[Kind]:
    """Layers and a block after them, to which what enters it is added where it is `residual`."""
    if not residual:
        return [*before, *block]
    return [*before[:-1], _named(before[-1], name), *block, Add(name)]


def _named(layer: Kind, output: str) -> Kind:
    return replace(layer, output=output)


def _taking(layer: Kind, given: str) -> Kind:
    return replace(layer, input=given)


def _strides(widths: list[int]) -> list[int] | None:
    """Of blocks that give so many channels; None where there are not as many kinds as published networks have."""
    found, kind = list[int](), -1
    for number, width in enumerate(widths):
        new = number == 0 or width != widths[number - 1]
        kind += new
        if kind >= len(_STRIDES):
            return None
        found.append(_STRIDES[kind] if new else 1)
    return found if kind == len(_STRIDES) - 1 else None


def _counted(shapes: Mapping[str, Shape], name: str, first: int = 0) -> int:
    """How many tensors are called so, by numbers from the first on."""
    return next(number for number in count(first) if name.format(number) not in shapes) - first


def _ratio(shapes: Mapping[str, Shape], before: str, after: str) -> int:
    """The groups of a convolution after another."""
    wide, each = shapes[before][0], (*shapes.get(after, (1, 1)), 1)[1]
    return max(wide // max(each, 1), 1)
