"""Families of many kinds in every scheme, through the loaders that are there: each loads as it is and answers as
the restored model does, or was refused at plan time, and what a refusal names is taken. `make loaders` has all.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs torch: make test-interop")
pytest.importorskip("transformers", minversion="5.0", reason="needs transformers: make test-interop")
pytest.importorskip("compressed_tensors", minversion="0.20", reason="needs compressed-tensors: make test-interop")

from support.console import compressor

from bench.architectures.module_names import unknown
from bench.loaders.every_type import packed_is_refused, reads_weights, try_type
from bench.loaders.families import FAMILIES, output_of, quietly
from bench.loaders.matrix import LOADERS, PAGE, SCHEMES, cells
from compressor import api
from compressor.core.errors import CompressorError, problems_of

pytestmark = pytest.mark.interop

ASKED: dict[str, Any] = {"loader": "transformers"}
SOME = (
    *("llama", "qwen3-moe", "mixtral", "gpt-oss", "llama4", "qwen3-vl-moe", "phi-moe", "gemma3 with vision"),
    *("mamba", "t5", "whisper", "modernbert", "swin", "siglip", "gpt2", "wavlm", "segformer", "zamba2", "ijepa"),
)
# Of transformers' types some whose initialisation reads weights, by kinds, and some whose does not
READING = (
    "mamba",
    "t5",
    "seamless_m4t",
    "ijepa",
    "hiera",
    "resnet",
    "d_fine",
    "neomme",
    "bridgetower",
    "xcodec2",
    "siglip",
)
NOT_READING = ("llama", "bert", "vit", "hubert", "clip", "bart", "convnext", "swin", "zamba2", "qwen3_moe")
# What the matrix has not: budgets and presets choose among what the loader takes
CHOSEN: dict[str, dict[str, Any]] = {
    "budget": {"target_bits": 5.0},
    "preset": {"preset": "q4_mixed"},
    "group of 32": {"bits": 4, "group_size": 32},
    "channel": {"bits": 4, "granularity": "channel"},
}


@pytest.mark.parametrize("name", SOME)
def test_transformers_takes_it_or_it_is_refused(name: str) -> None:
    family, loader = FAMILIES[name], LOADERS["transformers"]
    found = dict(cells(family, loader, loader.schemes_of(family), ASKED))
    assert {scheme: cell for scheme, cell in found.items() if not cell.right} == {}
    loaded = [cell for cell in found.values() if not cell.refused]
    assert bool(loaded) == (name != "gpt2")
    assert all(cell.treated for cell in loaded)


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "mixtral"])
def test_mlx_takes_it_or_it_is_refused(name: str) -> None:
    pytest.importorskip("mlx_lm", reason="needs mlx-lm: make test-interop")
    loader = LOADERS["mlx"]
    found = dict(cells(FAMILIES[name], loader, loader.schemes_of(FAMILIES[name]), {"loader": "mlx"}))
    assert {scheme: cell for scheme, cell in found.items() if not cell.right} == {}
    assert any(cell.refused for cell in found.values()) == (name == "qwen3-moe")


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "bert"])
def test_llama_cpp_takes_it(name: str) -> None:
    """Files of all mixtures, as near to those of the same numbers as 8 bits of each input are."""
    loader = LOADERS["llama.cpp"]
    if not loader.there:
        pytest.skip("needs llama.cpp: make test-interop")
    found = dict(cells(FAMILIES[name], loader, loader.schemes_of(FAMILIES[name]), {"loader": "llama.cpp"}))
    assert {scheme: cell for scheme, cell in found.items() if not cell.right or cell.alone or cell.refused} == {}
    assert found["f32"].off == 0
    assert all(cell.treated for cell in found.values())


@pytest.mark.parametrize("name", ["qwen3-moe", "mamba", "wav2vec2", "siglip", "dinov2", "falcon-h1"])
def test_what_a_refusal_names_is_taken(tmp_path: Path, name: str) -> None:
    """Every way on that a message names, as options of the command line: it loads, and answers as it should."""
    family, loader = FAMILIES[name], LOADERS["transformers"]
    with quietly():
        family.make(tmp_path / "model")
        ways = set()
        for scheme in SCHEMES.values():
            try:
                api.quantize(tmp_path / "model", tmp_path / "x", **scheme, **ASKED, dry_run=True)
            except CompressorError as error:
                said = [way for one in problems_of(error) for way in one.remedy.split(", or ")]
                options = [re.sub(r"^(Use|leave them dense by) ", "", way) for way in said]
                whole = [way for way in options if way.startswith(("--bits", "--scheme"))]
                ways |= set(whole or [f"{_flags(scheme)} {way}" for way in options])
        assert ways
        for number, options in enumerate(sorted(ways)):
            packed, dense = tmp_path / f"packed{number}", tmp_path / f"dense{number}"
            command = ("quantize", tmp_path / "model", "-o", packed, "--for", "transformers", *shlex.split(options))
            done = compressor(*command)
            assert done.code == 0, (options, done.err)
            api.restore(packed, dense)
            assert loader.compared(packed, dense, family).off <= loader.tolerance, options


# Of transformers' types those that a walk of all found wrong, by kinds: layers that transformers calls otherwise
# than files do, and codes that it fails on
WALKED = ("deepseek_v4", "kimi_linear", "nomic_bert", "cohere_asr", "axk2", "deformable_detr", "dinov2", "ctrl")
WALKED += ("olmo_hybrid", "gte", "jina_embeddings_v3", "moshi_depth", "owlv2_vision_model")
WALKED += ("kimi_k25", "gemma4_unified", "lfm3_vl", "inkling_mm_model")


@pytest.mark.parametrize("kind", WALKED)
def test_what_a_walk_of_all_types_found_is_right(kind: str) -> None:
    with quietly():
        told = try_type(kind, ("int4", "int8 W8A8", "nf4", "2:4"))
    assert "found" in told, told
    said = {f"{scheme}, {way}": text for scheme, ways in told["found"].items() for way, text in ways.items()}
    assert {way: text for way, text in said.items() if "WRONG" in text} == {}


@pytest.mark.parametrize("kind", ["deepseek_v4", "kimi_linear", "nomic_bert", "cohere_asr", "detr", "exaone"])
def test_both_names_of_a_layer_are_known(kind: str) -> None:
    with quietly():
        assert {
            name for name in unknown(kind) if "backbone" not in name and name != "log_softmax.mlp.layer0"
        } == set()


def _flags(options: Any) -> str:
    """Options of `quantize` as the command line has them, without what a way on may contradict."""
    return " ".join(f"--{key.replace('_', '-')} {value}" for key, value in options.items() if key != "symmetric")


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "gpt-oss", "mamba"])
@pytest.mark.parametrize("chosen", CHOSEN)
def test_what_is_chosen_for_transformers_loads(tmp_path: Path, name: str, chosen: str) -> None:
    family, loader = FAMILIES[name], LOADERS["transformers"]
    with quietly():
        family.make(tmp_path / "model")
        refused = _refused(tmp_path / "model", tmp_path / "packed", {**CHOSEN[chosen], **ASKED})
        if name == "mamba":
            assert refused
            return
        assert not refused
        api.restore(tmp_path / "packed", tmp_path / "dense")
        assert loader.compared(tmp_path / "packed", tmp_path / "dense", family).off <= loader.tolerance


def _refused(model: Path, out: Path, options: dict[str, Any]) -> str:
    """What a plan is refused with, the way on; "" where it is carried out."""
    try:
        api.quantize(model, out, **options)
    except CompressorError as error:
        return error.remedy or "without a way on"
    return ""


def _warned(model: Path, options: dict[str, Any]) -> bool:
    """Whether a note speaks of transformers."""
    report = api.quantize(model, model.with_name("unwritten"), **options, dry_run=True)
    return any("transformers 5.24" in note for note in report.plan.notes)


@pytest.mark.parametrize("bits", [2, 3])
def test_what_a_loader_has_no_codes_for_does_not_look_loadable(tmp_path: Path, bits: int) -> None:
    """Two and three bits are for `restore`, and for mlx-lm, which has such codes."""
    family = FAMILIES["llama"]
    with quietly():
        family.make(tmp_path / "model")
        for name in ("transformers", "vllm"):
            refused = _refused(tmp_path / "model", tmp_path / name, {"bits": bits, "loader": name})
            assert refused == "Use --scheme int --layout auto --bits 4, or --bits 8"
        api.quantize(tmp_path / "model", tmp_path / "packed", bits=bits, layout="compressor")
        with pytest.raises(Exception, match="compressor restore"):
            LOADERS["transformers"].answers(tmp_path / "packed", family)
        pytest.importorskip("mlx_lm", reason="needs mlx-lm: make test-interop")
        LOADERS["mlx"].prepare(tmp_path / "model")
        api.quantize(tmp_path / "model", tmp_path / "mlx", bits=bits, loader="mlx")
        api.restore(tmp_path / "mlx", tmp_path / "dense")
        found = LOADERS["mlx"].compared(tmp_path / "mlx", tmp_path / "dense", family)
        assert found.off <= LOADERS["mlx"].tolerance


@pytest.mark.parametrize("name", ["llama", "qwen3-moe", "llava", "t5", "ijepa", "wavlm"])
def test_what_no_note_warns_of_loads(tmp_path: Path, name: str) -> None:
    """Without `--for`: transformers takes it, or a note or an error says that it does not."""
    family, loader = FAMILIES[name], LOADERS["transformers"]
    with quietly():
        family.make(tmp_path / "model")
        for scheme, options in SCHEMES.items():
            packed, dense = tmp_path / scheme, tmp_path / f"{scheme} restored"
            if scheme == "int4 gptq":
                continue  # it needs another library for that layout: test_gptq.py
            if _refused(tmp_path / "model", packed, options) or _warned(tmp_path / "model", options):
                continue
            api.restore(packed, dense)
            assert loader.compared(packed, dense, family).off <= loader.tolerance, scheme


@pytest.mark.parametrize("kind", [*READING, *NOT_READING])
def test_packed_layers_are_refused_where_weights_are_read(kind: str) -> None:
    """`python -m bench.loaders.every_type --initialisation` looks at all types."""
    with quietly():
        assert reads_weights(kind) == packed_is_refused(kind) == (kind in READING)


@pytest.mark.parametrize("name", ["llama4", "gpt-oss", "qwen3-vl-moe"])
def test_transformers_finds_all_experts_of_a_restored_model(tmp_path: Path, name: str) -> None:
    family, loader = FAMILIES[name], LOADERS["transformers"]
    with quietly():
        family.make(tmp_path / "model")
        before = loader.answers(tmp_path / "model", family)
        api.quantize(tmp_path / "model", tmp_path / "packed", bits=8)
        api.restore(tmp_path / "packed", tmp_path / "restored")
        after = loader.answers(tmp_path / "restored", family)
    assert (after - before).norm() <= 0.15 * before.norm()


def test_what_loads_when_told_to_dequantize(tmp_path: Path) -> None:
    """What a note says of `CompressedTensorsConfig(dequantize=True)` holds."""
    from transformers import CompressedTensorsConfig

    with quietly():
        for name, options in (("t5", {"bits": 4}), ("llama", {"bits": 4, "symmetric": False})):
            family = FAMILIES[name]
            family.make(tmp_path / name)
            report = api.quantize(tmp_path / name, tmp_path / f"{name}-packed", **options)
            assert any("CompressedTensorsConfig(dequantize=True)" in note for note in report.plan.notes)
            api.restore(tmp_path / f"{name}-packed", tmp_path / f"{name}-dense")
            told = CompressedTensorsConfig(dequantize=True)
            loaded = family.model.from_pretrained(tmp_path / f"{name}-packed", quantization_config=told)
            wanted = LOADERS["transformers"].answers(tmp_path / f"{name}-dense", family)
            torch.testing.assert_close(output_of(loaded.eval(), family.given), wanted, rtol=0, atol=1e-5)


def test_the_page_has_every_family_and_nothing_wrong() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in FAMILIES if f"\n| {name} |" not in page] == []
    assert "**wrong**" not in page
