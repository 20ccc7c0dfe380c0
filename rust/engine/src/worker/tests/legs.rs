//! Two workers and a leg between them: the caller's proxy and the callee's, stepped in turn.

use super::*;
use crate::tls::Authority;

const ORDER: &str = "spiffe://cluster.local/ns/default/sa/order";
pub(super) const PAYMENT: &str = "spiffe://cluster.local/ns/default/sa/payment";

const INBOUND: &str = r#"{"name":"front","direction":"inbound","protocol":"HTTP",
    "tls":{"mode":"STRICT"},"virtual_hosts":[]}"#;

pub(super) struct Mesh {
    pub(super) near: Bench,
    pub(super) far: Bench,
}

impl Mesh {
    /// `expected` is whom the caller's proxy is told to find at the callee's.
    pub(super) fn new(application: SocketAddr, expected: &str) -> Self {
        let authority = Authority::new();
        let far_listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = application.port();
        let far_address = far_listener.local_addr().unwrap();
        let far_cluster = cluster(&format!("inbound|{port}||"), application, "", "null");
        let far = Bench::start(
            far_listener,
            &document(INBOUND, &far_cluster),
            Some(&authority.hand_over(&[PAYMENT], |_| {})),
        );
        let name = format!("outbound|{port}||c.default");
        let near_cluster = cluster(&name, far_address, expected, r#"{"mode":"ISTIO_MUTUAL"}"#);
        let front = FRONT.replace("\"cluster\":\"c\"", &format!("\"cluster\":\"{name}\""));
        let near = Bench::start(
            TcpListener::bind("127.0.0.1:0").unwrap(),
            &document(&front, &near_cluster),
            Some(&authority.hand_over(&[ORDER], |_| {})),
        );
        Self { near, far }
    }

    fn until(&mut self, what: &str, done: impl Fn(&Worker, &Worker) -> bool) {
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
    fn read(&mut self, client: &mut TcpStream, count: usize) -> Vec<u8> {
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
    mesh.until("it is at the application", |_, far| {
        far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
    });
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

    mesh.until("it is at the application", |_, far| {
        far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
    });
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
