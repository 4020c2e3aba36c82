"""What SGLang expects of a GPU machine's torch and a plain CPU torch lacks.

Import this before sglang. Nothing of sglang is changed: missing things are put beside it.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as functional

_KEEP: list[torch.library.Library] = []  # operators live as long as the library that defined them


def fill() -> None:
    """Once per process; children that are forked inherit it."""
    if _KEEP:
        return
    _declare_torchvision_operators()
    _quieten_cuda()
    _define_cpu_kernels()
    _replace_triton()


def _declare_torchvision_operators() -> None:
    """The compiled part of torchvision wants a CUDA torch. Its Python part is enough here, which at
    import asks for these two operators to be known by name."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _KEEP.append(library)


def _quieten_cuda() -> None:
    """Sleep and wake wait for CUDA and empty its cache whatever the platform is."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    if torch.cuda.is_available():
        return
    torch.cuda.synchronize = nothing
    for device in (torch.cuda, torch.cpu):
        device.empty_cache = nothing


def _define_cpu_kernels() -> None:
    """Two operators of sgl-kernel's CPU build, which no registry has. The video transformer calls
    them: normalise, then scale and shift, the second with a gated residual before it."""
    if hasattr(torch.ops.sgl_kernel, "fused_norm_scale_shift_cpu"):
        return
    tail = "Tensor? weight, Tensor? bias, Tensor scale, Tensor shift, str norm_type, float eps"
    library = torch.library.Library("sgl_kernel", "FRAGMENT")
    library.define(f"fused_norm_scale_shift_cpu(Tensor x, {tail}) -> Tensor")
    library.define(
        "fused_scale_residual_norm_scale_shift_cpu("
        f"Tensor residual, Tensor x, Tensor? gate, {tail}) -> (Tensor, Tensor)"
    )
    library.impl("fused_norm_scale_shift_cpu", _modulated, "CPU")
    library.impl("fused_scale_residual_norm_scale_shift_cpu", _modulated_residual, "CPU")
    _KEEP.append(library)


def _modulated(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    shift: torch.Tensor,
    kind: str,
    eps: float,
) -> torch.Tensor:
    wide = x.float()
    if kind == "layer":
        wide = functional.layer_norm(wide, wide.shape[-1:], eps=eps)
    else:
        wide = functional.rms_norm(wide, wide.shape[-1:], eps=eps)
    if weight is not None:
        wide = wide * weight.float()
    if bias is not None:
        wide = wide + bias.float()
    return torch.addcmul(shift.float(), wide, 1 + scale.float()).to(x.dtype)


def _modulated_residual(
    residual: torch.Tensor, x: torch.Tensor, gate: torch.Tensor | None, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    added = x.float() if gate is None else x.float() * gate.float()
    total = residual.float() + added
    return _modulated(total, *rest).to(x.dtype), total.to(x.dtype)


def _replace_triton() -> None:
    """sglang has a stand-in for triton and turns it on for Apple machines only. triton is a
    gigabyte that compiles for GPUs, so pretend to be such a machine while that is decided."""
    if importlib.util.find_spec("triton") is not None:
        return
    found = importlib.util.find_spec("sglang")  # does not import it
    assert found is not None
    assert found.submodule_search_locations is not None
    place = f"{found.submodule_search_locations[0]}/_platform_stubs.py"
    spec = importlib.util.spec_from_file_location("sglang_platform_stubs", place)
    assert spec is not None
    assert spec.loader is not None
    stubs = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = stubs  # its classes look for their module
    spec.loader.exec_module(stubs)
    with ExitStack() as pretending:
        for target, name, value in (
            (sys, "platform", "darwin"),
            (stubs.platform, "machine", lambda: "arm64"),
            (torch.backends.mps, "is_available", lambda: True),
            (stubs, "_patch_non_blocking", lambda: None),
        ):
            pretending.enter_context(mock.patch.object(target, name, value))
        stubs.install_platform_stubs()
