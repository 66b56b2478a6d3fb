"""What tensors are by the model that they are in, where their names are those of layers as well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.architectures.roles import Role
from compressor.architectures.roles_by_model import roles_by_model

HEADS = (
    *("classifier", "score", "qa_outputs", "pre_classifier", "classifier.dense", "classifier.out_proj", "score.0"),
    *("classification_head.out_proj", "sequence_summary.summary", "logits_proj", "head.dense", "qa_outputs.dense"),
    *("cls.seq_relationship", "cls_classifier", "classifier.1", "projector", "start_logits.dense", "v_head"),
    *("module.score", "_orig_mod.classifier", "timm_model.head.fc"),
)
LAYERS = (
    *("bert.encoder.layer.0.output.dense", "model.layers.0.mlp.gate_proj", "vit.layers.0.classifier", "fc1"),
    *("bert.pooler.dense", "heads.0", "scores", "model.head.q_proj"),
)


@pytest.mark.parametrize(
    "task",
    [
        *("LlamaForSequenceClassification", "BertForTokenClassification", "T5ForQuestionAnswering"),
        *("ViTForImageClassification", "BertForMultipleChoice", "Qwen2ForProcessRewardModel", "DebertaRewardModel"),
        *("DeiTForImageClassificationWithTeacher", "FlaubertForQuestionAnsweringSimple", "Wav2Vec2ForXVector"),
    ],
)
def test_heads_of_tasks(task: str) -> None:
    names = [f"{name}.weight" for name in (*HEADS, *LAYERS)]
    found = roles_by_model({"architectures": [task]}, names)
    assert found == {f"{name}.weight": Role.HEAD for name in HEADS}
    assert not roles_by_model({"architectures": ["BertModel"]}, names)
    assert not roles_by_model(None, names)  # a plain network may call its layers so


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"pretrained_cfg": {"classifier": "head.fc"}}, {"head.fc"}),
        ({"pretrained_cfg": {"classifier": ["head", "head_dist"]}}, {"head", "head_dist"}),
        ({"classifier": "fc"}, {"fc"}),
        ({}, {"head.fc", "head", "head_dist", "fc", "classifier"}),
    ],
)
def test_heads_that_timm_names(config: Mapping[str, Any], heads: set[str]) -> None:
    names = ["head.fc.weight", "head.weight", "head_dist.weight", "fc.weight", "classifier.weight", "fc1.weight"]
    found = roles_by_model({"architecture": "resnet18", "num_classes": 10, **config}, names)
    assert found == {f"{name}.weight": Role.HEAD for name in heads}


@pytest.mark.parametrize(
    ("config", "names", "guessing"),
    [
        ({"medusa_num_heads": 2}, ("0.0.linear.weight", "0.1.weight", "1.0.linear.weight"), True),
        ({"model_type": "medusa"}, ("blocks.0.layers.0.weight", "lm_heads.0.weight"), True),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, ("fc.weight",), True),
        ({}, ("fc.weight", "d2t"), True),
        ({"model_type": "llama"}, ("fc.weight", "0.0.linear.weight", "0.1.weight"), False),
        (None, ("fc.weight", "0.0.linear.weight", "0.1.weight"), False),
    ],
)
def test_layers_that_guess_tokens_ahead(config: Any, names: tuple[str, ...], guessing: bool) -> None:
    found = roles_by_model(config, (*names, "midlayer.mlp.up_proj.weight"))
    weights = [name for name in names if name.endswith(".weight")]
    assert found == (dict.fromkeys(weights, Role.SPECULATIVE) if guessing else {})


@pytest.mark.parametrize("verb", ["prune", "quantize"])
def test_a_classifier_stays_dense_and_include_treats_it(tmp_path: Path, verb: str) -> None:
    (tmp_path / "in").mkdir()
    random = np.random.default_rng(0)
    names = ("bert.encoder.layer.0.output.dense.weight", "classifier.weight")
    tensors = {name: random.standard_normal((64, 64)).astype(np.float32) for name in names}
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    how: dict[str, Any] = {"sparsity": 0.5} if verb == "prune" else {"bits": 8}
    run = getattr(compressor, verb)
    report = run(tmp_path / "in", tmp_path / "o", **how)
    jobs = {job.spec.name: job for job in report.plan.jobs}
    assert jobs[names[0]].steps
    (why,) = jobs["classifier.weight"].left_alone
    assert (why.reason, why.role) == ("output head (--include treats it)", Role.HEAD)
    stored = load_file(tmp_path / "o" / "model.safetensors")
    np.testing.assert_array_equal(stored["classifier.weight"], tensors["classifier.weight"])
    if verb == "quantize":
        declared = json.loads((tmp_path / "o" / "config.json").read_text())["quantization_config"]
        assert "classifier" in declared["ignore"]
    report = run(tmp_path / "in", tmp_path / "p", include=["*"], **how)
    assert all(job.steps for job in report.plan.jobs)
    run(tmp_path / "in" / "model.safetensors", tmp_path / "alone.safetensors", **how)
    alone = load_file(tmp_path / "alone.safetensors")
    assert "classifier.weight" not in alone or not np.array_equal(alone["classifier.weight"], tensors[names[1]])
