"""The vLLM benchmarks: their evaluation of measurements, and the processes and models that they use."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from waver.benchmarks import vllm_hand_over, vllm_pictures, vllm_serving, vllm_steps
from waver.benchmarks.processes import cpu_seconds, descendants, free_port, resident, running
from waver.benchmarks.random_llama import make_model, make_tokenizer
from waver.benchmarks.vllm_client import FOUND, TIMES, essence
from waver.benchmarks.vllm_serving import VLLM, WAVER, Load

PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
from http.server import SimpleHTTPRequestHandler, test
test(SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind="127.0.0.1")
"""


def test_the_client_s_result_is_read_as_numbers() -> None:
    theirs: dict[str, Any] = dict.fromkeys((*FOUND, *TIMES), 3) | {"date": "today", "itls": [[0.1]]}
    assert essence(theirs) == dict.fromkeys((*FOUND, *TIMES), 3.0)
    with pytest.raises(KeyError):
        essence({"completed": 1})


def run(throughput: float, latency: float, cpu: float) -> dict[str, Any]:
    times = dict.fromkeys(TIMES, latency)
    return {"output_throughput": throughput, **times, "cpu_ms_per_token": {"python": cpu, "VLLM::Worker": 9.0}}


def test_ratios_are_of_the_same_run_and_their_median_is_judged() -> None:
    slow, fast = run(100.0, 10.0, 0.4), run(200.0, 5.0, 0.2)
    starts = [[{WAVER: slow, VLLM: slow}, {WAVER: fast, VLLM: fast}], [{WAVER: slow, VLLM: fast}]]
    found = vllm_serving.ratios(starts)
    assert found["ratios"]["output_throughput"] == {"median": 1.0, "interval": [0.5, 1.0], "runs": 3}
    assert all(found["met"].values())
    assert found["medians"][VLLM]["output_throughput"] == 200.0
    assert found["frontend_cpu_ms_per_token"] == {WAVER: 0.4, VLLM: 0.2}
    assert not any(vllm_serving.ratios([[{WAVER: slow, VLLM: fast}]])["met"].values())


def test_each_load_is_sent_to_either_server_first_in_turn() -> None:
    sent: list[tuple[int, int, int]] = []

    class Recorder:
        def run(self, load: Load, port: int, model: Path, seed: int) -> dict[str, float]:
            sent.append((load.concurrency, port, seed))
            return {"total_output_tokens": float(load.requests * load.tokens)}

    loads = {str(many): Load(many, 2 * many, 0.0, 8, 8) for many in (1, 8, 32)}
    comparison = vllm_serving.Comparison(Recorder(), Path("m"), {}, loads, 5)  # type: ignore[arg-type]
    where = {WAVER: (1, os.getpid()), VLLM: (2, os.getpid())}
    found = comparison._runs(where, 3, 3, lambda: None)
    assert [len(made) for made in found.values()] == [3, 3, 3]
    for many in (1, 8, 32):
        of = [(port, seed) for concurrency, port, seed in sent if concurrency == many]
        firsts, seconds = of[::2], of[1::2]
        assert [seed for _, seed in firsts] == [seed for _, seed in seconds], "both get the same prompts"
        assert len({seed for _, seed in firsts}) == 4, "each time others"
        assert sorted(port for port, _ in firsts) == [1, 1, 2, 2]
        assert firsts[0][0] != firsts[1][0]


def test_steps_are_compared_side_by_side() -> None:
    pairs = [(0.0102, 0.010), (0.0408, 0.040)]
    found = vllm_steps.against("exact entropy, greedy", pairs)
    assert (found["ratio"]["median"], found["met"]) == (pytest.approx(1.02), True)
    assert found["step_ms"]["median"] == pytest.approx(25.5)
    assert vllm_steps.against("exact entropy, greedy", [(0.0104, 0.010)])["met"] is False
    assert vllm_steps.against("vLLM's logprobs=5, greedy", pairs)["met"] is None
    assert vllm_steps.WAYS["exact entropy, gate and seeded draw, temperature 1"].against == "vLLM, temperature 1"


def test_a_run_of_the_small_model_has_to_pay_for_two_hand_overs() -> None:
    tokens = vllm_hand_over.break_even(4.5, 2.6, 0.3)
    assert tokens * (1 - 0.3) == pytest.approx(2.6 + 4.5 * 0.3)
    ratio = {"median": 2.0, "interval": [1.9, 2.1]}
    kinds = (vllm_hand_over.KEPT, vllm_hand_over.COLD, vllm_hand_over.LAGGED, vllm_hand_over.LIMITED)
    case = {kind: {"small": ratio, "large": ratio} for kind in kinds}
    text = "\n".join(vllm_hand_over.section({"short": case, "long": case, "parameters": {"small": 1e6, "large": 2e6}}))
    assert "| gate, cache kept | 2.4 | 3.0 | 3.7 | 4.7 | 6.0 |" in text
    assert "| lagged gate, cache kept | 2.4" in text


def test_answers_about_pictures_are_compared_token_by_token() -> None:
    one, other = {"prompt": 9, "ids": [1, 2], "entropies": [0.5, 0.25]}, {"prompt": 9, "ids": [1], "entropies": [0.5]}
    near = {**one, "entropies": [0.5, 0.2501]}
    found = vllm_pictures.compare([(one, near), (one, other)])
    assert (found["answers"], found["same"], found["same_prompt"], found["different_answers"]) == (2, 1, 2, 1)
    assert found["entropy_apart"] == pytest.approx(1e-4)
    assert "1 of 2 greedy answers of one model (4 tokens" in "\n".join(vllm_pictures.page(found))
    first, second = (vllm_pictures.conversation(900, number)[0]["content"] for number in (0, 1))
    assert [part["type"] for part in second] == ["image_url", "image_url", "text"]
    assert first[0] != second[0]


def test_both_servers_are_given_the_same_arguments() -> None:
    command = vllm_serving.vllm_command(Path("m"), {"max_num_seqs": 4, "enforce_eager": False, "x_y": True}, 1)
    assert command[-3:] == ["--max-num-seqs", "4", "--x-y"]
    sent = Load(concurrency=8, requests=24, temperature=0.0, prompt=32, tokens=64).args(1, Path("m"), seed=5)
    assert sent[sent.index("--max-concurrency") + 1] == "8"
    assert "--ignore-eos" in sent


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc, which Linux has")
def test_a_server_is_ended_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("waver.benchmarks.processes.PATIENCE", 0.5)
    port = free_port()
    command = [sys.executable, "-c", PARENT, str(port)]
    with running(command, tmp_path / "log", f"http://127.0.0.1:{port}/", 30) as process:
        family = descendants(process)
        assert len(family) == 2
        assert process in descendants(os.getpid())
        assert sum(cpu_seconds(process).values()) > 0
        assert resident(process) > 2**20
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{each}").exists() for each in family) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [each for each in family if _runs(each)]


def _runs(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(RuntimeError, match="no such model"), running(command, tmp_path / "log", "http://[::1]:1/", 30):
        pass


def test_random_tokens_spell_plain_text() -> None:
    tokenizer = make_tokenizer(1500)
    assert len(tokenizer) == 1500
    text = tokenizer.decode(range(3, 1500))
    assert text.isascii()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_models_are_as_large_as_asked(tmp_path: Path) -> None:
    count = make_model(tmp_path, 1500, width=64, layers=2)
    assert 1500 * 64 < count < 2 * 1500 * 64 + 10**5
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in tmp_path.iterdir()}
