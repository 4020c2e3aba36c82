"""What the program says of wrong flags and files: a large table, word for word.

Each block of `settings_messages.txt` is a name, files, a command line, and what stderr must hold.
`python -m tests.unit.test_settings_messages` records what is said now; read the difference.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from attrs import frozen

from router import cli

TABLE = Path(__file__).with_name("settings_messages.txt")


@frozen
class Case:
    head: str  # its name and its files
    line: str
    told: str

    @property
    def name(self) -> str:
        return self.head.partition("\n")[0]

    def files(self) -> dict[str, bytes]:
        parts = (file.partition("\n") for file in self.head.split("\n--- ")[1:])
        return {name: raw(text) for name, _, text in parts}


def cases() -> list[Case]:
    found = []
    for block in re.split(r"^== ", TABLE.read_text(encoding="utf-8"), flags=re.M)[1:]:
        head, _, below = block.partition("\n$ ")
        line, _, told = f"{below}\n".partition("\n")
        found.append(Case(head, line, told.strip("\n")))
    return found


def raw(text: str) -> bytes:
    """The bytes of a file, in which `\\xff` and the like stand for what is no text."""
    parts = re.split(r"\\x([0-9a-f]{2})", text + "\n")
    return b"".join(
        bytes.fromhex(part) if index % 2 else part.encode() for index, part in enumerate(parts)
    )


def said(case: Case) -> str:
    """What the program says, run in a folder with nothing but the case's files."""
    for name, content in case.files().items():
        Path(name).write_bytes(content)
    with (
        mock.patch("router.service.run", return_value=0),  # nothing starts if all is taken for good
        mock.patch("router.demo.run", return_value=0),
        contextlib.redirect_stderr(io.StringIO()) as stderr,
    ):
        assert cli.main(shlex.split(case.line)) == cli.EXIT_USAGE
    return stderr.getvalue().strip().replace(f"{cli.PROG}: error: ", "")


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_message(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert said(case) == case.told


def record() -> None:
    text = ""
    for case in cases():
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            text += f"== {case.head}\n$ {case.line}\n{said(case)}\n\n"
    TABLE.write_text(text.removesuffix("\n"), encoding="utf-8")


if __name__ == "__main__":
    record()
