"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, with the right status."""

from __future__ import annotations

import difflib
import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from biomedclip_ray.serve.inputs import Refusal

log = logging.getLogger(__name__)


def error_response(refusal: Refusal) -> Response:
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return Response(json.dumps(refusal.body()), refusal.status, headers, media_type="application/json")


def add_error_handlers(app: FastAPI, bodies: dict[str, type[BaseModel]]) -> None:
    """Every error leaves in OpenAI's shape; `bodies` (route -> body) tells what an unknown field may have meant."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return error_response(refusal)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(_explain(error.errors()[0], bodies.get(request.url.path)))

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code in (404, 405):
            routes = [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]
            known = ", ".join(f"{'/'.join(sorted(route.methods or ()))} {route.path}" for route in routes)
            message = f"there is no {request.method} {request.url.path}; there is {known}"
        return error_response(Refusal(message, status=error.status_code, code="unknown_route"))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(Refusal("the server failed; its log says how", status=500, code="internal_error"))


def _explain(error: Any, body: type[BaseModel] | None) -> Refusal:
    """One validation error -> a message that names the field and, for an unknown one, the nearest there is."""
    path = [str(step) for step in error["loc"][1:]]
    if error["type"] == "json_invalid":
        return Refusal(f"the body is no JSON: {error['ctx']['error']}", code="bad_json")
    if not path or body is None:
        return Refusal("send a JSON object with the header Content-Type: application/json", code="bad_json")
    field = ".".join(path)
    if error["type"] == "extra_forbidden":
        known = list(_inside(body, path[:-1]).model_fields)
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return Refusal(f"unknown field {field}; {hint}", param=field, code="unknown_field")
    if error["type"] == "missing":
        return Refusal(f"{field} is missing", param=field, code="missing_field")
    return Refusal(f"{field}: {error['msg'].removeprefix('Value error, ')}", param=field, code="wrong_value")


def _inside(body: type[BaseModel], path: list[str]) -> type[BaseModel]:
    """The model of a nested object."""
    for step in path:
        inner = body.model_fields[step].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return body
        body = inner
    return body
