import json
from pathlib import Path

import pytest
import torch

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.model import Built, build_model, build_tokenizer, model_config
from biomedclip_ray.clip.tokenizer import Tokenizer, fit_tokenizer, load_tokenizer
from biomedclip_ray.config import ConfigError, Model


def _config(folder: Path, name: str, **changes: object) -> str:
    """A copy of one of our configs with dotted keys changed; its path."""
    config = model_config(name)
    for key, value in changes.items():
        section, _, field = key.partition("__")
        if value is None:
            del config[section][field]
        else:
            config[section][field] = value
    path = folder / "changed.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_the_sample_model_has_the_shape_its_config_says(sample: Built, tokenizer: Tokenizer) -> None:
    visual, text = sample.model.visual, sample.model.text
    assert visual.conv1.weight.shape == (64, 3, 8, 8) and len(visual.transformer.resblocks) == 3
    assert visual.image_size == (64, 64)
    assert len(text.transformer.resblocks) == 2
    assert text.token_embedding.weight.shape == (tokenizer.vocab_size, 64)
    assert sample.model.encode_text(torch.from_numpy(tokenizer(["lung"]))).shape == (1, 128)
    assert sample.starts == {"image": "random", "text": "random"}
    assert sample.preprocess_cfg["size"] == (64, 64)


def test_the_text_vector_is_read_at_the_end_token_and_ignores_the_padding(sample: Built, tokenizer: Tokenizer) -> None:
    ids = torch.from_numpy(tokenizer(["lung and liver"]))
    end = int((ids[0] == tokenizer.eos_id).nonzero()[0])
    assert sample.model_cfg["text_cfg"]["eos_id"] == tokenizer.eos_id
    padded, other_end = ids.clone(), ids.clone()
    padded[0, end + 1 :] = 17
    other_end[0, end - 1] = 17
    with torch.no_grad():
        vector, same, another = (sample.model.encode_text(row) for row in (ids, padded, other_end))
    torch.testing.assert_close(vector, same)
    assert (vector - another).abs().max() > 1e-3


def test_the_same_seed_gives_the_same_weights(tokenizer: Tokenizer) -> None:
    def first() -> torch.Tensor:
        torch.manual_seed(5)
        return build_model(Model(config="sample_64", init="random"), tokenizer).model.visual.conv1.weight

    assert torch.equal(first(), first())


def test_the_published_recipe_is_a_config() -> None:
    config = model_config("biomedclip_vit_b16")
    assert config["embed_dim"] == 512
    assert config["vision_cfg"]["timm_model_name"] == "vit_base_patch16_224"
    assert config["text_cfg"]["hf_model_name"] == "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    assert config["text_cfg"]["hf_proj_type"] == "mlp"
    assert config["text_cfg"]["hf_pooler_type"] == "cls_last_hidden_state_pooler"
    assert config["text_cfg"]["context_length"] == 256


def test_an_unknown_config_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"model\.config=sampel.*biomedclip_vit_b16.*sample_64"):
        model_config("sampel")


def test_a_file_that_is_no_model_config_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"embed_dim": 3}')
    with pytest.raises(ConfigError, match="vision_cfg, text_cfg missing"):
        model_config(str(tmp_path / "x.json"))
    assert model_config(f"file://{_config(tmp_path, 'sample_64')}")["embed_dim"] == 128


def test_weights_that_cannot_be_reached_are_an_error_that_names_the_fix(tokenizer: Tokenizer, tmp_path: Path) -> None:
    vision = {
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": True,
        "timm_pool": "",
        "image_size": 224,
    }
    config = model_config("sample_64")
    path = tmp_path / "timm.json"
    path.write_text(json.dumps({**config, "vision_cfg": vision}))
    with pytest.raises(ConfigError, match=r"set model\.init=random"):
        build_model(Model(config=str(path), init="pretrained"), tokenizer)
    built = build_model(Model(config=str(path), init="random"), tokenizer)
    assert built.starts == {"image": "random", "text": "random"}
    assert built.preprocess_cfg["size"] == (224, 224)


def test_a_hub_tower_that_cannot_be_reached_names_the_fix(tmp_path: Path) -> None:
    fitted = fit_tokenizer(["lung"], 60, 256)
    for init in ("pretrained", "random"):
        with pytest.raises(ConfigError, match=r"BiomedNLP-BiomedBERT.*hf_model_name to a folder.*model\.init=random"):
            build_model(Model(config="biomedclip_vit_b16", init=init), fitted)


def test_a_timm_towers_own_picture_size_is_not_hidden(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = {**model_config("sample_64"), "vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 64}}
    path = tmp_path / "timm.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="image_size=64, but the timm tower vit_tiny_patch16_224 takes 224 px"):
        build_model(Model(config=str(path), init="random"), tokenizer)


def test_a_pretrained_bert_tower_starts_from_its_weights(bert_model_config: str, bert_folder: Path) -> None:
    from transformers import BertModel

    built = build_model(Model(config=bert_model_config), load_tokenizer(str(bert_folder), 48))
    own = BertModel.from_pretrained(bert_folder).state_dict()
    tower = built.model.text.transformer.state_dict()
    assert built.starts == {"image": "random", "text": f"hugging face {bert_folder}"}
    name = "encoder.layer.1.attention.self.query.weight"
    assert torch.equal(tower[name], own[name])


def test_a_random_bert_tower_takes_the_fitted_vocabulary(bert_model_config: str, bert_folder: Path) -> None:
    from transformers import BertModel

    fitted = fit_tokenizer(["lung and liver"] * 3, 200, 48)
    torch.manual_seed(0)
    built = build_model(Model(config=bert_model_config, init="random"), fitted)
    words = built.model.text.transformer.embeddings.word_embeddings.weight
    assert words.shape == (fitted.vocab_size, 128)
    assert built.starts["text"] == "random"
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(
        built.model.text.transformer.state_dict()[name], BertModel.from_pretrained(bert_folder).state_dict()[name]
    )


def test_a_pretrained_bert_tower_refuses_another_tokenizer(bert_model_config: str, captions: list[str]) -> None:
    fitted = fit_tokenizer(captions, 400, 48)
    with pytest.raises(ConfigError, match=r"model\.tokenizer: \d+ tokens.*Set model\.tokenizer="):
        build_model(Model(config=bert_model_config), fitted)


def test_bert_weights_with_a_hole_are_an_error(bert_model_config: str, bert_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((bert_folder / name).read_bytes())
    state = load_file(bert_folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    path = _config(tmp_path, bert_model_config, text_cfg__hf_model_name=str(tmp_path))
    with pytest.raises(ConfigError, match=r"lacks encoder\.layer\.1\.output\.dense\.weight.*begin at random"):
        build_model(Model(config=path), load_tokenizer(str(tmp_path), 48))


@pytest.mark.parametrize("pool", ["argmax", "first", "last"])
def test_pooling_that_reads_the_wrong_token_is_refused(pool: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = _config(tmp_path, "sample_64", text_cfg__pool_type=pool)
    with pytest.raises(ConfigError, match=f"pool_type={pool}.*set pool_type to eos"):
        build_model(Model(config=path, init="random"), tokenizer)


def test_a_tokenizer_of_another_context_is_refused(captions: list[str]) -> None:
    with pytest.raises(ConfigError, match="context_length 32, the tokenizer gives rows of 16"):
        build_model(Model(config="sample_64", init="random"), fit_tokenizer(captions, 400, 16))


def test_a_context_beyond_the_towers_positions_is_refused(
    bert_model_config: str, bert_folder: Path, tmp_path: Path
) -> None:
    path = _config(tmp_path, bert_model_config, text_cfg__context_length=65)
    with pytest.raises(ConfigError, match="context_length 65 exceeds the 64 positions"):
        build_model(Model(config=path), load_tokenizer(str(bert_folder), 65))


def test_the_tokenizer_is_fitted_loaded_or_the_bundles(
    sample: Built, tokenizer: Tokenizer, captions: list[str], bert_model_config: str, bert_folder: Path, tmp_path: Path
) -> None:
    fitted = build_tokenizer(Model(config="sample_64", vocab_size=150), captions)
    assert (fitted.vocab_size, fitted.context_length) == (150, 32)
    loaded = build_tokenizer(Model(config=bert_model_config, tokenizer=str(bert_folder)), captions)
    assert loaded.context_length == 48
    save_bundle(tmp_path, sample.model, sample.model_cfg, sample.preprocess_cfg, tokenizer, {})
    own = build_tokenizer(Model(bundle=str(tmp_path)), [])
    assert (own(captions) == tokenizer(captions)).all()
    with pytest.raises(ConfigError, match=r"model\.tokenizer=nobody/nothing"):
        build_tokenizer(Model(config="sample_64", tokenizer="nobody/nothing"), captions)


def test_training_can_start_from_a_bundle(sample: Built, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_bundle(tmp_path, sample.model, sample.model_cfg, sample.preprocess_cfg, tokenizer, {})
    built = build_model(Model(bundle=str(tmp_path)), tokenizer)
    assert built.model.training
    assert built.starts["image"].startswith(f"bundle {tmp_path} (")
    assert torch.equal(built.model.visual.conv1.weight, sample.model.visual.conv1.weight)
    with pytest.raises(ConfigError, match="has a tokenizer with vocab_size"):
        build_model(Model(bundle=str(tmp_path)), fit_tokenizer(["lung"], 60, 32))
    with pytest.raises(ConfigError, match=r"model\.bundle=.*nowhere"):
        build_model(Model(bundle=str(tmp_path / "nowhere")), tokenizer)
