#!/usr/bin/env bash
# Guess: lxml's `XMLParser(collect_ids=False)` only leaves out the table of ids, which saves time where nobody looks up an id.
# Seen (lxml 6.1.3, libxml2 2.14.6): it also makes the parser load the DTD that a DOCTYPE names, with load_dtd=False (the default) too: what
# says "skip the ids" and what says "load the DTD" are bits of one field of libxml2, which loads whenever any of them is set. An article
# of PubMed Central, whose DOCTYPE names an http address, then ends in XMLSyntaxError ("Attempt to load network entity"). A document
# without DOCTYPE parses, so a test on small XML of one's own does not show it.
# Matters for: whoever takes the option from lxml's advice on speed and parses JATS, XHTML or anything else that names its DTD.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'lxml==6.1.3'
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from lxml import etree

BODY = b'<article><p id="a">text</p></article>'
DOCTYPE = b'<!DOCTYPE article PUBLIC "-//NLM//DTD JATS (Z39.96) v1.4//EN" "http://dtd.invalid/JATS-archivearticle1-4.dtd">'


def parsed(document, **options):
    try:
        said = etree.fromstring(document, etree.XMLParser(**options)).tag
    except etree.XMLSyntaxError as error:
        said = f"XMLSyntaxError: {error.msg}"
    print(f"DOCTYPE {'yes' if document != BODY else 'no'}, {options or 'no options'}: {said}")
    return said


plain = parsed(DOCTYPE + BODY)
without_table = parsed(DOCTYPE + BODY, collect_ids=False)
told_not_to = parsed(DOCTYPE + BODY, collect_ids=False, load_dtd=False, no_network=True)
small = parsed(BODY, collect_ids=False)
print("lxml", etree.LXML_VERSION, "libxml2", etree.LIBXML_VERSION)
fails = all("network entity" in said for said in (without_table, told_not_to))
sys.exit(0 if plain == small == "article" and fails else 1)
PYTHON
