"""CLIPs that others made, put into the form that open_clip's `local-dir:` loads: one loader then serves them all.

- `open_clip:MODEL:TAG`: weights that open_clip knows, from the network or its cache.
- `open_clip:MODEL:FILE` or `open_clip:MODEL:FILE:TAG`: a checkpoint (.pt, .bin, .pth, .safetensors). A file of weights
  says neither its towers nor how images entered; the preprocessing is that of the tag, or of all tags of the model
  where they agree.
- a folder of transformers with a CLIP or a SigLIP in it, converted name by name; the vectors are the same.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from biomedclip_ray.clip import siglip
from biomedclip_ray.clip.fits import CONFIG, UnfitError, listed, preprocess_of_transformers, read_json
from biomedclip_ray.clip.folder import IMAGE_TOWER
from biomedclip_ray.clip.renaming import IN_LAYERS, renamed

PREFIX = "open_clip:"
_PREPROCESS = ("mean", "std", "interpolation", "resize_mode")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
_OPENAI_WORDS = 49408


def from_open_clip(name: str, scratch: Path) -> Path:
    """A folder for `MODEL:TAG`, `MODEL:FILE` or `MODEL:FILE:TAG`. Raises UnfitError."""
    import open_clip
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model

    model, _, rest = name.partition(":")
    config = open_clip.get_model_config(model)
    if config is None:
        raise UnfitError(f"open_clip has no model {model!r}; open_clip.list_models() names them")
    tags = list_pretrained_tags_by_model(model)
    if rest in tags:
        tag = rest
        facts = dict(get_pretrained_cfg(model, tag))
        try:
            weights = Path(download_pretrained(facts))
        except (OSError, ValueError, RuntimeError) as error:
            raise UnfitError(
                f"the weights {tag} of {model} cannot be reached ({str(error).splitlines()[0]}); download them where "
                "there is "
                f"a network and give {PREFIX}{model}:FILE:{tag}"
            ) from error
    else:
        file, tag = rest, ""
        if rest.rpartition(":")[2] in tags:
            file, _, tag = rest.rpartition(":")
        weights = Path(file)
        if not weights.is_file():
            raise UnfitError(f"{file!r} is neither a file nor one of the tags of {model}: {', '.join(tags) or 'none'}")
        facts = dict(get_pretrained_cfg(model, tag)) if tag else _agreed([get_pretrained_cfg(model, t) for t in tags])
        if not facts:
            raise UnfitError(
                f"{file} does not say how images enter, and the tags of {model} ({', '.join(tags) or 'none'}) do not "
                "agree: "
                f"name one, {PREFIX}{model}:{file}:TAG, or put the file into a folder with {CONFIG} and its "
                "preprocess_cfg"
            )
    if tag and bool(facts.get("quick_gelu")) != bool(config.get("quick_gelu")):
        other = f"{model}-quickgelu" if facts.get("quick_gelu") else model.removesuffix("-quickgelu")
        raise UnfitError(f"{tag} was trained with another activation than {model} has; write {PREFIX}{other}:{rest}")
    usual = {"interpolation": "bicubic", "resize_mode": "shortest"}
    preprocess = usual | {key: listed(facts[key]) for key in _PREPROCESS if facts.get(key)}
    kind = weights.suffix if weights.suffix in (".safetensors", ".bin") else ".pth"
    (scratch / f"open_clip_model{kind}").symlink_to(weights.resolve())
    _write(scratch / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    return scratch


def is_transformers(folder: Path) -> bool:
    return "model_type" in read_json(folder / "config.json")


def from_transformers(folder: Path, scratch: Path) -> Path:
    """A folder for a CLIP or SigLIP in transformers' form. Raises UnfitError for other models, which open_clip has
    no towers for.
    """
    from safetensors.torch import save_file

    config = read_json(folder / "config.json")
    if config["model_type"] not in ("clip", "siglip"):
        raise UnfitError(
            f"a {config['model_type']} in transformers' form, and only CLIP's and SigLIP's are converted here; one "
            "that open_clip has towers for must be renamed to its names first"
        )
    preprocess = preprocess_of_transformers(folder)
    if preprocess is None:
        raise UnfitError("no preprocessor_config.json there, and config.json does not say how images enter")
    if config["model_type"] == "siglip":
        model_cfg, state = siglip.converted(config, _state(folder), scratch / IMAGE_TOWER)
        _write_plain_tokenizer(folder, scratch)
        own_words = True
    else:
        model_cfg, state = _towers(config), _renamed(_state(folder))
        own_words = model_cfg["text_cfg"]["vocab_size"] != _OPENAI_WORDS
        for name in _TOKENIZER_FILES if own_words else ():
            if (folder / name).is_file():
                shutil.copy(folder / name, scratch / name)
    if own_words:
        model_cfg["text_cfg"]["hf_tokenizer_name"] = "in this folder"
    save_file(state, scratch / "open_clip_model.safetensors")
    _write(scratch / CONFIG, {"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    return scratch


def _write_plain_tokenizer(folder: Path, scratch: Path) -> None:
    """The tokenizer.json of a SigLIP and its special tokens, under the class that takes them as they are:
    SiglipTokenizer wants sentencepiece, and cleans texts as open_clip does.
    """
    if not (folder / "tokenizer.json").is_file():
        raise UnfitError(
            "no tokenizer.json there; open_clip reads SigLIP's words from timm/ViT-B-16-SigLIP, SigLIP 2's from "
            "timm/ViT-B-16-SigLIP2: copy tokenizer.json from the one that has this model's vocabulary"
        )
    shutil.copy(folder / "tokenizer.json", scratch / "tokenizer.json")
    says = read_json(folder / "tokenizer_config.json")
    roles = {role: says[role] for role in ("pad_token", "eos_token", "unk_token") if says.get(role)}
    _write(scratch / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **roles})


def _towers(config: dict[str, Any]) -> dict[str, Any]:
    """open_clip's model config of transformers' CLIPConfig, whose file names only what differs from the usual."""
    from transformers import CLIPConfig

    whole = CLIPConfig.from_dict(config)
    vision, text = whole.vision_config, whole.text_config
    towers: dict[str, Any] = {
        "embed_dim": whole.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": vision.intermediate_size / vision.hidden_size,
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": text.intermediate_size / text.hidden_size,
        },
    }
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2 stands for the largest number of a row in old files
        towers["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    if {vision.hidden_act, text.hidden_act} == {"quick_gelu"}:
        towers["quick_gelu"] = True
    elif {vision.hidden_act, text.hidden_act} != {"gelu"}:
        raise UnfitError(
            f"towers with the activations {vision.hidden_act} and {text.hidden_act}; open_clip has one for both"
        )
    return towers


_PARTS = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # spelt so
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "visual_projection.weight": "visual.proj",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_projection.weight": "text_projection",
}


def _renamed(state: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers' weights under open_clip's names: query, key and value in one, projections turned."""
    turned = ("visual.proj", "text_projection")
    every = renamed(state, lambda name: _PARTS | IN_LAYERS)
    return {name: tensor.T.contiguous() if name in turned else tensor for name, tensor in every}


def _state(folder: Path) -> dict[str, Any]:
    from open_clip.factory import load_state_dict

    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            try:
                return dict(load_state_dict(str(folder / name)))
            except Exception as error:  # what a cut file makes torch and safetensors raise has no common base
                raise UnfitError(f"{name}: {type(error).__name__}: {error}") from error
    raise UnfitError("no model.safetensors or pytorch_model.bin beside config.json (several shards are not read)")


def _agreed(tags: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The preprocessing of a model's tags where it is the same for all; else nothing."""
    ways = {json.dumps({key: listed(tag.get(key)) for key in _PREPROCESS}) for tag in tags}
    return dict(json.loads(ways.pop())) if len(ways) == 1 else {}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
