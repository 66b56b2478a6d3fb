"""Structured cuts of models of several stacks: transformers loads what is left, and computes with it what the
masked original computes.

Which units went is told from the weights alone, as in `test_structured_models.py`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")

from safetensors.torch import save_file
from test_structured_models import PIXELS, TOKENS, VISION, Narrow, assert_equal, found_in, weights

import compressor
from compressor.core.errors import UsageError

pytestmark = pytest.mark.interop

BART = {
    "vocab_size": 64,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
}
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 6, "d_ff": 48, "num_layers": 3, "num_heads": 4}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 63,
    "pad_token_id": 0,
}
TOWERS = {"text_config": TEXT, "vision_config": {**VISION, "num_hidden_layers": 4}}

# name → configuration class, its sizes, model class
STACKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "whisper": ("WhisperConfig", WHISPER, "WhisperForConditionalGeneration"),
    "bart": ("BartConfig", BART, "BartForConditionalGeneration"),
    "mbart": ("MBartConfig", BART, "MBartForConditionalGeneration"),
    "marian": ("MarianConfig", BART, "MarianMTModel"),
    "pegasus": ("PegasusConfig", BART, "PegasusForConditionalGeneration"),
    "t5": ("T5Config", {**T5, "num_decoder_layers": 4}, "T5ForConditionalGeneration"),
    "flan-t5": ("T5Config", {**T5, "feed_forward_proj": "gated-gelu"}, "T5ForConditionalGeneration"),
    "mt5": ("MT5Config", {**T5, "num_decoder_layers": 4}, "MT5ForConditionalGeneration"),
    "umt5": ("UMT5Config", {**T5, "num_decoder_layers": 4}, "UMT5ForConditionalGeneration"),
    "t5-encoder": ("T5Config", T5, "T5EncoderModel"),
    "clip": ("CLIPConfig", {**TOWERS, "projection_dim": 20}, "CLIPModel"),
    "siglip": ("SiglipConfig", TOWERS, "SiglipModel"),
    "clip-vision": ("CLIPVisionConfig", TOWERS["vision_config"], "CLIPVisionModel"),
    "clip-text": ("CLIPTextConfig", TEXT, "CLIPTextModel"),
    "siglip-vision": ("SiglipVisionConfig", TOWERS["vision_config"], "SiglipVisionModel"),
    "siglip-text": ("SiglipTextConfig", TEXT, "SiglipTextModel"),
}
ALONE = ("t5-encoder", "clip-vision", "clip-text", "siglip-vision", "siglip-text")
T5S = [name for name in STACKS if "t5" in name]
SHARED = [name for name in T5S if name != "umt5"]  # whose first block's biases serve all
BOUND = [name for name in STACKS if name not in T5S]
# what makes units, and what reads them, in a block: pairs of endings of names
NEURONS = (("fc1.weight", "fc2.weight"), ("wi.weight", "wo.weight"), ("wi_1.weight", "wo.weight"))
HEADS = (("SelfAttention.v.weight", "SelfAttention.o.weight"), ("Attention.v.weight", "Attention.o.weight"))


def make(path: Path, name: str) -> Path:
    """A random model whose every weight matters, saved as the library saves it."""
    config, sizes, kind = STACKS[name]
    torch.manual_seed(7)
    model = getattr(transformers, kind)(getattr(transformers, config)(**sizes))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            vector = parameter.ndim == 1
            table = "embed" in key or "relative" in key or "shared" in key
            parameter.copy_(torch.randn_like(parameter) * (0.5 if vector or table else 0.2) + vector)
        for key, buffer in model.named_buffers():
            if key.endswith("final_logits_bias"):
                buffer.copy_(torch.randn_like(buffer))
    model.save_pretrained(path, max_shard_size="60KB")
    return path


def load(path: Path, name: str) -> Any:
    kind = getattr(transformers, STACKS[name][2])
    model, info = kind.from_pretrained(path, output_loading_info=True, attn_implementation="eager")
    problems = {str(key) for keys in info.values() for key in keys}
    assert not problems, sorted(problems)[:8]
    return model.eval()


def outputs(model: Any) -> Any:
    kind = type(model).__name__
    sound = {"input_features": torch.linspace(-1, 1, 2 * 8 * 32).reshape(2, 8, 32)}
    given: dict[str, Any] = sound if "Whisper" in kind else {"input_ids": TOKENS}
    if "Vision" in kind:
        given = {"pixel_values": PIXELS}
    elif kind in ("CLIPModel", "SiglipModel"):
        given["pixel_values"] = PIXELS
    elif "Text" not in kind and "Encoder" not in kind:
        given["decoder_input_ids"] = TOKENS.flip(1)
    with torch.no_grad():
        found = model(**given)
    if "text_embeds" in found:
        return torch.cat([found["text_embeds"], found["image_embeds"]])
    return found[0] if "pooler_output" not in found else found["pooler_output"]


def cut_of(tmp_path: Path, name: str, **options: Any) -> tuple[Path, Path]:
    source = make(tmp_path / "source", name)
    compressor.prune(source, tmp_path / "cut", **options)
    return source, tmp_path / "cut"


def masked(tmp_path: Path, source: Path, cut: Path, wiring: Any) -> Path:
    """The source with zeros where a reading matrix reads what the cut has not."""
    before, after = weights(source), weights(cut)
    seen = 0
    for name in before:
        for making, reading in wiring:
            partner = name.removesuffix(making) + reading
            if name.endswith(making) and partner in before:
                gone = torch.ones(len(before[name]), dtype=torch.bool)
                gone[found_in(before[name], after[name], 0)] = False
                before[partner][:, gone] = 0
                seen += bool(gone.any())
    assert seen >= 2
    out = tmp_path / "masked"
    out.mkdir()
    save_file({key: tensor.contiguous() for key, tensor in before.items()}, out / "model.safetensors")
    (out / "config.json").write_text((source / "config.json").read_text())
    return out


@pytest.mark.parametrize("name", STACKS)
def test_neurons(tmp_path: Path, name: str) -> None:
    source, cut = cut_of(tmp_path, name, structure="neurons", fraction=0.35)
    path = masked(tmp_path, source, cut, NEURONS)
    wanted = outputs(load(path, name))
    assert_equal(outputs(load(cut, name)), wanted)
    assert not torch.allclose(wanted, outputs(load(source, name)), atol=1e-3)


@pytest.mark.parametrize("name", T5S)
def test_heads(tmp_path: Path, name: str) -> None:
    source, cut = cut_of(tmp_path, name, structure="heads", count=1)
    path = masked(tmp_path, source, cut, HEADS)
    assert_equal(outputs(load(cut, name)), outputs(load(path, name)))
    config = json.loads((cut / "config.json").read_text())
    assert (config["num_heads"], config["d_kv"]) == (3, 6)


@pytest.mark.parametrize("name", BOUND)
def test_heads_that_no_config_can_say_are_refused(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(UsageError, match="no loader could be told") as caught:
        compressor.prune(source, tmp_path / "cut", structure="heads", count=1)
    way = {"marian": "neurons, layers", "pegasus": "neurons, layers"}.get(name, 'structure="hidden"')
    assert way in caught.value.remedy


class Stepped(torch.nn.Module):
    """A block that does nothing."""

    def __init__(self, biases: bool) -> None:
        super().__init__()
        self.biases = biases  # passes on what the first block knows of positions, for itself and of the encoder

    def forward(self, hidden_states: Any, *given: Any, **_: Any) -> Any:
        return (hidden_states, given[1], given[4]) if self.biases else hidden_states


def stacks_of(model: Any) -> list[tuple[str, Any]]:
    return [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and path.endswith(("layers", "block"))
    ]


@pytest.mark.parametrize("name", STACKS)
def test_layers(tmp_path: Path, name: str) -> None:
    """The same block of each stack; and blocks of one stack only."""
    source, cut = cut_of(tmp_path, name, structure="layers", layers="1")
    model = load(source, name)
    for _, blocks in stacks_of(model):
        blocks[1] = Stepped(name in SHARED)
    assert_equal(outputs(load(cut, name)), outputs(model))
    if name in ALONE:
        return
    for which in (
        ("decoder", "encoder") if "encoder_layers" in STACKS[name][1] or "t5" in name else ("text", "vision")
    ):
        out = tmp_path / which
        compressor.prune(source, out, structure="layers", layers="1-2", stack=which)
        model = load(source, name)
        for path, blocks in stacks_of(model):
            if which in path:
                blocks[1], blocks[2] = Stepped(name in SHARED), Stepped(name in SHARED)
        assert_equal(outputs(load(out, name)), outputs(model))


@pytest.mark.parametrize("name", ["t5", "mt5", "flan-t5"])
def test_blocks_that_hold_the_positions_stay(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(UsageError, match="number 0 of 3 cannot go: what it knows of positions serves all"):
        compressor.prune(source, tmp_path / "cut", structure="layers", layers="0", stack="encoder")


def test_an_encoder_that_the_config_counts_for_both(tmp_path: Path) -> None:
    """Configs of the first T5 have no num_decoder_layers: there are as many as num_layers says."""
    source = make(tmp_path / "source", "flan-t5")
    config = json.loads((source / "config.json").read_text())
    del config["num_decoder_layers"]
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    for which, sizes in (("encoder", (2, 3)), ("decoder", (3, 2))):
        out = tmp_path / which
        compressor.prune(source, out, structure="layers", count=1, stack=which)
        model = load(out, "flan-t5")
        assert (len(model.encoder.block), len(model.decoder.block)) == sizes


def test_configs_that_say_a_size_twice(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "bart")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    compressor.prune(source, tmp_path / "cut", structure="layers", count=1)
    model = load(tmp_path / "cut", "bart")
    assert (len(model.model.encoder.layers), len(model.model.decoder.layers)) == (2, 3)
    source = make(tmp_path / "towers", "clip")
    config = json.loads((source / "config.json").read_text())
    config["text_config_dict"] = {key: config["text_config"][key] for key in TEXT}
    (source / "config.json").write_text(json.dumps(config))
    compressor.prune(source, tmp_path / "fewer", structure="neurons", count=8, stack="text")
    assert load(tmp_path / "fewer", "clip").text_model.encoder.layers[0].mlp.fc1.weight.shape[0] == 32


WIDE = [name for name in STACKS if name not in ("marian", "pegasus", "siglip")]


@pytest.mark.parametrize("name", WIDE)
def test_hidden(tmp_path: Path, name: str) -> None:
    """Norms divide by statistics over the width, so that of the masked model must leave out what is masked."""
    source, cut = cut_of(tmp_path, name, structure="hidden", fraction=0.25)
    before, after = weights(source), weights(cut)
    kept = {tower: kept_of(before, after, tower) for tower in towers_of(name)}
    model, small = load(source, name), load(cut, name)
    reference = dict(small.named_parameters())
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            stays = next((positions for tower, positions in kept.items() if tower in path), None)
            for axis, (old, new) in enumerate(zip(parameter.shape, reference[path].shape, strict=True)):
                if (old, new) == (32, 24):
                    lost = lost_of(before, after, path, axis, stays)
                    parameter.movedim(axis, 0)[lost] = 0
    for path, module in list(model.named_modules()):
        if "norm" in type(module).__name__.lower() and module.weight.shape == (32,):
            stays = next(positions for tower, positions in kept.items() if tower in path)
            parent = model.get_submodule(path.rpartition(".")[0])
            setattr(parent, path.rpartition(".")[2], Narrow(module, stays))
    found, wanted = outputs(small), outputs(model)
    if name in ("t5", "flan-t5", "umt5") and wanted.shape[-1] == 64:
        wanted = wanted * (32 / 24) ** 0.5  # these models divide by the root of the width before the tied head
    stays = next(iter(kept.values()))
    assert_equal(found, wanted if wanted.shape == found.shape else wanted[..., stays])


def towers_of(name: str) -> tuple[str, ...]:
    return ("text", "vis") if name == "clip" else ("",)


def kept_of(before: dict[str, Any], after: dict[str, Any], tower: str) -> Any:
    table = re.compile(r"(shared|embed_positions|token_embedding|position_embedding|embed_tokens)\.weight$")
    key = next(name for name in before if tower in name and table.search(name))
    kept = torch.tensor(found_in(before[key], after[key], 1))
    assert len(kept) == 24
    return kept


def lost_of(before: dict[str, Any], after: dict[str, Any], path: str, axis: int, kept: Any) -> Any:
    """The positions along an axis that went: channels, or of attention's inside whole heads."""
    lost = torch.ones(32, dtype=torch.bool)
    if re.search(r"(\.[qkv]_proj\.|in_proj)", path) and axis == 0:
        lost[:] = False  # what nothing reads does no harm
    elif path.endswith("out_proj.weight") and axis == 1:
        query = path.replace("out_proj", "q_proj")
        query = query if query in before else path.replace("out_proj.weight", "in_proj_weight")
        query = next(key for key in before if key.endswith(query))
        rows = found_in(before[query].index_select(1, kept), after[query], 0)
        lost[[row for row in rows if row < 32]] = False
        assert int(lost.sum()) == 8
    else:
        lost[kept] = False
    return lost


@pytest.mark.parametrize("name", ["marian", "pegasus", "siglip"])
def test_widths_that_cannot_be_cut(tmp_path: Path, name: str) -> None:
    source = make(tmp_path / "source", name)
    with pytest.raises(UsageError, match=r"positions are sines|is compared with what the text tower gives"):
        compressor.prune(source, tmp_path / "cut", structure="hidden", count=8)
    if name == "siglip":
        compressor.prune(source, tmp_path / "text", structure="hidden", count=8, stack="text")
        model = load(tmp_path / "text", name)
        assert model.text_model.head.weight.shape == (32, 24)
        assert model.config.vision_config.hidden_size == 32


def test_embeddings_that_grow_with_the_width(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "bart")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "scale_embedding": True}))
    with pytest.raises(UsageError, match="multiplied by the root of the width") as caught:
        compressor.prune(source, tmp_path / "cut", structure="hidden", count=8)
    assert caught.value.remedy == "What can be cut is neurons, layers"


def test_stacks_by_name(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "t5")
    with pytest.raises(UsageError, match="this t5 model has no stack 'text'") as caught:
        compressor.prune(source, tmp_path / "cut", structure="layers", count=1, stack="text")
    assert caught.value.remedy == "It has encoder, decoder"
    with pytest.raises(UsageError, match="one d_ff for encoder and decoder, so they are cut together"):
        compressor.prune(source, tmp_path / "cut", structure="neurons", count=8, stack="decoder")
    with pytest.raises(UsageError, match=r"method depth: a t5 model has several stacks \(encoder, decoder\)"):
        compressor.distill(source, tmp_path / "cut", method="depth", count=2)
    with pytest.raises(UsageError, match="method subclone: a t5 model has several stacks"):
        compressor.distill(source, tmp_path / "cut", method="subclone", config=source)
    alone = make(tmp_path / "alone", "clip-text")
    with pytest.raises(UsageError, match="this model has only one"):
        compressor.prune(alone, tmp_path / "cut", structure="layers", count=1, stack="text")
