"""Weights that are only names: where each module came from, and what was pushed over it.

Which paths can be loaded (by an update from disk, and at the start):

- a path that begins with `/nonexistent` or `bad/` cannot be found: refused, nothing changes;
- an existing directory needs `*.safetensors` in a folder named after each wanted module (for an
  adapter: in itself); otherwise refused, nothing changes;
- a path with a part named `corrupt` breaks in the middle of the load: refused, and every wanted
  module goes back to its last directory (what was pushed as tensors since is lost);
- every other path loads. It need not exist.

A module's identity follows from the files (names, sizes, first 64 KiB of each) if the path is a
directory, else from the path's text. Equal weights have equal identities on every worker.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path, PurePosixPath

from attrs import define, field

from .config import guess_tasks, output_type

_MODULES = {
    "IMAGE": ("transformer", "text_encoder", "vae", "text_encoder_2"),
    "VIDEO": ("transformer", "text_encoder", "vae"),
    "MESH": ("transformer", "conditioner", "vae"),
    "ACTION": ("transformer", "vae"),
}
_SAMPLE = 64 * 1024


class WeightsError(Exception):
    """Weights that were refused; the text is the worker's message."""


def digest(*parts: str) -> str:
    """A short identity of some texts."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def module_names(task: str) -> tuple[str, ...]:
    """The modules of a pipeline for that task; the first is the one that LoRA and tensors go to."""
    return _MODULES[output_type(task)]


def identity_of(model_path: str, task: str | None = None) -> str:
    """The weights identity of a worker that loaded all its modules from `model_path`."""
    names = module_names(task or guess_tasks(model_path)[0])
    return Weights.load(model_path, names).identity


def unreadable(path: str, modules: tuple[str, ...] = ()) -> str | None:
    """Why weights cannot be loaded from there, or None if they can."""
    if path.startswith("/nonexistent") or path.startswith("bad/"):
        return f"Failed to download model: Could not find model at {path}"
    root = Path(path)
    if not root.is_dir():
        return None
    missing = [name for name in modules if not _has_weights(root / name)]
    if missing or not (modules or _has_weights(root)):
        return (
            f"Cannot update weights: missing weight files for modules: {missing}. "
            "No partial updates allowed."
        )
    return None


@define
class Module:
    """One module: the identity of its last directory, and the tensors pushed since by name."""

    source: str
    path: str
    tensors: dict[str, str] = field(factory=dict)
    replaced: bool = False
    """The pushed tensors are all there is: `source` no longer matters."""
    kept: str = ""
    """The identity that its wrapped layers still have. Empty: none were skipped by an update."""

    @property
    def identity(self) -> str:
        pushed = [f"{name}={value}" for name, value in sorted(self.tensors.items())]
        new = digest("" if self.replaced else self.source, *pushed) if pushed else self.source
        return new if self.kept in ("", new) else digest("partly", self.kept, new)


@define
class Weights:
    """The modules of one worker. A worker changes them only between generations."""

    modules: dict[str, Module]

    @classmethod
    def load(cls, path: str, names: tuple[str, ...]) -> Weights:
        """Raises `WeightsError` if there is nothing to load."""
        if reason := unreadable(path, names):
            raise WeightsError(reason)
        return cls({name: Module(_source(path, name), path) for name in names})

    @property
    def identity(self) -> str:
        return digest(*(f"{name}={m.identity}" for name, m in self.modules.items()))

    @property
    def path(self) -> str:
        return next(iter(self.modules.values())).path

    def from_disk(self, path: str, targets: list[str] | None, skip: frozenset[str]) -> str:
        """Loads the wanted modules (None: all), and of those in `skip` the layers that no adapter
        wraps; the message of the worker.

        Raises `WeightsError`; then nothing changed, but for a `corrupt` path (see above).
        """
        names = self._wanted(targets)
        if reason := unreadable(path, tuple(names)):
            raise WeightsError(reason)
        if "corrupt" in PurePosixPath(path).parts:
            self.roll_back(names)
            raise WeightsError(
                f"Failed to update module '{names[0]}': Error while deserializing header: "
                "invalid header. All modules rolled back to original weights."
            )
        for name in names:
            old = self.modules[name]
            kept = old.kept or old.identity if name in skip else ""
            self.modules[name] = Module(_source(path, name), path, kept=kept)
        return f"Updated {len(names)} modules ({', '.join(names)})."

    def from_tensors(
        self,
        tensors: dict[str, str],
        targets: list[str] | None,
        skip: frozenset[str] = frozenset(),
    ) -> str:
        """Pushes tensors (name -> digest; the name `*` stands for all). Raises `WeightsError`.

        Of a module in `skip` every named tensor counts as one of a wrapped layer.
        """
        names = self._wanted(targets if targets is not None else [next(iter(self.modules))])
        for name in names:
            module = self.modules[name]
            if "*" in tensors:
                if name in skip:
                    module.kept = module.kept or module.identity
                module.tensors, module.replaced = {"*": tensors["*"]}, True
            elif name not in skip:
                module.tensors = {**module.tensors, **tensors}
        return f"Updated {len(names)} modules from tensor ({', '.join(names)})."

    def spoil(self, mark: str) -> None:
        """Leaves the first module partly new, as a tensor load that broke half-way does."""
        module = next(iter(self.modules.values()))
        module.tensors = {**module.tensors, "partly": mark}

    def roll_back(self, names: list[str] | None = None) -> None:
        """Back to the last directory of each module; one whose directory is gone stays."""
        for name in names or list(self.modules):
            module = self.modules[name]
            if not unreadable(module.path, (name,)):
                self.modules[name] = Module(module.source, module.path, kept=module.kept)

    def check(self, target: str, expected: dict[str, str]) -> str:
        """The message if these tensors were pushed to `target`, else raises `WeightsError`."""
        module = self.modules.get(target)
        if module is None:
            raise WeightsError(f"Module '{target}' is not initialized")
        missing = sorted(name for name in expected if name not in module.tensors)
        wrong = sorted(
            name
            for name in expected
            if name in module.tensors and module.tensors[name] != expected[name]
        )
        parts = []
        if missing:
            parts.append(f"missing {len(missing)} tensor(s): {_shown(missing)}")
        if wrong:
            parts.append(f"checksum mismatch for {len(wrong)} tensor(s): {_shown(wrong)}")
        if parts:
            raise WeightsError(f"Module '{target}' update weight check failed: " + "; ".join(parts))
        return f"Verified module '{target}' update for {len(expected)} tensor(s)."

    def _wanted(self, targets: list[str] | None) -> list[str]:
        have = list(self.modules)
        if targets is None:
            return have
        unknown = [name for name in targets if name not in have]
        if unknown:
            raise WeightsError(
                f"Module(s) requested for update not found in pipeline: {unknown}. "
                f"Available Module(s): {have}"
            )
        if not targets:
            raise WeightsError(
                f"No matching modules found for update. Requested: {targets}. "
                f"Available nn.Module(s): {have}"
            )
        return targets


def _source(path: str, name: str) -> str:
    root = Path(path)
    if not root.is_dir():
        return digest("path", path.rstrip("/"), name)
    folder = root / name
    files = []
    for file in _files(folder):
        try:
            with file.open("rb") as stream:
                sample = hashlib.sha256(stream.read(_SAMPLE)).hexdigest()
                size = stream.seek(0, os.SEEK_END)
        except OSError as error:
            raise WeightsError(f"Failed to update module '{name}': {error}") from None
        files.append(f"{file.relative_to(folder)}:{size}:{sample}")
    return digest("files", name, *files)


def _files(folder: Path) -> list[Path]:
    """The files in a folder and in the folders right below it, in order of their names."""
    found = itertools.chain(folder.glob("*"), folder.glob("*/*"))
    return sorted(file for file in found if os.path.isfile(file))


def _has_weights(folder: Path) -> bool:
    return any(file.suffix == ".safetensors" for file in _files(folder))


def _shown(names: list[str]) -> str:
    more = f", ... (+{len(names) - 5} more)" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
