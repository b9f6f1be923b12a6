"""What kind of image a figure is: a cheap guess from the pixels' statistics and the caption's words. Pure, no model.

The pixels tell families apart (drawn on paper, photographed, dark field), the words tell the kinds inside a family;
each kind's score adds both, and a softmax makes a number between 0 and 1 of it. It costs a thousandth of a CLIP's
zero-shot answer and is there before any model is; a compound figure gets the kind that most of its area and words speak
for. The kinds are those groups of BIOMEDICA's taxonomy (Lozano et al. 2025) that a search or a balance would ask for.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import cv2
import numpy as np

from biomedclip_ray.images.resample import Pixels
from biomedclip_ray.schema import KINDS

# What a word of the caption is worth: one that names the kind 3, one that is usual with it 1.
_WORDS: dict[str, tuple[tuple[str, float], ...]] = {
    "micrograph": (
        (
            r"micrographs?|bright[- ]?field|phase[- ]contrast|light microscop\w+|DIC\b|gram[- "
            r"]stain\w*|giemsa|papanicolaou",
            3,
        ),
        (r"microscop\w+|scale bars?|cells|magnification|stained", 1),
    ),
    "fluorescence": (
        (r"(?:immuno)?fluorescen\w+|confocal|DAPI|GFP|hoechst|two-photon|FITC|immunostain\w*|calcium imaging", 3),
        (r"merged?|mcherry|staining|nuclei|scale bars?|co-?locali[sz]\w+", 1),
    ),
    "histology": (
        (
            r"h(?:a?ematoxylin)? ?(?:&|and|-|/) ?e(?:osin)?\b(?: stain\w*)?|ha?ematoxylin|he[- ]stain\w*|(?<=\()he\b|"
            r"histolog\w+|histopatholog\w+|"
            r"immunohistochem\w+|IHC|DAB\b|masson\w*|trichrome|tissue sections?|biops\w+",
            3,
        ),
        (r"sections?|tissues?|stained|staining|original magnification|tumou?r", 1),
    ),
    "electron_micrograph": (
        (r"electron micro\w+|cryo-?EM|[ST]EM\b(?! cells?)|ultrastructur\w+|AFM|atomic force", 3),
        (r"micrographs?|scale bars?|negative[- ]stain\w*", 1),
    ),
    "radiology": (
        (
            r"radiograph\w*|x-?rays?|computed tomograph\w+|CT\b|MRI\b|magnetic resonance|ultrasound|ultrasonograph\w*|"
            r"sonogra\w+|echocardiogra\w+|PET\b|angiogra\w+|mammogra\w+|T[12]-weighted|scintigra\w+",
            3,
        ),
        (r"axial|coronal|sagittal|contrast-enhanced|lesions?|lungs?|chest|arrows?", 1),
    ),
    "gel": (
        (
            r"western[- ]blot\w*|immuno-?blot\w*|SDS-?PAGE|gels?\b|southern blot\w*|northern blot\w*|agarose|EMSA|"
            r"electrophore\w+|blots?\b",
            3,
        ),
        (r"lanes?|bands?|loading control|kDa|ladder|β-actin|GAPDH", 1),
    ),
    "chart": (
        (
            r"bar (?:chart|graph|plot)s?|histograms?|box ?plots?|scatter "
            r"?plots?|survival|kaplan[–-]meier|ROC\b|forest plot|"
            r"dose[- ]response|bars? (?:show|represent|indicate)\w*|error bars?|time course|volcano "
            r"plot|violin|curves?|"
            r"line graph|principal component|PCA|flow cytometry|funnel plot",
            3,
        ),
        (
            r"mean|SEM|s\.?d\.?\b|p ?[<=]|percentage|axis|levels?|n ?= "
            r"?\d+|plots?|standard|correlation|distribution|versus",
            1,
        ),
    ),
    "heat_map": (
        (r"heat ?maps?|hierarchical(?:ly)? cluster\w*|correlation matri\w+|confusion matri\w+|contact maps?", 3),
        (r"colou?r scale|colou?r bar|z-?scores?|expression matrix|rows?|columns?", 1),
    ),
    "signal": (
        (
            r"ECG|EKG|electrocardiogra\w*|EEG|electroencephalogra\w*|EMG|spectr(?:um|a)\b|chromatogra\w+|NMR|"
            r"traces?\b|recordings?|action potentials?|waveforms?|mass spectr\w+",
            3,
        ),
        (r"leads?\b|patch[- ]clamp|voltage|amplitude|mV|peaks?|beats?", 1),
    ),
    "diagram": (
        (
            r"pathways?|schematic\w*|diagram\w*|flow ?charts?|workflows?|models? "
            r"(?:of|for|depicting|showing|illustrating)|"
            r"overview|illustrat\w+|cartoon|PRISMA|CONSORT|scheme|network|proposed (?:model|mechanism)s?",
            3,
        ),
        (r"signal+ing|mechanisms?|arrows?|activat\w+|inhibit\w+|steps?|design|phosphorylat\w+|protocol|interact\w+", 1),
    ),
    "chemical_structure": (
        (
            r"chemical structures?|structural formulae?|molecular structures? of|synthesis of|reagents and conditions|"
            r"synthetic route",
            3,
        ),
        (r"compounds?|reagents?|yield|derivatives?|structures? of", 1),
    ),
    "sequence": (
        (r"sequence alignments?|alignments? of|multiple alignment|sequence logo|phylogen\w+|dendrogram|cladogram", 3),
        (r"conserved residues|amino acid sequences?|nucleotide sequences?|clustal\w*|bootstrap|residues|aligned", 1),
    ),
    "table": ((r"tables?|tabulat\w+|checklist", 3), (r"list of|summary of|characteristics", 1)),
    "map": (
        (r"maps? (?:of|show\w*)|geographic\w*|study (?:area|sites?)|sampling sites?|locations? of", 3),
        (r"region|countr\w+|provinces?|districts?|distribution of|spatial", 1),
    ),
    "photograph": (
        (
            r"photo(?:graph)?s?\b|photographic|intra-?operative|endoscop\w+|colonoscop\w+|fundus|dermoscop\w+|clinical "
            r"(?:image|appearance|presentation|picture|photo\w*)s?|gross "
            r"(?:appearance|specimen|pathology)|macroscopic\w*",
            3,
        ),
        (r"patient|skin|lesions?|surg\w+|setup|device|apparatus", 1),
    ),
    "equation": ((r"equations?|formulae?\b", 3), (r"where\b", 0.5)),
}
_PATTERNS = {
    kind: tuple((re.compile(rf"\b(?:{words})", re.IGNORECASE), worth) for words, worth in pairs)
    for kind, pairs in _WORDS.items()
}
# The opening sentence says what is seen; the rest says how it was made.
_OPENING_WORTH = 2.0
_TEXT_SCALE = 1.4


@dataclass(frozen=True, slots=True)
class _Looks:
    """Shares of an image's pixels, 0 to 1, but where it says otherwise."""

    paper: float
    """Near white without colour."""
    dark: float
    """Of what is no paper."""
    flat: float
    """Equal to their neighbours but for JPEG's noise."""
    texture: float
    """No paper, and neighbours that differ a little, as in photographs; ink jumps, and fills are flat."""
    edges: float
    """Jumps of luma: ink, text."""
    colour: float
    """Clearly coloured."""
    vivid_on_dark: float
    """Of the pixels that are neither dark nor paper: purely red, green or blue; 0 where little is dark."""
    stain: float
    """Pink to purple and not dark, as haematoxylin and eosin are."""
    tones: float
    """Entropy of the luma of what is no paper, over its largest value: 1 for photographs, low for drawings."""
    rules: float
    """Longest straight horizontal or vertical run of ink, as a share of the side: axes, frames, tables."""


def figure_kind(image: Pixels, text: str) -> tuple[str, float]:
    """The likeliest kind and its share of the score, 0 to 1.

    Args:
        image: (h, w, 3) uint8 RGB; 400 pixels a side are enough, more only cost.
        text: caption, or "" where there is none.
    """
    looks = _look(image)
    seen, read = _seen(looks), _read(text)
    scores = np.array([seen[kind] + read[kind] for kind in KINDS])
    shares = np.exp(scores - scores.max())
    best = int(shares.argmax())
    return KINDS[best], float(shares[best] / shares.sum())


def _look(image: Pixels) -> _Looks:
    step = max(1, min(image.shape[:2]) // 256)
    rgb = np.ascontiguousarray(image[::step, ::step])
    if min(rgb.shape[:2]) == 1:  # with min_side 1 a line is an image, and has neighbours on both sides
        rgb = rgb.repeat(2, 0).repeat(2, 1)
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    red, green, blue = (rgb[:, :, k].astype(np.int16) for k in range(3))
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = high - low
    jump = cv2.absdiff(luma[1:, 1:], luma[:-1, 1:])
    jump = np.maximum(jump, cv2.absdiff(luma[1:, 1:], luma[1:, :-1]))
    paper = (luma >= 235) & (chroma < 20)
    dark = luma < 40
    content = max(1, int(np.count_nonzero(~paper)))
    night = np.count_nonzero(dark) / content
    lit = max(1, int(np.count_nonzero(~dark & ~paper)))
    pure = (chroma > 60) & (chroma * 10 > high * 6) & ~dark
    stain = (red > green + 12) & (blue > green + 5) & (luma > 60) & (luma < 235)
    histogram = np.bincount(luma[~paper] >> 2, minlength=64) if not paper.all() else np.ones(1)
    parts = histogram[histogram > 0] / histogram.sum()
    ink = (luma < 130).astype(np.float32)
    return _Looks(
        paper=float(paper.mean()),
        dark=float(night),
        flat=float((jump <= 3).mean()),
        texture=float(((jump > 3) & (jump <= 40) & ~paper[1:, 1:]).mean()),
        edges=float((jump > 40).mean()),
        colour=float((chroma > 40).mean()),
        vivid_on_dark=float(np.count_nonzero(pure) / lit) if dark.mean() > 0.1 and night > 0.25 else 0.0,
        stain=float(stain.mean()),
        tones=float(-(parts * np.log(parts)).sum() / math.log(64)),
        rules=float(max(ink.mean(axis=0).max(), ink.mean(axis=1).max())),
    )


def _ramp(value: float, low: float, high: float) -> float:
    """0 below `low`, 1 above `high`, straight between; falling where low > high."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _seen(looks: _Looks) -> dict[str, float]:
    """Each kind's score by the pixels; written as families first, details after."""
    vivid = _ramp(looks.vivid_on_dark, 0.15, 0.5)
    drawn = (
        _ramp(looks.paper, 0.15, 0.45) * _ramp(looks.flat, 0.35, 0.6) * (1 - vivid) * _ramp(looks.texture, 0.35, 0.15)
    )
    filled = max(1 - _ramp(looks.paper, 0.2, 0.5), _ramp(looks.texture, 0.2, 0.35)) * _ramp(looks.tones, 0.35, 0.6)
    grey = 1 - _ramp(looks.colour, 0.02, 0.12)
    night = _ramp(looks.dark, 0.25, 0.5) * max(vivid, 1 - _ramp(looks.paper, 0.2, 0.5))
    stain = _ramp(looks.stain, 0.15, 0.45) * _ramp(looks.flat, 0.9, 0.7)
    sparse = _ramp(looks.paper, 0.6, 0.9)
    ruled = _ramp(looks.rules, 0.4, 0.75)
    day = filled * (1 - night)
    return {
        "micrograph": 3 * day * (1 - 0.4 * stain) - 4 * drawn + 0.4 * day * _ramp(looks.tones, 0.9, 0.6),
        "fluorescence": 4 * night * vivid + 1.0 * night * grey - 4 * drawn - 2 * day,
        "histology": 3 * day * stain + 1.2 * day - 4 * drawn - 1.5 * grey - night,
        "electron_micrograph": 2.2 * day * grey - 3 * drawn - 2 * _ramp(looks.colour, 0.05, 0.2),
        "radiology": 3 * night * grey + 1.2 * filled * grey - 4 * drawn - 1.5 * _ramp(looks.colour, 0.1, 0.3),
        "gel": 2.2 * (1 - drawn) * grey * (1 - night) + 0.8 * grey * _ramp(looks.edges, 0.06, 0.01) - 2 * drawn,
        "chart": 2.6 * drawn + 1.2 * drawn * ruled - 3 * filled,
        "heat_map": 1.6 * _ramp(looks.colour, 0.2, 0.5) * _ramp(looks.texture, 0.25, 0.1) + 0.8 * drawn - 2 * night,
        "signal": 1.4 * drawn + 0.6 * sparse - 2.5 * filled,
        "diagram": 2.3 * drawn
        + 0.8 * _ramp(looks.flat, 0.5, 0.8) * (1 - 0.5 * ruled)
        - 2 * filled * _ramp(looks.flat, 0.6, 0.3),
        "chemical_structure": 1.2 * drawn * grey + 0.8 * sparse - 3 * filled,
        "sequence": 1.0 * drawn - 2.5 * filled + 0.6 * _ramp(looks.edges, 0.15, 0.3),
        "table": 1.0 * drawn * grey + 0.4 * drawn * ruled - 3 * filled,
        "map": 1.0 * drawn + 0.5 * _ramp(looks.colour, 0.1, 0.4) - 1.5 * filled * _ramp(looks.flat, 0.6, 0.3),
        "photograph": 1.6 * filled * (1 - grey) + 0.8 * filled * _ramp(looks.tones, 0.8, 0.95) - 4 * drawn,
        "equation": 0.8 * drawn * grey + 1.0 * _ramp(looks.paper, 0.85, 0.97) * grey - 3 * filled,
    }


def _read(text: str) -> dict[str, float]:
    """Each kind's score by the words; repeated words count ever less."""
    opening = re.split(r"(?<=[.;])\s", text, maxsplit=1)[0]
    scores = {}
    for kind, patterns in _PATTERNS.items():
        worth = 0.0
        for pattern, value in patterns:
            worth += value * (math.log1p(len(pattern.findall(text))) + _OPENING_WORTH * bool(pattern.search(opening)))
        scores[kind] = _TEXT_SCALE * math.log1p(worth)
    return scores
