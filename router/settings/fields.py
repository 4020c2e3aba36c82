"""One declaration per setting gives the flag, the YAML key, the check, the help and the row in the
docs: `port: Annotated[int, WholeNumber(0, 65535)] = setting(30080, "its help")`."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import attrs
from attrs import frozen

from .kinds import Choice, Kind, Many, Switch, Text, Unfit


@frozen
class Setting:
    """One setting, as help, tables and parsers see it."""

    name: str
    kind: Kind
    help: str
    group: str
    default_text: str
    live: bool = False  # a reload of the file changes it while the router runs
    required: bool = False
    short: str = ""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """The flag with its value: `-p, --port N`."""
        flags = f"{self.short}, {self.flag}" if self.short else self.flag
        if isinstance(self.kind, Many):
            return f"{flags} {self.kind.item.metavar} ..."
        return f"{flags} {self.kind.metavar}".rstrip()

    @property
    def is_switch(self) -> bool:
        return isinstance(self.kind, Switch)


def setting(
    default: object,
    help: str = "",
    *,
    group: str = "",
    default_text: str = "",
    live: bool = False,
    short: str = "",
) -> Any:
    """An attrs field for one setting; its annotation has the kind.

    The default is written as in a file (`"30m"`); `default_text` explains a default such as None. A
    group lasts until a setting names another one. A setting without `help` has no flag: only a file
    can set it. `live`: a reload changes it at run time. A wrong value raises ValueError, however
    the object is made.
    """
    if default is attrs.NOTHING:
        default_text = "required"
    elif not default_text:
        default_text = "none" if default in (None, (), {}) else str(default)
    metadata = {"help": help, "group": group, "default_text": default_text, "short": short}
    converter = attrs.Converter(_convert, takes_field=True)
    about = {**metadata, "live": live}
    return attrs.field(default=default, converter=converter, metadata=about)


def _convert(value: object, field: attrs.Attribute[Any]) -> object:
    try:
        return _kind(field.type).parse(value)
    except Unfit as unfit:
        raise ValueError(f"{field.name}: {unfit}") from None


def _kind(annotation: Any) -> Kind:
    """The kind in an annotation; for switches, choices and texts the type decides."""
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
