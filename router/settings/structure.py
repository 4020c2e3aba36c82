"""Plain data to attrs classes, with every mistake reported at once and by its path.

cattrs does the structuring and collects the errors (its detailed validation); here are strict
hooks that raise errors in whole sentences, and the walk that turns the tree of exceptions into
`Problem`s, as `cattrs.transform_error` does into strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, get_origin

import attrs

from ..errors import Problem, SettingsError
from .fields import kind_of
from .kinds import Choice, Kind, Many, Number, Switch, Text, Unfit, WholeNumber, did_you_mean, got
from .launch_kinds import Pairs

if TYPE_CHECKING:
    import cattrs

T = TypeVar("T")


def structure(data: object, cls: type[T], *, source: str = "") -> T:
    """Make a `cls` of plain data, as YAML or JSON gives it.

    Strict: no unknown or repeated keys, `true` is no number, 3 is no text. Keys of classes may be
    written with `-` for `_`. Raises SettingsError with all problems; each path is `source`, if
    given, and the dotted path in the data: `launch.yaml: launchers[1].model`.

    A class may have a method `cross_checks` that yields Problems: what no single field can tell.
    It is asked once all fields are good; its paths are relative to the object.
    """
    value, problems = try_structure(data, cls)
    if problems:
        raise SettingsError([at(source, problem) for problem in problems])
    assert value is not None
    return value


def try_structure(data: object, cls: type[T]) -> tuple[T | None, list[Problem]]:
    """As `structure`, but the problems are returned; their paths are the dotted ones alone."""
    from cattrs.errors import BaseValidationError

    try:
        return _converter().structure(data, cls), []
    except (BaseValidationError, Unfit) as error:
        return None, _problems(error, "")


def at(source: str, problem: Problem) -> Problem:
    """`problem` with the file it was found in."""
    path = ": ".join(filter(None, (source, problem.path)))
    return Problem(path, problem.message)


def key_name(key: object) -> object:
    """The field that a key of a YAML mapping means: `worker-urls` is `worker_urls`."""
    return key.replace("-", "_") if isinstance(key, str) else key


class _RepeatedKey(Unfit):
    pass


class _Inconsistent(Unfit):
    """Something that a class's own `cross_checks` found; the argument is a Problem."""


@cache
def _converter() -> cattrs.Converter:
    # Imported late: --help and --version do without, and so start faster.
    import cattrs
    from cattrs.cols import (
        is_mapping,
        is_sequence,
        list_structure_factory,
        mapping_structure_factory,
    )

    converter = cattrs.Converter(detailed_validation=True, forbid_extra_keys=True)

    converter.register_structure_hook(bool, _hook(Switch().parse))
    converter.register_structure_hook(int, _hook(WholeNumber().parse))
    converter.register_structure_hook(float, _hook(Number().parse))
    converter.register_structure_hook(str, _hook(_text))
    converter.register_structure_hook(Enum, _hook(_text))

    # Left to itself, cattrs makes a list of the letters of a string, and of the keys of a mapping.
    def list_hook(type_: Any, converter: cattrs.Converter) -> Callable[[object, Any], Any]:
        inner: Callable[..., Any] = list_structure_factory(type_, converter)
        container = tuple if get_origin(type_) is tuple else list

        def hook(value: object, _: Any) -> Any:
            if not isinstance(value, list | tuple):
                raise Unfit(f"expected a list, got {got(value)}")
            return container(inner(value, type_))

        return hook

    def mapping_hook(type_: Any, converter: cattrs.Converter) -> Callable[[object, Any], Any]:
        inner: Callable[..., Any] = mapping_structure_factory(type_, converter)

        def hook(value: object, _: Any) -> Any:
            if not isinstance(value, Mapping):
                raise Unfit(f"expected a mapping, got {got(value)}")
            return inner(value, type_)

        return hook

    def is_list(type_: Any) -> bool:
        arguments: tuple[object, ...] = getattr(type_, "__args__", ())
        if get_origin(type_) is tuple:
            return len(arguments) == 2 and arguments[1] is Ellipsis
        return bool(is_sequence(type_)) and type_ is not str

    converter.register_structure_hook_factory(is_list)(list_hook)
    converter.register_structure_hook_factory(is_mapping)(mapping_hook)
    converter.register_structure_hook_factory(attrs.has)(_class_hook)
    return converter


def _hook(parse: Callable[[object], object]) -> Callable[[object, Any], Any]:
    def hook(value: object, type_: Any) -> Any:
        # cattrs takes the hook of str for a StrEnum, and that of int for an IntEnum.
        is_enum = isinstance(type_, type) and issubclass(type_, Enum)
        return Choice(type_).parse(value) if is_enum else parse(value)

    return hook


def _text(value: object) -> object:
    """Text that may be empty: only settings (`Text`) have a reason to refuse that."""
    return value if isinstance(value, str) else Text().parse(value)


def _many_hook(kind: Many) -> Callable[[object, Any], Any]:
    """As `kind.parse`, but with cattrs's notes of where each wrong item stands."""
    from cattrs.errors import IterableValidationError, IterableValidationNote

    def hook(value: object, type_: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise kind.unfit(value)
        made, errors = [], []
        for index, item in enumerate(value):
            try:
                made.append(kind.item.parse(item))
            except Unfit as unfit:
                unfit.__notes__ = [IterableValidationNote(f"index {index}", index, type_)]
                errors.append(unfit)
        if errors:
            raise IterableValidationError("wrong items", errors, type_)
        return tuple(made)

    return hook


def _pairs_hook(kind: Pairs) -> Callable[[object, Any], Any]:
    """As `kind.parse`, with notes of which pair is wrong."""
    from cattrs.errors import IterableValidationError, IterableValidationNote

    def hook(value: object, type_: Any) -> Any:
        if not isinstance(value, Mapping):
            raise kind.unfit(value)
        made, errors = {}, []
        for name, text in value.items():
            try:
                made[kind.name(name)] = kind.text(name, text)
            except Unfit as unfit:
                unfit.__notes__ = [IterableValidationNote(f"key {name!r}", str(name), type_)]
                errors.append(unfit)
        if errors:
            raise IterableValidationError("wrong pairs", errors, type_)
        return made

    return hook


def _kind_hook(kind: Kind) -> Callable[[object, Any], Any]:
    match kind:
        case Many():
            return _many_hook(kind)
        case Pairs():
            return _pairs_hook(kind)
        case _:
            return _hook(kind.parse)


def _class_hook(cls: Any, converter: cattrs.Converter) -> Callable[[object, Any], Any]:
    from cattrs.errors import ClassValidationError
    from cattrs.gen import make_dict_structure_fn, override

    kinds = {a.name: kind_of(a) for a in attrs.fields(cls)}
    overrides: dict[str, Any] = {
        name: override(struct_hook=_kind_hook(kind))
        for name, kind in kinds.items()
        if kind is not None
    }
    cross_checks = getattr(cls, "cross_checks", None)
    inner: Callable[..., Any] = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, **overrides
    )

    def hook(value: object, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Unfit(f"expected a mapping, got {got(value)}")
        renamed: dict[object, object] = {}
        repeated: list[Exception] = []
        for key, item in value.items():
            if key_name(key) in renamed:
                repeated.append(_RepeatedKey(key_name(key)))
            renamed[key_name(key)] = item
        try:
            made = inner(renamed, cls)
        except ClassValidationError as error:
            if not repeated:
                raise
            raise error.derive([*error.exceptions, *repeated]) from None
        if repeated:
            raise ClassValidationError("repeated keys", repeated, cls)
        if cross_checks is not None:
            wrong = [_Inconsistent(problem) for problem in cross_checks(made)]
            if wrong:
                raise ClassValidationError("inconsistent", wrong, cls)
        return made

    return hook


def _problems(error: Exception, path: str) -> list[Problem]:
    from cattrs.errors import (
        ClassValidationError,
        ForbiddenExtraKeysError,
        IterableValidationError,
    )

    problems: list[Problem] = []
    if isinstance(error, ClassValidationError):
        fields, rest = error.group_exceptions()
        for inner, note in fields:
            problems += _problems(inner, _join(path, note.name))
    elif isinstance(error, IterableValidationError):
        items, rest = error.group_exceptions()
        for inner, item_note in items:
            problems += _problems(inner, _join(path, item_note.index))
    elif isinstance(error, ForbiddenExtraKeysError):
        known = [attribute.name for attribute in attrs.fields(error.cl) if attribute.init]
        for key in sorted(error.extra_fields, key=str):
            hint = did_you_mean(key, known)
            problems.append(Problem(_join(path, key, key=True), f"unknown key{hint}"))
        return problems
    elif isinstance(error, _RepeatedKey):
        message = "is given twice, once with '-' and once with '_'"
        return [Problem(_join(path, error.args[0]), message)]
    elif isinstance(error, _Inconsistent):
        found: Problem = error.args[0]
        separator = "." if path and found.path and not found.path.startswith("[") else ""
        return [Problem(f"{path}{separator}{found.path}", found.message)]
    elif isinstance(error, KeyError):
        return [Problem(path, "is required")]
    elif isinstance(error, ValueError | TypeError):
        return [Problem(path, str(error))]  # from our hooks, or from a validator of the class
    else:
        raise error  # a mistake in the program, such as a type that cattrs does not know
    for inner in rest:
        problems += _problems(inner, path)
    return problems


def _join(path: str, part: object, *, key: bool = False) -> str:
    """`path` and one step more: `.name`, or `[3]` for an index."""
    if isinstance(part, int) and not key:
        return f"{path}[{part}]"
    name = str(part) if re.fullmatch(r"[\w-]+", str(part)) else f"[{got(part)}]"
    return f"{path}.{name}" if path and not name.startswith("[") else path + name
