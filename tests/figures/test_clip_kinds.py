"""Kinds by a CLIP's zero-shot answer: what plain open_clip says, under the bundle's id, and torch only where it is
asked for.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

from biomedclip_ray.clip.bundle import save_bundle
from biomedclip_ray.clip.model import build_model
from biomedclip_ray.clip.tokenizer import fit_tokenizer
from biomedclip_ray.config import Config, ConfigError, Kinds, Model, parse
from biomedclip_ray.corpus.own import own_pairs
from biomedclip_ray.figures.clip_kinds import NAMES, TEMPLATES, bundle_id, name_kinds
from biomedclip_ray.figures.preprocess import preprocess
from biomedclip_ray.pmc.catalog import catalog
from biomedclip_ray.pmc.ingest import ingest
from biomedclip_ray.run.parts import in_process
from biomedclip_ray.sample import make_bucket
from biomedclip_ray.schema import KINDS
from biomedclip_ray.sources.inventory import resolve_inventory
from biomedclip_ray.sources.own.record import OwnFiles
from biomedclip_ray.sources.own_files import find_files
from biomedclip_ray.store.product import Product

PROMPTS = [[template.format(name) for name in NAMES[kind] for template in TEMPLATES] for kind in KINDS]


def _bundle(folder: Path, seed: int) -> Path:
    tokenizer = fit_tokenizer([text for prompts in PROMPTS for text in prompts], 400, 32)
    torch.manual_seed(seed)
    built = build_model(Model(config="sample_64", init="random"), tokenizer)
    save_bundle(folder, built.model, built.model_cfg, built.preprocess_cfg, tokenizer, {"starts": built.starts})
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _bundle(tmp_path_factory.mktemp("clip") / "bundle", 0)


def _config(root: Path, bundle: Path | None, uri: Path | str = "b") -> Config:
    raw = {"root": str(root), "source": {"uri": str(uri)}, "preprocess": {"kinds": {"bundle": bundle and str(bundle)}}}
    return parse(raw, "test")


def _asked_plainly(bundle: Path) -> Callable[[bytes], tuple[str, float]]:
    """Zero-shot with nothing but open_clip and torch."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{bundle}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{bundle}")
    model.eval()
    with torch.no_grad():
        texts = [model.encode_text(tokenize(prompts), normalize=True).mean(dim=0) for prompts in PROMPTS]
    classes = torch.nn.functional.normalize(torch.stack(texts), dim=-1)

    @torch.no_grad()
    def ask(jpeg: bytes) -> tuple[str, float]:
        picture = transform(Image.open(io.BytesIO(jpeg)))[None]
        odds = (model.logit_scale.exp() * model.encode_image(picture, normalize=True) @ classes.T).softmax(dim=-1)[0]
        return KINDS[int(odds.argmax())], float(odds.max())

    return ask


def test_every_kind_has_names_and_no_other_has() -> None:
    assert set(NAMES) == set(KINDS)
    assert all(names for names in NAMES.values())


def test_the_stage_writes_the_kinds_that_plain_open_clip_gives(tmp_path: Path, bundle: Path) -> None:
    make_bucket(tmp_path / "bucket", n_articles=12, seed=1)

    config = _config(tmp_path / "root", bundle, tmp_path / "bucket")
    versions = catalog.run(config, resolve_inventory(config), runner=in_process).product
    articles = ingest.run(config, versions, runner=in_process).product
    pairs = preprocess.run(config, articles, runner=in_process).product
    rows = [row for table in pairs.scan() for row in table.to_pylist()]
    cheap = preprocess.run(_config(tmp_path / "root", None, tmp_path / "bucket"), articles, runner=in_process).product
    ask = _asked_plainly(bundle)
    assert len(rows) > 15
    for row in rows:
        kind, score = ask(row["image"])
        assert (row["figure_kind"], row["figure_kind_score"]) == (kind, pytest.approx(score, abs=1e-4))
    guessed = [kind for table in cheap.scan(["figure_kind"]) for kind in table["figure_kind"].to_pylist()]
    assert guessed != [row["figure_kind"] for row in rows]


def test_the_fingerprint_holds_the_bundle_and_not_its_place(tmp_path: Path, bundle: Path) -> None:
    articles = Product.plan("r", "ingest", 1, {}, [])
    moved = shutil.copytree(bundle, tmp_path / "moved")
    other = _bundle(tmp_path / "other", 1)
    prints = [preprocess.plan(_config(Path("r"), each), articles).fingerprint for each in (None, bundle, moved, other)]
    assert prints[1] == prints[2]
    assert len(set(prints)) == 3
    (tmp_path / "pairs.csv").write_text("image,text\nx.png,a gel\n")
    files: OwnFiles = find_files(str(tmp_path / "pairs.csv"), 10)
    own = [own_pairs.plan(_config(Path("r"), each), files).fingerprint for each in (None, bundle, moved, other)]
    assert own[1] == own[2]
    assert len(set(own)) == 3


def test_a_clip_without_our_record_is_loaded_for_its_id(tmp_path: Path, bundle: Path) -> None:
    plain = shutil.copytree(bundle, tmp_path / "plain", ignore=shutil.ignore_patterns("bundle.json"))
    assert bundle_id(Kinds(bundle=str(plain))) == bundle_id(Kinds(bundle=f"local-dir:{bundle}"))


def test_what_cannot_be_loaded_or_was_exchanged_is_refused_by_its_key(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"preprocess\.kinds\.bundle: .*no open_clip_config\.json there"):
        bundle_id(Kinds(bundle=str(tmp_path)))
    row = {"image": b"never looked at"}
    with pytest.raises(ConfigError, match="was 0123 when this run began"):
        name_kinds([row], Kinds(bundle=str(bundle)), "0123")


def test_no_bundle_loads_no_torch_and_changes_no_row() -> None:
    row: dict[str, Any] = {"image": b"", "figure_kind": "gel"}
    name_kinds([row], Kinds(), None)
    assert row == {"image": b"", "figure_kind": "gel"}
    code = "import sys, biomedclip_ray.figures.preprocess, biomedclip_ray.corpus.own; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"select": {"kinds": ["gel", "charts"]}}, "curate.select.kinds=['gel', 'charts']: 'charts' is no figure "
                                                   "kind; did you mean chart?"),
        ({"balance": {"micrographs": 0.5}}, "'micrographs' is no figure kind; did you mean micrograph?"),
        ({"balance": {"xy": 0.5}}, "curate.balance={'xy': 0.5}: 'xy' is no figure kind; known: micrograph, "
                                   "fluorescence"),
        ({"balance": {"gel": -1}}, "curate.balance.gel=-1"),
    ],
)  # fmt: skip
def test_a_kind_that_does_not_exist_is_refused_by_its_key(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse({"root": "r", "curate": raw}, "run.yaml")
    assert words in str(caught.value)
