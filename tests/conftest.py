from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile

from hypothesis import settings

# No deadline: how long one example takes says more about a busy machine than about the code.
# Named, so that hypothesis does not load its own profile where it sees a CI.
# The same examples each time, so that a change is judged by what it changes; `nox -s flaky` looks
# for new ones.
settings.register_profile(
    "router",
    settings.get_profile("default"),
    deadline=None,
    print_blob=True,
    derandomize=not os.environ.get("EXPLORE"),
)
settings.load_profile("router")

# Of all routers that tests start: none may write to the user's own directory.
_state = tempfile.mkdtemp(prefix="router-tests-state-")
atexit.register(shutil.rmtree, _state, ignore_errors=True)
os.environ["XDG_STATE_HOME"] = _state

# A shell that runs the tests in the background may ignore it, and processes that they start would
# not end at the first signal either.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
