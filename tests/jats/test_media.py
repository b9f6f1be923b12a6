"""Which file a name in the XML means."""

import pytest

from biomedclip_ray.jats.media import match_media, matching_media, media_name, stem


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
        ("my%20fig.jpg", ["my fig.jpg", "fig.jpg"], "my fig.jpg"),
        ("my fig.jpg", ["my%20fig.jpg"], "my%20fig.jpg"),
        ("my%20fig", ["my fig.tif", "my.tif"], "my fig.tif"),
        ("my%20fig", ["my%20fig.tif"], "my%20fig.tif"),
        ("my%2Dfig.eps", ["my%2Dfig.png", "my%2Dfig.zip"], "my%2Dfig.png"),
        ("my fig", ["my%20fig.jpg"], "my%20fig.jpg"),
        ("100%.jpg", ["100%.jpg", "100.jpg"], "100%.jpg"),
        ("..%2F..%2Fgr1.jpg", ["gr1.jpg"], "gr1.jpg"),
        ("fig1", ["fig1.gif", "fig1.bmp"], "fig1.bmp"),
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


def test_files_of_one_stem_are_alternatives_but_for_a_gif_beside_another():
    files = ["a.gif", "a.tif", "a.jpg", "ab.tif", "a.pdf"]
    assert matching_media("a.jpg", files) == ["a.jpg", "a.tif"]
    assert matching_media("a.eps", files) == ["a.jpg", "a.tif"]
    assert matching_media("a.gif", files) == ["a.gif", "a.jpg", "a.tif"]
    assert matching_media("a", ["a.gif"]) == ["a.gif"]
