"""The operator API: HTTP and JSON over what `Operations` can do.

    app.py     one table of routes: what is asked, what is answered, what a refusal looks like
    serve.py   the Unix socket `api.sock` of the state directory, and uvicorn on it

Who may open the socket may do everything: the directory is 0700 and the socket 0600, so that is the
owner of the state directory (and root). There is no TCP listener: over TCP nobody would be
authenticated, and that is refused.

This module holds what the command line needs to call the API, and loads nothing.

Tests: tests/control/api/, tests/mesh/test_operator.py.
"""

from typing import Final

__all__ = ["BODY_BYTES_MAX", "SOCKET_NAME"]

#: The socket's name in the state directory.
SOCKET_NAME: Final = "api.sock"
#: The longest body of a request, in bytes: policy of a large mesh is hundreds of KiB.
BODY_BYTES_MAX: Final = 4 << 20
