"""The typed configuration of the whole workflow: one frozen pydantic tree, read from YAML plus dotted overrides.

A key that does not exist is refused with the nearest valid name, so that a typing error costs a second and not a night.
Everything that decides *how fast* a stage runs stands in a `resources` subtree and stays outside the fingerprint
(`store/product.py`); everything else decides *what* the rows are. Speed can be tuned without computing anything anew.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError, model_validator
from yaml import MarkedYAMLError, YAMLError

from biomedclip_ray.config.data import (
    COMMERCIAL,
    LICENSES,
    NON_COMMERCIAL,
    Catalog,
    Curate,
    CurateSelect,
    Ingest,
    IngestSelect,
    Kinds,
    Own,
    Preprocess,
    PreprocessSelect,
    Source,
    SourceResources,
    SourceSelect,
    Splits,
    TextClassifier,
)
from biomedclip_ray.config.model import Embed, Evaluate, Fusion, Model, Train, TrainResources
from biomedclip_ray.config.operate import Budget, Notice
from biomedclip_ray.config.section import ConfigError, PartResources, Section, StageSection
from biomedclip_ray.config.serve import Access, ApiKey, Serve, ServedModel, ServeResources

__all__ = [
    "COMMERCIAL",
    "LICENSES",
    "NON_COMMERCIAL",
    "STAGES",
    "Access",
    "ApiKey",
    "Budget",
    "Catalog",
    "Config",
    "ConfigError",
    "Curate",
    "CurateSelect",
    "Embed",
    "Evaluate",
    "Fusion",
    "Ingest",
    "IngestSelect",
    "Kinds",
    "Model",
    "Notice",
    "Own",
    "PartResources",
    "Preprocess",
    "PreprocessSelect",
    "Section",
    "Serve",
    "ServeResources",
    "ServedModel",
    "Source",
    "SourceResources",
    "SourceSelect",
    "Splits",
    "StageSection",
    "TextClassifier",
    "Train",
    "TrainResources",
    "load",
    "parse",
]

STAGES = ("catalog", "ingest", "preprocess", "curate", "train", "evaluate", "embed", "deploy")


class Config(Section):
    """The whole workflow. `root` is where every product lies: a folder, `s3://...`, or any pyarrow/fsspec URI."""

    root: str
    """Where every product lies: a folder, `s3://...`, or any URI that pyarrow or fsspec knows."""
    source: Source = Source()
    catalog: Catalog = Catalog()
    ingest: Ingest = Ingest()
    preprocess: Preprocess = Preprocess()
    own: Own = Own()
    curate: Curate = Curate()
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    embed: Embed = Embed()
    serve: Serve = Serve()
    budget: Budget = Budget()
    notice: Notice = Notice()

    @model_validator(mode="after")
    def _something_to_export(self) -> Config:
        if self.train.epochs == 0 and self.model.bundle is None:
            raise ValueError("train.epochs=0 trains nothing; set model.bundle to the CLIP that is to be taken as it is")
        return self


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file and dotted overrides (`train.lr=3e-4`) into a checked `Config`.

    A file may name another as its `base`, seen from itself: it then says only what is different.

    Raises:
        ConfigError: no such file, no YAML, an unknown key (with the nearest valid name), or a value that does not fit.
    """
    path = Path(path)
    for item in overrides:
        if "=" not in item:
            raise ConfigError(f"override {item!r} is not of the form key=value, for example train.lr=3e-4")
    try:
        tree = OmegaConf.merge(_with_base(path, ()), OmegaConf.from_dotlist(list(overrides)))
        raw = OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {error}".splitlines()[0]) from error
    assert isinstance(raw, dict)
    return parse({str(key): value for key, value in raw.items()}, str(path))


def _with_base(path: Path, above: tuple[Path, ...]) -> DictConfig:
    """A file over the one that its `base` names, which may have a base of its own; `above` are the files
    that led here.
    """
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        named = f" (base of {above[-1]})" if above else ""
        raise ConfigError(
            f"config file {path}{named} does not exist" + (f"; beside it: {', '.join(near)}" if near else "")
        )
    if path.resolve() in above:
        raise ConfigError(f"{path}: base leads back to this file by way of {above[-1].name}")
    try:
        loaded = OmegaConf.load(path)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}") from error
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}".splitlines()[0]) from error
    if not isinstance(loaded, DictConfig):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(Config.model_fields)}")
    base = loaded.pop("base", None)
    if base is None:
        return loaded
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base={base!r}: expected the name of a YAML file, seen from this one")
    merged = OmegaConf.merge(_with_base(path.parent / base, (*above, path.resolve())), loaded)
    assert isinstance(merged, DictConfig)
    return merged


def parse(raw: dict[str, Any], origin: str) -> Config:
    """Check a plain mapping; `origin` stands before every message. Raises ConfigError."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{origin}: {_explain(item)}" for item in error.errors())) from error


def _explain(error: Any) -> str:
    """One pydantic error as a line that names the key and, for an unknown one, the nearest valid name."""
    location = [str(step) for step in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        valid = list(_section(location[:-1]).model_fields)
        near = difflib.get_close_matches(location[-1], valid, n=1, cutoff=0.5)
        prefix = "".join(f"{step}." for step in location[:-1])
        hint = f"did you mean {prefix}{near[0]}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {key}; {hint}"
    if error["type"] == "missing":
        return f"{key} is missing; set it in the file or on the command line ({key}=...)"
    message = error["msg"].removeprefix("Value error, ")
    return message if not key or message.startswith(key) else f"{key}={error['input']!r}: {message}"


def _section(location: list[str]) -> type[BaseModel]:
    """The section class at a path of keys."""
    model: type[BaseModel] = Config
    for step in location:
        annotation = model.model_fields[step].annotation
        choices = get_args(annotation) if hasattr(annotation, "__args__") else (annotation,)
        model = next(c for c in choices if isinstance(c, type) and issubclass(c, BaseModel))
    return model
