//! Moments that a whole process cannot be brought into for certain: a listener that was removed so
//! long ago that its snapshot is gone, and the end of a drain while a closing session still holds
//! bytes. The others are in tests/dataplane/test_edges.py.

use super::*;
use std::io::ErrorKind;
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use crate::control::Channel;

/// Later than any time at which a removed listener is still served.
const LATER_MS: u64 = 3_600_000;

/// Small beside the high watermark, so that a sink which is full still takes the end of a body.
const PIECE_BYTES: usize = 16 * 1024;

impl Bench {
    /// Gives the worker a snapshot without listeners and lets it forget the ones before.
    fn remove_listeners(&mut self) {
        let document = self.worker.generation.snapshot.to_document();
        let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        document["generation"] = 2.into();
        document["listeners"] = serde_json::json!([]);
        let snapshot = Snapshot::from_document(document.to_string().as_bytes()).unwrap();
        self.worker.apply(Generation::new(snapshot), 2);
        for listener in &mut self.worker.listeners {
            listener.leave(LATER_MS);
        }
    }

    /// Steps until the kernel has had time to tell everything.
    fn settle(&mut self) {
        for _ in 0..10 {
            self.worker.step(&mut self.events, 5).unwrap();
        }
    }

    fn rejected(&self, reason: &str) -> u64 {
        let counts = self.memory.series().into_iter().filter_map(|it| match it {
            crate::shared::SeriesTotals::Rejected(name, count) if name == reason => Some(count),
            _ => None,
        });
        counts.sum()
    }
}

fn read_to_the_end(client: &mut TcpStream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = client.read_to_end(&mut bytes);
    (bytes, end.err().map(|error| error.kind()))
}

#[test]
fn a_request_on_a_listener_removed_long_ago_finds_no_route() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    let mut client = TcpStream::connect(bench.address).unwrap();
    bench.until("it is connected", |worker| !worker.downstreams.is_empty());
    bench.remove_listeners();
    client.write_all(REQUEST).unwrap();
    bench.until("it is answered", |worker| {
        let mut sessions = worker.downstreams.iter();
        sessions.all(|(_, it)| it.is_closing && it.session.output.is_empty())
    });
    let (bytes, error) = read_to_the_end(&mut client);
    let answer = String::from_utf8(bytes).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert_eq!(error, None);
    assert_eq!(bench.rejected("panic"), 0);
}

#[test]
fn a_connection_handed_over_for_a_listener_removed_long_ago_is_closed() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = TcpStream::connect(elsewhere.local_addr().unwrap()).unwrap();
    let (accepted, _) = elsewhere.accept().unwrap();
    bench.remove_listeners();
    let inbox = bench.far.remove(INBOX_CHANNEL);
    let neighbour = Channel::new(inbox.into_raw_fd()).unwrap();
    neighbour.send(b"front", &[accepted.as_raw_fd()]).unwrap();
    drop(accepted);
    bench.worker.take_handed_over();
    assert!(bench.worker.downstreams.is_empty());
    assert_eq!(bench.rejected("listener_removed"), 1);
    assert_eq!(read_to_the_end(&mut client), (Vec::new(), None));
}

#[test]
fn the_end_of_a_drain_cuts_what_a_closing_session_still_holds() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::new(origin.local_addr().unwrap());
    let mut client = TcpStream::connect(bench.address).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    bench.until("the request is sent", |worker| !worker.upstreams.is_empty());
    let (mut served, _) = origin.accept().unwrap();
    served.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let is_held_back = |worker: &Worker| {
        let mut sessions = worker.downstreams.iter().map(|(_, it)| &it.session);
        sessions.any(|it| !it.output.is_empty() && !it.io.writable)
    };
    let mut sent = 0;
    while !is_held_back(&bench.worker) {
        served.write_all(&[b'x'; PIECE_BYTES]).unwrap();
        sent += PIECE_BYTES;
        bench.worker.step(&mut bench.events, 1).unwrap();
        if is_held_back(&bench.worker) {
            // The kernel passes on to the reader's buffer what that still has room for.
            bench.settle();
        }
    }
    served.shutdown(Shutdown::Write).unwrap();
    bench.until("the response is over", |worker| worker.exchanges.is_empty());
    assert!(is_held_back(&bench.worker), "a part of it has no room yet");

    bench.worker.drain(0, 0);
    assert!(bench.worker.drained());
    drop(bench.worker);
    let (bytes, error) = read_to_the_end(&mut client);
    assert!(bytes.len() < sent);
    assert_eq!(
        error,
        Some(ErrorKind::ConnectionReset),
        "{} of {sent} bytes must not look like the whole",
        bytes.len()
    );
}
