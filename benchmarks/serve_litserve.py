"""A LitServe application over a CLIPModel, as its documentation writes one: decode, batch, one forward pass.

    .venv-infinity/bin/python benchmarks/serve_litserve.py FOLDER PORT THREADS BATCH

`serve_peers.py` starts it; it knows nothing of this project.
"""

import base64
import io
import sys
from typing import Any

import litserve as ls
import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPModel


class Api(ls.LitAPI):
    def __init__(self, folder: str, threads: int, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=0.005)
        self.folder, self.threads = folder, threads

    def setup(self, device: str) -> None:
        torch.set_num_threads(self.threads)
        self.model = CLIPModel.from_pretrained(self.folder).eval()
        self.processor = CLIPImageProcessor.from_pretrained(self.folder)

    def decode_request(self, request: dict[str, Any]) -> torch.Tensor:
        data = base64.b64decode(request["input"][0].partition(",")[2])
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        pixels: torch.Tensor = self.processor(picture, return_tensors="pt")["pixel_values"]
        return pixels

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(inputs)

    @torch.inference_mode()
    def predict(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.model.get_image_features(pixel_values=pixels), dim=-1)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> dict[str, Any]:
        return {"data": [{"embedding": base64.b64encode(output.numpy().tobytes()).decode()}]}


if __name__ == "__main__":
    folder, port, threads, batch = sys.argv[1:]
    server = ls.LitServer(Api(folder, int(threads), int(batch)), accelerator="cpu", timeout=300)
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False)
