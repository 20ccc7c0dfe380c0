"""The operator API: what each route answers, and how it refuses."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from meshfast.control.api import BODY_BYTES_MAX
from meshfast.discovery import JoinToken
from tests.control.api.conftest import Api
from tests.control.server.test_operations import ENTRY, RULE


def texts(*files: tuple[str, str]) -> dict[str, Any]:
    return {"texts": [{"file": file, "text": text} for file, text in files]}


def names(api: Api, query: str = "") -> list[str]:
    status, found = api.ask("GET", f"/v1/resources{query}")
    assert status == 200
    return [one["name"] for one in found]


def message(answer: tuple[int, Any]) -> tuple[int, str]:
    status, body = answer
    (problem,) = body["problems"]
    return status, problem["message"]


def test_a_token_is_made_listed_and_revoked(api: Api) -> None:
    status, made = api.ask("POST", "/v1/tokens", {"service": "payment", "uses": 2})
    assert status == 200
    assert JoinToken.parse(made["text"]).service_account == "payment"
    assert api.ask("GET", "/v1/tokens") == (200, [made["token"]])
    assert api.ask("DELETE", f"/v1/tokens/{made['token']['id']}") == (200, None)
    _, (listed,) = api.ask("GET", "/v1/tokens")
    assert listed["revoked"]
    assert message(api.ask("DELETE", "/v1/tokens/none")) == (404, "there is no token 'none'")


def test_a_slash_too_many_is_not_answered_by_a_redirection(api: Api) -> None:
    assert message(api.ask("DELETE", "/v1/tokens/"))[0] == 404


def test_files_are_applied_together_read_and_removed(api: Api) -> None:
    status, applied = api.ask("PUT", "/v1/resources", texts(("a", RULE), ("b", ENTRY)))
    assert status == 200
    assert [one["action"] for one in applied["changes"]] == ["created", "created"]
    assert sorted(names(api)) == ["api", "payment"]
    assert names(api, "?kind=ServiceEntry") == ["api"]
    _, found = api.ask("GET", "/v1/resources/VirtualService/default/payment")
    assert found["document"]["spec"]["hosts"] == ["payment"]
    status, gone = api.ask("DELETE", "/v1/resources/VirtualService/default/payment")
    assert (status, gone["changes"][0]["action"]) == (200, "deleted")
    assert names(api) == ["api"]


def test_resources_are_removed_together_and_what_is_not_there_is_left_out(api: Api) -> None:
    api.ask("PUT", "/v1/resources", texts(("a", RULE), ("b", ENTRY)))
    wanted = [
        {"kind": "ServiceEntry", "namespace": "default", "name": "api"},
        {"kind": "VirtualService", "namespace": "default", "name": "none"},
        {"kind": "VirtualService", "namespace": "default", "name": "payment"},
    ]
    status, gone = api.ask("POST", "/v1/delete", {"resources": [*wanted, wanted[0]]})
    assert status == 200
    assert [one["name"] for one in gone["changes"]] == ["api", "payment"]
    assert names(api) == []
    assert api.ask("POST", "/v1/delete", {"resources": wanted})[1]["changes"] == []


def test_one_bad_file_keeps_all_out_with_the_problems_of_each(api: Api) -> None:
    bad = texts(("good.yaml", ENTRY), ("a.yaml", RULE.replace("3s", "x")), ("b.yaml", "kind: X"))
    status, refused = api.ask("PUT", "/v1/resources", bad)
    assert status == 422
    assert {one["file"] for one in refused["problems"]} == {"a.yaml", "b.yaml"}
    first = refused["problems"][0]
    assert (first["file"], first["line"], first["column"]) == ("a.yaml", 8, 16)
    assert names(api) == []


def test_what_is_not_at_its_expected_revision_is_a_conflict(api: Api) -> None:
    expected = [{"kind": "ServiceEntry", "namespace": "default", "name": "api"}]
    body = texts(("a", ENTRY)) | {"expected": expected}
    assert api.ask("PUT", "/v1/resources", body)[0] == 200
    for method, path in (("PUT", "/v1/resources"), ("POST", "/v1/diff")):
        said = message(api.ask(method, path, body))
        assert said == (409, "ServiceEntry default/api was changed meanwhile")


def test_a_difference_changes_nothing(api: Api) -> None:
    status, planned = api.ask("POST", "/v1/diff", texts(("a", ENTRY)))
    assert (status, planned["dry_run"]) == (200, True)
    assert planned["changes"][0]["action"] == "created"
    assert names(api) == []


def test_the_status_has_the_revision_and_every_part(api: Api) -> None:
    status, mesh = api.ask("GET", "/v1/status")
    assert status == 200
    assert mesh == {
        "revision": api.plane.operations.revision(),
        "stored": api.plane.operations.revision(),
        "services": [],
        "workloads": [],
        "sidecars": [],
    }


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/v1/tokens", {"service": "a", "server": "b"}, 400, "unknown field `server`"),
        ("POST", "/v1/tokens", b"{", 400, "Input data was truncated"),
        ("POST", "/v1/tokens", {"service": "Not_A_Label"}, 422, "Not_A_Label"),
        ("GET", "/v1/resources?knd=Gateway", None, 400, "unknown parameter 'knd'"),
        ("GET", "/v1/resources/Gateway/default/none", None, 404, "no Gateway default/none"),
        ("GET", "/v1/none", None, 404, "Not Found"),
        ("PATCH", "/v1/tokens", None, 405, "Method Not Allowed"),
    ],
)
def test_what_is_refused_says_why(
    api: Api, method: str, path: str, body: object, status: int, said: str
) -> None:
    refused, why = message(api.ask(method, path, body))
    assert refused == status
    assert said in why


def test_a_body_that_is_too_long_is_refused(api: Api) -> None:
    longest = b'"' + b"a" * (BODY_BYTES_MAX - 2) + b'"'
    assert api.ask("PUT", "/v1/resources", longest)[0] == 400
    assert api.ask("PUT", "/v1/resources", longest + b" ")[0] == 413


def test_the_description_names_every_route_and_only_schemas_that_it_has(api: Api) -> None:
    status, described = api.ask("GET", "/v1/openapi.json")
    assert status == 200
    routes = {(path, method) for path, of in described["paths"].items() for method in of}
    assert len(routes) == 14
    assert ("/v1/resources/{kind}/{namespace}/{name}", "delete") in routes
    references: set[str] = set()

    def walk(node: object) -> None:
        if isinstance(node, dict):
            references.update(value for name, value in node.items() if name == "$ref")
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(described)
    have = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references == have


def test_an_identity_is_revoked_listed_and_restored(api: Api) -> None:
    one = "/v1/revoked/default/payment"
    assert message(api.ask("DELETE", one)) == (404, "default/payment is not revoked")
    name = {"namespace": "default", "service_account": "payment"}
    assert api.ask("PUT", one) == (200, {**name, "certified_until_s": None, "known": False})
    revoked = [name]
    eventually(lambda: api.ask("GET", "/v1/revoked") == (200, revoked))
    assert api.ask("DELETE", one) == (200, None)
    eventually(lambda: api.ask("GET", "/v1/revoked") == (200, []))
    assert api.ask("PUT", "/v1/revoked/default/No")[0] == 422


def test_a_service_that_is_not_there_is_not_forgotten(api: Api) -> None:
    said = message(api.ask("DELETE", "/v1/services/default/payment"))
    assert said == (404, "there is no service default/payment")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
