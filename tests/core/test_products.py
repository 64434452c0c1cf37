"""Layers that train by oneDNN's products give what PyTorch's give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lmms_eval_emi.core import products
from lmms_eval_emi.core.products import Linear, has_onednn, product


def layers(inputs: int, outputs: int, bias: bool) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    own, theirs = Linear(inputs, outputs, bias), nn.Linear(inputs, outputs, bias)
    theirs.load_state_dict(own.state_dict())
    return own, theirs


@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(24, 7, True), (7, 24, True), (24, 7, False)])
@pytest.mark.parametrize("of_inputs", [True, False])
def test_outputs_and_gradients_are_those_of_pytorchs_layer(inputs, outputs, bias, of_inputs):
    own, theirs = layers(inputs, outputs, bias)
    found = []
    for layer in (own, theirs):
        x = torch.linspace(-1, 1, 33 * inputs).reshape(33, inputs).requires_grad_(of_inputs)
        y = layer(x)
        (y.tanh() ** 2).sum().backward()
        found.append([y.detach(), x.grad, *(one.grad for one in layer.parameters())])
    for mine, expected in zip(*found, strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None:
            assert mine.shape == expected.shape
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(products.ONEDNN is None, reason="this PyTorch has no oneDNN")
def test_training_takes_onednn_and_nothing_else_does(monkeypatch):
    taken = []
    onednn = products.ONEDNN
    monkeypatch.setattr(products, "ONEDNN", lambda *arguments: taken.append(1) or onednn(*arguments))
    own, theirs = layers(8, 5, True)
    x = torch.randn(3, 8)
    own(x)
    assert len(taken) == 1
    with torch.no_grad():
        assert torch.equal(own(x), theirs(x))
    assert torch.equal(own.eval()(x), theirs(x)), "scores of a trained layer are PyTorch's to the last bit"
    own.train().double()(x.double())
    assert len(taken) == 1


def test_a_frozen_layer_has_no_gradient_and_passes_one_on():
    own, _ = layers(6, 4, True)
    own.requires_grad_(False)
    x = torch.randn(5, 6, requires_grad=True)
    own(x).sum().backward()
    torch.testing.assert_close(x.grad, own.weight.sum(dim=0).expand(5, 6))
    assert own.weight.grad is None and own.bias.grad is None


def test_without_onednn_products_are_pytorchs(monkeypatch):
    monkeypatch.setattr(products, "ONEDNN", None)
    own, theirs = layers(6, 4, True)
    x = torch.randn(5, 6)
    assert not has_onednn(x)
    assert torch.equal(own(x), theirs(x)) and torch.equal(product(x, own.weight), x @ own.weight.T)
    assert torch.equal(product(x, own.weight, act="swish"), nn.functional.silu(x @ own.weight.T))
