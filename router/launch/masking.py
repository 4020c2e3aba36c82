"""Commands as logs, answers and state files show them: without the secrets in their arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable

_HIDDEN = "***"
_WORDS = r"(?:api-?key|key|token|secret|password|passwd|passphrase|credentials?|auth)"
# A flag, variable or field with a word that indicates a secret. Names of files (`--api-key-file`)
# do not count.
_NAME = rf"(?:[A-Za-z0-9]+[-_.])*{_WORDS}(?:[-_.](?!files?\b|paths?\b|dir\b)[A-Za-z0-9]+)*"
_FLAG = re.compile(rf"--?{_NAME}", re.IGNORECASE)
_ASSIGNED = re.compile(
    rf"""((?<![A-Za-z0-9])-{{0,2}}{_NAME}["']?\s*[=:]\s*["']?"""
    rf"""|(?<![A-Za-z0-9])--{_NAME}\s+["']?)([^\s"',}}]+)""",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")


def masked(command: Iterable[str]) -> tuple[str, ...]:
    """The words of a command, with apparent secrets replaced."""
    words: list[str] = []
    hide = False
    for word in command:
        if hide and not word.startswith("--"):
            words.append(_HIDDEN)
            hide = False
            continue
        hide = _FLAG.fullmatch(word) is not None
        word = _ASSIGNED.sub(rf"\1{_HIDDEN}", word)
        words.append(_IN_URL.sub(_HIDDEN, word))
    return tuple(words)
