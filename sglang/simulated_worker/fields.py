"""Checks of request fields with the coercions and the error entries of the real worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from .messages import NotJson, from_json

_INT = "Input should be a valid integer, unable to parse string as an integer"
_FLOAT = "Input should be a valid number, unable to parse string as a number"
_BOOL = "Input should be a valid boolean, unable to interpret input"
_TRUE = {"true", "1", "on", "yes", "t", "y"}
_FALSE = {"false", "0", "off", "no", "f", "n"}


class _Bad(Exception):
    def __init__(self, kind: str, message: str, *where: Any) -> None:
        super().__init__(message)
        self.kind, self.message, self.where = kind, message, where


@frozen
class Field:
    """A field of a request: `kind` is one of str, int, float, bool, object, list, ints, strs.

    `ints`, `floats` and `strs` are one or a list of them, `paths` a string or a list of strings
    and nulls.
    """

    name: str
    kind: str
    default: Any = None
    required: bool = False
    nullable: bool = True


def check(
    body: Mapping[str, Any],
    fields: tuple[Field, ...],
    where: str = "body",
    shown: Any = None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The values (defaults filled in, unknown fields left out) and the errors, in order of fields.

    `shown` is what an error about a missing field gives as its `input`.
    """
    values: dict[str, Any] = {}
    errors: list[dict[str, Any]] = []
    for field in fields:
        if field.name not in body:
            if field.required:
                errors.append(_error("missing", [where, field.name], "Field required", shown))
            values[field.name] = field.default
            continue
        value = body[field.name]
        values[field.name] = field.default
        if value is None and field.nullable:
            values[field.name] = None
            continue
        try:
            values[field.name] = _coerce(field.kind, value)
        except ExceptionGroup as group:
            for bad in group.exceptions:
                assert isinstance(bad, _Bad)
                place = [where, field.name, *bad.where]
                errors.append(_error(bad.kind, place, bad.message, value))
        except _Bad as bad:
            errors.append(_error(bad.kind, [where, field.name], bad.message, value))
    return values, errors


def as_validation_text(model: str, errors: list[dict[str, Any]], body: Any) -> str:
    """The errors as one text, as the video and mesh endpoints give them."""
    count = f"{len(errors)} validation error{'s' if len(errors) > 1 else ''} for {model}"
    lines = [count]
    for error in errors:
        shown = body if error["type"] == "missing" else error["input"]
        lines.append(".".join(str(part) for part in error["loc"][1:]))
        lines.append(
            f"  {error['msg']} [type={error['type']}, input_value={shown!r}, "
            f"input_type={type(shown).__name__}]"
        )
        lines.append(
            f"    For further information visit https://errors.pydantic.dev/2.14/v/{error['type']}"
        )
    return "\n".join(lines)


def from_form(value: str) -> Any:
    """A form field that may hold JSON."""
    try:
        return from_json(value)
    except NotJson:
        return value


def _error(kind: str, where: list[Any], message: str, shown: Any) -> dict[str, Any]:
    return {"type": kind, "loc": where, "msg": message, "input": shown}


def _coerce(kind: str, value: Any) -> Any:
    if kind == "str":
        if not isinstance(value, str):
            raise _Bad("string_type", "Input should be a valid string")
        return value
    if kind == "int":
        return _int(value)
    if kind == "float":
        return _float(value)
    if kind == "bool":
        return _bool(value)
    if kind == "object":
        if not isinstance(value, dict):
            raise _Bad("dict_type", "Input should be a valid dictionary")
        return value
    if kind == "list":
        if not isinstance(value, list):
            raise _Bad("list_type", "Input should be a valid list")
        return value
    return _one_or_many(kind, value)


def _one_or_many(kind: str, value: Any) -> Any:
    one = {"ints": "int", "strs": "str", "floats": "float", "paths": "str"}[kind]
    if isinstance(value, list):
        return [None if item is None and kind == "paths" else _coerce(one, item) for item in value]
    try:
        return _coerce(one, value)
    except _Bad as bad:
        many = _Bad("list_type", "Input should be a valid list", f"list[{one}]")
        raise ExceptionGroup("neither", [_Bad(bad.kind, bad.message, one), many]) from None


def _int(value: Any) -> int:
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            raise _Bad("int_parsing", _INT) from None
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        message = "Input should be a valid integer, got a number with a fractional part"
        raise _Bad("int_from_float", message)
    if isinstance(value, int):
        return int(value)
    raise _Bad("int_type", "Input should be a valid integer")


def _float(value: Any) -> float:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            raise _Bad("float_parsing", _FLOAT) from None
    if isinstance(value, int | float):
        return float(value)
    raise _Bad("float_type", "Input should be a valid number")


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if isinstance(value, str | int) and text in _TRUE:
        return True
    if isinstance(value, str | int) and text in _FALSE:
        return False
    raise _Bad("bool_parsing" if isinstance(value, str | int) else "bool_type", _BOOL)
