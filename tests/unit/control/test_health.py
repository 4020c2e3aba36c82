"""What the answers of workers mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from router.control.client import Answer, Unreachable
from router.control.health import NotRead, judge, probe, read_capabilities, structure
from router.pool.lifecycle import Probe
from router.pool.worker import Capabilities


class Worker:
    """Stands in for the control client; answers from a table, or raises."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        await trio.lowlevel.checkpoint()
        answer = self.answers[path.rpartition("/")[2]]
        if isinstance(answer, Unreachable):
            raise answer
        if isinstance(answer, Answer):
            return answer
        return Answer(200, json.dumps(answer).encode())


@pytest.mark.parametrize(
    ("answer", "finding", "reason"),
    [
        (Answer(200, b'{"status":"ok"}'), Probe.OK, None),
        (Answer(200, b""), Probe.OK, None),
        (Answer(503, b""), Probe.WARMING, "warming"),
        (Answer(503, b" \r\n"), Probe.WARMING, "warming"),
        (Answer(503, b'{"status":"unhealthy","error":"OOM"}'), Probe.BACKEND_DEAD, "OOM"),
        (Answer(503, b'{"status":"unhealthy"}'), Probe.BACKEND_DEAD, "no reason given"),
        (Answer(503, b'{"status":"unhealthy","error":{"a":1}}'), Probe.BACKEND_DEAD, "'a': 1"),
        (Answer(503, b"upstream connect error"), Probe.FAILED, "503"),
        (Answer(503, b"[1]"), Probe.FAILED, "503"),
        (Answer(500, b""), Probe.FAILED, "500"),
        (Answer(404, b""), Probe.FAILED, "404"),
        (Answer(302, b""), Probe.FAILED, "302"),
        (Answer(204, b""), Probe.FAILED, "204"),
    ],
)
def test_health_answers(answer: Answer, finding: Probe, reason: str | None) -> None:
    found = judge(answer)
    assert found.probe is finding
    assert (reason or "") in (found.reason or "")
    assert (found.reason is None) == (finding is Probe.OK)


def test_a_workers_own_words_are_cut_short() -> None:
    dead = {"status": "unhealthy", "error": "x" * 1_000_000}
    assert len(judge(Answer(503, json.dumps(dead).encode())).reason or "") < 400


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        (Unreachable("no", refused=True), Probe.REFUSED),
        (Unreachable("no", timed_out=True), Probe.FAILED),
        (Unreachable("no"), Probe.FAILED),
    ],
)
def test_no_answer(error: Unreachable, finding: Probe) -> None:
    async def main() -> None:
        found = await probe(Worker(health=error), "http://w")  # type: ignore[arg-type]
        assert (found.probe, found.reason) == (finding, "no")

    trio.run(main)


CARD = {"id": "m", "task_type": "T2I", "supported_task_types": ["T2I", "TI2I"]}
FULL: dict[str, Any] = {
    "models": {"object": "list", "data": [CARD]},
    "server_info": {"model_path": "p", "served_model_name": "n", "dp_size": 2, "version": "1"},
    "model_info": {"model_path": "q", "task_type": "T2V", "output_types": ["IMAGE"]},
}


def read(**answers: Any) -> Capabilities:
    async def main() -> Capabilities:
        return await read_capabilities(Worker(**answers), "http://w")  # type: ignore[arg-type]

    return trio.run(main)


def test_capabilities_come_from_three_answers() -> None:
    assert read(**FULL) == Capabilities(
        models=("m", "n"),
        task_types=("T2I", "TI2I", "T2V"),
        output_types=("IMAGE",),
        dp_size=2,
        model_path="p",
        version="1",
    )


@pytest.mark.parametrize("status", [404, 405])
def test_an_endpoint_that_is_not_there_counts_as_read(status: int) -> None:
    gone = Answer(status, b'{"detail":"Not Found"}')
    assert read(models=gone, server_info=gone, model_info=gone) == Capabilities()
    assert read(**{**FULL, "model_info": gone}).task_types == ("T2I", "TI2I")
    assert read(**{**FULL, "server_info": gone}).model_path == "q"


@pytest.mark.parametrize("endpoint", sorted(FULL))
@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        (Answer(500, b"{}"), Probe.FAILED),
        (Answer(503, b""), Probe.FAILED),
        (Answer(200, b"<html>"), Probe.FAILED),
        (Answer(200, b"[]"), Probe.FAILED),
        (Answer(200, b"[" * 100_000), Probe.FAILED),
        (Answer(200, b"\xff\xfe\xfa"), Probe.FAILED),
        (Unreachable("no"), Probe.FAILED),
        (Unreachable("no", refused=True), Probe.REFUSED),
    ],
)
def test_anything_else_is_asked_again(endpoint: str, answer: Any, finding: Probe) -> None:
    with pytest.raises(NotRead) as caught:
        read(**{**FULL, endpoint: answer})
    assert caught.value.finding.probe is finding
    assert caught.value.finding.reason


def test_a_hanging_model_list_is_a_warm_up() -> None:
    late = Unreachable("late", timed_out=True)
    with pytest.raises(NotRead) as caught:
        read(**{**FULL, "models": late})
    assert caught.value.finding.probe is Probe.WARMING
    with pytest.raises(NotRead) as caught:
        read(**{**FULL, "server_info": late})
    assert caught.value.finding.probe is Probe.FAILED


@pytest.mark.parametrize(
    "answers",
    [
        (None, None, None),
        ([], "x", 3),
        ({"data": None}, {"dp_size": "2"}, {"output_types": "IMAGE"}),
        ({"data": {"id": "m"}}, {"dp_size": True}, {"supported_task_types": "T2I"}),
        ({"data": [None, 1, [], {"id": 5, "supported_task_types": {"a": 1}}]}, {"dp_size": 0}, {}),
        ({"data": [{"id": ""}]}, {"dp_size": -1, "model_path": 7}, {"output_types": [None, 3, ""]}),
    ],
)
def test_what_is_of_a_wrong_type_is_left_out(answers: tuple[Any, Any, Any]) -> None:
    assert structure(*answers) == Capabilities()
