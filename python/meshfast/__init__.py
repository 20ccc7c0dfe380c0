"""meshfast: a complete service mesh in one pip wheel.

This package imports nothing by itself: the supervisor starts a lean interpreter with
`python -I -m meshfast.supervisor`, and whatever stood here would be loaded in every process of the
mesh. The rooms and the direction of their imports:

    cli > supervisor | worker | agent > telemetry | policy > discovery > resources > errors
"""

__version__ = "0.1.0"
