"""Every request and every answer of the server, once: the routes, /openapi.json, the MCP tools and the tests read them
here.

Number fields refuse true, false and strings, which pydantic would take for numbers and JSON Schema does not. What an
`input` may look like stands in `input_shapes.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from biomedclip_ray.search.filters import Filters, Text
from biomedclip_ray.search.outputs import Output
from biomedclip_ray.serve.input_shapes import Many, Sought

MAX_LABEL_CHARS = 1000


def _no_bool_or_text(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError(f"must be a number, not {'true or false' if isinstance(value, bool) else 'a string'}")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool_or_text)]


class Body(BaseModel):
    """A request; an unknown field is an error that names the nearest known one."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="An id or alias of /v1/models; none: the first.")
    user: str | None = Field(default=None, description="Taken for OpenAI's clients' sake, and not used.")


class VectorForm(BaseModel):
    """How vectors are wanted."""

    encoding_format: Literal["float", "base64"] = Field(
        default="float", description="base64: little-endian float32; int8, binary and float16 are lists all the same."
    )
    output_dtype: Output = Field(
        default="float32",
        description="int8: times the index' int8_scale; binary: the signs, eight in a byte, the first the highest bit.",
    )
    dimensions: Whole | None = Field(
        default=None, ge=1, description="A shorter vector, if the server allows that length."
    )
    on_error: Literal["fail", "item"] = Field(
        default="fail", description="item: a bad item gets an error of its own, and the others their vectors."
    )


class EmbeddingsBody(Body, VectorForm):
    """Texts and images to embed."""

    input: Many = Field(description="One text, image or part, or a list of them.")


class UploadForm(VectorForm):
    """Image files to embed, and fields beside them, which a form sends as text."""

    model_config = ConfigDict(extra="forbid")

    file: list[UploadFile] = Field(description="One or more image files.")
    model: str | None = Field(default=None, description="An id or alias of /v1/models; none: the first.")
    dimensions: int | None = Field(
        default=None, ge=1, description="A shorter vector, if the server allows that length."
    )


class SearchBody(Body):
    """What to look for."""

    query: Sought = Field(
        description='Texts, images and {"figure": pair_id}, each with "weight" if it counts for more.'
    )
    without: Sought | None = Field(default=None, description="What the figures should not show.")
    k: Whole | None = Field(default=None, ge=1, description="Figures wanted; 20 if not said.")
    by: Literal["image", "caption", "words", "all"] = Field(
        default="image",
        description="Compare with the figures' images, their captions' meaning, their captions' words, or all three, "
        "fused.",
    )
    filters: Filters = Filters()
    group: Literal["article"] | None = Field(
        default=None, description="article: one hit an article, its others below it."
    )
    cursor: str | None = Field(default=None, max_length=500, description="`next` of the page before.")
    facets: bool = Field(
        default=False, description="Whether to count the hits by kind, licence, year, journal and split."
    )


class ClassifyBody(Body):
    """Texts or images, and the labels to choose from."""

    input: Many = Field(description="One text, image or part, or a list of them.")
    labels: list[Text] = Field(description="Two or more different labels.")
    templates: list[Text] = Field(
        default=["{}"], description="Sentences with {} where the label goes; their vectors are averaged."
    )


class SimilarityBody(Body):
    """Two lists to compare with each other."""

    input: Many = Field(description="One text, image or part, or a list of them: the rows.")
    against: Many = Field(description="What they are compared with: the columns.")


# ---------------------------------------------------------------- answers


class Problem(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None = Field(description="The field at fault.")
    code: str | None = Field(description="A word for programs.")


class ErrorAnswer(BaseModel):
    """Every answer that is no 2xx."""

    error: Problem


class Usage(BaseModel):
    """What was read."""

    prompt_tokens: int = Field(description="Tokens that the model read, after truncation; an image costs none.")
    total_tokens: int
    images: int = Field(default=0, description="Images that the model saw.")


class Embedding(BaseModel):
    """The vector of one item, or its error."""

    object: Literal["embedding"]
    index: int = Field(description="Place of the item in the request.")
    embedding: list[float] | list[int] | str | None = Field(
        description="Unit length; null where the item has an error."
    )
    truncated: bool = Field(description="Whether the text was longer than the model's context.")
    tokens: int = Field(description="Tokens read of this item.")
    error: Problem | None = None


class EmbeddingsAnswer(BaseModel):
    """Vectors, one an item, in the order of the items."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    bundle: str = Field(description="The bundle that made them.")
    usage: Usage


class Hit(BaseModel):
    """One figure found."""

    pair_id: str
    score: float = Field(description="Cosine; BM25 of words; of several ranked lists the sum of weight / (60 + rank).")
    caption: str
    title: str | None
    journal: str | None
    year: int | None
    license: str | None
    doi: str | None
    figure_kind: str | None
    article_id: str
    article_url: str | None = Field(description="The article at PubMed Central; own data has none.")
    attribution: str = Field(description="Title, journal, year, licence and link: to stand where the figure is shown.")
    thumbnail: str | None = Field(description="A small JPEG as a data URI.")
    withheld: bool = Field(description="Whether the licence does not allow the thumbnail to be shown.")
    highlights: list[tuple[int, int]] = Field(
        description="Where the words stand in the caption: first, and behind the last."
    )
    more: list[Hit] = Field(description="In a search grouped by article, the article's next hits.")


class SearchAnswer(BaseModel):
    """Figures, best first."""

    object: Literal["list"]
    data: list[Hit]
    model: str
    bundle: str
    truncated: bool = Field(description="Whether a text was longer than the model's context.")
    next: str | None = Field(description="The cursor of the next page; null at the last hit.")
    facets: dict[str, dict[str, int]] | None = Field(
        description="How many hits have each value, if that was asked for."
    )
    usage: Usage


class MapAnswer(BaseModel):
    """Figures as points, like ones near each other; lists of one length."""

    x: list[float] = Field(description="From about -1 to 1.")
    y: list[float]
    kind: list[int] = Field(description="Its place in `kinds`.")
    kinds: list[str]
    ids: list[str] = Field(description="pair_ids.")


class Guess(BaseModel):
    """One item's label."""

    index: int
    label: str = Field(description="The most probable one.")
    probabilities: dict[str, float] = Field(description="Of every label; they sum to 1.")


class ClassifyAnswer(BaseModel):
    """A label for each item."""

    object: Literal["list"]
    data: list[Guess]
    model: str
    bundle: str
    usage: Usage


class Row(BaseModel):
    """One item of `input` beside all of `against`."""

    index: int
    similarities: list[float] = Field(description="Cosines, in the order of `against`.")


class SimilarityAnswer(BaseModel):
    """Cosines, a row an item of `input`."""

    object: Literal["list"]
    data: list[Row]
    model: str
    bundle: str
    usage: Usage


class IndexFacts(BaseModel):
    """What can be found and filtered by."""

    figures: int
    kinds: dict[str, int]
    licenses: dict[str, int]
    years: tuple[int, int] | None
    recall: dict[str, float] = Field(description="Recall@10 of the index against exact search, by what was searched.")
    output_recall: dict[str, float] = Field(description="Recall@10 of each output_dtype against float32.")
    int8_scale: float = Field(description="What a float is multiplied by to become int8.")


class LimitFacts(BaseModel):
    """Beyond these a request is refused."""

    items: int
    body_bytes: int
    pixels: int
    results: int


class Model(BaseModel):
    """A bundle and its index, as the engine that answers says of itself."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    aliases: list[str]
    name: str
    bundle: str
    application: str = Field(description="Short hash of the arguments that the engine was started with.")
    dimensions: int
    output_dimensions: list[int] = Field(description="Lengths that may be asked for.")
    context_length: int
    device: str
    precision: str = Field(description="float32 or bfloat16: in what the towers compute.")
    precision_note: str = Field(description="Why that one.")
    threads: int
    index: IndexFacts
    limits: LimitFacts


class ModelsAnswer(BaseModel):
    """What is served here."""

    object: Literal["list"]
    data: list[Model]


class Alive(BaseModel):
    """This process answers."""

    status: Literal["alive"]


class Ready(BaseModel):
    """The model embedded a text and an image a moment ago."""

    status: Literal["ready"]
    bundle: str
    application: str = Field(description="Short hash of the arguments that the engine was started with.")
    seconds_ago: float = Field(description="Since an answer with finite vectors came from the model.")


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer} for status in (400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 503)
}
