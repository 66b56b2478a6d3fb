"""What `compare --text` says of outputs, against whole models in transformers and torch's own divergence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import compressor
from compressor.core.errors import InputError, UsageError

pytestmark = pytest.mark.interop
torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
transformers = pytest.importorskip("transformers", reason="needs transformers: make test-interop")

from interop.test_calibration import DECODER, ENCODER, MODELS, TEXT, save_model, save_tokenizer, windows_of

LENGTH, COUNT = 32, 9


@pytest.fixture(autouse=True)
def _text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)


def noisy(folder: Path, to: Path, scale: float = 0.05, only: str = "") -> Path:
    """The model with noise of a relative size on its matrices."""
    to.mkdir()
    random = np.random.default_rng(0)
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, array in tensors.items():
        if array.ndim > 1 and only in name:
            noise = random.standard_normal(array.shape) * scale * np.sqrt(np.mean(array.astype(np.float64) ** 2))
            tensors[name] = (array + noise).astype(array.dtype)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def whole(path: Path) -> Any:
    kind = getattr(transformers, transformers.AutoConfig.from_pretrained(path).architectures[0])
    return kind.from_pretrained(path, dtype=torch.float32).eval()


def given(path: Path, windows: list[list[int]]) -> Any:
    model = whole(path)
    with torch.no_grad():
        return model(input_ids=torch.tensor(windows))


def divergence(a: Any, b: Any) -> Any:
    """Torch's own, row by row."""
    p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
    return torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1).flatten()


def compared(a: Path, b: Path, tmp_path: Path, **more: Any) -> Any:
    return compressor.compare(a, b, text=tmp_path / "text.txt", samples=COUNT, length=LENGTH, **more).loss


def pair(name: str, tmp_path: Path) -> tuple[Path, Path, list[list[int]]]:
    kind, config, special = MODELS[name]
    a = save_model(tmp_path / "a", kind, config(), special=special)
    return a, noisy(a, tmp_path / "b"), windows_of(special, LENGTH, 1000)


LANGUAGE = [name for name in MODELS if "LM" in MODELS[name][0]]


@pytest.mark.parametrize("name", LANGUAGE)
def test_language_models_lose_what_torch_says(name: str, tmp_path: Path) -> None:
    a, b, windows = pair(name, tmp_path)
    np.save(tmp_path / "ids.npy", np.array(windows, np.int32))
    found = compressor.compare(a, b, tokens=tmp_path / "ids.npy").loss.outputs
    one, other = (given(path, windows).logits for path in (a, b))
    ahead = "Masked" not in MODELS[name][0]
    if ahead:
        targets = torch.tensor(windows)[:, 1:].flatten()
        one, other = one[:, :-1], other[:, :-1]
        for mine, logits in zip(found.perplexity, (one, other), strict=True):
            wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), targets).exp()
            assert mine == pytest.approx(float(wanted), rel=1e-5)
        assert found.kind == "language model"
    else:
        assert (found.kind, found.perplexity) == ("masked language model", None)
    values = divergence(one, other)
    assert found.count == len(values)
    assert found.kld == pytest.approx(float(values.mean()), rel=1e-4)
    assert found.kld_999 == pytest.approx(float(values.quantile(0.999, interpolation="higher")), rel=1e-3)
    assert found.agreement == pytest.approx(float((one.argmax(-1) == other.argmax(-1)).double().mean()), abs=0.005)


def test_a_classifier_and_encoders(tmp_path: Path) -> None:
    a, b, windows = pair("bert classes", tmp_path)
    np.save(tmp_path / "ids.npy", np.array(windows))
    found = compressor.compare(a, b, tokens=tmp_path / "ids.npy").loss.outputs
    one, other = (given(path, windows).logits for path in (a, b))
    assert (found.kind, found.count) == ("classifier", len(windows))
    assert found.kld == pytest.approx(float(divergence(one, other).mean()), rel=1e-4)
    assert found.agreement == float((one.argmax(-1) == other.argmax(-1)).double().mean())
    for how, take in (("mean_tokens", lambda x: x.mean(1)), ("cls_token", lambda x: x[:, 0])):
        kind, config, special = MODELS["bert"]
        a = save_model(tmp_path / how, kind, config(), special=special)
        (a / "1_Pooling").mkdir()
        (a / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{how}": True}))
        tensors = load_file(a / "model.safetensors")
        small = {name: array for name, array in tensors.items() if "pooler" not in name}
        save_file(small, a / "model.safetensors", metadata={"format": "pt"})  # as many encoders are: without it
        compressor.quantize(a, tmp_path / f"{how}4", bits=4, granularity="channel", exclude=["embed*"])
        compressor.restore(tmp_path / f"{how}4", tmp_path / f"{how}r")
        found = compressor.compare(a, tmp_path / f"{how}4", tokens=tmp_path / "ids.npy").loss.outputs
        one, other = (take(given(path, windows).last_hidden_state) for path in (a, tmp_path / f"{how}r"))
        wanted = float(torch.nn.functional.cosine_similarity(one, other).mean())
        assert found.cosine == pytest.approx(wanted, abs=1e-5)
        assert found.kld is None


def test_whatever_the_other_side_is_stored_as(tmp_path: Path) -> None:
    """A quantized folder, an archive, a GGUF file and a single file give what the restored folder gives."""
    config = transformers.LlamaConfig(**DECODER | {"hidden_size": 64, "head_dim": 16, "intermediate_size": 96})
    a = save_model(tmp_path / "a", "LlamaForCausalLM", config)
    compressor.quantize(a, tmp_path / "packed", bits=4, group_size=32)
    compressor.quantize(a, tmp_path / "archived", bits=4, group_size=32, store="archive")
    compressor.restore(tmp_path / "packed", tmp_path / "dense")
    compressor.quantize(a / "model.safetensors", tmp_path / "one.safetensors", bits=4, group_size=32)
    found = {
        name: compared(a, tmp_path / name, tmp_path) for name in ("packed", "archived", "dense", "one.safetensors")
    }
    assert found["dense"].outputs.kld > 1e-4
    assert len({loss.outputs for loss in found.values()}) == 1
    compressor.quantize(a, tmp_path / "m.gguf", scheme="q4_0", no_tokenizer=True)
    compressor.restore(tmp_path / "m.gguf", tmp_path / "from_gguf")
    assert (
        compared(a, tmp_path / "m.gguf", tmp_path).outputs == compared(a, tmp_path / "from_gguf", tmp_path).outputs
    )
    np.save(tmp_path / "ids.npy", np.array(windows_of(False, LENGTH, COUNT)))
    same = compressor.compare(tmp_path / "m.gguf", tmp_path / "from_gguf", tokens=tmp_path / "ids.npy").loss.outputs
    assert (same.kld, same.agreement) == (0.0, 1.0)


def test_where_it_was_lost(tmp_path: Path) -> None:
    """Blocks and tensors against whole models in which only these are exchanged."""
    a, b, windows = pair("llama", tmp_path)
    loss = compared(a, b, tmp_path, per_tensor=True)
    np.save(tmp_path / "ids.npy", np.array(windows[: 1024 // LENGTH]))
    loss = compressor.compare(a, b, tokens=tmp_path / "ids.npy", per_tensor=True).loss
    windows = windows[: 1024 // LENGTH]
    states = []
    for path in (a, b):
        model = whole(path)
        with torch.no_grad():
            states.append(model(input_ids=torch.tensor(windows), output_hidden_states=True).hidden_states)
    for block in loss.blocks[:-1]:  # the last one's is normed in transformers
        one, other = (each[block.number + 1] for each in states)
        assert block.total == pytest.approx(float((other - one).norm() / one.norm()), rel=1e-4)
    assert loss.blocks[0].added < loss.blocks[0].total  # the embedding is another one already
    mine, theirs = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert {one.name for one in loss.tensors} == {name for name, array in mine.items() if array.ndim > 1}
    assert [one.lost for one in loss.tensors] == sorted((one.lost for one in loss.tensors), reverse=True)
    logits = given(a, windows).logits[:, :-1]
    for one in loss.tensors:
        model = whole(a)
        dict(model.named_parameters())[one.name].data = torch.from_numpy(theirs[one.name])
        with torch.no_grad():
            other = model(input_ids=torch.tensor(windows)).logits[:, :-1]
        assert one.lost == pytest.approx(float(divergence(logits, other).mean()), rel=1e-3)
        difference = np.linalg.norm(theirs[one.name] - mine[one.name]) / np.linalg.norm(mine[one.name])
        assert one.error == pytest.approx(float(difference), rel=1e-4)


def test_tensors_that_take_more_memory_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.calibration import tensor_losses

    a, b, _ = pair("llama tied", tmp_path)
    wanted = compared(a, b, tmp_path, per_tensor=True)
    monkeypatch.setattr(tensor_losses, "_MEMORY", 3 * COUNT * LENGTH * 32 * 4)
    found = compared(a, b, tmp_path, per_tensor=True)
    for one, other in zip(found.tensors, wanted.tensors, strict=True):
        assert (one.name, one.error) == (other.name, other.error)
        assert one.lost == pytest.approx(other.lost, rel=1e-5)
    assert "model.embed_tokens.weight" in {one.name for one in found.tensors}


def test_models_of_other_depths(tmp_path: Path) -> None:
    a, _, windows = pair("llama", tmp_path)
    compressor.prune(a, tmp_path / "short", structure="layers", count=1)
    loss = compared(a, tmp_path / "short", tmp_path)
    one, other = (given(path, windows[:COUNT]).logits[:, :-1] for path in (a, tmp_path / "short"))
    assert (loss.blocks, len(loss.notes)) == ((), 1)
    assert loss.outputs.kld == pytest.approx(
        compressor.compare(
            a, tmp_path / "short", text=tmp_path / "text.txt", samples=COUNT, length=LENGTH
        ).loss.outputs.kld
    )
    if len(windows) == COUNT:
        assert loss.outputs.kld == pytest.approx(float(divergence(one, other).mean()), rel=1e-4)


def test_gates(tmp_path: Path) -> None:
    a, b, _ = pair("llama", tmp_path)
    how: dict[str, Any] = {"text": tmp_path / "text.txt", "samples": 2, "length": 16}
    report = compressor.compare(a, b, max_kld=1e-9, min_agreement=1.0, max_perplexity_ratio=1e9, **how)
    assert report.failures[0].startswith("max_kld=1e-09:")
    assert not compressor.compare(a, b, max_kld=100, min_agreement=0, **how).failures
    with pytest.raises(UsageError, match="min_cosine: such a model has no embedding"):
        compressor.compare(a, b, min_cosine=0.5, **how)


def refused(a: Path, b: Path, tmp_path: Path, **more: Any) -> str:
    with pytest.raises((InputError, UsageError)) as error:
        compressor.compare(a, b, **{"text": tmp_path / "text.txt", "samples": 2, "length": 16} | more)
    return str(error.value)


def test_what_does_not_match_is_said(tmp_path: Path) -> None:
    a, b, _ = pair("llama", tmp_path)
    other = transformers.LlamaConfig(**DECODER | {"vocab_size": 104})
    c = save_model(tmp_path / "c", "LlamaForCausalLM", other)
    assert "has a vocabulary of 104 tokens, and A has 100" in refused(a, c, tmp_path)
    d = save_model(tmp_path / "d", "BertForMaskedLM", transformers.BertConfig(**ENCODER), special=True)
    assert "is a masked language model, and A is a language model" in refused(a, d, tmp_path)
    said = json.loads((b / "tokenizer.json").read_text())
    said["model"]["vocab"]["w1"], said["model"]["vocab"]["w2"] = 6, 5
    (b / "tokenizer.json").write_text(json.dumps(said))
    assert "its tokenizer divides the text otherwise than A's: token" in refused(a, b, tmp_path)
    for path in (a, b):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).unlink()
    assert "has no tokenizer, and neither has B" in refused(a, b, tmp_path)
    save_tokenizer(b, special=False)
    assert compared(a, b, tmp_path).notes == ("the tokenizer is B's: A has none",)


def test_bad_input(tmp_path: Path) -> None:
    a, b, _ = pair("llama", tmp_path)
    (tmp_path / "short.txt").write_text("w1 w2 w3")
    loss = compressor.compare(a, b, text=tmp_path / "short.txt").loss
    assert "shorter than" in loss.notes[0]
    (tmp_path / "one.txt").write_text("w1")
    assert "holds one token" in refused(a, b, tmp_path, text=tmp_path / "one.txt")
    (tmp_path / "none.txt").write_text(" ")
    assert "holds no text" in refused(a, b, tmp_path, text=tmp_path / "none.txt")
    np.save(tmp_path / "ids.npy", np.array([[1, 2, 100]]))
    assert "token 100 is none of them" in refused(
        a, b, tmp_path, text=None, tokens=tmp_path / "ids.npy", length=None
    )
    np.save(tmp_path / "ids.npy", np.array([[1.0, 2]]))
    assert "holds no token ids" in refused(a, b, tmp_path, text=None, tokens=tmp_path / "ids.npy", length=None)
    assert "two inputs" in refused(a, b, tmp_path, tokens=tmp_path / "ids.npy")
    tensors = load_file(b / "model.safetensors")
    huge = {name: array * np.float32(1e30) if "mlp" in name else array for name, array in tensors.items()}
    save_file(huge, b / "model.safetensors", metadata={"format": "pt"})
    assert "NaN or infinite values in block 0" in refused(a, b, tmp_path)
    del tensors["lm_head.weight"]
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight': is not in the model" in refused(a, b, tmp_path)
    said = refused(a / "model.safetensors", b, tmp_path)
    assert "config.json" in said
    assert "compressor compare without text and tokens compares its tensors" in said


def test_embeddings_that_are_none(tmp_path: Path) -> None:
    a, b, _ = pair("bert", tmp_path)
    tensors = load_file(b / "model.safetensors")
    tensors["encoder.layer.2.output.LayerNorm.weight"] *= np.float32(1e37)
    save_file(tensors, b / "model.safetensors", metadata={"format": "pt"})
    # every hidden state is finite, the mean over 64 tokens is not
    assert "gives NaN or infinite embeddings" in refused(a, b, tmp_path, length=64)
