"""What an export says about itself: README.md, the dataset card that Hugging Face shows, and croissant.json. Pure."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from biomedclip_ray.schema import ACKNOWLEDGEMENT, CORPUS, PAIRS, sentence_of
from biomedclip_ray.store.product import Product

PMC = "PubMed Central (PMC Cloud Service, s3://pmc-oa-opendata)"
_PMC_PAGE = "https://pmc.ncbi.nlm.nih.gov/tools/pmcaws/"
_TERMS = (
    "Each image and caption is under the licence of its article or figure, column `license`; `doi` names whom to "
    "credit. "
    "`unknown` means that no licence could be read: ask the publisher. A no-derivatives licence (ND) forbids "
    "cropping and "
    "other changes. What fits your use is for you to select."
)
_OWN_TERMS = (
    "Pairs of own data (`journal` names the source) are under its owner's terms, which this card does not know."
)
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)

# What an export says of a pair beside its image.
FACTS = [name for name in PAIRS.names if name not in ("image", "part", "source_split")]
# The columns that the card explains, in the order of what a reader wants first.
_TOLD = [*dict.fromkeys(["image", "text", "caption", "mentions", "pair_id", "license", "figure_kind", *FACTS])]
_SENTENCES = {field.name: sentence_of(field) for schema in (PAIRS, CORPUS) for field in schema}


def sources(pairs: Product) -> list[dict[str, str]]:
    """Where pairs come from, by the chain of manifests: {name, date}; the date is that of PMC's inventory."""
    if "own" in pairs.manifest["config"]:
        return [{"name": f"own data ({pairs.manifest['config']['own']['name']})", "date": pairs.manifest["created"]}]
    if pairs.stage == "catalog":
        return [{"name": PMC, "date": pairs.manifest["config"]["date"]}]
    found: list[dict[str, str]] = []
    for item in pairs.manifest["inputs"]:
        try:
            found += sources(Product.load(pairs.root, item["stage"], item["fingerprint"]))
        except FileNotFoundError:
            found.append({"name": f"{item['stage']}/{item['fingerprint']}, which was removed", "date": "unknown"})
    return found


def readme(note: dict[str, Any]) -> str:
    """The dataset card, Markdown with the front matter that `datasets` and the hub read."""
    counts, splits = note["counts"], _splits(note)
    total = sum(counts["split"].values())
    paths = {split: f"data/{split}-*.parquet" if _is_parquet(note) else f"{split}-*.tar" for split in splits}
    head = ["---", "pretty_name: Biomedical figures and captions", "license: other", "license_name: of-each-pair"]
    head += ["license_link: README.md", "task_categories:", "- zero-shot-image-classification", "- image-to-text"]
    head += ["tags:", "- biology", "- medical", "size_categories:"]
    head += [f"- {next((name for limit, name in _SIZES if total < limit), 'n>10M')}", "configs:"]
    head += ["- config_name: default", "  data_files:"]
    head += [line for split in splits for line in (f"  - split: {split}", f"    path: {paths[split]}")]
    head += [] if _is_parquet(note) else _json_types()
    names = " and ".join(source["name"] for source in note["sources"])
    lines = [*head, "---", "", "# Biomedical figures and captions", ""]
    lines += [f"{total:,} pairs of an image and its text from {names}, made with biomedclip_ray.", ""]
    lines += ["## Sources", "", "| source | as of |", "|---|---|"]
    lines += [f"| {source['name']} | {source['date']} |" for source in note["sources"]]
    lines += ["", "## Counts", ""]
    for by, title in (
        ("split", "split"),
        ("license", "licence"),
        ("figure_kind", "kind of figure"),
        ("language", "language"),
    ):
        lines += [f"| {title} | pairs |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in counts[by].items()), ""]
    lines += ["An article, and a group of equal images, is in one split only.", "", "## Reading it", "", "```python"]
    lines += [*_example(note, splits[0]), "```", "", "## Columns", ""]
    lines += [f"- `{name}`: {_SENTENCES[name]}" for name in (*_TOLD, "split", "group")]
    lines += ["", "## Terms", "", *_terms(note), ""]
    return "\n".join(lines)


def croissant(note: dict[str, Any], uri: str) -> dict[str, Any]:
    """Croissant 1.0 metadata (mlcommons.org/croissant/1.0); fields are described where the form is Parquet."""
    parquet = _is_parquet(note)
    total = sum(note["counts"]["split"].values())
    files = {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "description": "One file holds pairs of one split, which its name begins with.",
        "encodingFormat": "application/x-parquet" if parquet else "application/x-tar",
        "includes": "data/*.parquet" if parquet else "*.tar",
    }
    records = {
        "@type": "cr:RecordSet",
        "@id": "pairs",
        "name": "pairs",
        "description": "An image and its text.",
        "field": [
            _field(name) for name in ("image", "pair_id", "split", "text", "caption", "license", "figure_kind", "doi")
        ],
    }
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": "biomedical-figures-and-captions",
        "description": f"{total:,} pairs of a biomedical image and its text. " + " ".join(_terms(note)),
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "url": _PMC_PAGE if any(source["name"] == PMC for source in note["sources"]) else uri,
        "license": sorted(note["counts"]["license"]),
        "citeAs": "The articles that the column doi names; " + "; ".join(s["name"] for s in note["sources"]),
        "datePublished": note["created"][:10],
        "version": "1.0.0",
        "distribution": [files],
        "recordSet": [records] if parquet else [],
    }


def _json_types() -> list[str]:
    """Front matter with the types of a tar's samples: from the first ones alone `datasets` takes a column of nulls for
    null.
    """
    lines = ["dataset_info:", "  features:", "  - name: jpg", "    dtype: image"]
    lines += [line for name in ("txt", "__key__", "__url__") for line in (f"  - name: {name}", "    dtype: string")]
    lines += ["  - name: json", "    struct:"]
    types = {name: PAIRS.field(name).type for name in FACTS} | {
        "phash": pa.string(),
        "split": pa.string(),
        "group": pa.int64(),
    }
    for name, type_ in types.items():
        kind = "sequence" if pa.types.is_list(type_) else "dtype"
        plain = str(type_.value_type if kind == "sequence" else type_).replace("float", "float32")
        lines += [f"    - name: {name}", f"      {kind}: {plain}"]
    return lines


def _terms(note: dict[str, Any]) -> list[str]:
    pmc = [ACKNOWLEDGEMENT, _TERMS] if any(source["name"] == PMC for source in note["sources"]) else []
    own = [_OWN_TERMS] if any(source["name"].startswith("own data") for source in note["sources"]) else []
    return [*pmc, *own]


def _is_parquet(note: dict[str, Any]) -> bool:
    return bool(note["form"] == "datasets")


def _splits(note: dict[str, Any]) -> list[str]:
    return [split for split in note["splits"] if split in note["counts"]["split"]]


def _example(note: dict[str, Any], split: str) -> list[str]:
    if _is_parquet(note):
        return [
            "from datasets import load_dataset",
            "",
            f'pairs = load_dataset("FOLDER", split="{split}")',
            'print(pairs[0]["image"], pairs[0]["text"])  # an image and its caption',
        ]
    last = sum(shard["split"] == split for shard in note["shards"]) - 1
    return [
        "import webdataset",
        "",
        f'shards = "FOLDER/{split}-{{000000..{last:06d}}}.tar"',
        'for image, text, facts in webdataset.WebDataset(shards).decode("pil").to_tuple("jpg", "txt", "json"):',
        '    print(image.size, text, facts["pair_id"])',
    ]


def _field(name: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": name}}
    if name == "image":
        source["transform"] = {"jsonPath": "bytes"}
    kind = "sc:ImageObject" if name == "image" else "sc:Text"
    return {
        "@type": "cr:Field",
        "@id": f"pairs/{name}",
        "name": name,
        "dataType": kind,
        "source": source,
        "description": _SENTENCES[name],
    }


def _terms_of_croissant() -> dict[str, Any]:
    plain = (
        "citeAs column extract field fileProperty fileObject fileSet format includes isLiveDataset jsonPath key md5 "
        "parentField path "
        "recordSet references regex repeated replace samplingRate separator source subField transform "
        "equivalentProperty"
    )
    return {name: f"cr:{name}" for name in plain.split()}


# The JSON-LD context that Croissant 1.0 prescribes.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **_terms_of_croissant(),
}
