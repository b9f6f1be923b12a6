"""Words and JATS of the sample's articles: pure strings, in the forms that PubMed Central's XML really has.

A caption is written as markup first, and its truth is the same text with the tags taken out, so both can never differ.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from biomedclip_ray.sample.canvas import Rng, pick

DRUGS = ("cisplatin", "metformin", "dexamethasone", "rapamycin", "tamoxifen", "vehicle")
TISSUES = ("liver", "kidney", "lung", "heart", "brain", "colon", "skin", "spleen")
HOSTS = ("mice", "rats", "patients", "zebrafish", "cultured cells")
JOURNALS = ("Sample Journal of Imaging", "Sample Biology", "Annals of Sample Medicine", "Sample ONE")
LICENSE_URLS = {
    "CC0": "http://creativecommons.org/publicdomain/zero/1.0/",
    **{
        f"CC {code}": f"http://creativecommons.org/licenses/{code.lower()}/4.0/"
        for code in ("BY", "BY-SA", "BY-ND", "BY-NC", "BY-NC-ND")
    },
}
PLOTS = ("ecg", "survival_curve", "bar_chart", "heat_map", "pathway")
_DOCTYPE = (
    '<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) Journal Archiving and Interchange DTD v1.3 20210610//EN" '
    '"JATS-archivearticle1-3.dtd">\n'
)


@dataclass
class FigureXml:
    """What a figure needs to be written: `graphics` are hrefs; one that is a tuple becomes `alternatives`."""

    xml_id: str | None
    label: str
    title: str
    body: str
    graphics: list[str | tuple[str, str]]
    in_paragraph: bool
    mentions: list[str] = field(default_factory=list)


def plain(markup: str) -> str:
    """Markup -> its text: tags out, entities resolved, white space collapsed."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())


def tail(rng: Rng, kind: str) -> str:
    """One or two closing sentences of a caption, as markup; they tell the conditions, not what is seen."""
    drug, tissue, host = pick(rng, DRUGS), pick(rng, TISSUES), pick(rng, HOSTS)
    n = int(rng.integers(3, 12))
    if kind in PLOTS:
        first = (
            f"Data from {tissue} of {host} given {drug} (<italic>n</italic> = {n}).",
            f"<italic>P</italic> &lt; 0.0{n % 5 + 1} against vehicle; {tissue} samples, {drug}.",
            f"Summary of {n} independent experiments with {drug} in {host}.",
        )
    else:
        first = (
            f"Samples from {tissue} of {host} treated with {drug} for {6 * n} h.",
            f"Representative of {n} independent {tissue} preparations ({drug}).",
            f"{host.capitalize()} received {drug}; 10<sup>{n % 5 + 3}</sup> events per sample, {tissue}.",
        )
    second = (
        "",
        "",
        f' Prepared as described<sup><xref ref-type="bibr" rid="B1">{n}</xref></sup>.',
        " H<sub>2</sub>O was used as control.",
        " See Methods for details &amp; settings.",
    )
    return pick(rng, first) + pick(rng, second)


def mention(rng: Rng, figure: FigureXml) -> str:
    """A sentence of the body that names the figure, as markup."""
    link = f'<xref ref-type="fig" rid="{figure.xml_id}">{figure.label}</xref>'
    drug, tissue, host = pick(rng, DRUGS), pick(rng, TISSUES), pick(rng, HOSTS)
    return pick(
        rng,
        (
            f"As shown in {link}, {drug} changed the {tissue} response of {host}.",
            f"The {tissue} of treated {host} differed from that of controls ({link}).",
            f"We next examined {tissue} after {drug} ({link}), with <italic>n</italic> = {int(rng.integers(3, 30))}.",
        ),
    )


def title(rng: Rng) -> str:
    verb = pick(rng, ("alters", "protects", "does not change", "remodels"))
    what = pick(rng, ("regeneration", "metabolism", "inflammation", "perfusion", "signalling"))
    return f"{pick(rng, DRUGS).capitalize()} {verb} {pick(rng, TISSUES)} {what} in {pick(rng, HOSTS)}"


def figure_xml(figure: FigureXml) -> str:
    """A `fig` element."""
    graphics = ""
    for item in figure.graphics:
        if isinstance(item, tuple):
            image, thumb = item
            graphics += (
                f'<alternatives><graphic content-type="image" xlink:href="{image}"/>'
                f'<graphic content-type="thumb" xlink:href="{thumb}"/></alternatives>'
            )
        else:
            graphics += f'<graphic xlink:href="{item}"/>'
    blocks = f"<title>{figure.title}</title>" if figure.title else ""
    blocks += f"<p>{figure.body}</p>" if figure.body else ""
    identifier = f' id="{figure.xml_id}"' if figure.xml_id else ""
    return (
        f"<fig{identifier}>"
        + (f"<label>{figure.label}</label>" if figure.label else "")
        + (f"<caption>{blocks}</caption>" if blocks else "")
        + f"{graphics}</fig>"
    )


def article_xml(rng: Rng, facts: dict[str, str], figures: Sequence[FigureXml], floats: bool, together: str) -> bytes:
    """The whole article. `facts`: pmcid, version, doi (may be empty), pmid, title, journal, year, license (code or "");
    `together` is a sentence that names several figures in one xref, or empty; `floats` puts figures at the end."""
    ids = f'<article-id pub-id-type="pmcid">{facts["pmcid"]}</article-id>'
    ids += f'<article-id pub-id-type="pmcid-ver">{facts["pmcid"]}.{facts["version"]}</article-id>'
    for kind in ("pmid", "doi"):
        ids += f'<article-id pub-id-type="{kind}">{facts[kind]}</article-id>' if facts[kind] else ""
    url = LICENSE_URLS.get(facts["license"])
    permissions = (
        f'<permissions><license xlink:href="{url}"><license-p>Distributed under '
        f"{facts['license']}.</license-p></license>"
        "</permissions>"
        if url
        else ""
    )
    sections = []
    for figure in figures:
        element = figure_xml(figure)
        before = f"The {pick(rng, TISSUES)} was studied in {pick(rng, HOSTS)}. " + " ".join(figure.mentions)
        after = f"This held for {int(rng.integers(3, 40))} repeats."
        if floats:
            sections.append(f"<p>{before} {after}</p>")
        elif figure.in_paragraph:
            sections.append(f"<p>{before} {element} {after}</p>")
        else:
            sections.append(f"<p>{before} {after}</p>{element}")
    keywords = "".join(f"<kwd>{word}</kwd>" for word in (pick(rng, TISSUES), pick(rng, DRUGS)))
    ending = f"<p>{together}</p>" if together else ""
    group = f"<floats-group>{''.join(figure_xml(f) for f in figures)}</floats-group>" if floats and figures else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        + (_DOCTYPE if rng.random() < 0.67 else "")
        + '<article article-type="research-article" xmlns:xlink="http://www.w3.org/1999/xlink"><front><journal-meta>'
        f"<journal-title-group><journal-title>{facts['journal']}</journal-title></journal-title-group></journal-meta>"
        f"<article-meta>{ids}<title-group><article-title>{facts['title']}</article-title></title-group>"
        f'<pub-date pub-type="epub"><day>1</day><month>3</month><year>{facts["year"]}</year></pub-date>{permissions}'
        f"<abstract><p>{facts['title']}, a generated article.</p></abstract><kwd-group>{keywords}</kwd-group>"
        "</article-meta></front><body><sec><title>Introduction</title><p>This article is generated, its figures are "
        f"drawn; it reports nothing.</p></sec><sec><title>Results</title>{''.join(sections)}{ending}</sec></body>"
        '<back><ref-list><ref id="B1"><mixed-citation>A sample reference.</mixed-citation></ref></ref-list></back>'
        f"{group}</article>\n"
    )
    return text.encode()
