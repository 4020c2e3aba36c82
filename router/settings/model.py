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
    HostRule,
    Key,
    Many,
    Number,
    OptionalTime,
    Port,
    RunId,
    Slots,
    Text,
    Time,
    WebOrigin,
    WholeNumber,
)
from .launcher import LauncherSettings, same_names, too_many_ports
from .pool_kind import POOL_NAME, Members, PoolMembers
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


class TensorUpdates(StrEnum):
    """What an update of tensors replaces, unless the request says it with `full`."""

    PARTIAL = "partial"
    FULL = "full"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line of the log is written."""

    TEXT = "text"
    JSON = "json"


class AccessLog(StrEnum):
    """Whether each exchange is one line of the log."""

    ON = "on"
    OFF = "off"
    AUTO = "auto"


class WorkerKind(StrEnum):
    """What answers at a worker's URL."""

    SGLANG = "sglang"
    HTTP = "http"


@frozen(kw_only=True)
class WorkerSettings(Settings):
    """One worker in the file that was started elsewhere."""

    url: str = setting(attrs.NOTHING, "address of the worker, such as http://10.0.0.5:30000")
    max_concurrency: Slots = setting(
        "auto",
        "most generations to send to the worker at a time; auto: the value of --worker-concurrency",
    )
    pool: Annotated[str, POOL_NAME] = setting("default", "the pool that it belongs to")
    kind: WorkerKind = setting("sglang", "http: any HTTP server, such as a reward model")
    health_path: Annotated[str, Text("a path", r"/[!-~]*")] = setting(
        "/health", "what a worker of kind http is probed with; any 2xx is healthy"
    )

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names."""
        if self.kind is WorkerKind.HTTP and self.pool == "default":
            yield Problem("pool", "is required for a worker of kind http")
        if self.kind is not WorkerKind.HTTP and self.health_path != "/health":
            yield Problem("health_path", "is only for workers of kind http")


@frozen(kw_only=True)
class RouterSettings(Settings):
    """All settings of `serve`. Times in seconds, sizes in bytes."""

    host: Annotated[str, Text(metavar="HOST")] = setting(
        "0.0.0.0", "address to listen on", group="Listening"
    )
    port: Port = setting(30080, "port to listen on; 0 picks a free port", short="-p")
    tls_cert: File = setting(
        None, "PEM file with the certificate, and its chain, for clients: then https, else http"
    )
    tls_key: File = setting(None, "PEM file with the key of --tls-cert")
    tls_client_ca: File = setting(
        None, "PEM file with CA certificates; clients must have a certificate of one of these CAs"
    )
    shutdown_timeout: Annotated[float, Duration("0s")] = setting(
        "1m", "longest time for requests in flight to finish after Ctrl-C or SIGTERM", live=True
    )
    worker_urls: Annotated[tuple[str, ...], Many(Text(metavar="URL"))] = setting(
        (),
        "URLs of workers, such as http://10.0.0.5:30000; more workers can register while the"
        " router runs",
        group="Workers",
    )
    pool: Annotated[tuple[PoolMembers, ...], Many(Members())] = setting(
        (),
        "workers of a named pool, such as teacher=http://10.0.0.6:30000",
    )
    resolve_all: bool = setting(
        "off",
        "register each address of a worker's host name as a separate worker, and follow changes"
        " of the addresses",
    )
    max_connections: Annotated[int | None, WholeNumber(1, none="none")] = setting(
        "none", "most simultaneous connections to one worker", default_text="no limit"
    )
    launcher_config: File = setting(None, "YAML file that describes the workers to launch")
    keep_workers: bool = setting(
        "off",
        "leave launched workers running when the router stops; the next start takes them over",
    )
    # Only in the file, because they have parts. See docs/operations.md and docs/launching.md.
    workers: Annotated[tuple[WorkerSettings, ...], Many(Section(WorkerSettings))] = setting(())
    launcher: Annotated[LauncherSettings | None, Section(LauncherSettings, True)] = setting(None)
    launchers: Annotated[tuple[LauncherSettings, ...], Many(Section(LauncherSettings))] = setting(
        ()
    )
    worker_ca: File = setting(
        None,
        "PEM file with the CA certificates that verify https workers",
        default_text="the system's certificates",
    )
    worker_insecure: bool = setting("off", "do not verify the certificates of https workers")
    worker_api_key: Key = setting(
        None,
        "API key to send to every worker in place of the client's key; prefer"
        " --worker-api-key-file",
    )
    worker_api_key_file: File = setting(None, "file that contains the API key for the workers")
    routing_algorithm: RoutingAlgorithm = setting(
        "least-request", "how to choose one of the free workers", group="Routing", live=True
    )
    strict_model: bool = setting(
        "off", "refuse an unknown model even if all workers serve the same model"
    )
    retries: Annotated[int, WholeNumber(0, 100)] = setting(
        3,
        "how many more workers to try if a worker fails before it has the whole request",
        live=True,
    )
    queue_size: Annotated[int, WholeNumber(0)] = setting(
        10_000, "most requests that may wait for a worker; further requests get 503", live=True
    )
    queue_bytes: Bytes = setting(
        "1GiB",
        "memory for the bodies of requests that wait for a worker, and the same amount in"
        " temporary files for bodies that are read to find the model; further requests get 503",
        live=True,
    )
    queue_timeout: OptionalTime = setting(
        "none",
        "longest wait for a worker; then the request gets 503",
        default_text="same as --timeout",
        live=True,
    )
    queue_order: QueueOrder = setting(
        "fifo", "order of a client's waiting requests; longest-first finishes a burst soonest"
    )
    priority_ageing: Time = setting(
        "5m",
        "time after which a waiting request rises by one priority, from low to normal to high",
        live=True,
    )
    idempotency_keys: Annotated[int, WholeNumber(0)] = setting(
        10_000,
        "outcomes of requests with an Idempotency-Key that are kept, and as many of jobs;"
        " 0: a retry joins only what still runs",
        live=True,
    )
    idempotency_bytes: Bytes = setting(
        "512MiB",
        "memory for the answers among them; an answer of more than a sixteenth is not kept",
        live=True,
    )
    worker_concurrency: Slots = setting(
        "auto",
        "most generations to send to one worker at a time; auto: the worker's data-parallel size"
        " times its batch size, where known",
    )
    max_jobs_per_worker: Count = setting(
        100, "most unfinished video and mesh jobs of one worker; further jobs get 503", live=True
    )
    health_check_interval: Time = setting(
        "10s", "time between two health probes of a worker", group="Health", live=True
    )
    health_check_failure_threshold: Count = setting(
        3, "failed probes in a row that make a worker unhealthy", live=True
    )
    ejection_failures: Annotated[int | None, WholeNumber(2, none="none")] = setting(
        2,
        "fewest failed generations in a row that put a worker on trial while other workers"
        " succeed; none: never",
        live=True,
    )
    ejection_pause: Time = setting(
        "1s", "time until a worker on trial gets a request; doubles after each failure", live=True
    )
    ejection_max_pause: Time = setting(
        "1m",
        "upper limit of the doubled --ejection-pause, and of a pause that a worker requests by"
        " Retry-After",
        live=True,
    )
    timeout: Time = setting(
        "30m",
        "longest wait for the head of a worker's answer after the request is sent, and for a free"
        " connection under --max-connections",
        group="Limits",
        live=True,
    )
    connect_timeout: Time = setting("5s", "longest wait for a connection to a worker", live=True)
    idle_timeout: Time = setting("5m", "longest pause between two pieces of a body", live=True)
    client_send_timeout: OptionalTime = setting(
        "none",
        "longest time during which a client may read nothing of its answer",
        default_text="same as --idle-timeout",
        live=True,
    )
    max_client_connections: Annotated[int | None, WholeNumber(1, none="none")] = setting(
        "none",
        "most simultaneous connections of clients; further ones get 503",
        default_text="no limit",
        live=True,
    )
    peek_limit: Bytes = setting(
        "1MiB", "how much of a request body to hold in memory to read what routing needs", live=True
    )
    facts_limit: Bytes = setting(
        "64MiB",
        "how much of a request body to read to find the model if the pool serves several; the"
        " part beyond --peek-limit goes to a temporary file",
        live=True,
    )
    max_request_bytes: Bytes = setting(
        "1GiB", "largest request body; weight updates are exempt", live=True
    )
    websocket_max_message: Bytes = setting("64MiB", "largest WebSocket message in either direction")
    refit_timeout: Time = setting(
        "30m", "longest wait for a worker's answer to a weight, LoRA or memory call", live=True
    )
    drain_timeout: Time = setting(
        "30m",
        "longest wait for a worker's work to end before a change of its weights or memory",
        live=True,
    )
    trust_external_weights: bool = setting(
        "off", "route to every worker whatever its weights, because another system manages weights"
    )
    tensor_updates: TensorUpdates = setting(
        "partial",
        "whether an update of tensors replaces all weights; a request may say otherwise. After a"
        " full update, workers that missed earlier updates are current",
    )
    max_assets: Count = setting(
        1_000_000,
        "most videos, meshes and images whose worker the router remembers; the router forgets the"
        " oldest finished ones first",
    )
    state_dir: Annotated[str | None, Text(optional=True, metavar="DIR")] = setting(
        None,
        "directory for the state that survives a restart; none: keep no state",
        group="State",
        default_text="named by host and port, in the user's state directory",
    )
    fresh: bool = setting(
        "off", "start without the old state, and move it to before-fresh in the state directory"
    )
    state_best_effort: bool = setting(
        "off", "while the state cannot be written, acknowledge changes instead of refusing them"
    )
    trust_downtime: Annotated[float, Duration("0s")] = setting(
        "0s",
        "if the router was down for less than this time, treat workers as the same processes"
        " without proof",
    )
    run_id: RunId = setting(
        None,
        "name of the trainer's run; weight versions continue only while it stays the same",
        default_text="the environment variable SGLANG_D_ROUTER_RUN_ID",
    )
    fresh_weights: bool = setting(
        "off",
        "begin anew with weights at this start: keep no recipe of the old state, and have workers"
        " load the weights of their start; numbers continue",
    )
    resume_weights: bool = setting(
        "off",
        "keep the weight versions of a model whose workers all end with the router; without this"
        " flag, such a model starts again with the weights that its workers load",
    )
    admin_api_key: Key = setting(
        None,
        "key that clients need to change workers, weights or memory, or to read workers' logs;"
        " generation stays open. Other users of this machine can see the key in the process list:"
        " prefer --admin-api-key-file",
        group="Access",
    )
    admin_api_key_file: File = setting(None, "file that contains the admin key")
    cors_origin: Annotated[tuple[str, ...], Many(WebOrigin())] = setting(
        (),
        "origins of web pages that may use the router, such as https://tools.example.org; *: any."
        " Others may not read answers, and not send what changes something",
    )
    allowed_worker_hosts: Annotated[tuple[str, ...], Many(HostRule())] = setting(
        (),
        "where workers may be: host names, patterns such as *.internal, and networks such as"
        " 10.0.0.0/8 for the address that a name leads to",
        default_text="everywhere",
        live=True,
    )
    log_level: Annotated[LogLevel, Choice(LogLevel, metavar="LEVEL")] = setting(
        "info", "lowest level of the messages to log", group="Output", live=True
    )
    verbose: bool = setting(
        "off", "log everything; same as --log-level debug", live=True, short="-v"
    )
    log_format: LogFormat = setting("text", "text: lines for people; json: one object per line")
    access_log: AccessLog = setting(
        "auto",
        "log each request at its end; auto: if standard error is a terminal",
        live=True,
    )
    dashboard_previews: bool = setting(
        "off",
        "show the newest images on the live page; they stay in memory, and need the admin key if"
        " there is one",
    )
    log_prompts: bool = setting(
        "off",
        "allow prompts in the log: in its lines about requests, and in the last output of workers"
        " that have served and died",
        live=True,
    )

    @property
    def effective_log_level(self) -> LogLevel:
        """`log_level`, or debug if `verbose` is set."""
        return LogLevel.DEBUG if self.verbose else self.log_level

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names. All such checks go here."""
        if self.admin_api_key is not None and self.admin_api_key_file is not None:
            yield Problem("admin_api_key_file", "cannot be combined with admin_api_key")
        if self.worker_api_key is not None and self.worker_api_key_file is not None:
            yield Problem("worker_api_key_file", "cannot be combined with worker_api_key")
        if (self.tls_cert is None) != (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            yield Problem(missing, "is missing: tls_cert and tls_key belong together")
        if self.tls_client_ca is not None and self.tls_cert is None:
            yield Problem("tls_client_ca", "needs tls_cert and tls_key")
        if self.worker_ca is not None and self.worker_insecure:
            yield Problem("worker_insecure", "cannot be combined with worker_ca")
        if self.launcher_config is not None and (self.launcher or self.launchers):
            yield Problem(
                "launcher_config",
                "cannot be combined with launcher or launchers in the configuration file",
            )
        yield from same_names(self.launcher, self.launchers)
        yield from self._pool_problems()

    def _pool_problems(self) -> Iterator[Problem]:
        """A pool's workers are of one kind."""
        kinds = {each.pool: each.kind for each in self.workers if each.kind is WorkerKind.HTTP}
        for index, each in enumerate(self.workers):
            if kinds.get(each.pool, each.kind) is not each.kind:
                yield Problem(f"workers[{index}].kind", f"the pool {each.pool} has the kind http")
        for index, members in enumerate(self.pool):
            if members.name in kinds:
                yield Problem(f"pool[{index}]", f"the pool {members.name} has the kind http")


@frozen(kw_only=True)
class DemoSettings(Settings):
    """All settings of `demo`."""

    host: Annotated[str, Text(metavar="HOST")] = setting(
        "127.0.0.1", "address the router listens on", group="Router"
    )
    port: Port = setting(30081, "port the router listens on; 0 picks a free port", short="-p")
    workers: Annotated[int, WholeNumber(1, 64)] = setting(
        2, "number of simulated workers", group="Simulated workers"
    )
    worker_base_port: Port = setting(
        0, "port of the first worker; each worker takes two ports; 0 picks free ports"
    )
    time_scale: Annotated[float, Number(0.001, 1000)] = setting(
        1, "factor on the duration of simulated generations; 2 makes them twice as slow"
    )
    check: bool = setting(
        "off",
        "try registration, image, video, refit, sleep and wake, print each result, and exit",
        group="Mode",
    )
    verbose: bool = setting("off", "print the logs of the router and the workers", short="-v")

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names."""
        yield from too_many_ports(self.worker_base_port, self.workers)
