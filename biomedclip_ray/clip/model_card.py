"""A bundle's README.md: what the model is, where it began, what it must not be used for, whose articles trained it."""

from __future__ import annotations

from typing import Any

from biomedclip_ray.schema import ACKNOWLEDGEMENT

_LIMITS = (
    "For research. Not a medical device: not for diagnosis, triage or any decision about a patient. It has seen "
    "figures "
    "and captions of English articles; rare diseases, other languages and clinical originals are thinly covered."
)
_MOVED = """
After moving this folder, tell plain open_clip where its towers' configs lie: call
`biomedclip_ray.clip.bundle.relocate(folder)`, or set in open_clip_config.json `model_cfg.text_cfg.hf_model_name` to the
absolute path of `text_tower`, and `model_cfg.vision_cfg.timm_model_name` to `local-dir:` and that of `image_tower`,
whichever of them is there. `Encoder.load` does not need it.
"""
_CARD = """---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
license: other
tags: [clip, biomedical, pubmed-central]
---
# {name}

A CLIP of biomedical figures and their captions, bundle `{bundle_id}`.

```python
model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH")
tokenizer = open_clip.get_tokenizer("local-dir:PATH")
# the same vectors, already of unit length:
vectors = biomedclip_ray.Encoder.load("PATH").encode_text(["gel electrophoresis of PCR products"])
```
{moved}
- Start of the image tower: {image}
- Start of the text tower: {text}
- Split that chose the checkpoint: {chosen_by}
- Corpus: {corpus}
- Provenance in full, versions and checksums: bundle.json

## Limits

{limits}

## Data and licences

Trained on figures and captions from the PubMed Central Open Access Subset; the corpus' manifest counts their licences.
{acknowledgement}
"""


def model_card(provenance: dict[str, Any], config: dict[str, Any]) -> str:
    """README.md in the form that the Hugging Face hub shows."""
    name = provenance.get("name", "biomedclip_ray bundle")
    starts = provenance.get("starts", {})
    carries = config["text_cfg"].get("hf_model_name") or ":" in config["vision_cfg"].get("timm_model_name", "")
    moved = _MOVED if carries else ""
    limits = provenance.get("limits") or _LIMITS
    return _CARD.format(
        acknowledgement=ACKNOWLEDGEMENT,
        name=name,
        bundle_id=provenance["bundle_id"],
        image=starts.get("image", "unknown"),
        text=starts.get("text", "unknown"),
        chosen_by=provenance.get("chosen_by", "unknown"),
        corpus=provenance.get("corpus", "unknown"),
        limits=limits,
        moved=moved,
    )
