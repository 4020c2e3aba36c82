"""The kind of `--pool`: the name of a pool and its workers."""

from __future__ import annotations

import re

from attrs import frozen

from .kinds import Kind, Text

POOL_NAME = Text(
    "a name of at most 64 letters, digits, '.', '_' and '-' that begins with a letter or digit",
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    metavar="NAME",
)


@frozen
class PoolMembers:
    """The workers of a pool that were started elsewhere."""

    name: str
    urls: tuple[str, ...]


@frozen
class Members(Kind):
    """`NAME=URL[,URL...]`: PoolMembers."""

    metavar = "NAME=URL[,URL...]"
    expected = "a pool and its workers, like teacher=http://10.0.0.5:30000"

    def parse(self, value: object) -> PoolMembers:
        if isinstance(value, PoolMembers):
            return value
        name, _, rest = value.partition("=") if isinstance(value, str) else ("", "", "")
        urls = tuple(url.strip() for url in rest.split(","))
        if not re.fullmatch(POOL_NAME.pattern, name) or not all(urls):
            raise self.unfit(value)
        return PoolMembers(name, urls)
