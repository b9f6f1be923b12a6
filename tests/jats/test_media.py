"""Which file a name in the XML means."""

import pytest

from biomedclip_ray.jats.media import match_media, media_name, stem


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("fig1.jpg", ["fig10.jpg", "fig1.jpg"], "fig1.jpg"),
        ("fig1", ["fig10.jpg", "xfig1.jpg"], None),
        ("pone.0012255.g001", ["pone.0012255.g001.gif", "pone.0012255.g001.jpg"], "pone.0012255.g001.jpg"),
        ("pone.0012255.g001", ["pone.0012255.jpg", "pone.0012255.g0011.jpg"], None),
        ("info:doi/10.1371/journal.pone.0012255.g001", ["pone.0012255.g001.jpg"], "pone.0012255.g001.jpg"),
        ("a.tif", ["a.gif", "a.webp", "a.jpg"], "a.jpg"),
        ("a.tif", ["a.jpg", "a.tif"], "a.tif"),
        ("a.eps", ["a.zip", "a.png", "a.pdf"], "a.png"),
        ("484463v1_fig1", ["484463v1_fig1", "484463v1_fig10"], "484463v1_fig1"),
        ("484463v1_fig1.tif", ["484463v1_fig1"], "484463v1_fig1"),
        ("gr1", ["gr1.mp4", "gr1.zip", "gr1.docx"], None),
        ("gr1", ["gr1.JPG"], "gr1.JPG"),
        ("../PMC2.1/gr1.jpg", ["PMC1.1/gr1.jpg"], "PMC1.1/gr1.jpg"),
        ("", ["gr1.jpg"], None),
        ("..", ["..", "gr1.jpg"], None),
        ("gr1", [], None),
    ],
)
def test_names_match_exactly_then_by_stem_and_never_by_substring(name, files, expected):
    assert match_media(name, files) == expected
    assert match_media(name, files[::-1]) == expected


def test_names_are_reduced_to_their_last_component():
    assert [media_name(href) for href in ("a/b.jpg", "a\\b.jpg", "/etc/passwd", "x/..", "a\0b")] == [
        "b.jpg",
        "b.jpg",
        "passwd",
        "",
        "",
    ]


def test_a_stem_loses_picture_extensions_only():
    assert [stem(name) for name in ("a.jpg", "a.TIFF", "pone.01.g001", "a.zip")] == ["a", "a", "pone.01.g001", "a.zip"]
