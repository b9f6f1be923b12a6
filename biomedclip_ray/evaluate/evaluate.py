"""Stage: a bundle, the held-out pairs and labelled sets -> evaluation.json, rows, plots, and the pool's vectors.

The pool is one whole figure per figure of the held-out split; panels stand beside it for the slice that tells them
apart. Vectors stay in data/ as parts: an interrupted run encodes nothing twice, and whoever doubts a figure recomputes
it from there, or from rows/, with ten lines of numpy. Before anything is encoded, a bundle that was trained on today's
held-out articles or images is refused.
"""

from __future__ import annotations

import json
from typing import Any

import ray

from biomedclip_ray.config import Config, ConfigError, Evaluate
from biomedclip_ray.evaluate import plots
from biomedclip_ray.evaluate.bundles import Asked, Written, encode_on_cluster, gather
from biomedclip_ray.evaluate.compare import comparison, table
from biomedclip_ray.evaluate.encode_pool import HeldOut, parts_of
from biomedclip_ray.evaluate.features import Encoded, Job, features_of, recalled
from biomedclip_ray.evaluate.held_out import measure_pool
from biomedclip_ray.evaluate.leakage import check_leakage, near_copies
from biomedclip_ray.evaluate.ranks import DIRECTIONS
from biomedclip_ray.evaluate.sets import LabelledSet, load_sets
from biomedclip_ray.run.capacity import Capacity, known
from biomedclip_ray.run.nodes import wait_for_nodes
from biomedclip_ray.run.placement import place
from biomedclip_ray.run.stage import Made, RunParts, Stage
from biomedclip_ray.store.attempt import Attempt
from biomedclip_ray.store.place import Place
from biomedclip_ray.store.product import Product

VERSION = 9


def _content(config: Config, bundle: Product, pairs: Product, corpus: Product) -> dict[str, Any]:
    return config.evaluate.content()


def _work(
    attempt: Attempt, run_parts: RunParts, config: Config, bundle: Product, pairs: Product, corpus: Product
) -> Made:
    """Raises LeakageError where the bundle's own corpus trained on an article or an image of today's held-out split,
    StageError where more vectors than `evaluate.max_left_out` are not finite."""
    section = config.evaluate
    labelled = load_sets(section.sets)
    check_leakage(run_parts.tasks, section.resources, bundle, pairs, corpus, section.split)
    attempt.parts = parts_of(pairs)
    run_parts(HeldOut, section.resources, (bundle.place.at("bundle").uri, pairs, corpus, section))
    result = measure_pool(attempt, section)
    result["bundle_product"] = bundle.fingerprint
    result |= _on_sets(attempt.product, labelled, bundle, section)
    for name, image in plots.draw(result).items():
        attempt.place.write(name, image)
    attempt.place.write("evaluation.json", json.dumps(result, indent=1).encode())
    return Made({"recall@10": {way: result["retrieval"][way]["recall@10"]["value"] for way in DIRECTIONS}})


def _check(config: Config, *_: Any) -> list[str]:
    try:
        load_sets(config.evaluate.sets)
    except ConfigError as error:
        return [str(error)]
    return []


def _fit(config: Config, capacity: Capacity, *_: Any) -> list[str]:
    return capacity.lacks("evaluate.resources", config.evaluate.resources)


evaluate = Stage("evaluate", VERSION, _content, _work, check=_check, fit=_fit)
"""Reads the bundle, the pairs and the corpus."""


def _on_sets(product: Product, sets: list[LabelledSet], bundle: Product, section: Evaluate) -> dict[str, Any]:
    """The figures of each labelled set by its name, for this bundle ("sets") and for others, and how they compare."""
    if not sets:
        return {"sets": {}}
    resources = section.resources
    where = place(known(), resources.num_cpus, resources.num_gpus)
    task = ray.remote(**where.options)(_sets_of)
    own = bundle.place.at("bundle").uri
    uris = [own, *section.bundles]
    features = f"{product.root}/features"
    # a bundle's vectors all over the cluster, then its figures in one task: small fits and sums of what lies in storage
    encoded = {uri: encode_on_cluster(uri, sets, features, resources, section.precision) for uri in uris}
    if section.fusion.epochs:
        _fuse(uris, sets, features, section)
    arguments = ([one.uri for one in sets], features, section, product.place.uri)
    wait_for_nodes("evaluate", known(), [(where, 1)], resources.wait_for_nodes_s)
    tasks = [task.remote(uri, *arguments, bundle if uri == own else None, encoded[uri]) for uri in uris]
    found = dict(zip(uris, ray.get(tasks), strict=True))
    out: dict[str, Any] = {"sets": found[own][1]}
    if section.bundles:
        names = [_name(uri, found[uri][0], own) for uri in uris]
        every = {name: found[uri][1] for name, uri in zip(names, uris, strict=True)}
        rows = gather({name: found[uri][2] for name, uri in zip(names, uris, strict=True)})
        out |= {"bundles": every, "table": table(every)}
        ids = {name: found[uri][0] for name, uri in zip(names, uris, strict=True)}
        out["comparison"] = comparison(rows, section.bootstraps, section.seed, ids)
    return out


def _fuse(uris: list[str], sets: list[LabelledSet], features: str, section: Evaluate) -> None:
    """Train the fusion heads of all bundles, one after the other."""
    from biomedclip_ray.evaluate.fusion import jobs_of, train_on_ray

    where = place(known(), section.resources.num_cpus, section.resources.num_gpus)
    find = ray.remote(**where.options)(_features_of)
    owns = ray.get([find.remote(uri, features, section) for uri in uris])
    for uri, own in zip(uris, owns, strict=True):
        for job in jobs_of(uri, own, sets, section):
            train_on_ray(job, section.resources)


def _features_of(uri: str, features: str, section: Evaluate) -> str:
    from biomedclip_ray.clip.encoder import Encoder

    return features_of(features, Encoder.load(uri, precision=section.precision))


def _name(uri: str, bundle_id: str, own: str) -> str:
    return "this bundle" if uri == own else f"{uri.rstrip('/').rpartition('/')[2]} ({bundle_id})"


def _sets_of(
    uri: str,
    sets: list[str],
    features: str,
    section: Evaluate,
    out: str,
    trained: Product | None,
    encoded: dict[Job, Encoded],
) -> tuple[str, dict[str, Any], Written]:
    """One bundle on all sets, whose images are encoded: its id, figures by set, and where the rows of each task lie."""
    from biomedclip_ray.clip.encoder import Encoder

    encoder = Encoder.load(uri, precision=section.precision)
    near = (lambda hashes, images: near_copies(hashes, images, trained)) if trained is not None else None
    asked = Asked(encoder, load_sets(sets), features, section, recalled(encoded), uri)
    return encoder.bundle_id, *asked.all(Place(out).at(f"rows/{encoder.bundle_id}"), near)
