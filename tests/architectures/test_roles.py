"""What a tensor is to its model, by its name and shape; which of them stages treat."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor import UsageError
from compressor.architectures.heads import heads_of, is_head
from compressor.architectures.roles import Role, is_embedding, role_of

ROLES: dict[Role, list[tuple[str, tuple[int, ...]]]] = {
    Role.LAYER: [
        ("model.layers.0.mlp.down_proj.weight", (64, 128)),
        ("encoder.layer.0.attention.self.query.weight", (64, 64)),
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 128, 64)),
        ("blocks.0.attn.in_proj_weight", (192, 64)),
        ("rnn.weight_hh_l0", (256, 64)),
        ("blk.0.ffn_gate.weight", (256, 64)),
        ("blk.0.ffn_gate_exps.weight", (4, 256, 64)),
        ("dense.kernel", (64, 32)),
        ("conv.weight_v", (32, 16, 3)),
        ("conv.parametrizations.weight.original1", (32, 16, 3)),
        ("features.0.weight", (32, 3, 3, 3)),
        ("dw.weight", (64, 1, 3, 3)),  # a kernel like any other
        ("conv1d.weight", (32, 16, 3)),
        ("conv1d.weight", (64, 16, 1)),
        ("model.reference_points.weight", (2, 256)),  # computed from queries
        ("model.layers.0.shared_transf.feed_forward.gate_proj.weight", (64, 64)),  # Zamba's, shared between layers
        ("norm1.linear.weight", (384, 64)),  # a layer inside a norm
        ("transformer_blocks.0.attn.proj_out.weight", (64, 64)),
        ("model.encoder.decoder.fc1.weight", (64, 64)),
        ("model.vision_embed_tokens.weight", (64, 300)),  # Fuyu's is a linear layer
        ("head.fc.weight", (10, 64)),
        ("token_proj.weight", (64, 64)),
        ("position_net.0.weight", (64, 64)),
        ("a", (8, 8)),  # plain arrays say nothing
        ("D", (8, 8)),
        ("query", (8, 8)),
        ("w", (1, 784)),
        ("indexer.index_kpool_compress_gate", (64, 128)),
        ("mamba.x_proj_weight", (2, 64, 128)),
        ("rg_lru.input_gate_weight", (4, 16, 16)),
        ("visual.proj", (64, 64)),
        ("text_projection", (64, 64)),
        ("const", (8, 8)),
        ("state", (8, 8)),
        ("net.modulation.lin.weight", (64, 64)),
        ("mlp_tokens.fc1.weight", (64, 64)),
    ],
    Role.COMPUTED: [
        ("fc.parametrizations.weight.original", (64, 64)),
        ("fc.parametrizations.weight.0.base", (64, 64)),
    ],
    Role.VECTOR: [
        ("fc1.bias", (64,)),
        ("model.norm.weight", (64,)),
        ("mixer.D", (64,)),
        ("decoder.block.0.snake1.gate", (1, 64, 1)),
        ("memory.spacer", (1, 256)),
    ],
    Role.HEAD: [
        *((f"{name}.weight", (96, 64)) for name in ("lm_head", "model.lm_head", "embed_out", "output", "proj_out")),
        *((f"{name}.weight", (96, 64)) for name in ("decoder", "lm_loss", "lm_head.out_proj", "output_projection")),
        *(
            (f"{name}.weight", (96, 64))
            for name in ("head", "pred_layer.proj", "mlm_score.decoder", "head.decoder")
        ),
        *((f"{name}.weight", (96, 64)) for name in ("vocab_projector", "cls.predictions.decoder", "lm_heads.3")),
        ("model.decoder.output_projection.weight", (96, 64)),
        ("text_decoder.cls.predictions.decoder.weight", (96, 64)),
        ("model.layers.61.shared_head.head.weight", (96, 64)),
        ("model.mtp.layers.0.shared_head.weight", (96, 64)),
        ("v_head.summary.weight", (1, 64)),
        ("class_embed.2.weight", (91, 64)),
        ("model.decoder.bbox_embed.5.layers.1.weight", (64, 64)),
        ("_orig_mod.proj_out.weight", (96, 64)),
        ("module.head.weight", (96, 64)),
        ("codebooks_head.weight", (31, 64, 96)),
        ("objective.weight", (64, 8)),
    ],
    Role.EMBEDDING: [
        ("model.embed_tokens.weight", (96, 64)),
        ("shared.weight", (96, 64)),
        ("transformer.wte.weight", (96, 64)),
        ("semantic.input_embeds_layer.weight", (96, 64)),
        ("fine.input_embeds_layers.3.weight", (96, 64)),
        ("model.segment_emb.weight", (2, 64)),
        ("emb.0.weight", (96, 64)),
        ("rwkv.emb.weight", (96, 64)),
        ("transformer.w.weight", (96, 64)),
        ("model.visual_embeddings_table.weight", (96, 64)),
        ("queries_embedder.weight", (100, 64)),
        ("model.level_embed", (4, 64)),
        ("quantizer.0.codebook.weight", (96, 8)),
        ("token_embd.weight", (96, 64)),
        ("token_types.weight", (2, 64)),
        ("quantizer.codevectors", (1, 640, 64)),
        ("enc.emb_g.weight", (96, 64)),
        ("quantize.implicit_codebook", (96, 8)),
        ("y_embedder.embedding_table.weight", (1001, 64)),
        ("caption_projection.y_embedding", (120, 64)),
    ],
    Role.ROUTER: [
        ("model.layers.0.block_sparse_moe.router.weight", (16, 64)),
        ("model.layers.3.mlp.gate.weight", (8, 64)),
        ("block_sparse_moe.router.weight", (8, 64)),
        ("mlp.shared_expert_gate.weight", (1, 64)),
        ("mlp.router.classifier.weight", (8, 64)),
        ("moe.moe_gate.weight", (8, 64)),
        ("blk.0.ffn_gate_inp.weight", (8, 64)),
    ],
    Role.TOWER: [
        ("model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", (64, 64)),
        ("visual.blocks.0.attn.qkv.weight", (192, 64)),
        ("audio_tower.layers.0.fc1.weight", (64, 64)),
        ("model.multi_modal_projector.linear_1.weight", (64, 64)),
        ("model.connector.modality_projection.proj.weight", (64, 64)),
        ("v.blk.0.attn_q.weight", (64, 64)),
        ("mm.0.weight", (64, 64)),
    ],
    Role.SPECULATIVE: [
        ("medusa_head.0.0.linear.weight", (64, 64)),
        ("medusa_head.0.1.weight", (96, 64)),
        ("eagle_layer.fc.weight", (64, 128)),
        ("model.layers.61.eh_proj.weight", (64, 128)),
        ("mtp.fc.weight", (64, 128)),
        ("model.mtp_layers.0.input_proj.weight", (64, 128)),
        ("model.mtp_linear_proj.0.weight", (64, 128)),
    ],
    Role.TOKEN: [
        ("detr_decoder.reference_points.weight", (200, 4)),
        ("embeddings.cls_token", (1, 1, 64)),
        ("embeddings.mask_token", (1, 64)),
        ("embeddings.register_tokens", (1, 4, 64)),
        ("vit.registers", (4, 64)),
        ("qformer.query_tokens", (1, 32, 64)),
        ("resampler.latents", (64, 64)),
        ("head.probe", (1, 1, 64)),
        ("vision.class_embedding", (1, 1, 64)),
        ("mask_decoder.mask_tokens.weight", (4, 64)),
        ("mask_decoder.iou_token.weight", (1, 64)),
        ("cls_token", (1, 1, 64)),
        ("query.weight", (200, 64)),
        ("attn.null_kv", (2, 4, 16)),
        ("embeddings.storage_tokens", (1, 4, 64)),
        ("query_768_resolution.weight", (144, 64)),
        ("visual_prompter.pad_left", (1, 48, 3, 16, 8)),
        ("b4.const", (64, 4, 4)),
        ("const_input.input", (1, 64, 4, 4)),
        ("linker.dummy_node", (1, 64)),
        ("position_net.null_positive_feature", (4, 64)),
        ("embed.sub_img_feature_extensor", (1, 1, 1, 64)),
        ("vit.reg_token", (1, 4, 64)),
        ("vit.dist_token", (1, 1, 64)),
        ("blocks.0.global_token", (1, 4, 64)),
    ],
    Role.POSITION: [
        ("vit.pos_embed", (1, 197, 64)),
        ("position_embd.weight", (512, 64)),
        ("pos_embed", (1, 197, 64)),
        ("embeddings.position_embeddings", (1, 17, 64)),
        ("embeddings.position_embeddings.weight", (512, 64)),
        ("blocks.0.attn.relative_position_bias_table", (169, 4)),
        ("block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4)),
        ("blocks.0.attn.rel_pos_h", (27, 64)),
        ("attn.pos_bias_u", (4, 16)),
        ("rel_attn.r_w_bias", (4, 16)),
        ("attn.rel_pos_emb.weight", (9, 64)),
        ("attn.attention_biases", (4, 196)),
        ("model.positional_embedding_vlm", (9, 64)),
        ("embeddings.position_embeddings.weights.0", (1, 64, 32)),
        ("transformer.wpe.weight", (64, 64)),
        ("rope.freqs", (64, 16)),
        ("rope.cos_cached", (1, 1, 64, 16)),
        ("indexer.index_kpool_compress_ape", (16, 64)),
        ("compressor.ape", (4, 64)),
        ("rel_logits_proj.proj", (16, 64)),
        ("attn.relative_position_bias.proj", (16, 64)),
        ("attn.rpb", (4, 13, 13)),
        ("maskmem_tpos_enc", (7, 1, 1, 64)),
        ("attn.alibi", (1, 4, 64)),
        ("rope.freqs_cis", (64, 16)),
        ("pos_embed.height_rel", (13, 64)),
        ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", (2, 64)),
        ("patch_embed.pos_frequencies", (3, 4, 64)),
        ("pos_embed.pos_embed", (1, 64, 64)),
        ("text_model.positional_embedding", (77, 64)),
        ("layers.0.blocks.0.attn.cpb_mlp.0.weight", (512, 2)),
        ("encoder.layers.0.blocks.0.attention.self.continuous_position_bias_mlp.2.weight", (4, 512)),
    ],
    Role.STATE_SPACE: [
        ("layers.0.mixer.A_log", (64, 16)),
        ("blocks.0.att.w1", (64, 32)),
        ("blocks.0.att.v2", (32, 64)),
        ("blocks.0.att.g1", (64, 128)),
        ("layers.0.mixer.D", (2, 64)),
        ("layers.0.mamba.dt_proj.weight", (64, 4)),
        ("blk.0.ssm_a", (64, 16)),
        ("blk.0.ssm_dt.weight", (64, 4)),
        ("layers.0.mamba.dt_proj_weight", (2, 64, 4)),
        ("layers.0.mixer.dt_bias", (2, 64)),
        ("blocks.0.attention.time_mix_key", (1, 1, 64)),
        ("blocks.0.attention.time_decay", (4, 16)),
        ("parcae.input_matrix_continuous", (64, 64)),
        ("self_attn.query_decay", (4, 16, 16)),
        ("self_attn.diagonal_decay", (1, 4, 16, 16)),
        ("blocks.0.att.r_k", (4, 16)),
        ("attn.bonus", (4, 16)),
        ("filter.poles", (64, 8, 1, 2)),
        ("filter.residues", (64, 8, 1, 2)),
        ("kernel.log_dt", (4, 16)),
        ("kernel.A_imag", (4, 16)),
        ("mixer.init_states", (4, 16, 16)),
        ("model.lower_bounds", (4, 64)),
    ],
    Role.CONVOLUTION: [
        ("layers.0.mixer.conv1d.weight", (64, 1, 4)),
        ("layers.0.linear_attn.conv1d.weight", (64, 1, 4)),
        ("layers.0.self_attn.q_conv1d.weight", (64, 1, 4)),
        ("layers.0.conv.conv.weight", (64, 1, 3)),
        ("layers.0.mixer.conv1d.weight", (64, 4)),
        ("backbone.layers.0.mixer.conv1d.weight", (64, 4, 1)),  # MLX
        ("mlp_conv.static_weight", (64, 4)),
        ("filter.short_filter_weight", (192, 1, 3)),
    ],
    Role.NORM: [
        ("self_attn.q_norm.weight", (4, 16)),
        ("grn.weight", (1, 1, 1, 64)),
        ("LayerNorm.weight", (64, 8)),
    ],
    Role.BIAS: [
        ("mlp.experts.gate_up_proj_bias", (4, 128)),
        ("mlp.moe_statics.e_score_correction_bias", (1, 64)),
        ("attn.bias", (1, 1, 64, 64)),
        ("attn.bias_u", (4, 16)),
    ],
    Role.GAIN: [
        ("conv.weight_g", (32, 1, 1)),
        ("conv.parametrizations.weight.original0", (32, 1, 1)),
        ("attn.logit_scale", (4, 1, 1)),
        ("logit_scale", (1, 1)),
        ("block.layer_scale_1", (64, 1, 1)),
        ("snake.alpha", (1, 64, 1)),
        ("transformer_blocks.0.scale_shift_table", (6, 64)),
        ("scale_shift_table_a2v_ca_audio", (5, 64)),
        ("blocks.0.modulation", (1, 6, 64)),
        ("blocks.0.ada_gss", (1, 1, 6, 64)),
        ("layers.0.alpha_dense", (1, 1, 64, 2)),
    ],
    Role.MIXING: [
        ("model.layers.0.attn_hc.fn", (24, 64)),
        ("model.hc_head.hc_fn", (4, 64)),
        ("layers.0.hc_attn_fn", (24, 64)),
        ("layers.0.hc_ffn_base", (4, 16)),
    ],
    Role.MASK: [("fc1.weight_mask", (64, 64)), ("attn.tril", (64, 64))],
    Role.BUFFER: [
        ("dense.weight_integer", (64, 64)),
        ("codebook.embed_avg", (96, 64)),
        ("featurizer.fb", (1, 80, 257)),
        ("logmel_extractor.melW", (257, 64)),
        ("spectrogram_extractor.stft.conv_real.weight", (257, 1, 512)),
        ("stft.forward_basis", (258, 1, 256)),
        ("dfl.conv.weight", (1, 16, 1, 1)),
        ("model.22.anchor_grid", (3, 1, 3, 2)),
        ("to_rgb.blur.kernel", (4, 4)),
        ("b8.conv0.resample_filter", (4, 4)),
        ("mixer.conv_state", (64, 4)),
        ("attn.kv_cache", (2, 64, 16)),
        ("optimizer.exp_avg_sq", (64, 64)),
    ],
}


@pytest.mark.parametrize(
    ("role", "name", "shape"), [(role, *one) for role, cases in ROLES.items() for one in cases]
)
def test_what_tensors_are(role: Role, name: str, shape: tuple[int, ...]) -> None:
    assert role_of(name, shape) is role


def test_every_role_is_some_tensors() -> None:
    assert ROLES.keys() == set(Role)


@pytest.mark.parametrize("verb", ["prune", "quantize"])
def test_what_is_no_weight_is_left_alone_with_its_reason(tmp_path: Path, verb: str) -> None:
    cases = {name: (role, shape) for role, cases in ROLES.items() for name, shape in cases}
    treated = (Role.LAYER,) if verb == "quantize" else (Role.LAYER, Role.TOWER)
    random = np.random.default_rng(0)
    save_file(
        {name: random.standard_normal(shape).astype(np.float32) for name, (_, shape) in cases.items()},
        tmp_path / "in.safetensors",
    )
    options = {"sparsity": 0.5} if verb == "prune" else {"bits": 8, "granularity": "channel"}
    report = getattr(compressor, verb)(tmp_path / "in.safetensors", tmp_path / "o.safetensors", **options)
    for job in report.plan.jobs:
        role = cases[job.spec.name][0]
        assert bool(job.steps) == (role in treated), job.spec.name
        if role not in treated:
            (why,) = job.left_alone
            assert why.role is role
            assert why.reason.startswith(role.value)
            assert why.asked == (not role.is_weight)
    before, after = load_file(tmp_path / "in.safetensors"), load_file(tmp_path / "o.safetensors")
    for name, (role, _) in cases.items():
        if role not in treated:
            np.testing.assert_array_equal(after[name], before[name])
    report = getattr(compressor, verb)(
        tmp_path / "in.safetensors", tmp_path / "all.safetensors", include=["*"], **options
    )
    assert all(job.steps for job in report.plan.jobs)


def test_strict_refuses_weights_that_are_left_alone_and_nothing_else(tmp_path: Path) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in (ROLES[Role.TOKEN] + ROLES[Role.STATE_SPACE])}
    save_file({**tensors, "fc.weight": np.eye(8, dtype=np.float32)}, tmp_path / "in.safetensors")
    compressor.prune(tmp_path / "in.safetensors", tmp_path / "o.safetensors", sparsity=0.5, strict=True)
    save_file({**tensors, "proj_out.weight": np.eye(8, dtype=np.float32)}, tmp_path / "in.safetensors")
    with pytest.raises(UsageError, match="output head"):
        compressor.prune(tmp_path / "in.safetensors", tmp_path / "p.safetensors", sparsity=0.5, strict=True)


def test_tables_have_no_inputs() -> None:
    assert all(map(is_embedding, ("model.embed_tokens.weight", "vit.pos_embed", "mask_decoder.mask_tokens.weight")))
    layers = ("lm_head.weight", "model.layers.0.mlp.gate.weight", "fc.weight", "blocks.0.attn.cpb_mlp.0.weight")
    assert not any(map(is_embedding, layers))


# ---- heads in the configs of folders -------------------------------------------------------------------

TIED = {
    "whisper": "proj_out",
    "moonshine": "proj_out",
    "modernbert": "decoder",
    "rwkv": "head",
    "git": "output",
    "t5gemma": "lm_head.out_proj",
    "xlm": "pred_layer.proj",
    "biogpt": "output_projection",
    "fsmt": "model.decoder.output_projection",
    "vilt": "mlm_score.decoder",
    "xlnet": "lm_loss",
    "rt_detr_v2": "model.decoder.bbox_embed.2.layers.1",
}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("how", [{"bits": 8}, {"bits": 4, "group_size": 32}, {"scheme": "fp8"}, {"scheme": "nf4"}])
def test_heads_without_a_tensor_are_named(tmp_path: Path, kind: str, inside: bool, how: dict[str, object]) -> None:
    """The file has no weight of a tied head, and the loader makes a linear layer of it all the same."""
    (tmp_path / "in").mkdir()
    save_file({"model.layers.0.fc1.weight": np.eye(64, dtype=np.float32)}, tmp_path / "in" / "model.safetensors")
    config = (
        {"model_type": "vision-encoder-decoder", "decoder": {"model_type": kind}}
        if inside
        else {"model_type": kind}
    )
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    if kind == "rwkv" and not inside and how.get("scheme") == "nf4":  # which bitsandbytes' kernel reads otherwise
        with pytest.raises(UsageError, match="no loader takes such a folder"):
            compressor.quantize(tmp_path / "in", tmp_path / "o", **how)
        return
    compressor.quantize(tmp_path / "in", tmp_path / "o", **how)
    declared = json.loads((tmp_path / "o" / "config.json").read_text())["quantization_config"]
    head = f"decoder.{TIED[kind]}" if inside else TIED[kind]
    if "ignore" in declared:
        entries = declared["ignore"]
        matched = [one for one in entries if one == head or (one[:3] == "re:" and re.match(one[3:], head))]
    else:
        entries = declared["llm_int8_skip_modules"]
        matched = [one for one in entries if head.endswith(one) or re.match(rf"{one}(?=\.|$)", head)]
    assert matched
    layer = "model.layers.0.fc1"
    assert not [one for one in entries if one == layer or re.match(one.removeprefix("re:"), layer)]


def test_a_head_that_is_treated_is_not_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ("proj_out.weight", "lm_head.dense.weight", "model.layers.0.fc1.weight")
    save_file({name: np.eye(64, dtype=np.float32) for name in names}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps({"model_type": "whisper"}))
    for number, how in enumerate(({"bits": 8}, {"scheme": "nf4"})):
        compressor.quantize(tmp_path / "in", tmp_path / f"o{number}", include=["*"], **how)  # type: ignore[arg-type]
    declared = json.loads((tmp_path / "o0" / "config.json").read_text())["quantization_config"]
    entries = [one.removeprefix("re:") for one in declared["ignore"]]
    assert not [one for one in entries for name in names if re.fullmatch(one, name.removesuffix(".weight"))]
    assert [one for one in entries if re.fullmatch(one, "lm_head")]
    declared = json.loads((tmp_path / "o1" / "config.json").read_text())["quantization_config"]
    for entry in declared["llm_int8_skip_modules"]:
        for name in names:
            module = name.removesuffix(".weight")
            assert not module.endswith(entry)
            assert not re.match(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))", module), (entry, module)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("model.embed_tokens.weight", {"model_type": "llama"}, "int4 of embeddings: vLLM [0-9.]+ takes no codes"),
        ("h.0.mlp.c_fc.weight", {"model_type": "gpt_bigcode"}, "int4 of linear layers: .*vLLM [0-9.]+ takes it"),
    ],
)
def test_the_plan_says_which_loaders_take_it(tmp_path: Path, name: str, config: dict[str, str], words: str) -> None:
    (tmp_path / "in").mkdir()
    save_file({name: np.eye(64, dtype=np.float32)}, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    report = compressor.quantize(
        tmp_path / "in", tmp_path / "o", bits=4, group_size=32, include=["*"], dry_run=True
    )
    assert re.search(words, " ".join(report.plan.notes))
    (tmp_path / "in" / "config.json").write_text('{"model_type": "gpt2"}')
    if "c_fc" in name:
        with pytest.raises(UsageError, match="int4 of transposed Conv1D layers: no loader takes such a folder"):
            compressor.quantize(tmp_path / "in", tmp_path / "o", bits=4, group_size=32, include=["*"], dry_run=True)


def test_heads_of_models() -> None:
    assert "proj_out" not in set(heads_of({"model_type": "llama"}))  # a layer of Flux's blocks is called so
    assert "proj_out" in set(heads_of({"model_type": "whisper"}))
    assert is_head("lm_head.weight")
    assert not is_head("lm_head.bias")
