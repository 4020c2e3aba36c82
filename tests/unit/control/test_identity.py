"""Is it still the same process? Suspicion, proof and what follows, in virtual time."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from router.control import watch as watch_module
from router.control.client import Answer, Unreachable
from router.control.identity import Evidence, ProcessIdentity, Verdict
from router.control.watch import Watchman
from router.pool import events
from router.pool.assets import AssetKind, AssetMap
from router.pool.lifecycle import reasons, routable
from router.pool.registry import Registry
from router.pool.worker import ROUTER_RESTARTED, Health, Origin, Weights, Worker
from tests.unit.control.watching import (
    DEAD,
    HANGS,
    REFUSED,
    WARMING,
    Play,
    Process,
    Scene,
    models,
    settle,
)

CLOSED = "its idle connection was closed"


async def refitted(scene: Scene) -> Worker:
    """A healthy worker whose weights were changed, and that is watched since some time."""
    worker = await scene.healthy()
    scene.registry.set_weights(worker, Weights.CURRENT, 3)
    await trio.sleep(3)
    return worker


def test_a_witness_absolves(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        lease = scene.registry.lease(worker)
        asked = len(scene.process.asked)
        scene.process.die()  # the connection only
        await settle()
        assert [path for _, path in scene.process.asked[asked:]] == ["/health", "/v1/videos/v"]
        assert (worker.incarnation, worker.suspicion) == (1, None)
        assert scene.count(events.Absolved) == 1
        # Everything stays.
        assert worker.active_requests == 1
        assert (worker.weights, worker.weight_version) == (Weights.CURRENT, 3)
        assert scene.assets.owner("v", AssetKind.VIDEO) is not None
        lease.release()

    play(body)


def test_a_witness_that_knows_nothing_tells_of_another_process(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.restart()
        await settle()
        assert (worker.incarnation, worker.suspicion) == (2, None)
        assert (worker.weights, worker.weight_version) == (Weights.BEHIND, 0)
        assert scene.assets.owner("v", AssetKind.VIDEO) is None

    play(body)


def test_nobody_finds_a_new_process_current_even_for_a_moment(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        seen: list[tuple[str, bool]] = []
        scene.registry.subscribe(
            lambda event: seen.append((type(event).__name__, routable(worker)))
        )
        scene.process.restart()
        await trio.sleep(30)
        names = [name for name, _ in seen]
        assert names[0] == "Suspected"
        assert "Reincarnated" in names
        assert not any(found for _, found in seen)

    play(body)


def test_a_suspect_is_not_routable_once_weights_were_changed(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.process.health(HANGS)
        scene.process.die()
        await settle()
        assert not routable(worker)
        assert reasons(worker) == ["suspect"]

    play(body)


def test_before_any_change_suspicion_keeps_nothing_back(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        await trio.sleep(3)
        scene.process.health(HANGS)
        scene.process.die()
        await settle()
        assert worker.suspicion == CLOSED
        assert routable(worker)
        assert reasons(worker) == []

    play(body)


@pytest.mark.parametrize("listens", [True, False])
def test_what_is_made_after_the_suspicion_does_not_testify(play: Play, listens: bool) -> None:
    """Before any change a suspect goes on working, and it may be another process that does."""

    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        await trio.sleep(3)
        scene.make(worker, "old")
        scene.process.health(HANGS)
        scene.process.listens = listens  # for idle connections
        scene.process.restart()
        await settle()
        scene.make(worker, "new")
        await trio.sleep(10)
        scene.process.answers.clear()
        await trio.sleep(20)
        assert worker.incarnation == 2

    play(body)


@pytest.mark.parametrize("answer", [REFUSED, WARMING])
def test_a_refusal_or_a_warm_up_of_the_same_process(play: Play, answer: Any) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.health(answer)
        await trio.sleep(8)
        assert worker.suspicion is not None
        assert not routable(worker)
        del scene.process.answers["/health"]
        await trio.sleep(12)
        assert (worker.incarnation, worker.suspicion) == (1, None)
        assert routable(worker)

    play(body)


@pytest.mark.parametrize("knows", [["v"], []])
@pytest.mark.parametrize("answer", [Unreachable("no route"), HANGS, Answer(500, b""), DEAD])
def test_a_flap_with_the_connection_intact_changes_nothing(
    play: Play, answer: Any, knows: list[str]
) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        for name in knows:
            scene.make(worker, name)
        scene.process.health(answer)
        await trio.sleep(60)
        assert worker.health is Health.UNHEALTHY
        assert worker.suspicion is None
        del scene.process.answers["/health"]
        await trio.sleep(30)
        assert routable(worker)
        assert scene.count(events.Suspected) == 0
        assert (worker.incarnation, worker.weight_version) == (1, 3)
        assert len(scene.process.times("/v1/videos/v")) == len(knows)

    play(body)


def test_a_flap_in_which_the_process_was_replaced(play: Play) -> None:
    """Something in between may keep the idle connection open whatever becomes of the worker."""

    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.health(HANGS)
        await trio.sleep(8)
        scene.process.knows.clear()
        del scene.process.answers["/health"]
        await trio.sleep(10)
        assert worker.incarnation == 2

    play(body)


@pytest.mark.parametrize(
    "answer", [Answer(502, b"Bad Gateway"), Answer(503, b"No server is available")]
)
def test_a_proxy_that_cannot_reach_the_worker_says_as_much_as_a_refusal(
    play: Play, answer: Answer
) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.process.health(answer)
        await trio.sleep(8)
        assert worker.suspicion == f"GET /health answered {answer.status}"
        assert not routable(worker)
        del scene.process.answers["/health"]
        await trio.sleep(10)
        assert (worker.suspicion, worker.incarnation) == (None, 2)

    play(body)


def test_a_witness_without_an_answer_is_asked_again_soon(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        path = "/v1/videos/v"
        scene.process.answers[path] = Unreachable("cut off")
        scene.process.die()
        await trio.sleep(0.5)
        assert worker.suspicion == CLOSED
        assert (worker.health, routable(worker)) == (Health.HEALTHY, False)
        del scene.process.answers[path]
        await trio.sleep(1)
        assert (worker.suspicion, worker.incarnation) == (None, 1)
        await trio.sleep(3599)
        assert len(scene.process.times(path)) == 2

    play(body, interval=3600)


def test_a_witness_that_never_answers_does_not_keep_it_out_for_ever(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.answers["/v1/videos/v"] = HANGS
        scene.process.die()
        await trio.sleep(60)
        assert (worker.suspicion, worker.incarnation) == (None, 2)
        assert len(scene.process.times("/v1/videos/v")) == 3

    play(body, interval=3600)


def test_an_end_during_a_probe_is_not_lost(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.meanwhile["/health"] = scene.process.restart
        scene.watchman.nudge(worker)
        await trio.sleep(0.5)
        assert (worker.incarnation, worker.suspicion) == (2, None)

    play(body)


def test_a_death_right_after_the_proof_is_not_absolved(play: Play) -> None:
    """The proof was of a process that has died since."""

    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.meanwhile["/v1/videos/v"] = scene.process.restart
        scene.process.die()
        await trio.sleep(0.5)
        assert (worker.incarnation, worker.suspicion) == (2, None)
        assert scene.count(events.Absolved) == 0
        assert worker.weights is Weights.BEHIND

    play(body)


@pytest.mark.parametrize("path", ["/v1/models", "/model_info"])
def test_two_restarts_in_a_row(play: Play, path: str) -> None:
    """The second one comes while the first new process is being read."""

    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")

        def again() -> None:
            scene.process.restart()
            scene.process.answers["/v1/models"] = models("third")

        scene.process.meanwhile[path] = again
        scene.process.restart()
        await trio.sleep(5)
        assert worker.suspicion is None
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("third",)
        assert worker.weights is Weights.BEHIND
        scene.make(worker, "new")
        scene.process.die()
        await settle()
        assert worker.suspicion is None  # and it is watched again

    play(body)


def test_it_restarts_once_more_when_it_was_brought_up_to_date(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        for incarnation in (2, 3, 4, 5, 6):
            scene.make(worker, f"v{incarnation}")
            await trio.sleep(20)
            scene.process.restart()
            await settle()
            assert worker.incarnation == incarnation
            scene.registry.set_weights(worker, Weights.UPDATING, worker.weight_version)
            scene.registry.set_weights(worker, Weights.CURRENT, worker.weight_version)
            scene.registry.set_weights(worker, Weights.CURRENT, 3)
            assert routable(worker)

    play(body)


def test_a_restored_worker_is_judged_by_its_first_probe(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(REFUSED)
        worker = scene.add()
        scene.make(worker, "v")
        scene.registry.set_weights(worker, Weights.CURRENT, 3)
        scene.registry.suspect(worker, ROUTER_RESTARTED)
        await settle()
        assert worker.suspicion == ROUTER_RESTARTED
        del scene.process.answers["/health"]
        await trio.sleep(5)
        assert (worker.suspicion, worker.incarnation, worker.met) == (None, 1, True)
        assert routable(worker)

    play(body)


def test_a_restored_worker_without_a_witness_counts_as_another(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = scene.add()
        scene.registry.set_weights(worker, Weights.CURRENT, 3)
        scene.registry.suspect(worker, ROUTER_RESTARTED)
        await settle()
        assert (worker.suspicion, worker.incarnation) == (None, 2)
        assert (worker.health, worker.weights) == (Health.HEALTHY, Weights.BEHIND)
        told = next(event for event in scene.told if isinstance(event, events.Reincarnated))
        assert told.reason == f"{ROUTER_RESTARTED}; nothing proves that it is the same"

    play(body)


def test_provers_are_asked_before_anybody_else(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        verdicts = [Verdict.SAME, Verdict.OTHER]

        async def prove(asked: Worker) -> Verdict:
            await trio.lowlevel.checkpoint()
            assert asked is worker
            return verdicts.pop(0)

        scene.watchman.identity.provers.append(prove)
        scene.process.die()
        await settle()
        assert worker.incarnation == 1
        await trio.sleep(30)
        scene.make(worker, "v")
        scene.process.die()
        await settle()
        assert worker.incarnation == 2
        assert scene.process.times("/v1/videos/v") == []

    play(body)


async def closed_every(scene: Scene, seconds: float, times: int) -> None:
    """A proxy in between ends the connection regularly."""
    for _ in range(times):
        await trio.sleep(seconds)
        scene.process.die()
        await settle()


def test_behind_a_proxy_the_end_is_no_evidence_any_more(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(scene: Scene) -> None:
        caplog.set_level(logging.INFO, "router.control")
        worker = await refitted(scene)
        scene.make(worker, "v")
        await closed_every(scene, 60, 10)
        assert scene.count(events.Suspected) == 3
        assert scene.count(events.Absolved) == 3
        assert worker.incarnation == 1
        # Yet each time it was asked, at once.
        assert len(scene.process.times("/v1/videos/v")) == 10
        assert [r.message for r in caplog.records] == [
            "worker http://w:1: something in between ends its idle connection, after 60 s this "
            "time; such an end does not count as one of the process any more"
        ]

    play(body)


def test_behind_a_proxy_a_restart_is_found_by_the_witness(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        await closed_every(scene, 60, 5)
        scene.process.restart()
        await settle()
        assert (worker.incarnation, worker.weights) == (2, Weights.BEHIND)

    play(body)


def test_behind_a_proxy_a_failed_probe_makes_a_suspect(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        await closed_every(scene, 60, 5)
        before = worker.incarnation
        scene.registry.set_weights(worker, Weights.CURRENT, 3)
        scene.process.health(Answer(500, b""))
        scene.watchman.nudge(worker)
        await settle()
        assert worker.suspicion == "GET /health answered 500"
        del scene.process.answers["/health"]
        await trio.sleep(5)
        assert (worker.suspicion, worker.incarnation) == (None, before + 1)

    play(body)


def test_a_connection_that_lasts_is_evidence_again(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        await closed_every(scene, 60, 5)
        await trio.sleep(600)
        scene.process.health(HANGS)
        scene.process.die()
        await settle()
        assert worker.suspicion == CLOSED
        assert not routable(worker)

    play(body)


def test_without_a_witness_regular_ends_cost_three_replays(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        for _ in range(10):
            scene.registry.set_weights(worker, Weights.CURRENT, 3)  # replayed
            await closed_every(scene, 60, 1)
        assert worker.incarnation == 4

    play(body)


def test_a_process_that_dies_again_and_again_is_not_taken_for_a_proxy(play: Play) -> None:
    """It proves nothing, and dies as regularly as a clock; but it takes a while to come back."""

    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        for incarnation in range(2, 10):
            await trio.sleep(50)
            scene.process.health(REFUSED)
            scene.process.die()
            await settle()
            assert worker.suspicion == CLOSED
            await trio.sleep(1)
            del scene.process.answers["/health"]
            await trio.sleep(9)
            assert worker.incarnation == incarnation

    play(body)


def test_what_cannot_be_watched_is_asked_at_each_probe(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.listens = False  # for idle connections
        scene.process.die()
        await trio.sleep(35)
        assert (worker.suspicion, worker.incarnation) == (None, 1)
        assert routable(worker)
        scene.process.knows.clear()
        await trio.sleep(10)
        assert (worker.incarnation, worker.weights) == (2, Weights.BEHIND)
        await trio.sleep(60)  # there is nobody left to ask
        assert worker.incarnation == 2

    play(body)


def test_a_process_of_which_nothing_was_known_is_not_asked(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(WARMING)
        worker = scene.add()
        scene.make(worker, "v")  # found by asking around
        await trio.sleep(2)
        scene.process.die()
        del scene.process.answers["/health"]
        await trio.sleep(60)
        assert routable(worker)
        assert scene.process.times("/v1/videos/v") == []

    play(body)


def test_the_evidence_of_one_worker_is_not_that_of_another() -> None:
    assert Evidence() == Evidence()
    first = Evidence()
    first.ended(1)
    first.was_vain(1, proven=True)
    assert Evidence() != first


def test_a_restart_between_ends_that_mean_nothing_begins_the_count_anew(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        await closed_every(scene, 60, 2)
        await trio.sleep(60)
        scene.process.restart()
        await settle()
        assert worker.incarnation == 2
        scene.make(worker, "w")
        await closed_every(scene, 60, 5)
        assert scene.count(events.Suspected) == 2 + 1 + 3
        assert worker.incarnation == 2

    play(body)


def test_without_a_witness_irregular_ends_are_those_of_processes(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        for incarnation, lasted in enumerate((60, 20, 45, 10, 70, 30), 2):
            await closed_every(scene, lasted, 1)
            assert worker.incarnation == incarnation

    play(body)


def test_a_suspect_whose_connections_are_all_hung_up_is_absolved_by_its_witness(
    play: Play,
) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.make(worker, "v")
        scene.process.hangs_up, scene.process.takes = True, 0.1
        scene.process.die()
        await trio.sleep(60)
        scene.process.health(REFUSED)
        await trio.sleep(12)
        assert worker.suspicion is not None
        del scene.process.answers["/health"]
        await trio.sleep(30)
        assert (worker.suspicion, worker.incarnation) == (None, 1)
        assert routable(worker)

    play(body)


def test_a_suspect_from_before_the_watch_began(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        process, registry, assets = Process(), Registry(), AssetMap()
        monkeypatch.setattr(watch_module, "open_idle", process.open_idle)
        client: Any = process
        workers = [registry.add(f"http://{name}:1", Origin.STATIC) for name in "ab"]
        assets.learn("v", workers[0], AssetKind.VIDEO)
        process.knows.add("v")
        for worker in workers:
            registry.suspect(worker, ROUTER_RESTARTED)
        watchman = Watchman(registry, client, ProcessIdentity(assets, client))
        async with trio.open_nursery() as nursery:
            await nursery.start(watchman.run)
            await settle()
            assert [(w.suspicion, w.incarnation) for w in workers] == [(None, 1), (None, 2)]
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("replaced", [True, False])
def test_a_restart_out_of_reach_is_found_once_it_is_reached_again(
    play: Play, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """No end of file came: the machine was off, or the network. Nor is there any proof."""

    async def body(scene: Scene) -> None:
        async def challenge(stream: object) -> None:
            if replaced:
                scene.process.die()
            await trio.sleep(1)

        monkeypatch.setattr(watch_module, "challenge", challenge)
        worker = await refitted(scene)
        scene.process.health(HANGS)
        await trio.sleep(8)
        del scene.process.answers["/health"]
        await trio.sleep(20)
        assert worker.incarnation == (2 if replaced else 1)
        assert worker.suspicion is None

    play(body)


NO_ROUTE = Unreachable("no route to it", sent=False)


@pytest.mark.parametrize("busy", [True, False])
def test_what_was_out_of_reach_gets_nothing_until_its_connection_has_outlasted_that(
    play: Play, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        if busy:
            scene.registry.lease(worker)
        scene.process.health(NO_ROUTE)
        await trio.sleep(15)
        assert not routable(worker)
        assert worker.suspicion is not None
        challenged: list[object] = []

        async def challenge(stream: object) -> None:
            challenged.append(stream)
            assert not routable(worker)
            await trio.sleep(1.5)

        monkeypatch.setattr(watch_module, "challenge", challenge)
        del scene.process.answers["/health"]
        await trio.sleep(25)
        assert challenged
        assert routable(worker)
        assert (worker.incarnation, worker.suspicion) == (1, None)

    play(body)


@pytest.mark.parametrize("meanwhile", ["moved", "refused", "proxy"])
def test_a_connection_that_outlasts_proves_nothing_where_more_speaks_against_it(
    play: Play, meanwhile: str
) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.process.health(NO_ROUTE)
        await trio.sleep(12)
        match meanwhile:
            case "moved":
                scene.watchman._moved(worker.url, "10.0.0.1", "10.0.0.2")
            case "refused":
                scene.process.health(REFUSED)
            case "proxy":
                scene.process.health(Answer(502, b"Bad Gateway"))
        await trio.sleep(12)
        del scene.process.answers["/health"]
        await trio.sleep(25)
        assert (worker.incarnation, worker.suspicion) == (2, None)

    play(body)


def test_another_process_that_took_its_place_out_of_reach_is_found_before_it_gets_anything(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        worker = await refitted(scene)
        scene.registry.lease(worker)  # silence of a busy worker is borne for a minute
        scene.process.health(NO_ROUTE)
        await trio.sleep(15)

        async def challenge(stream: object) -> None:
            scene.process.restart()  # the end of its connection comes only now
            await settle()

        monkeypatch.setattr(watch_module, "challenge", challenge)
        scene.registry.subscribe(lambda _: seen.append((worker.incarnation, routable(worker))))
        seen: list[tuple[int, bool]] = []
        del scene.process.answers["/health"]
        await trio.sleep(25)
        assert worker.incarnation == 2
        assert (1, True) not in seen

    play(body)
