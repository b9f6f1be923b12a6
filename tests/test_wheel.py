"""The wheel holds all that the package reads when it runs, and a wheelhouse is all that a machine without the internet
needs.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


SMALL = ("ftfy", "xxhash")  # of the hundred that the whole wheelhouse has, gigabytes of them


def _copy(folder: Path) -> None:
    """What a wheel is made of."""
    shutil.copytree(REPO / "biomedclip_ray", folder / "biomedclip_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(REPO / name, folder)


def _pip(folder: Path, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [*prefix, sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_what_the_guide_packs_is_installed_without_the_internet(tmp_path: Path) -> None:
    """Both commands as the guide has them; here for the package itself and two small ones beside it."""
    guide = (REPO / "cluster" / "README.md").read_text()
    pack, install = (
        shlex.split(re.findall(rf"pip ({verb} [^`\n]*)", guide)[0], comments=True)
        for verb in ("wheel", "install --no-index")
    )
    _copy(tmp_path)
    packed = _pip(tmp_path, *pack, "--no-deps", "--no-build-isolation", "-q")
    assert packed.returncode == 0, packed.stderr
    beside = _pip(tmp_path, *pack[:-1], "-q", *SMALL)
    if beside.returncode:
        pytest.skip(f"no package registry answers: {beside.stderr.splitlines()[-1]}")
    alone = ("unshare", "--map-root-user", "--net")  # a machine without any network
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = ()
    target = ("--target", str(tmp_path / "installed"), "-q")
    installed = _pip(tmp_path, *install, *SMALL, "--no-deps", *target, prefix=alone)
    assert installed.returncode == 0, installed.stderr
    held = {path.name for path in (tmp_path / "installed").iterdir()}
    assert {"biomedclip_ray", "ftfy", "xxhash"} <= held
    missing = _pip(tmp_path, *install, "lxml", "--no-deps", *target, prefix=alone)
    assert "No matching distribution found for lxml" in missing.stderr


def test_the_wheel_holds_every_module_config_template_and_page(tmp_path: Path) -> None:
    package = REPO / "biomedclip_ray"
    _copy(tmp_path)
    done = _pip(tmp_path, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "dist", ".")
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    needed = {
        path.relative_to(REPO).as_posix() for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }
    assert {"biomedclip_ray/serve/page/index.html", "biomedclip_ray/clip/configs/sample_64.json"} <= needed
    assert needed - held == set()
