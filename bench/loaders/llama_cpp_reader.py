"""What llama.cpp makes of a GGUF file, in a process of its own: `llama_cpp_reader.py` with requests on its input.

A request is a JSON object: `path`; `texts` to be turned into numbers of tokens; `prompts` of such numbers, for each
of which it tells the logarithms of the probabilities of what comes next; `embed` the prompts instead; `complete` a
text by so many `tokens`; `context`, the most tokens that are wanted (1024). Answers are a JSON list in a line that
begins with ANSWERS, which `answers` gives. The server that answers listens on a free port of the loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("LLAMA_CPP_FOLDER", Path(sys.prefix) / "llama_cpp"))

EVERY = 100_000  # more tokens than any of these models has


def answers(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What a process of its own answers to requests."""
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(requests),
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(lines[0].removeprefix("ANSWERS "))
    errors = [one["error"] for one in found if "error" in one]
    assert not errors, f"{errors} {done.stderr[-3000:]}"
    return found


def opened(path: str, *, embed: bool, context: int) -> Any:
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = path
    params.n_ctx = params.n_batch = params.n_ubatch = context
    params.n_gpu_layers, params.n_parallel = 0, 1
    params.warmup = params.fit_params = False
    params.verbosity = -1
    params.hostnames, params.port = ["127.0.0.1"], 0
    params.cpuparams.n_threads = 1
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    if embed:
        params.embedding = True
        params.pooling_type = llama.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    return llama.Server(params)


def ask(server: Any, place: str, content: dict[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.listening_address + place, json.dumps(content).encode(), headers)  # noqa: S310 - our own server
    with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310
        return json.load(answer)


def logprobs(server: Any, prompt: list[int]) -> dict[str, float]:
    wanted = {
        "n_predict": 1,
        "n_probs": EVERY,
        "temperature": 0,
        "cache_prompt": False,
        "post_sampling_probs": False,
    }
    answer = ask(server, "/completion", {"prompt": prompt, **wanted})
    (step,) = answer["completion_probabilities"]
    return {str(one["id"]): one["logprob"] for one in step["top_logprobs"]}


def answered(request: dict[str, Any]) -> dict[str, Any]:
    embed = bool(request.get("embed"))
    try:
        server = opened(request["path"], embed=embed, context=int(request.get("context", 1024)))
        return told(server, request, embed=embed)
    except urllib.error.HTTPError as error:
        return {"error": error.read().decode()}
    except RuntimeError as error:
        return {"error": str(error)}


def told(server: Any, request: dict[str, Any], *, embed: bool) -> dict[str, Any]:
    prompts, texts = request.get("prompts", []), request.get("texts", [])
    found: dict[str, Any] = {
        "tokens": [ask(server, "/tokenize", {"content": text, "add_special": True})["tokens"] for text in texts]
    }
    if embed:
        answers = [ask(server, "/embedding", {"content": prompt, "embd_normalize": -1}) for prompt in prompts]
        found["embeddings"] = [answer[0]["embedding"][0] for answer in answers]
    else:
        found["logprobs"] = [logprobs(server, prompt) for prompt in prompts]
    if "complete" in request:
        wanted = {"prompt": request["complete"], "n_predict": request["tokens"], "temperature": 0}
        found["completed"] = ask(server, "/completion", wanted)["content"]
    return found


if __name__ == "__main__":
    print("ANSWERS", json.dumps([answered(request) for request in json.load(sys.stdin)]))
