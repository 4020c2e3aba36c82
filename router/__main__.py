"""Entry of `python -m router`; also works as a script, `python router/__main__.py`."""

import os
import runpy
import sys

if __name__ == "__main__":
    if __package__:
        from .cli import main

        sys.exit(main())
    # As a script the package's own folder is the first on the path, where its modules would hide
    # top-level ones of the same name; what has to be there is the folder above.
    _package = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _package]
    sys.path.insert(0, os.path.dirname(_package))
    runpy.run_module(os.path.basename(_package), run_name="__main__", alter_sys=True)
