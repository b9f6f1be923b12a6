"""The gradient of a global batch does not depend on how many workers and micro-batchs it is cut into."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from ray.train import Checkpoint
from torch import Tensor, nn

from biomedclip_ray.config import Train
from biomedclip_ray.train import checkpoint
from biomedclip_ray.train.loop import allowed
from biomedclip_ray.train.step import Block, Learner, learning_rate, param_groups

N, SIDE, CONTEXT, WORDS = 32, 8, 6, 50


class TinyClip(nn.Module):
    """open_clip's surface (encode_*, logit_scale) around two linear towers; with dropout, to try its seeding."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(3 * SIDE * SIDE, 16))
        self.visual.image_size = SIDE
        self.context_length = CONTEXT
        self.words = nn.Embedding(WORDS, 16)
        self.norm = nn.LayerNorm(16)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_image(self, pixels: Tensor, normalize: bool) -> Tensor:
        return nn.functional.normalize(self.visual(pixels), dim=-1)

    def encode_text(self, tokens: Tensor, normalize: bool) -> Tensor:
        return nn.functional.normalize(self.norm(self.words(tokens).mean(1)), dim=-1)


def recipe(**changes: object) -> Train:
    base = {"batch": N, "micro_batches": 4, "precision": "fp32", "warmup_steps": 2, "lr": 1e-2, "epochs": 1}
    return Train.model_validate({**base, **changes})


def batch(seed: int = 0) -> Block:
    draw = torch.Generator().manual_seed(seed)
    return Block(
        torch.randint(0, 256, (N, SIDE, SIDE, 3), generator=draw, dtype=torch.uint8),
        torch.randint(0, WORDS, (N, CONTEXT), generator=draw, dtype=torch.int32),
        torch.tensor([5, 5, 7, 9, 7] + [-1] * (N - 5)),
        first=0,
    )


def cut(whole: Block, parts: int) -> list[Block]:
    size = N // parts
    return [
        Block(*(t[i * size : (i + 1) * size] for t in (whole.pixels, whole.tokens, whole.group)), first=i * size)
        for i in range(parts)
    ]


def learner(dropout: float = 0.0, **changes: object) -> Learner:
    torch.manual_seed(3)
    return Learner(TinyClip(dropout), recipe(**changes), 10, (0.5,) * 3, (0.25,) * 3)


def cached(pairs: int) -> dict[str, object]:
    return {"resources": {"forward_pairs": pairs}}


def gradient(blocks: int, pairs: int) -> list[Tensor]:
    one = learner(**cached(pairs))
    one.backward(cut(batch(), blocks))
    return [p.grad.clone() for p in one.model.parameters() if p.grad is not None]


def reference() -> tuple[Tensor, list[Tensor]]:
    """Plain autograd over the whole batch, the loss written out."""
    one = learner()
    image, text, *_ = one.features(batch())
    logits = one.model.logit_scale.exp() * image @ text.T
    group = batch().group
    same = (group[:, None] == group[None, :]) & (group[:, None] >= 0) & ~torch.eye(N, dtype=torch.bool)
    logits = logits.masked_fill(same, -torch.inf)
    target = torch.arange(N)
    loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    loss.backward()
    return loss.detach(), [p.grad for p in one.model.parameters() if p.grad is not None]


@pytest.mark.parametrize(("blocks", "pairs"), [(1, 32), (2, 16), (4, 32), (4, 8), (2, 5)])
def test_feature_caching_gives_the_gradient_of_the_whole_batch(blocks, pairs):
    for ours, plain in zip(gradient(blocks, pairs), reference()[1], strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=1e-6)


def _worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for micro in (2, 4):
        one = learner(**cached(8))
        blocks = cut(batch(), micro)[rank::world]
        losses = [float(one.step(number, blocks, [N // world] * world).loss) for number in range(3)]
        torch.save((losses, one.model.state_dict()), f"{folder}/{micro}-{rank}.pt")
    one = learner()
    four = cut(batch(), 4)
    one.backward(four[:3] if rank == 0 else four[3:], [24, 8])
    torch.save([p.grad for p in one.model.parameters()], f"{folder}/uneven-{rank}.pt")
    torch.distributed.barrier()  # who leaves first must not pull the rug from under the other
    torch.distributed.destroy_process_group()


def test_two_workers_learn_what_one_learns(tmp_path: Path):
    mp.spawn(_worker, (2, str(tmp_path)), nprocs=2)
    alone = learner()
    losses = [float(alone.step(number, [batch()]).loss) for number in range(3)]
    assert losses[0] == pytest.approx(float(reference()[0]), rel=1e-6)
    for micro in (2, 4):
        ranks = [torch.load(tmp_path / f"{micro}-{rank}.pt") for rank in range(2)]
        assert ranks[0][0] == ranks[1][0]
        assert ranks[0][0] == pytest.approx(losses, rel=1e-5)
        for name, value in alone.model.state_dict().items():
            assert torch.equal(ranks[0][1][name], ranks[1][1][name]), f"ranks differ in {name}"
            torch.testing.assert_close(ranks[0][1][name], value, rtol=1e-3, atol=1e-5)
    shares = [torch.load(tmp_path / f"uneven-{rank}.pt") for rank in range(2)]
    for first, second, plain in zip(*shares, reference()[1], strict=True):
        torch.testing.assert_close(first, plain, rtol=2e-5, atol=1e-6)
        assert torch.equal(first, second)


def test_dropout_is_drawn_again_the_same_way_for_the_second_forward_pass():
    one = learner(dropout=0.5)
    one.model.train()
    first, again = one.features(batch()), one.features(batch())
    assert torch.equal(first[0], again[0])
    moved = one.features(Block(*(getattr(batch(), f) for f in ("pixels", "tokens", "group")), first=64))
    assert not torch.equal(first[0], moved[0])


def test_a_resumed_learner_goes_on_bit_for_bit(tmp_path):
    undisturbed = learner()
    for number in range(6):
        last = undisturbed.step(number, cut(batch(number), 2))
    killed = learner()
    for number in range(3):
        killed.step(number, cut(batch(number), 2))
    checkpoint.save(tmp_path, killed, {"step": 3}, rank=0)
    resumed = learner()
    assert checkpoint.restore(Checkpoint.from_directory(tmp_path), resumed) == {"step": 3}
    for number in range(3, 6):
        result = resumed.step(number, cut(batch(number), 2))
    assert float(result.loss) == float(last.loss)
    for a, b in zip(undisturbed.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_loss_curve_stays_what_it_was():
    one = learner(lr=2e-3, **cached(8))
    losses = [float(one.step(number, cut(batch(), 4)).loss) for number in range(8)]
    assert losses == pytest.approx(GOLDEN, rel=2e-4)


GOLDEN = [7.233403, 6.481923, 5.107822, 3.953997, 3.062401, 2.423221, 1.978804, 1.687355]


def test_the_first_loss_is_that_of_chance():
    one = learner()
    with torch.no_grad():
        one.model.logit_scale.zero_()
    loss = float(one.step(0, [batch()]).loss)
    assert loss == pytest.approx(math.log(N), abs=0.3)


def test_gradients_are_clipped_to_the_norm_and_the_temperature_to_a_hundred():
    one = learner(grad_clip=1e-3)
    result = one.step(0, [batch()])
    clipped = math.sqrt(sum(float(p.grad.square().sum()) for p in one.model.parameters() if p.grad is not None))
    assert float(result.grad_norm) > 1e-3
    assert clipped == pytest.approx(1e-3, rel=1e-3)
    with torch.no_grad():
        one.model.logit_scale.fill_(10.0)
    assert float(one.step(1, [batch()]).logit_scale) == pytest.approx(100, rel=1e-4)


def test_norms_biases_and_the_temperature_do_not_decay():
    model = TinyClip()
    names = {id(p): name for name, p in model.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in param_groups(model.parameters(), 0.2) for p in g["params"]}
    assert {name for name, value in decay.items() if value == 0.2} == {"visual.2.weight", "words.weight"}
    assert {n for n, value in decay.items() if not value} == {
        "visual.2.bias",
        "norm.weight",
        "norm.bias",
        "logit_scale",
    }


def test_a_locked_tower_stays_as_it_is_with_cached_features_too():
    for tower, pairs in itertools.product(("image", "text"), (8, 32)):
        one = learner(lock=(tower,), **cached(pairs))
        image, words = one.model.visual[2].weight.clone(), one.model.words.weight.clone()
        one.step(5, cut(batch(), 4))
        assert torch.equal(one.model.visual[2].weight, image) == (tower == "image")
        assert torch.equal(one.model.words.weight, words) == (tower == "text")


def test_a_model_with_a_bias_learns_with_either_loss():
    for loss in ("infonce", "sigmoid"):
        model = TinyClip()
        model.logit_bias = nn.Parameter(torch.tensor(-10.0))
        one = Learner(model, recipe(loss=loss, **cached(8)), 10, (0.5,) * 3, (0.25,) * 3)
        before = float(one.step(0, cut(batch(), 4)).loss)
        for number in range(1, 6):
            result = one.step(number, cut(batch(), 4))
        assert float(result.loss) < before
        assert (model.logit_bias.item() != -10.0) == (loss == "sigmoid")


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [learning_rate(number, 1.0, 4, 20) for number in range(21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0 and rates[12] == pytest.approx(0.5) and rates[20] == pytest.approx(0)
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))


def test_one_step_in_a_hundred_may_be_skipped_and_none_where_it_stops():
    assert [allowed(recipe(on_nan="stop"), steps) for steps in (1, 10_000)] == [0, 0]
    assert [allowed(recipe(on_nan="skip"), steps) for steps in (1, 900, 5000)] == [10, 10, 50]
