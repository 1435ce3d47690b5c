"""CRReLU: its values and slopes, its gradients, and models that transformers builds with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from waver.engines.activations import START, CRReLU, register

POINTS = torch.tensor([-4, -2, -1, -0.5, 0, 0.5, 1, 2, 4], dtype=torch.float64)


def test_values_and_slopes() -> None:
    x = POINTS.clone().requires_grad_()
    module = CRReLU().double()
    found = module(x)
    wanted = [-0.0000134185, -0.0027067057, -0.0060653066, -0.0044124845, 0]
    wanted += [0.5044124845, 1.0060653066, 2.0027067057, 4.0000134185]
    assert found.detach().tolist() == pytest.approx(wanted, abs=1e-9)
    found.sum().backward()
    slopes = [-0.0000503194, -0.0040600585, 0, 0.0066187268, 0.01, 1.0066187268, 1, 0.9959399415, 0.9999496806]
    assert x.grad is not None
    assert x.grad.tolist() == pytest.approx(slopes, abs=1e-9)
    assert module.eps.grad is not None
    assert float(module.eps.grad) == pytest.approx(0, abs=1e-12)  # the correction is odd
    assert float(CRReLU(0.5).double()(torch.tensor(-1.0).double()).detach()) == pytest.approx(-0.3032653299, abs=1e-9)
    assert float(CRReLU(-0.5).double()(torch.tensor(1.0).double()).detach()) == pytest.approx(0.6967346702, abs=1e-9)


def test_gradients() -> None:
    x = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    module = CRReLU(0.3).double()
    assert torch.autograd.gradcheck(
        lambda x, eps: torch.func.functional_call(module, {"eps": eps}, (x,)), (x, module.eps)
    )


def test_a_compiled_module_has_the_same_gradients() -> None:
    x = torch.linspace(-3, 3, 101)
    found = []
    for module in (plain := CRReLU(0.3), torch.compile(CRReLU(0.3), backend="aot_eager", fullgraph=True)):
        given = x.clone().requires_grad_()
        out = module(given)
        out.square().sum().backward()
        eps = next(iter(module.parameters()))
        assert given.grad is not None
        assert eps.grad is not None
        found.append((out.detach(), given.grad, eps.grad))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    assert float(plain.eps.grad) != 0  # type: ignore[arg-type]


def test_half_precision_is_computed_in_float32() -> None:
    x = torch.linspace(-3, 3, 101).bfloat16()
    assert torch.equal(CRReLU(0.1)(x), CRReLU(0.1)(x.float()).bfloat16())


def test_a_model_with_it_is_built_saved_and_loaded(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 40,
    }
    register()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(hidden_act="crrelu", **sizes))
    assert [float(layer.mlp.act_fn.eps.detach()) for layer in model.model.layers] == pytest.approx([START] * 2)
    with torch.no_grad():
        model.model.layers[1].mlp.act_fn.eps.fill_(-0.25)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert float(again.model.layers[1].mlp.act_fn.eps.detach()) == -0.25
