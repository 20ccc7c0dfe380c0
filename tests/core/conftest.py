"""Property tests here are bounded by their number of examples, not by the speed of the machine."""

from hypothesis import settings

settings.register_profile("meshfast", deadline=None)
settings.load_profile("meshfast")
