"""Pages of other origins that the operator lets ask.

It stands before the keys: a browser asks whether it may ask (OPTIONS) without one, and shows a page the refusal of a
key only where that says, as every answer here, that the page may read it.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from biomedclip_ray.serve.errors import Refusal, error_response


class Cors(CORSMiddleware):
    """Starlette's, with refusals in the shape of all others."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Request-ID"],
            expose_headers=["X-Request-ID", "Retry-After"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """To a browser that asks whether it may ask."""
        answer = super().preflight_response(request_headers)
        if answer.status_code != 400:
            return answer
        why = bytes(answer.body).decode()  # "Disallowed CORS origin", method or headers
        return error_response(Refusal(f"{why} (serve.access.origins)", code="cors"))
