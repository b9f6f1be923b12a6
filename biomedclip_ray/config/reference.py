"""REFERENCE.md: every key of the configuration and every public column, made from the code that defines them.

    python -m biomedclip_ray.config.reference > REFERENCE.md

A test says when the file is stale.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, get_args

import pyarrow as pa
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from biomedclip_ray.config import Config
from biomedclip_ray.schema import COLUMNS, Reason, sentence_of


def reference() -> str:
    """The whole file, Markdown."""
    lines = ["# Reference", "", "Made by `python -m biomedclip_ray.config.reference > REFERENCE.md`.", ""]
    lines += ["## Configuration", ""]
    lines += ["A YAML file and dotted overrides. What stands in a `resources` section says how fast, never what."]
    lines += ["", "| key | default | what it says |", "|---|---|---|"]
    lines += [f"| `{key}` | {default} | {told} |" for key, default, told in _keys(Config, "")]
    for stage, schema in COLUMNS.items():
        lines += ["", f"## Columns: {stage}", "", "| column | type | what it says |", "|---|---|---|"]
        lines += [f"| `{field.name}` | {_type(field.type)} | {sentence_of(field)} |" for field in schema]
    lines += ["", "## Ledger reasons", "", "| reason | what it says | tried again |", "|---|---|---|"]
    lines += [f"| `{r.value}` | {r.sentence} | {'yes' if r.transient else ''} |" for r in Reason]
    return "\n".join(lines) + "\n"


def _keys(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """(key, default, sentence) of every key of a section and those below it."""
    for name, field in section.model_fields.items():
        inner = _section(field.annotation)
        if inner is not None:
            told = " ".join((field.description or "").split())
            if field.default is None:
                yield f"{prefix}{name}", "`null`", told
            yield from _keys(inner, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = "must be set" if default is PydanticUndefined else f"`{_shown(default)}`"
            yield f"{prefix}{name}", shown, " ".join((field.description or "").split()).replace("|", "\\|")


def _section(annotation: Any) -> type[BaseModel] | None:
    choices = get_args(annotation) or (annotation,)
    return next((c for c in choices if isinstance(c, type) and issubclass(c, BaseModel)), None)


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return str(value)


def _type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        return f"list of {_type(type_.value_type)}"
    return "struct" if pa.types.is_struct(type_) else str(type_)


if __name__ == "__main__":
    sys.stdout.write(reference())
