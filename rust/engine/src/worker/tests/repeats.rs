//! What of a request reaches an application behind a leg, or behind a reused connection, counted there.
//! The bar: a request is handed to the application at most once and once more for each attempt of its
//! route, one that is not idempotent once, and what nobody has seen is never the caller's loss.

use super::legs::{ANSWER, INBOUND, LIFE, Mesh, PAYMENT, hand_over};
use super::tries::{ALWAYS, Application, BODY, OK, UNAVAILABLE, answer, bench_of, request, status};
use super::*;
use crate::tries::{Ending, KEPT_BYTES_OF_WORKER_MAX};
use std::sync::{Arc, Mutex};

/// What an application closes its connection at, after it has read it whole.
#[derive(Clone, Copy, PartialEq)]
enum Fickle {
    /// The second request of each connection, as a server whose patience ends.
    Second,
    /// Every request but for `/warm`.
    Every,
}

/// The application's address, and the requests that it read: which of its connection, and the line.
fn fickle(closes_at: Fickle) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let read = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&read);
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (connection, notes) = (connection.unwrap(), Arc::clone(&notes));
            std::thread::spawn(move || serve(connection, closes_at, &notes));
        }
    });
    (address, read)
}

fn serve(mut connection: TcpStream, closes_at: Fickle, notes: &Mutex<Vec<String>>) {
    for turn in 1.. {
        let mut text = Vec::new();
        while !is_whole(&text) {
            let mut buffer = [0; 4096];
            match connection.read(&mut buffer) {
                Ok(count) if count > 0 => text.extend_from_slice(&buffer[..count]),
                _ => return,
            }
        }
        let text = String::from_utf8(text).unwrap();
        let line = text.split("\r\n").next().unwrap();
        let closes = match closes_at {
            Fickle::Every => !line.contains("/warm"),
            Fickle::Second => turn == 2,
        };
        notes.lock().unwrap().push(format!("{turn} {line}"));
        if closes {
            return;
        }
        connection.write_all(ANSWER).unwrap();
    }
}

fn is_whole(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let head = head.to_lowercase();
    let length = head.split("content-length: ").nth(1);
    let length = length.map_or("0", |rest| rest.split("\r\n").next().unwrap());
    length.parse() == Ok(body.len())
}

fn of_a(read: &Mutex<Vec<String>>) -> Vec<String> {
    let read = read.lock().unwrap();
    let all = read.iter().filter(|it| it.contains(" /a ")).cloned();
    all.collect()
}

fn policy(attempts: u32, on: &str) -> String {
    format!(r#""retry":{{"attempts":{attempts},"on":[{on}],"backoff_ms":1,"avoid_tried":true}}"#)
}

const WARM: &[u8] = b"GET /warm HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

impl Mesh {
    fn ask(&mut self, sent: &[u8]) -> String {
        let client = TcpStream::connect(self.near.address).unwrap();
        answer(client, sent, || self.step())
    }

    /// The one line of the caller's log.
    fn near_line(&mut self) -> serde_json::Value {
        self.near.line()
    }

    fn far_lines(&mut self) -> Vec<serde_json::Value> {
        lines(&self.far)
    }
}

fn lines(bench: &Bench) -> Vec<serde_json::Value> {
    let log = String::from_utf8(bench.memory.drain_access_log(100_000)).unwrap();
    let lines = log.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

#[test]
fn the_application_gets_a_request_once_and_once_more_for_each_attempt() {
    for attempts in [0, 1, 3] {
        for (method, expected) in [("GET", 1 + attempts), ("PUT", 1 + attempts), ("POST", 1)] {
            let (address, read) = fickle(Fickle::Every);
            let mut mesh = Mesh::new(address, PAYMENT);
            mesh.retry(&policy(attempts, r#""reset","5xx""#));
            assert_eq!(status(&mesh.ask(WARM)), "200");
            mesh.near.line();
            let answer = mesh.ask(&request(method, BODY));
            let read = of_a(&read);
            let what = format!("{method}, {attempts}: {answer} after {read:?}");
            assert_eq!(status(&answer), "503", "{what}");
            assert_eq!(read.len(), expected as usize, "{what}");
            // A method that is not safe has a connection of its own, unless one was used just now.
            assert!(method != "GET" || read[0].starts_with("2 "), "{what}");
            let is_used_up = attempts > 0 && method != "POST";
            let flags = if is_used_up { "UC,URX" } else { "UC" };
            let line = mesh.near_line();
            assert_eq!(line["response_flags"], flags, "{what}");
            let detail = "upstream_reset_before_response_started{connection_termination}";
            assert_eq!(line["response_code_details"], detail);
            mesh.near.assert_quiet();
            for line in mesh.far_lines().iter().skip(1) {
                assert_eq!(line["response_flags"], "UC");
                assert_eq!(line["response_code"], 503);
            }
        }
    }
}

#[test]
fn a_stale_connection_behind_a_leg_costs_a_get_one_attempt_and_no_answer() {
    let default = "\"retry\":null".to_owned();
    for (policy, expected) in [
        (default.clone(), "200"),
        (policy(1, ""), "200"),
        (policy(0, r#""reset""#), "503"),
    ] {
        for method in ["GET", "POST"] {
            let (address, read) = fickle(Fickle::Second);
            let mut mesh = Mesh::new(address, PAYMENT);
            mesh.retry(&policy);
            // Two connections of the callee's proxy grow old together.
            let clients = [0, 1].map(|_| {
                let mut client = TcpStream::connect(mesh.near.address).unwrap();
                client.write_all(WARM).unwrap();
                client
            });
            mesh.until("both are answered", |near, far| {
                let is_over = near.exchanges.is_empty() && far.exchanges.is_empty();
                is_over && far.upstreams.len() == 2
            });
            drop(clients);
            lines(&mesh.near);
            let answer = mesh.ask(&request(method, BODY));
            let read = of_a(&read);
            let what = format!("{method}, {policy}: {answer} after {read:?}");
            if method == "POST" {
                assert_eq!((status(&answer), read.len()), ("503", 1), "{what}");
            } else {
                assert_eq!(status(&answer), expected, "{what}");
                assert_eq!(read.len(), if expected == "200" { 2 } else { 1 }, "{what}");
            }
        }
    }
}

#[test]
fn a_reused_connection_that_ends_at_work_is_repeated_within_attempts_and_budget() {
    let any = r#""connect-failure""#;
    for (attempts, in_further_tries, method, expected, flags) in [
        (0, 0, "GET", 1, "UC"),
        (1, 0, "GET", 2, "UC"),
        (5, 0, "GET", 2, "UC"),
        (5, 0, "PUT", 2, "UC"),
        (5, 0, "POST", 1, "UC"),
        (5, 3, "GET", 1, "UC,UO"),
    ] {
        let (address, read) = fickle(Fickle::Every);
        let place = Application {
            address,
            read: Arc::default(),
        };
        let mut bench = bench_of(&policy(attempts, any), &[&place]);
        bench.ask(WARM);
        bench.line();
        for _ in 0..in_further_tries {
            bench.worker.share.endpoints.retry_started(5);
        }
        let upstreams: Vec<usize> = bench.worker.upstreams.iter().map(|(id, _)| id).collect();
        for id in upstreams {
            let upstream = &mut bench.worker.upstreams[id];
            upstream.idle_since_ms = bench.worker.clock.now_ms();
        }
        let answer = bench.ask(&request(method, BODY));
        let read = of_a(&read);
        let what = format!("{method}, {attempts}: {answer} after {read:?}");
        assert_eq!(status(&answer), "503", "{what}");
        assert!(read[0].starts_with("2 "), "{what}");
        assert_eq!(read.len(), expected, "{what}");
        assert_eq!(bench.flags(), flags, "{what}");
        let retrying = bench.worker.share.endpoints.retrying(5);
        assert_eq!(retrying, in_further_tries);
    }
}

/// An address of its own, where nobody listens until a test does: others have 127.0.0.1.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.77:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

#[test]
fn an_application_that_takes_no_connection_is_a_connect_that_failed() {
    for (attempts, flags, calls) in [(0, "UF", 1), (2, "UF,URX", 3)] {
        let mut mesh = Mesh::new(nobody(), PAYMENT);
        mesh.retry(&policy(attempts, r#""connect-failure""#));
        let answer = mesh.ask(&request("POST", BODY));
        assert_eq!(status(&answer), "503", "{answer}");
        let line = mesh.near_line();
        assert_eq!(line["response_flags"], flags);
        let detail = "upstream_reset_before_response_started{connection_failure}";
        assert_eq!(line["response_code_details"], detail);
        let lines = mesh.far_lines();
        assert_eq!(lines.len(), calls, "the callee's proxy repeats nothing");
        assert!(lines.iter().all(|it| it["response_flags"] == "UF"));
        mesh.near.assert_quiet();
        assert_eq!(mesh.near.worker.kept_bytes, 0);
    }
}

#[test]
fn a_post_waits_with_its_body_for_an_application_that_starts() {
    let address = nobody();
    let mut mesh = Mesh::new(address, PAYMENT);
    mesh.retry("\"retry\":null");
    let client = TcpStream::connect(mesh.near.address).unwrap();
    let mut application = None;
    let answer = answer(client, &request("POST", BODY), || {
        mesh.step();
        let mut exchanges = mesh.near.worker.exchanges.iter();
        if application.is_none() && exchanges.any(|(_, it)| it.tried.contains(&5)) {
            application = Some(Application::at(address, &[OK]));
        }
    });
    assert_eq!(status(&answer), "200", "{answer}");
    let read = application.unwrap().read();
    assert_eq!(read.len(), 1);
    assert!(read[0].ends_with(BODY), "{read:?}");
}

/// A mesh whose callee has nobody behind it, and a second endpoint of the service, which has.
fn with_a_second_endpoint(application: SocketAddr) -> (Mesh, Bench) {
    let port = application.port();
    let mut mesh = Mesh::new(SocketAddr::from(([127, 0, 0, 77], port)), PAYMENT);
    let inbound = cluster(&format!("inbound|{port}||"), application, "", "null");
    let other = Bench::start(
        TcpListener::bind("127.0.0.1:0").unwrap(),
        &document(INBOUND, &inbound),
        Some(&hand_over(&mesh.authority, PAYMENT, LIFE)),
    );
    let address = other.address.to_string();
    mesh.change_near(|document| {
        let endpoints = &mut document["clusters"][0]["endpoints"];
        let mut second = endpoints[0].clone();
        second["slot"] = 6.into();
        second["address"] = address.clone().into();
        endpoints.as_array_mut().unwrap().push(second);
    });
    (mesh, other)
}

fn ask_both(mesh: &mut Mesh, other: &mut Bench, sent: &[u8]) -> String {
    // Both are asked alike, whoever refused before.
    mesh.near.worker.refusals = Refusals::default();
    let client = TcpStream::connect(mesh.near.address).unwrap();
    answer(client, sent, || {
        mesh.step();
        other.worker.step(&mut other.events, 2).unwrap();
    })
}

#[test]
fn a_post_goes_to_another_endpoint_when_the_application_of_one_takes_no_connection() {
    let application = Application::new(&[OK]);
    let (mut mesh, mut other) = with_a_second_endpoint(application.address);
    let mut asked = 0;
    let mut has_refused = false;
    while asked < 4 || !has_refused {
        let answer = ask_both(&mut mesh, &mut other, &request("POST", BODY));
        asked += 1;
        assert_eq!(status(&answer), "200", "{answer}");
        assert_eq!(mesh.near.flags(), "-");
        assert_eq!(application.read().len(), asked);
        has_refused |= !mesh.far_lines().is_empty();
    }
    assert!(application.read().iter().all(|it| it.ends_with(BODY)));
    mesh.near.assert_quiet();
}

#[test]
fn a_body_that_is_not_kept_goes_to_no_other_endpoint_in_part() {
    let application = Application::new(&[OK]);
    let (mut mesh, mut other) = with_a_second_endpoint(application.address);
    let body = "x".repeat(65_537);
    let (mut refused, mut answered) = (0, 0);
    while refused == 0 || answered == 0 {
        let answer = ask_both(&mut mesh, &mut other, &request("POST", &body));
        let expected = if status(&answer) == "200" {
            answered += 1;
            "-"
        } else {
            assert_eq!(status(&answer), "503", "{answer}");
            refused += 1;
            "UF"
        };
        assert_eq!(mesh.near.flags(), expected);
        let read = application.read();
        assert_eq!(read.len(), answered);
        let whole = format!("\r\n\r\n{body}");
        assert!(read.iter().all(|it| it.ends_with(&whole)));
        assert_eq!(mesh.near.worker.kept_bytes, 0);
    }
}

#[test]
fn a_call_goes_on_when_its_caller_says_goaway() {
    let application = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(application.local_addr().unwrap(), PAYMENT);
    let mut call = mesh.call(&application);
    let (leg_id, _) = mesh.near.worker.legs.iter().next().unwrap();
    mesh.near.worker.legs[leg_id].go_away();
    mesh.near.worker.dirty(Key::Leg(leg_id));
    mesh.until("the callee's proxy knows", |_, far| {
        far.legs.iter().all(|(_, leg)| leg.is_leaving())
    });
    mesh.answer(&mut call);
}

#[test]
fn who_has_begun_to_answer_cannot_refuse() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    for ending in [Ending::Refused, Ending::Unreached, Ending::Stale] {
        for method in ["POST", "GET"] {
            let mut mesh = Mesh::new(origin.local_addr().unwrap(), PAYMENT);
            mesh.retry(&policy(2, r#""connect-failure","refused-stream""#));
            let mut client = TcpStream::connect(mesh.near.address).unwrap();
            client.write_all(&request(method, BODY)).unwrap();
            mesh.until("it is sent", |_, far| {
                far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
            });
            let mut served = origin.accept().unwrap().0;
            let early = b"HTTP/1.1 103 Early Hints\r\n\r\n";
            served.write_all(early).unwrap();
            mesh.until("the answer has begun", |near, _| {
                near.exchanges
                    .iter()
                    .any(|(_, it)| it.interim_responses > 0)
            });
            let (downstream, _) = mesh.far.worker.downstreams.iter().next().unwrap();
            mesh.far.worker.end_stream(downstream, ending);
            mesh.until("it is over", |near, _| near.exchanges.is_empty());
            assert_eq!(mesh.near.flags(), "UC", "{method} {ending:?}");
        }
    }
}

#[test]
fn a_post_above_the_last_stream_of_a_goaway_is_sent_again() {
    let application = Application::new(&[OK]);
    let mut mesh = Mesh::new(application.address, PAYMENT);
    mesh.ask(WARM);
    mesh.near.line();
    let client = TcpStream::connect(mesh.near.address).unwrap();
    let mut is_gone = false;
    let answer = answer(client, &request("POST", BODY), || {
        mesh.near.worker.step(&mut mesh.near.events, 2).unwrap();
        let mut upstreams = mesh.near.worker.upstreams.iter();
        if !is_gone && upstreams.any(|(_, it)| it.is_connected && it.exchange.is_some()) {
            is_gone = true;
            // It has not read what the caller's proxy has sent, and leaves.
            let (leg_id, _) = mesh.far.worker.legs.iter().next().unwrap();
            mesh.far.worker.legs[leg_id].go_away();
            mesh.far.worker.leg_failed(leg_id, "a test");
        }
        if is_gone || mesh.near.worker.exchanges.is_empty() {
            mesh.far.worker.step(&mut mesh.far.events, 2).unwrap();
        }
    });
    assert!(is_gone);
    assert_eq!(status(&answer), "200", "{answer}");
    let posts = application.read();
    let posts = posts.iter().filter(|it| it.starts_with("POST"));
    assert_eq!(posts.count(), 1);
}

#[test]
fn a_goaway_below_a_stream_that_was_taken_repeats_no_post() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mesh = Mesh::new(origin.local_addr().unwrap(), PAYMENT);
    mesh.retry(&policy(2, r#""connect-failure","refused-stream""#));
    let mut client = TcpStream::connect(mesh.near.address).unwrap();
    client.write_all(&request("POST", BODY)).unwrap();
    mesh.until("it is sent", |_, far| {
        far.exchanges.iter().any(|(_, it)| it.sent_us > 0)
    });
    let _served = origin.accept().unwrap();
    let (_, upstream) = mesh.near.worker.upstreams.iter().next().unwrap();
    let (_, stream) = upstream.session.stream.leg().unwrap();
    let (leg_id, _) = mesh.far.worker.legs.iter().next().unwrap();
    let output = mesh.far.worker.legs[leg_id].session.output.tail();
    // HEADERS with `:status: 200`, then a GOAWAY that breaks RFC 9113 6.8: its last stream is 0.
    output.extend_from_slice(&[0, 0, 1, 1, 4]);
    output.extend_from_slice(&stream.to_be_bytes());
    output.extend_from_slice(&[0x88, 0, 0, 8, 7, 0]);
    output.extend_from_slice(&[0; 12]);
    mesh.far.worker.dirty(Key::Leg(leg_id));
    mesh.until("it is over", |near, _| near.exchanges.is_empty());
    let line = mesh.near_line();
    assert_eq!(line["response_flags"], "UC", "{line}");
    origin.set_nonblocking(true).unwrap();
    mesh.settle();
    assert!(origin.accept().is_err(), "the application gets it once");
}

#[test]
fn a_worker_keeps_no_more_of_bodies_than_it_may() {
    for (others, expected) in [
        (0, "200"),
        (KEPT_BYTES_OF_WORKER_MAX - BODY.len() + 1, "503"),
    ] {
        let application = Application::new(&[UNAVAILABLE, OK]);
        let mut bench = bench_of(ALWAYS, &[&application]);
        bench.worker.kept_bytes = others;
        let answer = bench.ask(&request("PUT", BODY));
        assert_eq!(status(&answer), expected, "{answer}");
        assert_eq!(bench.worker.kept_bytes, others, "given back");
    }
    let application = Application::new(&[UNAVAILABLE, OK]);
    let mut bench = bench_of(ALWAYS, &[&application]);
    bench.ask(&request("PUT", &"x".repeat(65_537)));
    assert_eq!(bench.worker.kept_bytes, 0);
}

#[test]
fn the_caller_is_asked_for_its_body_once() {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Application {
        address: origin.local_addr().unwrap(),
        read: Arc::default(),
    };
    let mut bench = bench_of(ALWAYS, &[&place]);
    let serving = std::thread::spawn(move || {
        for last in [UNAVAILABLE, OK] {
            let (mut served, _) = origin.accept().unwrap();
            let mut text = Vec::new();
            let mut read_to = |served: &mut TcpStream, end: &[u8]| {
                while !text.ends_with(end) {
                    let mut byte = [0];
                    served.read_exact(&mut byte).unwrap();
                    text.push(byte[0]);
                }
            };
            read_to(&mut served, b"\r\n\r\n");
            served.write_all(CONTINUE).unwrap();
            read_to(&mut served, BODY.as_bytes());
            served.write_all(last.text().as_bytes()).unwrap();
        }
    });
    let head = format!(
        "PUT /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n\
         Content-Length: {}\r\n\r\n",
        BODY.len()
    );
    let answer = bench.ask(&[head.as_bytes(), BODY.as_bytes()].concat());
    serving.join().unwrap();
    assert_eq!(answer.matches("100 Continue").count(), 1, "{answer}");
    assert!(answer.contains("\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
}
