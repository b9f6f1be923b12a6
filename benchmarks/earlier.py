"""The revision that "before" means, checked out beside the repository for as long as a benchmark needs it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REVISION = "70c1554"
HERE = Path(__file__).resolve().parents[1]


@contextmanager
def earlier_revision() -> Iterator[Path | None]:
    """Its folder, by `git worktree`; None, after a line that says so, where git has not got it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "earlier"
        made = _git("worktree", "add", "--detach", str(path), REVISION)
        if made.returncode:
            print(f"nothing to compare with: git has no {REVISION} here ({made.stderr.strip().splitlines()[-1]})")
            yield None
            return
        try:
            yield path
        finally:
            _git("worktree", "remove", "--force", str(path))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(HERE), *arguments], check=False, capture_output=True, text=True)
