"""The version numbers that trainers choose for their changes."""

from __future__ import annotations

from ...errors import BadRequest, Conflict
from ...text import LONGEST_LABEL

# The greatest that a trainer may choose. JSON numbers are exact up to 2^53: the router counts on.
MOST = 2**52


class NotGreater(Conflict):
    """The chosen number is not greater than the last one issued or promised."""

    default_code = "weight_version_not_greater"

    def __init__(self, number: int, last: int, model: str, *, stands: bool) -> None:
        retry = (
            f"Version {number} stands: a retry of its change has nothing to do. " if stands else ""
        )
        super().__init__(
            f"{retry}weight_version {number} is not greater than {last}, the last number of"
            f" {model}: give a greater one, none, or a text, which is a label. Several"
            " calls for one version are a transaction (/weights/begin)",
            details={"weight_version": last},
        )


class TooGreat(BadRequest):
    """The chosen number would leave too few for the versions after it."""

    default_code = "invalid_field"

    def __init__(self) -> None:
        super().__init__(f"weight_version must be at most {MOST}; a text is a label")


def check_length(name: str, value: object) -> None:
    """Refuse a text that is longer than a label, a run or a transaction may be. Raises
    BadRequest."""
    if isinstance(value, str) and len(value) > LONGEST_LABEL:
        raise BadRequest(
            f"{name} must have at most {LONGEST_LABEL} characters", code="invalid_field"
        )


def number_of(value: object) -> int | None:
    """The number in a field `weight_version`: a JSON integer, or a string of digits as some
    trainers send. None for any other value, which is a label at most."""
    if type(value) is str and len(value) < 20 and value.isascii() and value.isdigit():
        value = int(value)
    return value if type(value) is int and value <= MOST else None
