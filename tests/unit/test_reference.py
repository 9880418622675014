"""docs/reference/ is committed: it agrees with the source, and can be read without a build."""

import re

import reference


def test_the_reference_pages_agree_with_the_source() -> None:
    stale = [name for name, text in reference.pages().items() if (reference.FOLDER / name).read_text() != text]
    assert not stale, "run: python tools/reference.py"
    assert {path.name for path in reference.FOLDER.iterdir()} == set(reference.pages())


def test_a_git_host_shows_the_reference_as_it_is_meant() -> None:
    for name, text in reference.pages().items():
        assert not re.search(r"^(```\{|:::|\([\w-]+\)=$)|\{\w+\}`", text, re.MULTILINE), f"{name}: Sphinx's own markup"


def test_every_field_and_command_has_a_place_to_link_to() -> None:
    pages = reference.pages()
    fields = {anchor for name in ("config.md", "space.md") for anchor in re.findall(r'<a id="([^"]+)">', pages[name])}
    assert reference.config_fields() | reference.space_fields() == fields | {"task"}
    headings = {found.replace(" ", "-") for found in re.findall(r"^##+ `(.+)`$", pages["cli.md"], re.MULTILINE)}
    assert headings == set(map(reference.command_anchor, reference.commands()))
