"""Models that make images and videos, as ComfyUI reads them from GGUF files: tensors under their own names, and
`general.architecture`, which the names tell.

By the names that ComfyUI-GGUF's converter goes by (tools/convert.py). Several models have a second form, that of
diffusers, which ComfyUI does not read from such files.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

BODY = "model.diffusion_model."  # before the names in a checkpoint that holds other models, too
MOST_AXES = 4  # of ggml's tensors
_BLOCK, _FEW = 256, 512


@dataclass(frozen=True, slots=True)
class Diffusion:
    """A kind of model: it is one where all names of one of `told` are there; `diffusers`: one that only the form of
    diffusers has. `exact`: parts of names of tensors that its loader takes as F32 only. `even`: tensors whose rows
    blocks of 256 do not divide lie in the file as rows that they do."""

    gguf: str
    told: tuple[tuple[str, ...], ...]
    diffusers: str = ""
    exact: tuple[str, ...] = ()
    even: bool = False

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """What a tensor of this shape has in a file."""
        size = prod(shape)
        if self.even and len(shape) > 1 and size >= _FEW and size % _BLOCK == 0 and shape[-1] % _BLOCK:
            return (size // _BLOCK, _BLOCK)
        return (shape[0], size // shape[0]) if len(shape) > MOST_AXES and shape[0] else shape


_KINDS = (
    Diffusion(
        "flux",
        (
            ("double_blocks.0.img_attn.proj.weight",),
            ("transformer_blocks.0.attn.norm_added_k.weight", "x_embedder.weight"),
        ),
        "transformer_blocks.0.attn.norm_added_k.weight",
    ),
    Diffusion(
        "sd3",
        (
            ("joint_blocks.0.x_block.attn.qkv.weight",),
            ("transformer_blocks.0.attn.add_q_proj.weight", "pos_embed.proj.weight"),
        ),
        "transformer_blocks.0.attn.add_q_proj.weight",
    ),
    Diffusion(
        "aura",
        (("double_layers.3.modX.1.weight",), ("joint_transformer_blocks.3.ff_context.out_projection.weight",)),
        "joint_transformer_blocks.3.ff_context.out_projection.weight",
    ),
    Diffusion(
        "hidream",
        (("caption_projection.0.linear.weight", "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight"),),
        exact=(".ff_i.gate.weight", "img_emb.emb_pos"),
    ),
    Diffusion(
        "cosmos",
        (("blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"),),
        exact=("pos_embedder",),
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
    ),
    Diffusion(
        "hyvid",
        (
            (
                "double_blocks.0.img_attn_proj.weight",
                "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight",
            ),
        ),
    ),
    Diffusion("wan", (("blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"),)),
    Diffusion(
        "qwen_image",
        (
            (
                "time_text_embed.timestep_embedder.linear_2.weight",
                "transformer_blocks.0.attn.norm_added_q.weight",
                "transformer_blocks.0.img_mlp.net.0.proj.weight",
            ),
        ),
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
    ),
    Diffusion("lumina2", (("cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"),)),
)


def diffusion_of(names: Collection[str]) -> tuple[Diffusion | None, bool]:
    """The kind of model that these names are of, None for others, and whether they are those of diffusers."""
    inner = {name.removeprefix(BODY) for name in names}
    for kind in _KINDS:
        if any(inner.issuperset(told) for told in kind.told):
            return kind, bool(kind.diffusers) and kind.diffusers in inner
    return None, False
