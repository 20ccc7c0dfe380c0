//! Two workers and a leg between them: the caller's proxy and the callee's, stepped in turn.

use super::*;
use crate::tls::Authority;
use meshfast_wire::mux::{LIMITS, PEER_STREAMS_MAX};
use std::time::Duration;

const ORDER: &str = "spiffe://cluster.local/ns/default/sa/order";
pub(super) const PAYMENT: &str = "spiffe://cluster.local/ns/default/sa/payment";

pub(super) const INBOUND: &str = r#"{"name":"front","direction":"inbound","protocol":"HTTP",
    "tls":{"mode":"STRICT"},"virtual_hosts":[]}"#;

pub(super) struct Mesh {
    pub(super) near: Bench,
    pub(super) far: Bench,
    pub(super) authority: Authority,
}

/// How long a certificate of the tests lives unless they say otherwise.
pub(super) const LIFE: Duration = Duration::from_secs(86_400);

impl Mesh {
    /// `expected` is whom the caller's proxy is told to find at the callee's.
    pub(super) fn new(application: SocketAddr, expected: &str) -> Self {
        Self::with(application, expected, [LIFE, LIFE], "null")
    }

    /// With certificates of the caller and of the callee that live this long.
    fn with_lives(application: SocketAddr, expected: &str, lives: [Duration; 2]) -> Self {
        Self::with(application, expected, lives, "null")
    }

    fn tracing(application: SocketAddr, expected: &str, tracing: &str) -> Self {
        Self::with(application, expected, [LIFE, LIFE], tracing)
    }

    fn with(application: SocketAddr, expected: &str, lives: [Duration; 2], tracing: &str) -> Self {
        let document = |listener: &str, cluster: &str| {
            let document = document(listener, cluster);
            let tracing = format!("{{\"tracing\":{tracing},");
            document.replacen('{', &tracing, 1)
        };
        let authority = Authority::new();
        let [near_life, far_life] = lives;
        let far_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = application.port();
        let far_address = far_listener.local_addr().unwrap();
        let far_cluster = cluster(&format!("inbound|{port}||"), application, "", "null");
        let far = Bench::start(
            far_listener,
            &document(INBOUND, &far_cluster),
            Some(&hand_over(&authority, PAYMENT, far_life)),
        );
        // The service is called by a port of its own; nobody listens there.
        let name = "outbound|80||c.default";
        let near_cluster = cluster(name, far_address, expected, r#"{"mode":"ISTIO_MUTUAL"}"#)
            .replace("\"weight\":1", &format!("\"weight\":1,\"port\":{port}"));
        let front = FRONT.replace("\"cluster\":\"c\"", &format!("\"cluster\":\"{name}\""));
        let near = Bench::start(
            TcpListener::bind("127.0.0.1:0").unwrap(),
            &document(&front, &near_cluster),
            Some(&hand_over(&authority, ORDER, near_life)),
        );
        Self {
            near,
            far,
            authority,
        }
    }

    /// Calls, and returns the connections of the caller and of the application, which has not
    /// answered yet.
    pub(super) fn call(&mut self, application: &TcpListener) -> (TcpStream, TcpStream) {
        let mut client = TcpStream::connect(self.near.address).unwrap();
        client.write_all(REQUEST).unwrap();
        let sent = |far: &Worker| {
            far.exchanges
                .iter()
                .filter(|(_, it)| it.sent_us > 0)
                .count()
        };
        let before = sent(&self.far.worker);
        self.until("the call is at the application", |_, far| {
            sent(far) > before
        });
        (client, application.accept().unwrap().0)
    }

    /// Answers a call.
    pub(super) fn answer(&mut self, (client, served): &mut (TcpStream, TcpStream)) {
        served.write_all(ANSWER).unwrap();
        assert_eq!(self.read(client, ANSWER.len()), ANSWER);
    }

    /// Lets time pass for both.
    pub(super) fn advance(&mut self, by: Duration) {
        self.near.worker.clock.advance(by);
        self.far.worker.clock.advance(by);
    }

    /// Steps of both, in which whatever is on its way arrives.
    pub(super) fn settle(&mut self) {
        for _ in 0..10 {
            self.near.worker.step(&mut self.near.events, 1).unwrap();
            self.far.worker.step(&mut self.far.events, 1).unwrap();
        }
    }

    fn until_at_application(&mut self) {
        self.until("it is at the application", |_, far| {
            far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
        });
    }

    pub(super) fn until(&mut self, what: &str, done: impl Fn(&Worker, &Worker) -> bool) {
        for _ in 0..300 {
            if done(&self.near.worker, &self.far.worker) {
                return;
            }
            self.near.worker.step(&mut self.near.events, 2).unwrap();
            self.far.worker.step(&mut self.far.events, 2).unwrap();
        }
        panic!("never: {what}");
    }

    /// Steps both until the client can read `count` bytes, and reads them.
    pub(super) fn read(&mut self, client: &mut TcpStream, count: usize) -> Vec<u8> {
        client.set_nonblocking(true).unwrap();
        let mut read = Vec::new();
        for _ in 0..3_000 {
            let mut buffer = vec![0; count - read.len()];
            match client.read(&mut buffer) {
                Ok(0) => break,
                Ok(more) => read.extend_from_slice(&buffer[..more]),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
            if read.len() == count {
                break;
            }
            self.near.worker.step(&mut self.near.events, 1).unwrap();
            self.far.worker.step(&mut self.far.events, 1).unwrap();
        }
        read
    }
}

pub(super) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

pub(super) fn hand_over(authority: &Authority, name: &str, life: Duration) -> String {
    authority.hand_over(&[name], |params| {
        params.not_after = (std::time::SystemTime::now() + life).into();
    })
}

#[test]
fn a_request_goes_over_one_leg_and_says_who_calls() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    for _ in 0..3 {
        client
            .write_all(b"GET /a HTTP/1.1\r\nHost: c\r\nX-One: 1\r\n\r\n")
            .unwrap();
        mesh.until("the request is at the application", |_, far| {
            far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
        });
        mesh.until("it is sent", |_, far| far.upstreams.len() == 1);
        let (mut served, _) = application.accept().unwrap();
        let mut head = [0; 2_000];
        let length = served.read(&mut head).unwrap();
        let head = String::from_utf8_lossy(&head[..length]).into_owned();
        assert!(head.contains("X-One: 1\r\n"), "header case is kept: {head}");
        let certificate = format!("x-forwarded-client-cert: By={PAYMENT};URI={ORDER}\r\n");
        assert!(head.contains(&certificate), "{head}");
        served
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            .unwrap();
        let answer = mesh.read(
            &mut client,
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".len(),
        );
        assert_eq!(answer, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        mesh.until("both exchanges are over", |near, far| {
            near.exchanges.is_empty() && far.exchanges.is_empty()
        });
    }
    assert_eq!(mesh.near.worker.legs.len(), 1, "one leg for all requests");
    assert_eq!(mesh.near.memory.endpoints()[0].active, 0);
    assert!(
        mesh.far.worker.downstreams.is_empty(),
        "streams are gone with their requests"
    );
}

#[test]
fn large_bodies_flow_both_ways_within_the_credit() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = application.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut served, _) = application.accept().unwrap();
        let mut got = Vec::new();
        let mut buffer = vec![0; 65_536];
        let mut body_start = None;
        while body_start.is_none_or(|start| got.len() < start + 3_000_000) {
            let count = served.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            let end = got.windows(4).position(|it| it == b"\r\n\r\n");
            body_start = body_start.or(end.map(|at| at + 4));
        }
        let body = &got[body_start.unwrap()..];
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        served.write_all(head.as_bytes()).unwrap();
        served.write_all(body).unwrap();
    });
    let mut mesh = Mesh::new(address, PAYMENT);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    let body: Vec<u8> = (0..3_000_000u32).map(|place| (place % 251) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let sent = body.clone();
    let sender = std::thread::spawn(move || {
        writer
            .write_all(b"POST / HTTP/1.1\r\nHost: c\r\nContent-Length: 3000000\r\n\r\n")
            .unwrap();
        for piece in sent.chunks(10_000) {
            writer.write_all(piece).unwrap();
        }
    });
    for _ in 0..20_000 {
        mesh.near.worker.step(&mut mesh.near.events, 1).unwrap();
        mesh.far.worker.step(&mut mesh.far.events, 1).unwrap();
        if sender.is_finished() {
            break;
        }
    }
    sender.join().unwrap();
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n";
    let answer = mesh.read(&mut client, head.len() + body.len());
    assert_eq!(answer.len(), head.len() + body.len());
    assert!(answer[head.len()..] == body[..]);
}

#[test]
fn nothing_is_sent_to_another_than_the_called_service() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    application.set_nonblocking(true).unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), ORDER);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client.write_all(REQUEST).unwrap();
    let answer = mesh.read(&mut client, 12);
    assert_eq!(answer, b"HTTP/1.1 503");
    assert!(application.accept().is_err(), "the application saw nothing");
    let log = String::from_utf8(mesh.near.memory.drain_access_log(100_000)).unwrap();
    assert!(log.contains("tls.peer_is_another"), "{log}");
}

#[test]
fn a_leg_carries_nothing_for_another_identity_at_its_address() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut early = mesh.call(&application);
    let document = mesh.near.worker.generation.snapshot.to_document();
    let document = String::from_utf8(document).unwrap();
    let of_another = document.replace(PAYMENT, ORDER);
    let snapshot = Snapshot::from_document(of_another.as_bytes()).unwrap();
    let generation = Generation::new(snapshot);
    mesh.near.worker.apply(generation, 2);

    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client.write_all(REQUEST).unwrap();
    assert_eq!(mesh.read(&mut client, 12), b"HTTP/1.1 503");
    application.set_nonblocking(true).unwrap();
    assert!(application.accept().is_err(), "the application saw nothing");
    let log = String::from_utf8(mesh.near.memory.drain_access_log(100_000)).unwrap();
    assert!(log.contains("tls.peer_is_another"), "{log}");
    mesh.answer(&mut early);
    mesh.until("the leg to the former one is closed", |near, far| {
        near.legs.is_empty() && far.legs.is_empty()
    });
}

/// A worker that is both ends: calls come to `front`, and those for its application to `address`.
fn alone(front: TcpListener, application: SocketAddr, address: &str) -> Bench {
    let inbound = TcpListener::bind(address).unwrap();
    let endpoint = SocketAddr::from(([127, 0, 0, 1], inbound.local_addr().unwrap().port()));
    let port = application.port();
    let own = format!("outbound|{port}||c.default");
    let clusters = [
        cluster(&own, endpoint, PAYMENT, r#"{"mode":"ISTIO_MUTUAL"}"#),
        cluster(&format!("inbound|{port}||"), application, "", "null")
            .replace("\"slot\":5", "\"slot\":6"),
    ];
    let outbound = FRONT.replace("\"cluster\":\"c\"", &format!("\"cluster\":\"{own}\""));
    let listeners = [outbound, INBOUND.replace("front", "inbound")].join(",");
    let authority = Authority::new();
    let mut bench = Bench::start(
        front,
        &document(&listeners, &clusters.join(",")),
        Some(&hand_over(&authority, PAYMENT, LIFE)),
    );
    bench
        .worker
        .add_listener("inbound".to_owned(), inbound.into());
    bench
}

#[test]
fn an_application_may_call_its_own_service() {
    for address in ["127.0.0.1:0", "0.0.0.0:0"] {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut bench = alone(front, application.local_addr().unwrap(), address);
        let mut client = TcpStream::connect(bench.address).unwrap();
        client.write_all(REQUEST).unwrap();
        bench.until("it is at the application", |worker| {
            worker
                .exchanges
                .iter()
                .any(|(_, it)| it.caller.is_some() && it.sent_us > 0)
        });
        let (mut served, _) = application.accept().unwrap();
        served.write_all(ANSWER).unwrap();
        bench.until("it is answered", |worker| worker.exchanges.is_empty());
        let mut answer = vec![0; ANSWER.len()];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, ANSWER);
    }
}

#[test]
fn a_call_that_leaves_again_by_the_outbound_listener_is_a_loop() {
    let front = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    // It is called an application.
    let mut bench = alone(front, address, "127.0.0.1:0");
    let mut client = TcpStream::connect(bench.address).unwrap();
    client.write_all(REQUEST).unwrap();
    bench.until("it is answered", |worker| {
        worker.exchanges.is_empty() && !worker.legs.is_empty()
    });
    let mut answer = [0; 12];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 508");
}

#[test]
fn plain_text_at_the_inbound_listener_gets_nothing() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    application.set_nonblocking(true).unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut client = TcpStream::connect(mesh.far.address).unwrap();
    client.write_all(REQUEST).unwrap();
    mesh.until("the connection is refused", |_, far| {
        far.legs.is_empty() && far.share.line.load_of(0, 1) == Some(0)
    });
    let answer = mesh.read(&mut client, 200);
    assert!(!answer.windows(4).any(|it| it == b"HTTP"), "{answer:?}");
    assert!(application.accept().is_err());
}

#[test]
fn the_call_under_way_ends_well_and_none_follows_when_the_application_leaves() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    let request = b"GET /a HTTP/1.1\r\nHost: c\r\n\r\n";
    client.write_all(request).unwrap();
    mesh.until_at_application();
    mesh.far.worker.drain_inbound();
    mesh.until("the caller knows", |near, _| {
        near.legs.iter().all(|(_, leg)| !leg.has_room())
    });
    assert_eq!(mesh.far.worker.inbound, Inbound::Leaving);

    let (mut served, _) = application.accept().unwrap();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    served.write_all(answer).unwrap();
    assert_eq!(mesh.read(&mut client, answer.len()), answer);
    mesh.until("the last call has ended", |_, far| {
        far.inbound == Inbound::Left
    });
    assert!(
        TcpStream::connect(mesh.far.address).is_err(),
        "nobody listens"
    );

    client.write_all(request).unwrap();
    let refused = b"HTTP/1.1 503 ";
    assert_eq!(mesh.read(&mut client, refused.len()), refused);
}

#[test]
fn an_exchange_that_ends_in_the_handshake_leaves_nothing_behind_for_its_successor() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let request = b"POST /a HTTP/1.1\r\nHost: c\r\nContent-Length: 0\r\n\r\n";
    let mut early = TcpStream::connect(mesh.near.address).unwrap();
    early.write_all(request).unwrap();
    // Only the caller's proxy runs: the handshake cannot get on.
    mesh.near
        .until("it waits for the leg", |worker| worker.upstreams.len() == 1);
    // As a timeout of its route would.
    let (exchange_id, _) = mesh.near.worker.exchanges.iter().next().unwrap();
    mesh.near.worker.fail(exchange_id, Failure::Drained);
    assert!(mesh.near.worker.upstreams.is_empty());
    let mut later = TcpStream::connect(mesh.near.address).unwrap();
    later.write_all(request).unwrap();
    mesh.near
        .until("its successor waits", |worker| worker.upstreams.len() == 1);

    mesh.until_at_application();
    assert_eq!(
        mesh.far.worker.downstreams.len(),
        1,
        "one stream for one call"
    );
    let (mut served, _) = application.accept().unwrap();
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    served.write_all(answer).unwrap();
    assert_eq!(mesh.read(&mut later, answer.len()), answer);
    let mut head = [0; 4_000];
    let length = served.read(&mut head).unwrap();
    let sent = String::from_utf8_lossy(&head[..length]).into_owned();
    assert_eq!(sent.matches("POST /a").count(), 1, "{sent}");
    mesh.until("nothing is left of either", |near, far| {
        near.upstreams.is_empty() && far.downstreams.is_empty()
    });
    application.set_nonblocking(true).unwrap();
    assert!(application.accept().is_err(), "one call, one connection");
}

#[test]
fn a_peer_for_whom_too_much_waits_loses_its_leg() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let _call = mesh.call(&application);
    let leg = &mut mesh.far.worker.legs[0];
    // As if it had asked for answers and read none.
    leg.session.output.tail().resize(1 << 20, 0);
    mesh.far.worker.queue(Key::Leg(0));
    mesh.far.worker.drive(Key::Leg(0));
    assert_eq!(mesh.far.worker.legs.len(), 1, "as much as is allowed");
    mesh.far.worker.legs[0].session.output.tail().push(0);
    mesh.far.worker.drive(Key::Leg(0));
    assert!(mesh.far.worker.legs.is_empty(), "a byte more");
    assert_eq!(rejected(&mesh.far), [("mux.output_flood".to_owned(), 1)]);
}

#[test]
fn legs_count_in_the_limit_of_connections() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    mesh.far.worker.connections_max = 2;
    let _first = TcpStream::connect(mesh.far.address).unwrap();
    let _second = TcpStream::connect(mesh.far.address).unwrap();
    mesh.until("two are accepted", |_, far| far.legs.len() == 2);
    let _third = TcpStream::connect(mesh.far.address).unwrap();
    mesh.until("the third waits", |_, far| far.accept_paused_until_ms != 0);
    assert_eq!(mesh.far.worker.legs.len(), 2);
    assert_eq!(rejected(&mesh.far), [("connection_limit".to_owned(), 1)]);
}

#[test]
fn more_callers_of_a_cold_leg_than_a_leg_takes_get_a_second_one() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let callers = PEER_STREAMS_MAX + 1;
    let mut clients = Vec::new();
    for waiting in 1..=callers {
        let mut client = TcpStream::connect(mesh.near.address).unwrap();
        client.write_all(REQUEST).unwrap();
        clients.push(client);
        mesh.near
            .until("it waits", |worker| worker.upstreams.len() == waiting);
    }
    assert_eq!(mesh.near.worker.legs.len(), 2);
    mesh.until("all are at the application", |_, far| {
        let sent = far.exchanges.iter().filter(|(_, it)| it.sent_us > 0);
        sent.count() == callers
    });
}

#[test]
fn a_caller_in_the_handshake_hears_that_the_application_leaves() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client.write_all(REQUEST).unwrap();
    mesh.until("the handshake has begun", |_, far| far.legs.len() == 1);
    let handshaking = |worker: &Worker| worker.legs.iter().all(|(_, leg)| leg.peer().is_none());
    assert!(handshaking(&mesh.near.worker) && handshaking(&mesh.far.worker));
    mesh.far.worker.drain_inbound();
    mesh.until("the caller's proxy knows its peer", |near, _| {
        near.legs.iter().any(|(_, leg)| leg.peer().is_some())
    });
    mesh.until("the caller's proxy has left", |near, _| {
        near.legs.iter().all(|(_, leg)| !leg.has_room())
    });
}

#[test]
fn a_drain_waits_for_the_last_bytes_of_a_leg() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let (mut client, mut served) = mesh.call(&application);
    // A socket that is full: nothing more goes to the caller's proxy.
    mesh.far.worker.legs[0].session.io.writable = false;
    served.write_all(ANSWER).unwrap();
    mesh.far.until("the call is over", |worker| {
        worker.exchanges.is_empty() && worker.downstreams.is_empty()
    });
    mesh.far.worker.drain(45_000, 0);
    for _ in 0..10 {
        let is_done = mesh.far.worker.step(&mut mesh.far.events, 1).unwrap();
        assert!(!is_done, "the answer is still here");
    }
    mesh.far.worker.legs[0].session.io.writable = true;
    mesh.far.worker.dirty(Key::Leg(0));
    assert_eq!(mesh.read(&mut client, ANSWER.len()), ANSWER);
    mesh.until("nothing is left", |_, far| !far.is_called());
    let is_done = mesh.far.worker.step(&mut mesh.far.events, 1).unwrap();
    assert!(is_done, "nothing holds the drain up any more");
}

/// A certificate of a minute, and the time after which its legs are left.
const MINUTE: Duration = Duration::from_secs(60);
const NEAR_ITS_END: Duration = Duration::from_secs(55);

#[test]
fn a_leg_is_left_before_the_callers_certificate_expires_and_open_streams_go_on() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = application.local_addr().unwrap();
    let mut mesh = Mesh::with_lives(address, PAYMENT, [MINUTE, LIFE]);
    let mut early = mesh.call(&application);
    // Only the callee's proxy looks at its clock: it tells the caller's.
    mesh.far.worker.clock.advance(NEAR_ITS_END);
    mesh.until("the caller's proxy has left", |near, _| {
        near.legs.iter().all(|(_, leg)| leg.is_leaving())
    });
    mesh.near.worker.identity = Some(mesh.authority.identity(ORDER));
    let mut late = mesh.call(&application);
    assert_eq!(mesh.near.worker.legs.len(), 2, "a leg for the new identity");
    mesh.advance(MINUTE);
    mesh.answer(&mut early);
    mesh.until("the old leg is closed", |near, far| {
        near.legs.len() == 1 && far.legs.len() == 1
    });
    mesh.answer(&mut late);
    assert!(rejected(&mesh.far).is_empty(), "nothing was refused");
}

#[test]
fn a_leg_is_left_before_the_callees_certificate_expires() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = application.local_addr().unwrap();
    let mut mesh = Mesh::with_lives(address, PAYMENT, [LIFE, MINUTE]);
    let mut early = mesh.call(&application);
    mesh.near.worker.clock.advance(MINUTE / 2);
    mesh.near.worker.step(&mut mesh.near.events, 1).unwrap();
    assert!(!mesh.near.worker.legs[0].is_leaving(), "too early");
    mesh.near.worker.clock.advance(NEAR_ITS_END - MINUTE / 2);
    mesh.until("the caller's proxy leaves", |near, _| {
        near.legs.iter().all(|(_, leg)| leg.is_leaving())
    });
    mesh.far.worker.identity = Some(mesh.authority.identity(PAYMENT));
    let mut late = mesh.call(&application);
    assert_eq!(mesh.near.worker.legs.len(), 2);
    mesh.answer(&mut early);
    mesh.until("the old leg is closed", |near, _| near.legs.len() == 1);
    mesh.answer(&mut late);
}

#[test]
fn an_expired_caller_opens_no_stream_and_keeps_those_it_has() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = application.local_addr().unwrap();
    let mut mesh = Mesh::with_lives(address, PAYMENT, [MINUTE, LIFE]);
    let mut early = mesh.call(&application);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client.write_all(REQUEST).unwrap();
    mesh.near.until("a second call is on its way", |worker| {
        let mut all = worker.upstreams.iter();
        all.all(|(_, it)| it.is_connected) && worker.upstreams.len() == 2
    });
    // The stream comes in the same turn in which the time is over.
    mesh.far.worker.clock.advance(MINUTE);
    mesh.until("it is refused", |near, _| near.exchanges.len() == 1);
    assert_eq!(mesh.far.worker.exchanges.len(), 1);
    application.set_nonblocking(true).unwrap();
    assert!(application.accept().is_err(), "the application saw nothing");
    assert_eq!(mesh.read(&mut client, 12), b"HTTP/1.1 503");
    // It never reached the application, so it was tried three times.
    let refused = ("tls.certificate_expired".to_owned(), 3);
    assert_eq!(rejected(&mesh.far), [refused]);
    mesh.until("no leg is left for further ones", |near, _| {
        near.legs.iter().all(|(_, leg)| leg.is_leaving())
    });
    mesh.answer(&mut early);
}

#[test]
fn a_call_on_its_way_when_the_application_leaves_is_still_taken() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut early = mesh.call(&application);
    mesh.answer(&mut early);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client.write_all(REQUEST).unwrap();
    mesh.near.until("a call is on its way", |worker| {
        worker.upstreams.iter().any(|(_, it)| it.is_connected)
    });
    mesh.far.worker.drain_inbound();
    mesh.far.worker.step(&mut mesh.far.events, 1).unwrap();
    assert_eq!(mesh.far.worker.inbound, Inbound::Leaving);
    mesh.until_at_application();
    // Over the connection of the first call.
    mesh.answer(&mut (client, early.1));
    mesh.until("the last call has ended", |_, far| {
        far.inbound == Inbound::Left
    });
}

/// After which a caller's proxy closes a leg that carries nothing.
const IDLE: Duration = Duration::from_secs(300);

#[test]
fn a_leg_is_idle_from_the_end_of_its_last_call_on() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut call = mesh.call(&application);
    let second = Duration::from_secs(1);
    mesh.advance(IDLE - second);
    mesh.answer(&mut call);
    mesh.until("the call is over", |near, far| {
        near.exchanges.is_empty() && far.exchanges.is_empty()
    });
    for (by, legs) in [(IDLE - second, 1), (2 * second, 0)] {
        mesh.advance(by);
        mesh.settle();
        assert_eq!(mesh.near.worker.legs.len(), legs);
        assert_eq!(mesh.far.worker.legs.len(), legs);
    }
}

#[test]
fn a_call_on_its_way_on_a_leg_that_was_idle_for_long_is_taken() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut early = mesh.call(&application);
    mesh.answer(&mut early);
    mesh.until("the call is over", |_, far| far.downstreams.is_empty());
    // A caller's proxy that was stopped has not closed it; now both look at their clocks at once.
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    mesh.near.until("a call is on its way", |worker| {
        worker.upstreams.iter().any(|(_, it)| it.is_connected)
    });
    mesh.far.worker.clock.advance(3 * IDLE);
    let (leg_id, _) = mesh.far.worker.legs.iter().next().unwrap();
    mesh.far.worker.leg_timer(leg_id);
    mesh.until_at_application();
    mesh.answer(&mut (client, application.accept().unwrap().0));
    mesh.until("the caller's proxy has closed it", |near, far| {
        near.legs.is_empty() && far.legs.is_empty()
    });
}

#[test]
fn a_caller_that_does_not_hear_holds_the_leaving_up_for_a_second() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut early = mesh.call(&application);
    mesh.answer(&mut early);
    mesh.until("the call is over", |_, far| far.downstreams.is_empty());
    // From now on the caller's proxy is stopped.
    mesh.far.worker.drain_inbound();
    mesh.far.worker.step(&mut mesh.far.events, 1).unwrap();
    assert_eq!(mesh.far.worker.inbound, Inbound::Leaving);
    mesh.far.worker.clock.advance(Duration::from_secs(1));
    mesh.far.until("it is not waited for any more", |worker| {
        worker.inbound == Inbound::Left
    });
}

#[test]
fn a_flood_on_a_leg_is_told_to_calm_down_and_counted() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let (mut client, _served) = mesh.call(&application);
    let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
    let many = LIMITS.idle_frames as usize / 2;
    let seconds = LIMITS.idle_frames / LIMITS.idle_frames_per_second + 1;
    for pings in [many, many, many, 2 * many + 1] {
        let session = &mut mesh.near.worker.legs[0].session;
        session.output.tail().extend_from_slice(&ping.repeat(pings));
        mesh.near.worker.dirty(Key::Leg(0));
        mesh.settle();
        assert_eq!(mesh.far.worker.legs.is_empty(), pings > many, "{pings}");
        mesh.advance(Duration::from_secs(seconds.into()));
    }
    mesh.until("the leg is gone", |near, far| {
        near.legs.is_empty() && far.legs.is_empty()
    });
    assert_eq!(rejected(&mesh.far), [("mux.frame_flood".to_owned(), 1)]);
    assert_eq!(mesh.read(&mut client, 12), b"HTTP/1.1 503");
    let log = String::from_utf8(mesh.far.memory.drain_access_log(100_000)).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<serde_json::Map<String, serde_json::Value>> = lines.collect();
    let keys = |line: &serde_json::Map<String, _>| {
        let names = line.keys().cloned();
        names.collect::<std::collections::BTreeSet<String>>()
    };
    let of_leg = lines.iter().find(|it| it["protocol"] == "meshfast/1");
    let of_call = lines.iter().find(|it| it["protocol"] != "meshfast/1");
    let (of_leg, of_call) = (of_leg.unwrap(), of_call.unwrap());
    assert_eq!(of_leg["response_code_details"], "mux.frame_flood");
    assert_eq!(keys(of_leg), keys(of_call));
}

fn spans(memory: &SharedMemory) -> Vec<serde_json::Value> {
    let lines = String::from_utf8(memory.drain_spans(100_000)).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn both_ends_of_a_sampled_call_write_a_span_and_the_callees_is_a_child() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = application.local_addr().unwrap().port();
    let sampling = r#"{"sampling_parts_per_million":1000000}"#;
    let mut mesh = Mesh::tracing(application.local_addr().unwrap(), PAYMENT, sampling);
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client
        .write_all(
            b"GET /a?b=\"c HTTP/1.1\r\nHost: c\r\nUser-Agent: test/1\r\n\
              traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n",
        )
        .unwrap();
    mesh.until_at_application();
    let (mut served, _) = application.accept().unwrap();
    let answer = b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno";
    served.write_all(answer).unwrap();
    assert_eq!(mesh.read(&mut client, answer.len()), answer);
    mesh.until("both exchanges are over", |near, far| {
        near.exchanges.is_empty() && far.exchanges.is_empty()
    });
    let mut head = [0; 2_000];
    let length = served.read(&mut head).unwrap();
    let head = String::from_utf8_lossy(&head[..length]).into_owned();

    let (near, far) = (spans(&mesh.near.memory), spans(&mesh.far.memory));
    let (near, far) = (&near[..], &far[..]);
    let ([near], [far]) = (near, far) else {
        panic!("one each: {near:?} {far:?}");
    };
    assert_eq!(near["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(near["parentId"], "00f067aa0ba902b7");
    assert_eq!(far["traceId"], near["traceId"]);
    assert_eq!(far["parentId"], near["id"]);
    let told = format!("-{}-01\r\n", far["id"].as_str().unwrap());
    assert!(
        head.contains(&told),
        "the application is told {told}: {head}"
    );

    assert_eq!(near["kind"], "CLIENT");
    assert_eq!(near["name"], "c:80/*");
    assert_eq!(near["localEndpoint"]["serviceName"], "edge.default");
    assert_eq!(near["remoteEndpoint"]["serviceName"], "c.default");
    assert_eq!(far["kind"], "SERVER");
    assert_eq!(far["name"], format!("c:{port}/*"));
    assert_eq!(far["remoteEndpoint"]["serviceName"], "order.default");
    for span in [near, far] {
        let tags = &span["tags"];
        assert_eq!(tags["http.url"], "http://c/a?b=\"c");
        assert_eq!(tags["http.method"], "GET");
        assert_eq!(tags["http.status_code"], "503");
        assert_eq!(tags["response_flags"], "-");
        assert_eq!(tags["error"], "true");
        assert_eq!(tags["user_agent"], "test/1");
        assert_eq!(tags["response_size"], "2");
        assert_eq!(tags["guid:x-request-id"].as_str().unwrap().len(), 36);
        assert!(span["duration"].as_u64().unwrap() >= 1);
        let started_s = span["timestamp"].as_u64().unwrap() / 1_000_000;
        let now_s = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs();
        assert!(now_s.abs_diff(started_s) < 60);
    }
    assert_eq!(near["tags"]["upstream_cluster"], "outbound|80||c.default");
    assert_eq!(near["tags"]["destination_principal"], PAYMENT);
    assert_eq!(far["tags"]["upstream_cluster"], format!("inbound|{port}||"));
    assert_eq!(far["tags"]["source_principal"], ORDER);
    assert_eq!(
        near["tags"]["node_id"],
        "router~127.0.0.1~edge.default~default"
    );
}

#[test]
fn what_is_not_sampled_leaves_no_span() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let sampling = r#"{"sampling_parts_per_million":0}"#;
    let mut mesh = Mesh::tracing(application.local_addr().unwrap(), PAYMENT, sampling);
    let mut call = mesh.call(&application);
    mesh.answer(&mut call);
    mesh.until("both exchanges are over", |near, far| {
        near.exchanges.is_empty() && far.exchanges.is_empty()
    });
    assert!(spans(&mesh.near.memory).is_empty() && spans(&mesh.far.memory).is_empty());
    assert!(!mesh.near.memory.drain_access_log(100_000).is_empty());
}
