//! What callers put inside a CONNECT to a service, and where it comes out.

use super::legs::{Mesh, PAYMENT};
use super::*;
use std::time::Duration;

/// A caller's proxy whose listener is a forward proxy with one service, `c`, at the application's port.
fn mesh(application: &TcpListener) -> (Mesh, u16) {
    let address = application.local_addr().unwrap();
    let mut mesh = Mesh::new(address, PAYMENT);
    let near = &mut mesh.near.worker;
    let document = near.generation.snapshot.to_document();
    let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let cluster = document["clusters"][0]["name"].clone();
    let listener = &mut document["listeners"][0];
    listener["direction"] = "outbound".into();
    listener["forward_proxy"] = true.into();
    // base64 of a:b
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"YTpi");
    let digest: String = digest
        .as_ref()
        .iter()
        .map(|it| format!("{it:02x}"))
        .collect();
    listener["credential_sha256"] = digest.into();
    let host = &mut listener["virtual_hosts"][0];
    host["domains"] = serde_json::json!(["c"]);
    host["ports"] = serde_json::json!([{"number": address.port(), "cluster": cluster}]);
    let snapshot = Snapshot::from_document(document.to_string().as_bytes()).unwrap();
    near.apply(Generation::new(snapshot), 2);
    (mesh, address.port())
}

/// The same with the connect timeout that clusters have unless they say otherwise.
pub(super) fn patient_mesh(application: &TcpListener) -> (Mesh, u16) {
    let (mut mesh, port) = mesh(application);
    let near = &mut mesh.near.worker;
    let document = near.generation.snapshot.to_document();
    let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    document["clusters"][0]["connect_timeout_ms"] = 10_000.into();
    let snapshot = Snapshot::from_document(document.to_string().as_bytes()).unwrap();
    near.apply(Generation::new(snapshot), 3);
    (mesh, port)
}

/// The head of a request that shows the credential.
pub(super) fn head(start: &str, host: &str) -> String {
    format!("{start} HTTP/1.1\r\nHost: {host}\r\nProxy-Authorization: Basic YTpi\r\n\r\n")
}

pub(super) const GRANTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Opens a tunnel and sends these bytes behind the CONNECT, at once.
fn connect(mesh: &mut Mesh, to: &str, inside: &[u8]) -> TcpStream {
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    let connect = head(&format!("CONNECT {to}"), to);
    client
        .write_all(&[connect.as_bytes(), inside].concat())
        .unwrap();
    assert_eq!(mesh.read(&mut client, GRANTED.len()), GRANTED);
    client
}

/// The next connection to the application, and what it reads first.
fn served(mesh: &mut Mesh, application: &TcpListener, count: usize) -> (TcpStream, Vec<u8>) {
    application.set_nonblocking(true).unwrap();
    let mut found = None;
    for _ in 0..300 {
        found = application.accept().ok();
        if found.is_some() {
            break;
        }
        mesh.near.worker.step(&mut mesh.near.events, 2).unwrap();
        mesh.far.worker.step(&mut mesh.far.events, 2).unwrap();
    }
    let (mut served, _) = found.expect("a connection to the application");
    let read = mesh.read(&mut served, count);
    (served, read)
}

fn log(bench: &Bench) -> Vec<serde_json::Value> {
    let log = String::from_utf8(bench.memory.drain_access_log(100_000)).unwrap();
    log.lines()
        .map(|it| serde_json::from_str(it).unwrap())
        .collect()
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn requests_inside_go_by_the_routes_one_by_one_whatever_their_host() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut mesh, port) = mesh(&application);
    let request = b"GET /a HTTP/1.1\r\nHost: elsewhere\r\n\r\n";
    let mut client = connect(&mut mesh, &format!("c:{port}"), request);
    let (mut at_application, read) = served(&mut mesh, &application, 40);
    assert!(read.starts_with(b"GET /a HTTP/1.1\r\nHost: elsewhere\r\n"));
    at_application.write_all(OK).unwrap();
    assert_eq!(mesh.read(&mut client, OK.len()), OK);
    client.write_all(request).unwrap();
    mesh.until("it is at the application", |_, far| {
        far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
    });
    at_application.write_all(OK).unwrap();
    assert_eq!(mesh.read(&mut client, OK.len()), OK);
    let lines = log(&mesh.near);
    assert_eq!(lines.len(), 2, "one for each request: {lines:?}");
    for line in &lines {
        assert_eq!(line["method"], "GET");
        assert_eq!(line["route_name"], "r");
        assert_eq!(line["upstream_cluster"], "outbound|80||c.default");
    }
    let callee = log(&mesh.far);
    assert!(callee.iter().all(|it| it["protocol"] == "HTTP/1.1"));
}

#[test]
fn a_request_inside_for_another_connect_or_scheme_is_refused() {
    for (inside, status) in [
        ("CONNECT c:1 HTTP/1.1\r\nHost: c:1\r\n\r\n", "405"),
        ("GET https://c/ HTTP/1.1\r\nHost: c\r\n\r\n", "501"),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
    ] {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut mesh, port) = mesh(&application);
        let mut client = connect(&mut mesh, &format!("c:{port}"), inside.as_bytes());
        let answer = mesh.read(&mut client, 12);
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes(), "{inside}");
        application.set_nonblocking(true).unwrap();
        assert!(application.accept().is_err());
    }
}

#[test]
fn other_bytes_go_as_they_are_over_the_leg_and_back() {
    let hello = [b"\x16\x03\x01\x00\x05\x01", &[7; 40][..]].concat();
    for inside in [
        &b"\x00binary\r\n"[..],
        &hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut mesh, port) = mesh(&application);
        let mut client = connect(&mut mesh, &format!("c:{port}"), inside);
        let (mut at_application, read) = served(&mut mesh, &application, inside.len());
        assert_eq!(read, inside);
        at_application.write_all(b"and back").unwrap();
        assert_eq!(mesh.read(&mut client, 8), b"and back");
        assert_eq!(mesh.near.worker.legs.len(), 1, "by mutual TLS");
        assert!(
            mesh.near
                .worker
                .upstreams
                .iter()
                .all(|(_, it)| { it.session.stream.leg().is_some() })
        );
        // A half-close of one direction, then the end of the other.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(mesh.read(&mut at_application, 1), b"");
        drop(at_application);
        assert_eq!(mesh.read(&mut client, 1), b"");
        mesh.until("both are over", |near, far| {
            near.exchanges.is_empty() && far.exchanges.is_empty()
        });
        let lines = log(&mesh.near);
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["protocol"], "TCP");
        assert_eq!(lines[0]["bytes_received"], inside.len());
    }
}

#[test]
fn a_caller_that_waits_for_the_other_side_to_speak_is_connected_after_a_second() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut mesh, port) = mesh(&application);
    let mut client = connect(&mut mesh, &format!("c:{port}"), b"");
    assert!(mesh.near.worker.exchanges.is_empty());
    mesh.near.worker.clock.advance(Duration::from_millis(1_100));
    let (mut at_application, _) = served(&mut mesh, &application, 0);
    at_application.write_all(b"220 hello\r\n").unwrap();
    assert_eq!(mesh.read(&mut client, 11), b"220 hello\r\n");
}

#[test]
fn a_port_that_the_service_does_not_have_is_refused_and_nobody_is_asked() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut mesh, _) = mesh(&application);
    for request in [
        "CONNECT c:9 HTTP/1.1\r\nHost: c:9\r\nProxy-Authorization: Basic YTpi\r\n\r\n",
        "GET http://c:9/ HTTP/1.1\r\nHost: c:9\r\nProxy-Authorization: Basic YTpi\r\n\r\n",
    ] {
        let mut client = TcpStream::connect(mesh.near.address).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        assert_eq!(mesh.read(&mut client, 12), b"HTTP/1.1 404", "{request}");
        assert!(mesh.near.worker.resolving.is_empty());
        assert!(mesh.near.worker.legs.is_empty());
    }
}

#[test]
fn a_tunnel_without_the_credential_is_refused() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut mesh, port) = mesh(&application);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    let connect = format!("CONNECT c:{port} HTTP/1.1\r\nHost: c:{port}\r\n\r\n");
    client.write_all(connect.as_bytes()).unwrap();
    assert_eq!(mesh.read(&mut client, 12), b"HTTP/1.1 407");
}

#[test]
fn a_service_that_goes_while_a_tunnel_is_open_is_asked_for_nowhere_else() {
    for inside in [&b"GET / HTTP/1.1\r\nHost: c\r\n\r\n"[..], b"\x00x"] {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut mesh, port) = mesh(&application);
        let mut client = connect(&mut mesh, &format!("c:{port}"), b"");
        let near = &mut mesh.near.worker;
        let document = near.generation.snapshot.to_document();
        let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        document["listeners"][0]["virtual_hosts"] = serde_json::json!([]);
        let snapshot = Snapshot::from_document(document.to_string().as_bytes()).unwrap();
        near.apply(Generation::new(snapshot), 3);
        client.write_all(inside).unwrap();
        if inside[0] == b'G' {
            assert_eq!(mesh.read(&mut client, 12), b"HTTP/1.1 404");
        } else {
            mesh.until("it is cut", |near, _| near.downstreams.is_empty());
        }
        let near = &mesh.near.worker;
        assert!(near.resolving.is_empty() && near.upstreams.is_empty() && near.legs.is_empty());
    }
}

/// Opens a tunnel at a caller's proxy whose leg gets no answer in the handshake, and waits so long.
fn held_up(inside: &[u8], wait: Duration) -> (Mesh, TcpListener, TcpStream) {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut mesh, port) = patient_mesh(&application);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    let connect = head(&format!("CONNECT c:{port}"), "c");
    let sent = [connect.as_bytes(), inside].concat();
    client.write_all(&sent).unwrap();
    let near = &mut mesh.near;
    near.until("it waits for the leg", |worker| {
        worker.exchanges.len() == 1 && worker.legs.len() == 1
    });
    // In steps, so that whatever would end meanwhile does.
    for _ in 0..5 {
        near.worker.clock.advance(wait / 5);
        near.worker.step(&mut near.events, 1).unwrap();
    }
    let mut granted = vec![0; GRANTED.len()];
    client.read_exact(&mut granted).unwrap();
    assert_eq!(granted, GRANTED);
    (mesh, application, client)
}

#[test]
fn a_tunnel_waits_for_its_connect_as_long_as_the_cluster_says() {
    let hello = [b"\x16\x03\x01\x00\x05\x01", &[7; 40][..]].concat();
    for inside in [
        &b"\x00binary"[..],
        &hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let (mut mesh, application, mut client) = held_up(inside, Duration::from_secs(4));
        let mut stranger = TcpStream::connect(mesh.near.address).unwrap();
        let (mut at_application, read) = served(&mut mesh, &application, inside.len());
        assert_eq!(read, inside);
        at_application.write_all(b"and back").unwrap();
        mesh.settle();
        assert!(hears_nothing(&mut stranger));
        assert_eq!(mesh.read(&mut client, 8), b"and back");
    }
}

#[test]
fn what_comes_for_a_caller_that_has_left_reaches_nobody_else() {
    let (mut mesh, application, client) = held_up(b"\x00opaque", Duration::from_secs(4));
    drop(client);
    let near = &mut mesh.near;
    for _ in 0..5 {
        near.worker.step(&mut near.events, 1).unwrap();
    }
    near.worker.clock.advance(Duration::from_secs(6));
    near.until("it is over", |worker| worker.exchanges.is_empty());
    let mut stranger = TcpStream::connect(near.address).unwrap();
    near.until("somebody else is there", |worker| {
        worker.downstreams.len() == 1
    });
    application.set_nonblocking(true).unwrap();
    mesh.settle();
    assert!(application.accept().is_err());
    assert!(hears_nothing(&mut stranger));
}

/// Whether a connection is open and has said nothing.
fn hears_nothing(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let refusal = stream.read(&mut [0; 16]).err();
    refusal.is_some_and(|it| it.kind() == io::ErrorKind::WouldBlock)
}

#[test]
fn a_session_that_is_dropped_takes_its_exchange_with_it() {
    let (mut mesh, _application, _client) = held_up(b"\x00opaque", Duration::ZERO);
    let near = &mut mesh.near;
    let (downstream, _) = near.worker.downstreams.iter().next().unwrap();
    near.worker.drop_downstream(downstream);
    assert!(near.worker.exchanges.is_empty() && near.worker.downstreams.is_empty());
    assert!(near.worker.upstreams.is_empty());
    assert_eq!(near.memory.endpoints()[0].active, 0);
    let [line] = &log(near)[..] else {
        panic!("one record")
    };
    assert_eq!(line["response_flags"], "DC");
}

#[test]
fn a_tunnel_in_which_nothing_was_said_has_a_record() {
    for (ends, flag) in [
        ("by FIN", "DC"),
        ("by a reset", "DC"),
        ("by the proxy", "-"),
    ] {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mut mesh, port) = mesh(&application);
        let client = connect(&mut mesh, &format!("c:{port}"), b"");
        let near = &mut mesh.near;
        near.worker.clock.advance(Duration::from_millis(300));
        let (downstream, _) = near.worker.downstreams.iter().next().unwrap();
        match ends {
            "by a reset" => os::abort_on_close(client.as_fd()),
            "by the proxy" => near.worker.close_downstream(downstream),
            _ => {}
        }
        drop(client);
        near.until("it is over", |worker| worker.downstreams.is_empty());
        assert!(near.worker.exchanges.is_empty());
        let [line] = &log(near)[..] else {
            panic!("one record of a tunnel that ends {ends}")
        };
        assert_eq!(line["protocol"], "TCP");
        assert_eq!(line["response_flags"], flag, "{ends}");
        assert_eq!(line["upstream_cluster"], "outbound|80||c.default");
        assert_eq!(line["bytes_received"], 0);
        assert!(
            line["duration"].as_u64() >= Some(300),
            "since CONNECT: {line}"
        );
        application.set_nonblocking(true).unwrap();
        assert!(application.accept().is_err(), "nobody was called");
    }
}
