//! A whole worker in the test's own thread, between loopback sockets that the test drives.
//!
//! The worker is stepped by hand, so that every test sees a state, not a moment.
#![allow(clippy::unwrap_used)]

mod edges;

use super::*;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::IntoRawFd;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use meshfast_mesh::Snapshot;

use crate::error::Failure;

/// A worker with one HTTP listener in front of `origin`.
struct Bench {
    worker: Worker,
    events: Events,
    address: SocketAddr,
    memory: SharedMemory,
    /// The other ends of its channels, held open: control, inbox, resolver.
    far: Vec<UnixDatagram>,
}

/// Place of the inbox in [`Bench::far`].
const INBOX_CHANNEL: usize = 1;

/// And of the resolver.
const RESOLVER_CHANNEL: usize = 2;

impl Bench {
    fn new(origin: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::start(
            listener,
            &document(FRONT, &cluster("c", origin, "", "null")),
            None,
        )
    }

    /// A worker with this document, whose listener is named `front`, and this identity.
    fn start(listener: TcpListener, document: &str, identity: Option<&str>) -> Self {
        let address = listener.local_addr().unwrap();
        let identity_fd = identity.map_or_else(
            || "null".to_owned(),
            |identity| blob_file(identity.as_bytes()).into_raw_fd().to_string(),
        );
        let blob = Snapshot::from_document(document.as_bytes())
            .unwrap()
            .encode();
        let memory = SharedMemory::create(2).unwrap();
        let shared = SharedMemory::open(memory.descriptor()).unwrap();
        let mut far = Vec::new();
        let mut channel = || {
            let (near, other) = UnixDatagram::pair().unwrap();
            far.push(other);
            near.into_raw_fd()
        };
        let settings = format!(
            r#"{{"version":1,"slot":0,"worker_slots":2,"shared_memory_fd":{},"snapshot_fd":{},
            "generation":1,"control_fd":{},"listeners":[{{"name":"front","fd":{}}}],
            "inbox_fd":{},"outboxes":[],"resolver_fd":{},"identity_fd":{identity_fd},
            "log_level":"info"}}"#,
            shared
                .descriptor()
                .try_clone_to_owned()
                .unwrap()
                .into_raw_fd(),
            blob_file(&blob).into_raw_fd(),
            channel(),
            listener.into_raw_fd(),
            channel(),
            channel(),
        );
        let settings = Settings::parse(settings.as_bytes()).unwrap();
        let mut worker = Worker::boot(settings).unwrap();
        worker.open().unwrap();
        let events = Events::with_capacity(64);
        Self {
            worker,
            events,
            address,
            memory,
            far,
        }
    }

    /// Steps until `done` says so, a second at most.
    fn until(&mut self, what: &str, done: impl Fn(&Worker) -> bool) {
        for _ in 0..100 {
            if done(&self.worker) {
                return;
            }
            self.worker.step(&mut self.events, 10).unwrap();
        }
        panic!("never: {what}");
    }
}

/// What holds after every turn of every test.
pub(super) fn check(worker: &Worker) {
    for (id, exchange) in worker.exchanges.iter() {
        let downstream = worker.downstreams.get(exchange.downstream);
        let downstream = downstream.expect("no exchange outlives its downstream");
        assert_eq!(downstream.exchange, Some(id));
        assert!(!downstream.is_closing, "answers go to callers that read");
        let upstream = exchange
            .upstream
            .map(|upstream| &worker.upstreams[upstream]);
        assert!(upstream.is_none_or(|it| it.exchange == Some(id)));
        let has_deadline = worker.timers.is_armed(Key::Downstream(exchange.downstream));
        assert!(!has_deadline, "only a session without an exchange has one");
    }
    let of_downstreams = worker.downstreams.iter().filter_map(|(_, it)| it.exchange);
    let of_upstreams = worker.upstreams.iter().filter_map(|(_, it)| it.exchange);
    let mut named = of_downstreams.chain(of_upstreams);
    assert!(named.all(|id| worker.exchanges.contains(id)));
}

/// A listener that sends everything to cluster `c`.
const FRONT: &str = r#"{"name":"front","direction":"gateway","protocol":"HTTP","virtual_hosts":[{
    "name":"all","domains":["*"],"routes":[{"name":"r","destinations":[{"cluster":"c","weight":1}]}]
    }]}"#;

fn document(listener: &str, cluster: &str) -> String {
    format!(
        r#"{{"version":1,"generation":1,"workload":{{"name":"edge","namespace":"default",
        "app":"edge","revision":"latest"}},"listeners":[{listener}],"clusters":[{cluster}]}}"#
    )
}

fn cluster(name: &str, endpoint: SocketAddr, principal: &str, tls: &str) -> String {
    format!(
        r#"{{"name":"{name}","service":{{"host":"c","name":"c","namespace":"default"}},
        "subset":"","balancer":"LEAST_REQUEST","connect_timeout_ms":1000,"idle_timeout_ms":3000,
        "tls":{tls},"endpoints":[{{"slot":5,"address":"{endpoint}","weight":1,"workload":{{
        "name":"c","namespace":"default","app":"c","revision":"v1","principal":"{principal}"}}}}]}}"#
    )
}

fn blob_file(blob: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!(
        "meshfast-test-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::write(&path, blob).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

/// What a worker has refused, and how often.
fn rejected(bench: &Bench) -> Vec<(String, u64)> {
    let all = bench.memory.series().into_iter();
    all.filter_map(|series| match series {
        crate::shared::SeriesTotals::Rejected(reason, count) => Some((reason, count)),
        _ => None,
    })
    .collect()
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn an_exchange_names_its_sessions_and_they_name_it() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    let mut client = TcpStream::connect(bench.address).unwrap();
    client.write_all(REQUEST).unwrap();
    bench.until("the request is sent", |worker| {
        worker
            .exchanges
            .iter()
            .any(|(_, it)| it.stage == crate::exchange::Stage::AwaitingHead)
    });
    let (id, exchange) = bench.worker.exchanges.iter().next().unwrap();
    let upstream = exchange.upstream.unwrap();
    assert_eq!(
        bench.worker.downstreams[exchange.downstream].exchange,
        Some(id)
    );
    assert_eq!(bench.worker.upstreams[upstream].exchange, Some(id));
    assert_eq!(exchange.active_slot, Some(5));
    assert_eq!(bench.memory.endpoints()[0].active, 1);

    let (mut served, _) = origin.accept().unwrap();
    served
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .unwrap();
    bench.until("the exchange is over", |worker| worker.exchanges.is_empty());
    assert_eq!(bench.memory.endpoints()[0].active, 0);
    assert!(
        bench
            .worker
            .downstreams
            .iter()
            .all(|(_, it)| it.exchange.is_none())
    );
    assert_eq!(
        bench.worker.upstreams.len(),
        1,
        "the upstream waits in the pool"
    );
    let log = String::from_utf8(bench.memory.drain_access_log(100_000)).unwrap();
    assert_eq!(log.lines().count(), 1);
}

#[test]
fn a_span_that_finds_its_ring_full_is_counted_and_holds_nothing_up() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster = cluster("c", origin.local_addr().unwrap(), "", "null");
    let sampling = r#"{"tracing":{"sampling_parts_per_million":1000000},"#;
    let document = document(FRONT, &cluster).replacen('{', sampling, 1);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::start(listener, &document, None);
    while bench.worker.share.spans.push(&[b'x'; 1024]) {}
    let mut client = TcpStream::connect(bench.address).unwrap();
    client.write_all(REQUEST).unwrap();
    bench.until("the request is sent", |worker| {
        let mut all = worker.exchanges.iter();
        all.any(|(_, it)| it.stage == crate::exchange::Stage::AwaitingHead)
    });
    let (mut served, _) = origin.accept().unwrap();
    served
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    bench.until("the exchange is over", |worker| worker.exchanges.is_empty());
    assert_eq!(bench.memory.workers()[0].spans_dropped, 1);
    assert_eq!(bench.memory.workers()[0].access_log_dropped, 0);
}

#[test]
fn a_panic_ends_one_connection_and_no_other() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    let mut victim = TcpStream::connect(bench.address).unwrap();
    let mut other = TcpStream::connect(bench.address).unwrap();
    victim.write_all(REQUEST).unwrap();
    other.write_all(REQUEST).unwrap();
    bench.until("both requests are sent", |worker| {
        worker
            .exchanges
            .iter()
            .filter(|(_, it)| it.stage == crate::exchange::Stage::AwaitingHead)
            .count()
            == 2
    });
    let (_, exchange) = bench
        .worker
        .exchanges
        .iter()
        .find(|(_, it)| {
            let peer = bench.worker.downstreams[it.downstream].peer;
            peer.socket() == victim.local_addr().ok()
        })
        .unwrap();
    bench.worker.panic_in = Some(Key::Downstream(exchange.downstream));
    bench.worker.queue(Key::Downstream(exchange.downstream));
    bench.until("the victim is gone", |worker| worker.exchanges.len() == 1);
    assert_eq!(bench.memory.endpoints()[0].active, 1);
    assert!(
        victim.read(&mut [0; 16]).is_err(),
        "a reset, not an end that looks like an answer"
    );

    for _ in 0..2 {
        let (mut served, _) = origin.accept().unwrap();
        let _ = served.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        std::mem::forget(served);
    }
    bench.until("the other is answered", |worker| {
        worker.exchanges.is_empty()
    });
    let mut answer = [0; 12];
    other.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert_eq!(rejected(&bench), [("panic".to_owned(), 1)]);
}

const UPGRADE: &[u8] =
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn bytes_behind_a_refused_upgrade_end_the_connection_and_none_keep_it() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    for behind in [&b""[..], b"x", REQUEST] {
        let mut client = TcpStream::connect(bench.address).unwrap();
        client.write_all(UPGRADE).unwrap();
        bench.until("the upgrade is sent", |worker| {
            let mut all = worker.exchanges.iter();
            all.any(|(_, it)| it.stage == crate::exchange::Stage::AwaitingHead)
        });
        let (_, exchange) = bench.worker.exchanges.iter().next().unwrap();
        let (downstream, upstream) = (exchange.downstream, exchange.upstream.unwrap());
        client.write_all(behind).unwrap();
        let (mut served, _) = origin.accept().unwrap();
        served
            .write_all(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .unwrap();
        // The answer is read first; what stands behind the upgrade is in the kernel only.
        bench.worker.upstreams[upstream].session.io.readable = true;
        bench.worker.drive_upstream(upstream);
        bench.until("the exchange is over", |worker| worker.exchanges.is_empty());
        let downstream = &bench.worker.downstreams[downstream];
        assert_eq!(downstream.is_closing, !behind.is_empty(), "{behind:?}");
        assert_eq!(downstream.keep_alive, behind.is_empty(), "{behind:?}");
        let exchanges = bench.memory.drain_access_log(100_000);
        let log = String::from_utf8(exchanges).unwrap();
        assert_eq!(log.lines().count(), 1, "nothing behind it is a request");
    }
}

#[test]
fn a_post_does_not_go_on_a_connection_that_was_idle_and_a_get_does() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    let mut client = TcpStream::connect(bench.address).unwrap();
    let mut served = Vec::new();
    for (method, connections) in [("GET", 1), ("GET", 1), ("POST", 2)] {
        let ids: Vec<usize> = bench.worker.upstreams.iter().map(|(id, _)| id).collect();
        for id in ids {
            bench.worker.upstreams[id].idle_since_ms -= 201;
        }
        write!(client, "{method} / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        bench.until("the request is sent", |worker| {
            let mut all = worker.exchanges.iter();
            all.any(|(_, it)| it.stage == crate::exchange::Stage::AwaitingHead)
        });
        assert_eq!(bench.worker.upstreams.len(), connections, "{method}");
        if served.len() < connections {
            served.push(origin.accept().unwrap().0);
        }
        let answering = served.last_mut().unwrap();
        answering
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        bench.until("the exchange is over", |worker| worker.exchanges.is_empty());
    }
}

#[test]
fn what_an_idle_connection_holds_stays_small() {
    // Resident for every idle client: 1 KiB is the bar, and its slab may be half empty.
    assert!(size_of::<Downstream>() <= 256);
    assert!(size_of::<Upstream>() <= 384);
    // Written and moved once a request each; a caller of the mesh has its name there.
    assert!(size_of::<Exchange>() <= 672);
}

mod legs;
mod repeats;
mod strangers;
mod tries;
mod tunnels;
