"""Epiplexity: code lengths, the hull, the scaling law, estimates on sources of known structure, and the command."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer
from typer.testing import CliRunner

pytest.importorskip("accelerate")

from tests.training.selection.epiplexity.bits import BitCoding, code
from waver.cli import app
from waver.job import read_lines
from waver.training.selection.epiplexity import lengths
from waver.training.selection.epiplexity.corpora import byte_tokens, ordered, read_corpus
from waver.training.selection.epiplexity.estimate import Average, Estimate, Settings, estimate
from waver.training.selection.epiplexity.hull import Point, at_budget, lower_hull, one_each
from waver.training.selection.epiplexity.language import TextCoding, batches, fresh, scaled_adam, small_config
from waver.training.selection.epiplexity.logger import EpiplexityLogger
from waver.training.selection.epiplexity.scaling_law import ScalingLaw
from waver.training.texts import Text, padded
from waver.training.tuning import trainer

BEFORE = [1.0, 0.8, 0.7, 0.65]
CHINCHILLA = ScalingLaw(alpha=0.3392, beta=0.2849, n0=4.914630e7, d0=1.491011e9, floor=1.6934)


def test_prequential_lengths() -> None:
    assert lengths.prequential([*BEFORE, 0.65], [0.65] * 5, [100] * 5) == pytest.approx(79.348227, abs=1e-6)
    assert lengths.area([*BEFORE, 0.65], [0, 100, 200, 300, 400]) == pytest.approx(54.101064, abs=1e-6)
    shortcut = lengths.prequential_shortcut([*BEFORE, 0.65], [100] * 5, last=2)
    assert shortcut == pytest.approx(79.348227, abs=1e-6)
    assert lengths.noise(0.65, 500) == pytest.approx(500 * 0.65 / 0.6931471805599453)
    assert lengths.compute(parameters=10, trained=3, described=4) == 6 * 10 * 3 + 2 * 10 * 4


def test_requential_lengths() -> None:
    teacher, student = torch.tensor([0.7, 0.2, 0.1]).log(), torch.tensor([0.4, 0.4, 0.2]).log()
    kl = float(lengths.divergence(teacher, student))
    assert kl == pytest.approx(0.183787, abs=1e-6)
    assert lengths.requential([kl]) == pytest.approx(0.265148, abs=1e-6)
    assert float(lengths.divergence(teacher, teacher + 3)) == pytest.approx(0.0, abs=1e-7)
    assert lengths.message_bits(kl) + lengths.message_bits(0.0) == pytest.approx(8.604455, abs=1e-5)


@pytest.mark.parametrize(
    ("tokens", "summed", "closed"), [(10**4, 2141.0107, 2147.9453), (10**6, 53946.8240, 53953.9462)]
)
def test_the_closed_form_follows_the_sum(tokens: int, summed: float, closed: float) -> None:
    law = ScalingLaw(alpha=0.3, beta=0.3, n0=1.0, d0=1000.0, floor=0.0)
    losses = [(i / 1000) ** -0.3 for i in range(1, tokens + 1)]
    found = lengths.prequential(losses, [losses[-1]] * tokens, [1] * tokens) * lengths.LN2
    assert found == pytest.approx(summed, abs=1e-3)
    assert law.model_bits(tokens) * lengths.LN2 == pytest.approx(closed, abs=1e-3)


def test_the_best_division_of_a_budget() -> None:
    assert CHINCHILLA.model_bits(1e12) == pytest.approx(8.999635e10, rel=1e-5)
    large = CHINCHILLA.at(1e25, 1e12)
    assert large.tokens == pytest.approx(8.409377e11, rel=1e-4)
    assert large.parameters == pytest.approx(1.419320e12, rel=1e-4)
    assert large.s == pytest.approx(7.951032e10, rel=1e-4)
    assert large.loss == pytest.approx(1.888586, abs=1e-5)
    assert large.h == pytest.approx(2.724653e12, rel=1e-5)
    small = CHINCHILLA.at(1e22, 1e12)
    assert small.tokens == pytest.approx(3.119561e11, rel=1e-4)
    assert small.s == pytest.approx(3.912471e10, rel=1e-4)
    assert small.h == pytest.approx(3.134168e12, rel=1e-5)
    assert small.s + small.h > large.s + large.h
    unlimited = CHINCHILLA.at(1e40, 1e12)
    assert unlimited.tokens == pytest.approx(1e12, rel=1e-3)
    assert unlimited.parameters == pytest.approx(1e40 / 8e12, rel=1e-3)
    with pytest.raises(ValueError, match="positive budget"):
        CHINCHILLA.at(0, 1e12)


def test_a_fit_over_compute_is_converted() -> None:
    law = ScalingLaw.from_fit(gamma=0.2, delta=0.5, n0=2.0, c0=12.0, floor=1.0)
    assert (law.alpha, law.beta, law.d0) == pytest.approx((0.4, 0.4, 4.0))


def test_the_hull_keeps_the_best_runs() -> None:
    points = [
        Point("a", 1, 1, 99), Point("a", 2, 2, 78), Point("a", 3, 3, 87),
        Point("b", 2.5, 5, 90), Point("b", 4, 4, 56), Point("b", 8, 8, 44), Point("b", 9, 9, 60),
    ]  # fmt: skip
    hull = lower_hull(points)
    assert [(p.run, p.compute) for p in hull] == [("a", 1), ("a", 2), ("b", 4), ("b", 8)]
    assert [(p.run, p.compute) for p in one_each(hull)] == [("a", 1), ("b", 4)]
    assert at_budget(hull, 7).compute == 4
    with pytest.raises(ValueError, match="the least is 1"):
        at_budget(hull, 0.5)
    # A point that is on the line between its neighbours is no corner.
    assert [p.compute for p in lower_hull([Point("a", x, 0, 100 - 10 * x) for x in (1, 2, 3)])] == [1, 3]


@pytest.fixture(scope="module")
def sources() -> dict[str, Estimate]:
    return {source: code(source) for source in ("coin", "copy", "10")}


def test_structure_is_told_from_noise(sources: dict[str, Estimate]) -> None:
    """By the held-out loss a copied bit and a table of 256 entries are level; S separates them."""
    last = {name: each.readings[-1] for name, each in sources.items()}
    for s in ("s_prequential", "s_requential"):
        coin, copied, table = (getattr(last[name], s) for name in ("coin", "copy", "10"))
        assert table > 4 * copied > 0
        assert copied > 4 * coin > 0
    loss = {name: each.loss / lengths.LN2 for name, each in last.items()}
    assert loss["coin"] == pytest.approx(1.0, abs=0.01)
    assert loss["copy"] == pytest.approx(loss["10"], abs=0.05)
    assert 800 < last["copy"].s_prequential < 1400
    assert 7000 < last["10"].s_prequential < 10_000
    assert 5000 < (last["10"].s_requential or 0) < 7500


def test_the_shortcut_is_far_noisier(sources: dict[str, Estimate]) -> None:
    """Over seeds the exact S of the copied bit spreads by some 70 bits, with the mean of the last losses by 1000."""
    runs = [sources["copy"], code("copy", 1, requential=False)]
    exact = [made.readings[-1].s_prequential for made in runs]
    short = [lengths.prequential_shortcut(made.before, made.tokens, 200) for made in runs]
    assert abs(exact[0] - exact[1]) < 400
    assert max(abs(a - b) for a, b in zip(exact, short, strict=True)) > 400


def test_a_teacher_waits_for_its_student() -> None:
    course = [(torch.ones(16, 8), torch.randint(0, 2, (16,))) for _ in range(12)]

    def sent(max_kl: float | None) -> int:
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 2)
        settings = Settings(warmup=0, requential=True, max_kl=max_kl, ema=1, points=1)
        made = estimate(
            model, BitCoding(), course, course[:1], lambda m: torch.optim.SGD(m.parameters(), 1.0), settings
        )
        assert len(made.before) == 12
        return len(made.messages)

    assert sent(None) == 12
    assert sent(1e-4) > 12


def test_the_average_remembers_so_many_steps() -> None:
    model = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(model.weight)
    average = Average(model, steps=2)
    torch.nn.init.ones_(model.weight)
    for _ in range(100):
        average.update(model)
    assert float(average.model.weight) == pytest.approx(1.0)
    torch.nn.init.zeros_(model.weight)
    average.update(model)
    assert float(average.model.weight) == pytest.approx(0.60653, abs=1e-4)


def test_samples_keep_their_context_and_code_what_is_learned() -> None:
    model = fresh(small_config(32, 1, 258, 16), seed=0)
    torch.nn.init.normal_(model.get_output_embeddings().weight, generator=torch.Generator().manual_seed(0))
    rows = batches([Text((256, 1, 2, 3, 4, 5), 3), Text((256, 7, 8), 1)], 2, torch.device("cpu"))[0]
    coding = TextCoding()
    targets = coding.logits(model, rows)[1]
    assert targets.tolist() == [3, 4, 5, 7, 8]
    drawn = coding.redraw(model, rows, torch.Generator().manual_seed(0))
    assert drawn["input_ids"][0, :3].tolist() == [256, 1, 2]
    assert drawn["input_ids"][1, 3:].tolist() == [0, 0, 0]
    assert drawn["input_ids"][0].tolist() != rows["input_ids"][0].tolist()
    assert torch.equal(drawn["labels"] >= 0, rows["labels"] >= 0)
    # Draws follow the model's own distribution: the first position of many rows against its softmax.
    many = batches([Text((256, 1), 1)] * 2000, 2000, torch.device("cpu"))[0]
    counts = coding.redraw(model, many, torch.Generator().manual_seed(1))["input_ids"][:, 1].bincount(minlength=258)
    with torch.no_grad():
        wanted = model(many["input_ids"][:1, :1]).logits[0, -1].softmax(-1)
    assert float((counts / 2000 - wanted).abs().sum()) < 0.4


def test_bytes_are_tokens(tmp_path: Path) -> None:
    tokens = byte_tokens()
    assert tokens.encode("aé\n") == list("aé\n".encode())
    assert tokens.vocab_size == 258
    file = tmp_path / "raw.bin"
    file.write_bytes(bytes(range(256)))
    found = read_corpus(file, tokens, 101, bytewise=True)
    assert [text.ids for text in found] == [(256, *range(100)), (256, *range(100, 200))]


def test_orders_of_tokens() -> None:
    pair, plain = Text((256, 1, 2, 3, 4), 3), Text((256, 1, 2, 3), 1)

    def one(text: Text, order: str) -> Text:
        return ordered([text], order, 256, seed=0)[0]

    assert one(pair, "forward") == pair
    assert one(pair, "backward") == Text((256, 1, 2, 4, 3), 3)
    assert one(pair, "joint") == Text((256, 1, 2, 3, 4), 1)
    assert one(pair, "swapped") == Text((256, 3, 4, 1, 2), 1)
    assert one(plain, "backward") == Text((256, 3, 2, 1), 1)
    assert sorted(one(plain, "shuffled").ids) == sorted(plain.ids)
    with pytest.raises(ValueError, match="these texts have not"):
        one(plain, "swapped")


def test_rates_fall_with_the_width() -> None:
    groups = scaled_adam(3e-3)(fresh(small_config(32, 1, 258, 8), 0)).param_groups
    rates = {tuple(p.shape): group["lr"] for group in groups for p in group["params"]}
    assert rates[32, 32] == pytest.approx(6e-3)
    assert rates[32, 128] == pytest.approx(1.5e-3)
    assert rates[(32,)] == 3e-3


def waver(*options: Any, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["data", "epiplexity", *map(str, options)], env={"COLUMNS": "400"})
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    rng = random.Random(0)
    words = ["carrot", "lantern", "opens", "slowly", "the", "river", "beside", "seven", "a", "green"]
    text = " ".join(rng.choice(words) for _ in range(6000))
    made = {"words": text.encode(), "noise": rng.randbytes(len(text)), "same": b"a" * len(text)}
    for name, content in made.items():
        (folder / f"{name}.txt").write_bytes(content)
    return {name: folder / f"{name}.txt" for name in made}


QUICK = ("--size", "32x1", "--length", "32", "--batch", "16", "--warmup", "5", "--learning-rate", "1e-2")


def test_corpora_are_ranked(files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    options = (*files.values(), "--out", out, "--tokens", "16000", *QUICK)
    said = waver(*options)
    assert "1. words.txt (forward)" in said
    report = json.loads((out / "report.json").read_text())
    rows = {row["corpus"].split(".")[0]: row for row in report["rows"]}
    assert [row["s"] for row in report["rows"]] == sorted((row["s"] for row in report["rows"]), reverse=True)
    assert rows["noise"]["h"] > rows["words"]["h"] > rows["same"]["h"]
    assert rows["words"]["s"] > 2 * max(rows["noise"]["s"], 1)
    assert rows["noise"]["loss_bits"] == pytest.approx(8, abs=0.15)
    assert report["unreliable"] == ["s_shortcut", "s_area"]
    assert "The last two columns are unreliable" in (out / "README.md").read_text()
    assert (out / "structure.png").stat().st_size > 1000
    # A stopped run goes on: of the lines that are there nothing is computed again.
    lines = read_lines(out / "runs.jsonl")
    (out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:2]) + '{"corpus": "ha')
    with monkeypatch.context() as patch:
        from waver.training.selection.epiplexity import run

        real, called = run._one, []
        patch.setattr(run, "_one", lambda *given: called.append(1) or real(*given))
        waver(*options)
    assert len(called) == 1
    again = {row["corpus"]: row["s"] for row in json.loads((out / "report.json").read_text())["rows"]}
    assert again == {row["corpus"]: row["s"] for row in report["rows"]}
    assert "holds another run" in waver(*options, "--seed", "2", code=1)


def test_rollouts_sizes_and_the_requential_code(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = []
    for _ in range(120):
        prompt = "".join(rng.choice("abcdefgh") for _ in range(4))
        rows.append({"prompt": prompt, "completion": prompt.upper()})
    file, out = tmp_path / "rollouts.jsonl", tmp_path / "run"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    orders = ("--order", "forward", "--order", "swapped")
    waver(file, "--out", out, *orders, "--requential", *QUICK, "--size", "64x1")
    report = json.loads((out / "report.json").read_text())
    assert report["estimator"] == "requential"
    assert report["tokens"] == 108 * 4
    assert report["budget"] > 0
    assert {row["order"] for row in report["rows"]} == {"forward", "swapped"}
    assert all(line["s_requential"] > 0 for line in read_lines(out / "runs.jsonl"))
    assert {line["size"] for line in read_lines(out / "runs.jsonl")} == {"32x1", "64x1"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--order", "best"), "there is no order 'best'"),
        (("--order", "swapped"), "which these texts have not"),
        (("--size", "10x2"), "a width that 32 divides"),
        (("--size", "large"), "WIDTHxDEPTH"),
        (("--pretrained",), "give one"),
        (("--max-kl", "0.1"), "give both"),
        (("--budget", "1e9"), "several --size"),
        (("--tokens", "99999999"), "none is learned twice"),
        (("--length", "8000"), "fewer than ten texts"),
        (("--model", "."), "cannot load '.'"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: tuple[str, ...], reason: str, files: dict[str, Path], tmp_path: Path
) -> None:
    assert reason in waver(files["words"], "--out", tmp_path / "run", *options, code=1)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    assert "No such file" in waver(tmp_path / "none.txt", "--out", tmp_path / "run", code=1)
    (tmp_path / "bad.jsonl").write_text("{")
    assert "line 1: not JSON" in waver(tmp_path / "bad.jsonl", "--out", tmp_path / "run", code=1)


def test_a_training_run_logs_what_it_takes_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, num_key_value_heads=1, **shape))
    texts = [Text((0, 1, 2, 3, 4), 3)] * 8
    arguments = trainer.arguments(tmp_path, trainer.Schedule(8, 2, 1e-2, 100, 1))
    logger = EpiplexityLogger(tmp_path / "information.jsonl")
    made = Trainer(
        model,
        arguments,
        data_collator=lambda rows: padded([row["value"] for row in rows]),
        train_dataset=trainer.as_rows(texts),
        callbacks=[logger],
    )
    made.train()
    lines = read_lines(tmp_path / "information.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]  # one epoch of two
    assert [line["tokens"] for line in lines] == [4, 8, 12, 16]
    losses = [each["loss"] for each in made.state.log_history if "loss" in each]
    assert [line["loss"] for line in lines] == losses[:4]
    wanted = sum((losses[i] + losses[i + 1]) / 2 - losses[3] for i in range(3)) * 4 / lengths.LN2
    assert lines[-1]["s_area"] == pytest.approx(wanted)
    assert not any(line["reliable"] for line in lines)
