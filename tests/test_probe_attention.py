"""Rows of attention, found in the graph of the loss, against numbers worked out by hand or formed plainly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gradiometer
import trainings
from gradiometer.probe import attention, graph
from gradiometer.record.frames import Group

Row = list[float]


def rows_of(out: Tensor) -> dict[str, Row]:
    """Name -> row of every place of attention in the graph of ``out``."""
    nodes, _ = graph.walk([out])
    rows: dict[str, Row] = {}
    for found in attention.find(nodes):
        with torch.no_grad():
            measured = attention.measure(found, 0)
        assert measured is not None
        rows[f"{found.name} {len(rows)}"] = [float(v) for v in measured[0]]
    return rows


def row_of(out: Tensor) -> Row:
    (row,) = rows_of(out).values()
    return row


def plainly(weights: Tensor, logits: Tensor | None, choices: Tensor) -> Row:
    """The row of all weights, formed plainly; to compare with, there must be few enough that all are looked at."""
    choices = choices.expand(weights.shape)
    number = choices.sum(-1)
    counted = number > 1
    entropy = torch.special.entr(weights * choices).sum(-1) / number.clamp(min=2).log()
    peaked = (weights.amax(-1) > 0.99) & counted
    largest = float(logits.abs()[choices & counted[..., None]].max()) if logits is not None else math.nan
    return [float(counted.sum()), float(entropy[counted].sum()), float(peaked.sum()), largest]


CAUSAL = torch.ones(6, 6, dtype=torch.bool).tril()
ALL = torch.ones(6, 6, dtype=torch.bool)


def q_k_v(sharp: float = 1.0, heads: int = 2, shared: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, h, 6, 4, generator=generator) for h in (heads, shared or heads, shared or heads)]
    return (made[0] * sharp).requires_grad_(), made[1].requires_grad_(), made[2].requires_grad_()


def plain_scores(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).detach() / math.sqrt(q.shape[-1])


# ---- written out -------------------------------------------------------------------------------------------------------


def test_by_hand() -> None:
    """Rows of weights (1/2, 1/2), (1/4, 3/4) and (1, 0): entropies over log 2 of 1, 0.811 and 0."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3.0)], [200.0, 0.0]]], requires_grad=True)
    row = row_of(logits.softmax(-1) @ torch.ones(1, 2, 5))
    assert row[:3] == pytest.approx([3.0, 1.0 + 0.25 * 2 + 0.75 * math.log2(4 / 3), 1.0])
    assert math.isnan(row[3]), "the logits of a softmax of a leaf are not kept"


WRITTEN: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "masked_fill": lambda q, k, v, m: (q @ k.mT / 2.0).masked_fill(~m, -torch.inf).softmax(-1) @ v,
    "masked_fill_": lambda q, k, v, m: (q @ k.mT / 2.0).masked_fill_(~m, -1e9).softmax(-1) @ v,
    "scaled before": lambda q, k, v, m: ((q / 2.0) @ k.mT).masked_fill(~m, -torch.inf).softmax(-1) @ v,
    "where": lambda q, k, v, m: torch.where(m, 0.5 * (q @ k.mT), -torch.inf).softmax(-1) @ v,
    "where not": lambda q, k, v, m: torch.where(~m, torch.tensor(-1e9), 0.5 * (q @ k.mT)).softmax(-1) @ v,
    "added": lambda q, k, v, m: ((q @ k.mT) * 0.5 + torch.zeros(6, 6).masked_fill(~m, -1e4)).softmax(-1) @ v,
    "dropped out": lambda q, k, v, m: F.dropout((q @ k.mT / 2.0).masked_fill(~m, -torch.inf).softmax(-1), 0.3) @ v,
    "flattened": lambda q, k, v, m: torch.bmm(
        (q.flatten(0, 1) @ k.flatten(0, 1).mT / 2.0).view(2, 2, 6, 6).masked_fill(~m, -torch.inf).view(4, 6, 6).softmax(-1),
        v.flatten(0, 1),
    ),
    "baddbmm": lambda q, k, v, m: torch.bmm(
        torch.baddbmm(torch.zeros(6, 6).masked_fill(~m, -torch.inf), q.flatten(0, 1), k.flatten(0, 1).mT, alpha=0.5).softmax(
            -1
        ),
        v.flatten(0, 1),
    ),
    "cast": lambda q, k, v, m: (q @ k.mT / 2.0).masked_fill(~m, -torch.inf).double().softmax(-1).to(v.dtype) @ v,
}


@pytest.mark.parametrize("mask", [ALL, CAUSAL], ids=["all", "causal"])
@pytest.mark.parametrize("sharp", [1.0, 1000.0])
@pytest.mark.parametrize("way", WRITTEN)
def test_written_out(way: str, sharp: float, mask: Tensor) -> None:
    q, k, v = q_k_v(sharp)
    scores = plain_scores(q, k)
    expected = plainly(scores.masked_fill(~mask, -torch.inf).softmax(-1), scores, mask)
    torch.manual_seed(0)
    row = row_of(WRITTEN[way](q, k, v, mask))
    if sharp > 1 and mask is CAUSAL and way in ("added", "baddbmm"):
        # of a constant that was added nothing is kept: the first row may be taken for one with a choice
        assert row[:3] == pytest.approx(expected[:3], abs=4.01)
        return
    assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("mask", [ALL, CAUSAL], ids=["all", "causal"])
def test_einsum(mask: Tensor) -> None:
    q, k, v = q_k_v()
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 2.0
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    expected = plainly(weights.detach(), scores.detach(), mask)
    assert row_of(torch.einsum("bhij,bhjd->bhid", weights, v))[:3] == pytest.approx(expected[:3], rel=1e-4)


def test_keys_along_another_dimension() -> None:
    q, k, v = q_k_v()
    scores = plain_scores(q, k)
    row = row_of(((k @ q.mT) / 2.0).softmax(-2).mT @ v)
    assert row[:3] == pytest.approx(plainly(scores.softmax(-1), None, ALL)[:3], rel=1e-4)


def test_additive_attention_over_a_padded_sequence() -> None:
    """Bahdanau's: scores from a small network, a mask of the padding, one row for each example."""
    torch.manual_seed(0)
    h = torch.randn(5, 7, 8)
    score = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    lengths = torch.tensor([7, 3, 2, 1, 5])
    padding = torch.arange(7) >= lengths[:, None]
    weights = score(h).squeeze(-1).masked_fill(padding, -torch.inf).softmax(1)
    expected = plainly(weights.detach(), None, ~padding)
    assert expected[0] == 4
    row = row_of(torch.bmm(weights.unsqueeze(1), h))
    assert row[:3] == pytest.approx(expected[:3], rel=1e-4)
    assert math.isnan(row[3])


def test_what_is_no_attention() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    w = torch.randn(8, 8, requires_grad=True)
    assert not rows_of(x.softmax(-1))
    assert not rows_of(F.cross_entropy(x @ w, torch.zeros(4, dtype=torch.long)))
    assert not rows_of((x.softmax(-1) @ w).log_softmax(-1)), "a mixture of a codebook's rows"
    assert not rows_of((x.softmax(-1).log().unsqueeze(0) @ w.unsqueeze(0)).sum())


def test_rows_without_any_choice_are_left_out() -> None:
    q, k, v = q_k_v()
    mask = CAUSAL.clone()
    mask[3] = False
    expected = plainly(plain_scores(q, k).masked_fill(~CAUSAL, -torch.inf).softmax(-1), None, mask)
    out = (q @ k.mT / 2.0).masked_fill(~mask, -torch.inf).softmax(-1) @ v
    assert row_of(out)[:3] == pytest.approx(expected[:3], rel=1e-4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert row_of(out)[:3] == pytest.approx(expected[:3], rel=1e-4)


def test_large_ones_are_sampled() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(8, 8, 200, 16, generator=generator).requires_grad_() for _ in range(3))
    for out in (F.scaled_dot_product_attention(q, k, v, is_causal=True), (q @ k.mT / 4).softmax(-1) @ v):
        row = row_of(out)
        assert 120 <= row[0] <= 128
        assert 0.8 < row[1] / row[0] < 0.95
    seen = {int(p) % 8 for tick in range(3) for p in attention._Choice.of(64, 200, 200, tick, q.device).pairs}
    assert len(seen) > 4, "not one head's always"


# ---- scaled_dot_product_attention --------------------------------------------------------------------------------------

MASKS: dict[str, tuple[dict[str, Any], Tensor]] = {
    "none": ({}, ALL),
    "causal": ({"is_causal": True}, CAUSAL),
    "boolean": ({"attn_mask": CAUSAL}, CAUSAL),
    "lowest": ({"attn_mask": torch.zeros(6, 6).masked_fill(~CAUSAL, torch.finfo(torch.float32).min)}, CAUSAL),
    "of an example": ({"attn_mask": torch.stack([ALL, CAUSAL])[:, None]}, torch.stack([ALL, CAUSAL])[:, None]),
}


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=lambda b: b.name)
@pytest.mark.parametrize("mask", MASKS)
def test_scaled_dot_product_attention(mask: str, backend: SDPBackend) -> None:
    options, choices = MASKS[mask]
    q, k, v = q_k_v(2.0)
    scores = plain_scores(q, k)
    with sdpa_kernel(backend):
        row = row_of(F.scaled_dot_product_attention(q, k, v, **options))
    assert row == pytest.approx(plainly(scores.masked_fill(~choices, -torch.inf).softmax(-1), scores, choices), rel=1e-4)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=lambda b: b.name)
def test_a_bias_and_a_scale(backend: SDPBackend) -> None:
    q, k, v = q_k_v()
    bias = -torch.arange(6.0).expand(6, 6).clone()
    scores = plain_scores(q, k) * 2.0 * 0.3
    with sdpa_kernel(backend):
        row = row_of(F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.3))
    expected = plainly((scores + bias).softmax(-1), scores, ALL)
    assert row == pytest.approx(expected, rel=1e-4), "the logit is that of queries and keys, without the bias"


def test_heads_that_share_their_keys() -> None:
    q, k, v = q_k_v(heads=4, shared=2)
    scores = plain_scores(q, k.repeat_interleave(2, 1))
    row = row_of(F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    assert row == pytest.approx(plainly(scores.softmax(-1), scores, ALL), rel=1e-4)


# ---- modules and trainings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("masked", [True, False])
def test_multihead_attention(need_weights: bool, dropout: float, masked: bool) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True)
    x = torch.randn(3, 6, 8)
    padding = torch.tensor([[False] * 6, [False] * 6, [False] * 4 + [True] * 2]) if masked else None
    out, _ = module(x, x, x, need_weights=need_weights, key_padding_mask=padding, attn_mask=~CAUSAL if masked else None)
    q, k, _ = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)
    q, k = (t.view(3, 6, 2, 4).transpose(1, 2) for t in (q, k))
    choices = (CAUSAL & ~padding[:, None, None]).expand(3, 1, 6, 6) if padding is not None else ALL
    scores = plain_scores(q, k)
    expected = plainly(scores.masked_fill(~choices, -torch.inf).softmax(-1), scores, choices)
    assert row_of(out) == pytest.approx(expected, rel=1e-3)


class Reader(nn.Module):
    """Two encoder layers of torch's and one attention written by a user."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)
        self.softmax = nn.Softmax(-1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(x)
        weights = self.softmax(self.query(x) @ self.key(x).mT)
        return self.head((weights @ x).mean(1))


def train(steps: int) -> list[Tensor]:
    torch.manual_seed(0)
    model = Reader()
    trainings.fit(model, torch.optim.Adam(model.parameters()), torch.randn(32, 7, 16), steps=steps)
    return [*[p.detach().clone() for p in model.parameters()], torch.get_rng_state()]


def test_sites_of_a_training(tmp_path: Path) -> None:
    plain = train(4)
    with gradiometer.watch(out=tmp_path / "run", every=1) as watch:
        watched = train(4)
        assert watch.attached
    assert all(torch.equal(a, b) for a, b in zip(plain, watched, strict=True))
    trace = gradiometer.load(tmp_path / "run").trace
    assert not trace.notes
    names = [trace.sites[i].name for i in trace.attentions]
    fused = "scaled_dot_product_attention"
    assert names == [f"encoder.layers.{k}.self_attn > {fused}" for k in range(2)] + ["softmax"]
    depths = [trace.sites[i].depth for i in trace.attentions]
    assert depths == sorted(set(depths))
    assert trace.recorded[Group.ATTENTION][:, trace.attentions].all()
    assert not np.delete(trace.recorded[Group.ATTENTION], trace.attentions, axis=1).any()
    assert ((trace.attention_spread[:, trace.attentions] > 0.7) & (trace.attention_spread[:, trace.attentions] <= 1)).all()
    assert np.isfinite(trace.values["attention_logit"][:, trace.attentions]).all()
    assert (trace.values["attention_peaked"][:, trace.attentions] == 0).all()
    assert [trace.sites[i].units for i in trace.attentions] == [7, 7, 7]


def test_checkpointed_attention_is_left_alone(tmp_path: Path) -> None:
    from torch.utils.checkpoint import checkpoint

    q, k, v = q_k_v()
    out = checkpoint(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), use_reentrant=False)
    nodes, _ = graph.walk([out])
    found = attention.find(nodes)
    assert [attention.measure(f, 0) for f in found] == [None] * len(found)


def test_low_precision() -> None:
    q, k, v = q_k_v(2.0)
    scores = plain_scores(q, k)
    expected = plainly(scores.masked_fill(~CAUSAL, -torch.inf).softmax(-1), scores, CAUSAL)
    half = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    for out in (
        F.scaled_dot_product_attention(*half, is_causal=True),
        (half[0] @ half[1].mT / 2.0).masked_fill(~CAUSAL, -torch.inf).softmax(-1) @ half[2],
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert row_of(out) == pytest.approx(expected, rel=0.03)
