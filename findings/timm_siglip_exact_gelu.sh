#!/usr/bin/env bash
# Guess: one SigLIP is the same function in open_clip (whose image tower is timm's) and in transformers: who renames the weights gets its vectors.
# Seen (timm 1.0.31, transformers 5.24.0): transformers' SigLIP computes GELU by tanh in both towers, whatever the checkpoint; timm's
# vit_base_patch16_siglip_224 and _256, vit_large_patch16_siglip_256 and vit_so400m_patch14_siglip_384 compute exact GELU, its
# vit_base_patch32_siglip_256, vit_large_patch16_siglip_512 and vit_so400m_patch16_siglip_256 GELU by tanh. open_clip passes a name alone.
# Matters for: whoever converts a SigLIP or compares its vectors: shapes and names fit, nothing warns, and the vectors differ.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# the sources are read, not run: torch alone would be 5 GB
"$folder/venv/bin/pip" install --quiet --no-deps 'timm==1.0.31' 'transformers==5.24.0'
"$folder/venv/bin/python" - <<'PYTHON'
import ast
import sys
import sysconfig
from pathlib import Path

packages = Path(sysconfig.get_path("purelib"))


def definitions(file, kind):
    return {node.name: node for node in ast.parse((packages / file).read_text()).body if isinstance(node, kind)}


def activation(function):
    """What a tower's model_args name; None is timm's default, exact GELU."""
    named = (word for node in ast.walk(function) if isinstance(node, ast.Call) for word in node.keywords)
    return next((word.value.value for word in named if word.arg == "act_layer"), None)


towers = definitions("timm/models/vision_transformer.py", ast.FunctionDef)
found = {
    name: activation(towers[f"vit_{name}"])
    for name in (
        "base_patch16_siglip_224",
        "base_patch16_siglip_256",
        "large_patch16_siglip_256",
        "so400m_patch14_siglip_384",
        "base_patch32_siglip_256",
        "large_patch16_siglip_512",
        "so400m_patch16_siglip_256",
    )
}
configs = definitions("transformers/models/siglip/configuration_siglip.py", ast.ClassDef)
theirs = {
    name: node.value.value
    for name, config in configs.items()
    for node in config.body
    if isinstance(node, ast.AnnAssign) and node.target.id == "hidden_act"
}
print("timm:", found)
print("transformers:", theirs)
right = list(found.values()) == [None] * 4 + ["gelu_tanh"] * 3 and set(theirs.values()) == {"gelu_pytorch_tanh"}
sys.exit(0 if right and len(theirs) == 2 else 1)
PYTHON
