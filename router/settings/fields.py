"""One declaration per setting, from which the flag, the YAML key, the check, the help and the table
in the docs all come: `port: Annotated[int, WholeNumber(0, 65535)] = setting(30080, "its help")`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs
from attrs import frozen

from .kinds import Choice, Kind, Many, Switch, Text, Unfit


@frozen
class Setting:
    """One setting as help, tables and parsers see it."""

    name: str
    kind: Kind
    help: str
    group: str
    default_text: str
    required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """The flag with its value: `--port N`."""
        if isinstance(self.kind, Many):
            return f"{self.flag} {self.kind.item.metavar} ..."
        return f"{self.flag} {self.kind.metavar}".rstrip()

    @property
    def is_switch(self) -> bool:
        return isinstance(self.kind, Switch)


def setting(default: object, help: str = "", *, group: str = "", default_text: str = "") -> Any:
    """An attrs field for one setting, whose kind is in its annotation.

    The default is written as in a file (`"30m"`); `default_text` says what one such as None means.
    A group goes on until a setting names the next. Without `help` there is no flag: the setting
    stands only in the file. However the object is made, a wrong value raises ValueError.
    """
    if default is attrs.NOTHING:
        default_text = "required"
    elif not default_text:
        default_text = "none" if default in (None, (), {}) else str(default)
    metadata = {"help": help, "group": group, "default_text": default_text}
    converter = attrs.Converter(_convert, takes_field=True)
    return attrs.field(default=default, converter=converter, metadata=metadata)


def _convert(value: object, field: attrs.Attribute[Any]) -> object:
    try:
        return _kind(field.type).parse(value)
    except Unfit as unfit:
        raise ValueError(f"{field.name}: {unfit}") from None


def _kind(annotation: Any) -> Kind:
    """The kind that an annotation names; switches, choices and texts by their type."""
    if annotation in (bool, str):
        return Switch() if annotation is bool else Text()
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return Choice(annotation)
    kind: Kind = annotation.__metadata__[0]
    return kind


def fields_of(cls: Any) -> dict[str, Setting]:
    """All settings of `cls` by name, in the order of their declarations."""
    found: dict[str, Setting] = {}
    group = ""
    for field in attrs.fields(cls):
        group = field.metadata["group"] or group
        about = {**field.metadata, "group": group, "required": field.default is attrs.NOTHING}
        found[field.name] = Setting(field.name, _kind(field.type), **about)
    return found


def settings_of(cls: type) -> list[Setting]:
    """The settings of `cls` that have a flag and a row in the docs."""
    return [setting for setting in fields_of(cls).values() if setting.help]
