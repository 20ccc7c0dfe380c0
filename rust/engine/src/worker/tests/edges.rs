//! Moments that a whole process cannot be brought into for certain: a listener that was removed so
//! long ago that its snapshot is gone. The others are in tests/dataplane/test_edges.py.

use super::*;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;

use crate::control::Channel;

/// Later than any time at which a removed listener is still served.
const LATER_MS: u64 = 3_600_000;

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
