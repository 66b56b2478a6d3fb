"""A network with its numbers: the forward pass in batches, and gradients by back-propagation.

network = read_network(checkpoint).network
outputs = network.forward(x, keep=True)           # x [n, *input], float32
network.backward(slope_of_the_loss_by_outputs)    # fills network.gradients, by tensor name
for name, weight in network.parameters.items():
    weight -= rate * network.gradients[name]      # in place: the layers hold these very arrays
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from math import prod

from compressor.core.lazy import np
from compressor.core.tensor_names import layer_of
from compressor.core.workspace import Array, Workspace
from compressor.networks import kinds, layers, pointwise
from compressor.networks.description import Fitted
from compressor.networks.kinds import Shape
from compressor.networks.layers import Layer, Linear

Watch = Callable[[str, Array], None]

_MAKERS: Mapping[type[kinds.Kind], type[Layer]] = {
    kinds.Dense: layers.DenseLayer,
    kinds.Conv2d: layers.ConvLayer,
    kinds.MaxPool: layers.MaxPoolLayer,
    kinds.AveragePool: layers.AveragePoolLayer,
    kinds.Flatten: layers.FlattenLayer,
    kinds.BatchNorm: pointwise.BatchNormLayer,
    kinds.LayerNorm: pointwise.LayerNormLayer,
    kinds.Relu: pointwise.ReluLayer,
    kinds.Relu6: pointwise.Relu6Layer,
    kinds.Swish: pointwise.SwishLayer,
    kinds.Add: layers.AddLayer,
    kinds.Gelu: pointwise.GeluLayer,
    kinds.Tanh: pointwise.TanhLayer,
    kinds.Sigmoid: pointwise.SigmoidLayer,
    kinds.Softmax: pointwise.SoftmaxLayer,
}
_ROWS = 1024  # samples of a batch at most
_NUMBERS = 1 << 22  # of the largest array of a batch, about


class Network:
    """Layers with their numbers. `tensors` are all arrays by name, `parameters` those that are trained (`gradients`
    of the same names), `linear` the layers whose inputs can be watched: their names and widths, in order; `grouped`
    are those of them that are convolutions in groups, of which the inputs of all groups are seen together."""

    def __init__(
        self, fitted: Fitted, tensors: Mapping[str, Array], dtype: str = "<f4", *, copy: bool | None = True
    ) -> None:
        """`tensors` become C-ordered arrays of `dtype`: copies, or (None) copies only where they are not yet."""
        self.fitted, self.dtype = fitted, dtype
        self.tensors = {name: np.array(array, dtype, order="C", copy=copy) for name, array in tensors.items()}
        self.layers: list[Layer] = []
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.linear: dict[str, int] = {}
        self.grouped: set[str] = set()
        self._names: dict[int, str] = {}
        self._work = Workspace()
        for number, (kind, roles) in enumerate(zip(fitted.description.layers, fitted.roles, strict=True)):
            arrays = {role: self.tensors[name] for role, name in roles.items()}
            maker = _MAKERS[type(kind)]
            if isinstance(kind, kinds.Conv2d) and kind.groups > 1:
                maker = layers.GroupedConvLayer
            given = fitted.shapes[fitted.sources[number][0]]
            layer = maker(kind, given, fitted.shapes[number + 1], arrays, dtype)
            self.layers.append(layer)
            for role in layer.parameters:
                self.parameters[roles[role]] = layer.parameters[role]
                self.gradients[roles[role]] = layer.gradients[role]
            if isinstance(layer, Linear):
                self._names[number] = layer_of(roles["weight"])
                self.linear[self._names[number]] = prod(arrays["weight"].shape[1:])
                self.grouped |= {self._names[number]} if layer.together else set()
        self._takers = [0] * len(fitted.shapes)  # how many layers take what each gives
        for place in (place for places in fitted.sources for place in places):
            self._takers[place] += 1
        self._pool_first()
        self._settle_places()
        self._learns = [False]  # of what each layer gives: whether any parameter is behind it
        for layer, places in zip(self.layers, fitted.sources, strict=True):
            self._learns.append(bool(layer.parameters) or any(self._learns[place] for place in places))

    def twin(self) -> Network:
        """The same network on the same tensors, with buffers and gradients of its own: for another thread."""
        return Network(self.fitted, self.tensors, self.dtype, copy=None)

    def _pool_first(self) -> None:
        """What is largest is so after a ReLU too, and where it was none of its gradient passes: pooled before, a
        quarter of the numbers or fewer go through it, and the results are the same."""
        for number, (one, other) in enumerate(pairwise(self.layers)):
            next_in_line = self.fitted.sources[number + 1] == (number + 1,) and self._takers[number + 1] == 1
            if isinstance(one, pointwise.ReluLayer) and isinstance(other, layers.MaxPoolLayer) and next_in_line:
                self.layers[number : number + 2] = other, one

    def _settle_places(self) -> None:
        """A layer may write over what it is given, unless that is the caller's or is read again."""
        for number, layer in enumerate(self.layers):
            place = self.fitted.sources[number][0]
            free = True
            while place and free:
                before = self.layers[place - 1]
                free = self._takers[place] == 1 and not before.keeps_output
                if not isinstance(before, layers.FlattenLayer) or len(before.given) == 3:
                    break
                place = self.fitted.sources[place - 1][0]  # the same array by another name
            layer.in_place = free and place > 0

    @property
    def input(self) -> Shape:
        """The shape of one sample, as the description gives it."""
        return self.fitted.description.input

    @property
    def outputs(self) -> Shape:
        """The shape of what a sample gives."""
        return self.fitted.shapes[-1]

    @property
    def batch(self) -> int:
        """Samples that are worked on at a time without much memory; it depends on the shapes alone."""
        largest = max(prod(shape) for shape in self.fitted.shapes)
        for layer in self.layers:
            if isinstance(layer, layers.ConvLayer):
                largest = max(largest, prod(layer.result[1:]) * prod(layer.parameters["weight"].shape[1:]))
        return max(1, min(_ROWS, _NUMBERS // largest))

    def forward(self, x: Array, *, keep: bool = False, train: bool = False, watch: Watch | None = None) -> Array:
        """Outputs [n, *outputs] for inputs [n, *input] (PyTorch's order of axes); valid until the next call.

        `keep` what `backward` needs; in `train` norms go by the batch. `watch(layer, rows)` sees the inputs
        [.., width] of each linear layer before it runs; of a convolution these are its windows.
        """
        for number, layer, given, give in self.in_order(x):
            if watch is not None and isinstance(layer, Linear):
                watch(self._names[number], layer.rows(given))
            x = layer.forward(given, keep=keep, train=train)
            give(x)
        return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x

    def entering(self, x: Array, name: str) -> Array:
        """What enters the linear layer of this name, [.., width], for inputs [n, *input]: as `watch` sees it, and
        no more of the network is run than that takes. Valid until the next call."""
        for number, layer, given, give in self.in_order(x):
            if isinstance(layer, Linear) and self._names[number] == name:
                return layer.rows(given)
            give(layer.forward(given))
        raise KeyError(name)

    def in_order(self, x: Array) -> Iterator[tuple[int, Layer, Array, Callable[[Array], None]]]:
        """Every layer with its place and what it is given; what comes of it is given back before the next."""
        values = [self.turned(x)]
        for number, (layer, places) in enumerate(zip(self.layers, self.fitted.sources, strict=True)):
            given = [values[place] for place in places]
            if isinstance(layer, layers.AddLayer):
                layer.other = given[1]
            yield number, layer, given[0], values.append

    def turned(self, x: Array) -> Array:
        """Inputs as the layers take them: of the network's dtype, the channels last."""
        x = x.astype(self.dtype, copy=False)
        if len(self.input) != 3:
            return x
        channels, rows, columns = self.input
        turned = self._work.array("x", (len(x), rows, columns, channels), self.dtype)
        np.copyto(turned, x.transpose(0, 2, 3, 1))
        return turned

    def backward(self, gradient: Array, *, inputs: bool = False) -> Array | None:
        """Fill `gradients` from the loss's gradient by the outputs of the last `forward`, which was told to `keep`;
        the gradient by the inputs where these are wanted."""
        found = self._work.array("gradient", gradient.shape, self.dtype)
        np.copyto(found, gradient)
        slopes = {len(self.layers): np.ascontiguousarray(found.transpose(0, 2, 3, 1)) if found.ndim == 4 else found}
        for number in range(len(self.layers) - 1, -1, -1):
            slope = slopes.pop(number + 1, None)
            if slope is None:
                continue  # nothing is learnt by it
            layer, places = self.layers[number], self.fitted.sources[number]
            wanted = [inputs or self._learns[place] for place in places]
            back = [layer.backward(slope, inputs=wanted[0])]
            if isinstance(layer, layers.AddLayer):
                back.append(layer.other_gradient)
            for place, one, want in zip(places, back, wanted, strict=True):
                if want and one is not None:
                    slopes[place] = np.add(slopes[place], one, out=slopes[place]) if place in slopes else one
        last = slopes.get(0)
        return last.transpose(0, 3, 1, 2) if last is not None and last.ndim == 4 else last
