"""What is written down of model families, beside the models that transformers builds."""

from __future__ import annotations

import re
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

from bench.architectures.tied_weights import tied_weights, unknown
from compressor.architectures.conv1d import is_conv1d
from compressor.architectures.roles import Role, is_embedding, role_of

pytestmark = pytest.mark.interop

# Of many kinds; their default sizes, with few layers, on the meta device: nothing is allocated
FAMILIES = (
    *(
        "LlamaForCausalLM",
        "Qwen2MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "DeepseekV3ForCausalLM",
        "GptOssForCausalLM",
    ),
    *(
        "MixtralForCausalLM",
        "Gemma3ForConditionalGeneration",
        "JambaForCausalLM",
        "MambaForCausalLM",
        "RwkvForCausalLM",
    ),
    *(
        "Mamba2ForCausalLM",
        "FalconH1ForCausalLM",
        "RecurrentGemmaForCausalLM",
        "GPT2LMHeadModel",
        "CTRLLMHeadModel",
    ),
    *("T5ForConditionalGeneration", "WhisperForConditionalGeneration", "BartForConditionalGeneration"),
    *(
        "BertForPreTraining",
        "RobertaForMaskedLM",
        "ModernBertForMaskedLM",
        "DebertaV2ForMaskedLM",
        "XLNetLMHeadModel",
    ),
    *("FunnelForMaskedLM", "ProphetNetForConditionalGeneration", "FSMTForConditionalGeneration"),
    *(
        "ViTModel",
        "SwinModel",
        "Swinv2Model",
        "Dinov2WithRegistersModel",
        "BeitModel",
        "LevitModel",
        "ConvNextV2Model",
    ),
    *("CLIPModel", "SiglipModel", "Blip2ForConditionalGeneration", "SamModel", "Sam2Model", "Mask2FormerModel"),
    *("RTDetrV2ForObjectDetection", "GroundingDinoForObjectDetection", "OneFormerForUniversalSegmentation"),
    *("Wav2Vec2ConformerModel", "BarkModel", "DacModel", "VitsModel", "Qwen2_5OmniThinkerForConditionalGeneration"),
    *("MiniMaxForCausalLM", "DeepseekV4ForCausalLM", "TvpModel", "Wav2Vec2ForPreTraining", "XCLIPModel"),
    *("ImageGPTModel", "DecisionTransformerModel", "OpenAIGPTModel", "Phi3ForCausalLM", "GPTBigCodeForCausalLM"),
)
_LAYERS = ("Linear", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d")
# What no layer's weight is
_NO_WEIGHTS = (Role.VECTOR, Role.TOKEN, Role.NORM, Role.BIAS, Role.GAIN, Role.MASK)
# Weights that are parameters of a module of their own
_MATRICES = re.compile(
    r"(experts|shared_experts)\.(gate_up_proj|down_proj|up_proj)$|in_proj_weight$|original1$|weight_[ih]h_l\d$"
    r"|rel_attn\.[qkvor]$|r_kernel$|_gate_weight$|_projection(_weight)?$|(gate|router|experts)\.weight$"
)


def build(name: str) -> Any:
    kind = getattr(transformers, name)
    config = kind.config_class()
    with torch.device("meta"):
        return kind(config), config.to_dict()


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_what_their_modules_are(name: str) -> None:
    model, config = build(name)
    wrong = []
    for path, module in model.named_modules():
        for called, parameter in module.named_parameters(recurse=False):
            full, shape = f"{path}.{called}".removeprefix("."), tuple(parameter.shape)
            role, kind = role_of(full, shape), type(module).__name__
            if len(shape) < 2:
                right = role is Role.VECTOR
            elif isinstance(module, torch.nn.Embedding):
                right = is_embedding(full)
            elif called == "weight" and {one.__name__ for one in type(module).__mro__} & set(_LAYERS):
                right = role not in _NO_WEIGHTS
                assert is_conv1d(config, full) == (kind == "Conv1D"), full
            else:
                right = (role in (Role.LAYER, Role.ROUTER)) == bool(_MATRICES.search(full))
            if not right:
                wrong.append(f"{full} {list(shape)} of {kind}: {role.name}")
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_most_linear_layers_are_treated(name: str) -> None:
    """Roles are for exceptions: of the weights in linear layers nearly all are a layer's."""
    model, _ = build(name)
    sizes = {Role.LAYER: 0}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            role = role_of(f"{path}.weight", tuple(module.weight.shape))
            if role not in (Role.HEAD, Role.EMBEDDING, Role.TOWER):
                sizes[role] = sizes.get(role, 0) + module.weight.numel()
    assert sizes[Role.LAYER] >= 0.97 * sum(sizes.values())


def test_every_tied_head_is_known() -> None:
    found = tied_weights()
    assert {"proj_out.weight", "decoder.weight", "lm_loss.weight", "head.weight"} <= found.keys()
    assert not unknown(found)
