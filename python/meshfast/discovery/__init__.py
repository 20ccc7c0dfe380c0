"""The verbs between control plane and sidecar. See messages.py."""

from meshfast.discovery.revision import ORIGIN, Revision, content_version

__all__ = ["ORIGIN", "Revision", "content_version"]
