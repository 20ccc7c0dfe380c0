//! Two ends of a `meshfast/1` connection in one test: what one sends is fed to the other whole, and
//! again one byte at a time.

use meshfast_wire::frame::{ErrorCode, STREAM_ID_MAX};
use meshfast_wire::mux::{
    CONNECTION_WINDOW_BYTES, Carries, Connection, Event, LIMITS, Role, STREAM_WINDOW_BYTES,
    STREAMS_MAX,
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
fn what_comes_behind_a_stream_that_is_reset_at_its_last_bytes_is_not_held_up() {
    let mut pair = Pair::new(usize::MAX);
    let (first, second) = (pair.open(1, Carries::Tcp), pair.open(2, Carries::Tcp));
    pair.exchange();
    let Pair { client, server, .. } = &mut pair;
    client.connection.send(first, b"last", &mut client.out);
    client.connection.send(second, b"next", &mut client.out);
    let mut bytes = std::mem::take(&mut client.out);
    // END_STREAM on the first DATA frame, which `send` leaves to `end`.
    bytes[4] = 1;
    let mut at = 0;
    let mut next = |connection: &mut Connection, out: &mut Vec<u8>| loop {
        let (used, event) = connection.receive(&bytes[at..], out).unwrap();
        at += used;
        match event {
            Some(Event::Data(stream, _)) => return Some(stream),
            None if used == 0 => return None,
            _ => {}
        }
    };
    assert_eq!(next(&mut server.connection, &mut server.out), Some(first));
    server
        .connection
        .reset(first, ErrorCode::Cancel, &mut server.out);
    assert_eq!(next(&mut server.connection, &mut server.out), Some(second));
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
        ("padded data", frame(0, 8, 1, b"\0x"), "mux.stream"),
        (
            "a stream opened twice",
            [frame(1, 4, 1, OPENING), frame(1, 4, 1, OPENING)].concat(),
            "mux.stream",
        ),
    ] {
        assert_eq!(refused(&bytes), detail, "{what}");
    }
}

/// A server end that has heard a client's start, with nothing spent.
fn fresh_server() -> End {
    let mut server = End::new(Role::Server);
    let start = std::mem::take(&mut End::new(Role::Client).out);
    server.feed(&start).unwrap();
    server.connection.at(60_000);
    server.out.clear();
    server
}

fn opening(stream: u32) -> Vec<u8> {
    frame(1, 4, stream, OPENING)
}

fn reset_of(stream: u32) -> Vec<u8> {
    frame(3, 0, stream, &8u32.to_be_bytes())
}

/// That a refusal has this label and is answered with ENHANCE_YOUR_CALM.
fn assert_calms(outcome: Result<(), meshfast_wire::Error>, detail: &str, what: &str) {
    let error = outcome.expect_err(what);
    assert_eq!(error.detail(), detail, "{what}");
    assert_eq!(ErrorCode::of(&error), ErrorCode::EnhanceYourCalm, "{what}");
}

#[test]
fn a_flood_of_frames_that_carry_nothing_ends_the_connection() {
    for (what, flood) in [
        ("PING", frame(6, 0, 0, &[7; 8])),
        ("answers to no PING", frame(6, 1, 0, &[7; 8])),
        ("SETTINGS", frame(4, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ("empty SETTINGS", frame(4, 0, 0, &[])),
        ("answers to no SETTINGS", frame(4, 1, 0, &[])),
        ("PRIORITY", frame(2, 0, 1, &[0; 5])),
        ("WINDOW_UPDATE", frame(8, 0, 0, &1u32.to_be_bytes())),
        ("GOAWAY", frame(7, 0, 0, &[0; 8])),
        ("an unknown type", frame(250, 0, 0, &[])),
        ("RST_STREAM of a stream that is over", reset_of(1)),
    ] {
        let mut server = fresh_server();
        server.feed(&[opening(1), reset_of(1)].concat()).unwrap();
        server.connection.at(120_000);
        for _ in 0..LIMITS.idle_frames {
            server.feed(&flood).expect(what);
        }
        assert_calms(server.feed(&flood), "mux.frame_flood", what);
        let answers_max = LIMITS.idle_frames as usize * (9 + 8);
        assert!(server.out.len() <= answers_max, "{what}");
    }
}

#[test]
fn a_flood_of_refused_openings_ends_the_connection() {
    let mut server = fresh_server();
    let code = ErrorCode::NoError;
    server.connection.go_away(code, &mut server.out);
    for count in 0..LIMITS.idle_frames {
        server.feed(&opening(2 * count + 1)).unwrap();
    }
    let outcome = server.feed(&opening(2 * LIMITS.idle_frames + 1));
    assert_calms(outcome, "mux.frame_flood", "refused openings");
    assert!(server.seen.is_empty(), "none of them came through");
}

#[test]
fn a_flood_of_answers_ends_the_connection() {
    let mut pair = Pair::new(usize::MAX);
    let stream = pair.open(1, Carries::Tcp);
    let answer = frame(1, 4, stream, b"\0\x07:status\x03200");
    let outcome = (0..=LIMITS.idle_frames).try_for_each(|_| pair.client.feed(&answer));
    assert_calms(outcome, "mux.frame_flood", "answers");
}

#[test]
fn time_gives_back_what_pings_have_cost() {
    let mut server = fresh_server();
    let ping = frame(6, 0, 0, &[7; 8]);
    for second in 0..200 {
        server.connection.at(60_000 + second * 1_000);
        for _ in 0..LIMITS.idle_frames_per_second {
            server.feed(&ping).unwrap();
        }
    }
    let outcome = (0..=LIMITS.idle_frames).try_for_each(|_| server.feed(&ping));
    assert_calms(outcome, "mux.frame_flood", "no more than that");
}

#[test]
fn what_carries_something_never_uses_the_budget_up() {
    // No time passes.
    let mut pair = Pair::new(usize::MAX);
    for _ in 0..3 * LIMITS.idle_frames {
        let stream = pair.open(1, Carries::Http1);
        pair.exchange();
        pair.server
            .connection
            .send(stream, b"answer", &mut pair.server.out);
        pair.exchange();
        let code = ErrorCode::Cancel;
        let client = &mut pair.client;
        client.connection.reset(stream, code, &mut client.out);
        pair.exchange();
    }
    let stream = pair.open(1, Carries::Tcp);
    for _ in 0..3 * LIMITS.idle_frames {
        let sent = pair.client.connection.send(
            stream,
            &[7; STREAM_WINDOW_BYTES as usize],
            &mut pair.client.out,
        );
        assert_eq!(sent, STREAM_WINDOW_BYTES as usize);
        pair.exchange();
        pair.server.seen.clear();
        let server = &mut pair.server;
        server.connection.consumed(stream, sent, &mut server.out);
        pair.exchange();
    }
}

#[test]
fn streams_reset_as_soon_as_opened_end_the_connection() {
    let mut server = fresh_server();
    let outcome = (0..LIMITS.judged_streams).try_for_each(|count| {
        let stream = 2 * count + 1;
        server.feed(&[opening(stream), reset_of(stream)].concat())
    });
    assert_calms(outcome, "mux.reset_flood", "within 500 streams");
    let opened = server.seen.iter();
    let opened = opened.filter(|seen| matches!(seen, Seen::Opened(..)));
    assert_eq!(opened.count(), LIMITS.young_resets as usize + 1);
}

#[test]
fn as_many_resets_as_ends_are_taken_and_one_more_is_not() {
    let mut server = fresh_server();
    let mut stream = 1;
    let mut next = |server: &mut End, ends: bool| {
        let opened = opening(stream);
        let last = if ends {
            frame(0, 1, stream, b"x")
        } else {
            reset_of(stream)
        };
        server.feed(&[opened, last].concat())?;
        server.connection.end(stream, &mut server.out);
        stream += 2;
        Ok(())
    };
    for _ in 0..4 * LIMITS.judged_streams {
        next(&mut server, false).unwrap();
        next(&mut server, true).unwrap();
    }
    let outcome = (0..=LIMITS.young_resets).try_for_each(|_| next(&mut server, false));
    assert_calms(outcome, "mux.reset_flood", "only resets");
}

#[test]
fn streams_that_were_answered_or_lived_a_while_may_be_reset() {
    for is_answered in [true, false] {
        let mut server = fresh_server();
        for count in 0..2 * LIMITS.judged_streams {
            let stream = 2 * count + 1;
            server.feed(&opening(stream)).unwrap();
            if is_answered {
                server.connection.accept(stream, &mut server.out);
            } else {
                let opened_ms = 60_000 + u64::from(count) * LIMITS.young_ms;
                server.connection.at(opened_ms + LIMITS.young_ms);
            }
            server.feed(&reset_of(stream)).unwrap();
        }
    }
}

#[test]
fn empty_data_twice_in_a_row_ends_the_connection() {
    let mut server = fresh_server();
    let empty = frame(0, 0, 1, b"");
    server.feed(&opening(1)).unwrap();
    for _ in 0..10 {
        server.feed(&empty).unwrap();
        server.feed(&frame(0, 0, 1, b"x")).unwrap();
    }
    server.feed(&empty).unwrap();
    assert_calms(server.feed(&empty), "mux.empty_flood", "two in a row");
}

#[test]
fn settings_of_many_entries_end_the_connection() {
    let entries = |count: usize| frame(4, 0, 0, &[0, 9, 0, 0, 0, 1].repeat(count));
    let mut server = fresh_server();
    server.feed(&entries(LIMITS.settings_entries)).unwrap();
    let outcome = server.feed(&entries(LIMITS.settings_entries + 1));
    assert_calms(outcome, "mux.settings_flood", "one entry more");
}

#[test]
fn small_data_frames_are_held_by_the_credit_alone() {
    let mut server = fresh_server();
    server.feed(&opening(1)).unwrap();
    let frames = frame(0, 0, 1, b"x").repeat(STREAM_WINDOW_BYTES as usize);
    server.feed(&frames).unwrap();
    let error = server.feed(&frame(0, 0, 1, b"x")).unwrap_err();
    assert_eq!(error.detail(), "mux.flow_control");
    assert!(server.out.is_empty(), "they are not answered");
}

#[test]
fn a_ping_is_answered_with_its_own_bytes() {
    let mut server = fresh_server();
    server.feed(&frame(6, 0, 0, b"01234567")).unwrap();
    assert_eq!(server.out, frame(6, 1, 0, b"01234567"));
    server.out.clear();
    server.feed(&frame(6, 1, 0, b"01234567")).unwrap();
    assert!(server.out.is_empty(), "an answer is not answered");
}

#[test]
fn who_leaves_takes_what_was_on_its_way_and_refuses_what_comes_after() {
    both_ways(|pair| {
        let early = pair.open(1, Carries::Http1);
        pair.exchange();
        pair.server.connection.leave(&mut pair.server.out);
        assert!(!pair.server.connection.has_left());
        let on_its_way = pair.open(1, Carries::Http1);
        pair.exchange();
        assert!(pair.server.connection.has_left());
        assert!(!pair.client.connection.may_open());
        let heard: Vec<&Seen> = pair.client.seen.iter().collect();
        let last = Seen::GoAway(on_its_way);
        assert_eq!(heard, [&Seen::GoAway(STREAM_ID_MAX), &last]);
        for stream in [early, on_its_way] {
            let opened = Seen::Opened(stream, 1, Carries::Http1);
            assert!(pair.server.seen.contains(&opened));
        }
        let late = opening(on_its_way + 2);
        pair.server.feed(&late).unwrap();
        assert_eq!(pair.server.seen.len(), 2, "the late one is refused");
        assert_eq!(pair.server.out, frame(3, 0, on_its_way + 2, &[0, 0, 0, 7]));
    });
}

#[test]
fn an_answer_to_another_ping_does_not_end_the_leaving() {
    let mut server = fresh_server();
    server.connection.leave(&mut server.out);
    server.feed(&frame(6, 1, 0, b"01234567")).unwrap();
    assert!(!server.connection.has_left());
    let said = server.out.len();
    server.connection.leave(&mut server.out);
    assert_eq!(server.out.len(), said, "said once");
}

#[test]
fn streams_above_the_limit_are_refused() {
    let mut server = fresh_server();
    let last = 2 * STREAMS_MAX as u32 + 1;
    for stream in (1..last).step_by(2) {
        server.feed(&opening(stream)).unwrap();
    }
    assert!(server.out.is_empty());
    server.feed(&opening(last)).unwrap();
    assert_eq!(server.out, frame(3, 0, last, &[0, 0, 0, 7]));
    assert_eq!(server.connection.open_streams(), STREAMS_MAX);
}

#[test]
fn frames_behind_a_reset_are_ignored_and_their_credit_comes_back() {
    let mut server = fresh_server();
    server.feed(&[opening(1), reset_of(1)].concat()).unwrap();
    server.seen.clear();
    let credit = (CONNECTION_WINDOW_BYTES + 65_535) as usize;
    for _ in 0..2 * credit / 16_384 {
        server.feed(&frame(0, 0, 1, &[7; 16_384])).unwrap();
    }
    assert!(server.seen.is_empty());
    assert!(
        !server.out.is_empty(),
        "the connection's credit was renewed"
    );
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
