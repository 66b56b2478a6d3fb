"""What help says of options that methods share and describe each in its own way: one text for a user who has not
chosen a method yet. The methods and their defaults follow it in brackets."""

from __future__ import annotations

from collections.abc import Mapping

SHARED: Mapping[tuple[str, str], str] = {
    ("distill", "rank"): "How many columns the left factor (low-rank) or an adapter (residual) has",
    (
        "distill",
        "energy",
    ): "Share of the squared norm that the factors keep (low-rank), or of the squared difference that the "
    "adapter gives back (residual)",
    ("distill", "seed"): "Where random numbers begin",
    (
        "quantize",
        "granularity",
    ): "Which weights share a scale: those of a group, a row (channel), a square block, or "
    "the whole tensor. Left out, int below 8 bits and whatever is given --group-size take groups, others rows",
    ("quantize", "group_size"): "How many neighbours in a row share a scale, 128 unless said otherwise; a power of "
    "two for nf4",
    (
        "quantize",
        "method",
    ): "How scales are chosen: by the range of the weights (absmax), for the least squared error "
    "(search), half-quadratic (hqq), or for the least error on the inputs of --stats (gptq)",
    (
        "quantize",
        "layout",
    ): "How codes are laid out in the file. auto is what compressed-tensors loads, where it has a "
    "layout for them; mlx, gptq and compressor are what their names say; naive-quantized leaves activations alone, "
    "float-quantized has them rounded too; base3 packs five ternary codes into a byte, 2bit four",
    ("quantize", "bits"): "Bits of a code (int), or the b of a step of 2^(b-1) (step)",
}
