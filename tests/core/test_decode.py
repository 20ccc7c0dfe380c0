"""meshfast.resources.decode, beyond the files of test_golden: properties over the whole schema."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import inspect
from msgspec.structs import replace

from meshfast.errors import ConfigError, Problem
from meshfast.resources import istio, kinds, load_bytes, load_text
from meshfast.resources.decode import PROBLEMS_MAX
from meshfast.resources.relations import RETRY_CONDITIONS, TEXT_CHECKS
from meshfast.resources.texts import CHECKS

STRUCTS = {
    name: cls
    for name, cls in vars(kinds).items()
    if isinstance(cls, type) and issubclass(cls, msgspec.Struct) and not name.startswith("_")
}


def test_no_field_is_both_served_and_known_for_later() -> None:
    for name, later in istio.FIELDS.items():
        served = {field.encode_name for field in msgspec.structs.fields(STRUCTS[name])}
        assert not served & later, name


def test_no_value_is_both_served_and_known_for_later() -> None:
    for name, later in istio.VALUES.items():
        assert not {member.value for member in getattr(kinds, name)} & later


def test_no_kind_is_both_served_and_known_for_later() -> None:
    assert not set(kinds.KINDS) & istio.KINDS


def test_no_condition_for_retries_is_both_served_and_known_for_later() -> None:
    assert not set(RETRY_CONDITIONS) & istio.RETRY_CONDITIONS


def test_what_takes_the_place_of_a_required_field_is_known_for_later() -> None:
    for name, instead in istio.INSTEAD.items():
        struct, _, field = name.partition(".")
        (found,) = (
            one for one in msgspec.structs.fields(STRUCTS[struct]) if one.encode_name == field
        )
        assert found.required
        assert instead <= istio.FIELDS[struct]


#: What no resource has: a sidecar's own words, checked by it and by the control plane.
OF_WORKLOADS = {
    "host_port",
    "instance",
    "peer_address",
    "workload_label_key",
    "workload_label_value",
}


def test_every_text_check_that_the_schema_names_exists() -> None:
    named = {check for cls in STRUCTS.values() for check in texts(inspect.type_info(cls))}
    assert named | OF_WORKLOADS == set(CHECKS) | set(TEXT_CHECKS)
    assert not named & OF_WORKLOADS


def texts(info: inspect.Type) -> set[str]:
    match info:
        case inspect.Metadata():
            extra = info.extra or {}
            return {extra["text"]} if "text" in extra else texts(info.type)
        case inspect.StructType():
            return set().union(*(texts(field.type) for field in info.fields))
        case inspect.VarTupleType():
            return texts(info.item_type)
        case inspect.DictType():
            return texts(info.key_type) | texts(info.value_type)
        case inspect.UnionType():
            return set().union(*map(texts, info.types))
    return set()


@pytest.mark.parametrize("value", ["http", "Http", "HTTP"])
def test_reads_protocols_in_any_case(value: str) -> None:
    (loaded,) = load_text(service_entry(protocol=value), "f.yaml")
    assert isinstance(loaded.resource, kinds.ServiceEntry)
    assert loaded.resource.spec.ports[0].protocol is kinds.Protocol.HTTP


@pytest.mark.parametrize("value", ["null", "~", ""])
def test_null_is_the_same_as_leaving_a_field_out(value: str) -> None:
    (loaded,) = load_text(service_entry() + f"  location: {value}\n", "f.yaml")
    assert loaded.resource == load_text(service_entry(), "f.yaml")[0].resource


@pytest.mark.parametrize("value", ["yes", "NO", "on", "12:30", "2026-01-01", "1.2.3"])
def test_what_yaml_1_1_would_turn_into_something_else_stays_a_string(value: str) -> None:
    text = service_entry().replace("name: payment}", f"name: payment, labels: {{x: {value}}}}}")
    assert load_text(text, "f.yaml")[0].resource.metadata.labels == {"x": value}


def service_entry(protocol: str = "HTTP") -> str:
    return (
        "apiVersion: networking.istio.io/v1\n"
        "kind: ServiceEntry\n"
        "metadata: {name: payment}\n"
        "spec:\n"
        "  hosts: [payment]\n"
        f"  ports: [{{number: 80, name: http, protocol: {protocol}}}]\n"
        "  resolution: DNS\n"
    )


def test_a_file_full_of_mistakes_ends_in_a_bounded_report() -> None:
    unknown = "".join(f"  unknown-{n}: 1\n" for n in range(2 * PROBLEMS_MAX))
    with pytest.raises(ConfigError) as refused:
        load_text(service_entry() + unknown, "f.yaml")
    problems = refused.value.problems
    assert len(problems) == PROBLEMS_MAX
    assert problems[-1].message == f"more than {PROBLEMS_MAX} problems; the rest is left out"


def test_a_name_of_any_length_is_cut_in_the_report() -> None:
    with pytest.raises(ConfigError) as refused:
        load_text(service_entry() + f"  {'x' * 1000}: 1\n", "f.yaml")
    assert len(str(refused.value)) < 300


# The decoder and msgspec's own agree on JSON that either accepts.

FIELD_NAMES = sorted(
    {field.encode_name for cls in STRUCTS.values() for field in msgspec.structs.fields(cls)}
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-1, 70_000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["*", "a", "10s", "HTTP", "DNS", "STATIC", "127.0.0.1", "x y", "Gateway"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELD_NAMES), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=300)
@given(st.sampled_from(sorted(kinds.KINDS)), VALUES, VALUES)
def test_any_value_in_any_field_is_decoded_or_refused_with_its_place(
    kind: str, metadata: object, spec: object
) -> None:
    version = "meshfast.dev/v1" if kind == "ForwardProxy" else "networking.istio.io/v1"
    data = {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}
    text = msgspec.json.encode(data)
    problems: tuple[Problem, ...] = ()
    try:
        (loaded,) = load_bytes(text, "f.json")
    except ConfigError as error:
        problems = error.problems
    assert all(problem.line == 1 and problem.column >= 1 for problem in problems)
    if not problems:
        assert loaded.resource == with_hosts(msgspec.json.decode(text, type=kinds.KINDS[kind]))


def with_hosts(resource: kinds.Resource) -> kinds.Resource:
    """Fill in what the loader fills in, with a warning."""
    if isinstance(resource, kinds.VirtualService) and not resource.spec.hosts:
        hosts = (resource.metadata.name,)
        return replace(resource, spec=replace(resource.spec, hosts=hosts))
    return resource


@pytest.mark.parametrize("cls", list(STRUCTS.values()), ids=lambda cls: cls.__name__)
def test_no_struct_takes_a_field_that_it_does_not_have(cls: type[msgspec.Struct]) -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `unknown`"):
        msgspec.convert({"unknown": 1}, cls)
