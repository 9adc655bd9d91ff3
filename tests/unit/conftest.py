"""How the unit tests look for counterexamples: reproducibly, and without a clock."""

from hypothesis import settings

# No deadline: nothing here is a measurement. The same examples everywhere; no folder left behind.
settings.register_profile("unit", deadline=None, max_examples=30, derandomize=True, database=None)
settings.load_profile("unit")
