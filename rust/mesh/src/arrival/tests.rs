//! Tests of which source of a destination wins.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use super::{
    Arrival, Destination, Form, Interception, KnownBy, ListenerFacts, Refusal, RequestFacts,
};
use crate::authority::AuthorityError;
use crate::document::Direction;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn listener(forward_proxy: bool, by: Option<Interception>) -> ListenerFacts {
    ListenerFacts {
        direction: Direction::Outbound,
        forward_proxy,
        original: by.map(|by| (address("10.0.0.9:5432"), by)),
        local: Some(address("127.0.0.1:15001")),
        peer: Some(address("127.0.0.1:40000")),
    }
}

fn request(form: Form, authority: &str) -> RequestFacts<'_> {
    RequestFacts {
        form,
        authority: authority.as_bytes(),
        secure: false,
    }
}

fn known(arrival: Arrival<'_>) -> (KnownBy, Option<(&str, u16)>) {
    let destination = arrival.destination.map(|destination| match destination {
        Destination::Host { host, port } => (host, port),
        Destination::Address(address) => panic!("expected a host, got {address}"),
    });
    (arrival.known_by, destination)
}

#[test]
fn a_request_names_its_destination_by_its_form() {
    use Form::{Absolute, Connect, Origin};
    for (forward_proxy, form, authority, known_by, destination) in [
        (true, Absolute, "shop", KnownBy::AbsoluteForm, ("shop", 80)),
        (true, Connect, "shop:443", KnownBy::Connect, ("shop", 443)),
        (true, Origin, "shop:8080", KnownBy::Host, ("shop", 8080)),
        (
            false,
            Absolute,
            "[::1]:81",
            KnownBy::AbsoluteForm,
            ("::1", 81),
        ),
        (false, Origin, "shop", KnownBy::Host, ("shop", 80)),
    ] {
        let listener = listener(forward_proxy, None);
        let arrival = Arrival::of_request(&listener, &request(form, authority)).unwrap();
        assert_eq!(known(arrival), (known_by, Some(destination)));
        assert_eq!(
            (arrival.local, arrival.peer),
            (listener.local, listener.peer)
        );
        assert_eq!(arrival.direction, Direction::Outbound);
    }
}

#[test]
fn the_scheme_decides_the_port_that_is_not_written() {
    let secure = RequestFacts {
        secure: true,
        ..request(Form::Origin, "shop")
    };
    let arrival = Arrival::of_request(&listener(false, None), &secure).unwrap();
    assert_eq!(known(arrival), (KnownBy::Host, Some(("shop", 443))));
}

#[test]
fn without_a_name_the_listener_says_where() {
    let listener = listener(true, None);
    let arrival = Arrival::of_request(&listener, &request(Form::Origin, "")).unwrap();
    assert_eq!(known(arrival), (KnownBy::Listener, None));
    assert_eq!(arrival, Arrival::of_connection(&listener));
}

#[test]
fn what_the_kernel_saw_wins_over_what_the_caller_says() {
    for (by, known_by) in [
        (Interception::Namespace, KnownBy::Namespace),
        (Interception::Redirect, KnownBy::Redirect),
        (Interception::Tproxy, KnownBy::Tproxy),
    ] {
        let listener = listener(true, Some(by));
        let expected = Some(Destination::Address(address("10.0.0.9:5432")));
        for facts in [
            request(Form::Absolute, "evil:80"),
            request(Form::Connect, "evil:443"),
            request(Form::Origin, "evil"),
            request(Form::Origin, ""),
        ] {
            let arrival = Arrival::of_request(&listener, &facts).unwrap();
            assert_eq!(
                (arrival.known_by, arrival.destination),
                (known_by, expected)
            );
        }
        let arrival = Arrival::of_connection(&listener);
        assert_eq!(
            (arrival.known_by, arrival.destination),
            (known_by, expected)
        );
    }
}

#[test]
fn connect_needs_a_forward_proxy_and_a_port() {
    let connect = request(Form::Connect, "shop:443");
    assert_eq!(
        Arrival::of_request(&listener(false, None), &connect),
        Err(Refusal::ConnectOff)
    );
    for authority in ["shop", "shop:"] {
        let connect = request(Form::Connect, authority);
        let refused = Arrival::of_request(&listener(true, None), &connect);
        assert_eq!(refused, Err(Refusal::ConnectPort));
    }
}

#[test]
fn refuses_authorities_that_are_none_even_when_intercepted() {
    for by in [None, Some(Interception::Redirect)] {
        for (form, authority, error) in [
            (Form::Origin, "user@shop", AuthorityError::Userinfo),
            (Form::Absolute, "", AuthorityError::EmptyHost),
            (Form::Connect, "shop:0", AuthorityError::Port),
            (Form::Origin, "a, b", AuthorityError::Host),
        ] {
            let refused = Arrival::of_request(&listener(true, by), &request(form, authority));
            assert_eq!(refused, Err(Refusal::Authority(error)), "{authority}");
        }
    }
}

#[test]
fn labels_are_stable_and_distinct() {
    let labels = [
        KnownBy::AbsoluteForm,
        KnownBy::Connect,
        KnownBy::Host,
        KnownBy::Listener,
        KnownBy::Namespace,
        KnownBy::Redirect,
        KnownBy::Tproxy,
    ]
    .map(KnownBy::label);
    assert_eq!(
        labels,
        [
            "absolute_form",
            "connect",
            "host",
            "listener",
            "namespace",
            "redirect",
            "tproxy"
        ]
    );
}
