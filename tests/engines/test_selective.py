"""The selective scan, its zero gate and the fixed simplex, against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu, softplus

from waver.engines.selective import (
    Projector,
    SelectiveScan,
    Shape,
    centred_simplex,
    cosines,
    scan_orders,
    selective_scan,
    simplex,
)

F64 = torch.float64


def test_scan() -> None:
    x = torch.tensor([1.0, -1.0, 2.0], dtype=F64)[None, :, None]
    a = torch.tensor([[-1.0, -2.0]], dtype=F64)
    delta = softplus(torch.tensor([0.0, 1.0, -1.0], dtype=F64))
    assert delta.tolist() == pytest.approx([0.69314718, 1.31326169, 0.31326169], abs=1e-8)
    b = torch.tensor([[[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]], dtype=F64)
    c = torch.tensor([[[1.0, 1.0], [1.0, 0.0], [0.5, 2.0]]], dtype=F64)
    y = selective_scan(x, delta[None, :, None], a, b, c, torch.ones(1, dtype=F64)).flatten()
    assert y.tolist() == pytest.approx([1.69314718, -1.47021486, 2.37930115], abs=1e-8)
    gated = y * silu(torch.tensor([0.0, 1.0, -1.0], dtype=F64))
    assert gated.tolist() == pytest.approx([0.0, -1.07481318, -0.63989263], abs=1e-8)


def test_simplex() -> None:
    w = centred_simplex(torch.eye(3, dtype=F64))
    off = ~torch.eye(3, dtype=torch.bool)
    assert w.diagonal().tolist() == pytest.approx([0.81649658] * 3, abs=1e-8)
    assert w[off].tolist() == pytest.approx([-0.40824829] * 6, abs=1e-8)
    assert (w.T @ w)[off].tolist() == pytest.approx([-0.5] * 6)
    made = simplex(24, 19, torch.Generator().manual_seed(0))
    gram = made.T @ made
    assert gram.diagonal().tolist() == pytest.approx([1.0] * 19)
    assert gram[~torch.eye(19, dtype=torch.bool)].tolist() == pytest.approx([-1 / 18] * 342)
    with pytest.raises(ValueError, match="2 to 4 classes in 4 dimensions, not 5"):
        simplex(4, 5)


def test_orders_and_convolution() -> None:
    assert ["".join(map(str, order)) for order in scan_orders(2, 2).tolist()] == ["0123", "3210", "0213", "3120"]
    assert scan_orders(1, 3).tolist() == [[0, 1, 2], [2, 1, 0]]
    block = SelectiveScan(1, 2, 2, scan_orders(1, 3))
    with torch.no_grad():
        block.conv.weight.copy_(torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]))
        block.conv.bias.fill_(0.5)  # type: ignore[union-attr]
        found = block.conv(torch.tensor([[[1.0, -1.0, 2.0]]]))[..., :3].flatten()
    assert found.tolist() == pytest.approx([0.9, 0.4, 1.2])


def test_outputs_return_to_their_tokens() -> None:
    """Scans of a reversed map are the reversed scans, as all orders share their weights."""
    torch.manual_seed(0)
    block = SelectiveScan(4, 3, 2, scan_orders(1, 5)).double()
    x = torch.randn(2, 5, 4, dtype=F64)
    out, trace = block(x)
    assert torch.allclose(block(x.flip(1))[0], out.flip(1))
    one = SelectiveScan(4, 3, 2, scan_orders(1, 5)[:1]).double()
    one.load_state_dict(block.state_dict())
    other, own = one(x)
    assert not torch.allclose(other, out)
    assert torch.allclose(trace.gates, 2 * own.gates)
    assert torch.equal(trace.b, own.b)
    steps = softplus(block.step.bias)
    assert ((steps >= 1e-4) & (steps <= 0.1001)).all()


def test_a_closed_gate_gives_nothing_and_learns() -> None:
    x, y = torch.tensor([1.0, 2.0], dtype=F64), torch.tensor([0.5, -0.3], dtype=F64)
    w = torch.zeros(2, 2, dtype=F64, requires_grad=True)
    out = y * silu(w @ x)
    out.sum().backward()
    assert out.tolist() == [0.0, 0.0]
    assert w.grad is not None
    assert w.grad.flatten().tolist() == pytest.approx([0.25, 0.5, -0.15, -0.3])

    torch.manual_seed(1)
    model = Projector(Shape(6, 1, 4, 8))
    maps = torch.randn(3, 4, 6)
    before = model.eval()(maps)[0]
    model.begin_increments()
    after, _ = model(maps)
    assert torch.equal(before, after), "nothing changes when the second branch begins"
    after.sum().backward()
    assert model.new is not None
    gate = model.new.scan.inward.weight.grad
    assert gate is not None
    assert float(gate[8:].abs().max()) > 0
    assert all(p.grad is None for p in model.base.parameters())
    second = model.new
    model.begin_increments()
    assert model.new is second
    found = cosines(after.detach(), simplex(8, 5).float(), 3)
    assert found.shape == (3, 3)
    assert float(found.abs().max()) <= 1
