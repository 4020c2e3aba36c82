"""GPUs: what is read from the environment and from tools, and which worker gets which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import StartError
from router.launch.resources import (
    Found,
    Gpu,
    GpuShares,
    Vendor,
    from_environment,
    from_nvidia_smi,
    from_rocm_smi,
    variables,
    visible,
)
from router.settings import LauncherSettings
from tests.unit.launch.settings import launcher

NVIDIA_SMI = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-11111111-aaaa-bbbb-cccc-000000000000)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-22222222-aaaa-bbbb-cccc-000000000000)
  MIG 3g.20gb     Device  0: (UUID: MIG-33333333-aaaa-bbbb-cccc-000000000000)
  MIG 3g.20gb     Device  1: (UUID: MIG-GPU-44444444-aaaa/1/0)
GPU 2: NVIDIA H100 80GB HBM3 (UUID: GPU-55555555-aaaa-bbbb-cccc-000000000000)
"""

ROCM_SMI = """\
============================ ROCm System Management Interface ============================
GPU[0]\t\t: Device Name: \t\tAMD Instinct MI300X
GPU[0]\t\t: Device ID: \t\t0x74a1
GPU[1]\t\t: Device Name: \t\tAMD Instinct MI300X
GPU[10]\t\t: Device Name: \t\tAMD Instinct MI300X
==================================== End of ROCm SMI Log =================================
"""


def found(count: int) -> Found:
    return Found(tuple(Gpu(str(n), f"GPU-{n}{n}{n}{n}-uuid") for n in range(count)), "NVML")


def shares(gpus: Found | None, *launchers: LauncherSettings) -> list[list[tuple[str, ...]]]:
    made = GpuShares(launchers, gpus)
    for fault in made.faults():
        raise StartError(fault)
    for each in launchers:
        made.take(each, range(each.num_workers))
    return [[made.of(each, index) for index in range(each.num_workers)] for each in launchers]


def refusal(gpus: Found | None, *launchers: LauncherSettings) -> str:
    with pytest.raises(StartError) as caught:
        shares(gpus, *launchers)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("0,1,3", ["0", "1", "3"]),
        (" 2 , 0 ", ["2", "0"]),
        ("GPU-5ee,MIG-GPU-1/2/3,MIG-ab", ["GPU-5ee", "MIG-GPU-1/2/3", "MIG-ab"]),
        ("", []),
        ("-1", []),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
        ("0,0", ["0"]),
    ],
)
def test_a_list_of_visible_devices(text: str, ids: list[str]) -> None:
    assert visible(text) == ids


def test_the_environment_comes_first_even_if_it_leaves_none() -> None:
    assert from_environment({"PATH": "/bin"}) is None
    none = from_environment({"CUDA_VISIBLE_DEVICES": ""})
    assert none is not None
    assert none.gpus == ()
    both = from_environment({"CUDA_VISIBLE_DEVICES": "1,2", "ROCR_VISIBLE_DEVICES": "5"})
    assert both is not None
    assert [gpu.id for gpu in both.gpus] == ["1", "2"]
    assert both.describe() == "2 GPUs (1, 2) according to CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize("variable", ["HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"])
def test_the_environment_of_rocm(variable: str) -> None:
    said = from_environment({variable: "3,4"})
    assert said is not None
    assert [gpu.id for gpu in said.gpus] == ["3", "4"]
    assert (said.vendor, said.source) == (Vendor.AMD, variable)


def test_what_nvidia_smi_lists() -> None:
    gpus = from_nvidia_smi(NVIDIA_SMI)
    assert [gpu.id for gpu in gpus] == [
        "0",
        "MIG-33333333-aaaa-bbbb-cccc-000000000000",
        "MIG-GPU-44444444-aaaa/1/0",
        "2",
    ]
    assert gpus[3].uuid.startswith("GPU-5555")
    assert from_nvidia_smi("No devices found.\n") == ()


def test_what_rocm_smi_lists() -> None:
    assert [gpu.id for gpu in from_rocm_smi(ROCM_SMI)] == ["0", "1", "10"]
    assert from_rocm_smi("WARNING: No AMD GPUs specified\n") == ()


def test_each_worker_gets_its_own() -> None:
    both = shares(
        found(8),
        launcher(num_workers=2, num_gpus_per_worker=2),
        launcher(name="video", num_workers=3),
    )
    assert both == [[("0", "1"), ("2", "3")], [("4",), ("5",), ("6",)]]


def test_named_ones_are_taken_as_they_are_and_left_out_for_others() -> None:
    named = launcher(num_workers=1, worker_gpu_ids=["1", "GPU-2222", "MIG-x/y"])
    chosen = launcher(name="other", num_workers=3)
    assert shares(found(5), chosen, named) == [[("0",), ("3",), ("4",)], [("1",)]]
    made = GpuShares([named], None)
    assert made.of(named, 2) == ("MIG-x/y",)


def test_too_few() -> None:
    assert refusal(found(2), launcher(num_workers=3)) == (
        "The launcher needs 3 GPUs; this machine has 2 GPUs (0, 1) according to NVML; reduce"
        " num_workers, or set num_gpus_per_worker to 0 to run workers without GPUs"
    )
    assert refusal(
        found(3),
        launcher(num_workers=1, worker_gpu_ids=["0"]),
        launcher(name="b", num_gpus_per_worker=2),
        launcher(name="c"),
    ).startswith(
        "The launchers need 3 GPUs in addition to the 1 in worker_gpu_ids; this machine has 3 GPUs"
    )


def test_none_means_the_cpu() -> None:
    nothing = Found(source="NVML")
    assert shares(nothing, launcher(num_workers=2)) == [[(), ()]]
    assert GpuShares([], nothing).cpu
    assert not GpuShares([], None).cpu
    assert shares(nothing, launcher(worker_gpu_ids=["0"])) == [[("0",)]]


def test_a_launcher_may_want_none() -> None:
    assert shares(found(1), launcher(num_workers=9, num_gpus_per_worker=0), launcher(name="b")) == [
        [()] * 9,
        [("0",)],
    ]
    assert shares(None, launcher(num_gpus_per_worker=0)) == [[()]]


def test_workers_that_come_and_go() -> None:
    image, video = launcher(num_workers=1), launcher(name="video", num_workers=1)
    made = GpuShares([image, video], found(3))
    made.take(image, [0])
    made.take(video, [0])
    made.take(image, [0, 1])
    assert [made.of(image, 0), made.of(video, 0), made.of(image, 1)] == [("0",), ("1",), ("2",)]
    with pytest.raises(StartError) as caught:
        made.take(video, [1])
    assert str(caught.value) == (
        "Launcher video: worker 1 needs 1 GPU, but none are free; this machine has 3 GPUs"
        " (0, 1, 2) according to NVML"
    )
    made.give_back(image, 1)
    assert made.of(video, 1) == ("2",)


def test_all_get_the_same_again_after_a_restart() -> None:
    image, video = launcher(num_workers=2), launcher(name="video", num_workers=1)
    before = GpuShares([image, video], found(4))
    before.take(image, [0, 1])
    before.take(video, [0])
    before.take(image, [2])
    assert before.of(image, 2) == ("3",)
    after = GpuShares([image, video], found(4))
    after.take(image, [0, 1, 2])
    assert [after.of(image, 2), after.of(video, 0)] == [("3",), ("2",)]
    # And where one has fewer workers, so that another has its GPUs:
    fewer = GpuShares([image, video], found(3))
    assert list(fewer.faults()) == []
    fewer.take(image, [0])
    fewer.take(video, [0, 1])
    assert [fewer.of(video, 0), fewer.of(video, 1)] == [("2",), ("1",)]


def test_a_refused_growth_takes_nothing() -> None:
    image = launcher()
    made = GpuShares([image], found(2))
    with pytest.raises(StartError):
        made.take(image, [0, 1, 2])
    assert [made.of(image, 7), made.of(image, 0)] == [("1",), ("0",)]


def test_workers_beyond_the_named_ones() -> None:
    named = launcher(worker_gpu_ids=["0"])
    with pytest.raises(StartError, match="names GPUs for 1 worker, but none for worker 1"):
        GpuShares([named], None).take(named, [1])


def test_a_gpu_named_for_several_workers_is_told() -> None:
    a = launcher(num_workers=2, worker_gpu_ids=["0", "1", "2"])
    b = launcher(name="b", worker_gpu_ids=["1"])
    assert GpuShares([a, b], None).shared() == {"1": ["Qwen-Image-1", "b-0"]}
    c = launcher(name="c", worker_gpu_ids=["GPU-1111"])
    assert GpuShares([a, c], None, found(3)).shared() == {"1": ["Qwen-Image-1", "c-0"]}


PARTS = Found((Gpu("MIG-1-a", "MIG-1-a"), Gpu("1", "GPU-1111-uuid")), "NVML")


@pytest.mark.parametrize(
    ("machine", "group", "told"),
    [
        (found(2), "1,GPU-0000", None),
        (found(2), "1,2", "names 2; this machine has 2 GPUs (0, 1) according to NVML"),
        (found(2), "GPU-9,7", "names GPU-9, 7; this machine has"),
        (found(2), "0,MIG-1-a", "names MIG-1-a; this machine has"),
        (found(2), "0,MIG-GPU-0000-uuid/1/0", None),  # as older drivers name parts
        (found(2), "0,GPU-0000-uuid", "names one GPU twice for a worker: 0, GPU-0000-uuid"),
        (PARTS, "MIG-1-a,MIG-1-b", "names MIG-1-b; this machine has"),
        (PARTS, "0,GPU-2", None),  # the one in parts is not listed as a whole
        (Found(source="NVML"), "3,GPU-9", None),  # a container where no tool finds any
        (Found((Gpu("0"), Gpu("1")), "rocm-smi"), "1,GPU-9", None),
        (Found((Gpu("0"), Gpu("1")), "rocm-smi"), "1,5", "names 5; this machine has"),
    ],
)
def test_named_gpus_that_are_not_there(machine: Found, group: str, told: str | None) -> None:
    named = launcher(num_gpus_per_worker=2, worker_gpu_ids=[group])
    faults = list(GpuShares([named], None, machine).faults())
    assert len(faults) == (told is not None)
    if told is not None:
        assert faults[0].startswith(f"Launcher Qwen-Image: worker_gpu_ids {told}")


def test_what_makes_a_worker_see_its_own() -> None:
    by_bus = Found((Gpu("0"),), "NVML", by_bus=True)
    cuda = {"CUDA_VISIBLE_DEVICES": "0,1"}
    assert variables(["0", "1"], None, {}) == cuda
    # CUDA counts the fastest first, the tools by place on the bus.
    assert variables(["0", "1"], by_bus, {}) == {**cuda, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    order = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert variables(["0", "1"], by_bus, order) == {**cuda, **order}
    assert variables(["MIG-1"], by_bus, {}) == {"CUDA_VISIBLE_DEVICES": "MIG-1"}
    assert variables([], None, {}) == {"CUDA_VISIBLE_DEVICES": ""}
    amd = {**cuda, "HIP_VISIBLE_DEVICES": "0,1"}
    assert variables(["0", "1"], Found(vendor=Vendor.AMD), {}) == amd
    assert variables(["0", "1"], None, {"HIP_VISIBLE_DEVICES": "0,1,2"}) == amd
    rocr = from_environment({"ROCR_VISIBLE_DEVICES": "4,5"})
    assert variables(["5"], rocr, {"ROCR_VISIBLE_DEVICES": "4,5"}) == {"ROCR_VISIBLE_DEVICES": "5"}


@given(
    st.integers(0, 12),
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(0, 3), st.sets(st.integers(0, 11), max_size=4)),
        min_size=1,
        max_size=4,
    ),
)
def test_no_two_workers_share_a_gpu_that_was_chosen(
    count: int, wanted: list[tuple[int, int, set[int]]]
) -> None:
    launchers = []
    for number, (workers, gpus, named) in enumerate(wanted):
        ids = [str(each) for each in named] if gpus == 1 and len(named) >= workers else []
        launchers.append(
            launcher(
                name=f"l{number}", num_workers=workers, num_gpus_per_worker=gpus, worker_gpu_ids=ids
            )
        )
    have = found(count)
    try:
        got = shares(have, *launchers)
    except StartError:
        needed = sum(
            each.num_workers * each.num_gpus_per_worker
            for each in launchers
            if not each.worker_gpu_ids
        )
        named_ids = {name for each in launchers for group in each.worker_gpu_ids for name in group}
        assert needed > len({gpu.id for gpu in have.gpus} - named_ids)
        return
    chosen: list[str] = []
    for each, groups in zip(launchers, got, strict=True):
        for group in groups:
            assert len(group) == (each.num_gpus_per_worker if count or each.worker_gpu_ids else 0)
            if not each.worker_gpu_ids:
                chosen += group
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & {
        name for each in launchers for group in each.worker_gpu_ids for name in group
    }
