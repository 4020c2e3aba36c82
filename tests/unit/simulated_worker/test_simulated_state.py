"""Weights, adapters, faults and costs: what changes and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from simulated_worker.config import WorkerConfig, output_type
from simulated_worker.cost import Shape
from simulated_worker.faults import FaultError, Faults
from simulated_worker.loras import Loras
from simulated_worker.weights import Weights, WeightsError, identity_of, module_names, unreadable

NAMES = module_names("T2I")


def test_equal_paths_make_equal_weights() -> None:
    assert identity_of("m/a") == identity_of("m/a/")
    assert identity_of("m/a") != identity_of("m/b")
    assert identity_of("m/a", "T2I") != identity_of("m/a", "T2V")


def test_module_folders_are_each_known_and_each_needed(tmp_path: Path) -> None:
    for name in NAMES[:-1]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    (tmp_path / NAMES[-1]).mkdir()
    reason = unreadable(str(tmp_path), NAMES)
    assert reason is not None
    assert f"missing weight files for modules: ['{NAMES[-1]}']" in reason
    assert unreadable(str(tmp_path), NAMES[:-1]) is None
    (tmp_path / NAMES[-1] / "model.safetensors").write_bytes(b"x")
    before = Weights.load(str(tmp_path), NAMES)
    (tmp_path / "vae" / "model.safetensors").write_bytes(b"new")
    after = Weights.load(str(tmp_path), NAMES)
    changed = [n for n in NAMES if before.modules[n].identity != after.modules[n].identity]
    assert changed == ["vae"]


def test_a_rolled_back_load_loses_what_was_pushed() -> None:
    weights = Weights.load("m/a", NAMES)
    start = weights.identity
    weights.from_tensors({"w": "1"}, None)
    assert weights.identity != start
    with pytest.raises(WeightsError, match="rolled back"):
        weights.from_disk("m/corrupt/x", None, frozenset())
    assert weights.identity == start


def test_a_whole_push_makes_the_past_forgotten() -> None:
    one, two = Weights.load("m/a", NAMES), Weights.load("m/b", NAMES)
    for weights in (one, two):
        weights.from_tensors({"*": "sha256:x"}, ["transformer"])
    assert one.modules["transformer"].identity == two.modules["transformer"].identity
    one.spoil("mark")
    assert one.modules["transformer"].identity != two.modules["transformer"].identity


def test_loading_the_same_adapter_again_keeps_the_old(tmp_path: Path) -> None:
    loras = Loras()
    loras.set(["a"], ["x/a"], ["all"], [1.0], None)
    first = loras.identity
    loras.set(["a"], [None], ["transformer"], [1.0], None)
    assert loras.identity == first
    loras.merge("other", 0.1, merged=True)
    assert loras.identity == first
    loras.merge("all", 1.0, merged=False)
    assert loras.identity == ""
    assert loras.wrapped
    loras.set(["a"], ["x/other"], ["critic"], [1.0], None)
    assert loras.loaded == {"a": "x/other"}
    assert loras.identity == ""


def test_an_adapter_that_equals_the_last_one_is_skipped() -> None:
    loras = Loras()

    def set_one(mode: str | None = None) -> str:
        loras.set(["a"], ["x/a"], ["all"], [1.0], mode)
        return loras.identity

    first = set_one()
    loras.merge("all", 0.5, merged=True)
    half = loras.identity
    assert set_one() == half != first
    loras.push("{}", None)
    pushed = loras.identity
    assert set_one() == pushed != first
    loras.merge("all", 1.0, merged=False)
    assert set_one() == first
    # Not if the one is merged, and the other is not.
    loras.merge("all", 0.5, merged=True)
    assert set_one("dynamic") == first
    loras.merge("all", 0.5, merged=True)
    assert set_one("dynamic") == first
    assert set_one("dynamic") == first


def test_faults_are_used_up_and_concern_paths() -> None:
    faults = Faults()
    faults.add("drop", path="/v1", count=2)
    assert faults.take("drop", "/health") is None
    assert faults.peek("drop", "/v1/models") is not None
    assert faults.take("drop", "/v1/models") is not None
    assert faults.take("drop", "/v1/models") is not None
    assert faults.take("drop", "/v1/models") is None
    faults.add("die_at_byte")
    assert faults.take("die_at_byte", "/x") is not None
    assert faults.take("die_at_byte", "/x") is None
    faults.add("slow", seconds=-1)
    assert faults.take("slow") is None
    faults.add("slow")
    faults.add("clear")
    assert faults.as_json() == []


@pytest.mark.parametrize(
    ("kind", "settings"), [("zz", {}), ("slow", {"factor": "x"}), ("slow", {"count": True})]
)
def test_bad_faults(kind: str, settings: dict[str, object]) -> None:
    with pytest.raises(FaultError):
        Faults().add(kind, **settings)


def test_waiting_for_a_fault_to_end() -> None:
    async def main() -> None:
        faults = Faults()
        forever, short = faults.add("warming"), faults.add("refuse", seconds=0.01)
        with trio.fail_after(5):
            await faults.over(short)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(faults.over, forever)
                await trio.testing.wait_all_tasks_blocked()
                faults.clear()

    trio.run(main)


def test_costs_grow_with_the_work() -> None:
    small = Shape("IMAGE", 512, 512, 28)
    assert 0.5 < Shape("IMAGE", 1024, 1024, 28).seconds(1) < 1.0
    assert 2.0 < Shape("VIDEO", 832, 480, 50, 96).seconds(1) < 3.0
    assert small.seconds(2) > small.seconds(1) > Shape("IMAGE", 512, 512, 4).seconds(1)


def test_names_and_outputs() -> None:
    assert WorkerConfig(model_path="a/b").name == "a/b"
    assert WorkerConfig(model_path="a/b", served_model_name="c").name == "c"
    mixed = WorkerConfig(task_types=("TI2V", "T2I"))
    assert (mixed.task, mixed.makes("IMAGE"), mixed.makes("MESH")) == ("TI2V", True, False)
    assert [output_type(t) for t in ("I2M", "V2V", "VLA_ACTION")] == ["MESH", "VIDEO", "ACTION"]
