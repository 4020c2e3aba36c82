"""The settings themselves. To add one, add a field; nothing else has to be told."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from attrs import frozen

from ..errors import Problem
from .fields import setting
from .kinds import Choice, Duration, Many, Number, Size, Switch, Text, WholeNumber
from .launcher import LauncherSettings, same_names
from .static import WorkerSettings

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

_SHORTEST = 0.001


class RoutingAlgorithm(StrEnum):
    """How a worker is chosen among those that are free."""

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
class RouterSettings:
    """Everything that `serve` can be told. Times in seconds, sizes in bytes."""

    host: str = setting(
        "0.0.0.0",
        Text(),
        metavar="HOST",
        group="Listening",
        help="address to listen on",
    )
    port: int = setting(
        30080,
        WholeNumber(0, 65535),
        group="Listening",
        help="port to listen on; 0 picks a free one",
    )
    shutdown_timeout: float = setting(
        60.0,
        Duration(0),
        group="Listening",
        help="after Ctrl-C or SIGTERM, how long requests in flight may still take",
    )
    worker_urls: tuple[str, ...] = setting(
        (),
        Many(Text()),
        metavar="URL",
        default_text="none",
        group="Workers",
        help="workers to route to, such as http://10.0.0.5:30000; more can register while it runs",
    )
    resolve_all: bool = setting(
        False,
        Switch(),
        group="Workers",
        help="take each address of a worker's name as a worker of its own, and follow the name",
    )
    max_connections: int | None = setting(
        None,
        WholeNumber(1, none=True),
        default_text="as many as it takes",
        group="Workers",
        help="most connections to one worker at a time",
    )
    launcher_config: str | None = setting(
        None,
        Text(optional=True),
        metavar="FILE",
        default_text="none",
        group="Workers",
        help="YAML file that says which workers to start",
    )
    keep_workers: bool = setting(
        False,
        Switch(),
        group="Workers",
        help="leave the started workers running at the end; the next start takes them over",
    )
    # Only in the file: they are no single values. See docs/operations.md and docs/launching.md.
    workers: tuple[WorkerSettings, ...] = ()
    launcher: LauncherSettings | None = None
    launchers: tuple[LauncherSettings, ...] = ()
    worker_ca: str | None = setting(
        None,
        Text(optional=True),
        metavar="FILE",
        default_text="those of the system",
        group="Workers",
        help="file with the certificates (PEM) that https workers are checked with",
    )
    worker_insecure: bool = setting(
        False,
        Switch(),
        group="Workers",
        help="take any certificate from https workers",
    )
    worker_api_key: str | None = setting(
        None,
        Text(optional=True),
        metavar="KEY",
        default_text="none",
        group="Workers",
        help="key that is sent to every worker, in place of what clients send; better use a file",
    )
    worker_api_key_file: str | None = setting(
        None,
        Text(optional=True),
        metavar="FILE",
        default_text="none",
        group="Workers",
        help="file that holds the key of the workers",
    )
    routing_algorithm: RoutingAlgorithm = setting(  # noqa: RUF009 - makes an attrs field
        RoutingAlgorithm.LEAST_REQUEST,
        Choice(RoutingAlgorithm),
        group="Routing",
        help="how a worker is chosen among those that are free",
    )
    strict_model: bool = setting(
        False,
        Switch(),
        group="Routing",
        help="refuse a model that no worker serves even where all workers serve one model",
    )
    retries: int = setting(
        3,
        WholeNumber(0, 100),
        group="Routing",
        help="how many more workers to try when one fails before it had the whole request",
    )
    queue_size: int = setting(
        10_000,
        WholeNumber(0),
        group="Routing",
        help="requests that may wait for a worker; more are refused with 503",
    )
    queue_bytes: int = setting(
        GIB,
        Size(1),
        group="Routing",
        help="memory for the bodies of requests that wait for a worker, and as much in temporary"
        " files for bodies that are read for their model; more are refused with 503",
    )
    queue_timeout: float | None = setting(
        None,
        Duration(_SHORTEST, none=True),
        default_text="that of --timeout",
        group="Routing",
        help="longest wait for a worker, then 503",
    )
    queue_order: QueueOrder = setting(  # noqa: RUF009 - makes an attrs field
        QueueOrder.FIFO,
        Choice(QueueOrder),
        group="Routing",
        help="which waiting request of a client goes first; longest-first ends a burst soonest",
    )
    worker_concurrency: int | None = setting(
        None,
        WholeNumber(1, 10_000, none=True, word="auto"),
        default_text="auto",
        group="Routing",
        help="generations that a worker gets at a time; auto: its data-parallel size"
        " times the size of its batches, where that is known",
    )
    max_jobs_per_worker: int = setting(
        100,
        WholeNumber(1),
        group="Routing",
        help="unfinished video and mesh jobs of one worker; more are refused with 503",
    )
    health_check_interval: float = setting(
        10.0,
        Duration(_SHORTEST),
        group="Health",
        help="time between two health probes of a worker",
    )
    health_check_failure_threshold: int = setting(
        3,
        WholeNumber(1),
        group="Health",
        help="failed probes in a row after which a worker is unhealthy",
    )
    ejection_failures: int | None = setting(
        2,
        WholeNumber(2, none=True),
        group="Health",
        help="fewest failed generations in a row that put a worker on trial while others succeed;"
        " none: never",
    )
    ejection_pause: float = setting(
        1.0,
        Duration(_SHORTEST),
        group="Health",
        help="time until a worker on trial gets a request; doubled after each that fails",
    )
    ejection_max_pause: float = setting(
        60.0,
        Duration(_SHORTEST),
        group="Health",
        help="longest such time, and longest pause that a worker gets which asks for one by"
        " Retry-After",
    )
    timeout: float = setting(
        1800.0,
        Duration(_SHORTEST),
        group="Limits",
        help="longest wait from the request being sent to the head of the worker's answer, and"
        " for one of --max-connections",
    )
    connect_timeout: float = setting(
        5.0,
        Duration(_SHORTEST),
        group="Limits",
        help="longest wait for a connection to a worker",
    )
    idle_timeout: float = setting(
        300.0,
        Duration(_SHORTEST),
        group="Limits",
        help="longest pause between two pieces of a body",
    )
    client_send_timeout: float | None = setting(
        None,
        Duration(_SHORTEST, none=True),
        default_text="that of --idle-timeout",
        group="Limits",
        help="longest time that a client may take no byte of its answer",
    )
    peek_limit: int = setting(
        MIB,
        Size(1),
        group="Limits",
        help="how much of a body is held in memory to read what routing needs",
    )
    facts_limit: int = setting(
        64 * MIB,
        Size(1),
        group="Limits",
        help="how much of a body is read to find its model where several are served; what is more"
        " than --peek-limit waits in a temporary file",
    )
    max_request_bytes: int = setting(
        GIB,
        Size(1),
        group="Limits",
        help="largest request body; weight updates are exempt",
    )
    websocket_max_message: int = setting(
        64 * MIB,
        Size(1),
        group="Limits",
        help="largest WebSocket message, either way",
    )
    refit_timeout: float = setting(
        1800.0,
        Duration(_SHORTEST),
        group="Limits",
        help="longest wait for a worker's answer to a weight, LoRA or memory call",
    )
    drain_timeout: float = setting(
        1800.0,
        Duration(_SHORTEST),
        group="Limits",
        help="longest wait for a worker's generations and jobs to end, before it is changed",
    )
    trust_external_weights: bool = setting(
        False,
        Switch(),
        group="Limits",
        help="route to every worker whatever weights it has; they are managed elsewhere",
    )
    max_assets: int = setting(
        1_000_000,
        WholeNumber(1),
        group="Limits",
        help="videos, meshes and images whose worker is remembered; the oldest finished go first",
    )
    state_dir: str | None = setting(
        None,
        Text(optional=True),
        metavar="DIR",
        default_text="by host name and port, in the user's state directory",
        group="State",
        help="directory for what a restart must not lose; none keeps nothing",
    )
    fresh: bool = setting(
        False,
        Switch(),
        group="State",
        help="begin without what is in the state directory; it is set aside there",
    )
    state_best_effort: bool = setting(
        False,
        Switch(),
        group="State",
        help="while the state cannot be written, acknowledge changes rather than refuse them",
    )
    trust_downtime: float = setting(
        0.0,
        Duration(0),
        group="State",
        help="take workers for the same processes, without proof, if no router ran for less",
    )
    resume_weights: bool = setting(
        False,
        Switch(),
        group="State",
        help="go on with the weight versions of a model whose workers all ended with the router"
        " before; else such a model starts anew with the weights of its workers' start",
    )
    admin_api_key: str | None = setting(
        None,
        Text(optional=True),
        metavar="KEY",
        default_text="none",
        group="Access",
        help="key that changes of workers, weights and memory need, and workers' logs; generation"
        " stays open. Other users of the machine see it among the running programs: better use a"
        " file",
    )
    admin_api_key_file: str | None = setting(
        None,
        Text(optional=True),
        metavar="FILE",
        default_text="none",
        group="Access",
        help="file that holds the admin key",
    )
    log_level: LogLevel = setting(  # noqa: RUF009 - makes an attrs field
        LogLevel.INFO,
        Choice(LogLevel),
        metavar="LEVEL",
        group="Output",
        help="least important messages that are logged",
    )
    verbose: bool = setting(
        False,
        Switch(),
        group="Output",
        help="log everything, as --log-level debug does",
    )

    @property
    def effective_log_level(self) -> LogLevel:
        """`log_level`, unless `verbose` says debug."""
        return LogLevel.DEBUG if self.verbose else self.log_level

    def problems(self) -> Iterator[Problem]:
        """What no single field can tell. The one place for such checks; paths are field names."""
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
class DemoSettings:
    """Everything that `demo` can be told."""

    host: str = setting(
        "127.0.0.1",
        Text(),
        metavar="HOST",
        group="Router",
        help="address the router listens on",
    )
    port: int = setting(
        30081,
        WholeNumber(0, 65535),
        group="Router",
        help="port the router listens on; 0 picks a free one",
    )
    workers: int = setting(
        2,
        WholeNumber(1, 64),
        group="Simulated workers",
        help="how many simulated workers to start",
    )
    worker_base_port: int = setting(
        0,
        WholeNumber(0, 65535),
        group="Simulated workers",
        help="port of the first worker, each takes two; 0 picks free ones",
    )
    time_scale: float = setting(
        1.0,
        Number(0.001, 1000),
        group="Simulated workers",
        help="how long a simulated generation takes; 2 makes all twice as slow",
    )
    check: bool = setting(
        False,
        Switch(),
        group="What to do",
        help="run one whole round by itself, print each step, and end with its outcome",
    )
    verbose: bool = setting(
        False,
        Switch(),
        group="What to do",
        help="show what the router and the workers log",
    )

    def problems(self) -> Iterator[Problem]:
        """What no single field can tell; paths are field names."""
        # A worker also takes the port after its own (worker contract, "Starting").
        if self.worker_base_port and self.worker_base_port + 2 * self.workers > 65536:
            yield Problem(
                "worker_base_port",
                f"{self.workers} workers take {2 * self.workers} ports from here,"
                f" so expected at most {65536 - 2 * self.workers}, got {self.worker_base_port}",
            )
