"""`state` and `reap`: what a router leaves on the disk, and running."""

from __future__ import annotations

from pathlib import Path

from ..errors import Problem, SettingsError, StartError, describe


def state(arguments: list[str]) -> int:
    """Look at a state directory, or repair it."""
    from ..store import repair, showing

    match arguments:
        case ["show", folder, *table] if len(table) <= 1:
            for line in showing.show(Path(folder), *table):
                print(line)
            return 0
        case ["check", folder]:
            showing.look_for(Path(folder))
            lines, good = showing.check(Path(folder))
            for line in lines:
                print(line)
            return 0 if good else 1
        case ["repair", folder] | ["repair", folder, "--dry-run"] | ["repair", "--dry-run", folder]:
            showing.look_for(Path(folder))
            try:
                for line in repair.repair(Path(folder), dry_run="--dry-run" in arguments):
                    print(line)
            except OSError as error:
                raise StartError(f"{folder} cannot be repaired: {describe(error)}") from error
            return 0
    expected = "expected 'show DIR [TABLE]', 'check DIR' or 'repair DIR [--dry-run]'"
    raise SettingsError([Problem("state", expected)])


def reap(arguments: list[str]) -> int:
    """End the workers that a router has left running."""
    if len(arguments) != 1:
        raise SettingsError([Problem("reap", "expected exactly one argument, the state directory")])

    from .. import service

    ended, unreached = service.reap(Path(arguments[0]))
    for name in sorted(ended):
        print(f"{name} was ended")
    for name in sorted(unreached):
        print(f"{name} does not run on this machine and was not ended")
    if not ended and not unreached:
        print("found no running workers")
    return 1 if unreached else 0
