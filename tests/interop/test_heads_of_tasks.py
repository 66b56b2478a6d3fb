"""Folders of classifiers, whose heads stay dense, answer in transformers as the restored model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")
pytest.importorskip("compressed_tensors", reason="needs compressed-tensors: make test-interop")

from compressor import api
from compressor.architectures.roles import Role

pytestmark = pytest.mark.interop
transformers.utils.logging.disable_progress_bar()

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "pad_token_id": 0,
}
MODELS = {
    "BertForSequenceClassification": ("BertConfig", {"classifier.weight"}),
    "BertForQuestionAnswering": ("BertConfig", {"qa_outputs.weight"}),
    "RobertaForTokenClassification": ("RobertaConfig", {"classifier.weight"}),
    "RobertaForSequenceClassification": (
        "RobertaConfig",
        {"classifier.dense.weight", "classifier.out_proj.weight"},
    ),
    "LlamaForSequenceClassification": ("LlamaConfig", {"score.weight"}),
}


@pytest.mark.parametrize("how", [{"bits": 4, "group_size": 32}, {"bits": 8, "layout": "int-quantized"}])
@pytest.mark.parametrize("name", MODELS)
def test_classifiers(tmp_path: Path, name: str, how: dict[str, Any]) -> None:
    config, heads = MODELS[name]
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    kind(getattr(transformers, config)(**SIZES)).save_pretrained(tmp_path / "in")
    report = api.quantize(tmp_path / "in", tmp_path / "out", **how)
    left = {job.spec.name for job in report.plan.jobs for why in job.left_alone if why.role is Role.HEAD}
    assert left == heads
    api.restore(tmp_path / "out", tmp_path / "restored")
    loaded, told = kind.from_pretrained(tmp_path / "out", output_loading_info=True, dtype=torch.float32)
    assert not told["missing_keys"]
    restored = kind.from_pretrained(tmp_path / "restored", dtype=torch.float32)
    tokens = torch.arange(1, 13)[None]
    with torch.no_grad():
        answers, expected = (model.eval()(tokens).to_tuple()[0] for model in (loaded, restored))
    # W8A8 rounds what enters the layers, too
    torch.testing.assert_close(answers, expected, atol=0.02 if "layout" in how else 1e-6, rtol=1e-4)
