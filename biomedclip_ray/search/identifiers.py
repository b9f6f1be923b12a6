"""Numbers and links of articles in what somebody types: PMCIDs, PMIDs, DOIs. Needs no Lance, so that the server's
ingress can ask too.
"""

from __future__ import annotations

import re

NUMBER_ALONE = re.compile(r"[\s\"“”]*([0-9]{5,9})[\s\"“”]*")
"""A text that is a number and nothing else may be a PMID."""

_PMID = re.compile(r"\bpmid:?\s*([0-9]{1,9})\b", re.IGNORECASE)
_PUBMED_LINK = re.compile(
    r"\S*(?:pubmed\.ncbi\.nlm\.nih\.gov|ncbi\.nlm\.nih\.gov/pubmed|/MED)/([0-9]{1,9})\S*", re.IGNORECASE
)
_DOI_LINK = re.compile(r"(?:\S*\bdoi\.org/|\bdoi:\s*)(?=10\.[0-9]{4,9}/)", re.IGNORECASE)
_PMC_LINK = re.compile(r"\S*/(PMC[0-9]+)\S*", re.IGNORECASE)
_BARE_PMC = re.compile(r"\b(?:pmc\s?(?=[0-9]{4})|(?-i:PMC))([0-9]+)(?:\.[0-9]+(?:/[^\s\"]*)?)?(?![\w.])", re.IGNORECASE)
_ONE = r"(?:PMC[0-9]+|PMID[0-9]+|10\.[0-9]{4,9}/[^\s\"“”<>]+)"
_ONLY = re.compile(rf"[\s\"“”,;]*{_ONE}(?:[\s\"“”,;]+{_ONE})*[\s\"“”,;]*")
_MOST_CHARS = 500


def as_words(query: str) -> str:
    """Links and numbers of articles as the words that the index holds for them (`folding.document`).

    >>> as_words("https://pubmed.ncbi.nlm.nih.gov/36908351/").strip()
    'PMID36908351'
    """
    text = _PUBMED_LINK.sub(r" PMID\1 ", query)
    text = _PMC_LINK.sub(lambda found: f" {found[1].upper()} ", text)
    text = _BARE_PMC.sub(r" PMC\1 ", text)
    text = _PMID.sub(r" PMID\1 ", text)
    return _DOI_LINK.sub(" ", text)


def names_articles(query: str) -> bool:
    """Whether a text is nothing but numbers or links of articles: then it is meant as words, whatever figures are
    compared with.

    >>> names_articles('"https://doi.org/10.1000/AB"'), names_articles("PMC10009416"), names_articles("PMC3 in a gel")
    (True, True, False)
    """
    if len(query) > _MOST_CHARS:
        return False
    return bool(NUMBER_ALONE.fullmatch(query) or _ONLY.fullmatch(as_words(query)))
