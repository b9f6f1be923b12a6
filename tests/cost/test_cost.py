"""The plan's arithmetic on round numbers, and that its rates can be measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from biomedclip_ray.config import Config, ConfigError, parse
from biomedclip_ray.cost.estimate import estimate
from biomedclip_ray.cost.inputs import Cluster, Rates, World, assume, assumptions
from biomedclip_ray.cost.measure import measure
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.sources.bucket import SourceError
from tests.text_classifier import fit_gel_classifier

RATES = Rates("by hand", 0.9, 0.9, 4.5, 9.0, 36.0, 1.5, 1e3, 1e5, 1e5, 5e4, 2e4)
WORLD = World(versions=8e6, usable=0.75, figures=4.0, with_file=1.0, xml_bytes=1e5, media_bytes=1e6)
CLUSTER = Cluster(
    nodes=4, cpus=25, efficiency=0.5, gbit_per_s=8, node_hour=2.0, egress_gb=0.01, gb_month=0.02, fixed_s=0
)


def _config(**changes: Any) -> Config:
    return parse({"root": "r", "source": {"select": {"licenses": "all"}}} | changes, "test")


def test_requests_bytes_and_core_hours_are_units_times_rates() -> None:
    catalog, ingest, preprocess = estimate(_config(), RATES, WORLD, CLUSTER).stages
    assert [s.requests for s in (catalog, ingest, preprocess)] == pytest.approx([8e6, 6e6, 24e6])
    assert [s.bytes_in for s in (catalog, ingest, preprocess)] == pytest.approx([8e9, 6e11, 24e12])
    assert [s.core_hours for s in (catalog, ingest, preprocess)] == pytest.approx([4, 9, 66])
    assert preprocess.bytes_out == pytest.approx(24e6 * 5e4)


def test_the_slowest_limit_binds_and_each_has_its_hours() -> None:
    preprocess = estimate(_config(), RATES, WORLD, CLUSTER).stages[2]
    assert preprocess.hours["cores"] == pytest.approx(66 / (4 * 25 * 0.5))
    assert preprocess.hours["network"] == pytest.approx((24e12 + 1.2e12) / 4e9 / 3600)
    assert preprocess.hours["requests"] == pytest.approx(24e6 / 5500 / 3600)
    assert (preprocess.binds, preprocess.wall) == ("network", preprocess.hours["network"])
    fast = dataclasses.replace(CLUSTER, gbit_per_s=100)
    assert estimate(_config(), RATES, WORLD, fast).stages[2].binds == "cores"
    assert estimate(_config(), RATES, WORLD, dataclasses.replace(fast, cpus=100)).stages[2].binds == "requests"


def test_few_threads_far_from_the_bucket_are_bound_by_requests() -> None:
    config = _config(source={"select": {"licenses": "all"}, "resources": {"threads": 1}})
    preprocess = estimate(config, RATES, WORLD, dataclasses.replace(CLUSTER, nodes=1, cpus=2)).stages[2]
    assert preprocess.hours["requests"] == pytest.approx(24e6 / (2 / 0.1) / 3600)
    assert preprocess.binds == "requests"


def test_panels_are_reckoned_apart_until_they_are_on() -> None:
    off = estimate(_config(), RATES, WORLD, CLUSTER)
    on = estimate(_config(preprocess={"panels": True}), RATES, WORLD, CLUSTER)
    assert off.panels_core_hours == on.panels_core_hours == pytest.approx(24e6 * 36 / 3.6e6)
    assert on.core_hours - off.core_hours == pytest.approx(240)
    assert on.stages[2].bytes_out == pytest.approx(2.5 * off.stages[2].bytes_out)


def test_pictures_larger_than_those_measured_are_reckoned_apart_until_that_is_assumed() -> None:
    plan = estimate(_config(), RATES, WORLD, CLUSTER)  # 1 MB where those measured had 0.1
    assert plan.larger == pytest.approx(10)
    assert plan.larger_core_hours == pytest.approx(24e6 * 9.0 * 9 / 3.6e6)
    scaled = estimate(_config(), RATES, dataclasses.replace(WORLD, image_scale=10), CLUSTER)
    assert scaled.larger_core_hours == 0
    assert scaled.core_hours == pytest.approx(plan.core_hours + plan.larger_core_hours)


def test_a_text_filter_saves_the_bytes_of_what_it_leaves_unfetched() -> None:
    plan = estimate(_config(), RATES, dataclasses.replace(WORLD, text_share=0.1), CLUSTER)
    assert plan.unfetched == {"preprocess.select": pytest.approx((0.9 * 24e6, 0.9 * 24e12))}
    assert plan.stages[2].requests == pytest.approx(2.4e6)
    assert plan.stages[1].requests == pytest.approx(6e6)


def test_a_selection_of_articles_spares_pictures_but_reads_every_xml() -> None:
    world = dataclasses.replace(WORLD, article_share=0.5, text_share=0.1)
    plan, whole = (estimate(_config(), RATES, w, CLUSTER) for w in (world, WORLD))
    assert plan.unfetched["ingest.select"] == pytest.approx((12e6, 12e12))
    assert plan.unfetched["preprocess.select"] == pytest.approx((0.9 * 12e6, 0.9 * 12e12))
    assert plan.stages[1].requests == whole.stages[1].requests
    assert plan.stages[1].bytes_out == pytest.approx(whole.stages[1].bytes_out / 2)
    assert plan.stages[2].requests == pytest.approx(1.2e6)
    assert whole.unfetched == {}


def test_licences_and_samples_narrow_what_is_read() -> None:
    commercial = estimate(_config(source={}), RATES, WORLD, CLUSTER)
    assert commercial.stages[1].requests == pytest.approx(6e6 * WORLD.commercial)
    sample = estimate(_config(source={"select": {"licenses": "all", "articles": 8000}}), RATES, WORLD, CLUSTER)
    assert [s.requests for s in sample.stages] == pytest.approx([8000, 6000, 24000])


def test_a_list_selects_as_many_as_it_names(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("PMC1 PMC2 PMC3 PMC3")
    select = {"licenses": "all", "pmcids": str(tmp_path / "ids.txt")}
    found = estimate(_config(source={"select": select}), RATES, WORLD, CLUSTER)
    assert found.stages[0].requests == pytest.approx(3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"own": {"uri": "pairs", "alone": True}}, "own.alone=true reads nothing of PubMed Central"),
        ({"source": {"select": {"percent": 0}}}, "source.select.percent=0 selects nothing"),
    ],
)
def test_what_reads_nothing_has_no_plan(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        estimate(_config(**changes), RATES, WORLD, CLUSTER)


def test_panels_are_measured_as_the_stage_cuts_them(corpus: Path, tmp_path: Path) -> None:
    source = {"uri": str(corpus / "bucket"), "select": {"licenses": "all"}}
    rates, _ = measure(parse({"root": "r", "source": source}, "test"), articles=25)
    assert rates.panels_ms > 1 and 0.1 < rates.panels_found < 6


def test_money_is_machines_egress_and_storage() -> None:
    plan = estimate(_config(), RATES, WORLD, CLUSTER)
    assert plan.machine_money == pytest.approx(plan.hours * 4 * 2.0)
    assert plan.egress_money == pytest.approx((8e9 + 6e11 + 24e12) / 1e9 * 0.01)
    assert plan.storage_money_month == pytest.approx(sum(s.bytes_out for s in plan.stages) / 1e9 * 0.02)


def test_each_assumption_has_its_reason_and_can_be_changed() -> None:
    listed = assumptions(World(), Cluster(1, 1))
    assert {"versions", "commercial", "latency_ms", "node_hour"} <= {name for name, _, _ in listed}
    assert all(len(why) > 20 for _, _, why in listed)
    world, cluster = assume(World(), Cluster(1, 1), ["commercial=0.5", "node_hour=3"])
    assert (world.commercial, cluster.node_hour, cluster.nodes) == (0.5, 3.0, 1)


@pytest.mark.parametrize("given", ["comercial=0.5", "commercial", "commercial=many"])
def test_an_assumption_that_means_nothing_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="--assume"):
        assume(World(), Cluster(1, 1), [given])


@pytest.mark.parametrize(
    "change", ["usable=2", "efficiency=0", "latency_ms=0", "versions=-1", "versions=nan", "figures=-3"]
)
def test_values_out_of_range_are_refused(change: str) -> None:
    world, cluster = assume(World(), Cluster(1, 1), [change])
    with pytest.raises(ConfigError, match=change.split("=")[0]):
        estimate(_config(), RATES, world, cluster)


def _script() -> ModuleType:
    path = Path(__file__).parents[2] / "workflows" / "plan.py"
    spec = importlib.util.spec_from_file_location("plan_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAMPLE = str(Path(__file__).parents[2] / "workflows" / "configs" / "sample.yaml")


def test_with_the_shipped_rates_catalog_to_pairs_takes_at_most_150_core_hours() -> None:
    rates = Rates(**json.loads(_script().RATES.read_text()))
    plan = estimate(_config(), rates, World(), Cluster(8, 32))
    assert plan.core_hours <= 150
    assert plan.panels_core_hours > 0


def test_the_command_prints_stages_rates_and_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert _script().main([SAMPLE, "--nodes", "8", "--cpus", "32", "--assume", "node_hour=1.6"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "preprocess",
        "core-hours",
        "panels, which are off, would add",
        "Machines",
        "image_ms",
        "requests_per_s",
        "evaluate",
        "bioRxiv (MECA",
    ):
        assert word in printed


@pytest.mark.parametrize(
    "override, share",
    [("preprocess.select.text=[microscop]", "text_share"), ("ingest.select.years=[2015,null]", "article_share")],
)
def test_a_selection_of_unknown_effect_asks_for_it(
    override: str, share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [SAMPLE, override, "--nodes", "1", "--cpus", "2"]
    assert _script().main(arguments) == 2
    assert f"--measure N on a folder of articles, or --assume {share}=0.1" in capsys.readouterr().err
    assert _script().main([*arguments, "--assume", f"{share}=0.25"]) == 0
    assert f"{override.partition('.select')[0]}.select leaves" in capsys.readouterr().out


def test_rates_are_measured_on_a_folder(tmp_path: Path) -> None:
    make_bucket(tmp_path / "bucket", n_articles=12, seed=1)
    raw = {"root": "r", "source": {"uri": str(tmp_path / "bucket")}, "preprocess": {"select": {"text": ["gel"]}}}
    rates, shares = measure(parse(raw | {"ingest": {"select": {"years": [2010, None]}}}, "test"), articles=12)
    assert 0 < shares["text_share"] < 1
    assert 0 < shares["article_share"] < 1
    for field in dataclasses.fields(Rates):
        if field.name not in ("measured", "panels_ms", "panels_found"):  # gels have none
            assert getattr(rates, field.name) > 0, field.name
    assert rates.image_ms > rates.version_ms


def test_the_share_that_a_classifier_passes_is_measured_and_told_in_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bucket(tmp_path / "bucket", n_articles=12, seed=1)
    fit_gel_classifier(tmp_path / "gel.onnx")
    overrides = [f"source.uri={tmp_path}/bucket", f"preprocess.select.classifier.uri={tmp_path}/gel.onnx"]
    arguments = [SAMPLE, *overrides, "--nodes", "1", "--cpus", "2", "--measure", "12"]
    assert _script().main(arguments) == 0
    printed = capsys.readouterr().out
    share = float(re.search(r"text_share\s+([\d.]+)", printed)[1])  # type: ignore[index]
    spared, requests = map(float, re.search(r"select leaves ([\d.]+) TB and ([\d.]+) M", printed).groups())  # type: ignore[union-attr]
    everything = World()
    pictures = 8e6 * everything.usable * everything.commercial * everything.figures * everything.with_file
    assert 0 < share < 0.9
    assert requests == pytest.approx(pictures * (1 - share) / 1e6, abs=0.1)
    assert spared == pytest.approx(pictures * (1 - share) * everything.media_bytes / 1e12, abs=0.1)


def test_a_bucket_that_is_no_folder_cannot_be_measured() -> None:
    with pytest.raises(SourceError, match="wants a folder"):
        measure(_config(), 10)
