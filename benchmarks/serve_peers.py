"""The peers of benchmarks/serve.py: the same weights in the form that they load, and how each is started.

infinity-emb pins transformers and numpy below ours, so both peers have an environment of their own (Makefile). infinity
loads no open_clip checkpoint: `as_transformers` writes the towers as a CLIPModel, under the names that transformers
gave them before its version 5.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PYTHON = Path(__file__).resolve().parents[1] / ".venv-infinity" / "bin" / "python"
START_S = 180
_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def as_transformers(model: Any, vision: dict[str, Any], text: dict[str, Any], tokenizer: Any, folder: Path) -> None:
    """Write an open_clip.CLIP with those configurations as a CLIPModel with its processor."""
    from safetensors.torch import save_file

    folder.mkdir()
    state = {name: tensor.detach().float() for name, tensor in model.state_dict().items()}
    named = {
        "logit_scale": state["logit_scale"],
        "text_projection.weight": state["text_projection"].T,
        "visual_projection.weight": state["visual.proj"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    for kind in ("weight", "bias"):
        named[f"text_model.final_layer_norm.{kind}"] = state[f"ln_final.{kind}"]
        named[f"vision_model.pre_layrnorm.{kind}"] = state[f"visual.ln_pre.{kind}"]
        named[f"vision_model.post_layernorm.{kind}"] = state[f"visual.ln_post.{kind}"]
        for tower, ours, layers in (("vision", "visual.", vision["layers"]), ("text", "", text["layers"])):
            for n in range(layers):
                block, layer = f"{ours}transformer.resblocks.{n}", f"{tower}_model.encoder.layers.{n}"
                for of, theirs in _BLOCK.items():
                    named[f"{layer}.{theirs}.{kind}"] = state[f"{block}.{of}.{kind}"]
                for name, part in zip("qkv", state[f"{block}.attn.in_proj_{kind}"].chunk(3), strict=True):
                    named[f"{layer}.self_attn.{name}_proj.{kind}"] = part
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in named.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    tokenizer.save(folder)
    size, width = vision["image_size"], vision["width"]
    shared = {"hidden_act": "gelu", "projection_dim": 512}
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 512,
        "max_length": text["context_length"],
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "vocab_size": text["vocab_size"],
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "max_position_embeddings": text["context_length"],
            "eos_token_id": tokenizer.eos_id,
            "pad_token_id": tokenizer.pad_id,
        },
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": width // vision["head_width"],
            "image_size": size,
            "patch_size": vision["patch_size"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "processor_class": "VisionTextDualEncoderProcessor",  # CLIP's own takes no tokenizer but CLIP's
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "image_mean": list(model.visual.image_mean),
        "image_std": list(model.visual.image_std),
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


@contextmanager
def infinity(folder: Path, port: int, threads: int, batch: int) -> Iterator[str]:
    """infinity-emb over that folder; the address that takes requests."""
    command = [PYTHON.parent / "infinity_emb", "v2", "--model-id", folder, "--served-model-name", "peer"]
    command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--batch-size", batch, "--port", port]
    command += ["--host", "127.0.0.1", "--no-bettertransformer", "--no-model-warmup", "--log-level", "warning"]
    with _started(command, threads, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/embeddings"


@contextmanager
def litserve(folder: Path, port: int, threads: int, batch: int) -> Iterator[str]:
    """LitServe over that folder; the address that takes requests."""
    script = Path(__file__).with_name("serve_litserve.py")
    with _started([PYTHON, script, folder, port, threads, batch], threads, f"http://127.0.0.1:{port}/health"):
        yield f"http://127.0.0.1:{port}/predict"


@contextmanager
def _started(command: list[Any], threads: int, health: str) -> Iterator[None]:
    import httpx

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [str(part) for part in command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            end = time.monotonic() + START_S
            while True:
                try:
                    if httpx.get(health, trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{command[0]} did not start: {log.read()[-2000:]}")
                time.sleep(0.5)
            yield
        finally:
            os.killpg(process.pid, 9)
            process.wait()
