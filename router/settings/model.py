"""The settings themselves. To add one, add a field; no other code changes."""

# No `from __future__ import annotations`: the kinds in annotations must be evaluated.

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import attrs
from attrs import frozen

from ..errors import Problem
from .fields import setting
from .kinds import (
    Bytes,
    Choice,
    Count,
    Duration,
    File,
    Key,
    Many,
    Number,
    OptionalTime,
    Port,
    Slots,
    Text,
    Time,
    WholeNumber,
)
from .launcher import LauncherSettings, same_names, too_many_ports
from .sections import Section, Settings


class RoutingAlgorithm(StrEnum):
    """How one of the free workers is chosen."""

    LEAST_REQUEST = "least-request"
    ROUND_ROBIN = "round-robin"
    RANDOM = "random"
    POWER_OF_TWO = "power-of-two"
    LEAST_WORK = "least-work"


class QueueOrder(StrEnum):
    """Which waiting request of a client is served first."""

    FIFO = "fifo"
    LONGEST_FIRST = "longest-first"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@frozen(kw_only=True)
class WorkerSettings(Settings):
    """One worker in the file that was started elsewhere."""

    url: str = setting(attrs.NOTHING, "its address, such as http://10.0.0.5:30000")
    max_concurrency: Slots = setting(
        "auto", "generations that it gets at a time; auto: as --worker-concurrency says"
    )


@frozen(kw_only=True)
class RouterSettings(Settings):
    """All settings of `serve`. Times in seconds, sizes in bytes."""

    host: Annotated[str, Text(metavar="HOST")] = setting(
        "0.0.0.0", "address to listen on", group="Listening"
    )
    port: Port = setting(30080, "port to listen on; 0 picks a free one")
    shutdown_timeout: Annotated[float, Duration("0s")] = setting(
        "1m", "after Ctrl-C or SIGTERM, how long requests in flight may still take"
    )
    worker_urls: Annotated[tuple[str, ...], Many(Text(metavar="URL"))] = setting(
        (),
        "workers to route to, such as http://10.0.0.5:30000; more can register while it runs",
        group="Workers",
    )
    resolve_all: bool = setting(
        "off", "take each address of a worker's name as a worker of its own, and follow the name"
    )
    max_connections: Annotated[int | None, WholeNumber(1, none="none")] = setting(
        "none", "most connections to one worker at a time", default_text="as many as it takes"
    )
    launcher_config: File = setting(None, "YAML file that says which workers to start")
    keep_workers: bool = setting(
        "off", "leave the started workers running at the end; the next start takes them over"
    )
    # Only in the file, because they have parts. See docs/operations.md and docs/launching.md.
    workers: Annotated[tuple[WorkerSettings, ...], Many(Section(WorkerSettings))] = setting(())
    launcher: Annotated[LauncherSettings | None, Section(LauncherSettings, True)] = setting(None)
    launchers: Annotated[tuple[LauncherSettings, ...], Many(Section(LauncherSettings))] = setting(
        ()
    )
    worker_ca: File = setting(
        None,
        "file with the certificates (PEM) that https workers are checked with",
        default_text="those of the system",
    )
    worker_insecure: bool = setting("off", "take any certificate from https workers")
    worker_api_key: Key = setting(
        None, "key that is sent to every worker, in place of what clients send; better use a file"
    )
    worker_api_key_file: File = setting(None, "file that holds the key of the workers")
    routing_algorithm: RoutingAlgorithm = setting(
        "least-request", "how a worker is chosen among those that are free", group="Routing"
    )
    strict_model: bool = setting(
        "off", "refuse a model that no worker serves even where all workers serve one model"
    )
    retries: Annotated[int, WholeNumber(0, 100)] = setting(
        3, "how many more workers to try when one fails before it had the whole request"
    )
    queue_size: Annotated[int, WholeNumber(0)] = setting(
        10_000, "requests that may wait for a worker; more are refused with 503"
    )
    queue_bytes: Bytes = setting(
        "1GiB",
        "memory for the bodies of requests that wait for a worker, and as much in temporary"
        " files for bodies that are read for their model; more are refused with 503",
    )
    queue_timeout: OptionalTime = setting(
        "none", "longest wait for a worker, then 503", default_text="that of --timeout"
    )
    queue_order: QueueOrder = setting(
        "fifo", "which waiting request of a client goes first; longest-first ends a burst soonest"
    )
    worker_concurrency: Slots = setting(
        "auto",
        "generations that a worker gets at a time; auto: its data-parallel size times the"
        " size of its batches, where that is known",
    )
    max_jobs_per_worker: Count = setting(
        100, "unfinished video and mesh jobs of one worker; more are refused with 503"
    )
    health_check_interval: Time = setting(
        "10s", "time between two health probes of a worker", group="Health"
    )
    health_check_failure_threshold: Count = setting(
        3, "failed probes in a row after which a worker is unhealthy"
    )
    ejection_failures: Annotated[int | None, WholeNumber(2, none="none")] = setting(
        2,
        "fewest failed generations in a row that put a worker on trial while others succeed;"
        " none: never",
    )
    ejection_pause: Time = setting(
        "1s", "time until a worker on trial gets a request; doubled after each that fails"
    )
    ejection_max_pause: Time = setting(
        "1m",
        "longest such time, and longest pause that a worker gets which asks for one by Retry-After",
    )
    timeout: Time = setting(
        "30m",
        "longest wait from the request being sent to the head of the worker's answer, and for"
        " one of --max-connections",
        group="Limits",
    )
    connect_timeout: Time = setting("5s", "longest wait for a connection to a worker")
    idle_timeout: Time = setting("5m", "longest pause between two pieces of a body")
    client_send_timeout: OptionalTime = setting(
        "none",
        "longest time that a client may take no byte of its answer",
        default_text="that of --idle-timeout",
    )
    peek_limit: Bytes = setting(
        "1MiB", "how much of a body is held in memory to read what routing needs"
    )
    facts_limit: Bytes = setting(
        "64MiB",
        "how much of a body is read to find its model where several are served; what is more"
        " than --peek-limit waits in a temporary file",
    )
    max_request_bytes: Bytes = setting("1GiB", "largest request body; weight updates are exempt")
    websocket_max_message: Bytes = setting("64MiB", "largest WebSocket message, either way")
    refit_timeout: Time = setting(
        "30m", "longest wait for a worker's answer to a weight, LoRA or memory call"
    )
    drain_timeout: Time = setting(
        "30m", "longest wait for a worker's generations and jobs to end, before it is changed"
    )
    trust_external_weights: bool = setting(
        "off", "route to every worker whatever weights it has; they are managed elsewhere"
    )
    max_assets: Count = setting(
        1_000_000,
        "videos, meshes and images whose worker is remembered; the oldest finished go first",
    )
    state_dir: Annotated[str | None, Text(optional=True, metavar="DIR")] = setting(
        None,
        "directory for what a restart must not lose; none keeps nothing",
        group="State",
        default_text="by host name and port, in the user's state directory",
    )
    fresh: bool = setting(
        "off", "begin without what is in the state directory; it is set aside there"
    )
    state_best_effort: bool = setting(
        "off", "while the state cannot be written, acknowledge changes rather than refuse them"
    )
    trust_downtime: Annotated[float, Duration("0s")] = setting(
        "0s", "take workers for the same processes, without proof, if no router ran for less"
    )
    resume_weights: bool = setting(
        "off",
        "go on with the weight versions of a model whose workers all ended with the router"
        " before; else such a model starts anew with the weights of its workers' start",
    )
    admin_api_key: Key = setting(
        None,
        "key that changes of workers, weights and memory need, and workers' logs; generation"
        " stays open. Other users of the machine see it among the running programs: better use"
        " a file",
        group="Access",
    )
    admin_api_key_file: File = setting(None, "file that holds the admin key")
    log_level: Annotated[LogLevel, Choice(LogLevel, metavar="LEVEL")] = setting(
        "info", "least important messages that are logged", group="Output"
    )
    verbose: bool = setting("off", "log everything, as --log-level debug does")

    @property
    def effective_log_level(self) -> LogLevel:
        """`log_level`, or debug if `verbose` is set."""
        return LogLevel.DEBUG if self.verbose else self.log_level

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names. All such checks go here."""
        if self.admin_api_key is not None and self.admin_api_key_file is not None:
            yield Problem("admin_api_key_file", "cannot be given beside admin_api_key")
        if self.worker_api_key is not None and self.worker_api_key_file is not None:
            yield Problem("worker_api_key_file", "cannot be given beside worker_api_key")
        if self.worker_ca is not None and self.worker_insecure:
            yield Problem("worker_insecure", "cannot be given beside worker_ca")
        if self.launcher_config is not None and (self.launcher or self.launchers):
            yield Problem(
                "launcher_config", "cannot be given beside launcher or launchers in the file"
            )
        yield from same_names(self.launcher, self.launchers)


@frozen(kw_only=True)
class DemoSettings(Settings):
    """All settings of `demo`."""

    host: Annotated[str, Text(metavar="HOST")] = setting(
        "127.0.0.1", "address the router listens on", group="Router"
    )
    port: Port = setting(30081, "port the router listens on; 0 picks a free one")
    workers: Annotated[int, WholeNumber(1, 64)] = setting(
        2, "how many simulated workers to start", group="Simulated workers"
    )
    worker_base_port: Port = setting(
        0, "port of the first worker, each takes two; 0 picks free ones"
    )
    time_scale: Annotated[float, Number(0.001, 1000)] = setting(
        1, "how long a simulated generation takes; 2 makes all twice as slow"
    )
    check: bool = setting(
        "off",
        "run one whole round by itself, print each step, and end with its outcome",
        group="What to do",
    )
    verbose: bool = setting("off", "show what the router and the workers log")

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names."""
        yield from too_many_ports(self.worker_base_port, self.workers)
