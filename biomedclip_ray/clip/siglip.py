"""A SigLIP in transformers' form, under open_clip's names: its image tower is one of timm's, by name or by a config of
its own. open_clip has code of its own for big_vision's files only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomedclip_ray.clip.fits import UnfitError
from biomedclip_ray.clip.renaming import IN_LAYERS, renamed

LOCAL = "local-dir:"
"""What timm takes a folder's config by."""
_TRUNK = "visual.trunk."
_ARCHITECTURE = "vit_base_patch16_siglip_224"
_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}  # as timm calls them
_BY_CLASS = {"GELU": "gelu", "GELUTanh": "gelu_tanh"}
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


def converted(
    config: dict[str, Any], state: Mapping[str, Any], image_tower: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(open_clip's model config, weights by its names) of transformers' SiglipConfig and weights.

    Args:
        image_tower: a folder for the image tower's config, where timm has no name for it.

    Raises:
        UnfitError: timm's tower cannot be given these shapes.
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
            "timm_model_name": _image_tower(whole.vision_config, weights, image_tower),
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


def _image_tower(vision: Any, weights: Mapping[str, Any], folder: Path) -> str:
    """The name of timm's tower with these shapes, heads and activation: open_clip takes a name alone. Where timm has
    none it is `local-dir:` and a folder with the tower's config, which timm builds it from. Raises UnfitError.

    transformers' SigLIP computes GELU by tanh; most of timm's towers of the same shapes compute it exactly.
    """
    import timm
    import torch

    wanted = {
        "img_size": vision.image_size,
        "patch_size": vision.patch_size,
        "embed_dim": vision.hidden_size,
        "depth": vision.num_hidden_layers,
        "num_heads": vision.num_attention_heads,
        "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        "act_layer": _ACTIVATIONS.get(vision.hidden_act),
    }
    if wanted["act_layer"] is None:
        raise UnfitError(
            f"an image tower with the activation {vision.hidden_act}; SigLIP's have GELU, exact or by tanh"
        )
    for name in timm.list_models(f"*_patch{vision.patch_size}_siglip_{vision.image_size}"):
        with torch.device("meta"):
            trunk = timm.create_model(name, num_classes=0, global_pool="map")
        if tower_arguments(trunk) == wanted and trunk.norm.eps == vision.layer_norm_eps:
            return str(name)
    with torch.device("meta"):
        trunk = timm.create_model(_ARCHITECTURE, num_classes=0, global_pool="map", **wanted)
    ours = {key: tuple(tensor.shape) for key, tensor in trunk.state_dict().items()}
    theirs = {name.removeprefix(_TRUNK): tuple(t.shape) for name, t in weights.items() if name.startswith(_TRUNK)}
    other = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if other or trunk.norm.eps != vision.layer_norm_eps:
        told = (
            f"{other[0]} is {theirs.get(other[0])} and not {ours.get(other[0])}"
            if other
            else (f"layer_norm_eps is {vision.layer_norm_eps} and not {trunk.norm.eps}")
        )
        raise UnfitError(
            f"open_clip takes SigLIP's image tower from timm, whose differs: {told}; SigLIP's own weights are under "
            "hf-hub:timm/ViT-B-16-SigLIP and its like, in open_clip's form"
        )
    return write_image_tower(folder, trunk)


def tower_arguments(trunk: Any) -> dict[str, Any]:
    """What timm's image tower of a SigLIP is made from: its shapes, heads and activation."""
    block = trunk.blocks[0]
    return {
        "img_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "embed_dim": trunk.embed_dim,
        "depth": len(trunk.blocks),
        "num_heads": block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / trunk.embed_dim,
        "act_layer": _BY_CLASS[type(block.mlp.act).__name__],
    }


def write_image_tower(folder: Path, trunk: Any) -> str:
    """Write the config that timm makes a tower from; returns the name that open_clip is to pass to timm."""
    arguments = tower_arguments(trunk)
    side = arguments["img_size"]
    config = {
        "architecture": _ARCHITECTURE,
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, side, side], "fixed_input_size": True, "num_classes": 0},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return f"{LOCAL}{folder}"


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
