"""The format of the published BiomedCLIP around small towers, and the tiny BERT in it; made here, for any test to start
from.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import open_clip
import torch


def make_bert(folder: Path) -> Path:
    """A tiny BERT with weights and tokenizer, as transformers saves it."""
    from transformers import BertConfig, BertModel, BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789.,;:^&-()[]"]
    words += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"] + [
        "lung",
        "liver",
        "micro",
        "##graph",
        "figure",
    ]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer.from_pretrained(folder, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=192,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def make_published(folder: Path, bert: Path) -> tuple[Path, Any]:
    """A folder with the files, config keys and weight names of the published BiomedCLIP, small towers inside.

    timm ViT + Hugging Face BERT whose config is not there, a pickled .bin, and BERT's old `position_ids` buffer.
    Returns folder and model.

    Args:
        bert: a folder of `make_bert`.
    """
    model_cfg: dict[str, Any] = {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {
            "hf_model_name": str(bert),
            "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
            "hf_proj_type": "mlp",
            "hf_pooler_type": "cls_last_hidden_state_pooler",
            "context_length": 48,
        },
    }
    torch.manual_seed(2)
    model = open_clip.CustomTextCLIP(**model_cfg).eval()
    state = model.state_dict()
    state["text.transformer.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
    torch.save(state, folder / "open_clip_pytorch_model.bin")
    model_cfg["text_cfg"]["hf_model_name"] = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
    preprocess = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(bert / name, folder / name)
    return folder, model
