"""Captions without their padding give the vectors and gradients of padded ones."""

from __future__ import annotations

from functools import partial
from itertools import combinations, pairwise

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.hf_model import HFTextEncoder
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig

from biomedclip_ray.train import lengths as module
from biomedclip_ray.train.lengths import (
    encode_at_natural_length,
    encode_text,
    ignores_padding,
    length_groups,
    take_fewer_tokens,
)

CONTEXT = 48


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> HFTextEncoder:
    folder = tmp_path_factory.mktemp("bert")
    BertConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    pooling = "cls_last_hidden_state_pooler"
    return HFTextEncoder(str(folder), output_dim=16, pooler_type=pooling, proj_type="mlp", pretrained=False)


def texts() -> tuple[torch.Tensor, list[int]]:
    lengths = [3, 40, 7, 48, 12, 12, 5, 30, 22, 9]
    tokens = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randint(1, 60, (length,), generator=torch.Generator().manual_seed(row))
    return tokens, lengths


@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=80), st.integers(1, 400))
def test_every_row_is_in_one_group_that_is_long_enough(lengths, min_tokens):
    groups = length_groups(lengths, CONTEXT, min_tokens)
    assert sorted(row for rows, _ in groups for row in rows) == list(range(len(lengths)))
    assert all(lengths[row] <= tokens <= CONTEXT for rows, tokens in groups for row in rows)


def cost(groups, min_tokens) -> int:
    return sum(max(min_tokens, len(rows) * tokens) for rows, tokens in groups)


@given(st.lists(st.integers(1, CONTEXT), min_size=1, max_size=7), st.integers(1, 200))
def test_no_other_groups_cost_less(lengths, min_tokens):
    eights = sorted((-(-length // 8) * 8 for length in lengths), reverse=True)
    borders = [k for k in range(1, len(eights)) if eights[k - 1] != eights[k]]  # rows of one length stay together
    least = min(
        cost([(eights[a:b], eights[a]) for a, b in pairwise((0, *cuts, len(eights)))], min_tokens)
        for k in range(len(borders) + 1)
        for cuts in combinations(borders, k)
    )
    assert cost(length_groups(lengths, CONTEXT, min_tokens), min_tokens) == least


@pytest.mark.parametrize(("device", "rows", "most"), [("cpu", 64, 1.14), ("cpu", 512, 1.06), ("cuda", 512, 1.14)])
def test_groups_keep_little_padding(device, rows, most):
    """Lengths as captions have them: 85 tokens in the middle, 256 at most, few of them long."""
    draw = torch.randn(rows, generator=torch.Generator().manual_seed(1))
    lengths = (85 * (0.7 * draw).exp()).clamp(4, 256).long().tolist()
    spent = sum(len(group) * tokens for group, tokens in length_groups(lengths, 256, module.MIN_TOKENS[device]))
    assert spent < most * sum(lengths)


def test_vectors_and_gradients_are_those_of_padded_captions(tower, monkeypatch):
    monkeypatch.setitem(module.MIN_TOKENS, "cpu", 16)
    tokens, lengths = texts()
    slope = torch.randn(len(lengths), 16, generator=torch.Generator().manual_seed(2))
    results = []
    for natural in (False, True):
        tower.zero_grad()
        vectors = encode_at_natural_length(tower, tokens, lengths) if natural else tower(tokens)
        vectors.backward(slope)
        results.append((vectors.detach(), [p.grad.clone() for p in tower.parameters() if p.grad is not None]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-6)
    for padded, natural in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(padded, natural, rtol=1e-4, atol=1e-5)


def test_only_a_tower_that_masks_its_padding_is_trimmed(tower):
    assert ignores_padding(torch.nn.ModuleDict({"text": tower}))
    assert not ignores_padding(torch.nn.ModuleDict({"text": torch.nn.Linear(2, 2)}))


@pytest.mark.parametrize("kind", [open_clip.CustomTextCLIP, open_clip.CLIP])
@pytest.mark.parametrize("pool", ["eos", "argmax"])
def test_open_clips_own_tower_runs_without_padding_where_it_is_read_at_the_end_token(kind, pool, monkeypatch):
    monkeypatch.setitem(module.MIN_TOKENS, "cpu", 16)
    torch.manual_seed(0)
    text = {
        "context_length": CONTEXT,
        "vocab_size": 60,
        "width": 32,
        "heads": 2,
        "layers": 2,
        "pool_type": pool,
        "eos_id": 59,
    }
    model = kind(
        embed_dim=16, vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16}, text_cfg=text
    )
    assert ignores_padding(model) == (pool == "eos")
    if pool != "eos":
        return
    names = list(model.state_dict())
    tokens, lengths = texts()
    tokens = tokens.clamp(max=58)
    tokens[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = 59
    slope = torch.randn(len(lengths), 16, generator=torch.Generator().manual_seed(2))
    plain = model.encode_text(tokens, normalize=True)
    plain.backward(slope)
    padded = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    take_fewer_tokens(model)
    seen: list[int] = []
    blocks = (model.text if kind is open_clip.CustomTextCLIP else model).transformer.resblocks
    blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[0] * inputs[0].shape[1]))
    natural = encode_at_natural_length(partial(encode_text, model), tokens, lengths)
    natural.backward(slope)
    assert len(seen) > 3 and sum(seen) < 0.6 * tokens.numel()
    torch.testing.assert_close(natural, plain, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        if name in padded:
            torch.testing.assert_close(parameter.grad, padded[name], rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names


class Waits(TorchDispatchMode):
    """Counts the values that the host asks a tensor for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket is torch.ops.aten._local_scalar_dense
        return func(*args, **(kwargs or {}))


def test_a_ready_mask_gives_the_same_vectors_and_asks_for_nothing(tower):
    tokens, lengths = texts()
    with Waits() as before:
        plain = encode_at_natural_length(tower, tokens, lengths)
    assert before.count  # or the hook is needed no more
    for _ in range(2):  # a second learner of the same model changes nothing
        take_fewer_tokens(torch.nn.ModuleDict({"text": tower}))
    with Waits() as after:
        ready = encode_at_natural_length(tower, tokens, lengths)
    assert after.count == 0
    assert torch.equal(ready, plain)
