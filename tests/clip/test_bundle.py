import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from biomedclip_ray.clip.bundle import BundleError, load_bundle, relocate, save_bundle
from biomedclip_ray.clip.encoder import Encoder
from biomedclip_ray.clip.folder import clean_names
from biomedclip_ray.clip.model import Built, build_model
from biomedclip_ray.clip.tokenizer import Tokenizer, load_tokenizer
from biomedclip_ray.config import Model
from tests.clip.published import make_published

TEXTS = ["micrograph of a lung", "figure", "a (long) caption of a liver; 10^4 cells, " * 9, ""]

# What somebody without our package does: nothing of biomedclip_ray is imported.
PLAIN = """
import sys, numpy as np, torch, open_clip
from PIL import Image
folder, out, *pictures = sys.argv[1:]
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:" + folder)
tokenizer = open_clip.get_tokenizer("local-dir:" + folder)
model.eval()
with torch.no_grad():
    image = model.encode_image(torch.stack([preprocess(Image.open(p)) for p in pictures]), normalize=True)
    text = model.encode_text(tokenizer(%r), normalize=True)
assert not any(name.startswith("biomedclip_ray") for name in sys.modules)
np.savez(out, image=image.numpy(), text=text.numpy())
""" % (TEXTS,)  # noqa: UP031 (braces in the program)


@pytest.fixture(scope="module")
def files(pictures: list[Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{n}.jpg" for n in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        picture.save(path, quality=90)
    return paths


@pytest.fixture(scope="module")
def bert(bert_model_config: str, bert_folder: Path) -> tuple[Built, Tokenizer]:
    loaded = load_tokenizer(str(bert_folder), 48)
    return build_model(Model(config=bert_model_config), loaded), loaded


def write(folder: Path, built: Built, tokenizer: Tokenizer, **provenance: object) -> Path:
    save_bundle(
        folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {"starts": built.starts, **provenance}
    )
    return folder


def plain(folder: Path, files: list[Path], directory: Path) -> dict[str, np.ndarray]:
    """The vectors of plain open_clip in a process of its own, in another directory, with the hub off."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(directory / "no-cache")}
    out = directory / "vectors.npz"
    subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), str(out), *map(str, files)],
        cwd=directory,
        env=environment,
        check=True,
    )
    return dict(np.load(out))


def assert_same_as_plain(folder: Path, files: list[Path], directory: Path) -> None:
    encoder = Encoder.load(folder, "cpu")
    theirs = plain(folder, files, directory)
    np.testing.assert_allclose(encoder.encode_images([path.read_bytes() for path in files]), theirs["image"], atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), theirs["text"], atol=1e-5)


def test_plain_open_clip_gives_the_same_vectors_of_the_sample_model(
    sample: Built, tokenizer: Tokenizer, files: list[Path], tmp_path: Path
) -> None:
    folder = write(tmp_path / "bundle", sample, tokenizer)
    (tmp_path / "elsewhere").mkdir()
    assert_same_as_plain(folder, files, tmp_path / "elsewhere")


def test_plain_open_clip_gives_the_same_vectors_of_a_bert_bundle_also_after_a_move(
    bert: tuple[Built, Tokenizer], bert_folder: Path, files: list[Path], tmp_path: Path
) -> None:
    folder = write(tmp_path / "bundle", *bert)
    moved = tmp_path / "moved" / "bundle"
    shutil.move(folder, moved)
    before = Encoder.load(moved, "cpu").encode_text(TEXTS)  # ours needs no relocation
    relocate(moved)
    (tmp_path / "elsewhere").mkdir()
    assert_same_as_plain(moved, files, tmp_path / "elsewhere")
    np.testing.assert_array_equal(Encoder.load(moved, "cpu").encode_text(TEXTS), before)
    assert str(bert_folder) not in (moved / "open_clip_config.json").read_text()


def test_a_bundle_holds_no_pickle_and_says_where_it_comes_from(
    sample: Built, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write(tmp_path, sample, tokenizer, name="demo", chosen_by="validation", corpus="abc123")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "bundle.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    provenance = json.loads((tmp_path / "bundle.json").read_text())
    assert provenance["starts"] == {"image": "random", "text": "random"}
    assert (provenance["chosen_by"], provenance["corpus"]) == ("validation", "abc123")
    assert len(provenance["weights_sha256"]) == 64 and "open_clip_torch" in provenance["versions"]
    card = (tmp_path / "README.md").read_text()
    assert "courtesy of the U.S. National Library of Medicine" in card and "Not a medical device" in card
    loaded = load_bundle(tmp_path)
    assert loaded.info["bundle_id"] == provenance["bundle_id"] and loaded.info["name"] == "demo"


def test_the_id_follows_the_weights_and_not_the_place(
    sample: Built, bert: tuple[Built, Tokenizer], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    ids = [load_bundle(write(tmp_path / name, *bert)).info["bundle_id"] for name in ("one", "two")]
    assert ids[0] == ids[1]
    assert load_bundle(write(tmp_path / "three", sample, tokenizer)).info["bundle_id"] != ids[0]


def test_wrapped_and_compiled_models_are_saved_under_clean_names(
    sample: Built, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.module = module

    built = sample._replace(model=Wrapped(torch.compile(sample.model)))
    names = set(load_file(write(tmp_path, built, tokenizer) / "open_clip_model.safetensors"))
    assert names == set(sample.model.state_dict())


def test_names_are_cleaned_at_any_depth() -> None:
    state = {"module._orig_mod.visual._orig_mod.proj": torch.ones(1), "text.submodule.weight": torch.ones(1)}
    assert list(clean_names(state)) == ["visual.proj", "text.submodule.weight"]


def test_a_bundle_on_object_storage_loads_by_its_uri(
    sample: Built, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    write(tmp_path, sample, tokenizer)
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(key, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="models")
        for path in tmp_path.iterdir():
            client.put_object(Bucket="models", Key=f"run/bundle/{path.name}", Body=path.read_bytes())
        remote = Encoder.load("s3://models/run/bundle", "cpu")
        assert remote.bundle_id == Encoder.load(f"local-dir:{tmp_path}", "cpu").bundle_id
        with pytest.raises(BundleError, match=r"s3://models/nothing: no open_clip_config\.json"):
            load_bundle("s3://models/nothing")
    finally:
        server.stop()


def test_damaged_bundles_say_what_is_wrong(sample: Built, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no open_clip_config\.json there"):
        load_bundle(tmp_path)
    write(tmp_path, sample, tokenizer)
    config = (tmp_path / "open_clip_config.json").read_text()
    for broken in ('{"embed_dim": 3}', '{"model_cfg": {"embed_dim": 3}}', '{"model_cfg": []}', "{"):
        (tmp_path / "open_clip_config.json").write_text(broken)
        with pytest.raises(BundleError, match="is not JSON with a model_cfg and a text_cfg in it"):
            load_bundle(tmp_path)
    (tmp_path / "open_clip_config.json").write_text(config)
    weights = tmp_path / "open_clip_model.safetensors"
    state = load_file(weights)
    del state["visual.ln_post.bias"]
    save_file(state, weights)
    with pytest.raises(BundleError, match=r"Missing key.*visual\.ln_post\.bias"):
        load_bundle(tmp_path)
    state["visual.ln_post.bias"] = torch.full((64,), 0.5)
    save_file(state, weights)
    with pytest.raises(BundleError, match=r"not the file that bundle\.json describes"):
        load_bundle(tmp_path)
    weights.unlink()
    with pytest.raises(BundleError, match="no weights there"):
        load_bundle(tmp_path)


# Any CLIP in: the format of the published BiomedCLIP -----------------------------------------------------------------

HUB_NAME = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


@pytest.fixture(scope="module")
def published(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return make_published(tmp_path_factory.mktemp("published"), bert_folder)


def own_vectors(model: Any, folder: Path, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    from open_clip.tokenizer import HFTokenizer
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(), is_train=False)
    ids = HFTokenizer(str(folder), context_length=48)(TEXTS)
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(Image.open(path)) for path in files]), normalize=True)
        return image.numpy(), model.encode_text(ids, normalize=True).numpy()


def test_the_published_format_loads_offline(published: tuple[Path, Any], files: list[Path]) -> None:
    folder, model = published
    image, text = own_vectors(model, folder, files[:3])
    encoder = Encoder.load(f"local-dir:{folder}", "cpu")
    assert encoder.dimensions == 512
    np.testing.assert_allclose(encoder.encode_images([path.read_bytes() for path in files[:3]]), image, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(TEXTS), text, atol=1e-5)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "anything.bin"])
def test_weights_are_found_where_open_clip_finds_them(published: tuple[Path, Any], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "renamed"
    shutil.copytree(published[0], folder)
    (folder / "open_clip_pytorch_model.bin").rename(folder / name)
    assert load_bundle(folder).info["bundle_id"] == load_bundle(published[0]).info["bundle_id"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: b"PK\x03\x04 and no more", "open_clip_pytorch_model.bin: "),
        (lambda state: {}, "open_clip_pytorch_model.bin: "),
        (lambda state: {f"_orig_mod.{name}": value for name, value in state.items()}, r"_orig_mod\.visual"),
        (lambda state: {f"module.{name}": value for name, value in state.items()}, None),
    ],
    ids=["cut", "empty", "compiled", "distributed"],
)
def test_weights_that_cannot_be_read_are_named(
    published: tuple[Path, Any], tmp_path: Path, change: Callable[[Any], Any], told: str | None
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(published[0], folder)
    file = folder / "open_clip_pytorch_model.bin"
    changed = change(torch.load(file))
    file.write_bytes(changed) if isinstance(changed, bytes) else torch.save(changed, file)
    if told is None:
        load_bundle(folder)
    else:
        with pytest.raises(BundleError, match=told):
            load_bundle(folder)


def test_config_keys_of_an_older_open_clip_are_understood(published: tuple[Path, Any], tmp_path: Path) -> None:
    shutil.copytree(published[0], tmp_path / "old")
    file = tmp_path / "old" / "open_clip_config.json"
    file.write_text(file.read_text().replace("hf_proj_type", "proj").replace("hf_pooler_type", "pooler_type"))
    old, new = Encoder.load(tmp_path / "old", "cpu"), Encoder.load(published[0], "cpu")
    np.testing.assert_array_equal(old.encode_text(TEXTS), new.encode_text(TEXTS))


def test_a_hugging_face_cache_serves_the_hub_name_offline(published: tuple[Path, Any], tmp_path: Path) -> None:
    """hf-hub: with the network off, in a process whose cache holds the repository as the hub's client leaves it."""
    revision = "9f341de24bfb00180f1b847274256e9b65a3a32e"
    repository = tmp_path / "hub" / f"models--{HUB_NAME.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(published[0], repository / "snapshots" / revision)
    program = (
        "import sys, numpy as np; from biomedclip_ray import Encoder\n"
        f"encoder = Encoder.load('hf-hub:{HUB_NAME}', 'cpu')\n"
        f"np.save(sys.argv[1], encoder.encode_text({TEXTS!r})); print(encoder.name)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out.npy")],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == HUB_NAME.split("/")[1]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), Encoder.load(published[0], "cpu").encode_text(TEXTS))


def test_a_hub_name_that_cannot_be_reached_names_the_fix() -> None:
    with pytest.raises(BundleError, match=r"hf-hub:nobody/nothing cannot be reached.*give the folder"):
        load_bundle("hf-hub:nobody/nothing")


def test_a_published_clip_trained_on_becomes_a_bundle_that_plain_open_clip_loads(
    published: tuple[Path, Any], files: list[Path], tmp_path: Path
) -> None:
    tokenizer = load_bundle(published[0]).tokenizer
    built = build_model(Model(bundle=str(published[0])), tokenizer)
    folder = write(tmp_path / "bundle", built, tokenizer)
    (tmp_path / "elsewhere").mkdir()
    assert_same_as_plain(folder, files[:3], tmp_path / "elsewhere")
