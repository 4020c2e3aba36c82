"""LoRA adapters: which are loaded, which act on which module, and whether they are merged."""

from __future__ import annotations

from typing import Any

from attrs import define, field, frozen

from .weights import WeightsError, digest, unreadable

TARGETS = ("all", "transformer", "transformer_2", "critic")


@frozen
class Applied:
    """Adapters that act on one module."""

    nicknames: tuple[str, ...]
    paths: tuple[str, ...]
    strengths: tuple[float, ...]
    merged: bool
    mode: str


@define(eq=False)
class Loras:
    """The LoRA state of one worker, which has one module that takes adapters: `transformer`."""

    loaded: dict[str, str] = field(factory=dict)
    active: dict[str, Applied] = field(factory=dict)
    wrapped: bool = False
    """Layers are wrapped for the first adapter, even one that cannot be loaded, and stay so:
    updates of weights then skip them."""
    noted: bool = False
    """Whether the worker knows that something is merged: a push does not tell it."""
    _last: tuple[object, ...] | None = None
    """What was set last, unless it was taken out: the same again is skipped."""

    @property
    def identity(self) -> str:
        """Empty while no adapter has an effect."""
        parts = [
            f"{target}:{path}:{strength}"
            for target, applied in sorted(self.active.items())
            if applied.merged or applied.mode == "dynamic"
            for path, strength in zip(applied.paths, applied.strengths, strict=True)
        ]
        return digest("lora", *parts) if parts else ""

    def set(
        self,
        nicknames: list[str],
        paths: list[str | None],
        targets: list[str],
        strengths: list[float],
        mode: str | None,
    ) -> None:
        """Loads what is not loaded yet and puts it to work. Raises `WeightsError`."""
        invalid = [target for target in targets if target not in TARGETS]
        if invalid:
            raise WeightsError(f"Invalid target(s): {invalid}. Valid targets: {list(TARGETS)}")
        self.wrapped = True  # before it looks for the adapters
        fresh: dict[str, str] = {}
        for nickname, path in zip(nicknames, paths, strict=True):
            known = self.loaded.get(nickname) or fresh.get(nickname)
            if path is None and known is None:
                raise WeightsError(
                    f"Adapter {nickname} not found in the pipeline. "
                    "Please provide lora_path to load it."
                )
            if path is not None and path != known:
                if unreadable(path):
                    raise WeightsError(f"Weight path does not exist: {path}")
                fresh[nickname] = path
        self.loaded.update(fresh)
        acting = [i for i, target in enumerate(targets) if target in ("all", "transformer")]
        wanted = [nicknames[i] for i in acting], [strengths[i] for i in acting]
        same = wanted == self._last and self.noted is (mode != "dynamic")
        if acting and (fresh or not same):
            self._last, self.noted = wanted, mode != "dynamic"
            self.active["transformer"] = Applied(
                tuple(nicknames[i] for i in acting),
                tuple(self.loaded[nicknames[i]] for i in acting),
                tuple(strengths[i] for i in acting),
                merged=mode != "dynamic",
                mode="dynamic" if mode == "dynamic" else "merged",
            )

    def merge(self, target: str, strength: float, *, merged: bool) -> None:
        """Merges what is set with that strength, or takes it out of the weights again, unless it
        was pushed and not merged since. Wraps nothing."""
        for module, applied in self.active.items():
            if target not in ("all", module):
                continue
            if not merged and applied.merged and not self.noted:
                continue
            self.noted, self._last = merged, self._last if merged else None
            strengths = tuple(strength for _ in applied.strengths) if merged else applied.strengths
            self.active[module] = Applied(
                applied.nicknames, applied.paths, strengths, merged, "merged" if merged else "none"
            )

    def push(self, tensors: str, alpha: float | None) -> None:
        """An adapter that arrived as tensors and not from a path."""
        self.wrapped = True
        self.active["transformer"] = Applied(
            ("ipc",), (f"ipc:{tensors}:{alpha}",), (1.0,), merged=True, mode="merged"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "loaded_adapters": [
                {"nickname": nickname, "path": path} for nickname, path in self.loaded.items()
            ],
            "active": {
                target: [
                    {
                        "nickname": ",".join(a.nicknames),
                        "nicknames": list(a.nicknames),
                        "path": ",".join(a.paths),
                        "merged": a.merged,
                        "mode": a.mode,
                        "strength": a.strengths[0],
                        "strengths": list(a.strengths),
                    }
                ]
                for target, a in self.active.items()
                if (a.merged and self.noted) or a.mode == "dynamic"
            },
        }
