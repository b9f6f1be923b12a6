import doctest
import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import open_clip
import pytest
import torch
from PIL import Image, ImageFilter, UnidentifiedImageError

from biomedclip_ray.clip import encoder as module
from biomedclip_ray.clip.bundle import load_bundle, save_bundle
from biomedclip_ray.clip.encoder import Encoder, usual_device
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.precision import has_bfloat16
from biomedclip_ray.clip.tokenizer import Tokenizer, load_tokenizer
from biomedclip_ray.config import Model
from biomedclip_ray.images.image import Recipe, prepare


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder.load(folder, "cpu")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """A batch is one forward pass (`clip/streams.py`)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_example_of_the_encoder_runs(folder: Path) -> None:
    result = doctest.testmod(module, extraglobs={"bundle": folder})
    assert result.attempted == 5 and result.failed == 0


def test_vectors_are_float32_of_unit_length(encoder: Encoder, pictures: list[Image.Image], captions: list[str]) -> None:
    for vectors, n in ((encoder.encode_images(pictures), len(pictures)), (encoder.encode_text(captions[:9]), 9)):
        assert vectors.shape == (n, 128) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert (encoder.dimensions, encoder.name, len(encoder.bundle_id)) == (128, "sample", 12)
    assert encoder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_nothing_in_gives_nothing_out(encoder: Encoder) -> None:
    assert encoder.encode_images([]).shape == (0, 128)
    assert encoder.encode_text([]).shape == (0, 128)
    assert encoder.pixels([]).shape == (0, 3, 64, 64)


def test_pixels_normalised_are_open_clips_transform_bit_for_bit(folder: Path, pictures: list[Image.Image]) -> None:
    bundle = load_bundle(folder)
    encoder = Encoder(bundle, "cpu")
    grey = [picture.convert("L") for picture in pictures]
    palette = [picture.convert("P") for picture in pictures]
    whole = [(picture, picture) for picture in [*pictures, *grey]]
    # open_clip shrinks a palette's numbers as if they were colours; here, as in training, colours are shrunken
    for picture, same in [*whole, *((picture, picture.convert("RGB")) for picture in palette)]:
        scaled = encoder.pixels([picture]).to(torch.float32).div(255)
        assert torch.equal(scaled.sub(encoder._mean).div(encoder._std)[0], bundle.preprocess(same))


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_query_is_seen_as_the_pairs_were_made(encoder: Encoder) -> None:
    """Alpha on white, 16 bits by their range, turned as EXIF says: as `figures.image.prepare` stores them."""
    drawing = Image.new("RGBA", (200, 150))
    drawing.paste((0, 0, 0, 255), (20, 20, 60, 60))
    deep = Image.fromarray(np.tile(np.linspace(0, 4095, 200).astype(np.uint16), (150, 1)))
    lying = Image.effect_noise((200, 100), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (_saved(drawing, "PNG"), _saved(deep, "PNG"), _saved(lying, "JPEG", exif=exif, quality=95)):
        stored = prepare(data, Recipe(384, 95, 8, 10**8, 20)).jpeg
        raw, seen = (encoder.pixels([each])[0].float() for each in (data, stored))
        assert float((raw - seen).abs().mean()) < 4
        assert float((encoder.pixels([Image.open(io.BytesIO(data))])[0].float() - seen).abs().mean()) < 4


def _deep(colour: bool, alpha: bool, kind: str) -> bytes:
    """16 bits of which 12 are used, as detectors give them; OpenCV writes what Pillow cannot."""
    ramp = np.add.outer(np.linspace(0, 2000, 150), np.linspace(0, 2095, 200)).astype(np.uint16)
    if not colour:
        return _saved(Image.fromarray(ramp), kind)
    channels = [ramp, ramp[::-1], ramp[:, ::-1], np.full_like(ramp, 65535)][: 4 if alpha else 3]
    done, data = cv2.imencode(f".{kind.lower()}", np.stack(channels, axis=-1))
    assert done
    return bytes(data)


def _every_form() -> dict[str, bytes]:
    """A file of each format, depth and mode that bulk and online take."""
    colours = Image.fromarray(
        np.stack(
            [np.add.outer(np.arange(150) % 97 * 2, np.arange(200) * k % 230) % 256 for k in (1, 1, 1)], axis=-1
        ).astype(np.uint8)
    ).filter(ImageFilter.GaussianBlur(6))
    clear = colours.convert("RGBA")
    clear.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 200).astype(np.uint8), (150, 1))))
    grey, few = colours.convert("L"), colours.quantize(32)
    forms = {
        f"{kind} {image.mode}": _saved(image, kind, **options)
        for kind, images, options in (
            ("JPEG", (colours, grey, colours.convert("CMYK")), {"quality": 95}),
            ("PNG", (colours, grey, few, clear, clear.convert("LA"), colours.convert("1")), {}),
            ("TIFF", (colours, grey, few, clear, colours.convert("CMYK"), colours.convert("1")), {}),
            ("GIF", (few, grey), {}),
            ("WEBP", (colours, clear), {"lossless": True}),
        )
        for image in images
    }
    film = Image.fromarray(np.tile(np.linspace(0, 4095, 200).astype(np.uint16), (150, 1)))
    forms["TIFF I;16"] = _saved(film, "TIFF")
    forms["TIFF I;16 white is 0"] = _saved(film, "TIFF", tiffinfo={262: 0})
    forms["TIFF F"] = _saved(Image.fromarray(np.asarray(film).astype(np.float32)), "TIFF")
    forms |= {f"{kind} 16-bit grey": _deep(False, False, kind) for kind in ("PNG", "TIFF")}
    forms |= {f"{kind} 16-bit colour": _deep(True, False, kind) for kind in ("PNG", "TIFF")}
    forms["PNG 16-bit colour, alpha"] = _deep(True, True, "PNG")
    return forms


FORMS = _every_form()


@pytest.mark.parametrize("form", FORMS)
def test_each_format_depth_and_mode_is_seen_online_as_the_bulk_job_sees_it(encoder: Encoder, form: str) -> None:
    data = FORMS[form]
    stored = prepare(data, Recipe(384, 95, 8, 10**8, 20)).jpeg
    online, bulk = (encoder.pixels([each])[0].float() for each in (data, stored))
    assert float((online - bulk).abs().mean()) < 3  # JPEG's own loss
    assert float(encoder.encode_images([data])[0] @ encoder.encode_images([stored])[0]) > 0.99


def test_without_a_gpu_of_its_own_a_worker_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usual_device() == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert usual_device() == "cuda"


def test_bytes_picture_and_array_give_the_same_vector(encoder: Encoder, pictures: list[Image.Image]) -> None:
    buffer = io.BytesIO()
    pictures[1].save(buffer, "PNG")
    vectors = encoder.encode_images([buffer.getvalue(), pictures[1], np.asarray(pictures[1])])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    grey = np.asarray(pictures[1].convert("L"))
    np.testing.assert_allclose(
        encoder.encode_images([grey]), encoder.encode_images([np.stack([grey] * 3, axis=-1)]), atol=1e-6
    )


def test_vector_i_belongs_to_input_i_whatever_the_batch(
    folder: Path, pictures: list[Image.Image], captions: list[str]
) -> None:
    many = [pictures[n % 7].rotate(n) for n in range(20)]
    texts = [caption * (n % 3 + 1) for n, caption in enumerate(captions[:20])]
    one_by_one, by_seven = Encoder(load_bundle(folder), "cpu", batch=1), Encoder(load_bundle(folder), "cpu", batch=7)
    np.testing.assert_allclose(by_seven.encode_images(many), one_by_one.encode_images(many), atol=2e-6)
    np.testing.assert_allclose(by_seven.encode_text(texts), one_by_one.encode_text(texts), atol=2e-6)
    backwards = by_seven.encode_text(texts[::-1])[::-1]
    np.testing.assert_allclose(backwards, one_by_one.encode_text(texts), atol=2e-6)


@pytest.mark.usefixtures("one_thread")
def test_a_bert_tower_pays_for_no_padding_and_gives_the_same_vectors(
    bert_model_config: str, bert_folder: Path, captions: list[str], tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(str(bert_folder), 48)
    built = build_model(Model(config=bert_model_config), tokenizer)
    save_bundle(tmp_path, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {})
    bundle = load_bundle(tmp_path)
    texts = ["lung", *captions[:5], "", "lung [PAD] [PAD] and liver", captions[0] * 3]
    with torch.no_grad():
        padded = bundle.model.encode_text(torch.from_numpy(tokenizer(texts)), normalize=True).numpy()
    encoder = Encoder(bundle, "cpu", batch=3)
    widths: list[int] = []
    bundle.model.text.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    vectors = encoder.encode_text(texts)
    np.testing.assert_allclose(vectors, padded, atol=1e-6)
    assert widths[0] < 48 and len(widths) == 3


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("pool", ["eos", "argmax"])
@pytest.mark.parametrize("whole", [True, False], ids=["CLIP", "CustomTextCLIP"])
def test_a_causal_tower_pays_for_nothing_behind_its_end_token_and_gives_the_same_vectors(
    folder: Path, tokenizer: Tokenizer, whole: bool, pool: str
) -> None:
    bundle = load_bundle(folder)
    end = tokenizer.vocab_size - 1
    text = {"context_length": 77, "vocab_size": tokenizer.vocab_size, "width": 64, "heads": 2, "layers": 2}
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    kind = open_clip.CLIP if whole else open_clip.CustomTextCLIP
    model = kind(128, vision, {**text, "pool_type": pool, "eos_id": end}).eval()
    encoder = Encoder(bundle._replace(model=model), "cpu", batch=4)
    ids = np.random.default_rng(0).integers(5, end, (9, 77))
    ends = [3, 8, 8, 76, 20, 1, 40, 5, 12]
    ids[np.arange(9), ends] = end
    with torch.no_grad():
        padded = model.encode_text(torch.from_numpy(ids), normalize=True).numpy()
    widths: list[int] = []
    model.get_submodule("token_embedding" if whole else "text.token_embedding").register_forward_pre_hook(
        lambda _, given: widths.append(given[0].shape[1])
    )
    np.testing.assert_allclose(encoder.encode_ids(ids), padded, atol=1e-6)
    assert widths == [9, 41, 77]


@pytest.mark.parametrize("text", [{"no_causal_mask": True, "pool_type": "first"}, {"embed_cls": True}])
def test_a_tower_that_reads_its_padding_gets_it(folder: Path, tokenizer: Tokenizer, text: dict[str, object]) -> None:
    bundle = load_bundle(folder)
    context = tokenizer.context_length
    size = {"context_length": context, "vocab_size": tokenizer.vocab_size, "width": 64, "heads": 2, "layers": 2}
    vision = {"image_size": 64, "patch_size": 16, "width": 64, "layers": 1, "head_width": 32}
    model = open_clip.CustomTextCLIP(128, vision, {**size, **text}).eval()
    ids = np.full((2, context), 0)
    ids[:, :3] = [[2, 7, 3], [2, 9, 3]]
    with torch.no_grad():
        padded = model.encode_text(torch.from_numpy(ids), normalize=True).numpy()
    encoder = Encoder(bundle._replace(model=model), "cpu")
    np.testing.assert_allclose(encoder.encode_ids(ids), padded, atol=1e-6)


def test_bfloat16_gives_float32_vectors_of_unit_length_near_those_of_float32(
    folder: Path, encoder: Encoder, pictures: list[Image.Image], captions: list[str]
) -> None:
    rounded = Encoder.load(folder, "cpu", precision="bfloat16")
    assert (rounded.precision, encoder.precision) == ("bfloat16", "float32")
    for name, given in (("encode_images", pictures), ("encode_text", captions[:9])):
        exact, near = getattr(encoder, name)(given), getattr(rounded, name)(given)
        assert near.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-6)
        assert (exact * near).sum(axis=1).min() > 0.999


def test_auto_says_what_it_measured_and_keeps_to_it(folder: Path) -> None:
    encoder = Encoder.load(folder, "cpu", precision="auto")
    if has_bfloat16(torch.device("cpu")) is None:
        assert (encoder.precision, encoder.precision_note) == ("float32", "auto: cpu has no bfloat16")
    else:
        gain = float(re.search(r"is ([\d.]+) times as fast as float32, cosine", encoder.precision_note)[1])
        assert (encoder.precision == "bfloat16") == (gain >= 1.2)
    assert next(encoder.model.parameters()).dtype == getattr(torch, encoder.precision)


def test_what_is_no_picture_is_an_error(encoder: Encoder, pictures: list[Image.Image]) -> None:
    with pytest.raises(UnidentifiedImageError):
        encoder.encode_images([b"no picture"])
    buffer = io.BytesIO()
    pictures[4].save(buffer, "JPEG")
    with pytest.raises(OSError, match="truncated"):
        encoder.encode_images([buffer.getvalue()[:5000]])
    with pytest.raises(ValueError, match=r"must be uint8 .* not float64 \(4, 4, 3\)"):
        encoder.encode_images([np.ones((4, 4, 3))])


def test_the_package_exports_the_encoder_without_loading_torch_for_others() -> None:
    program = (
        "import sys, biomedclip_ray, biomedclip_ray.config\n"
        "import biomedclip_ray.clip.model, biomedclip_ray.clip.tokenizer, biomedclip_ray.clip.prompts\n"
        "print('torch' in sys.modules, end=' ')\n"
        "from biomedclip_ray import Encoder\n"
        "print('torch' in sys.modules, Encoder.__module__)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True biomedclip_ray.clip.encoder"
