"""Which workers fit a request, and what workers say they can do."""

from __future__ import annotations

import pytest

from router.pool.lifecycle import Probe
from router.pool.match import Candidates, Facts, Need, nearest
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Origin, Task, Worker


def worker(name: str, *tasks: str, model: str | None = None, outputs: str = "") -> Worker:
    can = Capabilities(
        models=(model,) if model else (), task_types=tasks, output_types=tuple(outputs.split())
    )
    return Worker(url=f"http://{name}", origin=Origin.STATIC, capabilities=can)


def unknown(name: str) -> Worker:
    return Worker(url=f"http://{name}", origin=Origin.STATIC)


def fitting(pool: list[Worker], facts: Facts) -> list[Worker]:
    return list(Candidates(pool).fitting(facts.wants))


def names(workers: list[Worker]) -> str:
    return " ".join(worker.url.removeprefix("http://") for worker in workers)


def test_the_model_binds_if_somebody_advertises_it() -> None:
    pool = [worker("a", model="x"), worker("b", model="y"), worker("c", model="x"), unknown("d")]
    assert names(fitting(pool, Facts(model="x"))) == "a c"
    assert fitting(pool[:3], Facts(model="z")) == []
    assert fitting(pool, Facts()) == []
    assert names(fitting([pool[0], pool[2], pool[3]], Facts())) == "a c d"
    for need in (Need.CALL, Need.NOTHING):
        assert names(fitting(pool, Facts(need=need))) == "a b c d"
        assert names(fitting(pool[:3], Facts(model="z", need=need))) == "a b c"
    assert fitting([], Facts(model="x", task=Task.IMAGE)) == []


def dead(name: str) -> Worker:
    """One that never told what it can do, and is not expected to."""
    registry = Registry(failure_threshold=1)
    made = registry.add(f"http://{name}", Origin.STATIC)
    registry.probed(made, Probe.REFUSED)
    return made


@pytest.mark.parametrize("task", [Task.VIDEO, Task.MESH])
def test_jobs_go_only_where_they_can_be_made(task: Task) -> None:
    pool = [worker("i", "T2I"), worker("v", "TI2V"), worker("m", "I2M"), unknown("u")]
    ask = Facts(task=task, need=Need.JOB)
    assert names(fitting(pool, ask)) == {Task.VIDEO: "v", Task.MESH: "m"}[task]
    assert fitting(pool[:1], ask) == []
    # Of one that was not read yet nobody can say that it cannot.
    assert names(fitting([pool[0], pool[3], dead("d")], ask)) == "u d"


def test_sessions_prefer_those_that_can_and_take_any() -> None:
    pool = [worker("i", "T2I"), worker("v", "T2V")]
    ask = Facts(task=Task.VIDEO, need=Need.SESSION)
    assert names(fitting(pool, ask)) == "v"
    assert names(fitting(pool[:1], ask)) == "i"


def test_images_prefer_those_that_make_them_then_those_that_might() -> None:
    image, video, mute, new = worker("i", "T2I"), worker("v", "T2V"), worker("m"), unknown("u")
    ask = Facts(task=Task.IMAGE)
    assert names(fitting([video, image, mute, new], ask)) == "i"
    assert names(fitting([video, mute, new], ask)) == "m u"
    assert names(fitting([video], ask)) == "v"
    # One that never told anything and will not is no reason to refuse the others.
    assert names(fitting([video, dead("d")], ask)) == "v d"


def test_model_and_task_bind_together() -> None:
    pool = [worker("a", "T2V", model="x"), worker("b", "T2I", model="y")]
    # Only the worker of the model can be meant, though another makes images.
    assert names(fitting(pool, Facts(model="x", task=Task.IMAGE))) == "a"
    assert fitting(pool, Facts(model="y", task=Task.VIDEO, need=Need.JOB)) == []


@pytest.mark.parametrize(
    ("types", "outputs", "tasks"),
    [
        (["T2I"], "", {Task.IMAGE}),
        (["t2i"], "", {Task.IMAGE}),
        (["I2I"], "", {Task.EDIT}),
        (["TI2I"], "", {Task.IMAGE, Task.EDIT}),
        (["T2V"], "", {Task.VIDEO}),
        (["I2V"], "", {Task.VIDEO}),
        (["TI2V"], "", {Task.VIDEO}),
        (["V2V"], "", {Task.VIDEO}),
        (["F2V"], "", {Task.VIDEO}),
        (["I2M"], "", {Task.MESH}),
        (["T2I", "T2V", "NEW"], "", {Task.IMAGE, Task.VIDEO}),
        (["NEW"], "image", {Task.IMAGE, Task.EDIT}),
        (["NEW"], "VIDEO MESH", {Task.VIDEO, Task.MESH}),
        (["T2I"], "VIDEO", {Task.IMAGE}),  # the task types are the more precise word
        (["VLA_ACTION"], "ACTION", None),
        ([], "", None),
    ],
)
def test_what_the_workers_words_mean(
    types: list[str], outputs: str, tasks: set[Task] | None
) -> None:
    can = worker("w", *types, outputs=outputs).capabilities
    assert can is not None
    assert can.tasks == tasks
    for task in Task:
        assert can.can(task) is (None if tasks is None else task in tasks)


def test_a_model_that_nobody_has_waits_for_those_that_may_turn_out_to_have_it() -> None:
    pool = [worker("a", model="x"), unknown("b"), dead("c")]
    assert names(fitting(pool, Facts(model="new"))) == "b"
    assert names(fitting(pool, Facts(model="x"))) == "a"
    assert names(fitting([pool[0], pool[2]], Facts(model="new"))) == "a c"


def test_a_model_that_nobody_has_is_served_as_none() -> None:
    candidates = Candidates([worker("a", model="x")])
    assert candidates.fitting(Facts(model="made-up").wants) is candidates.fitting(Facts().wants)


def test_models_are_counted_among_those_that_can_do_the_task() -> None:
    image, video = worker("i", "T2I", model="x"), worker("v", "T2V", model="y")
    other, mute = worker("o", "T2V", model="z"), worker("m")
    for model in (None, "made-up"):
        assert names(fitting([image, video], Facts(model=model, task=Task.IMAGE))) == "i"
        job = Facts(model=model, task=Task.VIDEO, need=Need.JOB)
        assert names(fitting([image, video], job)) == "v"
        assert fitting([image, video, other], job) == []
        assert fitting([image, video], Facts(model=model)) == []
        # One that names no model is no other model.
        assert names(fitting([image, mute], Facts(model=model))) == "i m"


def refused(pool: list[Worker], facts: Facts, *, strict: bool = False) -> tuple[str, object] | None:
    error = Candidates(pool, strict_model=strict).misnamed(facts.wants)
    return error and (error.code, error.details.get("nearest"))


def test_why_a_model_is_refused() -> None:
    pool = [worker("a", "T2I", model="Org/X"), worker("b", "T2I", model="Org/Y")]
    assert refused(pool, Facts()) == ("ambiguous_model", None)
    assert refused(pool, Facts(need=Need.SESSION)) == ("ambiguous_model", None)
    assert refused(pool, Facts(model="org/y")) == ("unknown_model", "Org/Y")
    assert refused(pool, Facts(model="Or/X")) == ("unknown_model", "Org/X")
    assert refused(pool, Facts(model="quite-another")) == ("unknown_model", None)
    assert refused(pool, Facts(model="Org/X")) is None
    assert refused(pool, Facts(need=Need.CALL)) is None
    assert refused(pool, Facts(task=Task.VIDEO, need=Need.JOB)) is None  # none is capable
    assert refused([*pool, unknown("new")], Facts(model="later")) is None  # it is awaited
    assert refused(pool[:1], Facts(model="any")) is None


def test_a_strict_pool_of_one_model_takes_its_name_and_none() -> None:
    pool = [worker("a", "T2I", model="x")]
    assert refused(pool, Facts(model="any"), strict=True) == ("unknown_model", None)
    for facts in (Facts(), Facts(model="x"), Facts(model="any", need=Need.NOTHING)):
        assert refused(pool, facts, strict=True) is None
        assert Candidates(pool, strict_model=True).fitting(facts.wants) == tuple(pool)
    for some in ([], [worker("m")], [*pool, unknown("new")]):
        assert refused(some, Facts(model="any"), strict=True) is None


def test_the_nearest_name() -> None:
    names = ["Qwen/Qwen-Image", "qwen/qwen-image-edit", "flux"]
    assert nearest("QWEN/qwen-IMAGE", names) == "Qwen/Qwen-Image"
    assert nearest("Qwen-Image", names) == "Qwen/Qwen-Image"
    assert nearest("FLUX-", names) == "flux"
    assert nearest("", names) is None
    assert nearest("x" * 1_000_000, [*names, "x" * 1000]) is None
