"""What the routes share: items read and fetched, answers as JSON."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import Response

from biomedclip_ray.config import Serve
from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.fetch import Fetcher
from biomedclip_ray.serve.inputs import Fetch, Item, Wanted


async def fetched(fetcher: Fetcher, read: list[Wanted | Refusal]) -> list[Item | Refusal]:
    """The items, those at an address fetched; one that cannot be is a Refusal in its place."""

    async def one(entry: Wanted | Refusal) -> Item | Refusal:
        if not isinstance(entry, Fetch):
            return entry
        try:
            return await fetcher.get(entry)
        except Refusal as refusal:
            return refusal

    return [await one(entry) for entry in read] if len(read) == 1 else list(await asyncio.gather(*map(one, read)))


def good_ones(entries: list[Item | Refusal], each_its_own: bool) -> list[Item]:
    """The items; raises the first Refusal among them unless `each_its_own`."""
    for entry in entries:
        if isinstance(entry, Refusal) and not each_its_own:
            raise entry
    return [entry for entry in entries if not isinstance(entry, Refusal)]


def lengths_of(whole: int, settings: Serve) -> list[int]:
    """Lengths that vectors of `whole` numbers may be asked for."""
    return sorted({whole, *(d for d in settings.dimensions if d < whole)})


def usage_of(tokens: int, images: int) -> dict[str, int]:
    """Tokens that the model read (after truncation); an image costs none and is counted as itself."""
    return {"prompt_tokens": tokens, "total_tokens": tokens, "images": images}


def as_json(content: dict[str, Any]) -> Response:
    return Response(json.dumps(content, separators=(",", ":")), media_type="application/json")
