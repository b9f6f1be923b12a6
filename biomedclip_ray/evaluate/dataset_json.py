"""dataset.json: what a set says of itself, checked before a table is read, so that a slip is a line with its fix."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from biomedclip_ray.evaluate.readers import SetError
from biomedclip_ray.evaluate.registry import KNOWN


def parse(data: bytes) -> dict[str, Any]:
    """The keys of dataset.json that are not null.

    Raises:
        SetError: it is no JSON object, or a key holds something of another kind than it should.
    """
    try:
        about = json.loads(data)
    except ValueError as error:
        raise SetError(f"dataset.json is not JSON: {error}; mend it there") from error
    if not isinstance(about, dict):
        raise SetError("dataset.json: a JSON object is wanted, with name, task and prompts")
    about = {key: value for key, value in about.items() if value is not None}
    for key, (fits, wanted) in _KEYS.items():
        if key in about and not fits(about[key]):
            raise SetError(f"dataset.json: {key} is {json.dumps(about[key])[:80]}; {wanted} is wanted")
    return about


def classes_of(about: dict[str, Any]) -> list[str]:
    classes = about.get("classes")
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise SetError("dataset.json: classes must be a list of texts, in the order of the classes")
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise SetError(f"dataset.json: class {twice[0]!r} stands twice in classes")
    return classes


def prompts_of(about: dict[str, Any]) -> dict[str, Any]:
    prompts = about.get("prompts")
    if not isinstance(prompts, dict):
        raise SetError("dataset.json: no prompts; add {templates: [...], class_names: {CLASS: [NAME, ...]}}")
    if not isinstance(prompts.get("source", ""), str):
        raise SetError("dataset.json: prompts.source must be a text: whose prompts they are")
    return prompts


def names_of(prompts: dict[str, Any], key: str, classes: list[str]) -> dict[str, list[str]]:
    """Class -> its natural names, in the order of `classes`. `key`: class_names or negative_names."""
    names = prompts.get(key)
    if not isinstance(names, dict):
        raise SetError(f"dataset.json: prompts.{key} is missing; give {{CLASS: [NAME, ...]}}")
    for label in classes:
        own = names.get(label)
        if own is None:
            raise SetError(f"dataset.json: class {label!r} has no name in prompts.{key}; add [NAME, ...]")
        if isinstance(own, str):
            raise SetError(f"dataset.json: prompts.{key}.{label} is the text {own!r}; write [{json.dumps(own)}]")
        if not isinstance(own, list) or not own or not all(isinstance(name, str) and name.strip() for name in own):
            raise SetError(f"dataset.json: prompts.{key}.{label} must be a list of texts that are not empty")
    return {label: names[label] for label in classes}


def templates_of(prompts: dict[str, Any]) -> list[str]:
    templates = prompts.get("templates")
    if not isinstance(templates, list) or not templates:
        raise SetError('dataset.json: prompts.templates must be a list, such as ["a photo of {}"]')
    blind = [one for one in templates if not isinstance(one, str) or "{}" not in one]
    if blind:
        raise SetError(f"dataset.json: prompts.templates: {blind[0]!r} has no {{}} where the class name goes")
    return templates


def stated_of(name: str, about: dict[str, Any]) -> dict[str, str]:
    """What stands beside a set's figures: specialty, source, licence and prompts_from, of the set's own or the
    registry's; "" where neither names one.
    """
    known = KNOWN.get(name)
    prompts = about.get("prompts")
    return {
        "specialty": about.get("specialty") or (known.specialty if known else ""),
        "source": about.get("source") or (known.source if known else ""),
        "licence": about.get("licence", ""),
        "prompts_from": prompts.get("source", "") if isinstance(prompts, dict) else "",
    }


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and all(_text(one) for one in value.values())


def _counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        one is None or type(one) is int or (isinstance(one, dict) and all(type(n) is int for n in one.values()))
        for one in value.values()
    )


def _splits(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(
            isinstance(parts, dict) and all(_text(parts[part]) for part in ("train", "test") if part in parts)
            for parts in value.values()
        )
    )


_KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (_text, "a text"),
    "task": (_text, "a text"),
    "layout": (_text, "a text"),
    "specialty": (_text, "a text"),
    "source": (_text, "a text"),
    "licence": (_text, "a text"),
    "images": (_text, "the name of a Parquet file"),
    "labels": (lambda value: value == "numbers", '"numbers", or nothing where the tables hold the classes,'),
    "files": (_texts, "{SPLIT: FILE}"),
    "columns": (_texts, "{image: ARRAY, label: ARRAY}"),
    "rows": (_counts, "{SPLIT: NUMBER} or {SPLIT: {CLASS: NUMBER}}"),
    "counts": (_counts, "{SPLIT: NUMBER} or {SPLIT: {CLASS: NUMBER}}"),
    "splits": (_splits, "{SPLIT: {train: FILE, test: FILE}}"),
}
"""What each key of a set's own must hold; classes and prompts have messages of their own."""
