"""Witnesses: what a worker still knows of what its process made, and whoever knows better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from attrs import Factory, define

from router.control.client import Answer, Unreachable
from router.control.identity import ProcessIdentity, Prover, Verdict, trusts_absence
from router.pool.assets import AssetKind, AssetMap
from router.pool.registry import Registry
from router.pool.worker import Origin, Worker

SAME, OTHER, UNKNOWN, SILENT = Verdict.SAME, Verdict.OTHER, Verdict.UNKNOWN, Verdict.SILENT
NOT_FOUND = Answer(404, b'{"detail":"Video not found"}')


def job(job_id: str) -> Answer:
    return Answer(200, b'{"id":"%b","status":"completed"}' % job_id.encode())


def no_image(detail: str, status: int = 404) -> Answer:
    return Answer(status, b'{"detail":"%b"}' % detail.encode())


@define(eq=False)
class Client:
    """A worker's answers by path."""

    answers: dict[str, Any] = Factory(dict)
    asked: list[str] = Factory(list)

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        self.asked.append(path)
        await trio.lowlevel.checkpoint()
        answer = self.answers.get(path, NOT_FOUND)
        if isinstance(answer, Unreachable):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    async def status(self, url: str, path: str, *, within: float) -> int:
        return (await self.get(url, path, within=within)).status


@define(eq=False)
class Court:
    client: Client = Factory(Client)
    assets: AssetMap = Factory(AssetMap)
    registry: Registry = Factory(Registry)
    provers: list[Prover] = Factory(list)

    def worker(self) -> Worker:
        return self.registry.add("http://w:1", Origin.REGISTERED)

    def judge(self, meanwhile: Callable[[], None] = lambda: None) -> Verdict:
        client: Any = self.client
        identity = ProcessIdentity(self.assets, client, self.provers)
        recalled = identity.recall(self.worker())
        meanwhile()
        return trio.run(identity.judge, self.worker(), recalled)


@pytest.fixture
def court() -> Court:
    return Court()


def test_who_made_nothing_cannot_testify(court: Court) -> None:
    assert court.judge() is UNKNOWN
    assert court.client.asked == []


@pytest.mark.parametrize(
    ("kind", "path"), [(AssetKind.VIDEO, "/v1/videos/a%2Fb"), (AssetKind.MESH, "/v1/meshes/a%2Fb")]
)
def test_a_job_that_is_still_known(court: Court, kind: AssetKind, path: str) -> None:
    court.assets.learn("a/b", court.worker(), kind)
    court.client.answers[path] = job("a/b")
    assert court.judge() is SAME
    assert court.client.asked == [path]


def test_a_job_that_is_known_no_more(court: Court) -> None:
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    assert court.judge() is OTHER


def test_the_newest_are_asked_for_first_and_not_many(court: Court) -> None:
    for n in range(20):
        court.assets.learn(f"v{n}", court.worker(), AssetKind.VIDEO)
    assert court.judge() is OTHER
    assert court.client.asked == ["/v1/videos/v19", "/v1/videos/v18", "/v1/videos/v17"]


def test_one_that_is_known_is_enough(court: Court) -> None:
    """Whoever deletes a job past the router must not make a new process of the worker."""
    for name in ("old", "new", "newest"):
        court.assets.learn(name, court.worker(), AssetKind.VIDEO)
    court.client.answers["/v1/videos/old"] = job("old")
    assert court.judge() is SAME


def test_jobs_are_asked_for_before_images(court: Court) -> None:
    court.assets.learn("job", court.worker(), AssetKind.MESH)
    court.assets.learn("image", court.worker(), AssetKind.IMAGE)
    court.client.answers["/v1/meshes/job"] = job("job")
    assert court.judge() is SAME
    assert court.client.asked == ["/v1/meshes/job"]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (Answer(200, b"pixels"), SAME),
        (Answer(206, b"p"), SAME),
        (no_image("Image not found"), OTHER),
        # It is in the table of the process, whatever became of the file.
        (no_image("Image was not persisted on disk (output_path is disabled)."), SAME),
        (no_image("Image is still being generated"), SAME),
        (no_image("Image has been uploaded to cloud storage.", status=400), SAME),
        (Answer(404, b"Not Found"), OTHER),
        (Answer(400, b"{}"), UNKNOWN),
    ],
)
def test_images_are_in_the_memory_of_the_process(
    court: Court, answer: Answer, verdict: Verdict
) -> None:
    court.assets.learn("i", court.worker(), AssetKind.IMAGE)
    court.client.answers["/v1/images/i/content"] = answer
    assert court.judge() is verdict


@pytest.mark.parametrize(
    "answer",
    [
        Answer(500, b"Internal Server Error"),
        Answer(401, b'{"detail":"who are you"}'),
        Answer(200, b"<html>Sign in</html>"),
        Answer(200, b"[]"),
        job("another"),
    ],
)
def test_what_tells_nothing_proves_nothing(court: Court, answer: Answer) -> None:
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    court.assets.learn("b", court.worker(), AssetKind.VIDEO)
    court.client.answers["/v1/videos/b"] = answer
    assert court.judge() is UNKNOWN


def test_no_answer_is_no_verdict(court: Court) -> None:
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    court.client.answers["/v1/videos/a"] = Unreachable("no route")
    assert court.judge() is SILENT


def test_what_was_deleted_is_not_asked_for(court: Court) -> None:
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    court.assets.learn("b", court.worker(), AssetKind.VIDEO)
    court.assets.forget("a")
    assert court.judge(meanwhile=lambda: court.assets.forget("b")) is UNKNOWN
    assert court.client.asked == []


def test_what_another_process_makes_meanwhile_is_no_witness(court: Court) -> None:
    court.assets.learn("old", court.worker(), AssetKind.VIDEO)
    court.client.answers["/v1/videos/new"] = job("new")

    def meanwhile() -> None:
        court.assets.learn("new", court.worker(), AssetKind.VIDEO)

    assert court.judge(meanwhile) is OTHER


def test_what_an_earlier_process_made_is_no_witness(court: Court) -> None:
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    court.client.answers["/v1/videos/a"] = job("a")
    court.registry.reincarnate(court.worker(), "it restarted")
    assert court.judge() is UNKNOWN


def test_what_another_worker_made_is_no_witness(court: Court) -> None:
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    other = court.registry.add("http://w:2", Origin.REGISTERED)
    court.assets.learn("a", other, AssetKind.VIDEO)
    assert court.judge() is UNKNOWN


@pytest.mark.parametrize(
    ("proofs", "verdict", "asked"),
    [
        ([SAME], SAME, 0),
        ([OTHER, SAME], OTHER, 0),
        ([UNKNOWN, SAME], SAME, 0),
        ([SILENT, OTHER], OTHER, 0),
        ([UNKNOWN], SAME, 1),
        ([SILENT], SAME, 1),
    ],
)
def test_whoever_knows_better_is_asked_first(
    court: Court, proofs: list[Verdict], verdict: Verdict, asked: int
) -> None:
    def prover(proof: Verdict) -> Prover:
        async def prove(worker: Worker) -> Verdict:
            await trio.lowlevel.checkpoint()
            return proof

        return prove

    court.provers.extend(map(prover, proofs))
    court.assets.learn("a", court.worker(), AssetKind.VIDEO)
    court.client.answers["/v1/videos/a"] = job("a")
    assert court.judge() is verdict
    assert len(court.client.asked) == asked


def test_a_prover_without_an_answer_is_asked_again_where_nothing_else_tells(court: Court) -> None:
    async def prove(worker: Worker) -> Verdict:
        await trio.lowlevel.checkpoint()
        return SILENT

    court.provers.append(prove)
    assert court.judge() is SILENT


@pytest.mark.parametrize(
    ("absence", "downtime", "trusted"),
    [
        (None, 0, False),
        (None, 60, False),
        (0, 0, False),
        (5, 60, True),
        (60, 60, False),
        (-5, 60, False),  # a clock that was set back says nothing
    ],
)
def test_a_short_absence_may_be_trusted(
    absence: float | None, downtime: float, trusted: bool
) -> None:
    assert trusts_absence(absence, downtime) is trusted
