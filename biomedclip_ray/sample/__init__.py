"""A generated PMC bucket, to try everything without a network: `make_bucket(folder) -> Truth`."""

from biomedclip_ray.sample.bucket import make_bucket
from biomedclip_ray.sample.truth import ArticleTruth, FigureTruth, PanelTruth, Truth

__all__ = ["ArticleTruth", "FigureTruth", "PanelTruth", "Truth", "make_bucket"]
