"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, with the right status.

A client shows the server's words only where the body has this shape: a bare `{"detail": ...}` becomes "Error code: 422"
and no more. So every error takes it, those of the framework and of middleware too.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.params import Body
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
CODES = {
    400: "bad_request",
    404: "unknown_route",
    405: "unknown_method",
    408: "too_slow",
    413: "body_too_large",
    415: "unknown_content_type",
    422: "unprocessable",
    429: "overloaded",
    503: "unavailable",
}
JSON = "application/json"
RETRY_AFTER_S = 1
"""Seconds after which to come back to a busy server; a client that was told more than 120 does not come back at all."""


class Refusal(Exception):
    """A request that gets an error in OpenAI's shape instead of an answer.

    Attributes: status (HTTP), message, param (the field at fault or None), code (a word for programs), retry_after
    (whole seconds or None), headers (others that the answer carries).
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.retry_after = message, status, param, code, retry_after
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        """The error object that OpenAI's clients read."""
        kind = KINDS.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def busy(message: str) -> Refusal:
    """429: what waits has no room for more."""
    return Refusal(message, status=429, code="overloaded", retry_after=RETRY_AFTER_S)


def unavailable(message: str, code: str = "unavailable") -> Refusal:
    """503: nobody can answer now."""
    return Refusal(message, status=503, code=code, retry_after=RETRY_AFTER_S)


def error_response(refusal: Refusal) -> Response:
    headers = dict(refusal.headers)
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    return Response(json.dumps(refusal.body()), refusal.status, headers, media_type="application/json")


def add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in OpenAI's shape."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return error_response(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(_explain(error.errors()[0], request))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        status, message = error.status_code, str(error.detail)
        if status in (404, 405):
            routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
            known = ", ".join(f"{'/'.join(sorted(route.methods or ()))} {route.path}" for route in routes)
            message = f"there is no {request.method} {request.url.path}; there is {known}"
        headers = dict(error.headers or {})
        return error_response(Refusal(message, status=status, code=CODES.get(status, "error"), headers=headers))


def _explain(error: Any, request: Request) -> Refusal:
    """One validation error -> a message that names the field and, for an unknown one, the nearest there is."""
    path = [str(step) for step in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return Refusal(f"the body is no JSON: {error['ctx']['error']}", code="bad_json")
    kind = request.headers.get("content-type", "")
    body, wanted = _body_of(request)
    if wanted and kind.partition(";")[0].strip().lower() != wanted and (wanted != JSON or not path):
        send = f"a JSON object with the header Content-Type: {JSON}" if wanted == JSON else f"image files as {wanted}"
        message = f"Content-Type is {kind or 'missing'}; send {send}"
        return Refusal(message, status=415, code="unknown_content_type")
    if not path:
        return Refusal(f"send a JSON object with the header Content-Type: {JSON}", code="bad_json")
    field = ".".join(path)
    if error["type"] == "extra_forbidden" and body:
        known = list(_inside(body, path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return Refusal(f"unknown field {field}; {hint}", param=field, code="unknown_field")
    if error["type"] == "missing":
        return Refusal(f"{field} is missing", param=field, code="missing_field")
    why = error["msg"].removeprefix("Value error, ").replace("Tuple", "List").replace("tuple", "list")  # JSON's word
    return Refusal(f"{field}: {why}", param=field, code="wrong_value")


def _body_of(request: Request) -> tuple[type[BaseModel] | None, str | None]:
    """The model of the route's body, which tells what an unknown field may have meant, and as what it is sent; None
    where it has none.
    """
    route = request.scope.get("route")
    for param in route.dependant.body_params if isinstance(route, APIRoute) else []:
        info = param.field_info
        if isinstance(info, Body) and isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            return info.annotation, info.media_type
    return None, None


def _inside(body: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model of a nested object."""
    for step in path:
        field = body.model_fields.get(step)
        inner = field.annotation if field else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return body
        body = inner
    return body
