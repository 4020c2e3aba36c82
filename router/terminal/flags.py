"""The flags of the commands that ask a running router."""

# No `from __future__ import annotations`: the kinds in annotations must be evaluated.

import os
import re
from typing import Annotated, TypeVar

from attrs import evolve, frozen

from ..errors import Problem
from ..settings import Settings, setting
from ..settings.files import key_in
from ..settings.kinds import Count, Duration, File, Key, Text, Time, WholeNumber, noting

URL, DEFAULT_URL = "SGLANG_D_ROUTER_URL", "http://127.0.0.1:30080"
KEY = "SGLANG_D_ROUTER_ADMIN_API_KEY"
_ADDRESS = Text(
    f"the address of a router, such as {DEFAULT_URL}",
    r"https?://[^\s/?#@]+(/[^\s?#]*)?",
    optional=True,
    metavar="URL",
)
_Name = Annotated[str | None, Text(optional=True, metavar="NAME")]


@frozen(kw_only=True)
class Asking(Settings):
    """Where the router is, and the key."""

    url: Annotated[str | None, _ADDRESS] = setting(
        None,
        "address of the router",
        group="Router",
        default_text=f"the environment variable {URL}, else {DEFAULT_URL}",
    )
    admin_api_key_file: File = setting(
        None,
        "file that contains the router's admin key",
        default_text=f"the key in the environment variable {KEY}",
    )
    ca: File = setting(
        None,
        "PEM file with the CA certificates that verify an https router",
        default_text="the system's certificates",
    )
    cert: File = setting(
        None, "PEM file with a certificate and its key, for a router that asks clients for one"
    )
    admin_api_key: Key = setting(None)


@frozen(kw_only=True)
class Reading(Asking):
    """Flags of commands that print a table."""

    json: bool = setting("off", "print the router's JSON instead", group="Output")


@frozen(kw_only=True)
class Jobs(Reading):
    """Flags of `jobs`."""

    limit: Annotated[int, WholeNumber(1, 100)] = setting(
        20, "most jobs of a kind, the newest first", group="Choice", short="-n"
    )


@frozen(kw_only=True)
class Logs(Reading):
    """Flags of `logs`."""

    tail: Annotated[int, WholeNumber(1, 10_000)] = setting(
        100, "how many of the last lines to print", group="Choice", short="-n"
    )
    follow: bool = setting(
        "off", "go on with new lines until the worker is removed, or Ctrl-C", short="-f"
    )


@frozen(kw_only=True)
class Drain(Reading):
    """Flags of `drain`."""

    now: bool = setting("off", "do not wait until the work has ended", group="Waiting")
    within: Annotated[float, Duration("0s")] = setting(
        "30m", "longest wait until the work has ended"
    )


@frozen(kw_only=True)
class Remove(Reading):
    """Flags of `remove`."""

    drain: bool = setting(
        "off", "let the work end first; workers that the router launched always do", group="Waiting"
    )


@frozen(kw_only=True)
class Choosing(Reading):
    """Flags of what concerns all workers of a model."""

    model: _Name = setting(None, "only workers of this model", group="Choice")
    pool: _Name = setting(None, "only workers of this pool")


@frozen(kw_only=True)
class Refit(Choosing):
    """Flags of `refit`."""

    rolling: Annotated[
        str | None,
        Text("a number of workers or a share, like 2 or 25%", r"[1-9][0-9]*%?", optional=True),
    ] = setting(None, "how many workers change at a time, while the others serve", group="Order")


@frozen(kw_only=True)
class Sync(Choosing):
    """Flags of `sync`."""

    within: Time = setting("10m", "longest wait", group="Waiting")


@frozen(kw_only=True)
class Scale(Reading):
    """Flags of `scale`."""

    launcher: _Name = setting(
        None, "name of the launcher", group="Choice", default_text="the only one"
    )


@frozen(kw_only=True)
class Bench(Reading):
    """Flags of `bench`."""

    prompts: Count = setting(20, "how many requests to send", group="Load")
    concurrency: Count = setting(4, "how many of them at a time")
    mix: Annotated[
        str,
        Text(
            "kinds and their shares, like image=3,video=1",
            r"(image|video)(=[0-9]{1,4})?(,(image|video)(=[0-9]{1,4})?)*",
            metavar="KIND=N,...",
        ),
    ] = setting("image=1", "shares of images and videos")
    model: _Name = setting(
        None, "model to ask for", group="Requests", default_text="the router chooses"
    )
    size: Annotated[str | None, Text("WIDTHxHEIGHT", r"[0-9]+x[0-9]+", optional=True)] = setting(
        None, "size of the pictures", default_text="the model's"
    )
    steps: Annotated[int | None, WholeNumber(1, none="none")] = setting(
        "none", "denoising steps", default_text="the model's"
    )
    seconds: Count = setting(1, "length of the videos in seconds")
    within: Time = setting("30m", "longest wait for one request", group="Limits")


A = TypeVar("A", bound=Asking)

OF: dict[str, type[Asking]] = {
    **dict.fromkeys(("status", "workers", "queue", "weights"), Reading),
    **dict.fromkeys(("undrain", "recover", "quarantine", "restart"), Reading),
    **dict.fromkeys(("sleep", "wake"), Choosing),
    "jobs": Jobs,
    "logs": Logs,
    "top": Asking,
    "bench": Bench,
    "drain": Drain,
    "remove": Remove,
    "refit": Refit,
    "scale": Scale,
    "sync": Sync,
}


def with_environment(settings: A) -> tuple[A, list[Problem]]:
    """The settings with what the environment says, and the key of the file."""
    problems: list[Problem] = []
    url = settings.url
    key = os.environ.get(KEY, "").strip() or None
    if url is None:
        with noting(problems, URL):
            url = _ADDRESS.parse(os.environ.get(URL) or DEFAULT_URL)
    if settings.admin_api_key_file is not None:
        with noting(problems, "--admin-api-key-file"):
            key = key_in(settings.admin_api_key_file)
    if key is not None and not re.fullmatch(r"[!-~]+", key):
        problems.append(Problem(KEY, "expected printable ASCII characters without spaces"))
    url = None if url is None else url.rstrip("/")
    return evolve(settings, url=url, admin_api_key=key, admin_api_key_file=None), problems
