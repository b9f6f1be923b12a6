"""What `input` and `query` of a request may look like, for /openapi.json: texts, images, parts, figures, lists of them.

Nothing is checked here: that is done by `inputs.py`, whose errors name the item and the way out.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import WithJsonSchema

WEIGHTS = 1e-6, 1e6
"""Least and greatest weight of a part of a search: what lies beyond is lost in float32."""

_TEXT = {"type": "string", "minLength": 1, "description": "Words, or an image as a data URI or in base64."}
_PART = {
    "description": "A text or an image that says which it is.",
    "anyOf": [
        {
            "type": "object",
            "properties": {"type": {"const": "text"}, "text": {"type": "string", "minLength": 1}},
            "required": ["text"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "image_url"},
                "image_url": {
                    "anyOf": [
                        {"type": "string"},
                        {
                            "type": "object",
                            "properties": {"url": {"type": "string"}, "detail": {"type": "string"}},
                            "required": ["url"],
                            "additionalProperties": False,
                        },
                    ]
                },
            },
            "required": ["image_url"],
            "additionalProperties": False,
        },
        {
            "type": "object",
            "properties": {
                "type": {"const": "image"},
                "image": {"type": "string", "description": "Base64, or a data URI."},
            },
            "required": ["image"],
            "additionalProperties": False,
        },
    ],
}
_FIGURE = {
    "type": "object",
    "properties": {"figure": {"type": "string", "description": "pair_id of a figure that those wanted are like."}},
    "required": ["figure"],
}
_SOUGHT = {
    "description": "A string, or a part or a figure, each with a weight if one is given.",
    "anyOf": [
        _TEXT,
        {"type": "object", "properties": {"weight": {"type": "number", "minimum": WEIGHTS[0], "maximum": WEIGHTS[1]}}},
        _FIGURE,
    ],
}
Sought = Annotated[Any, WithJsonSchema({"anyOf": [_SOUGHT, {"type": "array", "minItems": 1, "items": _SOUGHT}]})]
Many = Annotated[
    Any, WithJsonSchema({"anyOf": [_TEXT, _PART, {"type": "array", "minItems": 1, "items": {"anyOf": [_TEXT, _PART]}}]})
]
