//! What follows a try that went wrong, told by an application that writes down what it read; faults
//! and edits of heads. The bar (safety F1, F7): no request that is not idempotent is read twice,
//! whenever and however its connection dies.

use super::legs::{Mesh, PAYMENT};
use super::*;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// No step of a test takes this long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every condition there is, so that only the method can forbid another try.
pub(super) const ALWAYS: &str = r#""retry":{"attempts":2,"on":["5xx","gateway-error","reset",
    "reset-before-request","connect-failure","refused-stream","retriable-4xx","cancelled",
    "unavailable"],"statuses":[503],"backoff_ms":1,"avoid_tried":true}"#;

/// What the application does with a connection.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Act {
    /// Closes it when this many bytes of the body were read; None is before anything is read.
    Close(Option<usize>),
    /// Begins a response head when the request is whole, and closes.
    HalfHead,
    /// Answers a whole request, with these lines after the start of the status line.
    Answer(&'static str),
    /// Reads the request and says nothing.
    Silence,
}

pub(super) const OK: Act =
    Act::Answer("200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
pub(super) const UNAVAILABLE: Act =
    Act::Answer("503 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");

/// An application that does with its connections, in turn, what a script says, the last act for ever.
pub(super) struct Application {
    pub(super) address: SocketAddr,
    /// What was read on each connection, in the order of their ends.
    pub(super) read: Arc<Mutex<Vec<String>>>,
}

impl Application {
    pub(super) fn new(script: &'static [Act]) -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), script)
    }

    pub(super) fn at(address: SocketAddr, script: &'static [Act]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let read = Arc::new(Mutex::new(Vec::new()));
        let notes = Arc::clone(&read);
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for turn in 0.. {
                let Ok((connection, _)) = listener.accept() else {
                    return;
                };
                let act = script[script.len().min(turn + 1) - 1];
                held.extend(serve(connection, act, &notes));
            }
        });
        Self { address, read }
    }

    pub(super) fn read(&self) -> Vec<String> {
        self.read.lock().unwrap().clone()
    }
}

impl Act {
    /// The whole answer, of one that answers.
    pub(super) fn text(self) -> String {
        match self {
            Act::Answer(answer) => format!("HTTP/1.1 {answer}"),
            Act::Close(_) | Act::HalfHead | Act::Silence => String::new(),
        }
    }
}

/// Gives back a connection that stays open.
fn serve(mut connection: TcpStream, act: Act, notes: &Mutex<Vec<String>>) -> Option<TcpStream> {
    let wanted = match act {
        Act::Close(None) => return None,
        Act::Close(Some(count)) => count,
        _ => usize::MAX,
    };
    let mut text = Vec::new();
    let body_read = |text: &[u8]| {
        let end = text.windows(4).position(|it| it == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
        let (_, rest) = head.split_once("content-length: ").unwrap_or(("", "0\r\n"));
        let length: usize = rest.split("\r\n").next()?.parse().ok()?;
        Some((text.len() - end, length))
    };
    loop {
        if body_read(&text).is_some_and(|(here, all)| here >= wanted.min(all)) {
            break;
        }
        let mut buffer = [0; 4096];
        // One byte at a time where the rest is to stay unread.
        let room = if wanted == usize::MAX { 4096 } else { 1 };
        match connection.read(&mut buffer[..room]) {
            Ok(count) if count > 0 => text.extend_from_slice(&buffer[..count]),
            _ => break,
        }
    }
    notes.lock().unwrap().push(String::from_utf8(text).unwrap());
    let answer = match act {
        Act::Answer(_) => act.text(),
        Act::HalfHead => "HTTP/1.1 200 O".to_owned(),
        Act::Silence => return Some(connection),
        Act::Close(_) => return None,
    };
    connection.write_all(answer.as_bytes()).unwrap();
    (act != Act::HalfHead).then_some(connection)
}

fn front(handling: &str) -> String {
    FRONT.replace("\"destinations\"", &format!("{handling},\"destinations\""))
}

pub(super) fn bench_of(handling: &str, applications: &[&Application]) -> Bench {
    let addresses = applications.iter().map(|it| it.address.to_string());
    bench_at(handling, &addresses.collect::<Vec<_>>())
}

/// A worker in front of these endpoints, slots from 5 on.
fn bench_at(handling: &str, addresses: &[String]) -> Bench {
    let any = SocketAddr::from(([127, 0, 0, 1], 1));
    let one = cluster("c", any, "", "null");
    let (start, endpoint) = one.split_once("\"endpoints\":[").unwrap();
    let endpoint = endpoint.strip_suffix("]}").unwrap();
    let endpoints = addresses.iter().zip(5..).map(|(address, slot)| {
        endpoint
            .replace(&any.to_string(), address)
            .replace("\"slot\":5", &format!("\"slot\":{slot}"))
    });
    let endpoints: Vec<String> = endpoints.collect();
    let all = format!("{start}\"endpoints\":[{}]}}", endpoints.join(","));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Bench::start(listener, &document(&front(handling), &all), None)
}

/// A request whose answer is the last thing on its connection.
pub(super) fn request(method: &str, body: &str) -> Vec<u8> {
    let length = if method == "GET" {
        String::new()
    } else {
        format!("Content-Length: {}\r\n", body.len())
    };
    let head = format!("{method} /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{length}\r\n");
    let body = if method == "GET" { "" } else { body };
    [head.as_bytes(), body.as_bytes()].concat()
}

/// Steps until the client has the whole answer. It writes within the steps too, as large bodies must.
pub(super) fn answer(client: TcpStream, sent: &[u8], mut step: impl FnMut()) -> String {
    let mut writer = client.try_clone().unwrap();
    let sent = sent.to_vec();
    let writing = std::thread::spawn(move || writer.write_all(&sent));
    let mut reader = client;
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = reader.read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    });
    let started = Instant::now();
    while !reading.is_finished() {
        assert!(started.elapsed() < PATIENCE, "no answer");
        step();
    }
    let _ = writing.join().unwrap();
    reading.join().unwrap()
}

impl Bench {
    pub(super) fn ask(&mut self, sent: &[u8]) -> String {
        let client = TcpStream::connect(self.address).unwrap();
        answer(client, sent, || {
            self.worker.step(&mut self.events, 5).unwrap();
        })
    }

    /// The one line of the access log.
    pub(super) fn line(&mut self) -> serde_json::Value {
        let log = self.memory.drain_access_log(100_000);
        let log = String::from_utf8(log).unwrap();
        assert_eq!(log.lines().count(), 1, "{log}");
        serde_json::from_str(&log).unwrap()
    }

    pub(super) fn flags(&mut self) -> String {
        self.line()["response_flags"].as_str().unwrap().to_owned()
    }

    /// Nothing is counted that is over.
    pub(super) fn assert_quiet(&self) {
        for slot in 5..8 {
            assert_eq!(self.worker.share.endpoints.active(slot), 0);
            assert_eq!(self.worker.share.endpoints.retrying(slot), 0);
        }
    }
}

pub(super) fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("cut")
}

pub(super) const BODY: &str = "0123456789";

#[test]
fn no_post_is_read_twice_whenever_its_connection_dies_and_a_put_is_answered() {
    let moments: [&'static [Act]; 6] = [
        &[Act::Close(None), OK],
        &[Act::Close(Some(0)), OK],
        &[Act::Close(Some(4)), OK],
        &[Act::Close(Some(10)), OK],
        &[Act::HalfHead, OK],
        &[UNAVAILABLE, OK],
    ];
    let methods = ["POST", "PATCH", "PUT", "DELETE", "GET"];
    // Without a body nothing but the method speaks against another try.
    let requests = methods
        .iter()
        .flat_map(|method| [(*method, BODY), (*method, "")]);
    for (script, (method, body)) in moments
        .iter()
        .flat_map(|script| requests.clone().map(move |request| (*script, request)))
    {
        let application = Application::new(script);
        let mut bench = bench_of(ALWAYS, &[&application]);
        let answer = bench.ask(&request(method, body));
        let read = application.read();
        let what = format!("{method} {body:?} {script:?}: {answer} after {read:#?}");
        if matches!(method, "POST" | "PATCH") {
            assert!(read.len() <= 1, "{what}");
            // Whether the end was seen before anything was sent is the kernel's to say; if so, the
            // only one who reads it is the next connection.
            let is_unsent = script[0] == Act::Close(None) && read.len() == 1;
            let expected = if is_unsent { "200" } else { "503" };
            assert_eq!(status(&answer), expected, "{what}");
            assert!(!bench.flags().contains("URX"), "{what}");
        } else {
            assert_eq!(status(&answer), "200", "{what}");
            let expected = if method == "GET" { "" } else { body };
            let last = read.last().unwrap();
            assert!(last.ends_with(&format!("\r\n\r\n{expected}")), "{what}");
            assert_eq!(bench.flags(), "-", "{what}");
        }
        bench.assert_quiet();
    }
}

#[test]
fn a_post_that_reached_nobody_goes_to_the_next_endpoint() {
    // A path that is not there: a port that is free now may be another test's in a moment.
    let gone = format!("unix:/nobody/{}", std::process::id());
    let application = Application::new(&[OK]);
    // Whichever is first.
    let there = application.address.to_string();
    for pair in [[gone.clone(), there.clone()], [there, gone]] {
        let mut bench = bench_at("\"retry\":null", &pair);
        for _ in 0..4 {
            bench.worker.refusals = Refusals::default();
            let answer = bench.ask(&request("POST", BODY));
            assert_eq!(status(&answer), "200", "{answer}");
            assert_eq!(bench.flags(), "-");
        }
        bench.assert_quiet();
    }
    assert_eq!(application.read().len(), 8);
}

#[test]
fn an_answer_that_is_tried_again_goes_elsewhere_and_the_caller_sees_the_last() {
    for script in [&[UNAVAILABLE, OK][..], &[OK, UNAVAILABLE][..]] {
        let (one, other) = match script {
            [UNAVAILABLE, _] => (Application::new(&[UNAVAILABLE]), Application::new(&[OK])),
            _ => (Application::new(&[OK]), Application::new(&[UNAVAILABLE])),
        };
        let mut bench = bench_of(ALWAYS, &[&one, &other]);
        for asked in 1..=6 {
            let answer = bench.ask(&request("GET", ""));
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.ends_with("ok") && !answer.contains("no"), "{answer}");
            let read = one.read().len() + other.read().len();
            assert!(read <= 2 * asked, "nobody is asked twice for one request");
        }
        bench.assert_quiet();
    }
}

#[test]
fn the_last_answer_is_passed_on_when_the_tries_are_used_up() {
    let application = Application::new(&[UNAVAILABLE]);
    let mut bench = bench_of(ALWAYS, &[&application]);
    let answer = bench.ask(&request("GET", ""));
    assert!(answer.starts_with("HTTP/1.1 503 No\r\n"), "{answer}");
    assert_eq!(application.read().len(), 3, "one try and two more");
    let line = bench.line();
    assert_eq!(line["response_flags"], "URX");
    assert_eq!(line["response_code_details"], "via_upstream");
    assert_eq!(line["response_code"], 503);
    bench.assert_quiet();
}

#[test]
fn a_connection_that_breaks_off_each_time_ends_with_both_flags() {
    let application = Application::new(&[Act::Close(Some(0))]);
    let mut bench = bench_of(ALWAYS, &[&application]);
    let answer = bench.ask(&request("GET", ""));
    assert_eq!(status(&answer), "503", "{answer}");
    assert!(answer.contains("flags UC,URX"), "{answer}");
    assert_eq!(application.read().len(), 3);
    assert_eq!(bench.flags(), "UC,URX");
}

#[test]
fn the_default_takes_an_answer_as_it_is_and_no_attempts_are_none() {
    let none = r#""retry":{"attempts":0,"on":["5xx","reset"],"backoff_ms":1,"avoid_tried":true}"#;
    for (handling, act) in [
        ("\"retry\":null", UNAVAILABLE),
        ("\"retry\":null", Act::Close(Some(0))),
        (none, UNAVAILABLE),
        (none, Act::Close(Some(0))),
    ] {
        let application = match act {
            UNAVAILABLE => Application::new(&[UNAVAILABLE]),
            _ => Application::new(&[Act::Close(Some(0))]),
        };
        let mut bench = bench_of(handling, &[&application]);
        let answer = bench.ask(&request("GET", ""));
        assert_eq!(status(&answer), "503", "{answer}");
        assert_eq!(application.read().len(), 1, "{handling} {act:?}");
        let expected = if act == UNAVAILABLE { "-" } else { "UC" };
        assert_eq!(bench.flags(), expected);
    }
}

#[test]
fn a_grpc_status_in_the_head_is_read_of_callers_that_speak_grpc() {
    const FAILED: Act = Act::Answer("200 OK\r\ngrpc-status: 14\r\nContent-Length: 2\r\n\r\nno");
    for (content_type, tries) in [
        ("application/grpc", 2),
        ("application/grpc+proto", 2),
        ("a/b", 1),
    ] {
        let application = Application::new(&[FAILED, OK]);
        let mut bench = bench_of("\"retry\":null", &[&application]);
        let head = format!(
            "PUT /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: {content_type}\r\n\
             Content-Length: 1\r\n\r\nx"
        );
        let answer = bench.ask(head.as_bytes());
        assert_eq!(application.read().len(), tries, "{content_type}: {answer}");
    }
}

#[test]
fn each_try_has_its_time_and_the_route_has_one_for_all() {
    let per_try = r#""retry":{"attempts":1,"per_try_timeout_ms":40,"on":["reset"],"backoff_ms":1,
        "avoid_tried":true}"#;
    let application = Application::new(&[Act::Silence]);
    let mut bench = bench_of(per_try, &[&application]);
    let answer = bench.ask(&request("GET", ""));
    assert_eq!(status(&answer), "504", "{answer}");
    assert_eq!(application.read().len(), 2);
    let line = bench.line();
    assert_eq!(line["response_flags"], "UT,URX");
    assert_eq!(line["response_code_details"], "upstream_per_try_timeout");

    let slow = Application::new(&[Act::Silence, OK]);
    let mut bench = bench_of(per_try, &[&slow]);
    assert_eq!(status(&bench.ask(&request("GET", ""))), "200");
    assert_eq!(status(&bench.ask(&request("POST", BODY))), "200");

    let post = Application::new(&[Act::Silence, OK]);
    let mut bench = bench_of(per_try, &[&post]);
    assert_eq!(status(&bench.ask(&request("POST", BODY))), "504");
    assert_eq!(post.read().len(), 1, "it may have been read");
    assert_eq!(bench.flags(), "UT");

    let all = r#""timeout_ms":120,"retry":{"attempts":100,"on":["reset"],"backoff_ms":10,
        "avoid_tried":true}"#;
    let application = Application::new(&[Act::Close(Some(0))]);
    let mut bench = bench_of(all, &[&application]);
    let started = Instant::now();
    let answer = bench.ask(&request("GET", ""));
    assert_eq!(status(&answer), "504", "{answer}");
    assert!(started.elapsed() >= Duration::from_millis(120));
    assert!(application.read().len() < 100);
    assert_eq!(bench.flags(), "UT");
    bench.assert_quiet();
}

#[test]
fn a_body_of_64_kib_is_sent_again_and_a_longer_one_is_not() {
    for (length, is_sent_again) in [(65_536, true), (65_537, false)] {
        let application = Application::new(&[UNAVAILABLE, OK]);
        let mut bench = bench_of(ALWAYS, &[&application]);
        let body = "x".repeat(length);
        let answer = bench.ask(&request("PUT", &body));
        let expected = if is_sent_again { "200" } else { "503" };
        assert_eq!(status(&answer), expected, "{length}");
        let read = application.read();
        assert_eq!(read.len(), 1 + usize::from(is_sent_again));
        assert!(read.iter().all(|it| it.ends_with(&body)));
    }
}

#[test]
fn a_chunked_body_is_sent_again_with_its_framing_and_its_end() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Application {
        address: listener.local_addr().unwrap(),
        read: Arc::default(),
    };
    let mut bench = bench_of(ALWAYS, &[&place]);
    let mut client = TcpStream::connect(bench.address).unwrap();
    let head = b"PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.write_all(head).unwrap();
    let read_all = |bench: &mut Bench, served: &mut TcpStream| {
        served.set_nonblocking(true).unwrap();
        let mut text = Vec::new();
        for _ in 0..400 {
            bench.worker.step(&mut bench.events, 5).unwrap();
            let mut buffer = [0; 4096];
            if let Ok(count) = served.read(&mut buffer) {
                text.extend_from_slice(&buffer[..count]);
            }
            if text.ends_with(b"0\r\n\r\n") {
                break;
            }
        }
        let text = String::from_utf8(text).unwrap();
        text.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    bench.until("the head is sent", |worker| !worker.upstreams.is_empty());
    let (mut first, _) = listener.accept().unwrap();
    client.write_all(b"3\r\nabc\r\n").unwrap();
    bench.until("a part has moved", |worker| {
        let mut all = worker.exchanges.iter();
        all.all(|(_, it)| it.requesting.payload_bytes == 3)
    });
    client.write_all(b"2\r\nde\r\n0\r\n\r\n").unwrap();
    let body = read_all(&mut bench, &mut first);
    first
        .write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n")
        .unwrap();
    bench.until("it is tried again", |worker| {
        let mut all = worker.exchanges.iter();
        all.all(|(_, it)| it.tries == 2 && it.stage == crate::exchange::Stage::AwaitingHead)
    });
    let (mut second, _) = listener.accept().unwrap();
    assert_eq!(read_all(&mut bench, &mut second), body);
    assert_eq!(body, "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
}

#[test]
fn a_body_that_still_comes_is_not_sent_again() {
    let application = Application::new(&[Act::Close(Some(0)), OK]);
    let mut bench = bench_of(ALWAYS, &[&application]);
    let mut client = TcpStream::connect(bench.address).unwrap();
    client
        .write_all(b"PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n01234")
        .unwrap();
    bench.until("it has failed", |worker| {
        worker.exchanges.is_empty() && worker.downstreams.iter().any(|(_, it)| it.is_closing)
    });
    assert_eq!(application.read().len(), 1);
    assert_eq!(bench.flags(), "UC");
}

#[test]
fn no_more_than_three_are_in_a_further_try_when_few_are_active() {
    let wait = r#""retry":{"attempts":5,"on":["reset"],"backoff_ms":1000000000000,
        "avoid_tried":true}"#;
    let application = Application::new(&[Act::Close(Some(0))]);
    let mut bench = bench_of(wait, &[&application]);
    let mut waiting = Vec::new();
    for count in 1..=3 {
        let mut client = TcpStream::connect(bench.address).unwrap();
        client.write_all(&request("GET", "")).unwrap();
        waiting.push(client);
        bench.until("it waits for its next try", |worker| {
            let all = worker.exchanges.iter();
            let waits = all.filter(|(_, it)| it.stage == crate::exchange::Stage::Waiting);
            waits.count() == count
        });
        assert_eq!(bench.worker.share.endpoints.retrying(5), count as u32);
    }
    let answer = bench.ask(&request("GET", ""));
    assert!(answer.contains("flags UC,UO"), "{answer}");
    let callers: Vec<usize> = bench.worker.downstreams.iter().map(|(id, _)| id).collect();
    for caller in callers {
        bench.worker.downstream_gone(caller);
    }
    bench.assert_quiet();
}

#[test]
fn the_destination_is_chosen_once_for_all_tries() {
    let (one, other) = (
        Application::new(&[UNAVAILABLE]),
        Application::new(&[UNAVAILABLE]),
    );
    let both = FRONT.replace(
        r#""destinations":[{"cluster":"c","weight":1}]"#,
        &format!(
            r#"{ALWAYS},"destinations":[{{"cluster":"c","weight":1}},{{"cluster":"d","weight":1}}]"#
        ),
    );
    let clusters = format!(
        "{},{}",
        cluster("c", one.address, "", "null"),
        cluster("d", other.address, "", "null").replace("\"slot\":5", "\"slot\":6")
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::start(listener, &document(&both, &clusters), None);
    for asked in 1..=12 {
        bench.ask(&request("GET", ""));
        let (here, there) = (one.read().len(), other.read().len());
        assert_eq!(here + there, 3 * asked);
        assert!(
            here % 3 == 0,
            "the tries of a request stay together: {here} and {there}"
        );
    }
}

/// A mesh whose caller tries again whatever may be tried again.
fn mesh_of(application: &Application) -> Mesh {
    let mut mesh = Mesh::new(application.address, PAYMENT);
    mesh.retry(ALWAYS);
    mesh
}

impl Mesh {
    /// Gives the caller's route a retry policy, written as a member of the document.
    pub(super) fn retry(&mut self, policy: &str) {
        let policy: serde_json::Value = serde_json::from_str(&format!("{{{policy}}}")).unwrap();
        self.change_near(|document| {
            let route = &mut document["listeners"][0]["virtual_hosts"][0]["routes"][0];
            route["retry"] = policy["retry"].clone();
        });
    }

    /// Applies a changed document at the caller's.
    pub(super) fn change_near(&mut self, change: impl Fn(&mut serde_json::Value)) {
        let worker = &mut self.near.worker;
        let document = worker.generation.snapshot.to_document();
        let mut document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        change(&mut document);
        let generation = worker.generation.number() + 1;
        document["generation"] = generation.into();
        let snapshot = Snapshot::from_document(document.to_string().as_bytes()).unwrap();
        worker.apply(Generation::new(snapshot), generation);
    }

    pub(super) fn step(&mut self) {
        self.near.worker.step(&mut self.near.events, 2).unwrap();
        self.far.worker.step(&mut self.far.events, 2).unwrap();
    }
}

#[test]
fn a_post_on_a_refused_stream_is_sent_again_with_its_body_and_read_once() {
    let application = Application::new(&[OK]);
    let mut mesh = mesh_of(&application);
    // It refuses, and its callers do not know yet.
    mesh.far.worker.inbound = Inbound::Left;
    let client = TcpStream::connect(mesh.near.address).unwrap();
    let answer = answer(client, &request("POST", BODY), || {
        mesh.step();
        let mut exchanges = mesh.near.worker.exchanges.iter();
        if exchanges.any(|(_, it)| it.tries > 1) {
            mesh.far.worker.inbound = Inbound::Open;
        }
    });
    assert_eq!(status(&answer), "200", "{answer}");
    let read = application.read();
    assert_eq!(read.len(), 1, "{read:?}");
    assert!(read[0].ends_with(&format!("\r\n\r\n{BODY}")), "{read:?}");
    assert_eq!(mesh.near.flags(), "-");
    mesh.near.assert_quiet();
}

#[test]
fn a_post_whose_stream_is_refused_each_time_ends_with_both_flags() {
    let application = Application::new(&[OK]);
    let mut mesh = mesh_of(&application);
    mesh.far.worker.inbound = Inbound::Left;
    let client = TcpStream::connect(mesh.near.address).unwrap();
    let answer = answer(client, &request("POST", BODY), || mesh.step());
    assert_eq!(status(&answer), "503", "{answer}");
    assert_eq!(mesh.near.flags(), "UR,URX");
    assert!(application.read().is_empty());
    mesh.near.assert_quiet();
}

#[test]
fn a_post_under_way_on_a_leg_is_read_once_whatever_becomes_of_the_leg() {
    for fate in [
        "leg closes",
        "leg leaves",
        "stream is reset",
        "application dies",
    ] {
        let script: &'static [Act] = match fate {
            "leg leaves" => &[OK],
            "application dies" => &[Act::Close(Some(10)), OK],
            _ => &[Act::Silence, OK],
        };
        for method in ["POST", "PUT"] {
            let application = Application::new(script);
            let mut mesh = mesh_of(&application);
            let client = TcpStream::connect(mesh.near.address).unwrap();
            let mut is_done = false;
            let answer = answer(client, &request(method, BODY), || {
                mesh.step();
                if is_done || application.read().is_empty() {
                    return;
                }
                is_done = true;
                let far = &mut mesh.far.worker;
                let (leg, _) = far.legs.iter().next().unwrap();
                match fate {
                    "leg closes" => far.leg_failed(leg, "a test"),
                    "leg leaves" => far.leave_legs(),
                    "stream is reset" => {
                        let (id, _) = far.downstreams.iter().next().unwrap();
                        far.downstream_gone(id);
                    }
                    _ => {}
                }
            });
            let read = application.read();
            let what = format!("{method}, {fate}: {answer} after {read:?}");
            if method == "POST" {
                assert_eq!(read.len(), 1, "{what}");
                let expected = if fate == "leg leaves" { "200" } else { "503" };
                assert_eq!(status(&answer), expected, "{what}");
            } else {
                assert_eq!(status(&answer), "200", "{what}");
            }
            assert!(read.iter().all(|it| it.ends_with(BODY)), "{what}");
            mesh.near.assert_quiet();
        }
    }
}

fn fault(delay: &str, abort: &str) -> String {
    format!(r#""timeout_ms":10,"fault":{{"delay":{delay},"abort":{abort}}}"#)
}

const DELAY: &str = r#"{"fixed_ms":60,"parts_per_million":1000000}"#;
const ABORT: &str = r#"{"status":418,"grpc_status":8,"parts_per_million":1000000}"#;

#[test]
fn a_delay_is_waited_for_once_and_the_timeout_of_its_route_is_off() {
    let application = Application::new(&[OK]);
    let mut bench = bench_of(&fault(DELAY, "null"), &[&application]);
    let started = Instant::now();
    let answer = bench.ask(&request("POST", BODY));
    assert!(started.elapsed() >= Duration::from_millis(60));
    assert_eq!(status(&answer), "200", "{answer}");
    assert_eq!(application.read().len(), 1);
    assert_eq!(bench.flags(), "DI");
    bench.assert_quiet();
}

#[test]
fn an_aborted_request_never_touches_an_endpoint() {
    for (delay, flags) in [("null", "FI"), (DELAY, "DI,FI")] {
        let application = Application::new(&[OK]);
        let mut bench = bench_of(&fault(delay, ABORT), &[&application]);
        let answer = bench.ask(&request("GET", ""));
        assert_eq!(status(&answer), "418", "{answer}");
        let line = bench.line();
        assert_eq!(line["response_flags"], flags);
        assert_eq!(line["response_code_details"], "fault_filter_abort");
        assert!(line["upstream_host"].is_null());
        assert!(bench.memory.endpoints().is_empty());
        assert!(application.read().is_empty());
    }
}

#[test]
fn a_caller_that_speaks_grpc_gets_its_status_under_a_200_and_no_body() {
    let application = Application::new(&[OK]);
    let mut bench = bench_of(&fault("null", ABORT), &[&application]);
    let head = "POST /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
    let answer = bench.ask(head.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    for line in [
        "content-type: application/grpc",
        "grpc-status: 8",
        "grpc-message: fault_filter_abort",
        "content-length: 0",
    ] {
        assert!(answer.contains(&format!("\r\n{line}\r\n")), "{answer}");
    }
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn nothing_is_tried_again_on_a_route_with_a_fault() {
    let never = r#"{"fixed_ms":60,"parts_per_million":0}"#;
    let handling = format!(
        "{ALWAYS},{}",
        fault(never, "null").replace("\"timeout_ms\":10,", "")
    );
    let application = Application::new(&[UNAVAILABLE]);
    let mut bench = bench_of(&handling, &[&application]);
    let answer = bench.ask(&request("GET", ""));
    assert_eq!(status(&answer), "503", "{answer}");
    assert_eq!(application.read().len(), 1);
    assert_eq!(bench.flags(), "-");
}

#[test]
fn a_caller_that_leaves_during_a_delay_ends_it() {
    let long = r#"{"fixed_ms":18446744073709551615,"parts_per_million":1000000}"#;
    let application = Application::new(&[OK]);
    let mut bench = bench_of(&fault(long, "null"), &[&application]);
    let mut client = TcpStream::connect(bench.address).unwrap();
    client
        .write_all(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n0123")
        .unwrap();
    bench.until("it waits", |worker| worker.exchanges.len() == 1);
    let (caller, _) = bench.worker.downstreams.iter().next().unwrap();
    bench.worker.downstream_gone(caller);
    assert!(bench.worker.exchanges.is_empty());
    assert_eq!(bench.flags(), "DI,DC");
    assert!(application.read().is_empty());
}

#[test]
fn heads_are_edited_by_the_destination_and_then_by_the_route() {
    let edits = |set: &str, add: &str, remove: &str| {
        let fields = |names: &str, value: &str| {
            let each = names.split_whitespace();
            let each = each.map(|it| format!(r#"{{"name":"{it}","value":"{value}"}}"#));
            each.collect::<Vec<_>>().join(",")
        };
        let names: Vec<String> = remove
            .split_whitespace()
            .map(|it| format!("{it:?}"))
            .collect();
        format!(
            r#"{{"set":[{}],"add":[{}],"remove":[{}]}}"#,
            fields(set, "set"),
            fields(add, "added"),
            names.join(",")
        )
    };
    let of_route = edits(
        "X-Both x-new",
        "x-kept",
        "x-gone x-request-id x-of-destination",
    );
    let of_destination = edits("x-both x-of-destination X-One", "x-added", "x-lost");
    let listener = FRONT.replace(
        r#""destinations":[{"cluster":"c","weight":1}]"#,
        &format!(
            r#""request_headers":{of_route},"response_headers":{of_route},"destinations":[
            {{"cluster":"c","weight":1,"request_headers":{of_destination},
            "response_headers":{of_destination}}}]"#
        ),
    );
    const ANSWER: Act = Act::Answer(
        "200 OK\r\nx-GONE: 1\r\nX-Kept: 1\r\nx-both: 1\r\nx-lost: 1\r\nContent-Length: 2\r\n\r\nok",
    );
    let application = Application::new(&[ANSWER]);
    let clusters = cluster("c", application.address, "", "null");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut bench = Bench::start(socket, &document(&listener, &clusters), None);
    let answer = bench.ask(
        b"PUT /a HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-GONE: 1\r\nX-Kept: 1\r\nx-both: 1\r\n\
          X-Both: 2\r\nx-lost: 1\r\nContent-Length: 2\r\n\r\nhi",
    );
    let read = application.read().remove(0);
    for (text, body) in [(&answer, "ok"), (&read, "hi")] {
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(rest, body);
        let proxys = ["x-forwarded-", "x-b3-"];
        let own = |line: &&str| {
            line.to_lowercase().starts_with("x-") && !proxys.iter().any(|it| line.starts_with(it))
        };
        let mut lines: Vec<&str> = head.split("\r\n").filter(own).collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "X-Both: set",
                "X-Kept: 1",
                "X-One: set",
                "x-added: added",
                "x-kept: added",
                "x-new: set"
            ],
            "{text}"
        );
    }
    assert!(read.contains("\r\nHost: a\r\n"), "{read}");
}

#[test]
fn a_listener_with_a_workload_of_its_own_counts_for_that() {
    let application = Application::new(&[OK]);
    let own = r#""workload":{"name":"inner","namespace":"n","app":"inner","revision":"v2"},
        "virtual_hosts""#;
    let front = FRONT.replace("\"virtual_hosts\"", own);
    let cluster = cluster("c", application.address, "", "null");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tracing = "{\"tracing\":{\"sampling_parts_per_million\":1000000},";
    let document = document(&front, &cluster).replacen('{', tracing, 1);
    let mut bench = Bench::start(listener, &document, None);
    assert_eq!(status(&bench.ask(&request("GET", ""))), "200");
    let span = String::from_utf8(bench.memory.drain_spans(100_000)).unwrap();
    assert!(span.contains("\"serviceName\":\"inner.n\""), "{span}");
    let series = bench.memory.series().into_iter().find_map(|it| match it {
        crate::shared::SeriesTotals::Http(labels, _) => Some(labels),
        _ => None,
    });
    let labels = series.unwrap();
    let names = crate::shared::Kind::Http.labels();
    for (name, expected) in [("source_workload", "inner"), ("source_version", "v2")] {
        let place = names.iter().position(|it| *it == name).unwrap();
        assert_eq!(labels[place], expected);
    }
}
