"""What a row must be to be searched at all: one typed object, which the server reads from requests and Lance as SQL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

_INT32 = 2**31 - 1


def _number(value: Any) -> Any:
    """JSON's true and "2020" are no years, though Python and pydantic would take them for such."""
    if isinstance(value, bool | str):
        raise ValueError("a year is a whole number")
    return value


def _text(value: str) -> str:
    """JSON can write half a character, which no column holds."""
    if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("half a character (a lone surrogate) is no text")
    return value


Year = Annotated[int, BeforeValidator(_number)]
Text = Annotated[str, AfterValidator(_text)]
Values = Annotated[tuple[Text, ...], Field(max_length=1000)]


class Filters(BaseModel):
    """Conditions that hold together; null does not filter, an empty list lets nothing pass. Any value is a question:
    one that no row has finds nothing.

    Raises:
        ValueError: (pydantic's ValidationError) an unknown field or a value of another type.

    >>> Filters(kinds=["gel"], year_from=99999999999).sql()
    "figure_kind IN ('gel') AND year >= 2147483647"
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kinds: Values | None = None
    """Figure kinds (schema.KINDS)."""
    licenses: Values | None = None
    """Licences as the article states them, such as CC BY."""
    splits: Values | None = None
    """train, validation or test."""
    journals: Values | None = None
    """Titles of journals as the articles give them."""
    articles: Values | None = None
    """Article ids (PMC10009416.1), or PMCIDs (PMC10009416) for every version."""
    figures: Values | None = None
    """Figure ids (PMC10009416.1/F2): the whole figure and its panels."""
    year_from: Year | None = None
    """First year of publication."""
    year_to: Year | None = None
    """Last year of publication."""

    def sql(self) -> str | None:
        """The condition in Lance's SQL, None where nothing is filtered; values are quoted, so that any text is only a
        value.
        """
        terms = []
        for column, values in (
            ("figure_kind", self.kinds),
            ("license", self.licenses),
            ("split", self.splits),
            ("journal", self.journals),
            ("figure_id", self.figures),
        ):
            if values is not None:
                terms.append(_is_in(column, values))
        if self.articles is not None:
            whole = [name for name in self.articles if "." in name]
            ids = [name for name in self.articles if "." not in name]
            terms.append(f"({_is_in('article_id', whole)} OR {_is_in('pmcid', ids)})")
        if self.year_from is not None:
            terms.append(f"year >= {_int32(self.year_from)}")
        if self.year_to is not None:
            terms.append(f"year <= {_int32(self.year_to)}")
        return " AND ".join(terms) or None


def quoted(value: str) -> str:
    """A text as a value in SQL."""
    return "'" + value.replace("'", "''") + "'"


def _is_in(column: str, values: Iterable[str]) -> str:
    inside = ", ".join(quoted(value) for value in values)
    return f"{column} IN ({inside})" if inside else "false"


def _int32(year: int) -> int:
    """A year beyond the column's range is moved to its end: no article is of 2147483647."""
    return max(-_INT32, min(_INT32, year))
