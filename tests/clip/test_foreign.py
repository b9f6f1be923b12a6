"""CLIPs that others made: the same tokens and vectors as plain open_clip or transformers, or a sentence with the way
out.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from biomedclip_ray.clip.bundle import BundleError, load_bundle, relocate, save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.siglip import converted
from biomedclip_ray.config import ConfigError, Model

TEXTS = ["micrograph of a \u201clung\u201d", "FIGURE_1, x-ray!", "a (long) caption of a liver; 10^4 cells, " * 9, ""]
VISION = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def _write(folder: Path, config: dict[str, Any], preprocess: dict[str, Any] | None, seed: int = 0) -> Path:
    """A CLIP of random weights in open_clip's own form."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"model_cfg": config} | ({"preprocess_cfg": preprocess} if preprocess is not None else {})
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    torch.manual_seed(seed)
    parts = {key: value for key, value in config.items() if key != "custom_text"}
    kind = open_clip.CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    model = (kind if config.get("custom_text") else open_clip.CLIP)(**parts)
    state = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def _plain(name: str, pictures: list[Image.Image], **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """What plain open_clip gives."""
    model, _, preprocess = open_clip.create_model_and_transforms(name, **more)
    ids = open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        image = model.eval().encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
        return image.numpy(), model.encode_text(ids, normalize=True).numpy()


def _assert_same(uri: str, theirs: tuple[np.ndarray, np.ndarray], pictures: list[Image.Image]) -> Encoder:
    encoder = Encoder.load(uri, "cpu")
    np.testing.assert_allclose(encoder.encode_images(pictures), theirs[0], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), theirs[1], atol=1e-5)
    return encoder


@pytest.fixture(scope="module")
def clip_config() -> dict[str, Any]:
    return {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}


def _siglip(bert_folder: Path, folder: Path) -> Path:
    text = {"context_length": 16, "vocab_size": 93, "width": 64, "heads": 2, "layers": 2, "no_causal_mask": True}
    text |= {
        "pool_type": "last",
        "proj_bias": True,
        "hf_tokenizer_name": "here",
        "tokenizer_kwargs": {"clean": "canonicalize"},
    }
    config = {"embed_dim": 32, "init_logit_bias": -10, "custom_text": True, "vision_cfg": VISION, "text_cfg": text}
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        folder.mkdir(exist_ok=True)
        shutil.copy(bert_folder / name, folder / name)
    return _write(folder, config, SIGLIP)


def test_a_clip_with_openais_bpe_gives_open_clips_vectors_also_as_a_bundle_of_ours(
    clip_config: dict[str, Any], pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = _write(tmp_path / "theirs", clip_config, OPENAI)
    theirs = _plain(f"local-dir:{folder}", pictures)
    _assert_same(str(folder), theirs, pictures)
    tokenizer = load_bundle(folder).tokenizer
    built = build_model(Model(bundle=str(folder)), tokenizer)
    save_bundle(tmp_path / "ours", built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    _assert_same(str(tmp_path / "ours"), _plain(f"local-dir:{tmp_path / 'ours'}", pictures), pictures)
    np.testing.assert_array_equal(
        Encoder.load(tmp_path / "ours", "cpu").encode_text(TEXTS), Encoder.load(folder, "cpu").encode_text(TEXTS)
    )


def test_a_siglip_gives_open_clips_vectors_also_as_a_bundle_of_ours(
    bert_folder: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = _siglip(bert_folder, tmp_path / "theirs")
    _assert_same(str(folder), _plain(f"local-dir:{folder}", pictures), pictures)
    tokenizer = load_bundle(folder).tokenizer
    built = build_model(Model(bundle=str(folder)), tokenizer)
    save_bundle(tmp_path / "ours", built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    _assert_same(str(tmp_path / "ours"), _plain(f"local-dir:{tmp_path / 'ours'}", pictures), pictures)


def test_a_siglip_with_timms_tower_as_the_published_ones_have_it(
    bert_folder: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    """MedSigLIP's layout in open_clip: patches pooled by an attending token, no projection behind it."""
    folder = _siglip(bert_folder, tmp_path / "shape")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"] | {"embed_dim": 768}
    config["vision_cfg"] = {"image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224"}
    config["vision_cfg"] |= {"timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none"}
    config["text_cfg"] |= {"norm_kwargs": {"eps": 1e-6}, "act_kwargs": {"approximate": "tanh"}}
    _write(folder, config, SIGLIP)
    encoder = _assert_same(str(folder), _plain(f"local-dir:{folder}", pictures[:2]), pictures[:2])
    assert encoder.dimensions == 768


def test_a_coca_is_measured_and_not_trained_on(pictures: list[Image.Image], tmp_path: Path) -> None:
    text = TEXT | {"embed_cls": True, "output_tokens": True}
    vision = VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
    decoder = {"context_length": 16, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1}
    config = {"embed_dim": 64, "custom_text": True, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": decoder}
    folder = _write(tmp_path, config, OPENAI)
    _assert_same(str(folder), _plain(f"local-dir:{folder}", pictures), pictures)
    with pytest.raises(ConfigError, match="is a CoCa, whose decoder learns from another loss"):
        build_model(Model(bundle=str(folder)), load_bundle(folder).tokenizer)


def test_without_preprocessing_a_folder_is_refused_and_transformers_file_names_it(
    clip_config: dict[str, Any], pictures: list[Image.Image], tmp_path: Path
) -> None:
    folder = _write(tmp_path, clip_config, None)
    with pytest.raises(BundleError, match="nobody says how images enter: put preprocess_cfg with mean, std"):
        load_bundle(folder)
    processor = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor | {"size": {"height": 32, "width": 32}}))
    forced: dict[str, Any] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    forced |= {"image_interpolation": "bilinear", "image_resize_mode": "squash"}
    _assert_same(str(folder), _plain(f"local-dir:{folder}", pictures, **forced), pictures)


@pytest.mark.parametrize(
    ("preprocess", "told"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "preprocess_cfg has mean and not the other of mean and std"),
        ({**OPENAI, "size": 64}, r"preprocess_cfg.size=64, and the image tower takes \[32, 32\]"),
        ({"size": 32}, "nobody says how images enter"),
    ],
)
def test_preprocessing_that_open_clip_would_make_fit_is_refused(
    clip_config: dict[str, Any], tmp_path: Path, preprocess: dict[str, Any], told: str
) -> None:
    with pytest.raises(BundleError, match=told):
        load_bundle(_write(tmp_path, clip_config, preprocess))


def test_two_files_that_disagree_on_the_preprocessing_are_refused(clip_config: dict[str, Any], tmp_path: Path) -> None:
    folder = _write(tmp_path, clip_config, OPENAI)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}))
    with pytest.raises(
        BundleError, match=r"says mean \[0.48.*preprocessor_config.json \[0.5.*correct or remove that one"
    ):
        load_bundle(folder)


def test_weights_and_config_that_do_not_fit_are_refused_by_name(
    clip_config: dict[str, Any], bert_folder: Path, tmp_path: Path
) -> None:
    siglip = _siglip(bert_folder, tmp_path / "siglip")
    config = json.loads((siglip / "open_clip_config.json").read_text())
    del config["model_cfg"]["init_logit_bias"]
    (siglip / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match='the weights hold logit_bias.*put "init_logit_bias": -10'):
        load_bundle(siglip)
    longer = _write(tmp_path / "longer", clip_config, OPENAI)
    config = json.loads((longer / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["context_length"] = 64
    (longer / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(BundleError, match="trained on rows of 16 tokens, and .* says context_length 64"):
        load_bundle(longer)
    other = _siglip(bert_folder, tmp_path / "other")
    state = load_file(other / "open_clip_model.safetensors")
    state["text.token_embedding.weight"] = torch.zeros(400, 64)
    save_file(state, other / "open_clip_model.safetensors")
    with pytest.raises(BundleError, match="its tokenizer has 93 entries, its text tower 400|size mismatch"):
        load_bundle(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: _edit(folder / "open_clip_config.json", "preprocess_cfg", "mean", [0.5, 0.5, 0.5]),
        lambda folder: _edit(folder / "tokenizer.json", "normalizer", "lowercase", False),
        lambda folder: _edit(folder / "bundle.json", "bundle_id", None, "000000000000"),
    ],
    ids=["preprocessing", "tokenizer", "id"],
)
def test_a_bundle_of_ours_proves_its_id(
    sample: Any, tokenizer: Any, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    save_bundle(tmp_path, sample.model, sample.model_cfg, sample.preprocess_cfg, tokenizer, {"starts": sample.starts})
    assert load_bundle(tmp_path).info["bundle_id"]
    change(tmp_path)
    with pytest.raises(
        BundleError, match=r"bundle.json says bundle \w+, and its config, preprocessing and tokenizer make \w+"
    ):
        load_bundle(tmp_path)


def _edit(file: Path, key: str, inner: str | None, value: Any) -> None:
    loaded = json.loads(file.read_text())
    (loaded if inner is None else loaded[key])[key if inner is None else inner] = value
    file.write_text(json.dumps(loaded))


# Names, tags and checkpoints
# --------------------------------------------------------------------------------------------


@pytest.fixture
def known(clip_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that open_clip knows, with two tags."""
    (tmp_path / "ViT-nano.json").write_text(json.dumps(clip_config))
    open_clip.add_model_config(tmp_path / "ViT-nano.json")
    tags = {"a": {"hf_hub": "nobody/a/", "mean": (0.5,) * 3, "std": (0.5,) * 3}, "b": {"hf_hub": "nobody/b/"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "ViT-nano", tags)
    return "ViT-nano"


@pytest.mark.parametrize("file", ["epoch_3.pt", "weights.bin", "model.safetensors"])
def test_a_checkpoint_takes_the_preprocessing_of_the_tag_that_is_named(
    known: str, clip_config: dict[str, Any], pictures: list[Image.Image], tmp_path: Path, file: str
) -> None:
    state = load_file(_write(tmp_path / "w", clip_config, OPENAI) / "open_clip_model.safetensors")
    if file.endswith(".safetensors"):
        save_file(state, tmp_path / file)
    else:  # as open_clip's training leaves it
        prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
        torch.save({"epoch": 3, "state_dict": prefixed}, tmp_path / file)
    with pytest.raises(
        BundleError, match=r"does not say how images enter, and the tags of ViT-nano \(a, b\) do not agree"
    ):
        load_bundle(f"open_clip:{known}:{tmp_path / file}")
    with pytest.raises(BundleError, match=r"a file of weights does not say its towers; write open_clip:MODEL:/"):
        load_bundle(tmp_path / file)
    forced: dict[str, Any] = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    theirs = _plain(known, pictures, pretrained=str(tmp_path / file), **forced)
    encoder = _assert_same(f"open_clip:{known}:{tmp_path / file}:a", theirs, pictures)
    assert encoder.info["preprocess_cfg"]["mean"] == [0.5] * 3


def test_a_name_and_a_tag_that_can_be_had_need_no_file(
    known: str,
    clip_config: dict[str, Any],
    pictures: list[Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where open_clip keeps what it fetches
    state = load_file(_write(tmp_path / "w", clip_config, OPENAI) / "open_clip_model.safetensors")
    torch.save(state, tmp_path / "fetched.pt")
    tag = {"url": (tmp_path / "fetched.pt").as_uri(), "mean": (0.4,) * 3, "std": (0.3,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED[known], "c", tag)
    theirs = _plain(known, pictures, pretrained="c")
    encoder = _assert_same(f"open_clip:{known}:c", theirs, pictures)
    assert encoder.info["preprocess_cfg"]["mean"] == [0.4] * 3


def test_tags_that_agree_need_not_be_named_and_wrong_names_say_so(
    known: str, clip_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = _write(tmp_path / "w", clip_config, OPENAI) / "open_clip_model.safetensors"
    monkeypatch.delitem(open_clip.pretrained._PRETRAINED["ViT-nano"], "b")
    assert load_bundle(f"open_clip:{known}:{weights}").info["preprocess_cfg"]["mean"] == [0.5] * 3
    with pytest.raises(BundleError, match="open_clip has no model 'ViT-pico'"):
        load_bundle("open_clip:ViT-pico:openai")
    with pytest.raises(BundleError, match="'c' is neither a file nor one of the tags of ViT-nano: a"):
        load_bundle(f"open_clip:{known}:c")
    with pytest.raises(
        BundleError, match=r"the weights a of ViT-nano cannot be reached .* give open_clip:ViT-nano:FILE:a"
    ):
        load_bundle(f"open_clip:{known}:a")
    with pytest.raises(
        BundleError, match="openai was trained with another activation .* write open_clip:ViT-B-32-quickgelu:"
    ):
        load_bundle(f"open_clip:ViT-B-32:{weights}:openai")


# transformers
# -----------------------------------------------------------------------------------------------------------


def _transformers_clip(folder: Path, act: str, eos: int, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(4)
    sides = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "hidden_act": act,
    }
    vision = sides | {"image_size": 32, "patch_size": 8}
    text = sides | {"max_position_embeddings": 16, "vocab_size": 49408, "eos_token_id": eos, "bos_token_id": 49406}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=48)).eval()
    for layer in (*model.text_model.encoder.layers, *model.vision_model.encoder.layers):
        torch.nn.init.normal_(layer.self_attn.q_proj.bias, std=0.3)
    model.to(dtype).save_pretrained(folder)
    processor = {"image_mean": OPENAI["mean"], "image_std": OPENAI["std"], "size": {"shortest_edge": 32}}
    processor |= {"do_center_crop": True, "crop_size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.float()


@pytest.mark.parametrize(("act", "eos"), [("quick_gelu", 49407), ("gelu", 2)])
def test_a_clip_of_transformers_gives_transformers_vectors(
    pictures: list[Image.Image], tmp_path: Path, act: str, eos: int
) -> None:
    model = _transformers_clip(tmp_path, act, eos)
    encoder = Encoder.load(tmp_path, "cpu")
    pixels = torch.stack([load_bundle(tmp_path).preprocess(picture) for picture in pictures])
    ids = torch.from_numpy(encoder.tokenizer(TEXTS))
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = model.get_text_features(input_ids=ids).pooler_output
    image, text = (torch.nn.functional.normalize(vectors, dim=-1).numpy() for vectors in (image, text))
    np.testing.assert_allclose(encoder.encode_images(pictures), image, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), text, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))


def test_transformers_folders_that_cannot_be_taken_say_why(tmp_path: Path) -> None:
    _transformers_clip(tmp_path, "gelu", 2)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(BundleError, match="no preprocessor_config.json there"):
        load_bundle(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    with pytest.raises(BundleError, match="a siglip2 in transformers' form, and only CLIP's and SigLIP's"):
        load_bundle(tmp_path)


@pytest.fixture(scope="module")
def small_towers() -> None:
    """SigLIP's image tower as timm has it, only smaller."""
    from timm.models import build_model_with_cfg, register_model
    from timm.models.vision_transformer import VisionTransformer

    def vit_tanh_patch8_siglip_32(pretrained: bool = False, **more: Any) -> VisionTransformer:
        given = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5}
        given |= {"class_token": False, "global_pool": "map", "act_layer": "gelu_tanh"}
        return build_model_with_cfg(VisionTransformer, "vit_tanh_patch8_siglip_32", pretrained, **(given | more))

    register_model(vit_tanh_patch8_siglip_32)


def _transformers_siglip(folder: Path, dtype: torch.dtype = torch.float32, **vision: Any) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import SiglipConfig, SiglipModel

    torch.manual_seed(5)
    sides = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    words = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581", -3.0)]
    words += [
        (w, -2.0 - k / 50)
        for k, w in enumerate(["\u2581lung", "\u2581figure", "\u2581ray", *"abcdefghijklmnopqrstuvwxyz0123456789"])
    ]
    text = sides | {"max_position_embeddings": 16, "vocab_size": len(words), "projection_size": 64}
    config = SiglipConfig(text_config=text, vision_config=sides | {"image_size": 32, "patch_size": 8} | vision)
    model = SiglipModel(config).eval()
    for tensor in (model.logit_scale, model.logit_bias):
        torch.nn.init.constant_(tensor, -3.0)
    torch.nn.init.normal_(model.vision_model.head.attention.in_proj_bias, std=0.3)
    torch.nn.init.normal_(model.text_model.head.bias, std=0.3)
    model.to(dtype).save_pretrained(folder)
    backend = Tokenizer(models.Unigram(words, unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    says = {"tokenizer_class": "SiglipTokenizer", "pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(says))
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 32, "width": 32}, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model.float()


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_a_siglip_whose_image_tower_timm_has_no_name_for_carries_its_config(
    pictures: list[Image.Image], tmp_path: Path, act: str
) -> None:
    folder = tmp_path / "theirs"
    model = _transformers_siglip(folder, image_size=48, patch_size=12, hidden_act=act)
    processor = json.loads((folder / "preprocessor_config.json").read_text()) | {"size": {"height": 48, "width": 48}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    bundle = load_bundle(folder)
    pixels = torch.stack([bundle.preprocess(picture) for picture in pictures])
    assert pixels.shape[2:] == (48, 48)
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        ours = bundle.model.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)
    built = build_model(Model(bundle=str(folder)), bundle.tokenizer)
    save_bundle(tmp_path / "ours", built.model, built.model_cfg, built.preprocess_cfg, bundle.tokenizer, {})
    moved = (tmp_path / "ours").rename(tmp_path / "moved")
    with torch.no_grad():
        again = load_bundle(moved).model.encode_image(pixels, normalize=True)
    np.testing.assert_allclose(again.numpy(), theirs.numpy(), atol=1e-5)
    relocate(moved)
    _assert_same(str(moved), _plain(f"local-dir:{moved}", pictures), pictures)
    _edit(moved / "image_tower" / "config.json", "model_args", "act_layer", "relu")
    with pytest.raises(BundleError, match="bundle.json says bundle"):
        load_bundle(moved)


@pytest.mark.parametrize(
    ("width", "layers", "heads", "inner", "patch", "side"),
    [
        (768, 12, 12, 3072, 16, 224),
        (1024, 24, 16, 4096, 16, 256),
        (1152, 27, 16, 4304, 14, 384),
        (1152, 27, 16, 4304, 14, 448),  # MedSigLIP's
    ],
)
def test_published_siglips_of_transformers_have_a_tower_of_their_shape_and_activation(
    tmp_path: Path, width: int, layers: int, heads: int, inner: int, patch: int, side: int
) -> None:
    import timm
    from transformers import SiglipConfig, SiglipModel

    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    vision |= {"intermediate_size": inner, "patch_size": patch, "image_size": side}
    config = {"model_type": "siglip", "vision_config": vision, "text_config": {"num_hidden_layers": 1}}
    with torch.device("meta"):
        state = SiglipModel(SiglipConfig.from_dict(config)).state_dict()
        towers, weights = converted(config, state, tmp_path / "tower")
        trunk = timm.create_model(towers["vision_cfg"]["timm_model_name"], num_classes=0, global_pool="map")
    assert towers["vision_cfg"]["timm_model_name"] == f"local-dir:{tmp_path / 'tower'}"
    theirs = {n.removeprefix("visual.trunk."): t.shape for n, t in weights.items() if n.startswith("visual.trunk.")}
    assert {name: tensor.shape for name, tensor in trunk.state_dict().items()} == theirs
    assert (type(trunk.blocks[0].mlp.act).__name__, trunk.blocks[0].attn.num_heads) == ("GELUTanh", heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_siglip_of_transformers_gives_transformers_vectors_also_as_a_bundle_of_ours(
    small_towers: None, pictures: list[Image.Image], tmp_path: Path, dtype: torch.dtype
) -> None:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "theirs"
    model = _transformers_siglip(folder, dtype)
    encoder = Encoder.load(folder, "cpu")
    pixels = torch.stack([load_bundle(folder).preprocess(picture) for picture in pictures])
    plain = ["micrograph of a lung", "figure1 xray", "a long caption of a liver " * 9, ""]  # nothing to clean
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="</s>", eos_token="</s>")
    ids = theirs(plain, padding="max_length", truncation=True, max_length=16, return_tensors="pt").input_ids
    np.testing.assert_array_equal(encoder.tokenizer(plain), ids.numpy())
    np.testing.assert_array_equal(encoder.tokenizer(["Figure_1, X-ray!"]), encoder.tokenizer(["figure 1 xray"]))
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels).pooler_output
        text = model.get_text_features(input_ids=ids).pooler_output
    image, text = (torch.nn.functional.normalize(vectors, dim=-1).numpy() for vectors in (image, text))
    np.testing.assert_allclose(encoder.encode_images(pictures), image, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(plain), text, atol=1e-5)
    assert float(encoder.model.logit_bias.detach()) == float(model.logit_bias.detach()) == -3
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()))
    tokenizer = load_bundle(folder).tokenizer
    built = build_model(Model(bundle=str(folder)), tokenizer)
    save_bundle(tmp_path / "ours", built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    _assert_same(str(tmp_path / "ours"), _plain(f"local-dir:{tmp_path / 'ours'}", pictures), pictures)
    np.testing.assert_allclose(Encoder.load(tmp_path / "ours", "cpu").encode_images(pictures), image, atol=1e-5)


@pytest.mark.parametrize(
    ("vision", "told"),
    [
        ({"layer_norm_eps": 1e-5}, "from timm, whose differs: layer_norm_eps is 1e-05 and not 1e-06; SigLIP's own"),
        ({"hidden_act": "relu"}, "an image tower with the activation relu"),
    ],
)
def test_a_siglip_whose_image_tower_timm_cannot_make_is_refused(
    small_towers: None, tmp_path: Path, vision: dict[str, Any], told: str
) -> None:
    _transformers_siglip(tmp_path, **vision)
    with pytest.raises(BundleError, match=told):
        load_bundle(tmp_path)


def test_a_siglip_without_tokenizer_json_is_told_where_it_is(small_towers: None, tmp_path: Path) -> None:
    _transformers_siglip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match="no tokenizer.json there; .* copy tokenizer.json from"):
        load_bundle(tmp_path)
