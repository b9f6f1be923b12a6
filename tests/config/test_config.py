"""A wrong configuration costs a second: the message names the key, the nearest valid one, and the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from biomedclip_ray.config import COMMERCIAL, LICENSES, Config, ConfigError, SourceSelect, load, parse
from biomedclip_ray.config.section import Later, Section

CONFIGS = sorted((Path(__file__).parents[2] / "workflows" / "configs").glob("*.yaml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("root: .demo/root\ntrain:\n  lr: 1e-3\n  resources: {workers: 2}\n")
    return path


def _error(raw: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        parse({"root": "r", **raw}, "run.yaml")
    return str(caught.value)


def test_what_the_file_does_not_say_is_the_default(file: Path) -> None:
    config = load(file)
    assert (config.root, config.train.lr, config.train.resources.workers) == (".demo/root", 1e-3, 2)
    assert config.train.weight_decay == Config(root="r").train.weight_decay == 0.2


def test_the_shipped_configs_are_all_there() -> None:
    assert len(CONFIGS) >= 3
    assert {"sample", "pmc_first_1000", "biomedclip_vit_b16"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_shipped_config_loads_and_stands_up_to_a_round_trip(path: Path) -> None:
    config = load(path)
    assert config.root
    assert parse(config.model_dump(mode="json"), str(path)) == config


def test_the_papers_recipe_has_the_papers_numbers_and_the_defaults_are_the_same() -> None:
    """Zhang et al. 2023, arXiv 2303.00915."""
    numbers = {
        "lr": 5e-4,
        "weight_decay": 0.2,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "warmup_steps": 2000,
        "batch": 4096,
        "epochs": 32,
        "crop_scale": (0.9, 1.0),
        "precision": "bf16",
        "loss": "infonce",
    }
    shipped = load(CONFIGS[0].with_name("biomedclip_vit_b16.yaml"))
    for train in (shipped.train, Config(root="r").train):
        assert {key: getattr(train, key) for key in numbers} == numbers
    assert (shipped.model.config, shipped.model.init) == ("biomedclip_vit_b16", "pretrained")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("train.lr=3e-4", 3e-4),
        ("train.epochs=0.5", 0.5),
        ("train.seed=7", 7),
        ("train.grad_clip=null", None),
        ("train.log_pairs=true", True),
        ("train.betas=[0.8,0.9]", (0.8, 0.9)),
        ("source.select.licenses=[CC0,CC BY]", ("CC0", "CC BY")),
        ("source.select.licenses=all", "all"),
        ("source.uri=s3://bucket/a=b", "s3://bucket/a=b"),
        ("train.resources.workers=4", 4),
    ],
)
def test_an_override_sets_the_key_it_names(file: Path, override: str, value: object) -> None:
    found: Any = load(file, [override])
    for step in override.split("=")[0].split("."):
        found = getattr(found, step)
    assert found == value
    assert type(found) is type(value)


def test_an_override_leaves_the_other_keys_of_its_section(file: Path) -> None:
    config = load(file, ["train.resources.workers=1"])
    assert (config.train.lr, config.train.resources.workers) == (1e-3, 1)


def test_the_last_of_two_overrides_of_one_key_wins(file: Path) -> None:
    assert load(file, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_an_override_without_a_value_is_refused_with_an_example(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"'train.lr' is not of the form key=value, for example train.lr=3e-4"):
        load(file, ["train.lr"])


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"trian": {}}, "run.yaml: unknown key trian; did you mean train?"),
        ({"train": {"epoch": 1}}, "run.yaml: unknown key train.epoch; did you mean train.epochs?"),
        (
            {"train": {"resources": {"worker": 1}}},
            "run.yaml: unknown key train.resources.worker; did you mean train.resources.workers?",
        ),
        (
            {"source": {"select": {"licences": "all"}}},
            "run.yaml: unknown key source.select.licences; did you mean source.select.licenses?",
        ),
        (
            {"curate": {"splits": {"zzz": 1}}},
            "run.yaml: unknown key curate.splits.zzz; valid here: validation, test",
        ),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(raw: dict[str, Any], line: str) -> None:
    assert _error(raw) == line


def test_an_unknown_override_is_refused_like_an_unknown_key(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key train\.lrr; did you mean train\.lr\?"):
        load(file, ["train.lrr=1"])


def test_every_error_of_a_file_is_named_at_once() -> None:
    lines = _error({"train": {"epoch": 1, "lr": -1}, "serve": {"resources": {"port": 70000}}}).splitlines()
    assert [line.split(": ")[1].split(";")[0].split("=")[0] for line in lines] == [
        "train.lr",
        "unknown key train.epoch",
        "serve.resources.port",
    ]


def test_a_missing_root_says_how_to_set_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse({}, "run.yaml")
    assert str(caught.value) == "run.yaml: root is missing; set it in the file or on the command line (root=...)"


def test_a_missing_file_names_those_beside_it(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"rum\.yaml does not exist; beside it: .*run\.yaml"):
        load(file.with_name("rum.yaml"))
    with pytest.raises(ConfigError, match=r"run\.yaml does not exist$"):
        load(file.parent / "nowhere" / "run.yaml")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            "- root\n- train\n",
            id="a list",
        ),
        pytest.param("just words", id="a word"),
        pytest.param("root: [1\n", id="cut YAML"),
        pytest.param("root: a\nroot: b\n", id="a key twice"),
        pytest.param("root: ${nowhere}\n", id="unknown interpolation"),
        pytest.param("root: \x00\n", id="not YAML"),
        pytest.param("train: 3", id="a number for a section"),
    ],
)
def test_a_file_that_is_no_mapping_of_sections_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml(, line \d+)?: "):
        load(path)


def test_bytes_that_are_no_text_are_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"root: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"run\.yaml(, line \d+)?: "):
        load(path)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"train": {"batch": 100, "micro_batches": 8}}, "train.batch=100 must be a multiple of train.micro_batches=8"),
        (
            {"train": {"batch": 96, "micro_batches": 8, "resources": {"workers": 3}}},
            "train.micro_batches=8 must be a multiple of train.resources.workers=3",
        ),
        (
            {"train": {"micro_batches": 4, "resources": {"workers": [1, 8]}}},
            "train.micro_batches=4 must be at least the most of train.resources.workers=(1, 8)",
        ),
        (
            {"train": {"resources": {"shard": True, "workers": [1, 2]}}},
            "train.resources.shard=true needs the same number of blocks on every worker, so a fixed "
            "train.resources.workers instead of [1, 2]",
        ),
        ({"train": {"resources": {"workers": [2, 1]}}}, "train.resources.workers=[2, 1] must be [min, max]"),
        (
            {"train": {"patch_dropout": 0.5, "epochs": 1}},
            "train.patch_dropout_off_epochs=1 leaves none of train.epochs=1 to train.patch_dropout=0.5",
        ),
        (
            {"curate": {"splits": {"validation": 0.5, "test": 0.5}}},
            "validation + test must leave something to train on",
        ),
        ({"source": {"select": {"licenses": ["CC BY", "GPL"]}}}, "'GPL' is no licence code; known: CC0, CC BY"),
        ({"source": {"select": {"percent": 101}}}, "source.select.percent=101"),
        ({"preprocess": {"quality": 0}}, "preprocess.quality=0"),
        ({"preprocess": {"max_aspect": 1}}, "preprocess.max_aspect=1"),
        ({"train": {"precision": "fp16"}}, "train.precision='fp16'"),
        ({"model": {"init": "none"}}, "model.init='none'"),
        ({"embed": {"splits": ["all"]}}, "embed.splits"),
        ({"ingest": {"transient_limit": 2}}, "ingest.transient_limit=2"),
        ({"ingest": {"resources": {"num_cpus": 0}}}, "ingest.resources.num_cpus=0"),
        ({"evaluate": {"split": "train"}}, "evaluate.split='train'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_key(raw: dict[str, Any], words: str) -> None:
    message = _error(raw)
    assert words in message
    assert message.startswith("run.yaml: ")


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config(root="r").train.lr = 1.0


def test_licence_presets_name_what_they_allow() -> None:
    assert SourceSelect().allowed() == frozenset(COMMERCIAL)
    assert SourceSelect(licenses="non_commercial").allowed() - SourceSelect().allowed() == {
        "CC BY-NC",
        "CC BY-NC-SA",
        "CC BY-NC-ND",
    }
    assert SourceSelect(licenses="all").allowed() == frozenset(LICENSES)
    assert SourceSelect(licenses=("CC0",)).allowed() == {"CC0"}


def test_a_file_says_only_what_is_other_than_its_base(tmp_path: Path) -> None:
    (tmp_path / "paper.yaml").write_text("root: a\ntrain: {batch: 512, micro_batches: 4, betas: [0.9, 0.98]}\n")
    (tmp_path / "middle.yaml").write_text("base: paper.yaml\ntrain: {betas: [0.8, 0.9]}\n")
    below = tmp_path / "own"
    below.mkdir()
    (below / "mine.yaml").write_text("base: ../middle.yaml\ntrain: {batch: 1024}\n")
    config = load(below / "mine.yaml", ["train.epochs=2"])
    assert (config.root, config.train.batch, config.train.micro_batches) == ("a", 1024, 4)
    assert (config.train.betas, config.train.epochs) == ((0.8, 0.9), 2)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: nowhere.yaml", r"nowhere\.yaml \(base of .*run\.yaml\) does not exist; beside it: .*run\.yaml"),
        ("base: run.yaml", r"run\.yaml: base leads back to this file by way of run\.yaml"),
        ("base: [a, b]", r"run\.yaml: base=.*: expected the name of a YAML file, seen from this one"),
    ],
)
def test_a_base_that_cannot_be_had_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(tmp_path / "run.yaml")


class _Grown(Section):
    old: int = 1
    new: Annotated[dict[str, int], Later()] = Field(default_factory=dict)


class _Outer(Section):
    inner: _Grown = _Grown()


def test_a_key_added_later_enters_what_is_hashed_only_when_it_is_set() -> None:
    assert _Outer().content() == {"inner": {"old": 1}}
    assert _Outer(inner=_Grown(new={"a": 2})).content() == {"inner": {"old": 1, "new": {"a": 2}}}
    assert _Outer(inner=_Grown(old=3)).content(exclude={"inner"}) == {}
    plain, mixed = Config(root="r").train, parse({"root": "r", "train": {"texts": {"caption": 1}}}, "run.yaml").train
    assert "texts" not in plain.content()
    assert mixed.content() == plain.content() | {"texts": {"caption": 1.0}}
