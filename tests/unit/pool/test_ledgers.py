"""What the ledgers make of workers that left, ended or come back, and of resets."""

from __future__ import annotations

import json

import pytest
from attrs import evolve

from router.pool import events
from router.pool.lifecycle import Probe
from router.pool.registry import Registry
from router.pool.weights import Change, Ledger, Ledgers, WeightRecord
from router.pool.weights.ledger import StoredRow
from router.pool.weights.recipe import (
    DISK,
    MERGE,
    SET_LORA,
    TENSOR,
    UNMERGE,
    Step,
    load_from,
    step_of,
)
from router.pool.worker import (
    ROUTER_RESTARTED,
    UNPROVEN,
    Capabilities,
    Origin,
    Weights,
    Worker,
)
from router.store.records import unstructured

A_PART = '{"model_path": "part", "target_modules": ["t"]}'
PART = step_of(DISK, '{"model_path": "t"}', {"target_modules": ["t"]})
WHOLE = load_from("p")
MERGED = step_of(MERGE, "{}", {})
CARD = Capabilities(models=("m",), model_path="start")


class Desk:
    """Ledgers of a registry, and what they keep."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], StoredRow] = {}
        self.begin()

    def begin(self) -> None:
        """A router begins, on what is kept."""
        self.registry = Registry()
        self.ledgers = Ledgers(self.registry, self)
        rows = list(map(evolve, self.kept.values()))
        self.ledgers.restore(
            [row for row in rows if isinstance(row, Ledger)],
            [row for row in rows if isinstance(row, WeightRecord)],
            [row for row in rows if isinstance(row, Change)],
        )

    def put(self, record: StoredRow) -> None:
        self.kept[record.table, record.key] = evolve(record)

    def delete(self, kind: type[StoredRow], key: str) -> None:
        self.kept.pop((kind.table, key), None)

    def join(self, name: str, origin: Origin = Origin.REGISTERED) -> Worker:
        worker = self.registry.add(f"http://{name}:1", origin)
        self.registry.learned(worker, CARD)
        self.registry.probed(worker, Probe.OK)
        return worker

    def change(self, *workers: Worker, path: str = "p", **more: object) -> int:
        """A change from disk that these apply; its version."""
        content = {"model_path": path, **more}
        return self.apply(self.ledgers.make("id", "m", DISK, json.dumps(content), None), *workers)

    def apply(self, change: Change, *workers: Worker) -> int:
        """These apply the change; its version."""
        self.ledgers.open(change, workers)
        for worker in workers:
            self.ledgers.fence(worker, "a change")
            self.ledgers.applied(change, worker, worker.incarnation)
            self.ledgers.release(worker)
        self.ledgers.close(change)
        assert change.version is not None
        return change.version

    def replay(self, worker: Worker) -> None:
        """All calls of the worker's plan have good answers."""
        ledger = self.ledgers.ledger_of(worker)
        assert ledger is not None
        self.ledgers.replayed(worker, self.ledgers.plan(worker), ledger.recipe, "replayed")


def paths(desk: Desk, worker: Worker) -> list[str]:
    """What the worker would be sent to be current."""
    return [json.loads(step.body).get("model_path") for step in desk.ledgers.plan(worker).steps]


def test_what_is_launched_at_an_address_again_is_another_process() -> None:
    desk = Desk()
    old = desk.join("a", Origin.LAUNCHED)
    desk.change(old)
    desk.registry.remove(old)
    new = desk.join("a", Origin.LAUNCHED)
    assert (new.weights, new.suspicion) == (Weights.BEHIND, None)
    assert paths(desk, new) == ["p"]
    desk.registry.remove(new)

    desk.begin()
    later = desk.join("a", Origin.LAUNCHED)
    assert later.suspicion is None  # there is nothing that its launcher could prove
    assert (later.weights, paths(desk, later)) == (Weights.BEHIND, ["p"])


def test_a_worker_that_only_left_may_be_the_same() -> None:
    desk = Desk()
    old = desk.join("a")
    desk.change(old)
    desk.registry.remove(old)
    desk.begin()
    new = desk.join("a")
    assert new.suspicion == ROUTER_RESTARTED
    desk.registry.absolve(new)
    assert new.weights is Weights.BEHIND  # it could have been replaced while it was not watched


@pytest.mark.parametrize("reset_by", ["the end of all workers", "an operator"])
def test_versions_of_before_a_reset_are_no_part_of_what_came_since(reset_by: str) -> None:
    desk = Desk()
    old = desk.join("a", Origin.LAUNCHED)
    assert [desk.change(old), desk.change(old, path="q")] == [1, 2]
    if reset_by == "an operator":
        desk.ledgers.attest("m", 0, None, None)
        assert old.weights is Weights.CURRENT
    desk.registry.remove(old)
    if reset_by != "an operator":
        desk.ledgers.begin_anew("m")
    for _ in range(2):
        worker = desk.join("b")
        assert (worker.weights, worker.weight_version) == (Weights.CURRENT, 0)
        desk.ledgers.claim(worker, 2)  # so its owner says, and he knows
        assert worker.weights is Weights.BEHIND
        assert paths(desk, worker)[-1] == "start"
        desk.ledgers.claim(worker, 0)
        assert worker.weights is Weights.CURRENT
        desk.registry.remove(worker)
        desk.begin()

    worker = desk.join("c")
    assert desk.change(worker, path="r", target_modules=["v"]) == 3
    desk.ledgers.claim(worker, 2)
    assert paths(desk, worker)[-2:] == ["start", "r"]
    desk.ledgers.claim(worker, 0)
    assert paths(desk, worker) == ["r"]


def test_what_is_said_of_a_suspect_holds_if_it_is_the_same_process() -> None:
    desk = Desk()
    worker = desk.join("a")
    assert [desk.change(worker), desk.change(worker, path="q")] == [1, 2]
    for version, weights in ((1, Weights.BEHIND), (2, Weights.CURRENT)):
        desk.registry.suspect(worker, "its idle connection was closed")
        desk.ledgers.claim(worker, version)
        desk.registry.absolve(worker)
        assert (worker.weights, worker.weight_version) == (weights, version)


def test_a_reset_to_an_older_number() -> None:
    desk = Desk()
    worker = desk.join("a")
    for path in "pqr":
        desk.change(worker, path=path)
    desk.ledgers.attest("m", 2, None, None)
    assert (worker.weights, worker.weight_version) == (Weights.CURRENT, 2)
    desk.ledgers.claim(worker, 3)
    assert worker.weights is Weights.BEHIND
    assert worker.stuck  # nobody can say what version 2 is
    desk.ledgers.claim(worker, 2)
    assert worker.weights is Weights.CURRENT
    assert desk.change(worker, path="s", target_modules=["v"]) == 4
    desk.ledgers.claim(worker, 2)
    assert paths(desk, worker) == ["s"]


def test_one_that_left_before_all_others_ended_has_not_the_weights_of_its_start() -> None:
    desk = Desk()
    launched, other = desk.join("a", Origin.LAUNCHED), desk.join("b")
    desk.change(launched, other)
    desk.registry.remove(other)
    desk.registry.remove(launched)
    desk.ledgers.begin_anew("m")
    for _ in range(2):
        assert desk.join("a", Origin.LAUNCHED).weights is Weights.CURRENT
        back = desk.join("b")
        assert back.weights is Weights.BEHIND
        desk.registry.remove(back)
        desk.begin()


def test_one_whose_model_is_not_known_yet_when_all_others_ended() -> None:
    desk = Desk()
    launched, other = desk.join("a", Origin.LAUNCHED), desk.join("b")
    desk.change(launched, other)
    desk.begin()
    back = desk.registry.add("http://b:1", Origin.REGISTERED)
    desk.registry.reincarnate(back, f"{ROUTER_RESTARTED}; nothing proves that it is the same")
    desk.ledgers.begin_anew("m")
    desk.registry.learned(back, CARD)
    assert back.weights is Weights.BEHIND
    assert paths(desk, back)[-1] == "start"


def test_who_a_model_has_while_its_workers_start_again() -> None:
    desk = Desk()
    launched, other = desk.join("a", Origin.LAUNCHED), desk.join("b")
    desk.change(launched, other)
    for worker in (launched, other):
        desk.registry.reincarnate(worker, "its process has ended")
    assert not desk.ledgers.only_launched("m")
    desk.registry.remove(other)
    assert desk.ledgers.only_launched("m")
    assert not desk.ledgers.only_launched("another")
    desk.registry.remove(launched)
    assert not desk.ledgers.only_launched("m")


def test_the_number_of_a_change_that_was_under_way_means_no_other() -> None:
    # Its success may not have come to the disk, while clients got samples of that version.
    desk = Desk()
    worker = desk.join("a")
    before = desk.change(worker)
    for path in (DISK, TENSOR):
        body = "{}" if path == DISK else None
        under_way = desk.ledgers.make("other", "m", path, body, None)
        desk.ledgers.open(under_way, [worker])
        desk.begin()
        desk.begin()  # once more, before anything else is kept
        worker = desk.join("a")
        pending = desk.ledgers.ledger("m").pending
        assert [change.seen_version for change in pending] == ([before + 1] if body else [])
        assert desk.change(worker) == before + 2
        for change in pending:
            desk.ledgers.close(change)
        before += 2


@pytest.mark.parametrize("ended", [True, False])
def test_the_number_of_a_change_that_is_given_up_means_no_other(ended: bool) -> None:
    desk = Desk()
    worker = desk.join("a")
    before = desk.change(worker)
    desk.ledgers.open(desk.ledgers.make("other", "m", DISK, "{}", None), [worker])
    desk.begin()
    worker = desk.join("a")
    [change] = desk.ledgers.ledger("m").pending
    if ended:
        desk.ledgers.close(change)
    else:
        desk.ledgers.begin_anew("m")
    desk.begin()
    worker = desk.join("a")
    assert desk.change(worker) == before + 2


def test_the_numbers_of_two_changes_that_were_under_way_mean_no_other() -> None:
    desk = Desk()
    worker = desk.join("a")
    before = desk.change(worker)
    for name in ("first", "second"):
        change = desk.ledgers.make(name, "m", DISK, "{}", None)
        desk.ledgers.open(change, [worker])
        desk.begin()
        worker = desk.join("a")
    assert [c.seen_version for c in desk.ledgers.ledger("m").pending] == [before + 1, before + 2]
    assert desk.change(worker) == before + 3


def test_a_full_pending_change_replaces_those_before_it_once_it_has_succeeded() -> None:
    desk = Desk()
    worker = desk.join("a")
    bodies = {"1": "{}", "2": A_PART, "3": '{"model_path": "bad"}', "4": A_PART}
    pending = [desk.ledgers.make(name, "m", DISK, body, None) for name, body in bodies.items()]
    for change in pending:
        desk.ledgers.defer(change, [worker])
    ledger = desk.ledgers.ledger("m")

    assert ledger.due is pending[2]
    desk.ledgers.open(pending[2], [worker])
    desk.ledgers.withdraw(pending[2])  # the disk is full
    assert sum(table == "changes" for table, _ in desk.kept) == 4
    desk.ledgers.open(pending[2], [worker])
    desk.ledgers.unchanged(pending[2], worker, "no such path")
    desk.ledgers.close(pending[2])
    assert (ledger.due, ledger.pending) == (pending[0], [pending[0], pending[1], pending[3]])

    late = desk.ledgers.make("5", "m", DISK, '{"model_path": "late"}', None)
    lora = desk.ledgers.make("6", "m", SET_LORA, "{}", None)
    after = desk.ledgers.make("7", "m", DISK, "{}", None)
    for change in (late, lora, after):
        desk.ledgers.defer(change, [worker])
    assert ledger.due is after
    assert desk.apply(after, worker) == 1
    assert (ledger.due, ledger.pending) == (lora, [lora])
    assert {key for table, key in desk.kept if table == "changes"} == {"6"}


def test_a_lora_call_comes_after_all_updates_and_has_the_last_number() -> None:
    desk = Desk()
    worker = desk.join("a")
    calls = [(UNMERGE, 11, "{}"), (SET_LORA, None, "{}"), (DISK, None, A_PART), (DISK, 20, "{}")]
    pending = []
    for path, number, body in calls:
        change = desk.ledgers.make(f"{path}{body}", "m", path, body, None)
        desk.ledgers.choose(change, number)
        desk.ledgers.defer(change, [worker])
        pending.append(change)
    unmerge, lora, _, full = pending
    ledger = desk.ledgers.ledger("m")
    assert ledger.due is full
    assert desk.apply(full, worker) == 1
    assert ledger.pending == [unmerge, lora]
    desk.begin()
    worker, ledger = desk.join("a"), desk.ledgers.ledger("m")
    versions = []
    while ledger.due is not None:
        assert worker.weights is Weights.BEHIND
        versions.append(desk.apply(ledger.due, worker))
    assert versions == [11, 20]
    assert (ledger.version, ledger.issued) == (20, 20)


def test_an_update_of_a_part_comes_before_a_lora_call() -> None:
    desk = Desk()
    worker = desk.join("a")
    lora, part = (desk.ledgers.make(p, "m", p, A_PART, None) for p in (SET_LORA, DISK))
    for change in (lora, part):
        desk.ledgers.defer(change, [worker])
    ledger = desk.ledgers.ledger("m")
    assert ledger.due is part
    assert desk.apply(part, worker) == 1
    assert ledger.pending == [lora]


def test_a_change_that_replaces_one_that_was_under_way_does_not_take_its_number() -> None:
    desk = Desk()
    worker = desk.join("a")
    before = desk.change(worker)
    under_way = desk.ledgers.make("other", "m", DISK, "{}", None)
    desk.ledgers.open(under_way, [worker])
    desk.begin()
    worker = desk.join("a")
    later = desk.ledgers.make("later", "m", DISK, "{}", None)
    desk.ledgers.defer(later, [worker])
    assert desk.ledgers.ledger("m").due is later
    assert desk.apply(later, worker) == before + 2
    assert not desk.ledgers.ledger("m").pending


def test_what_is_kept_of_a_change_and_its_ledger() -> None:
    desk = Desk()
    worker = desk.join("a")
    change = desk.ledgers.make("id", "m", DISK, "{}", "label")
    desk.ledgers.open(change, [worker])
    assert unstructured(desk.kept["changes", "id"]) == {
        "change_id": "id",
        "model": "m",
        "number": 1,
        "path": DISK,
        "body": "{}",
        "label": "label",
        "workers": [worker.url],
        "pending": False,
        "chosen": None,
        "digest": None,
        "lora": False,
        "only_lora": False,
    }
    desk.ledgers.defer(desk.ledgers.make("later", "m", DISK, "{}", None), [worker])
    desk.ledgers.applied(change, worker, worker.incarnation)
    row = unstructured(desk.kept["ledgers", "m"])
    assert row.pop("recipe")["base"][0]["path"] == DISK
    assert row == {
        "model": "m",
        "version": 1,
        "issued": 1,
        "label": "label",
        "last_error": None,
        "since": 0,
        "made": None,
        "labels": {"label": 1},
        "run": None,
        "at": None,
    }
    assert set(desk.kept) == {("ledgers", "m"), ("changes", "later"), ("weights", worker.url)}


def test_each_version_that_is_issued_is_told_once() -> None:
    desk = Desk()
    told: list[object] = []
    desk.registry.bus.subscribe(told.append, events.VersionIssued)
    a, b = desk.join("a"), desk.join("b")
    desk.change(a, b)
    desk.change(a, b)
    assert told == [events.VersionIssued("m", version, None) for version in (1, 2)]


def test_a_lora_with_an_unknown_outcome_leaves_the_weights_themselves_known() -> None:
    desk = Desk()
    worker = desk.join("a")
    desk.change(worker)
    change = desk.ledgers.make("id", "m", SET_LORA, '{"lora_nickname": "n"}', None)
    desk.ledgers.open(change, [worker])
    desk.ledgers.unknown(change, worker, "it timed out")
    state = desk.ledgers.weight_state(worker)
    assert (state.base, state.loras, state.wrapped) == (1, None, True)
    assert [step.path for step in desk.ledgers.plan(worker).steps] == [MERGE, UNMERGE]


@pytest.mark.parametrize(
    ("steps", "opaque", "current"),
    [
        ((PART,), False, False),  # adds a part that can be repeated
        ((MERGED,), False, False),
        ((PART, WHOLE), False, True),
        ((PART,), True, True),  # sends tensors too, which the trainer answers for
        ((), False, True),  # made past the router
    ],
)
def test_what_a_worker_that_missed_tensors_has_after_a_transaction(
    steps: tuple[Step, ...], opaque: bool, current: bool
) -> None:
    desk = Desk()
    a, b = desk.join("a"), desk.join("b")
    desk.change(a, b)
    tensors = desk.ledgers.make("2", "m", TENSOR, None, None)
    desk.apply(tensors, a)
    assert b.weights is Weights.BEHIND
    transaction = desk.ledgers.make("3", "m", "", None, None)
    transaction.steps, transaction.opaque = list(steps), opaque
    desk.apply(transaction, a, b)
    assert a.weights is Weights.CURRENT
    assert (b.weights is Weights.CURRENT) is current


def test_full_tensors_make_any_worker_current_and_are_not_replayed() -> None:
    desk = Desk()
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    desk.change(a, b, c)
    desk.apply(desk.ledgers.make("2", "m", TENSOR, None, None), a)
    desk.registry.reincarnate(c, "it was started again")
    desk.registry.learned(c, CARD)
    full = desk.ledgers.make("3", "m", TENSOR, None, None)
    full.full = True
    desk.apply(full, b, c)
    assert (b.weights, b.weight_version) == (c.weights, c.weight_version) == (Weights.CURRENT, 3)
    assert desk.ledgers.behind([b, c], [a]) == [a]
    assert a.stuck


@pytest.mark.parametrize(("only", "base"), [(True, 1), (False, None)])
def test_a_lora_transaction_that_a_router_left_open(only: bool, base: int | None) -> None:
    desk = Desk()
    a = desk.join("a")
    desk.change(a)
    change = desk.ledgers.make("txn", "m", "", None, None)
    change.lora, change.only_lora = True, only
    desk.ledgers.open(change, [a])
    desk.begin()
    state = desk.ledgers.weight_state(desk.join("a"))
    assert (state.base, state.loras, state.wrapped) == (base, None, True)


def test_a_refused_replay_that_cannot_be_repeated_any_more_is_no_failure() -> None:
    desk = Desk()
    a = desk.join("a")
    desk.change(a)
    b = desk.join("b")
    desk.ledgers.failed(b, "no such path")
    assert (b.weights, b.weights_reason, b.stuck) == (Weights.FAILED, "no such path", False)
    desk.apply(desk.ledgers.make("2", "m", TENSOR, None, None), a)
    assert (b.weights, b.stuck) == (Weights.BEHIND, True)
    assert "cannot be repeated" in (b.weights_reason or "")
    desk.ledgers.failed(b, "the engine sleeps")  # a replay that was under way
    assert (b.weights, b.stuck) == (Weights.BEHIND, True)


def test_a_suspect_may_turn_out_to_have_what_cannot_be_repeated() -> None:
    desk = Desk()
    desk.apply(desk.ledgers.make("id", "m", TENSOR, None, None), desk.join("a"))
    desk.begin()
    worker = desk.join("a")
    assert (worker.suspicion, worker.stuck) == (ROUTER_RESTARTED, False)
    desk.registry.reincarnate(worker, f"{ROUTER_RESTARTED}; nothing proves that it is the same")
    desk.registry.learned(worker, CARD)
    assert worker.stuck


def lora(desk: Desk, path: str, *workers: Worker, target: str = "all") -> int:
    """A LoRA call that these apply; its version."""
    body = None if path == TENSOR else json.dumps({"target": target})
    change = desk.ledgers.make(f"{path} {target}", "m", path, body, None)
    change.lora = path == TENSOR
    return desk.apply(change, *workers)


def called(desk: Desk, worker: Worker) -> list[str]:
    return [step.path for step in desk.ledgers.plan(worker).steps]


def test_a_merge_finds_no_lora_where_it_was_taken_out_before() -> None:
    """Also at a worker whose layers are wrapped since, for a LoRA that was refused."""
    desk = Desk()
    old, fresh = desk.join("a"), desk.join("b")
    lora(desk, SET_LORA, old)
    lora(desk, UNMERGE, old)
    desk.change(old, fresh, target_modules=["t"])
    assert called(desk, fresh) == []
    desk.ledgers.wrapped(fresh, fresh.incarnation)
    assert called(desk, fresh) == [MERGE, UNMERGE, SET_LORA, UNMERGE]
    lora(desk, MERGE, old, fresh)
    assert called(desk, old) == []
    assert called(desk, fresh) == [MERGE, UNMERGE, SET_LORA, MERGE]


def test_a_merge_finds_no_pushed_lora_where_it_was_taken_out_before() -> None:
    desk = Desk()
    old, fresh = desk.join("a"), desk.join("b")
    lora(desk, TENSOR, old)
    lora(desk, UNMERGE, old)
    desk.ledgers.wrapped(fresh, fresh.incarnation)
    desk.replay(fresh)
    assert fresh.weights is Weights.CURRENT
    lora(desk, MERGE, old, fresh)
    assert (old.weights, fresh.weights) == (Weights.CURRENT, Weights.BEHIND)
    assert desk.ledgers.plan(fresh).blocked
    lora(desk, UNMERGE, old, fresh)
    assert called(desk, fresh) == [MERGE, UNMERGE]


def test_a_merge_finds_no_lora_of_another_target_where_it_was_taken_out_before() -> None:
    desk = Desk()
    old, fresh = desk.join("a"), desk.join("b")
    lora(desk, SET_LORA, old, target="t")
    lora(desk, UNMERGE, old, target="t")
    lora(desk, SET_LORA, old, fresh, target="v")
    assert fresh.weights is Weights.CURRENT
    lora(desk, MERGE, old, fresh)
    assert called(desk, old) == []
    assert called(desk, fresh)[:3] == [MERGE, UNMERGE, SET_LORA]


@pytest.mark.parametrize("proof", [True, False])
def test_a_lora_of_a_process_that_may_be_the_old_one_is_taken_out(proof: bool) -> None:
    desk = Desk()
    old, other = desk.join("a"), desk.join("b")
    lora(desk, SET_LORA, old, other)
    desk.registry.suspect(other, "its idle connection was closed")
    lora(desk, UNMERGE, old)
    unproven = "" if proof else UNPROVEN
    desk.registry.reincarnate(other, f"its idle connection was closed{unproven}")
    desk.registry.learned(other, CARD)
    assert called(desk, other) == ([] if proof else [MERGE, UNMERGE])
    desk.replay(other)
    assert desk.ledgers.had_lora([old, other]) == [old]
    lora(desk, MERGE, old, other)
    assert called(desk, other) == [SET_LORA, MERGE]
