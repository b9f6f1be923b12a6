"""A model to train, from an open_clip model config: the towers, where their weights come from, how images enter.

A tower that begins at random without anybody noticing costs half the recall. So the start of each tower is returned by
name, for log and manifest, and weights that the model config names and that cannot be reached are an error unless
`model.init=random` asks for none. The traps of open_clip's configs (argmax pooling, a timm tower's own image size, a
vocabulary that is not the tokenizer's) are checked here, before a worker starts.
"""

from __future__ import annotations

import copy
import difflib
import json
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from biomedclip_ray.clip.bundle import Bundle, BundleError, load_bundle
from biomedclip_ray.clip.tokenizer import Tokenizer, fit_tokenizer, load_tokenizer
from biomedclip_ray.config import ConfigError, Model
from biomedclip_ray.store.place import Place

_CONFIGS = Path(__file__).parent / "configs"
RANDOM = "random"


class Built(NamedTuple):
    model: Any
    """A torch.nn.Module (open_clip is not typed): open_clip's CLIP or CustomTextCLIP, in train mode, float32, on the
    CPU.
    """
    model_cfg: dict[str, Any]
    """What built it; goes into the bundle."""
    starts: dict[str, str]
    """"image" and "text": "random", or where the weights come from."""
    preprocess_cfg: dict[str, Any]
    """open_clip's PreprocessCfg as a mapping (size, mean, std, interpolation, resize_mode)."""


def model_config(name: str) -> dict[str, Any]:
    """The open_clip model config of that name in clip/configs, or at that path or URI. Imports no torch.

    Raises:
        ConfigError: no such config, or one without embed_dim, vision_cfg and text_cfg.
    """
    known = sorted(path.stem for path in _CONFIGS.glob("*.json"))
    if name in known:
        text = (_CONFIGS / f"{name}.json").read_text(encoding="utf-8")
    elif "://" in name and "/" in name.split("://", 1)[1]:
        folder, file = name.rsplit("/", 1)
        text = _read_or_fail(lambda: Place(folder).read(file).decode(), name, known)
    else:
        text = _read_or_fail(lambda: Path(name).read_text(encoding="utf-8"), name, known)
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"model.config={name}: not JSON ({error})") from error
    config = config.get("model_cfg", config)
    missing = [key for key in ("embed_dim", "vision_cfg", "text_cfg") if key not in config]
    if missing:
        raise ConfigError(f"model.config={name}: no open_clip model config, {', '.join(missing)} missing")
    config["text_cfg"].setdefault("context_length", 77)  # open_clip's default
    return dict(config)


def _read_or_fail(read: Any, name: str, known: list[str]) -> str:
    try:
        return str(read())
    except OSError as error:
        raise ConfigError(f"model.config={name} is neither a file nor one of {', '.join(known)}") from error


def build_tokenizer(config: Model, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `model.tokenizer` asks for: fitted on `texts`, loaded by name, or the bundle's own.

    Raises:
        ConfigError: it cannot be loaded or fitted.
    """
    if config.bundle is not None:
        return _load(config.bundle).tokenizer
    text = model_config(config.config)["text_cfg"]
    context, tower = int(text["context_length"]), text.get("hf_model_name")
    if tower and config.tokenizer == "fit" and config.init == "pretrained" and text.get("hf_model_pretrained", True):
        raise ConfigError(
            f"model.tokenizer=fit numbers words anew, but the weights of {tower} know their own numbers: set "
            f"model.tokenizer={tower}, or model.init=random"
        )
    try:
        if config.tokenizer == "fit":
            return fit_tokenizer(texts, config.vocab_size, context)
        return load_tokenizer(config.tokenizer, context)
    except ValueError as error:
        raise ConfigError(f"model.tokenizer={config.tokenizer}: {error}") from error


def build_model(config: Model, tokenizer: Tokenizer) -> Built:
    """Build the model to train; random weights come from torch's global generator (seed it before).

    Raises:
        ConfigError: unknown config, weights that cannot be reached, or a tokenizer, context, pooling or image size
            that does not fit the towers; each message names the key.
    """
    if config.bundle is not None:
        return _from_bundle(config.bundle, tokenizer)
    import open_clip
    from open_clip.transform import PreprocessCfg

    model_cfg = model_config(config.config)
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if tokenizer.context_length != text["context_length"]:
        raise ConfigError(
            f"model.config={config.config} has context_length {text['context_length']}, the tokenizer gives rows of "
            f"{tokenizer.context_length}"
        )
    _check_timm_name(vision)
    pretrained = config.init == "pretrained"
    vision["timm_model_pretrained"] = pretrained and bool(vision.get("timm_model_pretrained"))
    text["hf_tokenizer_name"] = text.get("hf_tokenizer_name") or "in this folder"
    if not text.get("hf_model_name"):
        _fit_own_tower(text, tokenizer)
        model = _construct(open_clip.CustomTextCLIP if model_cfg.get("custom_text") else open_clip.CLIP, model_cfg)
        text_start = RANDOM
    else:
        load = pretrained and bool(text.pop("hf_model_pretrained", True))
        model, text_start = _with_hf_tower(model_cfg, tokenizer, load)
        text["hf_model_pretrained"] = False
    image_start = f"timm {vision['timm_model_name']}" if vision.pop("timm_model_pretrained") else RANDOM
    _check_image_size(model, vision)
    preprocess_cfg = {**asdict(PreprocessCfg()), "size": model.visual.image_size}
    open_clip.model.set_model_preprocess_cfg(model, preprocess_cfg)
    return Built(model.train(), model_cfg, {"image": image_start, "text": text_start}, preprocess_cfg)


def _load(uri: str) -> Bundle:
    try:
        return load_bundle(uri)
    except BundleError as error:
        raise ConfigError(f"model.bundle={uri}: {error}") from error


def _from_bundle(uri: str, tokenizer: Tokenizer) -> Built:
    loaded = _load(uri)
    for key in ("vocab_size", "context_length", "eos_id"):
        ours, its = getattr(tokenizer, key), getattr(loaded.tokenizer, key)
        if ours != its:
            raise ConfigError(f"model.bundle={uri} has a tokenizer with {key} {its}, the one given has {ours}")
    if "multimodal_cfg" in loaded.info["model_cfg"]:
        raise ConfigError(
            f"model.bundle={uri} is a CoCa, whose decoder learns from another loss; it is measured and served, not "
            "trained on"
        )
    start = f"bundle {uri} ({loaded.info['bundle_id']})"
    info = loaded.info
    return Built(loaded.model.train(), info["model_cfg"], {"image": start, "text": start}, info["preprocess_cfg"])


def _fit_own_tower(text: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Make open_clip's own text tower fit the tokenizer; its defaults are those of OpenAI's BPE."""
    pool = text.setdefault("pool_type", "eos")
    if pool != "eos" and not (pool == "first" and text.get("no_causal_mask")):
        raise ConfigError(
            f"model.config: text_cfg.pool_type={pool} does not fit: argmax takes the largest token id, first sees "
            "only the start under a causal mask, last is padding; set pool_type to eos"
        )
    text.update(vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)


def _construct(kind: Any, model_cfg: dict[str, Any]) -> Any:
    """Instantiate; what cannot be reached on the way is told with the fix."""
    arguments = {key: copy.deepcopy(value) for key, value in model_cfg.items() if key != "custom_text"}
    try:
        return kind(**arguments)
    except Exception as error:  # a wrong value of a config is a KeyError here and an AssertionError there
        raise ConfigError(
            f"model.config: the towers cannot be built ({type(error).__name__}: {str(error).partition(chr(10))[0]}). "
            "If their "
            "weights cannot be reached from here, put them into the Hugging Face cache, or set model.init=random to "
            "train from random weights"
        ) from error


def _with_hf_tower(model_cfg: dict[str, Any], tokenizer: Tokenizer, load: bool) -> tuple[Any, str]:
    """A model with open_clip's Hugging Face text encoder; returns it and the start of its text tower."""
    import open_clip
    from transformers import AutoConfig, AutoModel

    text = model_cfg["text_cfg"]
    name = text["hf_model_name"]
    try:
        tower = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.config: the text tower's config {name!r} cannot be reached; set text_cfg.hf_model_name to a folder "
            "with its config.json, or fill the Hugging Face cache"
            + (" (and, without its weights, model.init=random)" if load else " (model.init=random needs it too)")
        ) from error
    if text["context_length"] > tower.max_position_embeddings:
        raise ConfigError(
            f"model.config: context_length {text['context_length']} exceeds the {tower.max_position_embeddings} "
            f"positions of the text tower {name}"
        )
    if tokenizer.vocab_size > tower.vocab_size or tokenizer.pad_id != tower.pad_token_id or not load:
        if load:
            raise ConfigError(
                f"model.tokenizer: {tokenizer.vocab_size} tokens, padding {tokenizer.pad_id}; the weights of {name} "
                "know "
                f"{tower.vocab_size} tokens, padding {tower.pad_token_id}. Set model.tokenizer={name}"
            )
        tower.vocab_size, tower.pad_token_id = tokenizer.vocab_size, tokenizer.pad_id
    with tempfile.TemporaryDirectory() as folder:
        tower.save_pretrained(folder)
        here = {**text, "hf_model_name": folder, "hf_model_pretrained": False}
        model = _construct(open_clip.CustomTextCLIP, {**model_cfg, "text_cfg": here})
    if not load:
        return model, RANDOM
    pooled = text.get("hf_pooler_type") == "cls_pooler"
    try:
        weights, found = AutoModel.from_pretrained(name, add_pooling_layer=pooled, output_loading_info=True)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise ConfigError(
            f"model.config: the weights of the text tower {name} cannot be reached ({str(error).splitlines()[0]}); put "
            "them into the Hugging Face cache, or set model.init=random to train from random weights"
        ) from error
    if found["missing_keys"]:
        raise ConfigError(
            f"model.config: {name} lacks {', '.join(sorted(found['missing_keys'])[:5])}: that tower would begin at "
            "random; name another, or set model.init=random"
        )
    model.text.transformer.load_state_dict(weights.state_dict())
    return model, f"hugging face {name}"


def _check_timm_name(vision: dict[str, Any]) -> None:
    import timm

    name = vision.get("timm_model_name")
    known = not name or ":" in name or timm.is_model(name.split(".")[0])  # hf-hub:OWNER/NAME is asked when it is built
    if not known:
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"model.config: vision_cfg.timm_model_name={name}: timm has no such model{hint}")


def _check_image_size(model: Any, vision: dict[str, Any]) -> None:
    """A timm tower keeps its own image size, whatever vision_cfg.image_size says."""
    name = vision.get("timm_model_name")
    if not name:
        return
    own = model.visual.trunk.pretrained_cfg["input_size"][-1]
    if model.visual.image_size != (own, own):
        raise ConfigError(
            f"model.config: vision_cfg.image_size={model.visual.image_size[0]}, but the timm tower {name} takes "
            f"{own} px; "
            "name the timm model of the size you want (vit_base_patch16_384), or use open_clip's own ViT"
        )
