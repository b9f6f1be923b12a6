"""Images and texts to unit vectors: the one place that preprocesses them, for bulk, online and evaluation alike.

Preprocessing is open_clip's own transform, cut in two: resize and crop in Pillow give uint8 (a quarter of the bytes to
hand to another process or a GPU), scaling and normalising happen where the model is. The result is bit for bit that of
the whole transform. Vectors come in the order of the inputs, whatever the batches.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.hf_model import HFTextEncoder
from PIL import Image, ImageOps

from biomedclip_ray.clip.bundle import Bundle, load_bundle
from biomedclip_ray.clip.packing import pack, packs_images
from biomedclip_ray.clip.precision import choose
from biomedclip_ray.clip.streams import Streams
from biomedclip_ray.clip.tokenizer import Tokenizer
from biomedclip_ray.config.section import Precision
from biomedclip_ray.images.image import as_pillow
from biomedclip_ray.images.pillow import rgb_pixels
from biomedclip_ray.run.memory import keep_freed

AnyImage = bytes | Image.Image | np.ndarray
"""An encoded file's bytes, a PIL image, or uint8 (h, w) or (h, w, 3)."""


class Encoder:
    """A CLIP that turns images and texts into float32 unit vectors of `dimensions`.

    >>> encoder = Encoder.load(bundle)  # the folder that training leaves, or hf-hub:NAME
    >>> texts = encoder.encode_text(["Agarose gel with seven lanes", "Radiograph of a long bone"])
    >>> images = encoder.encode_images([np.zeros((80, 60, 3), np.uint8)])
    >>> texts.shape, images.shape, bool(np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5))
    ((2, 128), (1, 128), True)
    >>> (images @ texts.T).shape  # one cosine for each image and text
    (1, 2)
    """

    def __init__(
        self,
        bundle: Bundle,
        device: str | torch.device | None = None,
        batch: int = 64,
        precision: Precision = "float32",
        packed: bool = True,
    ) -> None:
        """Take a loaded bundle. `device` None: CUDA where there is one, and in a task or actor of Ray where it asked
        for one. `batch`: items in one forward pass. `precision`: see `clip/precision.py`; vectors are float32 always.
        `packed`: on a CPU the bundle's model only encodes from now on, faster (`clip/packing.py`).
        """
        self.device = torch.device(device or usual_device())
        if self.device.type == "cpu":
            keep_freed()
        self.model = bundle.model.to(self.device).eval()
        self.tokenizer: Tokenizer = bundle.tokenizer
        self.info = bundle.info
        self.bundle_id: str = bundle.info["bundle_id"]
        self.name: str = bundle.info["name"]
        self.dimensions: int = int(bundle.info["model_cfg"]["embed_dim"])
        self.logit_scale = float(self.model.logit_scale.detach().exp())
        self.batch = batch
        # open_clip's transform ends with "to float tensor" and "normalise"; what comes before stays in Pillow.
        self._to_uint8 = bundle.preprocess.transforms[:-2]  # type: ignore[attr-defined]
        mean, std = (torch.tensor(bundle.info["preprocess_cfg"][key], device=self.device) for key in ("mean", "std"))
        self._mean, self._std = mean.view(3, 1, 1), std.view(3, 1, 1)
        self._streams = Streams()
        size = bundle.info["preprocess_cfg"]["size"]
        choice = choose(self.model, (size, size) if isinstance(size, int) else size, self.device, precision)
        self.precision, self.precision_note = choice
        self._dtype = torch.bfloat16 if choice.precision == "bfloat16" else torch.float32
        self.model.to(self._dtype)
        # A tower that masks its padding gives the same vector for a shorter row; so does a causal one whose vector is
        # that of the end token, since no token sees a later one.
        ways = self.tokenizer.ways
        padded_behind = ways.mode == "plain" and not ways.pad_left
        self._masks = isinstance(self.model._modules.get("text"), HFTextEncoder) and padded_behind
        self._causal = None if self._masks else _causal_tower(self.model)
        if packed:
            some = [Image.new("RGB", (8, 8))] if packs_images(self._dtype) else []
            pack(self.model, lambda: (self.encode_images(some), self.encode_text(["one"])))

    @classmethod
    def load(
        cls,
        uri: str | Path,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        packed: bool = True,
    ) -> Encoder:
        """Load a bundle, or any CLIP that `clip.bundle.load_bundle` reads. Raises BundleError."""
        return cls(load_bundle(uri), device, precision=precision, packed=packed)

    def encode_images(self, images: Sequence[AnyImage]) -> np.ndarray:
        """float32 (n, dimensions), unit length, row i for image i.

        Raises:
            PIL.UnidentifiedImageError, OSError, ImageError: bytes that are no image, or a cut or unsupported one.
            ValueError: an array that is not uint8 (h, w) or (h, w, 3).
        """
        parts = (self.encode_pixels(self.pixels(images[i : i + self.batch])) for i in range(0, len(images), self.batch))
        return self._stack(parts)

    def pixels(self, images: Sequence[AnyImage]) -> torch.Tensor:
        """uint8 (n, 3, size, size) on the CPU: resized and cropped, not yet normalised. Needs no model; thread-safe."""
        arrays = [self._resized(image) for image in images]
        if not arrays:
            size = self.info["preprocess_cfg"]["size"]
            height, width = (size, size) if isinstance(size, int) else size
            return torch.empty((0, 3, height, width), dtype=torch.uint8)
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    def encode_pixels(self, pixels: torch.Tensor) -> np.ndarray:
        """uint8 (n, 3, size, size) from `pixels` -> float32 (n, dimensions), as one batch."""
        return self._batch(
            lambda rows: self._numpy(self.model.encode_image(self.normalised(pixels[rows]))), len(pixels)
        )

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, size, size) from `pixels` -> what the image tower is given, on its device."""
        scaled = pixels.to(self.device).to(torch.float32).div(255).sub_(self._mean).div_(self._std)
        return scaled.to(self._dtype)

    def encode_text(self, texts: Sequence[str]) -> np.ndarray:
        """float32 (n, dimensions), unit length, row i for text i; longer texts are cut
        (`tokenizer.encode` says which).
        """
        return self.encode_ids(self.tokenizer(list(texts)))

    def encode_ids(self, ids: np.ndarray) -> np.ndarray:
        """int64 (n, context) token ids -> float32 (n, dimensions)."""
        if not (self._masks or self._causal):
            return self._stack(self._texts(ids[i : i + self.batch], None) for i in range(0, len(ids), self.batch))
        # Texts of like length go together, so that a batch pays for its longest row and not for the context.
        used = self._read(ids)
        order = np.argsort(used, kind="stable")
        vectors = np.empty((len(ids), self.dimensions), dtype=np.float32)
        for start in range(0, len(ids), self.batch):
            rows = order[start : start + self.batch]
            vectors[rows] = self._texts(ids[rows], used[rows])
        return vectors

    def _read(self, ids: np.ndarray) -> np.ndarray:
        """(n,): tokens of each row that its vector depends on."""
        if self._causal is None:
            # The last token that is no padding counts: a text may hold the padding's own token.
            return np.asarray(ids.shape[1] - np.argmax(ids[:, ::-1] != self.tokenizer.pad_id, axis=1))
        if self._causal.end is None:
            return np.asarray(ids.argmax(axis=1) + 1)
        return np.asarray((ids == self._causal.end).argmax(axis=1) + 1)

    def _texts(self, ids: np.ndarray, used: np.ndarray | None) -> np.ndarray:
        """One batch; `used` (n,): how many tokens of each row are to be read, None: all of them."""
        tower = self.model.encode_text if self._causal is None else self._causal

        def some(rows: slice) -> np.ndarray:
            tokens = ids[rows] if used is None else ids[rows, : used[rows].max()]
            return self._numpy(tower(torch.from_numpy(tokens).to(self.device)))

        return self._batch(some, len(ids))

    def _batch(self, work: Callable[[slice], np.ndarray], items: int) -> np.ndarray:
        if self.device.type != "cpu":
            with torch.inference_mode():
                return work(slice(None))
        return self._streams(work, items, self.dimensions)

    def _resized(self, given: AnyImage) -> np.ndarray:
        image: Any = _opened(given)
        for step in self._to_uint8:
            image = step(image)
        return np.asarray(image)

    def _numpy(self, vectors: torch.Tensor) -> np.ndarray:
        # normalised in float32 whatever the towers compute in: bfloat16 would leave lengths off by a hundredth
        array: np.ndarray = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu().numpy()
        return array

    def _stack(self, parts: Any) -> np.ndarray:
        return np.concatenate([np.empty((0, self.dimensions), dtype=np.float32), *parts])


def usual_device() -> str:
    """ "cuda" where there is one; "cpu" in a task or actor of Ray that asked for no GPU, though Ray hides none from it:
    the first one is some training worker's.
    """
    if not torch.cuda.is_available():
        return "cpu"
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        works = context.get_task_id() is not None or context.get_actor_id() is not None
        if works and not context.get_accelerator_ids().get("GPU"):
            return "cpu"
    return "cuda"


class _CausalTower:
    """A text tower of open_clip's own, run over no more of its context than the tokens given.

    Attributes: end (id of the token whose output is the vector; None: the largest id's, as OpenAI's models have it).
    """

    def __init__(self, module: Any, whole: bool, end: int | None) -> None:
        """`whole`: the module is the whole CLIP, whose text tower is spread over it."""
        self.module, self.whole, self.end = module, whole, end

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """int64 (n, length) -> (n, d), not of unit length."""
        length = tokens.shape[1]
        # A copy of the module's own names, whose weights and parts are the same: `torch.func.functional_call` puts the
        # short ones into the module itself meanwhile, where another stream would find them.
        tower = copy.copy(self.module)
        vars(tower)["_parameters"] = tower._parameters | {"positional_embedding": tower.positional_embedding[:length]}
        vars(tower)["_buffers"] = tower._buffers | {"attn_mask": tower.attn_mask[:length, :length]}
        if not self.whole:
            vectors = tower(tokens)
            return vectors[0] if isinstance(vectors, tuple) else vectors
        answer = tower(text=tokens)
        return answer["text_features"] if isinstance(answer, dict) else answer[1]


def _causal_tower(model: Any) -> _CausalTower | None:
    """The model's text tower, if what follows the pooled token cannot change its vector."""
    whole = "text" not in model._modules
    tower = model if whole else model._modules["text"]
    pool = model.text_pool_type if whole else vars(tower).get("pool_type")
    if "attn_mask" not in tower._buffers or tower._buffers["attn_mask"] is None or pool not in ("eos", "argmax"):
        return None
    if not whole and tower.cls_emb is not None:  # CoCa's class token stands after the padding
        return None
    end = (tower.text_eos_id if whole else tower.eos_id) if pool == "eos" else None
    return _CausalTower(tower, whole, end)


def _opened(given: AnyImage) -> Image.Image:
    """An image upright, in the colours that training saw: alpha on white, 16 bits by their range,
    palettes as colours.
    """
    if isinstance(given, bytes):
        given = as_pillow(given)
    if isinstance(given, Image.Image):
        if given.mode in ("RGB", "L") and not given.has_transparency_data:
            return ImageOps.exif_transpose(given)
        return Image.fromarray(rgb_pixels(given))
    if given.dtype != np.uint8 or given.ndim not in (2, 3) or (given.ndim == 3 and given.shape[2] != 3):
        raise ValueError(f"an image as an array must be uint8 (h, w) or (h, w, 3), not {given.dtype} {given.shape}")
    return Image.fromarray(given)
