"""A Hugging Face model without its numbers: built on torch's meta device, filled from the checkpoint part by part.

Numbers are read by this tool and not by transformers, so a quantized or pruned checkpoint runs as what its codes
stand for, in float32. No code from the folder is run, and nothing is downloaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from compressor.architectures.heads import is_head
from compressor.checkpoint.checkpoint import Checkpoint, Tensor
from compressor.checkpoint.rows import Rows, read_whole
from compressor.core.errors import CompressorError, InputError, UsageError
from compressor.core.lazy import np
from compressor.core.text import printable
from compressor.core.workspace import Array, Workspace
from compressor.files.source import Source

_BLOCK = 1 << 20
ELSEWHERE = "Record activations with the recipe in docs/statistics.md, and give them with --activations"


def libraries() -> tuple[Any, Any]:
    """torch and transformers. UsageError with the line that installs them."""
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            f"--text needs torch and transformers ({printable(str(error), 100)})",
            remedy="pip install 'compressor[calibrate]'",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """transformers speaks of what it misses; here that is an error or is on purpose."""
    logging = importlib.import_module("transformers.utils.logging")
    before, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if shown:
            logging.enable_progress_bar()


@contextmanager
def foreign(what: str, path: str) -> Iterator[None]:
    """Turn whatever a library raises into an InputError that says what it was doing."""
    try:
        yield
    except (CompressorError, MemoryError):
        raise
    except Exception as error:
        said = printable(str(error).partition("\n")[0], 200)
        raise InputError(f"transformers cannot {what}: {type(error).__name__}: {said}", file=path) from error


class MetaModel:
    """A model of the class that config.json names. `blocks` is its list of layers, all of whose tensors are meta;
    what lies outside is filled by `fill_outside`, the output head by `fill_head`.

    `described` is the source whose config.json is taken where the checkpoint has none; `elsewhere` is the way on
    where a model cannot be run.
    """

    def __init__(self, checkpoint: Checkpoint, described: Source | None = None, elsewhere: str = ELSEWHERE) -> None:
        self.elsewhere = elsewhere
        self.torch, transformers = libraries()
        self.checkpoint, self.path = checkpoint, checkpoint.path
        own = described is None or checkpoint.source.config is not None
        self.described = checkpoint.source if own or described is None else described
        if self.described.config is None:
            raise UsageError(
                f"{printable(self.path)}: --text runs Hugging Face folders, with config.json and a tokenizer",
                remedy=self.elsewhere,
            )
        config = self._config(transformers, self.described.config)
        with foreign("build the model", self.path), _on_meta(self.torch):
            self.model = self._class(transformers, config)(config).train(mode=False)
        self.config = self.model.config
        self.linear = (self.torch.nn.Linear, importlib.import_module("transformers.pytorch_utils").Conv1D)
        self.prefix = getattr(self.model, "base_model_prefix", "")
        self.blocks, self.inside = self._blocks()
        self.embedding = self.model.get_input_embeddings()
        self.head = self.model.get_output_embeddings()
        self.vocabulary = 0 if self.head is None else int(self.head.weight.shape[0])

    def _config(self, transformers: Any, said: Mapping[str, Any]) -> Any:
        with foreign("read its config.json", self.path):
            if self.described.kind == "folder":
                config = transformers.AutoConfig.from_pretrained(
                    self.described.path, local_files_only=True, trust_remote_code=False
                )
            else:  # a GGUF file's, which lies nowhere
                config = transformers.CONFIG_MAPPING[said["model_type"]].from_dict(dict(said))
        if config.is_encoder_decoder or any(hasattr(config, f"{kind}_config") for kind in ("vision", "audio")):
            raise InputError(
                "is no plain language model, so text alone does not run it", file=self.path, remedy=self.elsewhere
            )
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config  # its codes are decoded here
        config.use_cache = False
        return config

    def _class(self, transformers: Any, config: Any) -> Any:
        names = getattr(config, "architectures", None)
        named = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
        if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
            return named
        if names:
            raise InputError(f"transformers has no model class {printable(str(names[0]), 80)}", file=self.path)
        return transformers.AutoModel._model_mapping[type(config)]

    def _blocks(self) -> tuple[Any, str]:
        """The largest outermost list of modules, and its name."""
        lists, pending = list[tuple[int, str, Any]](), [("", self.model)]
        while pending:
            name, module = pending.pop()
            if isinstance(module, self.torch.nn.ModuleList) and len(module):
                lists.append((sum(p.numel() for p in module.parameters()), name, module))
                continue
            pending += [(f"{name}.{child}".lstrip("."), one) for child, one in module.named_children()]
        if not lists:
            raise InputError(
                "has no list of layers that could be run one by one", file=self.path, remedy=self.elsewhere
            )
        _, name, module = max(lists, key=lambda found: found[0])
        return module, name

    # ---- names and numbers -----------------------------------------------------------------------------

    def stored(self, name: str) -> str | None:
        """What the checkpoint calls a parameter of the model; with or without the prefix of the bare model."""
        prefix = f"{self.prefix}."
        for called in (name, name.removeprefix(prefix), prefix + name):
            if called in self.checkpoint.tensors:
                return called
        return None

    def numbers(self, name: str, shape: Sequence[int], instead: Mapping[str, Tensor] | None = None) -> Any:
        """A parameter's numbers from the checkpoint, or from what stands there `instead`, in float32. InputError
        where it lacks them, where they are of another shape, or not finite."""
        called = self.stored(name)
        if called is None:
            raise InputError(
                "is not in the model, and its class in transformers has it (mixtures of experts are fused there)",
                file=self.path,
                tensor=name,
                remedy=self.elsewhere,
            )
        tensor = (instead or {}).get(called) or self.checkpoint.tensors[called]
        if tensor.spec.shape != tuple(shape) or not tensor.spec.is_float:
            raise InputError(
                f"is {tensor.spec.dtype} {list(tensor.spec.shape)}, where config.json asks for {list(shape)}",
                file=self.path,
                tensor=called,
            )
        with np.errstate(all="ignore"):
            found = read_whole(tensor).astype(np.float32, copy=False)
        if not np.isfinite(found).all():
            raise InputError("holds NaN or infinite values", file=self.path, tensor=called)
        return self.torch.from_numpy(np.require(found, requirements=["W", "C"]))

    def put(self, name: str, tensor: Any) -> None:
        """Make a tensor the parameter of this name."""
        parent, _, leaf = name.rpartition(".")
        parameter = self.torch.nn.Parameter(tensor, requires_grad=False)
        self.model.get_submodule(parent)._parameters[leaf] = parameter

    def fill(self, prefix: str, module: Any, instead: Mapping[str, Tensor] | None = None) -> None:
        """Read the numbers of a module from the checkpoint into it; `instead` are tensors that stand for those of
        the same names."""
        for name, parameter in module.named_parameters(prefix):
            self.put(name, self.numbers(name, parameter.shape, instead))
        for name, buffer in module.named_buffers(prefix):
            self._put_buffer(name, buffer)

    def _put_buffer(self, name: str, buffer: Any) -> None:
        if buffer.is_meta or (buffer.is_floating_point() and self.stored(name) is not None):
            parent, _, leaf = name.rpartition(".")
            self.model.get_submodule(parent)._buffers[leaf] = self.numbers(name, buffer.shape)

    def drop(self, prefix: str, module: Any) -> None:
        """Forget the numbers of a module."""
        for name, parameter in module.named_parameters(prefix):
            self.put(name, self.torch.empty(parameter.shape, device="meta"))

    def fill_outside(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Read what lies outside the blocks: of the embedding the rows that `ids` use, and nothing of the output
        head, whose inputs are all that is asked for. The names of linear layers that the checkpoint lacks."""
        absent = []
        skip = {self.torch.nn.Embedding: self.embedding, self.torch.nn.Linear: self.head}.values()
        for name, module in self.model.named_modules():
            if f"{name}.".startswith(f"{self.inside}."):
                continue
            if (
                isinstance(module, self.linear)
                and module is not self.head
                and self.stored(f"{name}.weight") is None
            ):
                absent.append(name)
                continue
            if any(module is one for one in skip):
                continue
            for leaf, parameter in list(module.named_parameters(name, recurse=False)):
                self.put(leaf, self.numbers(leaf, parameter.shape))
            for leaf, buffer in list(module.named_buffers(name, recurse=False)):
                self._put_buffer(leaf, buffer)
        self._embed(sorted({one for window in ids for one in window}))
        return absent

    def name_of(self, module: Any) -> str:
        """What the model calls one of its modules."""
        return str(next(name for name, one in self.model.named_modules() if one is module))

    def fill_head(self, start: int, stop: int) -> None:
        """Read the output head's rows of these tokens, so that the model gives their logits and no others."""
        name = self.name_of(self.head)
        self.head.weight = self._head_part(f"{name}.weight", start, stop)
        if self.head.bias is not None:
            self.head.bias = self._head_part(f"{name}.bias", start, stop)

    def _head_part(self, name: str, start: int, stop: int) -> Any:
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        called = (
            self.stored(name) or (self.stored(tied[name]) if name in tied else None) or self._renamed_head(name)
        )
        if called is None:
            raise InputError("is not in the model, which its outputs need", file=self.path, tensor=name)
        spec = self.checkpoint.tensors[called].spec
        if spec.shape[:1] != (self.vocabulary,):
            raise InputError(
                f"is {list(spec.shape)}, where config.json tells {self.vocabulary} tokens",
                file=self.path,
                tensor=called,
            )
        if len(spec.shape) == 1:
            found = self.numbers(called, spec.shape)[start:stop]
        else:
            found = self.torch.from_numpy(self._rows(called, list(range(start, stop))))
        return self.torch.nn.Parameter(found, requires_grad=False)

    def _renamed_head(self, name: str) -> str | None:
        """The checkpoint's only output head, where files call it otherwise than its class in transformers does."""
        found = [one for one in self.checkpoint.tensors if is_head(one)]
        return found[0] if len(found) == 1 and name.endswith(".weight") else None

    def _embed(self, used: list[int]) -> None:
        name = self.name_of(self.embedding)
        called = self.stored(f"{name}.weight")
        rows, columns = self.embedding.weight.shape
        if used[0] < 0 or used[-1] >= rows:
            bad = used[0] if used[0] < 0 else used[-1]
            raise InputError(f"has {rows} tokens, and token {bad} is none of them", file=self.path)
        if called is None or self.checkpoint.tensors[called].spec.shape != (rows, columns):
            self.numbers(f"{name}.weight", (rows, columns))  # says what is wrong
            return
        table = self.torch.from_numpy(self._rows(called, used))
        place = self.torch.zeros(rows, dtype=self.torch.int64)
        place[self.torch.tensor(used)] = self.torch.arange(len(used))
        self.put(f"{name}.weight", table)
        self.embedding.padding_idx = None
        self.embedding.register_forward_pre_hook(lambda _, args: (place[args[0]], *args[1:]))

    def _rows(self, name: str, used: list[int]) -> Array:
        """Rows of a stored matrix in float32."""
        tensor = self.checkpoint.tensors[name]
        rows, columns = tensor.spec.matrix
        step = max(1, _BLOCK // columns // tensor.align) * tensor.align
        found, work, at = np.empty((len(used), columns), np.float32), Workspace(), 0
        while at < len(used):
            start = used[at] // step * step
            stop = min(start + step, rows)
            block = Rows(tensor, columns, start, stop, work, "embedding").block(start, stop)
            until = at
            while until < len(used) and used[until] < stop:
                until += 1
            found[at:until] = block[[row - start for row in used[at:until]]]
            at = until
        if not np.isfinite(found).all():
            raise InputError("holds NaN or infinite values", file=self.path, tensor=name)
        return found


@contextmanager
def _on_meta(torch: Any) -> Iterator[None]:
    """Parameters take no memory, and buffers, which are computed, do: modules make the former by `torch.empty`."""
    from torch.overrides import TorchFunctionMode

    class OnMeta(TorchFunctionMode):  # type: ignore[misc]  # torch is not there for mypy
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if func is torch.empty and kwargs.get("device") is None:
                kwargs["device"] = "meta"
            return func(*args, **kwargs)

    with OnMeta():
        yield
