"""Models that make images and videos, as ComfyUI reads them from GGUF files: tensors under their own names, and
`general.architecture`, which the names tell.

By the names that ComfyUI-GGUF's converter goes by (tools/convert.py), and what its quantizer leaves as numbers
(tools/lcpp.patch; of qwen_image, which that does not know, the same places). Several models have a second form,
that of diffusers, which ComfyUI does not read from such files.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

BODY = "model.diffusion_model."  # before the names in a checkpoint that holds other models, too
MOST_AXES = 4  # of ggml's tensors
_PREFIXES = ("model.", "net.")  # before the names in what was saved around the model; their loader knows BODY only
_BLOCK, _FEW = 256, 512
_SMALL = 1024  # weights of a tensor that is no smaller in bfloat16 to speak of


@dataclass(frozen=True, slots=True)
class Diffusion:
    """A kind of model: it is one where all names of one of `told` are there; `diffusers`: one that only the form of
    diffusers has. `exact`: parts of names of tensors that its loader takes as F32 only. `even`: tensors whose rows
    blocks of 256 do not divide lie in the file as rows that they do. `numbers`: parts of names (with a dot before
    each) of tensors that are not quantized by default. `unused`: parts of names of what belongs to its training."""

    gguf: str
    told: tuple[tuple[str, ...], ...]
    diffusers: str = ""
    exact: tuple[str, ...] = ()
    even: bool = False
    numbers: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def is_exact(self, name: str, size: int) -> bool:
        """Whether a tensor of so many weights is F32 in a file, whatever else is."""
        return size <= _SMALL or any(part in name for part in self.exact)

    def stays_numbers(self, name: str) -> bool:
        """Whether a tensor is one of those at the ends of the model that are no codes unless they are asked for."""
        inner = f".{name.removeprefix(BODY)}"
        return any(part in inner for part in self.numbers)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a tensor of this shape has in a file."""
        size = prod(shape)
        if self.even and len(shape) > 1 and size >= _FEW and size % _BLOCK == 0 and shape[-1] % _BLOCK:
            return (size // _BLOCK, _BLOCK)
        return (shape[0], size // shape[0]) if len(shape) > MOST_AXES and shape[0] else shape


_ENDS = (".img_in.", ".txt_in.", ".time_in.", ".vector_in.", ".guidance_in.", ".final_layer.")
_ENDS_OF_UNETS = (
    *(".class_embedding.", ".time_embedding.", ".add_embedding.", ".time_embed.", ".label_emb."),
    *(".conv_in.", ".conv_out.", ".input_blocks.0.0.weight", ".out.2.weight"),
)
_KINDS = (
    Diffusion(
        "flux",
        (
            ("double_blocks.0.img_attn.proj.weight",),
            ("transformer_blocks.0.attn.norm_added_k.weight", "x_embedder.weight"),
        ),
        "transformer_blocks.0.attn.norm_added_k.weight",
        numbers=_ENDS,
    ),
    Diffusion(
        "sd3",
        (
            ("joint_blocks.0.x_block.attn.qkv.weight",),
            ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
        ),
        "transformer_blocks.0.attn.add_q_proj.weight",
        numbers=(
            *(f".{one}_embedder." for one in "txy"),
            ".context_embedder.",
            ".time_text_embed.",
            ".final_layer.",
            ".proj_out.",
        ),
    ),
    Diffusion(
        "aura",
        (("double_layers.3.modX.1.weight",), ("joint_transformer_blocks.3.ff_context.out_projection.weight",)),
        "joint_transformer_blocks.3.ff_context.out_projection.weight",
        numbers=(".t_embedder.", ".init_x_linear.", ".modF.1.", ".cond_seq_linear.", ".final_linear."),
    ),
    Diffusion(
        "hidream",
        (("caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight"),),
        exact=(".ff_i.gate.weight", "img_emb.emb_pos"),
        numbers=(*(f".{one}_embedder." for one in "ptx"), ".caption_projection.", ".ff_i.gate.", ".final_layer."),
    ),
    Diffusion(
        "cosmos",
        (("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"),),
        exact=("pos_embedder",),
        numbers=(*(f".{one}_embedder." for one in ("p", "t", "x", "pos")), ".t_embedding_norm.", ".final_layer."),
        unused=("_extra_state", "accum_"),
    ),
    Diffusion(
        "ltxv",
        (
            (
                "adaln_single.emb.timestep_embedder.linear_2.weight",
                "transformer_blocks.27.scale_shift_table",
                "caption_projection.linear_2.weight",
            ),
        ),
        numbers=(".adaln_single.", ".caption_projection.", ".patchify_proj.", ".proj_out."),
    ),
    Diffusion(
        "hyvid",
        (
            (
                "double_blocks.0.img_attn_proj.weight",
                "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight",
            ),
        ),
        numbers=_ENDS,
    ),
    Diffusion(
        "wan",
        (("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"),),
        numbers=(
            *(f".{one}_embedding." for one in ("patch", "text", "time")),
            ".time_projection.",
            ".img_emb.",
            ".head.",
        ),
    ),
    Diffusion(
        "qwen_image",
        (
            (
                "time_text_embed.timestep_embedder.linear_2.weight",
                "transformer_blocks.0.attn.norm_added_q.weight",
                "transformer_blocks.0.img_mlp.net.0.proj.weight",
            ),
        ),
        numbers=(".img_in.", ".txt_in.", ".time_text_embed.", ".norm_out.", ".proj_out."),
    ),
    Diffusion(
        "sdxl",
        (
            ("down_blocks.0.downsamplers.0.conv.weight", "add_embedding.linear_1.weight"),
            (
                "input_blocks.3.0.op.weight",
                "input_blocks.6.0.op.weight",
                "output_blocks.2.2.conv.weight",
                "output_blocks.5.2.conv.weight",
            ),
            ("label_emb.0.0.weight",),
        ),
        even=True,
        numbers=_ENDS_OF_UNETS,
    ),
    Diffusion(
        "sd1",
        (
            ("down_blocks.0.downsamplers.0.conv.weight",),
            (
                "input_blocks.3.0.op.weight",
                "input_blocks.6.0.op.weight",
                "input_blocks.9.0.op.weight",
                "output_blocks.2.1.conv.weight",
                "output_blocks.5.2.conv.weight",
                "output_blocks.8.2.conv.weight",
            ),
        ),
        even=True,
        numbers=_ENDS_OF_UNETS,
    ),
    Diffusion(
        "lumina2",
        (("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"),),
        numbers=(".t_embedder.", ".x_embedder.", ".cap_embedder.", "_refiner.", ".final_layer."),
    ),
)


KINDS = {kind.gguf: kind for kind in _KINDS}


def prefix_of(names: Collection[str]) -> str:
    """What stands before the names of the model: of a checkpoint before some of them, of a model saved within
    another before all."""
    if any(name.startswith(BODY) for name in names):
        return BODY
    return next((one for one in _PREFIXES if names and all(name.startswith(one) for name in names)), "")


def diffusion_of(names: Collection[str]) -> tuple[Diffusion | None, bool]:
    """The kind of model that these names are of, None for others, and whether they are those of diffusers."""
    prefix = prefix_of(names)
    inner = {name.removeprefix(prefix) for name in names}
    for kind in _KINDS:
        if any(inner.issuperset(told) for told in kind.told):
            return kind, bool(kind.diffusers) and kind.diffusers in inner
    return None, False
