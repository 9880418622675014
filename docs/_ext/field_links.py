"""A Sphinx extension: inline code that names a config field or a command links to its place in the reference.

Inline code that looks like a config field but names none is a warning, and the build treats warnings as errors: a page
can't keep speaking of a field that was removed.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2] / "tools"))

import reference


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("doctree-resolved", link_inline_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def link_inline_code(app: Any, tree: Any, name_of_page: str) -> None:
    """Replace inline code by links to the field or the command that it names."""
    from docutils import nodes
    from sphinx.addnodes import desc_signature
    from sphinx.util import logging

    for literal in list(tree.findall(nodes.literal)):
        parent = literal.parent
        if isinstance(parent, nodes.title | nodes.term | nodes.reference | nodes.strong | desc_signature):
            continue
        try:
            found = place_of(literal.astext())
        except LookupError as error:
            logging.getLogger(__name__).warning("%s", error, location=literal)
            continue
        if found is None or app.builder.format != "html":
            continue
        page, anchor = found
        address = f"{app.builder.get_relative_uri(name_of_page, page)}#{anchor}"
        link = nodes.reference("", "", literal.deepcopy(), internal=True, refuri=address)
        parent.replace(literal, link)


def place_of(text: str) -> tuple[str, str] | None:
    """The page and the anchor of what inline code names, or None. Raises LookupError for a field that is not there."""
    if (field := reference.named_field(text)) is not None:
        return "reference/config", field
    if (command := reference.named_command(text)) is not None:
        return "reference/cli", reference.command_anchor(command)
    if "." in text and text in reference.space_fields():
        return "reference/space", text
    return None
