"""The control plane: certificate authority, store, push and operator API.

Imported as ``meshfast.control`` and under no other name. The folder lies at the root of the
repository and is linked into the package, so ``import control`` would work from a checkout and
create every class a second time, unequal to the first; it is refused here. Only ``meshfast.cli``
imports this package, and it imports nothing of meshfast but ``policy``, ``discovery``,
``resources`` and ``errors``. Held by tests/architecture/test_control_identity.py and the import
contracts in pyproject.toml.
"""

if __name__ != "meshfast.control":
    raise ImportError(f"the control plane is imported as meshfast.control, not as {__name__}")
