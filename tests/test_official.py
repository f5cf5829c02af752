"""The published names against a straightforward reading of the published formulas, lazy maps included."""

from __future__ import annotations

import pytest
import torch
from attention_cases import make_features, relative_error

import agmh_fast as af
from agmh_fast import functional
from agmh_fast.official import (
    AGMH,
    ADSH_Loss,
    Feat_Loss,
    LazyAttention,
    SIExtAttn,
    agmh,
    mean_average_precision,
    solve_dcc,
)
from agmh_fast.reference import hashing as reference
from agmh_fast.reference.attention import StepwiseExternalAttention
from agmh_fast.reference.dispersion import attention_dispersion


def _attentions(count: int = 3, dim: int = 10) -> list[SIExtAttn]:
    return [SIExtAttn(dim, 4).double() for _ in range(count)]


def _reference_of(attention: SIExtAttn) -> StepwiseExternalAttention:
    twin = StepwiseExternalAttention(attention.conv1.in_channels, len(attention.qry_conv)).double()
    twin.load_state_dict(attention.state_dict())
    return twin.train(attention.training)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_standalone_attention_and_loss(shared, training):
    """Chunks of one tensor are used in place, separate tensors are put side by side: the same loss, gradients,
    statistics.
    """
    attentions = _attentions()
    for attention in attentions:
        attention.train(training)
    twins = [_reference_of(attention) for attention in attentions]
    whole = make_features(3, 10, 4, 5, 3)
    leaf = whole.clone().requires_grad_()
    parts = list((leaf * 1.0).chunk(3, dim=1)) if shared else [p.clone() for p in leaf.chunk(3, dim=1)]
    maps = [attend(part) for attend, part in zip(attentions, parts, strict=True)]
    assert all(isinstance(m, LazyAttention) and isinstance(m, torch.Tensor) for m in maps)
    assert maps[0].shape == (4, 10, 5, 3)
    loss = Feat_Loss()(None, parts, maps, "cpu")
    assert all(m._tensor is None for m in maps)
    other = whole.clone().requires_grad_()
    expected = attention_dispersion([t(p) for t, p in zip(twins, other.chunk(3, dim=1), strict=True)])
    assert relative_error(loss, expected) < 1e-12
    loss.backward()
    expected.backward()
    assert relative_error(leaf.grad, other.grad) < 1e-10
    for attention, twin in zip(attentions, twins, strict=True):
        for (name, p), q in zip(attention.named_parameters(), twin.parameters(), strict=True):
            if name == "conv1.bias":
                assert not p.grad.any()
            else:
                assert relative_error(p.grad, q.grad) < 1e-10, name
        for name, buffer in attention.named_buffers():
            assert relative_error(buffer, twin.get_buffer(name)) < 1e-12, name


def test_fused_features_are_not_copied(monkeypatch):
    attentions, leaf = _attentions(2), make_features(2, 10, 2, 3, 3)
    seen = []
    original = functional.attention_dispersion
    monkeypatch.setattr(functional, "attention_dispersion", lambda f, *a, **k: seen.append(f) or original(f, *a, **k))
    Feat_Loss()(
        None, None, [attend(part) for attend, part in zip(attentions, leaf.chunk(2, dim=1), strict=True)], "cpu"
    )
    assert seen[0] is leaf


def test_chunks_made_without_gradients_pass_none_on():
    attentions, leaf = _attentions(2), make_features(2, 10, 2, 3, 3).requires_grad_()
    with torch.no_grad():
        parts = (leaf * 1).chunk(2, dim=1)
        views = leaf.chunk(2, dim=1)
    for chunks in (parts, views):
        loss = Feat_Loss()(None, None, [attend(x) for attend, x in zip(attentions, chunks, strict=True)], "cpu")
        assert torch.autograd.grad(loss, leaf, allow_unused=True) == (None,)


def test_lazy_maps_behave_as_tensors():
    (attention,) = _attentions(1)
    twin, x = _reference_of(attention), make_features(1, 10, 3, 4, 4).requires_grad_()
    expected, lazy = twin(x), attention(x)
    assert (lazy.dtype, lazy.device, lazy.dim(), lazy.size(1), len(lazy)) == (torch.float64, x.device, 4, 10, 3)
    assert lazy._tensor is None
    for actual, wanted in (
        (lazy.max(dim=1)[0], expected.max(dim=1)[0]),
        (torch.relu(lazy) + 1, torch.relu(expected) + 1),
        (lazy[0, :2], expected[0, :2]),
        (torch.stack([lazy, lazy]), torch.stack([expected, expected])),
        (2 * lazy, 2 * expected),
        (lazy.detach(), expected.detach()),
    ):
        assert not isinstance(actual, LazyAttention)
        assert relative_error(actual, wanted) < 1e-12
    assert lazy.detach().numpy().shape == (3, 10, 4, 4)
    assert "grad_fn" in repr(lazy)
    gradient = torch.autograd.grad(lazy.square().sum(), x)[0]
    assert relative_error(gradient, torch.autograd.grad(expected.square().sum(), x)[0]) < 1e-10


def test_statistics_move_once_however_a_map_is_used():
    attentions, x = _attentions(2), make_features(2, 10, 3, 4, 4)
    twins = [_reference_of(attention) for attention in attentions]
    maps = [attend(part) for attend, part in zip(attentions, x.chunk(2, dim=1), strict=True)]
    Feat_Loss()(None, None, maps, "cpu")
    maps[0].sum(), maps[0].mean()
    mixed = Feat_Loss()(None, None, maps, "cpu")
    expected = [t(part) for t, part in zip(twins, x.chunk(2, dim=1), strict=True)]
    assert relative_error(mixed, attention_dispersion(expected)) < 1e-12
    for attention, twin in zip(attentions, twins, strict=True):
        assert int(attention.conv2[1].num_batches_tracked) == 1
        assert relative_error(attention.conv2[1].running_var, twin.conv2[1].running_var) < 1e-12


@pytest.fixture(scope="module")
def model() -> AGMH:
    return agmh(16, 200, 1, 2048, "cpu", pretrained=False, num_descriptors=2)


def test_model_returns_the_published_tuple_and_keys(model):
    keys = set(model.state_dict())
    assert "backbone.layer4.2.conv3.weight" in keys
    assert not any(key.startswith("backbone.fc") for key in keys)
    for name in (
        "conv_list.1.0.bias",
        "conv_list.0.1.running_var",
        "attn_list.1.conv1.weight",
        "attn_list.0.qry_conv.3.weight",
    ):
        assert f"refine.{name}" in keys
    assert "refine.attn_list.0.alt_conv.3.weight" not in keys
    assert model.hash_map.shape == (16, 1024)
    fast = af.AGMH.from_official(model.state_dict())
    round_trip = fast.to_official_state_dict()
    assert set(round_trip) == keys
    assert all(torch.equal(value, round_trip[key]) for key, value in model.state_dict().items())
    images = torch.randn(2, 3, 32, 48)
    embedding, back_feat, feat_group, attn_group = model.train()(images, is_train=True)
    out = fast.train()(images)
    loss = Feat_Loss()(back_feat, feat_group, attn_group, "cpu")
    # Float32 through fifty layers in two groupings of the same sums.
    assert relative_error(embedding, out.embedding) < 1e-3
    assert relative_error(loss, out.attention_dispersion) < 1e-3
    assert back_feat.shape == (2, 2048, 2, 3)
    assert [f.shape for f in feat_group] == [(2, 512, 2, 3)] * 2
    (embedding.sum() + loss).backward()
    assert all(p.grad is not None for p in model.parameters())
    after = fast.to_official_state_dict()
    for name, buffer in model.named_buffers():
        assert torch.allclose(buffer.double(), after[name].double(), rtol=1e-3, atol=1e-5), name


def test_a_published_iteration(model):
    """Loss, discrete step and mAP in the published call signatures, against group sums and a brute-force ranking."""
    count, bits, m = 40, 16, 12
    labels = torch.randint(0, 4, (count,))
    onehot, sampled = torch.nn.functional.one_hot(labels).float(), torch.randperm(count)[:m]
    S = torch.where(onehot[sampled] @ onehot.T > 0, 1.0, -1.0)
    r = S.sum() / (1 - S).sum()
    S = S * (1 + r) - r
    state = af.train.HashingState(labels, bits, gamma=200.0)
    state.begin_iteration(sampled)
    B, U = state.codes.clone(), torch.tanh(torch.randn(m, bits))
    pairwise, quantization = ADSH_Loss(bits, 200)(U, B, S, sampled)
    loss = functional.asymmetric_hashing_loss(U, sampled, state)
    # Float32 sums of N·m terms against float64 ones.
    assert pairwise.item() == pytest.approx(loss.pairwise.item(), rel=1e-5)
    assert quantization.item() == pytest.approx(loss.quantization.item(), rel=1e-5)
    expand_U = torch.zeros_like(B)
    expand_U[sampled] = U
    codes = solve_dcc(B, U, expand_U, S, bits, 200)
    assert codes is B
    expected = reference.discrete_step(
        state.codes.double(), U.double(), sampled, reference.similarity(labels[sampled], labels), 200.0
    )
    assert torch.equal(codes.double(), expected)

    queries, query_onehot = (
        torch.randn(9, bits).sign(),
        torch.nn.functional.one_hot(torch.randint(0, 4, (9,)), 4).float(),
    )
    for topk in (None, 5, -1):
        total = 0.0
        for q, target in zip(queries, query_onehot, strict=True):
            order = torch.argsort(0.5 * (bits - codes @ q), stable=True)
            hits = (onehot[order] @ target > 0)[: topk if topk and topk > 0 else count].double()
            ranks = torch.nonzero(hits)[:, 0] + 1
            if len(ranks):
                total += (torch.arange(1, len(ranks) + 1) / ranks).mean().item()
        score = mean_average_precision(queries, codes, query_onehot, onehot, "cpu", topk)
        assert score == pytest.approx(total / 9, abs=1e-6)


def test_bad_input_is_named():
    with pytest.raises(af.InputError, match="feat_size must be 2048"):
        agmh(16, 200, 1, 1024, "cpu")
    with pytest.raises(af.InputError, match="attn_group is empty"):
        Feat_Loss()(None, [], [], "cpu")
