"""What a user gets: the wheel, the README, the shipped configs, the Makefile."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from raytrain.config.io import load_config
from raytrain.config.shipped import cluster_names, config_names, space_names

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return archive.namelist()


def test_the_wheel_has_all_that_the_package_reads(wheel: list[str]) -> None:
    wanted = {
        str(p.relative_to(ROOT))
        for p in (ROOT / "raytrain").rglob("*")
        if p.suffix in (".py", ".yaml", ".html", ".css")
    }
    wanted |= {f"raytrain/_assets/tune_spaces/{name}.yaml" for name in space_names()}
    wanted |= {f"raytrain/_assets/cluster/{name}" for name in cluster_names()}
    assert wanted <= set(wheel)


def test_the_wheel_has_nothing_else(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"raytrain", "raytrain-0.1.0.dist-info"}


@pytest.mark.parametrize("name", config_names())
def test_shipped_configs_load_and_say_what_they_are(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert (ROOT / "raytrain" / "configs" / f"{name}.yaml").read_text().startswith("# ")


def test_the_readme_names_what_exists_and_is_short() -> None:
    """tests/shipped/test_docs.py reads its YAML, commands and links, as those of the pages."""
    assert len(README.splitlines()) <= 150
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:`|^|\$ )make ([a-z-]+)", README, re.MULTILINE))
    assert {"quickstart", "test"} <= targets
    assert not [target for target in targets if f"\n{target}:" not in makefile]
    folders = README.split("## The folders")[1]
    assert not [name for name in re.findall(r"`([\w/]+)/`", folders) if not (ROOT / name).is_dir()]


def test_nothing_names_the_place_where_it_was_made() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        text = (ROOT / name).read_bytes()
        assert b"/work" + b"/main" not in text, name
