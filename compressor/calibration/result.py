"""What every way of calibration shares: which statistics are wanted, writing them, and the report of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from compressor.calibration.statistics import Writer
from compressor.core.errors import InputError
from compressor.core.layer_inputs import Layer
from compressor.core.shown import Shown
from compressor.files.opening import open_file

WIDEST = 8192  # of layers that have a gram unless it is asked for: 268 MB in the file, twice that in memory

Add = Callable[[str, Layer], None]


@dataclass
class Task:
    """One run. `gram`: whether layers get one, else those up to `WIDEST` do; `progress(done, total)` in bytes.
    An output that ends in .gguf is an importance matrix; `weights_of_file` are then the names of a GGUF file's
    weights with the layers whose inputs they take."""

    output: str
    gram: bool | None = None
    model: str = ""
    weights: str = ""
    force: bool = False
    progress: Callable[[int, int], None] = lambda done, total: None
    source: str = ""
    layers: list[Gathered] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    weights_of_file: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def imatrix(self) -> bool:
        """Whether the output is an importance matrix."""
        return self.output.lower().endswith(".gguf")

    def note(self, sentence: str) -> None:
        """Add a sentence of what the user should know."""
        self.notes.append(sentence)

    def wants_gram(self, width: int) -> bool:
        """Whether a layer of this many inputs gets its gram."""
        return not self.imatrix and (width <= WIDEST if self.gram is None else self.gram)

    @contextmanager
    def writing(self, widths: Mapping[str, int], influences: Collection[str] = ()) -> Iterator[Add]:
        """A function that writes the statistics of a layer; all of `widths` must come, in any order, and the
        `influences` of blocks, which are written as layers of one input and are no layers of the report."""
        declared = {layer: (width, self.wants_gram(width)) for layer, width in widths.items()}
        declared |= dict.fromkeys(influences, (1, False))
        held: dict[str, Layer] = {}
        with ExitStack() as stack:
            said = {"model": self.model, "weights": self.weights, "source": self.source}
            writer = None
            if not self.imatrix:
                writer = stack.enter_context(Writer(self.output, declared, **said, force=self.force))

            def add(name: str, layer: Layer) -> None:
                if writer is not None:
                    writer.add(name, layer)
                elif name in widths:
                    held[name] = layer
                if name in widths:
                    made = gathered(name, layer.count, layer.width, gram=layer.gram is not None)
                    self.layers.append(replace(made, size=4 * layer.width + 4) if self.imatrix else made)

            yield add
            if not any(layer.rows for layer in self.layers):
                raise InputError("no inputs reached any layer")
            if writer is None:
                seen = {name: layer for name, layer in held.items() if layer.count}
                from compressor.calibration.imatrix import write_imatrix

                write_imatrix(self.output, seen, self.weights_of_file, source=self.source, force=self.force)

    def report(self) -> CalibrationReport:
        """What was written, and what is to be known of it."""
        return report_of(self.output, self.source, self.layers, self.notes)


def gathered(name: str, rows: int, width: int, *, gram: bool) -> Gathered:
    """A layer of the report, with the bytes that it takes in the file."""
    return Gathered(name, rows, width, gram, 8 + 8 * width + 4 * width * width * gram)


def report_of(output: str, source: str, layers: list[Gathered], notes: list[str]) -> CalibrationReport:
    """The report, with notes on samples that are too few."""
    found = list(notes)
    unseen = [layer for layer in layers if not layer.rows]
    few = [layer for layer in layers if layer.gram and 0 < layer.rows < layer.width]
    wide = [layer for layer in layers if not layer.gram]
    if unseen:
        found.append(f"no inputs reached {_named(unseen)}")
    if few:
        worst = max(few, key=lambda layer: layer.width / layer.rows)
        found.append(
            f"fewer rows than features in {_named(few)} ({worst.rows} rows for {worst.width} features at worst): "
            "XᵀX is singular there, and what solves with it must damp it; more samples are better"
        )
    if wide and len(wide) < len(layers):
        found.append(
            f"no gram, only its diagonal, for layers wider than {WIDEST} (--gram asks for it): {_named(wide)}"
        )
    return CalibrationReport(output, source, tuple(layers), open_file(output).size, tuple(found))


def _named(layers: list[Gathered]) -> str:
    return f"{layers[0].name}" + (f" and {len(layers) - 1} more layers" if len(layers) > 1 else "")


@dataclass(frozen=True)
class Gathered:
    """A layer whose inputs were gathered; `size` is what it takes in the file."""

    name: str
    rows: int
    width: int
    gram: bool
    size: int


@dataclass(frozen=True, repr=False)
class CalibrationReport(Shown):
    """`calibrate`: the layers in the order in which they ran, the file's size, and what is to be known of it."""

    output: str
    source: str
    layers: tuple[Gathered, ...]
    size: int
    notes: tuple[str, ...] = ()
