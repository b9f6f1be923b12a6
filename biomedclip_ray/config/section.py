"""What the sections of the configuration are made of: frozen, unknown keys refused, a docstring under every key."""

from __future__ import annotations

import difflib
from collections.abc import Container, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from biomedclip_ray.schema import KINDS

Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


Precision = Literal["auto", "float32", "bfloat16"]
"""In what the towers compute; auto: bfloat16 where the device has it, a measurement finds it faster, and
vectors agree.
"""


class ConfigError(ValueError):
    """A configuration that cannot be run; the message names the key and the fix (exit code 2)."""


class Later:
    """Marks a key that was added after products were made: at its default it is left out of what a stage hashes, so
    that they keep their names.
    """


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    def content(self, exclude: Container[str] = ()) -> dict[str, Any]:
        """What a stage hashes of this section: JSON values by key, without those in `exclude` and without every
        `Later` one at its default.
        """
        told: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            later = any(isinstance(mark, Later) for mark in field.metadata)
            if name in exclude or (later and value == field.get_default(call_default_factory=True)):
                continue
            told |= (
                {name: value.content()} if isinstance(value, Section) else self.model_dump(mode="json", include={name})
            )
        return told


class PartResources(Section):
    """How fast a stage over parts runs; never changes a row."""

    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    """Logical CPUs of one task."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one task, for the stages that run a model."""
    concurrency: Positive | None = None
    """Tasks at once at most; null lets Ray Data use what the cluster has."""
    no_progress_timeout_s: Positive = 600
    """Seconds without a finished block after which the run stops and names the operator (Ray's own limit is 1800).
    Waiting for a node that the autoscaler has still to bring does not count: see wait_for_nodes_s.
    """
    wait_for_nodes_s: Positive = 86_400
    """Seconds that a shortage of nodes is waited out before the run ends (exit 1; the same command goes
    on from there).
    """


class StageSection(Section):
    transient_limit: Share = 0.001
    """Share of units that may be lost to network or disk; above it the stage is unfinished (exit 3) and
    can be rerun.
    """
    resources: PartResources = PartResources()


def known(value: str, names: tuple[str, ...], what: str) -> str:
    """Refuses a value that is not known, and says which one may have been meant."""
    if value not in names:
        near = difflib.get_close_matches(value, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{value!r} is no {what}; {hint}known: {', '.join(names)}")
    return value


def _known_kinds(names: Iterable[str]) -> Iterable[str]:
    for name in names:
        known(name, KINDS, "figure kind")
    return names


KnownKinds = AfterValidator(_known_kinds)
"""Of a field whose items or keys are figure kinds."""
