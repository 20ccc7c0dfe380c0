"""The routes of the operator API, as one table, and the application that serves them.

A request is JSON and is decoded strictly: an unknown member is refused. An answer is the struct
that `Operations` returned, as JSON. A refusal is `{"problems": [...]}` with members `message`,
`file`, `line`, `column`, `path` and `hint`, and one of

    400 not what the route takes     404 no such thing     405 not by this method
    409 not at the expected revision 413 the body is too long
    422 refused, nothing was changed 503 the store cannot take it

Does not do: authenticate (serve.py says who gets here), decide anything, keep state.

Tests: tests/control/api/test_app.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from meshfast.control.api import BODY_BYTES_MAX
from meshfast.control.operations import (
    TOKEN_TTL_S,
    Applied,
    ChangedError,
    CreatedToken,
    Expected,
    NotFoundError,
    Operations,
    ResourceName,
    ResourceView,
    Revocation,
    RevokedIdentity,
    ServiceView,
    TokenView,
    WorkloadView,
)
from meshfast.control.push import SidecarStatus
from meshfast.control.store import StoreError
from meshfast.errors import ConfigError, Problem

__all__ = [
    "ApplyRequest",
    "DeleteRequest",
    "Problems",
    "Status",
    "Text",
    "TokenRequest",
    "application",
]


class TokenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A join token to make; the service account is named like the service unless given."""

    service: str
    namespace: str = "default"
    service_account: str = ""
    uses: int = 1
    ttl_s: int = TOKEN_TTL_S


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """YAML or JSON documents; `file` names the text in problems."""

    text: str
    file: str = "-"


class ApplyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts that are applied together, or not at all.

    `expected` are revisions that resources were read at, so that nobody's change is lost.
    """

    texts: tuple[Text, ...]
    expected: tuple[Expected, ...] = ()


class DeleteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Resources that are removed together, or not at all; what is not there is no obstacle."""

    resources: tuple[ResourceName, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The mesh as the control plane sees it.

    `revision` is what sidecars are brought to, and `services` are as they are there. `stored` is
    the newest revision that changes anything for them; it differs while that is on its way.
    """

    revision: str
    stored: str
    services: Sequence[ServiceView]
    workloads: Sequence[WorkloadView]
    sidecars: Sequence[SidecarStatus]


class Problems(msgspec.Struct, frozen=True):
    """A refusal."""

    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: its body (None when the route takes none), path and query."""

    operations: Operations
    body: Any
    path: Mapping[str, str]
    query: Mapping[str, str]


async def _create_token(asked: _Asked) -> CreatedToken:
    return await asked.operations.create_token(**msgspec.structs.asdict(asked.body))


async def _list_tokens(asked: _Asked) -> Sequence[TokenView]:
    return await asked.operations.list_tokens()


async def _revoke_token(asked: _Asked) -> None:
    await asked.operations.revoke_token(asked.path["id"])


async def _apply(asked: _Asked) -> Applied:
    return await asked.operations.apply_texts(_texts(asked), expected=asked.body.expected)


async def _diff(asked: _Asked) -> Applied:
    return await asked.operations.apply_texts(
        _texts(asked), dry_run=True, expected=asked.body.expected
    )


async def _list(asked: _Asked) -> Sequence[ResourceView]:
    return await asked.operations.list(**asked.query)


async def _get(asked: _Asked) -> ResourceView:
    return await asked.operations.get(**asked.path)


async def _delete(asked: _Asked) -> Applied:
    path = asked.path
    return await asked.operations.delete(path["kind"], path["namespace"], path["name"])


async def _delete_all(asked: _Asked) -> Applied:
    return await asked.operations.delete_all(asked.body.resources)


async def _forget_service(asked: _Asked) -> None:
    await asked.operations.forget_service(**asked.path)


async def _list_revoked(asked: _Asked) -> Sequence[RevokedIdentity]:
    return await asked.operations.list_revoked()


async def _revoke_identity(asked: _Asked) -> Revocation:
    return await asked.operations.revoke_identity(**asked.path)


async def _restore_identity(asked: _Asked) -> None:
    await asked.operations.restore_identity(**asked.path)


async def _status(asked: _Asked) -> Status:
    operations = asked.operations
    return Status(
        revision=operations.revision(),
        stored=operations.stored_revision(),
        services=await operations.services(),
        workloads=await operations.workloads(),
        sidecars=await operations.sidecars(),
    )


def _texts(asked: _Asked) -> list[tuple[str, str]]:
    return [(one.file, one.text) for one in asked.body.texts]


@dataclass(frozen=True, slots=True)
class _Row:
    """One route: what it takes and gives; `query` names the only parameters that it knows."""

    method: str
    path: str
    summary: str
    handler: Callable[[_Asked], Awaitable[object]]
    answer: Any
    body: Any = None
    query: tuple[str, ...] = ()


_RESOURCE: Final = "/v1/resources/{kind}/{namespace}/{name}"
_REVOKED: Final = "/v1/revoked/{namespace}/{service_account}"
_TABLE: Final = (
    _Row("POST", "/v1/tokens", "Make a join token", _create_token, CreatedToken, TokenRequest),
    _Row("GET", "/v1/tokens", "List join tokens", _list_tokens, list[TokenView]),
    _Row("DELETE", "/v1/tokens/{id}", "End a join token", _revoke_token, None),
    _Row("PUT", "/v1/resources", "Apply resources", _apply, Applied, ApplyRequest),
    _Row("GET", "/v1/resources", "List resources", _list, list[ResourceView],
         query=("kind", "namespace")),
    _Row("GET", _RESOURCE, "Read a resource", _get, ResourceView),
    _Row("DELETE", _RESOURCE, "Remove a resource", _delete, Applied),
    _Row("POST", "/v1/diff", "Show what applying would change", _diff, Applied, ApplyRequest),
    _Row("POST", "/v1/delete", "Remove resources together", _delete_all, Applied, DeleteRequest),
    _Row("DELETE", "/v1/services/{namespace}/{name}", "Give a name free that nobody serves",
         _forget_service, None),
    _Row("GET", "/v1/revoked", "List revoked identities", _list_revoked, list[RevokedIdentity]),
    _Row("PUT", _REVOKED, "Revoke an identity", _revoke_identity, Revocation),
    _Row("DELETE", _REVOKED, "Take a revocation back", _restore_identity, None),
    _Row("GET", "/v1/status", "Show the mesh", _status, Status),
)  # fmt: skip


def application(operations: Operations) -> Starlette:
    """Make the application over the operations of a control plane."""
    routes = [Route(row.path, _endpoint(row, operations), methods=[row.method]) for row in _TABLE]
    document = msgspec.json.encode(_openapi())

    async def openapi(_: Request) -> Response:
        return _json(document)

    routes.append(Route("/v1/openapi.json", openapi, methods=["GET"]))
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused_by_routing})
    app.router.redirect_slashes = False  # a path with a slash too many is not one of ours
    return app


def _endpoint(row: _Row, operations: Operations) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            unknown = sorted(set(request.query_params) - set(row.query))
            if unknown:
                return _refusal(400, f"unknown parameter {unknown[0]!r}")
            body = None
            if row.body is not None:
                body = msgspec.json.decode(await _body(request), type=row.body)
            asked = _Asked(operations, body, request.path_params, request.query_params)
            return _json(msgspec.json.encode(await row.handler(asked)))
        except msgspec.DecodeError as error:
            return _refusal(400, f"the body is not what {row.method} {row.path} takes: {error}")
        except UnicodeDecodeError:
            return _refusal(400, "the body is not UTF-8")
        except NotFoundError as error:
            return _refusal(404, str(error))
        except ChangedError as error:
            return _refusal(409, str(error))
        except ConfigError as error:
            return _json(msgspec.json.encode(Problems(error.problems)), 422)
        except StoreError as error:
            return _refusal(503, str(error))

    return endpoint


async def _body(request: Request) -> bytes:
    """Read the body; a longer one than allowed is not read to its end."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise HTTPException(413, f"a body has {BODY_BYTES_MAX} bytes at most")
    return bytes(body)


async def _refused_by_routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException), "registered for this class"
    return _refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


def _refusal(status: int, message: str) -> Response:
    return _json(msgspec.json.encode(Problems((Problem(message),))), status)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _openapi() -> dict[str, Any]:
    """Describe the table in OpenAPI 3.1, whose schemas are JSON Schema as msgspec writes it."""
    from meshfast import __version__

    types = [row.answer for row in _TABLE] + [row.body or Problems for row in _TABLE] + [Problems]
    schemas, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    answers, bodies, problems = schemas[: len(_TABLE)], schemas[len(_TABLE) : -1], schemas[-1]
    paths: dict[str, dict[str, Any]] = {}
    for row, answer, body in zip(_TABLE, answers, bodies, strict=True):
        names = [part[1:-1] for part in row.path.split("/") if part.startswith("{")]
        described: dict[str, Any] = {
            "summary": row.summary,
            "parameters": [
                *(_parameter(name, "path") for name in names),
                *(_parameter(name, "query") for name in row.query),
            ],
            "responses": {
                "200": _content("what was asked for", answer),
                "default": _content("a refusal", problems),
            },
        }
        if row.body is not None:
            described["requestBody"] = {"required": True, **_content("", body)}
        paths.setdefault(row.path, {})[row.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "meshfast operator API", "version": __version__},
        "paths": paths,
        "components": {"schemas": components},
    }


def _parameter(name: str, where: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": {"type": "string"}}


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
