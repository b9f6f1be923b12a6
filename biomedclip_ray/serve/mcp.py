"""The figure search as a tool for agents (Model Context Protocol): a question in; captions, licences, links, thumbnails
out.

The server has it at /mcp (streamable HTTP, without sessions, so that any ingress answers any request). An agent that
starts its tools itself runs, with the server's address and, where it wants one, a key in BIOMEDCLIP_API_KEY:

    python -m biomedclip_ray.serve.mcp http://127.0.0.1:8000
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Annotated, Any, Literal

import httpx
from fastapi import FastAPI
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.transport_security import TransportSecuritySettings
from mcp_types import CallToolResult, ImageContent, TextContent, ToolAnnotations
from pydantic import BaseModel, Field, ValidationError
from starlette.routing import Route

from biomedclip_ray.serve.errors import Refusal
from biomedclip_ray.serve.schemas import SearchBody

PATH = "/mcp"
KEY = "BIOMEDCLIP_API_KEY"
MOST = 50
_JPEG = "data:image/jpeg;base64,"

Search = Callable[[SearchBody], Awaitable[dict[str, Any]]]
"""A request of /v1/search -> its answer; raises Refusal."""


class Figure(BaseModel):
    """One figure found."""

    pair_id: str
    caption: str
    article: str | None = Field(description="Title, journal and year.")
    license: str | None
    link: str | None = Field(description="The article at PubMed Central.")
    doi: str | None
    kind: str | None = Field(description="Kind of figure, as micrograph or gel.")
    score: float = Field(description="Cosine with the question; BM25 when words are searched.")


class Figures(BaseModel):
    """Best first."""

    figures: list[Figure]


def mcp_server(search: Search) -> MCPServer[Any]:
    """The tool over any way to search."""
    server: MCPServer[Any] = MCPServer(
        "biomedclip_ray",
        instructions=(
            "Searches the figures of open biomedical articles in PubMed Central. Each figure stays under its own "
            "licence: "
            "name it, and link the article, where you show or cite one. For research, not for diagnosis."
        ),
    )

    @server.tool(annotations=ToolAnnotations(read_only_hint=True, open_world_hint=False))
    async def search_figures(
        query: Annotated[
            str, Field(description="What the figure shows, or words of its caption; or an image in base64.")
        ],
        k: Annotated[int, Field(ge=1, le=MOST, description="Figures wanted.")] = 5,
        by: Annotated[
            Literal["image", "caption", "words"],
            Field(description="Compare with images, with the meaning of captions, or with captions' words."),
        ] = "image",
        kinds: Annotated[
            list[str] | None, Field(description="Only these kinds of figure, as gel or micrograph.")
        ] = None,
        licenses: Annotated[list[str] | None, Field(description="Only these licences, as CC BY.")] = None,
        year_from: Annotated[int | None, Field(description="First year of publication.")] = None,
        year_to: Annotated[int | None, Field(description="Last year of publication.")] = None,
        thumbnails: Annotated[bool, Field(description="Whether to send small images as well.")] = True,
    ) -> Annotated[CallToolResult, Figures]:
        """Find figures of biomedical articles: their captions, licences, links to the articles, and thumbnails."""
        try:
            filters = {"kinds": kinds, "licenses": licenses, "year_from": year_from, "year_to": year_to}
            answer = await search(SearchBody.model_validate({"query": query, "k": k, "by": by, "filters": filters}))
        except Refusal as refusal:  # no other exception's words reach the agent
            raise ToolError(refusal.message) from refusal
        except ValidationError as error:
            raise ToolError(str(error)) from error
        return _told(answer["data"], thumbnails)

    return server


def _told(hits: list[dict[str, Any]], thumbnails: bool) -> CallToolResult:
    """Blocks for agents that read text and images, and the same as structured content for those that read that."""
    figures = [_figure(hit) for hit in hits]
    content: list[Any] = [TextContent(type="text", text=f"{len(figures)} figures, best first.")]
    for n, (figure, hit) in enumerate(zip(figures, hits, strict=True), 1):
        facts = [f"{n}. {figure.caption}", figure.article, f"licence: {figure.license or 'unknown'}", figure.link]
        content.append(TextContent(type="text", text="\n".join(fact for fact in facts if fact)))
        if thumbnails and hit["thumbnail"]:
            data = hit["thumbnail"].removeprefix(_JPEG)
            content.append(ImageContent(type="image", data=data, mime_type="image/jpeg"))
    return CallToolResult(content=content, structured_content=Figures(figures=figures).model_dump())


def _figure(hit: dict[str, Any]) -> Figure:
    article = ", ".join(str(hit[name]) for name in ("title", "journal", "year") if hit[name])
    return Figure(
        pair_id=hit["pair_id"],
        caption=hit["caption"],
        article=article or None,
        license=hit["license"],
        link=hit["article_url"],
        doi=hit["doi"],
        kind=hit["figure_kind"],
        score=hit["score"],
    )


def add_mcp(app: FastAPI, search: Search, max_body_bytes: int) -> Callable[[], AbstractAsyncContextManager[None]]:
    """Serve the tool at /mcp of an application, whose own guard has looked at host and key before.

    Returns what must be open while the application runs.
    """
    server = mcp_server(search)
    inner = server.streamable_http_app(
        streamable_http_path=PATH,
        stateless_http=True,
        json_response=True,
        max_request_body_size=max_body_bytes,
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    # By GET a client would hold a stream on which nothing is ever sent, and with it one of the ingress' places.
    (route,) = (route for route in inner.routes if isinstance(route, Route))
    app.router.routes.append(Route(PATH, route.endpoint, methods=["POST"]))
    return server.session_manager.run


def remote_search(address: str, key: str | None) -> Search:
    """Ask a server elsewhere."""
    client = httpx.AsyncClient(base_url=address, timeout=60, headers={"Authorization": f"Bearer {key}"} if key else {})

    async def search(body: SearchBody) -> dict[str, Any]:
        try:
            answer = await client.post("/v1/search", json=body.model_dump(exclude_none=True))
        except httpx.HTTPError as error:
            raise Refusal(f"{address} cannot be reached ({type(error).__name__})", status=503) from error
        try:
            found: dict[str, Any] = answer.json()
            message = None if answer.status_code == 200 else found["error"]["message"]
        except (ValueError, LookupError, TypeError) as error:  # what answers is a gateway, or no server of ours
            raise Refusal(f"{address} answers {answer.status_code} and no JSON of ours", status=503) from error
        if message is not None:
            raise Refusal(message, status=answer.status_code)
        return found

    return search


if __name__ == "__main__":
    where = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000"
    mcp_server(remote_search(where, os.environ.get(KEY))).run("stdio")
