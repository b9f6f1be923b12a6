"""Work that is not one part after another: functions with arguments, as Ray tasks on the nodes for data, or here.

What a task gives stays where it was made; only `get` brings it to the driver, which asks for counts and for nothing
that grows with the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray

from biomedclip_ray.config import PartResources
from biomedclip_ray.run.capacity import known
from biomedclip_ray.run.placement import place


class Tasks(Protocol):
    """Who runs functions."""

    def put(self, value: Any) -> Any:
        """A handle of something large that many tasks are given."""

    def submit(self, resources: PartResources, function: Callable[..., Any], *args: Any, outputs: int = 1) -> list[Any]:
        """Handles of what `function(*args)` gives, a tuple where there are several `outputs`. Handles among `args`
        reach the function as what they stand for. It takes no GPU: where the `resources` have one it runs beside those
        that do.
        """

    def get(self, handles: Sequence[Any]) -> list[Any]:
        """What handles stand for, when it is there. Raises what a function raised."""


class RayTasks:
    """Tasks of the connected Ray cluster. A function is told to it once for each size, not for each task: a new one is
    pickled, fetched and given a worker anew.
    """

    def __init__(self) -> None:
        self._functions: dict[tuple[Callable[..., Any], float, bool], Any] = {}

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def submit(self, resources: PartResources, function: Callable[..., Any], *args: Any, outputs: int = 1) -> list[Any]:
        key = (function, resources.num_cpus, bool(resources.num_gpus))
        if key not in self._functions:
            options = place(known(), resources.num_cpus, beside="gpus" if resources.num_gpus else "cpus").options
            self._functions[key] = ray.remote(**options)(function)
        handles = self._functions[key].options(num_returns=outputs).remote(*args)
        return list(handles) if outputs > 1 else [handles]

    def get(self, handles: Sequence[Any]) -> list[Any]:
        found: list[Any] = ray.get(list(handles))
        return found


class HereTasks:
    """Functions of this process, each run when it is submitted."""

    def put(self, value: Any) -> Any:
        return value

    def submit(self, resources: PartResources, function: Callable[..., Any], *args: Any, outputs: int = 1) -> list[Any]:
        found = function(*args)
        return list(found) if outputs > 1 else [found]

    def get(self, handles: Sequence[Any]) -> list[Any]:
        return list(handles)
