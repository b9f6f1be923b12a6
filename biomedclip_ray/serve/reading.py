"""A request's parts as the search room's: which vectors and words are compared with what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from biomedclip_ray.search.identifiers import names_articles
from biomedclip_ray.serve.answers import Part, Problem, Vector
from biomedclip_ray.serve.inputs import TEXT_CHARS, Item

if TYPE_CHECKING:
    from biomedclip_ray.search import query as search

COLUMNS: dict[str, tuple[Any, ...]] = {
    "image": ("image_vector",),
    "caption": ("text_vector",),
    "words": (),
    "all": ("image_vector", "text_vector"),
}


class Reading:
    """Gathers the parts of one question, what is asked for and what is not wanted."""

    def __init__(self, by: str) -> None:
        self.by = by
        self.asked: list[search.Part] = []
        self.without: list[search.Part] = []
        self.tokens, self.truncated = 0, False

    def needs_vector(self, item: Item) -> bool:
        """Whether the item is to be embedded; the number or link of an article looks like nothing."""
        return self.by != "words" and not (isinstance(item, str) and names_articles(item))

    def take(self, side: str, part: Part, vector: Vector | Problem | None) -> Problem | None:
        """Add a part of the side "query" or "without", with its vector if it has one; returns what is wrong with it."""
        from biomedclip_ray.search import query as search

        if isinstance(vector, Problem):
            return vector
        into = self.asked if side == "query" else self.without
        if part.figure is not None:
            for column in COLUMNS[self.by] or COLUMNS["image"]:
                into.append(search.Like(part.figure, column, part.weight))
            return None
        if vector is not None:
            self.tokens += vector.tokens
            self.truncated |= vector.truncated
            for column in COLUMNS[self.by]:
                into.append(search.Vector(vector.values, column, part.weight))
        if isinstance(part.item, str) and (vector is None or self.by == "all"):
            self.truncated |= len(part.item) > TEXT_CHARS
            into.append(search.Words(part.item[:TEXT_CHARS], part.weight))
        elif self.by == "words":
            return Problem("an image has no words; search by image or by caption", "wrong_query", "by")
        return None
