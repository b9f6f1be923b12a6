"""The bundle: a folder with weights, config and tokenizer that plain open_clip loads, and loading any CLIP in that
form.

Weights are safetensors, never pickles. A bundle with a BERT tower carries that tower's config, so that it loads with
the hub off. open_clip looks `hf_model_name` up from the current directory, not from the bundle: the only value that
holds from any directory is the absolute path of the folder, so that is what a bundle says, and who moves one calls
`relocate`. `load_bundle` does not need it: it always takes the config that lies in the bundle.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from biomedclip_ray.clip import foreign, siglip
from biomedclip_ray.clip.fits import CONFIG, UnfitError, check_shapes, check_size, check_words, preprocessing, read_json
from biomedclip_ray.clip.folder import (
    IMAGE_TOWER,
    TOWER,
    WEIGHT_FILES,
    WEIGHTS,
    clean_names,
    shapes_of,
    text_tower,
    tokenizer_of,
    weights_file,
)
from biomedclip_ray.clip.model_card import model_card
from biomedclip_ray.clip.tokenizer import Tokenizer
from biomedclip_ray.store.place import Place

if TYPE_CHECKING:
    import torch

PROVENANCE = "bundle.json"
_VERSIONS = ("biomedclip-ray", "open_clip_torch", "torch", "timm", "transformers", "tokenizers")
_OLD_TEXT_KEYS = {"proj": "hf_proj_type", "pooler_type": "hf_pooler_type"}


class BundleError(ValueError):
    """A folder that is no CLIP, or not a whole one; the message names what is missing."""


class Bundle(NamedTuple):
    model: Any
    """A torch.nn.Module (open_clip is not typed): open_clip's model in eval mode, float32."""
    preprocess: Callable[[Any], torch.Tensor]
    """PIL image -> float32 (3, h, w): open_clip's own transform."""
    tokenizer: Tokenizer
    info: dict[str, Any]
    """uri, name, bundle_id (hash of weights, tokenizer and config), model_cfg, preprocess_cfg, provenance (bundle.json
    or {}).
    """


def save_bundle(
    folder: Path,
    model: torch.nn.Module,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
) -> None:
    """Write a bundle; bundle.json comes last, so a folder without it is not a whole one.

    Args:
        folder: the local folder where the bundle is to stay (else `relocate` it after the move).
        model: open_clip's model, also wrapped or compiled.
        model_cfg, preprocess_cfg: as `build_model` returns them.
        tokenizer: what trained.
        provenance: what a reader must know: `starts` (of each tower), `chosen_by` (the split that chose the
            checkpoint), `corpus` (fingerprint), and anything JSON holds; `name` and `limits` go into the model card.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PROVENANCE).unlink(missing_ok=True)
    bare = _unwrap(model)
    # Tied tensors are written twice, as open_clip expects each name.
    state = {name: value.detach().cpu().contiguous().clone() for name, value in clean_names(bare.state_dict()).items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    tokenizer.save(folder)
    config = copy.deepcopy(model_cfg)
    config["vision_cfg"].pop("timm_model_pretrained", None)
    if config["vision_cfg"].get("timm_model_name", "").startswith(siglip.LOCAL):
        siglip.write_image_tower(folder / IMAGE_TOWER, bare.visual.trunk)
    for key in ("hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"):
        config["text_cfg"].pop(key, None)
    config["text_cfg"].update(tokenizer.ways.text_cfg)
    if config["text_cfg"].get("hf_model_name"):
        tower = bare.text.config
        (folder / TOWER).mkdir(exist_ok=True)
        tower.to_json_file(folder / TOWER / "config.json", use_diff=False)
        config["text_cfg"]["hf_model_pretrained"] = False
    _write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": _plain(preprocess_cfg)})
    relocate(folder)
    (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)  # safetensors writes for the owner alone
    versions = {name: version(name) for name in _VERSIONS}
    whole = {**provenance, "weights_sha256": _sha256(folder / WEIGHTS), "versions": versions}
    whole["bundle_id"] = _bundle_id(whole["weights_sha256"], config, preprocess_cfg, tokenizer, folder)
    (folder / "README.md").write_text(model_card(whole, config), encoding="utf-8")
    _write_json(folder / PROVENANCE, whole)


def relocate(folder: Path) -> None:
    """Tell plain open_clip where a bundle that carries the config of a tower now lies; call it after moving or
    downloading one.
    """
    folder = Path(folder).resolve()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if (folder / TOWER / "config.json").is_file():
        config["model_cfg"]["text_cfg"]["hf_model_name"] = str(folder / TOWER)
    if (folder / IMAGE_TOWER / "config.json").is_file():
        config["model_cfg"]["vision_cfg"]["timm_model_name"] = f"{siglip.LOCAL}{folder / IMAGE_TOWER}"
    _write_json(folder / CONFIG, config)


def load_bundle(uri: str | Path) -> Bundle:
    """Load a CLIP: one of our bundles, any folder that open_clip's `local-dir:` and `hf-hub:` take, or what
    `clip.foreign` puts into that form.

    Args:
        uri: a folder, `local-dir:PATH`, a storage URI (`s3://...`; downloaded for as long as loading takes),
            `hf-hub:OWNER/NAME` (the network, or with HF_HUB_OFFLINE=1 the Hugging Face cache), `open_clip:MODEL:TAG`,
            or `open_clip:MODEL:FILE` for a checkpoint.

    Raises:
        BundleError: nothing there, a weight missing or unexpected (named), no tokenizer or another model's, nobody says
            how images enter, or a bundle that is not what its bundle.json says.
    """
    uri = str(uri)
    if uri.startswith(foreign.PREFIX):
        with tempfile.TemporaryDirectory(prefix="bundle-") as scratch, _told(uri):
            return _load_folder(foreign.from_open_clip(uri.removeprefix(foreign.PREFIX), Path(scratch)), uri)
    if uri.startswith("hf-hub:"):
        return _load_folder(_from_hub(uri.removeprefix("hf-hub:")), uri)
    if "://" not in uri:
        return _load_folder(Path(uri.removeprefix("local-dir:")), uri)
    place = Place(uri)
    if place.local is not None:
        return _load_folder(place.local, uri)
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        place.download(Path(folder))
        return _load_folder(Path(folder), uri)


def _load_folder(folder: Path, uri: str) -> Bundle:
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if folder.is_file():
        raise BundleError(f"{uri}: a file of weights does not say its towers; write {foreign.PREFIX}MODEL:{folder}")
    if not (folder / CONFIG).is_file():
        if not foreign.is_transformers(folder):
            raise BundleError(f"{uri}: no {CONFIG} there; a bundle is a folder that open_clip's local-dir: loads")
        with tempfile.TemporaryDirectory(prefix="bundle-") as scratch, _told(uri):
            return _load_folder(foreign.from_transformers(folder, Path(scratch)), uri)
    weights = weights_file(folder)
    if weights is None:
        raise BundleError(f"{uri}: no weights there (looked for {', '.join(WEIGHT_FILES)})")
    try:
        whole = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config = whole["model_cfg"]
        text = {_OLD_TEXT_KEYS.get(key, key): value for key, value in config["text_cfg"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{uri}: {CONFIG} is not JSON with a model_cfg and a text_cfg in it") from error
    config = {**config, "text_cfg": text}
    with _told(uri):
        images = preprocessing(folder, whole)
    with tempfile.TemporaryDirectory() as scratch:
        here = dict(text)
        try:
            shapes = shapes_of(weights)
            check_shapes(shapes, config)
            if text.get("hf_model_name"):
                tower = text_tower(folder, text, shapes, Path(scratch))
                here.update(hf_model_name=tower, hf_model_pretrained=False)
            model = open_clip.create_model(
                f"local-dir:{folder}",
                require_pretrained=True,
                pretrained_text=False,
                vision_cfg=_vision(folder, config),
                text_cfg=here,
                force_preprocess_cfg=images,
            )
        except UnfitError as error:
            raise BundleError(f"{uri}: {error}") from error
        except (
            Exception
        ) as error:  # what a cut or foreign file makes torch, safetensors and open_clip raise has no common base
            raise BundleError(f"{uri}: {weights.name}: {type(error).__name__}: {error}") from error
    preprocess_cfg = _plain(model.visual.preprocess_cfg)
    with _told(uri):
        tokenizer = tokenizer_of(folder, text)
        check_words(tokenizer.vocab_size, shapes)
        check_size(whole.get("preprocess_cfg") or {}, preprocess_cfg["size"])
    digest = _sha256(weights)
    file = folder / PROVENANCE
    provenance = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if provenance.get("weights_sha256", digest) != digest:
        raise BundleError(f"{uri}: {weights.name} is not the file that {PROVENANCE} describes (sha256 differs)")
    bundle_id = _bundle_id(digest, config, preprocess_cfg, tokenizer, folder)
    if provenance.get("bundle_id", bundle_id) != bundle_id:
        raise BundleError(
            f"{uri}: {PROVENANCE} says bundle {provenance['bundle_id']}, and its config, preprocessing and tokenizer "
            "make "
            f"{bundle_id}: one of them was changed, or tokenizers is no longer "
            f"{provenance.get('versions', {}).get('tokenizers')}"
        )
    info = {
        "uri": uri,
        "name": provenance.get("name") or uri.rstrip("/").rsplit("/", 1)[-1].removeprefix("local-dir:"),
        "bundle_id": bundle_id,
        "model_cfg": config,
        "preprocess_cfg": preprocess_cfg,
        "provenance": provenance,
    }
    transform = image_transform_v2(PreprocessCfg(**preprocess_cfg), is_train=False)
    return Bundle(model.eval(), transform, tokenizer, info)


@contextmanager
def _told(uri: str) -> Iterator[None]:
    try:
        yield
    except UnfitError as error:
        raise BundleError(f"{uri}: {error}") from error


def _from_hub(name: str) -> Path:
    """The snapshot folder of a hub repository, with the one weights file that open_clip, or else transformers, would
    take.
    """
    from huggingface_hub import snapshot_download
    from open_clip.pretrained import download_pretrained_from_hf

    try:
        folder = Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", f"{TOWER}/*"]))
        if (folder / CONFIG).is_file():
            return Path(download_pretrained_from_hf(name)).parent
        for weights in ("model.safetensors", "pytorch_model.bin"):
            if not any((folder / one).is_file() for one in ("model.safetensors", "pytorch_model.bin")):
                snapshot_download(name, allow_patterns=[weights])
        return folder
    except (OSError, ValueError) as error:
        raise BundleError(
            f"hf-hub:{name} cannot be reached ({str(error).splitlines()[0]}); download it where there is a network "
            "and give the folder, or fill the Hugging Face cache"
        ) from error


def _unwrap(model: Any) -> Any:
    """The model inside DDP and torch.compile."""
    while True:
        for wrapper in ("module", "_orig_mod"):
            if wrapper in model._modules:
                model = model._modules[wrapper]
                break
        else:
            return model


def _vision(folder: Path, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """An image tower's config, with the tower that lies in the folder itself."""
    vision = dict(model_cfg["vision_cfg"])
    if (folder / IMAGE_TOWER / "config.json").is_file():
        vision["timm_model_name"] = f"{siglip.LOCAL}{(folder / IMAGE_TOWER).resolve()}"
    return vision


def _bundle_id(
    weights_sha256: str,
    model_cfg: dict[str, Any],
    preprocess_cfg: dict[str, Any],
    tokenizer: Tokenizer,
    folder: Path,
) -> str:
    """Short hash of all that decides a vector; where the folder lies does not."""
    places = ("hf_model_name", "hf_model_pretrained", "hf_tokenizer_name")
    text = {key: value for key, value in model_cfg["text_cfg"].items() if key not in places}
    config = {**model_cfg, "text_cfg": text, "preprocess_cfg": _plain(preprocess_cfg)}
    if tower := read_json(folder / IMAGE_TOWER / "config.json"):
        config["vision_cfg"] = {**model_cfg["vision_cfg"], "timm_model_name": tower}
    whole = f"{weights_sha256}{tokenizer.fingerprint}{json.dumps(config, sort_keys=True)}"
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


def _plain(preprocess_cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in preprocess_cfg.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
