"""Docstrings, errors and pages are in plain technical English: words of the old voice do not come back."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
WORDS = re.compile(
    r"\b(heard|hears|listens|listen to|told|anew|whom|whereof|so many|as of|came|is to be|are to be|guests?|meets|"
    r"speaks|judged|judges|taught by|told apart|for want of|mend|of its own accord)\b",
    re.IGNORECASE,
)
FOLDERS = ("keras_wsl", "train", "tests")
CODE = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")) if path.name != "test_language.py"]
RECORDED = {"fault_tolerance.md"}  # Has outputs of earlier versions.
PAGES = [
    *(ROOT / name for name in ("README.md", "BUILD_NOTES.md", "docs/guide.md", "train/README.md")),
    *(path for path in sorted((ROOT / "train/results").glob("*.md")) if path.name not in RECORDED),
]


def _texts(path):
    """Return the texts of a file that people read, by line: strings with a space, or the whole page."""
    if path.suffix == ".md":
        return dict(enumerate(path.read_text().splitlines(), 1))
    nodes = ast.walk(ast.parse(path.read_text()))
    strings = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return {node.lineno: node.value for node in strings if " " in node.value}


@pytest.mark.parametrize("path", [*CODE, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_have_no_word_of_the_old_voice(path):
    found = {line: words for line, text in _texts(path).items() if (words := WORDS.findall(text))}
    assert not found
