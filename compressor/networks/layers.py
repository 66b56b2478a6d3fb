"""Layers that compute: dense, convolution, pooling, flatten; forwards, and backwards for the gradients.

Samples are rows of features [n, features], or planes [n, rows, columns, channels]: with the channels last a
convolution is one product of matrices whose rows are copied in runs. Results lie in buffers of the layer and are
valid until it is run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, ClassVar

from compressor.core.lazy import np
from compressor.core.workspace import Array, Workspace
from compressor.networks.kinds import AveragePool, Conv2d, Kind, MaxPool, Pads, Pool, Shape

_RUN = 16  # numbers; copying fewer at a time takes longer than BLAS does with windows held as columns


class Layer:
    """One layer with its numbers. `parameters` and `gradients` are by role (weight, bias, …); `backward` fills the
    latter after a `forward` that was told to `keep` what it needs, and gives the gradient of the inputs."""

    keeps_output: ClassVar[bool] = False  # whether `backward` reads the result of `forward`
    in_place = False  # whether what is given may be overwritten, because nobody reads it again

    def __init__(self, kind: Kind, given: Shape, result: Shape, tensors: Mapping[str, Array], dtype: str) -> None:
        self.kind, self.given, self.result, self.dtype = kind, given, result, dtype
        self.tensors = dict(tensors)
        self.parameters = {role: array for role, array in tensors.items() if role in ("weight", "bias")}
        self.gradients = {role: np.zeros_like(array) for role, array in self.parameters.items()}
        self.work = Workspace()

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        """The layer's outputs for a batch of inputs, samples first."""
        raise NotImplementedError

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        """Fill `gradients`; the gradient of the inputs where these are wanted. `gradient` may be overwritten."""
        raise NotImplementedError

    def array(self, key: str, *shape: int, dtype: str = "") -> Array:
        """A buffer of this layer by its name, made once for each shape."""
        return self.work.array(key, shape, dtype or self.dtype)


class Linear(Layer):
    """A layer that is a product with a weight matrix."""

    together: ClassVar[bool] = False  # whether its rows see inputs of their own, and what is watched is all of them

    def rows(self, x: Array) -> Array:
        """What enters the product for a batch, [.., in] in the order of the weight's columns; before `forward`."""
        raise NotImplementedError


class DenseLayer(Linear):
    """`x Wᵀ + b`."""

    def rows(self, x: Array) -> Array:
        return x

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        weight = self.parameters["weight"]
        y = np.matmul(x, weight.T, out=self.array("y", len(x), len(weight)))
        if "bias" in self.parameters:
            y += self.parameters["bias"]
        self.x = x
        return y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        weight = self.parameters["weight"]
        np.matmul(gradient.T, self.x, out=self.gradients["weight"])
        if "bias" in self.gradients:
            np.sum(gradient, axis=0, out=self.gradients["bias"])
        return np.matmul(gradient, weight, out=self.array("dx", *self.x.shape)) if inputs else None


class ConvLayer(Linear):
    """A convolution as one product: every window a row of `rows · columns · channels` numbers (im2col).

    What lies together in a window is a row of the kernel with its channels. Where that is little, windows are held
    as columns instead, so that what is copied are whole rows of the planes.
    """

    kind: Conv2d

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        _, channels, high, across = self.parameters["weight"].shape
        self.upright = across * channels < _RUN
        self.pads = self.kind.pads(self.given, (high, across))
        self.points = high == across == 1 and self.kind.stride == (1, 1)  # each window is a point, and in place

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        weight, windows = self._matrix(), self._windows(x)
        count, shape = prod(windows.shape[:3]), windows.shape
        if self.points and not keep:
            columns = x.reshape(count, -1)
        elif self.upright:
            order = (3, 4, 5, 0, 1, 2)
            held = self.array("columns", *(shape[axis] for axis in order))
            np.copyto(held, windows.transpose(order))
            columns = held.reshape(-1, count).T
        else:
            held = self.array("columns", *shape)
            np.copyto(held, windows)
            columns = held.reshape(count, -1)
        y = np.matmul(columns, weight.T, out=self.array("y", count, len(weight)))
        if "bias" in self.parameters:
            y += self.parameters["bias"]
        self.columns, self.count = columns, len(x)
        return y.reshape(len(x), *self.result[1:], self.result[0])

    def rows(self, x: Array) -> Array:
        windows = self._windows(x).transpose(0, 1, 2, 5, 3, 4)
        turned = self.array("rows", *windows.shape)
        np.copyto(turned, windows)
        return turned.reshape(prod(windows.shape[:3]), -1)

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        weight = self._matrix()
        out, channels, *kernel = self.parameters["weight"].shape
        gradient = gradient.reshape(-1, out)
        if self.upright:  # BLAS is slower at the same the other way round
            found = np.matmul(self.columns.T, gradient, out=self.array("dw", *weight.T.shape)).T
        else:
            found = np.matmul(gradient.T, self.columns, out=self.array("dw", *weight.shape))
        np.copyto(self.gradients["weight"], found.reshape(out, *kernel, channels).transpose(0, 3, 1, 2))
        if "bias" in self.gradients:
            ones = self.array("ones", len(gradient))
            ones[...] = 1
            np.matmul(ones, gradient, out=self.gradients["bias"])  # in a tenth of the time of a sum over rows
        if not inputs:
            return None
        _, rows, width = self.result
        padded = self._padded()
        padded[...] = 0
        # place by place of the kernel, so that what is added lies in long runs
        share = self.array("dcolumns", len(gradient), channels)
        turned = weight.reshape(out, *kernel, channels)
        for row, column, window in _offsets(padded, kernel, self.kind.stride, (rows, width)):
            np.matmul(gradient, turned[:, row, column], out=share)
            window += share.reshape(self.count, rows, width, channels)
        return _inside(padded, self.pads)

    def _matrix(self) -> Array:
        """The weights in the order of the windows: channels last."""
        weight = self.parameters["weight"]
        out, channels, *kernel = weight.shape
        turned = self.array("w", out, *kernel, channels)
        np.copyto(turned, weight.transpose(0, 2, 3, 1))
        return turned.reshape(out, -1)

    def _padded(self) -> Array:
        return self.array("padded.gradient", self.count, *_padded_shape(self.given, self.pads))

    def _windows(self, x: Array) -> Array:
        """Every window of the batch, as it lies in the planes: [n, rows, columns, *kernel, channels]."""
        _, rows, columns = self.result
        channels = self.given[0]
        kernel, (down, across) = self.parameters["weight"].shape[2:], self.kind.stride
        x = _pad(self, x, self.pads, 0)
        n, by_row, by_column, by_channel = x.strides
        return np.lib.stride_tricks.as_strided(
            x,
            (len(x), rows, columns, *kernel, channels),
            (n, by_row * down, by_column * across, by_row, by_column, by_channel),
            writeable=False,
        )


class GroupedConvLayer(Linear):
    """A convolution whose outputs see the channels of their group alone; depthwise where that is one channel.

    Place by place of the kernel: a number for each channel is multiplied with planes as they lie, and of larger
    groups each is a product of matrices. What enters the rows of its weight are the windows of all groups.
    """

    together = True

    kind: Conv2d

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.out, self.channels, *self.kernel = self.parameters["weight"].shape
        self.pads = self.kind.pads(self.given, tuple(self.kernel))

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.x = _pad(self, x, self.pads, 0)
        groups = self.kind.groups
        y = self.array("y", len(x), *self.result[1:], groups, self.out // groups)
        share = self.array("share", *y.shape)
        y[...] = 0
        if "bias" in self.parameters:
            y += self.parameters["bias"].reshape(groups, -1)
        weight = self._by_place()
        for row, column, window in _offsets(self.x, self.kernel, self.kind.stride, self.result[1:]):
            y += _grouped(self._split(window), weight[row, column], share)
        return y.reshape(*y.shape[:3], self.out)

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        groups = self.kind.groups
        parts = gradient.reshape(*gradient.shape[:3], groups, -1)
        found = self.gradients["weight"].reshape(groups, -1, self.channels, *self.kernel)
        if "bias" in self.gradients:
            np.sum(gradient, axis=(0, 1, 2), out=self.gradients["bias"])
        padded = self.array("dx", *self.x.shape)
        if inputs:
            padded[...] = 0
        turned = np.ascontiguousarray(self._by_place().transpose(0, 1, 2, 4, 3))
        share = self.array("dshare", *gradient.shape[:3], groups, self.channels)
        back = _offsets(padded, self.kernel, self.kind.stride, self.result[1:])
        seen = _offsets(self.x, self.kernel, self.kind.stride, self.result[1:])
        for (row, column, window), (_, _, slope) in zip(seen, back, strict=True):
            given = self._split(window)
            for group in range(groups):
                one = parts[..., group, :].reshape(-1, parts.shape[-1])
                other = given[..., group, :].reshape(-1, self.channels)
                found[group, :, :, row, column] = np.matmul(one.T, other)
            if inputs:
                slope += _grouped(parts, turned[row, column], share).reshape(slope.shape)
        return _inside(padded, self.pads) if inputs else None

    def rows(self, x: Array) -> Array:
        x, (rows, columns) = _pad(self, x, self.pads, 0), self.result[1:]
        found = self.array("rows", len(x), rows, columns, self.kind.groups, self.channels, *self.kernel)
        for row, column, window in _offsets(x, self.kernel, self.kind.stride, (rows, columns)):
            np.copyto(found[..., row, column], self._split(window))
        return found.reshape(-1, self.channels * prod(self.kernel))

    def _by_place(self) -> Array:
        """The weights as [rows, columns, groups, channels of one, outputs of one]."""
        weight = self.parameters["weight"]
        split = weight.reshape(self.kind.groups, -1, self.channels, *self.kernel)
        turned = self.array("w", *self.kernel, self.kind.groups, self.channels, split.shape[1])
        np.copyto(turned, split.transpose(3, 4, 0, 2, 1))
        return turned

    def _split(self, window: Array) -> Array:
        """Planes with the channels by group."""
        return window.reshape(*window.shape[:3], self.kind.groups, self.channels)


def _grouped(given: Array, weight: Array, out: Array) -> Array:
    """[n, rows, columns, groups, in] by [groups, in, out]: each group by its own matrix."""
    if weight.shape[1] == 1:
        return np.multiply(given, weight[:, 0], out=out)
    for group in range(len(weight)):
        np.matmul(given[..., group, :], weight[group], out=out[..., group, :])
    return out


class AddLayer(Layer):
    """The sum of two; `other` is set before each run, and `other_gradient` after `backward`."""

    other: Array
    other_gradient: Array

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        return np.add(x, self.other, out=self.array("y", *x.shape))

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        self.other_gradient = self.array("other", *gradient.shape)
        np.copyto(self.other_gradient, gradient)
        return gradient


class PoolLayer(Layer):
    """Windows over rows and columns."""

    kind: Pool
    count: int  # samples of the batch

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.size, self.stride = self.kind.window(self.given)
        tiled = tuple(count * edge for count, edge in zip(self.result[1:], self.size, strict=True))
        self.tiles = self.stride == self.size and tiled == self.given[1:]  # each number is in one window
        self.places = "|u1" if prod(self.size) < 256 else "<u4"  # that number the places of a window

    def _windows(self, planes: Array) -> Iterator[Array]:
        """Planes as each place of the window sees them, in the order of rows and columns."""
        for _, _, window in _offsets(planes, self.size, self.stride, self.result[1:]):
            yield window

    def _gradient(self) -> Array:
        found = self.array("dx", self.count, *_padded_shape(self.given, self.kind.pads))
        if not self.tiles:
            found[...] = 0
        return found


class MaxPoolLayer(PoolLayer):
    """The largest; of equal ones the first, which alone gets the gradient."""

    kind: MaxPool

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.count = len(x)
        x = _pad(self, x, self.kind.pads, -np.inf)
        y = self.array("y", len(x), *self.result[1:], self.result[0])
        chosen = self.array("chosen", *y.shape, dtype=self.places) if keep else None
        larger = self.array("larger", *y.shape, dtype="|b1")
        newer = self.array("newer", *y.shape, dtype=self.places)
        for number, window in enumerate(self._windows(x)):
            if number == 0:
                np.copyto(y, window)
                if chosen is not None:
                    chosen[...] = 0
                continue
            if chosen is not None:
                np.greater(window, y, out=larger)
                np.multiply(larger, chosen.dtype.type(number), out=newer)
                np.maximum(chosen, newer, out=chosen)  # numbers grow, so the last that was larger stays
            np.maximum(y, window, out=y)
        return y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        if not inputs:
            return None
        found = self._gradient()
        chosen = self.array("chosen", *gradient.shape, dtype=self.places)
        mine = self.array("larger", *gradient.shape, dtype="|b1")
        share = self.array("share", *gradient.shape)
        for number, window in enumerate(self._windows(found)):
            np.equal(chosen, number, out=mine)
            if self.tiles:
                np.multiply(gradient, mine, out=window)
            else:
                window += np.multiply(gradient, mine, out=share)
        return _inside(found, self.kind.pads)


class AveragePoolLayer(PoolLayer):
    """The mean."""

    kind: AveragePool

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        self.count = len(x)
        x = _pad(self, x, self.kind.pads, 0)
        y = self.array("y", len(x), *self.result[1:], self.result[0])
        y[...] = 0
        for window in self._windows(x):
            y += window
        y *= y.dtype.type(1 / prod(self.size))
        return y

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        if not inputs:
            return None
        found = self._gradient()
        share = np.multiply(gradient, gradient.dtype.type(1 / prod(self.size)), out=gradient)
        for window in self._windows(found):
            if self.tiles:
                np.copyto(window, share)
            else:
                window += share
        return _inside(found, self.kind.pads)


class FlattenLayer(Layer):
    """Planes as features, in the order of PyTorch: channels, rows, columns."""

    def forward(self, x: Array, *, keep: bool = False, train: bool = False) -> Array:
        if len(self.given) == 1:
            return x
        channels, rows, columns = self.given
        y = self.array("y", len(x), channels, rows, columns)
        np.copyto(y, x.transpose(0, 3, 1, 2))
        return y.reshape(len(x), -1)

    def backward(self, gradient: Array, *, inputs: bool = True) -> Array | None:
        if len(self.given) == 1 or not inputs:
            return gradient
        channels, rows, columns = self.given
        found = self.array("dx", len(gradient), rows, columns, channels)
        np.copyto(found, gradient.reshape(-1, channels, rows, columns).transpose(0, 2, 3, 1))
        return found


def _offsets(planes: Array, size: Any, stride: Any, result: Any) -> Iterator[tuple[int, int, Array]]:
    """For each place (row, column) of a window, what all windows have there: [n, rows, columns, channels]."""
    (down, across), (rows, columns) = stride, result
    for row in range(size[0]):
        for column in range(size[1]):
            yield (
                row,
                column,
                planes[
                    :,
                    row : row + (rows - 1) * down + 1 : down,
                    column : column + (columns - 1) * across + 1 : across,
                ],
            )


def _padded_shape(given: Shape, pads: Pads) -> tuple[int, int, int]:
    """Rows, columns and channels of planes (channels, rows, columns) with what is padded."""
    channels, rows, columns = given
    return rows + sum(pads[0]), columns + sum(pads[1]), channels


def _pad(layer: Layer, x: Array, pads: Pads, value: float) -> Array:
    if not any(map(sum, pads)):
        return x
    padded = layer.array("padded", len(x), *_padded_shape(layer.given, pads))
    padded[...] = value
    _inside(padded, pads)[...] = x
    return padded


def _inside(padded: Array, pads: Pads) -> Array:
    (above, below), (before, after) = pads
    return padded[:, above : padded.shape[1] - below, before : padded.shape[2] - after]
