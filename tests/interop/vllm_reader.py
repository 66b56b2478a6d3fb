"""vLLM's log-probabilities for a fixed text of token ids, in a process of its own: `vllm_reader.py FOLDER`.

Prints a line of JSON: for each token but the first its log-probability and those of the likeliest five.
"""

from __future__ import annotations

import json
import os
import sys

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
TOKENS = [1, 5, 9, 33, 77, 12, 200, 140, 3, 66]

if __name__ == "__main__":
    from vllm import LLM, SamplingParams

    model = LLM(model=sys.argv[1], skip_tokenizer_init=True, enforce_eager=True, max_model_len=64, dtype="bfloat16")
    wanted = SamplingParams(max_tokens=1, prompt_logprobs=5, detokenize=False, temperature=0)
    (answer,) = model.generate([{"prompt_token_ids": TOKENS}], wanted)
    told = [
        {str(token): float(one.logprob) for token, one in found.items()} for found in answer.prompt_logprobs[1:]
    ]
    print("LOGPROBS", json.dumps(told))
