"""PubMed Central to a trained, measured and serving biomedical CLIP model on Ray.

`from biomedclip_ray import Encoder` is the model for a notebook. It is looked up when asked for, so that the stages
that never touch a model (ingest, preprocess, curate) do not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from biomedclip_ray.clip.encoder import Encoder

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    if name == "Encoder":
        from biomedclip_ray.clip.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
