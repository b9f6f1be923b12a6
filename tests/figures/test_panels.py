from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from biomedclip_ray.figures.letters import find_letters
from biomedclip_ray.figures.panels import Panel, split_panels
from biomedclip_ray.sample import plots

Box = tuple[float, float, float, float]


def overlap(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def by_label(panels: list[Panel]) -> dict[str | None, Box]:
    return {panel.label: panel.box for panel in panels}


def grid(
    columns: int, rows: int, gap: int, letters: str, corner: str = "upper left"
) -> tuple[np.ndarray, dict[str, Box]]:
    """Tinted tiles of 200 x 160 with noise and, in a corner of each, a letter."""
    rng = np.random.default_rng(7)
    width, height = columns * (200 + gap) - gap, rows * (160 + gap) - gap
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    face = ImageFont.load_default(26)
    boxes = {}
    for k in range(columns * rows):
        x, y = (k % columns) * (200 + gap), (k // columns) * (160 + gap)
        tone = np.array([150 + 25 * (k % 4), 190 - 20 * (k % 3), 175], float)
        tile = np.clip(tone + rng.normal(0, 6, (160, 200, 1)), 0, 255).astype(np.uint8)
        picture.paste(Image.fromarray(tile), (x, y))
        draw.ellipse((x + 70, y + 50, x + 130, y + 110), fill=(90, 40, 110))
        if k < len(letters):
            left = x + (8 if "left" in corner else 172)
            draw.text(
                (left, y + (2 if "upper" in corner else 126)), letters[k], fill="black", font=face, stroke_width=1
            )
            boxes[letters[k]] = (x / width, y / height, (x + 200) / width, (y + 160) / height)
    return np.asarray(picture), boxes


@pytest.mark.parametrize("corner", ["upper left", "lower left", "upper right", "lower right"])
@pytest.mark.parametrize("gap", [0, 3, 12])
def test_a_grid_is_cut_wherever_its_letters_stand_and_with_no_gap_at_all(corner: str, gap: int) -> None:
    image, boxes = grid(3, 2, gap, "ABCDEF", corner)
    found = by_label(split_panels(image, tuple("ABCDEF")))
    assert set(found) == set("ABCDEF")
    assert min(overlap(found[label], boxes[label]) for label in boxes) > 0.9


def test_labels_keep_the_captions_case() -> None:
    image, boxes = grid(2, 1, 10, "AB")
    assert set(by_label(split_panels(image, ("a", "b")))) == {"a", "b"}
    assert boxes


def test_a_panel_whose_letter_is_missing_takes_its_place_in_the_order() -> None:
    image, boxes = grid(2, 2, 12, "ABCD")
    image = image.copy()
    image[:40, 212:260] = image[60:100, 212:260]
    found = by_label(split_panels(image, tuple("ABCD")))
    assert min(overlap(found[label], boxes[label]) for label in "ABCD") > 0.9


def test_a_label_of_two_characters_takes_its_place_in_the_order() -> None:
    image, boxes = grid(2, 2, 12, "ABBD")
    found = by_label(split_panels(image, ("A", "B1", "B2", "D")))
    assert overlap(found["A"], boxes["A"]) > 0.9 and overlap(found["D"], boxes["D"]) > 0.9
    assert set(found) == {"A", "B1", "B2", "D"}


def test_without_any_letter_the_gaps_decide() -> None:
    image, _ = grid(3, 1, 14, "")
    found = by_label(split_panels(image, ("A", "B", "C")))
    assert [label for label, _ in sorted(found.items(), key=lambda item: item[1][0])] == ["A", "B", "C"]
    assert all(overlap(box, (k * 214 / 628, 0, (k * 214 + 200) / 628, 1)) > 0.9 for k, box in enumerate(found.values()))


@pytest.mark.parametrize(("columns", "band"), [(2, 2), (3, 8), (4, 24)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_band_through_all_columns_or_rows_does_not_join_them(columns: int, band: int, turned: bool) -> None:
    image = Image.new("RGB", (columns * 250 - 30, 420), "white")
    draw = ImageDraw.Draw(image)
    for k in range(columns):
        draw.line((k * 250 + 20, 100, k * 250 + 200, 380), fill="black", width=3)
        for n in range(6):
            x, y = k * 250 + 10 + 37 * n % 150, 60 + 53 * n
            draw.ellipse((x, y, x + 50, y + 50), fill=(60 + 25 * n, 90, 200 - 25 * n))
    draw.rectangle((0, 210, image.width, 210 + band), fill=(240, 200, 120))
    image = image.transpose(Image.Transpose.TRANSPOSE) if turned else image
    draw = ImageDraw.Draw(image)
    for k in range(columns):
        at = (2, k * 250 + 2) if turned else (k * 250 + 4, 2)
        draw.text(at, "ABCD"[k], fill="black", font=ImageFont.load_default(30), stroke_width=1)
    found = by_label(split_panels(np.asarray(image), tuple("ABCD"[:columns])))
    for k in range(columns):
        begin, end = ((k * 250 + m) / (columns * 250 - 30) for m in (0, 220))
        assert overlap(found["ABCD"[k]], (0, begin, 1, end) if turned else (begin, 0, end, 1)) > 0.75


PLACES = {
    "row": [(20, 40), (280, 40), (540, 40), (800, 40)],
    "column": [(20, 20), (20, 240), (20, 460)],
    "ring": [(20, 20), (320, 20), (320, 280), (20, 280)],
}


def steps(form: str, arrows: int, frame: bool = False) -> np.ndarray:
    """Shapes of 170 x 140, a letter at each one's upper left, and so many arrows from one to the next."""
    places = PLACES[form]
    image = Image.new("RGB", (max(x for x, _ in places) + 200, max(y for _, y in places) + 170), "white")
    draw = ImageDraw.Draw(image)
    for k, (x, y) in enumerate(places):
        draw.rounded_rectangle((x, y, x + 170, y + 140), 20, outline="black", width=2, fill=(200, 225 - 15 * k, 250))
        draw.text((x + 8, y + 4), "ABCD"[k], fill="black", font=ImageFont.load_default(30), stroke_width=1)
        draw.ellipse((x + 60, y + 50, x + 120, y + 110), fill=(120 + 25 * k, 90, 60))
    for (ax, ay), (bx, by) in list(zip(places, [*places[1:], places[0]], strict=True))[:arrows]:
        dx, dy = (bx > ax) - (bx < ax), (by > ay) - (by < ay)
        begin = (ax + 85 + 93 * dx, ay + 70 + 78 * dy)
        end = (bx + 85 - 93 * dx, by + 70 - 78 * dy)
        draw.line((*begin, *end), fill="black", width=1)
        head = [(end[0] - 8 * dx + 5 * dy * s, end[1] - 8 * dy + 5 * dx * s) for s in (1, -1)]
        draw.polygon([end, *head], fill="black")
    if frame:
        draw.rectangle((2, 2, image.width - 3, image.height - 3), outline="black", width=1)
    return np.asarray(image)


@pytest.mark.parametrize(("form", "arrows"), [("row", 3), ("column", 2), ("ring", 4), ("ring", 3)])
def test_letters_at_steps_that_arrows_join_are_no_panels(form: str, arrows: int) -> None:
    labels = tuple("ABCD"[: len(PLACES[form])])
    assert split_panels(steps(form, arrows), labels) == [Panel((0.0, 0.0, 1.0, 1.0), None)]


def slanting(arrows: bool, width: int, bent: bool, filled: bool) -> np.ndarray:
    """Four shapes in a zigzag, arrows with heads from one to the next."""
    places = np.array([(20, 40), (300, 240), (580, 40), (860, 240)], float)
    image = Image.new("RGB", (1080, 430), "white")
    draw = ImageDraw.Draw(image)
    for k, (x, y) in enumerate(places.tolist()):
        draw.rounded_rectangle((x, y, x + 170, y + 140), 20, outline="black", width=2, fill=(200, 225 - 15 * k, 250))
        draw.text((x + 8, y + 4), "ABCD"[k], fill="black", font=ImageFont.load_default(30), stroke_width=1)
        draw.ellipse((x + 60, y + 50, x + 120, y + 110), fill=(120 + 25 * k, 90, 60))
    for k in range(3 if arrows else 0):
        along = places[k + 1] - places[k]
        along /= np.hypot(*along)
        edge = min(85 / abs(along[0]), 70 / abs(along[1])) + 8
        begin, end = places[k] + (85, 70) + along * edge, places[k + 1] + (85, 70) - along * edge
        at = np.linspace(0, 1, 40)[:, None]
        across = np.array([along[1], -along[0]])
        middle = (
            begin + (end - begin) * at + across * np.sin(np.pi * at) * (0.28 if bent else 0) * np.hypot(*(end - begin))
        )
        last = middle[-1] - middle[-5]
        last /= np.hypot(*last)
        side, neck = np.array([-last[1], last[0]]), end - last * 1.6 * width
        shaft = middle[np.hypot(*(middle - end).T) > 1.6 * width]
        head = [tuple(neck + side * 1.3 * width), tuple(end), tuple(neck - side * 1.3 * width)]
        ends = [tuple(shaft[n] + side * width * half) for n, half in ((-1, -0.5), (0, -0.5), (0, 0.5), (-1, 0.5))]
        if filled:
            draw.line([*map(tuple, shaft), tuple(neck)], fill="black", width=width, joint="curve")
            draw.polygon(head, fill="black")
        else:
            draw.polygon([*ends, *head], fill="white", outline="black")
    return np.asarray(image)


@pytest.mark.parametrize("width", [14, 26])
@pytest.mark.parametrize(("bent", "filled"), [(False, True), (True, True), (False, False)])
def test_thick_slanting_and_bent_arrows_join_steps(width: int, bent: bool, filled: bool) -> None:
    assert len(split_panels(slanting(True, width, bent, filled), tuple("ABCD"))) == 1
    assert len(split_panels(slanting(False, width, bent, filled), tuple("ABCD"))) == 4


@pytest.mark.parametrize(
    ("form", "arrows", "least"), [("row", 0, 0.9), ("row", 1, 0.55), ("column", 0, 0.9), ("ring", 1, 0.55)]
)
def test_without_arrows_between_all_the_same_shapes_are_panels(form: str, arrows: int, least: float) -> None:
    places = PLACES[form]
    image = steps(form, arrows)
    height, width, _ = image.shape
    found = by_label(split_panels(image, tuple("ABCD"[: len(places)])))
    assert set(found) == set("ABCD"[: len(places)])
    for label, (x, y) in zip("ABCD", places, strict=False):
        assert overlap(found[label], (x / width, y / height, (x + 170) / width, (y + 140) / height)) > least


def test_a_frame_around_all_panels_joins_none() -> None:
    assert [panel.label for panel in split_panels(steps("row", 0, frame=True), tuple("ABCD"))] == list("ABCD")


def test_letters_are_enough_where_the_caption_names_no_panels() -> None:
    image, _ = grid(2, 2, 12, "ABCD")
    assert [panel.label for panel in split_panels(image)] == ["A", "B", "C", "D"]


@pytest.mark.parametrize("kind", sorted(plots.KINDS))
def test_a_single_picture_stays_whole(kind: str) -> None:
    for seed in range(3):
        image, _ = plots.KINDS[kind](np.random.default_rng(seed), 480, 360)
        assert split_panels(np.asarray(image.convert("RGB"))) == [Panel((0.0, 0.0, 1.0, 1.0), None)]


def test_the_samples_compounds_are_separated() -> None:
    kinds = sorted(plots.KINDS)
    right = every = 0
    for seed in range(12):
        rng = np.random.default_rng(1000 + seed)
        picture, boxes, _ = plots.compound(rng, [kinds[(seed + 3 * k) % 10] for k in range(2 + seed % 3)])
        labels = tuple("ABCD"[: len(boxes)])
        found = by_label(split_panels(np.asarray(picture.convert("RGB")), labels))
        every += len(boxes)
        right += sum(overlap(found[q], tuple(box)) > 0.75 for q, box in zip(labels, boxes, strict=True) if q in found)  # type: ignore[arg-type]
    assert right >= 0.95 * every


@pytest.mark.parametrize("image", [np.full((50, 400, 3), 255, np.uint8), np.zeros((9, 9, 3), np.uint8)])
def test_an_empty_picture_gives_a_box_and_no_error(image: np.ndarray) -> None:
    panels = split_panels(image, ("A", "B"))
    assert all(0 <= p.box[0] < p.box[2] <= 1 and 0 <= p.box[1] < p.box[3] <= 1 for p in panels)


def test_letters_in_words_are_no_labels() -> None:
    page = Image.new("L", (500, 300), 255)
    draw = ImageDraw.Draw(page)
    draw.text((20, 20), "A", fill=0, font=ImageFont.load_default(24))
    draw.text((20, 150), "B", fill=0, font=ImageFont.load_default(24))
    draw.text((200, 80), "CAB BAD DAB", fill=0, font=ImageFont.load_default(24))
    found = find_letters(np.asarray(page), ("A", "B"))
    assert {label: (round(q.x, -1), round(q.y, -1)) for label, q in found.items()} == {"A": (20, 30), "B": (20, 160)}


def test_white_letters_on_dark_and_bracketed_ones_are_read() -> None:
    page = Image.new("L", (600, 300), 20)
    draw = ImageDraw.Draw(page)
    face = ImageFont.load_default(28)
    draw.text((15, 15), "(a)", fill=255, font=face)
    draw.text((315, 15), "(b)", fill=255, font=face)
    assert set(find_letters(np.asarray(page), ("a", "b"))) == {"a", "b"}


def test_real_compounds_are_separated(corpus: Path) -> None:
    import json

    from biomedclip_ray.figures.subcaptions import subcaptions
    from biomedclip_ray.jats import article as jats

    rows = [json.loads(line) for line in (corpus / "expected" / "panels.jsonl").read_text().splitlines()]
    right = found = true = 0
    for row in [row for row in rows if row.get("boxes") and row["labels"]][:12]:
        folder = corpus / "bucket" / row["pmcid_version"]
        article = jats.parse_article(next(folder.glob("*.xml")).read_bytes())
        stem = row["file"].rsplit(".", 1)[0]
        caption = next(
            (f.caption for f in article.figures for forms in f.graphics if {row["file"], stem} & set(forms)), ""
        )
        with Image.open(folder / row["file"]) as picture:
            panels = split_panels(np.asarray(picture.convert("RGB")), tuple(subcaptions(caption)))
        found, true = found + len(panels), true + len(row["boxes"])
        right += sum(max(overlap(p.box, tuple(box)) for p in panels) >= 0.5 for box in row["boxes"])
    assert 2 * right / (found + true) >= 0.9


@pytest.mark.parametrize("shown", ["AB", "BC", "AD", "BD"])
def test_letters_that_stand_in_one_picture_do_not_decide_where_panels_end(shown: str) -> None:
    """The panels' own letters cannot be read, look-alikes in the first panel can: lines and reading order decide."""
    image, _ = grid(2, 2, 12, "")
    picture = Image.fromarray(image)
    for letter, at in zip(shown, ((40, 60), (150, 60)), strict=True):
        ImageDraw.Draw(picture).text(at, letter, fill="black", font=ImageFont.load_default(26), stroke_width=1)
    assert set(find_letters(np.asarray(picture.convert("L")), tuple("ABCD"))) == set(shown)
    found = by_label(split_panels(np.asarray(picture), tuple("ABCD")))
    for label, (x, y) in {"A": (0, 0), "B": (212, 0), "C": (0, 172), "D": (212, 172)}.items():
        assert overlap(found[label], (x / 412, y / 332, (x + 200) / 412, (y + 160) / 332)) > 0.9
