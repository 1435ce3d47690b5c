# /// script
# requires-python = ">=3.11"
# dependencies = ["lm-eval[api]==0.4.13"]
# tool.uv.exclude-newer = "2026-11-28T00:00:00Z"
# ///
"""EleutherAI's lm-evaluation-harness: a chat answer, and log-probabilities of given answers."""

from __future__ import annotations

from harness import MODEL, V1, check, run
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI


@check
def text() -> None:
    model = LocalChatCompletion(base_url=f"{V1}/chat/completions", model=MODEL, tokenizer_backend=None)
    chat = model.apply_chat_template([{"role": "user", "content": "Say hello."}])
    asked = Instance("generate_until", {}, (chat, {"until": ["\n\n"], "max_gen_toks": 16}), 0)
    assert model.generate_until([asked])[0]


@check
def log_probabilities() -> None:
    model = LocalCompletionsAPI(base_url=f"{V1}/completions", model=MODEL, tokenizer_backend="remote")
    asked = [Instance("loglikelihood", {}, ("2 + 2 =", word), 0) for word in (" 4", " elephants")]
    (likely, _), (unlikely, _) = model.loglikelihood(asked)
    assert unlikely < likely < 0


if __name__ == "__main__":
    run()
