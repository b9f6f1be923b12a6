"""A SigLIP in transformers' form, under open_clip's names: its image tower is one of timm's, which is looked for by its
shapes. open_clip has code of its own for big_vision's files only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from biomedclip_ray.clip.fits import UnfitError
from biomedclip_ray.clip.renaming import IN_LAYERS, renamed

_ACTIVATIONS = {"gelu": "GELU", "gelu_pytorch_tanh": "GELUTanh"}
_PARTS = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.attention.in_proj_": "visual.trunk.attn_pool.q.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.": "text.text_projection.",
}
_IN_IMAGE = {
    ".self_attn.q_proj.": ".attn.qkv.",
    ".self_attn.out_proj.": ".attn.proj.",
    ".layer_norm1.": ".norm1.",
    ".layer_norm2.": ".norm2.",
}


def converted(config: dict[str, Any], state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(open_clip's model config, weights by its names) of transformers' SiglipConfig and weights.

    Raises:
        UnfitError: timm has no tower of these shapes, or one that computes another activation.
    """
    from transformers import SiglipConfig

    whole = SiglipConfig.from_dict(config)
    text, weights = whole.text_config, _renamed(state)
    if text.hidden_act not in _ACTIVATIONS:
        raise UnfitError(f"a text tower with the activation {text.hidden_act}; open_clip has GELU, exact and by tanh")
    towers = {
        "embed_dim": text.projection_size,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": whole.vision_config.image_size,
            "timm_model_name": _image_tower(whole.vision_config, weights),
            "timm_model_pretrained": False,
            "timm_pool": "map",
            "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": text.layer_norm_eps},
            "act_kwargs": {"approximate": "none" if text.hidden_act == "gelu" else "tanh"},
            "tokenizer_kwargs": {"clean": "canonicalize"},  # as open_clip's configs of SigLIP and SigLIP 2 have it
        },
    }
    return towers, weights


def _image_tower(vision: Any, weights: Mapping[str, Any]) -> str:
    """The name of timm's tower with these shapes, heads and activation: open_clip takes a name alone. Raises
    UnfitError.
    """
    import timm
    import torch

    shapes = {name.removeprefix("visual.trunk."): t.shape for name, t in weights.items() if name.startswith("visual.")}
    other = ""
    for name in timm.list_models(f"*_patch{vision.patch_size}_siglip_{vision.image_size}"):
        with torch.device("meta"):
            trunk = timm.create_model(name, num_classes=0, global_pool="map")
        same = {key: tensor.shape for key, tensor in trunk.state_dict().items()} == shapes
        block = trunk.blocks[0]
        if same and block.attn.num_heads == vision.num_attention_heads and trunk.norm.eps == vision.layer_norm_eps:
            if type(block.mlp.act).__name__ == _ACTIVATIONS.get(vision.hidden_act):
                return str(name)
            other = f"{name} computes {type(block.mlp.act).__name__}, this one was trained with {vision.hidden_act}"
    raise UnfitError(
        f"open_clip takes SigLIP's image tower from timm, and {other or 'timm has none of these shapes'}; SigLIP's "
        "own weights are under hf-hub:timm/ViT-B-16-SigLIP and its like, in open_clip's form"
    )


def _renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers' weights under open_clip's and timm's names: query, key and value in one, but for the pool's."""
    out: dict[str, Any] = {}
    for name, tensor in renamed(state, lambda name: _PARTS | (_IN_IMAGE if name.startswith("vision") else IN_LAYERS)):
        if name.startswith("visual.trunk.attn_pool.q."):
            width = tensor.shape[0] // 3
            out[name.replace(".q.", ".kv.")] = tensor[width:].contiguous()
            tensor = tensor[:width].contiguous()
        elif name == "visual.trunk.pos_embed":
            tensor = tensor[None]
        elif name in ("logit_scale", "logit_bias"):
            tensor = tensor.reshape(())
        out[name] = tensor
    return out
