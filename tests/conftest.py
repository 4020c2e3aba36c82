from __future__ import annotations

from hypothesis import settings

# No deadline: how long one example takes says more about a busy machine than about the code.
# Named, so that hypothesis does not load its own profile where it sees a CI.
settings.register_profile("router", settings.get_profile("default"), deadline=None, print_blob=True)
settings.load_profile("router")
