"""Language models that see, whose text model is one of the usual kind: the tower beside it is left as it is."""

from __future__ import annotations

from dataclasses import replace

from compressor.architectures.family import Beside, Family
from compressor.architectures.language_models import GEMMA4
from compressor.architectures.usual_tables import (
    ATTENTION,
    GATED,
    INTO_ATTENTION,
    INTO_GATED,
    KEYS,
    OUTER,
    SEES,
)

_BEFORE = ("vision_tower.", "multi_modal_projector.", "image_newline")
_LLAVA = Family(
    types=("llava", "llava_next", "mistral3", "internvl"),
    stack="layers",
    outer=OUTER,
    block=ATTENTION + GATED,
    prefixes=("language_model.model.", "model.language_model.", "language_model.", "model."),
    keys=KEYS,
    # of llama, which the first of them leave out
    defaults={"hidden": 4096, "neurons": 11008, "heads": 32, "layers": 32},
    part="text_config",
    inner=("llama", "mistral", "ministral3", "qwen2", "qwen3"),
    divisible=("llama",),
    beside=(Beside((*_BEFORE, *(f"model.{name}" for name in _BEFORE)), {"hidden": SEES}),),
    folds=INTO_ATTENTION + INTO_GATED,
)

WITH_VISION = (
    _LLAVA,
    replace(
        _LLAVA,
        types=("smolvlm", "idefics3"),
        prefixes=("model.text_model.", "text_model."),
        inner=("llama",),
        beside=(
            Beside(("model.vision_model.", "model.connector.", "vision_model.", "connector."), {"hidden": SEES}),
        ),
    ),
    replace(
        _LLAVA,
        types=("qwen2_vl", "qwen2_5_vl"),
        prefixes=("model.language_model.", "model."),
        defaults={},
        inner=(),
        beside=(Beside(("visual.", "model.visual."), {"hidden": SEES}),),
        bound_heads=True,
    ),
    replace(
        GEMMA4,
        types=("gemma4",),
        prefixes=("model.language_model.",),
        part="text_config",
        beside=(
            Beside(
                ("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
                {"hidden": SEES},
            ),
        ),
    ),
)
