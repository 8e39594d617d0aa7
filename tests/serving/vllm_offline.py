"""Program for the environment of vLLM: answers a file of questions offline and prints token ids and log-probabilities.

`python vllm_offline.py JOB`, where JOB is a JSON file with `model`, `answers` (the file to write) and `questions`, each with
`prompt`, `images` and `volumes` (paths).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    """Answer the questions of a job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    llm = LLM(
        job["model"], dtype="float32", max_model_len=512, max_num_seqs=8, enforce_eager=True, disable_log_stats=True
    )
    prompts = [
        {
            "prompt": question["prompt"],
            "multi_modal_data": {
                modality: question[f"{modality}s"] for modality in ("image", "volume") if question[f"{modality}s"]
            },
        }
        for question in job["questions"]
    ]
    answers = llm.generate(
        prompts, SamplingParams(temperature=0, max_tokens=job["max_tokens"], logprobs=0), use_tqdm=False
    )
    rows = []
    for answer in answers:
        ids = list(answer.outputs[0].token_ids)
        logs = [step[token].logprob for step, token in zip(answer.outputs[0].logprobs, ids, strict=True)]
        rows.append({"prompt_ids": list(answer.prompt_token_ids), "token_ids": ids, "logprobs": logs})
    Path(job["answers"]).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
