"""A JATS figure element -> a Figure: images and rights; what is a figure, and whose image is whose. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lxml import etree

from biomedclip_ray.images.formats import ARTICLE_EXTENSIONS, has_extension
from biomedclip_ray.jats.legends import GRAPHIC, LANGUAGE, has_caption, legend, lenders
from biomedclip_ray.jats.licenses import stated_license
from biomedclip_ray.jats.media import VECTOR_EXTENSIONS, media_name
from biomedclip_ray.jats.text import text_of

_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True, slots=True)
class Mention:
    """A sentence that cites a figure; `in_body`: in an article's or sub-article's body, not in an
    abstract or appendix.
    """

    sentence: str
    in_body: bool


@dataclass(frozen=True, slots=True)
class Figure:
    """One `fig`. `graphics` holds, for each image, the names of its alternative files, best first.

    The captions of the groups around it stand before its own; the label that it lacks is its group's. Inside another
    figure, one without a caption takes that figure's. A group with images of its own, a table, and a captioned graphic
    outside any figure are figures too. `caption` is the XML's text, white space normalised ("" where there is none);
    `plain_caption` is what trains: in one language, 10^4 for a superscript number over a number, superscript citations
    left out. `license` is the figure's own: None means the article's, "unknown" that its own permissions name no known
    licence. `adapted`: taken over from elsewhere, or its rights are not the article's.
    """

    xml_id: str | None
    label: str | None
    caption: str
    mentions: tuple[Mention, ...]
    license: str | None
    adapted: bool
    graphics: tuple[tuple[str, ...], ...]
    plain_caption: str = ""
    is_table: bool = False


_CITED = r"(?:\bet al\b|\[\s*\d|\bref(?:s|erences?)?\b|\b(?:19|20)\d\d\b)"
# "Smith", "Smith and Jones", "the work of Smith".
_NAMES = r"(?-i:(?:the [a-z]+ of )?[A-Z][\w'’-]+(?:,? (?:and|&) [A-Z][\w'’-]+|(?:, [A-Z][\w'’-]+)*)?)"
_OF_OTHERS = r"(?! ?(?:own|(?:an? |the |study )?authors?)\b)"
_IMAGE = r"(?:figure|image|photo|photograph|picture|illustration|drawing|map)s?"
# All that begins with a word stands behind one \b, so that most places in a caption are passed by at once.
_ADAPTED = re.compile(
    r"\b(?:"
    r"(?:adapted|reproduced|reprinted|republished|redrawn|reused)\b[^.;]{0,40}?\b(?:from|by|after|with|under|courtesy)\b"
    rf"|modified (?:and \w+ )?(?:from|after|with permission)\b[^.;]{{0,80}}?(?:{_CITED}|\bpermission|\bcopyright)"
    rf"|(?:taken|obtained|borrowed|extracted) from (?:ref(?:s|erence)?\b|\[\s*\d|{_NAMES} ?(?:et "
    rf"al\b|\[\s*\d|\(\d{{4}}))"
    rf"|{_IMAGE} (?:was |were )?(?:taken |obtained |extracted |downloaded )?from "
    rf"(?:ref(?:s|erence)?\b|\[\s*\d|wiki|https?:|www\.|the (?:internet|public domain)|{_NAMES} ?(?:et al\b|\[\s*\d))"
    rf"|{_IMAGE} (?:credits?\b(?!:? (?:an? |the )?author)|(?:was |were )?(?:kindly )?provided by\b)"
    r"|permission (?:was |has been )?(?:obtained|granted|given) (?:from|by) (?:the )?"
    r"(?:publisher|journal|copyright|editor)"
    rf"|sources?: {_OF_OTHERS}[^;]{{0,100}}?(?:{_CITED}|https?:|\bwww\.|\bwiki)|sources? \[\d"
    rf"|{_IMAGE} sources?:{_OF_OTHERS}"
    r"|(?:with|by) (?:\w+ ){0,2}permission\b|courtesy\b)"
    r"|(?<![\w®])(?:©|\(c\)|copyright) ?(?!(?:\d{4},? )?(?:by )?(?:the )?authors?\b)(?:\d{4}\b|(?-i:[A-Z]))"
    rf"|\(after {_NAMES} ?(?:et al\b|\[\s*\d)"
    rf"|(?:^|[.;(] ?)credits?:{_OF_OTHERS}",
    re.IGNORECASE,
)
_PANELS = re.compile(r"\(a\b(?![a-z'’])|\bb\)")
_PANEL_C = re.compile(r"\(c\)", re.IGNORECASE)
# Looked for first: the expression above takes 140 us a caption, these words 30 us.
_ADAPTED_WORDS = (
    "adapted",
    "reproduced",
    "reprinted",
    "republished",
    "redrawn",
    "reused",
    "modified",
    "permission",
    "(after",
    "courtesy",
    "taken from",
    "obtained from",
    "borrowed from",
    "extracted from",
    "source",
    "credit",
    "provided by",
    "copyright",
    "©",
    "(c)",
    *(
        f"{word} from"
        for word in "figure image images photo photos picture pictures illustration map downloaded".split()
    ),
)
# Of SciELO's and others' alternatives: "scielo-267x140" is a thumbnail, "scielo-web" a full image.
_STATED_SIZE = re.compile(r"(\d{2,5})\s*x\s*(\d{2,5})")
_THUMBNAIL_SIDE = 320
_THUMBNAIL_WORDS = re.compile(r"thumb|\bicon\b|\bpreview\b|\bsmall\b|\btiny\b")
# What stands in these is no image of the figure: glyphs in a caption, logos of a licence, icons in a table's cells.
_APART = frozenset(
    "fig fig-group table-wrap table-wrap-group table supplementary-material disp-formula inline-formula label caption"
    " alt-text attrib permissions".split()
)


def figure_of(fig: etree._Element, mentions: tuple[Mention, ...]) -> Figure:
    """The Figure of a `fig`, of a group with images of its own, of a table with an image, or of a captioned graphic."""
    credits: list[etree._Element] = []
    permissions: list[etree._Element] = []
    graphics: list[tuple[str, ...]] = []
    if fig.tag in GRAPHIC:
        _add_image(_forms(fig), graphics, permissions)
    else:
        for child in [*fig, *_translated(fig)]:
            if child.tag in ("attrib", "copyright-statement"):
                credits.append(child)
            elif child.tag == "permissions":
                permissions.append(child)
            if next(child.iter(*GRAPHIC), None) is not None:
                _graphics(child, graphics, permissions)
    for lender in lenders(fig):
        credits += [child for child in lender if child.tag in ("attrib", "copyright-statement")]
        permissions = permissions or lender.findall("permissions")
    label, caption, plain_caption = legend(fig, _talking(fig))
    license_ = _own_license(permissions)
    credit = " ".join(map(text_of, (*credits, *permissions)))
    adapted = license_ == "unknown" or _taken_over(f"{caption} {credit}")
    is_table = fig.tag == "table-wrap"
    return Figure(fig.get("id"), label, caption, mentions, license_, adapted, tuple(graphics), plain_caption, is_table)


def is_figure(element: etree._Element) -> bool:
    """Is it one of the article's figures?

    A fig is, but where each of its images has a caption of its own, and then these are. A group or a table with images
    of its own is, and so is a graphic with label or caption that no figure, table or supplement holds.
    """
    if element.tag == "fig":
        return not _captioned(element) or holds_image(element)
    if element.tag in GRAPHIC:
        return _stands_alone(element)
    return holds_image(element) and not _is_of_its_figs(element)


def _is_of_its_figs(group: etree._Element) -> bool:
    """Whether a group's image is that of the figs in it, which say what it shows and have none: in several languages,
    say.
    """
    figs = group.findall("fig") if group.tag == "fig-group" else []
    return bool(figs) and not any(holds_image(fig) or _captioned(fig) for fig in figs)


def holds_image(element: etree._Element) -> bool:
    """Does a figure, a group or a table have an image of its own, outside its figures and cells?"""
    graphics: list[tuple[str, ...]] = []
    for child in element:
        _graphics(child, graphics, [])
    return bool(graphics)


def _talking(fig: etree._Element) -> list[etree._Element]:
    """The figure's own graphics that have label or caption."""
    if fig.tag in GRAPHIC:
        return []
    graphics = [g for g in fig.iter(*GRAPHIC) if len(g) and not _stands_alone(g)]
    return [g for g in graphics if next(g.iterancestors(*_APART), None) is fig]


def _captioned(holder: etree._Element) -> list[etree._Element]:
    """The graphics of a figure or group that are figures themselves: where several have captions of their own."""
    own = [g for g in holder.iter(*GRAPHIC) if len(g) and has_caption(g) and _holder(g) is holder and _image(g)]
    return own if len(own) > 1 else []


def _stands_alone(graphic: etree._Element) -> bool:
    if not len(graphic) or not (has_caption(graphic) or graphic.find("label") is not None) or not _image(graphic):
        return False
    holder = _holder(graphic)
    if holder is not None:
        return holder.tag in ("fig", "fig-group") and graphic in _captioned(holder)
    if graphic.tag == "media":
        return False  # a supplement: "Authors' original file for figure 1"
    return next(filter(has_caption, _forms(graphic)), graphic) is graphic


def _holder(graphic: etree._Element) -> etree._Element | None:
    """What an image belongs to. Forms of one image inside a figure belong to each other, and are no figures."""
    inside = graphic.iterancestors("alternatives", *_APART)
    holder = next(inside, None)
    if holder is not None and holder.tag == "alternatives":
        return holder if next(inside, None) is not None else None
    return holder


def _forms(graphic: etree._Element) -> list[etree._Element]:
    """The forms of one image that a graphic is one of."""
    parent = graphic.getparent()
    if parent is None or parent.tag != "alternatives":
        return [graphic]
    return [form for child in parent if child.tag not in _APART for form in child.iter(*GRAPHIC)]


_NUMBER = re.compile(r"\d+")


def _translated(fig: etree._Element) -> list[etree._Element]:
    """Where a fig of a group has no image: the parts of what has it.

    That is the group itself, or another fig of it that says the same in another language: with another xml:lang, or
    with the same numbers in its label.
    """
    group = fig.getparent()
    if fig.tag != "fig" or group is None or group.tag != "fig-group" or holds_image(fig) or _captioned(fig):
        return []
    if holds_image(group) and _is_of_its_figs(group):
        return [part for part in group if part.tag not in ("label", "caption", "fig")]
    for other in group.iterchildren("fig"):
        if other is not fig and holds_image(other):
            languages = fig.get(LANGUAGE), other.get(LANGUAGE)
            numbers = [_NUMBER.findall(text_of(label)) for each in (fig, other) for label in each.findall("label")[:1]]
            if (all(languages) and languages[0] != languages[1]) or (numbers[:1] == numbers[1:] != [[]]):
                return [part for part in other if part.tag not in ("label", "caption")]
    return []


def _taken_over(text: str) -> bool:
    low = text.lower()
    if "(c)" in low and _PANELS.search(low):  # "(c)" is a panel's label then, and no copyright sign
        text, low = _PANEL_C.sub(" ", text), low.replace("(c)", " ")
    return any(word in low for word in _ADAPTED_WORDS) and _ADAPTED.search(text) is not None


def _graphics(element: etree._Element, graphics: list[tuple[str, ...]], permissions: list[etree._Element]) -> None:
    """Collect the images at and below an element, and permissions that stand at a graphic."""
    tag = element.tag
    if tag in GRAPHIC:
        if not _stands_alone(element):
            _add_image([element], graphics, permissions)
    elif tag == "alternatives":
        forms = [form for child in element if child.tag not in _APART for form in child.iter(*GRAPHIC)]
        _add_image(forms, graphics, permissions)
    elif tag not in _APART:
        for child in element:
            _graphics(child, graphics, permissions)


def _add_image(forms: list[etree._Element], graphics: list[tuple[str, ...]], permissions: list[etree._Element]) -> None:
    names = [(_rank(form, name), name) for form in forms if (name := _image(form))]
    names.sort(key=lambda form: form[0])
    if names:
        graphics.append(tuple(dict.fromkeys(name for _, name in names)))
    for form in forms:
        permissions.extend(form.iterfind("permissions"))


def _image(element: etree._Element) -> str | None:
    """The file name of a graphic; of a media element only where it is an image, not a film or a spreadsheet."""
    href = element.get(_HREF) or ""
    if element.tag == "media" and element.get("mimetype") != "image" and not has_extension(href, ARTICLE_EXTENSIONS):
        return None
    return media_name(href) or None


def _rank(form: etree._Element, name: str) -> tuple[int, int]:
    """Among alternatives: full images, then vector forms (not decoded here), then GIFs, then thumbnails, the largest
    first.
    """
    about = f"{form.get('content-type') or ''} {form.get('specific-use') or ''}".lower()
    stated = _STATED_SIZE.search(about)
    side = max(int(stated[1]), int(stated[2])) if stated else 0
    if 0 < side <= _THUMBNAIL_SIDE or _THUMBNAIL_WORDS.search(about) or "thumb" in name.lower():
        return 3, -side
    if has_extension(name, ("gif",)):
        return 2, 0
    return (1 if has_extension(name, VECTOR_EXTENSIONS) else 0), 0


def _own_license(permissions: list[etree._Element]) -> str | None:
    """The licence that a figure states for itself; "unknown" where it only says that the rights are somebody's."""
    for element in permissions:
        code, _ = stated_license(element)
        if code:
            return code
    return "unknown" if any(text_of(element) for element in permissions) else None
