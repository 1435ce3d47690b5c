"""DynMoLE and Queryable LoRA as tuners of PEFT: worked numbers, saving and loading, merging where it is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

pytest.importorskip("peft")

import peft

from waver.engines import tuners
from waver.engines.tuners.dynmole import DynMoleConfig, DynMoleLayer
from waver.engines.tuners.queryable import (
    QueryableLoraConfig,
    QueryableLoraLayer,
    depth_summary,
    query_logits,
)
from waver.engines.tuners.routing import usage
from waver.engines.vllm.unsupported import refuse_adapter

KINDS: dict[str, Any] = {
    "dynmole": lambda **more: DynMoleConfig(r=2, alpha=4, dropout=0.0, experts=3, **more),
    "queryable_lora": lambda **more: QueryableLoraConfig(r=3, alpha=6, atoms=4, block=2, **more),
}
IDS = torch.arange(3, 15).view(2, 6)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)).eval()


def adapted(config: Any, model: nn.Module | None = None, seed: int = 1) -> Any:
    """Return a model with an adapter that changes something."""
    torch.manual_seed(seed)
    made = peft.get_peft_model(model or llama(), config).eval()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "_B." in name:
                weight.normal_(0, 0.3)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


class One(nn.Module):
    """One linear layer of zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.layer(x)
        return made


def test_the_worked_example_of_dynmole() -> None:
    config = DynMoleConfig(r=1, alpha=2, dropout=0.0, experts=3, target_modules=["layer"])
    model = peft.get_peft_model(One(2, 2), config).eval()
    layer = model.base_model.model.layer
    assert isinstance(layer, DynMoleLayer)
    x = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    wanted = torch.tensor([0.7, 0.2, 0.1]).log()
    layer.dynmole_router["default"].data = torch.stack([wanted, torch.zeros(3)], -1)  # its product with x is the log
    layer.dynmole_A["default"].data = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
    layer.dynmole_B["default"].data = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]], [[1.0], [-1.0]]])
    with torch.no_grad(), model.base_model.recorder.recording() as decisions:
        assert model(x).flatten().tolist() == pytest.approx([1.4, 0.8], abs=1e-6)
    (decision,) = decisions
    assert decision.weights.flatten().tolist() == pytest.approx([0.7, 0.2, 0])
    assert float(decision.entropy) == pytest.approx(0.71892159, abs=1e-6)
    found = usage(decisions)
    assert (found.active, found.everywhere) == (2.0, 0.0)
    assert found.shares == pytest.approx([7 / 9, 2 / 9, 0])


def test_the_worked_example_of_queryable_lora() -> None:
    def matrix(*rows: list[float]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float32)

    z, m = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0])
    query, keys = matrix([1, 0, 2, 0], [0, 1, 0, -1]), matrix([1, 0], [0, 1], [-1, -1])
    found = query_logits(torch.cat([z, m]), query, torch.zeros(2), keys)
    assert found.tolist() == pytest.approx([1.41421356, -1.41421356, 0], abs=1e-6)
    earlier = matrix([1, 0], [0, 2])
    summary = depth_summary(torch.tensor([1.0, -2.0]), earlier, torch.eye(2))
    assert summary.tolist() == pytest.approx([0.97168208, 0.05663584], abs=1e-6)
    mixing = matrix([1, 2], [3, 4])  # the scores are (W_s' z) . v
    wanted = ((mixing.T @ z) @ earlier.T / 2**0.5).softmax(-1) @ earlier
    assert torch.allclose(depth_summary(z, earlier, mixing), wanted)

    config = QueryableLoraConfig(r=2, alpha=4, atoms=3, query=2, top=None, block=1, target_modules=["layer"])
    model = peft.get_peft_model(One(2, 3), config).eval()
    tuner = model.base_model
    atoms = torch.stack([torch.eye(2), matrix([0, 1], [1, 0]), matrix([2, 0], [0, -1])])
    tuner.queryable_atoms["default"].data = atoms.unsqueeze(0)
    tuner.queryable_keys["default"].data = keys.unsqueeze(0)
    # The first block's summary is 0: the query's bias stands for what m adds to it.
    tuner.queryable_query["default"].data = query.unsqueeze(0)
    tuner.queryable_bias["default"].data = (query @ torch.cat([torch.zeros(2), m])).view(1, 1, 2)
    layer = tuner.model.layer
    layer.queryable_A["default"].data = torch.eye(2)
    layer.queryable_B["default"].data = matrix([1, 0], [0, 1], [1, 1])
    put = model(z.double().view(1, 1, 2)).detach()
    assert put.flatten().tolist() == pytest.approx([2.10105722, -2.23412022, -0.13306299], abs=1e-5)
    operator = tuner.operator("default", 0, 0, z, []).detach()
    assert operator.flatten().tolist() == pytest.approx([1.14130534, 0.04538836, 0.04538836, 0.58122424], abs=1e-6)
    assert float(operator.norm()) == pytest.approx(1.28238828, abs=1e-6)
    assert float(operator.norm()) <= max(float(atom.norm()) for atom in atoms)
    config.top = 2
    routed = (tuner.operator("default", 0, 0, z, []) @ z).detach()
    assert routed.tolist() == pytest.approx([1.19557032, -1.21771873], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_as_the_base_and_is_switched_off(kind: str) -> None:
    base = logits(llama())
    config = KINDS[kind](target_modules="all-linear", task_type="CAUSAL_LM")
    fresh = peft.get_peft_model(llama(), config)
    assert torch.equal(logits(fresh.eval()), base)
    changed = adapted(config)
    assert not torch.allclose(logits(changed), base, atol=1e-3)
    with changed.disable_adapter():
        assert torch.equal(logits(changed), base)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_and_loaded_as_peft_does(kind: str, tmp_path: Path) -> None:
    made = adapted(KINDS[kind](target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    made.save_pretrained(tmp_path)
    assert tuners.adapter_type(str(tmp_path)) == kind.upper()
    loaded = peft.PeftModel.from_pretrained(llama(), tmp_path, adapter_name="mine")
    assert torch.equal(logits(loaded.eval()), logits(made))
    assert not any(weight.requires_grad for weight in loaded.parameters())
    loaded.add_adapter("other", KINDS[kind](target_modules=["q_proj"], task_type="CAUSAL_LM"))
    loaded.set_adapter("other")
    assert torch.equal(logits(loaded), logits(llama()))
    loaded.set_adapter("mine")
    assert torch.equal(logits(loaded), logits(made))


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_merged_only_where_that_is_exact(kind: str, tmp_path: Path) -> None:
    routed = adapted(KINDS[kind](target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="updates each token otherwise"):
        routed.merge_and_unload()
    with pytest.raises(ValueError, match="updates each token otherwise"):
        routed.merge_adapter()
    routed.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vLLM cannot route each token"):
        refuse_adapter("mine", str(tmp_path))
    refuse_adapter("mine", str(tmp_path / "nowhere"))

    single: Any = {"experts": 1} if kind == "dynmole" else {"atoms": 1}
    config = KINDS[kind](target_modules="all-linear", task_type="CAUSAL_LM")
    for name, value in single.items():
        setattr(config, name, value)
    made = adapted(config)
    wanted = logits(made)
    made.merge_adapter()
    assert torch.allclose(logits(made), wanted, atol=1e-5)
    made.unmerge_adapter()
    assert torch.allclose(logits(made), wanted, atol=1e-5)
    merged = made.merge_and_unload()
    assert type(merged) is LlamaForCausalLM
    assert torch.allclose(logits(merged), wanted, atol=1e-5)
    assert not any(isinstance(each, DynMoleLayer | QueryableLoraLayer) for each in merged.modules())


def test_one_atom_that_is_the_identity_is_lora() -> None:
    config = QueryableLoraConfig(r=3, alpha=6, atoms=1, target_modules="all-linear", task_type="CAUSAL_LM")
    made = adapted(config)
    made.base_model.queryable_atoms["default"].data = torch.eye(3).expand(7, 1, 3, 3).clone()
    lora = peft.get_peft_model(
        llama(), peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    ).eval()
    layers = dict(made.named_modules())
    for name, module in lora.named_modules():
        if hasattr(module, "lora_A"):
            module.lora_A["default"].weight.data = layers[name].queryable_A["default"].data
            module.lora_B["default"].weight.data = layers[name].queryable_B["default"].data
    assert torch.allclose(logits(made), logits(lora), atol=1e-6)


def test_atoms_may_be_permuted_with_their_keys() -> None:
    made = adapted(KINDS["queryable_lora"](target_modules="all-linear", task_type="CAUSAL_LM"))
    before, order = logits(made), torch.tensor([2, 0, 3, 1])
    for name in ("atoms", "keys"):
        shared = getattr(made.base_model, f"queryable_{name}")["default"]
        shared.data = shared.data[:, order]
    assert torch.allclose(logits(made), before, atol=1e-5)


def test_queries_see_what_earlier_blocks_did() -> None:
    """A change in the first block reaches the operators of the second through the summary alone."""
    config = KINDS["queryable_lora"](target_modules=["q_proj"], task_type="CAUSAL_LM")
    made = adapted(config)
    tuner, state = made.base_model, torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(0))
    one, other = (tuner.operator("default", 0, 1, state, [earlier]) for earlier in (state, -3 * state))
    assert not torch.allclose(one, other)
    config.summary = False
    one, other = (tuner.operator("default", 0, 1, state, [earlier]) for earlier in (state, -3 * state))
    assert torch.equal(one, other)


def test_priors_over_atoms() -> None:
    made = adapted(
        QueryableLoraConfig(
            r=3, alpha=6, atoms=4, top=None, instruction=5, target_modules=["q_proj"], task_type="CAUSAL_LM"
        )
    )
    tuner, plain = made.base_model, logits(made)
    with tuner.prior(torch.full((4,), 0.25)):
        assert torch.allclose(logits(made), plain, atol=1e-6)  # an even one changes nothing
    with tuner.prior(torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.25, 0.25, 0.25, 0.25]])):
        told = logits(made)
    assert not torch.allclose(told[0], plain[0], atol=1e-4)  # a row for each text
    assert torch.allclose(told[1], plain[1], atol=1e-6)
    embedding = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    with tuner.instructed(8 * embedding):
        one = logits(made)
    with tuner.instructed(-8 * embedding):
        other = logits(made)
    assert not torch.allclose(one, other, atol=1e-4)
    log = tuner._log_prior
    with tuner.instructed(1000 * embedding):
        assert float(log("default", 0).detach().exp().min()) >= 1e-3 / 1.004
    without = adapted(KINDS["queryable_lora"](target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="no priors from instructions"), without.base_model.instructed(embedding):
        pass


def test_padding_does_not_enter_the_losses() -> None:
    config = KINDS["dynmole"](target_modules="all-linear", task_type="CAUSAL_LM")
    made = adapted(config)
    tuner = made.base_model

    def losses(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with tuner.recorder.recording() as decisions:
            made(input_ids=ids, attention_mask=mask)
        return tuner.losses(decisions).total

    whole = losses(IDS[:, :4], torch.ones(2, 4, dtype=torch.long))
    padded = torch.cat([IDS[:, :4], torch.zeros(2, 3, dtype=torch.long)], 1)
    mask = (torch.arange(7) < 4).long().expand(2, 7)
    assert torch.allclose(losses(padded, mask), whole, atol=1e-6)
    config.mask_padding = False
    assert not torch.allclose(losses(padded, mask), whole, atol=1e-6)
    whole.backward()
    routers = [weight.grad for name, weight in made.named_parameters() if "router" in name]
    assert len(routers) == 21
    assert all(grad is not None and float(grad.abs().sum()) > 0 for grad in routers)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: DynMoleConfig(experts=0), "needs r, experts"),
        (lambda: DynMoleConfig(q=0), "0 < q <= 2"),
        (lambda: QueryableLoraConfig(atoms=0), "needs r, atoms"),
    ],
)
def test_what_cannot_be_configured(make: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()
