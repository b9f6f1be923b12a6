"""The builder that serve.run, `serve deploy` and KubeRay share: what its arguments mean, before any
cluster is there.
"""

from pathlib import Path

import pytest
import ray
import yaml
from pydantic import ValidationError
from ray.serve import Application
from ray.serve.schema import ServeDeploySchema

from biomedclip_ray.config import Config
from biomedclip_ray.serve.app import Arguments, build
from biomedclip_ray.serve.deploy import address, arguments
from biomedclip_ray.store.product import Product

ROOT = Path(__file__).parents[2]


def test_the_serve_file_of_the_cluster_folder_builds_the_application_and_starts_no_ray():
    schema = ServeDeploySchema.model_validate(yaml.safe_load((ROOT / "cluster/serve.yaml").read_text()))
    (application,) = schema.applications
    assert application.import_path == "biomedclip_ray.serve.app:build"
    args = Arguments.model_validate(application.args)
    assert args.bundle.endswith("/bundle") and args.index.endswith("/index.lance")
    before = ray.is_initialized()
    assert isinstance(build(args), Application)
    assert ray.is_initialized() == before


def test_serve_makes_arguments_of_a_plain_mapping_by_the_builders_annotation():
    assert build.__annotations__["args"] is Arguments  # a string here would hand `build` the bare mapping


@pytest.mark.parametrize(
    "args", [{"bundle": "b"}, {"bundle": "b", "index": "i", "max_item": 3}, {"bundle": "", "index": "i"}]
)
def test_missing_unknown_and_empty_arguments_are_refused(args):
    with pytest.raises(ValidationError):
        Arguments.model_validate(args)


def test_the_workflows_arguments_are_the_products_folders_and_the_serve_section():
    config = Config.model_validate(
        {"root": "/r", "serve": {"max_items": 3, "resources": {"port": 8765, "host": "0.0.0.0"}}}
    )
    bundle, index = (Product.plan("/r", stage, 1, {}, []) for stage in ("train", "embed"))
    args = arguments(config, bundle, index)
    assert args.bundle == f"/r/train/{bundle.fingerprint}/bundle"
    assert args.index == f"/r/embed/{index.fingerprint}/index.lance"
    assert (args.max_items, args.resources.port) == (3, 8765)
    assert address(args.resources) == "http://127.0.0.1:8765"


def test_any_change_of_an_argument_is_another_application():
    def fingerprint(**changes: object) -> str:
        return Arguments.model_validate({"bundle": "b", "index": "i", **changes}).fingerprint

    changed = [{}, {"bundle": "c"}, {"index": "j"}, {"max_items": 1}, {"resources": {"max_batch": 4}}]
    assert len({fingerprint(**change) for change in changed}) == len(changed)
    assert fingerprint() == fingerprint()


def test_old_and_new_fit_into_two_cpus_side_by_side():
    assert 2 * Arguments(bundle="b", index="i").cpus <= 2
