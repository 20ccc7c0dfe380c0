"""meshfast: a complete service mesh in one pip wheel.

This package imports nothing by itself: the supervisor starts a lean interpreter with
`python -I -m meshfast.supervisor`, and whatever stood here would be loaded in every process of the
mesh. The version is read from the installed distribution when somebody asks for it, so it is
written once, in Cargo.toml.

The rooms and the direction of their imports:

    cli > supervisor | worker | agent > telemetry | policy > discovery > resources > errors
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Answer `meshfast.__version__`; nothing else is made up."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version

        return version("meshfast")
