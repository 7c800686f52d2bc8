"""The README as a package index shows it, which has neither the files beside it nor
their pictures.
"""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:)[^)]*\)")


def standalone(text: str) -> str:
    """Markdown without pictures and links that are relative: the words stay."""
    return LINK.sub(r"\1", PICTURE.sub("", text))


class Readme(MetadataHookInterface):
    """Fills in the field ``readme``."""

    def update(self, metadata: dict) -> None:
        """Read the file."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": standalone(text),
        }
