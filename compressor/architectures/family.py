"""What is known of architectures, as data: which dimension of each tensor is which dimension of the model.

A line is a module (or a parameter) and the dimensions of its weight, as the file orders them:

* `hidden` the residual width, `encoded` that of an encoder whose outputs a decoder reads, which is the same,
  `embed` that of embeddings where it may be another; `q`, `kv` heads of queries, and of keys and values, `cross`
  those of attention to an encoder, `heads` one number for each head of queries; `neurons` of an MLP, `moe` those of
  an expert, `shared` those of a shared expert; `experts`; `-` what is never cut;
* `#` what is looked up and not summed over, nor ever cut: an embedding's rows;
* `a+b` are sections one after the other in a fused projection; `2a` (`3a`) has twice (three times) as many indices
  to a unit of a, side by side: a gate's and an up projection's of each neuron, the query and the gate of each head,
  query, key and value of each head;
* `a > b` is a weight [in, out], as GPT-2 has them; what stands before (`experts`) is neither.

A `*` in a name is a number, the expert's. A bias has the weight's output dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Kinds:
    """How a library tells the kind of each block from its number: `period` is an entry of the config, `default`
    what it is where that is silent. One block of each period is of kind `full`, the last or (`first`) the first;
    the rest are of kind `others`. `entry` is the list in the config that says it outright."""

    period: tuple[str, ...]
    default: int
    others: str | int = "sliding_attention"
    first: bool = False
    full: str | int = "full_attention"
    entry: str = "layer_types"


@dataclass(frozen=True)
class Beside:
    """Another part of the same files, which a cut leaves as it is: all tensors whose names begin so. `refuses` are
    the structures that cannot be cut where it is there, with the reason."""

    prefixes: tuple[str, ...]
    refuses: Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """Models of one wiring. Names are given without `prefixes`; blocks are numbered after `stack`.

    Models of several stacks (encoder and decoder, text and vision) have a family for each, with the same `types`;
    `name` is what that stack is called. Where their sizes are the same entry of one config, they are cut together.

    `keys`: what config.json calls the sizes, several names where versions differ; `defaults` are those that the
    library has for a config that is silent, by symbol: a size, or the entry whose size is taken. `times` are those
    that are so many times the width where the config is silent. `part` is the config within the config that has
    them, `inner` what may be its `model_type`. `implied`: entries that are the width where the config is silent,
    and must be said when that is cut. `bound_heads`: the width of a head is the hidden size over the number of
    heads, and no entry of the config can say otherwise. `divisible`: types, of config.json or of the config within
    it, whose config transformers refuses where the number of heads does not divide the width. `same_heads`: all
    blocks of the stack have the same heads, since what the first block knows of positions serves all. `many`: of
    each unit of that dimension so many indices, an entry of the config.

    `beside` are the parts around the model. `refuses`: structures that cannot be cut, with the reason. `only`:
    those that can where an entry of the config has this value, with the reason otherwise.

    `fixed_blocks`: the first blocks, of which so many cannot go, or as many as a list in the config has entries
    (its path), and why. `first_blocks`: entries that count the first blocks, which are of another kind, with the
    library's defaults. `kinds`: how `layer_types` follow from a block's number where the config has none.

    `heads`: modules that give logits and whose weight may be that of the embedding; it is where the config says
    `tie_word_embeddings`, or is silent and `tied`. `last_norms`: norms whose outputs these heads read.
    `grows`: embeddings are multiplied by the root of the width; `one_plus`: norms multiply by 1 + weight.

    `folds`: where a scale of single inputs can go without changing what the model computes: a line is a module
    whose outputs go nowhere but into the modules after it, with nothing between that would not pass a factor on.
    `:2` is the third section of a fused projection. Of two lines for the same readers the first one that a block
    has holds.
    """

    types: tuple[str, ...]
    stack: str
    outer: str
    block: str
    name: str = ""
    prefixes: tuple[str, ...] = ("model.",)
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    defaults: Mapping[str, int | str] = field(default_factory=dict)
    times: Mapping[str, int] = field(default_factory=dict)
    part: str = ""
    inner: tuple[str, ...] = ()
    implied: tuple[str, ...] = ()
    bound_heads: bool = False
    divisible: tuple[str, ...] = ()
    same_heads: bool = False
    many: Mapping[str, str] = field(default_factory=dict)
    beside: tuple[Beside, ...] = ()
    refuses: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[str, int | str, str]] = field(default_factory=dict)
    fixed_blocks: tuple[int | tuple[str, ...], str] = (0, "")
    first_blocks: Mapping[str, int] = field(default_factory=dict)
    kinds: Kinds | None = None
    heads: tuple[str, ...] = ("lm_head",)
    last_norms: tuple[str, ...] = ("norm",)
    tied: bool = False
    grows: bool = False
    one_plus: bool = False
    folds: str = ""
