"""Workers that the configuration file names one by one, each with settings of its own."""

from __future__ import annotations

import attrs
from attrs import frozen

from .fields import setting
from .kinds import Text, WholeNumber


@frozen(kw_only=True)
class WorkerSettings:
    """One worker that somebody else has started."""

    url: str = setting(
        attrs.NOTHING,
        Text(),
        default_text="required",
        group="Workers",
        help="its address, such as http://10.0.0.5:30000",
    )
    max_concurrency: int | None = setting(
        None,
        WholeNumber(1, 10_000, none=True, word="auto"),
        default_text="auto",
        group="Workers",
        help="generations that it gets at a time; auto: as --worker-concurrency says",
    )
