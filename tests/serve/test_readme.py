"""The README's examples of the server, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.test_engine import Live, live

__all__ = ["live"]

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
SERVER = "http://127.0.0.1:8000"
EXAMPLES = [(kind, text) for kind, text in re.findall(r"```(sh|python)\n(.*?)```", README, re.DOTALL) if SERVER in text]


def test_there_are_examples_of_curl_the_openai_client_and_mcp():
    assert [kind for kind, _ in EXAMPLES] == ["sh", "python", "python"]
    assert "OpenAI(" in EXAMPLES[1][1] and "search_figures" in EXAMPLES[2][1]


@pytest.mark.parametrize(("kind", "text"), EXAMPLES, ids=["curl", "openai", "mcp"])
def test_an_example_runs_as_it_stands(live: Live, tmp_path: Path, kind: str, text: str):
    folder = tmp_path / ".demo/bucket/PMC1.1"
    folder.mkdir(parents=True)
    (folder / "x-g001.jpg").write_bytes(live.images[0])
    text = text.replace(SERVER, live.url)
    program = ["bash", "-euc", text] if kind == "sh" else [sys.executable, "-c", text]
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, env=clean, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "error" not in done.stdout
    if kind == "sh":
        assert done.stdout.count('"object":"list"') == text.count("curl -s")
    else:
        assert done.stdout.strip() == "2 128" or "https://pmc.ncbi.nlm.nih.gov/articles/PMC" in done.stdout
