//! Two ends of a `meshfast/1` connection in one test: what one sends is fed to the other whole, and
//! again one byte at a time.

use meshfast_wire::frame::ErrorCode;
use meshfast_wire::mux::{
    CONNECTION_WINDOW_BYTES, Carries, Connection, Event, Role, STREAM_WINDOW_BYTES,
};

/// An event that owns its bytes.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Accepted(u32),
    Data(u32, Vec<u8>),
    Ended(u32),
    GoAway(u32),
    Opened(u32, u16, Carries),
    Reset(u32, ErrorCode),
}

struct End {
    connection: Connection,
    out: Vec<u8>,
    pending: Vec<u8>,
    seen: Vec<Seen>,
}

impl End {
    fn new(role: Role) -> Self {
        let mut out = Vec::new();
        let connection = Connection::new(role, &mut out);
        Self {
            connection,
            out,
            pending: Vec::new(),
            seen: Vec::new(),
        }
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), meshfast_wire::Error> {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let (used, event) = self
                .connection
                .receive(&self.pending[at..], &mut self.out)?;
            at += used;
            match event {
                Some(Event::Accepted(stream)) => self.seen.push(Seen::Accepted(stream)),
                Some(Event::Data(stream, bytes)) => match self.seen.last_mut() {
                    Some(Seen::Data(last, all)) if *last == stream => all.extend_from_slice(bytes),
                    _ => self.seen.push(Seen::Data(stream, bytes.to_vec())),
                },
                Some(Event::Ended(stream)) => self.seen.push(Seen::Ended(stream)),
                Some(Event::GoAway(last)) => self.seen.push(Seen::GoAway(last)),
                Some(Event::Opened(stream, port, carries)) => {
                    self.seen.push(Seen::Opened(stream, port, carries));
                }
                Some(Event::Reset(stream, code)) => self.seen.push(Seen::Reset(stream, code)),
                Some(Event::Writable(_)) => {}
                None if used == 0 => break,
                None => {}
            }
        }
        self.pending.drain(..at);
        Ok(())
    }
}

struct Pair {
    client: End,
    server: End,
    step: usize,
}

impl Pair {
    fn new(step: usize) -> Self {
        let mut pair = Self {
            client: End::new(Role::Client),
            server: End::new(Role::Server),
            step,
        };
        pair.exchange();
        pair
    }

    /// Lets both ends hear everything.
    fn exchange(&mut self) {
        while !self.client.out.is_empty() || !self.server.out.is_empty() {
            for bytes in std::mem::take(&mut self.client.out).chunks(self.step) {
                self.server.feed(bytes).unwrap();
            }
            for bytes in std::mem::take(&mut self.server.out).chunks(self.step) {
                self.client.feed(bytes).unwrap();
            }
        }
    }

    fn open(&mut self, port: u16, carries: Carries) -> u32 {
        self.client
            .connection
            .open(port, carries, &mut self.client.out)
            .unwrap()
    }
}

fn both_ways(test: impl Fn(&mut Pair)) {
    for step in [usize::MAX, 1, 7] {
        test(&mut Pair::new(step));
    }
}

#[test]
fn a_stream_carries_bytes_both_ways_and_is_forgotten() {
    both_ways(|pair| {
        let stream = pair.open(8080, Carries::Http1);
        assert_eq!(
            pair.client
                .connection
                .send(stream, b"question", &mut pair.client.out),
            8
        );
        pair.client.connection.end(stream, &mut pair.client.out);
        pair.exchange();
        assert_eq!(
            pair.server.seen,
            [
                Seen::Opened(stream, 8080, Carries::Http1),
                Seen::Data(stream, b"question".to_vec()),
                Seen::Ended(stream)
            ]
        );
        pair.server
            .connection
            .send(stream, b"answer", &mut pair.server.out);
        pair.server.connection.end(stream, &mut pair.server.out);
        pair.exchange();
        assert_eq!(
            pair.client.seen,
            [
                Seen::Accepted(stream),
                Seen::Data(stream, b"answer".to_vec()),
                Seen::Ended(stream)
            ]
        );
        assert_eq!(pair.client.connection.open_streams(), 0);
        assert_eq!(pair.server.connection.open_streams(), 0);
    });
}

#[test]
fn many_streams_do_not_mix() {
    both_ways(|pair| {
        let streams: Vec<u32> = (0..50)
            .map(|port| pair.open(port + 1, Carries::Tcp))
            .collect();
        for round in 0..3u8 {
            for stream in &streams {
                let bytes = [round, *stream as u8];
                pair.client
                    .connection
                    .send(*stream, &bytes, &mut pair.client.out);
            }
        }
        pair.exchange();
        for stream in streams {
            let all: Vec<u8> = pair
                .server
                .seen
                .iter()
                .filter_map(|seen| match seen {
                    Seen::Data(of, bytes) if *of == stream => Some(bytes.clone()),
                    _ => None,
                })
                .flatten()
                .collect();
            assert_eq!(all, [0, stream as u8, 1, stream as u8, 2, stream as u8]);
        }
    });
}

#[test]
fn nothing_is_sent_beyond_the_credit_and_consuming_gives_it_back() {
    both_ways(|pair| {
        let stream = pair.open(1, Carries::Tcp);
        let bytes = vec![7; 1_000_000];
        let first = pair
            .client
            .connection
            .send(stream, &bytes, &mut pair.client.out);
        assert_eq!(first, STREAM_WINDOW_BYTES as usize);
        pair.exchange();
        assert_eq!(pair.client.connection.send_room(stream), 0);
        pair.server
            .connection
            .consumed(stream, 40_000, &mut pair.server.out);
        pair.exchange();
        assert_eq!(pair.client.connection.send_room(stream), 40_000);
    });
}

#[test]
fn one_reader_that_does_not_read_does_not_stop_the_others() {
    both_ways(|pair| {
        let stuck: Vec<u32> = (0..10).map(|_| pair.open(1, Carries::Tcp)).collect();
        for stream in stuck {
            pair.client
                .connection
                .send(stream, &[1; 65_536], &mut pair.client.out);
        }
        pair.exchange();
        let other = pair.open(2, Carries::Tcp);
        assert!(pair.client.connection.send_room(other) > 0);
    });
}

#[test]
fn the_connection_s_credit_bounds_all_streams_together() {
    both_ways(|pair| {
        let mut sent = 0;
        for _ in 0..40 {
            let stream = pair.open(1, Carries::Tcp);
            sent += pair
                .client
                .connection
                .send(stream, &[1; 65_536], &mut pair.client.out);
        }
        assert_eq!(sent, (CONNECTION_WINDOW_BYTES + 65_535) as usize);
        pair.exchange();
    });
}

#[test]
fn a_reset_tells_whether_the_application_saw_anything() {
    both_ways(|pair| {
        let stream = pair.open(1, Carries::Http1);
        pair.exchange();
        pair.server
            .connection
            .reset(stream, ErrorCode::RefusedStream, &mut pair.server.out);
        pair.exchange();
        assert_eq!(
            pair.client.seen,
            [Seen::Reset(stream, ErrorCode::RefusedStream)]
        );
        assert_eq!(pair.client.connection.open_streams(), 0);
    });
}

#[test]
fn behind_a_goaway_streams_are_refused_and_none_is_opened() {
    both_ways(|pair| {
        let early = pair.open(1, Carries::Http1);
        pair.exchange();
        pair.server
            .connection
            .go_away(ErrorCode::NoError, &mut pair.server.out);
        let late = pair.open(1, Carries::Http1);
        pair.exchange();
        assert!(pair.client.seen.contains(&Seen::GoAway(early)));
        assert!(
            pair.client
                .seen
                .contains(&Seen::Reset(late, ErrorCode::RefusedStream))
        );
        assert!(!pair.client.connection.may_open());
        assert_eq!(
            pair.client.connection.open_streams(),
            1,
            "the early one goes on"
        );
    });
}

/// What a server end says to bytes behind a good start.
fn refused(bytes: &[u8]) -> &'static str {
    let mut details = Vec::new();
    for step in [usize::MAX, 1] {
        let mut server = End::new(Role::Server);
        let mut client = End::new(Role::Client);
        let start = std::mem::take(&mut client.out);
        server.feed(&start).unwrap();
        let outcome = bytes.chunks(step).try_for_each(|piece| server.feed(piece));
        details.push(outcome.unwrap_err().detail());
    }
    assert_eq!(details[0], details[1], "however it is cut");
    details[0]
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

const OPENING: &[u8] = b"\0\x07:method\x07CONNECT\0\x0a:authority\x0aworkload:1\
\0\x12x-meshfast-carries\x03tcp";

#[test]
fn refuses_what_breaks_the_protocol() {
    let mut flood = frame(1, 4, 1, OPENING);
    for _ in 0..5 {
        flood.extend(frame(0, 0, 1, &[0; 16_384]));
    }
    for (what, bytes, detail) in [
        (
            "data on a stream never opened",
            frame(0, 0, 1, b"x"),
            "mux.stream",
        ),
        ("an even stream", frame(1, 4, 2, OPENING), "mux.stream"),
        (
            "a header block we do not know",
            frame(1, 4, 1, b"\x82"),
            "mux.headers",
        ),
        (
            "a header block in parts",
            frame(1, 0, 1, OPENING),
            "mux.headers",
        ),
        ("a continuation", frame(9, 4, 1, b""), "mux.stream"),
        (
            "credit of zero",
            frame(8, 0, 0, &[0; 4]),
            "mux.flow_control",
        ),
        (
            "credit beyond 31 bits",
            frame(8, 0, 0, &[0x7f, 255, 255, 255]),
            "mux.flow_control",
        ),
        ("more than the window", flood, "mux.flow_control"),
        (
            "a window beyond 31 bits",
            frame(4, 0, 0, &[0, 4, 255, 0, 0, 0]),
            "mux.flow_control",
        ),
        (
            "push that is neither on nor off",
            frame(4, 0, 0, &[0, 2, 0, 0, 0, 2]),
            "mux.settings",
        ),
        (
            "a stream opened twice",
            [frame(1, 4, 1, OPENING), frame(1, 4, 1, OPENING)].concat(),
            "mux.stream",
        ),
    ] {
        assert_eq!(refused(&bytes), detail, "{what}");
    }
}

#[test]
fn refuses_ports_that_are_no_plain_numbers() {
    for authority in [
        "workload:0",
        "workload:01",
        "workload:65536",
        "workload:+1",
        "other:1",
    ] {
        let mut block = b"\0\x07:method\x07CONNECT\0\x0a:authority".to_vec();
        block.push(authority.len() as u8);
        block.extend_from_slice(authority.as_bytes());
        block.extend_from_slice(b"\0\x12x-meshfast-carries\x03tcp");
        assert_eq!(
            refused(&frame(1, 4, 1, &block)),
            "mux.headers",
            "{authority}"
        );
    }
}

#[test]
fn never_panics_on_noise() {
    use proptest::prelude::*;
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..400), step in 1usize..50)| {
        let mut server = End::new(Role::Server);
        let mut client = End::new(Role::Client);
        let start = std::mem::take(&mut client.out);
        server.feed(&start).unwrap();
        let _ = bytes.chunks(step).try_for_each(|piece| server.feed(piece));
    });
}
