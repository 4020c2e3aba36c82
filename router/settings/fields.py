"""One definition per setting: `setting()` makes the attrs field from which the flag, the YAML key,
the help and the table in the docs all come."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import frozen

from .kinds import Kind, Many, Switch, Unfit

_KEY = "router.setting"


@frozen
class _Info:
    kind: Kind
    help: str
    group: str
    metavar: str
    default_text: str


@frozen
class Setting:
    """One setting as help, tables and parsers see it."""

    name: str
    default: object
    kind: Kind
    help: str
    group: str
    metavar: str
    default_text: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """The flag with its value: `--port N`."""
        many = " ..." if isinstance(self.kind, Many) else ""
        return f"{self.flag} {self.metavar}{many}".rstrip()

    @property
    def takes_value(self) -> bool:
        return not isinstance(self.kind, Switch)

    @property
    def many(self) -> bool:
        return isinstance(self.kind, Many)


@frozen
class FlagRow:
    """One row of the table of flags."""

    flag: str
    key: str
    default: str
    range: str
    help: str
    group: str


def setting(
    default: object,
    kind: Kind,
    *,
    help: str,
    group: str,
    metavar: str = "",
    default_text: str = "",
) -> Any:
    """An attrs field for one setting.

    `default_text` says what a default such as None means. The value is checked whichever way the
    object is made: a wrong one raises ValueError.
    """

    def validate(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
        try:
            kind.parse(value)
        except Unfit as unfit:
            raise ValueError(f"{attribute.name}: {unfit}") from None

    item = kind.item if isinstance(kind, Many) else kind
    text = default_text or kind.show(default)
    info = _Info(kind, help, group, metavar or item.metavar, text)
    return attrs.field(default=default, validator=validate, metadata={_KEY: info})


def kind_of(attribute: attrs.Attribute[Any]) -> Kind | None:
    """The kind of a field made by `setting()`; None for any other field."""
    info = attribute.metadata.get(_KEY)
    return info.kind if isinstance(info, _Info) else None


def settings_of(cls: type[attrs.AttrsInstance]) -> tuple[Setting, ...]:
    """The settings of `cls`, in the order in which they were defined."""
    found = []
    for attribute in attrs.fields(cls):
        info = attribute.metadata.get(_KEY)
        if isinstance(info, _Info):
            found.append(
                Setting(
                    attribute.name,
                    attribute.default,
                    info.kind,
                    info.help,
                    info.group,
                    info.metavar,
                    info.default_text,
                )
            )
    return tuple(found)


def describe(cls: type[attrs.AttrsInstance]) -> tuple[FlagRow, ...]:
    """The table of flags of `cls`: flag, YAML key, default, range, help, group."""
    return tuple(
        FlagRow(
            setting.usage,
            setting.name,
            setting.default_text,
            setting.kind.range,
            setting.help,
            setting.group,
        )
        for setting in settings_of(cls)
    )


def markdown_table(cls: type[attrs.AttrsInstance], *, flags: bool = True, keys: bool = True) -> str:
    """`describe(cls)` as a Markdown table; without the flags or the YAML keys if so told."""
    titles = ["Flag"] * flags + ["YAML key"] * keys + ["Default", "Range", "Meaning"]
    lines = [titles, ["---"] * len(titles)]
    for row in describe(cls):
        names = [f"`{row.flag}`"] * flags + [f"`{row.key}`"] * keys
        lines.append([*names, row.default, row.range, row.help])
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
