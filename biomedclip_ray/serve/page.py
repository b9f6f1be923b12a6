"""The page and its files, read once; no other path is ever looked up."""

from __future__ import annotations

import html
from importlib import resources

from fastapi import FastAPI, Response
from starlette.exceptions import HTTPException

from biomedclip_ray.images.formats import PICKER
from biomedclip_ray.schema import ACKNOWLEDGEMENT

PAGE = {
    "index.html": "text/html; charset=utf-8",
    "app.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "picture.js": "text/javascript; charset=utf-8",
    "save.js": "text/javascript; charset=utf-8",
    "labels.js": "text/javascript; charset=utf-8",
    "map.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}

# Nothing from elsewhere, no inline script or style; data: and blob: are the thumbnails and the dropped image.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def add_page(app: FastAPI) -> None:
    """The routes `/` and `/page/...`."""
    folder = resources.files("biomedclip_ray.serve") / "page"
    files = {name: (folder / name).read_bytes() for name in PAGE}
    for name, text in (("{formats}", PICKER), ("{acknowledgement}", ACKNOWLEDGEMENT)):
        files["index.html"] = files["index.html"].replace(name.encode(), html.escape(text).encode())
    headers = {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }

    def show(name: str) -> Response:
        return Response(files[name], media_type=PAGE[name], headers=headers)

    @app.head("/", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return show("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def asset(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return show(name)
