"""Hypothesis looks for counterexamples, not for slow machines: at the same ones each time, so that a change is not
blamed for what chance found. `make test-all` looks at others (--hypothesis-profile)."""

from hypothesis import settings

settings.register_profile("the same", deadline=None, derandomize=True)
settings.register_profile("others", deadline=None)
settings.load_profile("the same")
