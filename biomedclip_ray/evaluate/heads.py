"""The modules that answer visual questions: question tokens that attend to patches, and to nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from biomedclip_ray.config import Fusion

HEADS = 4
DROPOUT = 0.1


class FusionHead(nn.Module):
    """Question tokens (n, t, text width) and patches (n, p, image width) -> (n, answers) logits.

    No wider than the towers: beside the demo's, of 64, a head of 256 took 6 times as long (27 s an epoch of VQA-RAD).
    """

    def __init__(self, widths: tuple[int, int], answers: int, section: Fusion) -> None:
        super().__init__()
        width = min(section.width, max(widths) // HEADS * HEADS)
        self.text, self.image = (nn.Sequential(nn.LayerNorm(w), nn.Linear(w, width)) for w in widths)
        layer = nn.TransformerDecoderLayer(width, HEADS, 4 * width, DROPOUT, "gelu", batch_first=True, norm_first=True)
        self.fusion = nn.TransformerDecoder(layer, section.layers, nn.LayerNorm(width))
        self.answer = nn.Linear(width, answers)

    def forward(self, question: Tensor, padding: Tensor, patches: Tensor) -> Tensor:
        """`padding`: (n, t) bool, true where there is no token."""
        states = self.fusion(self.text(question), self.image(patches), tgt_key_padding_mask=padding)
        there = (~padding).unsqueeze(-1).to(states.dtype)
        pooled = (states * there).sum(dim=1) / there.sum(dim=1)
        logits: Tensor = self.answer(pooled)
        return logits


class Answerer(nn.Module):
    """Towers, the head, and the head that sees no image."""

    def __init__(self, towers: nn.Module, pad_id: int, widths: tuple[int, int], answers: int, section: Fusion) -> None:
        super().__init__()
        self.trained = section.tower_rate > 0
        self.towers = towers if self.trained else None
        self.pad_id = pad_id
        self.head, self.blind = (FusionHead(widths, answers, section) for _ in range(2))
        self.nothing = nn.Parameter(torch.zeros(1, 1, widths[1]))
        """What the blind head sees instead of patches."""

    def forward(self, ids: Tensor, question: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both heads, (n, answers) each.

        Args:
            ids: (n, t) token ids, without the padding that all questions share.
            question, patches: what frozen towers made of them; of trained ones ids and pixels again.
        """
        if self.towers is not None:
            question = text_tokens(self.towers, question)[:, : ids.shape[1]]
            patches = image_tokens(self.towers, patches)
        question, patches = question.float(), patches.float()
        padding = ids == self.pad_id
        nothing = self.nothing.expand(len(ids), -1, -1)
        return self.head(question, padding, patches), self.blind(question.detach(), padding, nothing)


def image_tokens(model: Any, pixels: Tensor) -> Tensor:
    """(n, patches, width) of the last block of an open_clip image tower, of normalised pixels."""
    found = model.forward_intermediates(
        image=pixels, image_indices=1, intermediates_only=True, normalize_intermediates=True, image_output_fmt="NLC"
    )
    tokens: Tensor = found["image_intermediates"][-1]
    return tokens


def text_tokens(model: Any, ids: Tensor) -> Tensor:
    """(n, t, width) of the last block of a text tower, open_clip's own or one of transformers, of which t is no more
    than the longest row fills.
    """
    text = model._modules.get("text")
    if text is not None and "transformer" in text._modules and hasattr(text.transformer, "config"):
        mask = (ids != text.config.pad_token_id).long()
        used = int(mask.any(dim=0).nonzero().max()) + 1  # a question fills a tenth of a context of 256
        ids, mask = ids[:, :used], mask[:, :used]
        tokens: Tensor = text.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        return tokens
    found = model.forward_intermediates(text=ids, text_indices=1, intermediates_only=True, normalize_intermediates=True)
    last: Tensor = found["text_intermediates"][-1]
    return last
