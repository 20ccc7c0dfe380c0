//! Callers come and go at any moment while connects are slow: what an exchange was begun for reaches
//! its own caller or nobody.
//!
//! Everything that happens is drawn from a seed, and so is the time that passes between two turns.

use super::legs::Mesh;
use super::tunnels::{GRANTED, head, patient_mesh};
use super::*;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

/// How a caller asks.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// With an absolute target.
    Absolute,
    /// In a tunnel, with HTTP/1.
    Inside,
    /// In a tunnel, with bytes of its own.
    Opaque,
    /// The same to a host outside the mesh, whose name takes its time to resolve.
    Outside,
    /// In a tunnel, in which the other side speaks first.
    Silent,
}

const KINDS: [Kind; 5] = [
    Kind::Absolute,
    Kind::Inside,
    Kind::Opaque,
    Kind::Outside,
    Kind::Silent,
];

struct Caller {
    kind: Kind,
    /// What marks its bytes and nobody else's.
    tag: String,
    /// None when it has left.
    stream: Option<TcpStream>,
    got: Vec<u8>,
}

/// A connection at the application.
struct Served {
    stream: TcpStream,
    read: Vec<u8>,
    greeting: Option<String>,
}

struct Scene {
    mesh: Mesh,
    port: u16,
    application: TcpListener,
    callers: Vec<Caller>,
    served: Vec<Served>,
    greetings: usize,
    /// Questions to the resolver that have no answer yet.
    questions: Vec<u64>,
    /// Without the callee's proxy a connect goes on and on.
    is_far_awake: bool,
    random: Random,
}

const CALLERS_AT_ONCE: usize = 6;
const ROUNDS: usize = 400;

impl Scene {
    fn new(seed: u64) -> Self {
        let application = TcpListener::bind("127.0.0.1:0").unwrap();
        let (mesh, port) = patient_mesh(&application);
        application.set_nonblocking(true).unwrap();
        mesh.near.far[RESOLVER_CHANNEL]
            .set_nonblocking(true)
            .unwrap();
        Self {
            mesh,
            port,
            application,
            callers: Vec::new(),
            served: Vec::new(),
            greetings: 0,
            questions: Vec::new(),
            is_far_awake: true,
            random: Random::new(seed),
        }
    }

    /// Whether something that happens once in `count` times happens now.
    fn once_in(&mut self, count: u64) -> bool {
        self.random.next_u64().is_multiple_of(count)
    }

    fn draw(&mut self, count: usize) -> usize {
        (self.random.next_u64() % count as u64) as usize
    }

    fn round(&mut self) {
        let here = self.callers.iter().filter(|it| it.stream.is_some()).count();
        if here < CALLERS_AT_ONCE && self.once_in(3) {
            self.come();
        }
        if here > 0 && self.once_in(8) {
            self.leave();
        }
        if self.once_in(12) {
            // As with a new identity: whoever calls next waits for a handshake.
            self.mesh.near.worker.leave_older_legs();
        }
        if self.once_in(10) {
            self.is_far_awake = !self.is_far_awake;
        }
        if self.once_in(2) {
            let ms = self.random.next_u64() % 700;
            self.mesh.advance(Duration::from_millis(ms));
        }
        self.turn();
        self.resolve();
        self.serve();
        self.listen();
    }

    /// Answers a question now and then, of whoever has asked and may be gone.
    fn resolve(&mut self) {
        let resolver = &self.mesh.near.far[RESOLVER_CHANNEL];
        let mut buffer = [0; 1_024];
        while let Ok(length) = resolver.recv(&mut buffer) {
            let asked: serde_json::Value = serde_json::from_slice(&buffer[..length]).unwrap();
            self.questions.push(asked["id"].as_u64().unwrap());
        }
        if !self.questions.is_empty() && self.once_in(8) {
            let one = self.draw(self.questions.len());
            let id = self.questions.swap_remove(one);
            let answer = format!(
                r#"{{"type":"resolved","id":{id},"addresses":["127.0.0.1"],"error":null}}"#
            );
            let resolver = &self.mesh.near.far[RESOLVER_CHANNEL];
            resolver.send(answer.as_bytes()).unwrap();
        }
    }

    fn turn(&mut self) {
        let Mesh { near, far, .. } = &mut self.mesh;
        near.worker.step(&mut near.events, 0).unwrap();
        if self.is_far_awake {
            far.worker.step(&mut far.events, 0).unwrap();
        }
    }

    fn come(&mut self) {
        let kind = KINDS[self.draw(KINDS.len())];
        let tag = format!("tag-c{}.", self.callers.len());
        let port = self.port;
        let sent = match kind {
            Kind::Absolute => head(&format!("GET http://c:{port}/{tag}"), "c"),
            Kind::Inside => tunnel("c", port) + &format!("GET /{tag} HTTP/1.1\r\nHost: c\r\n\r\n"),
            Kind::Opaque => tunnel("c", port) + &format!("\0{tag}"),
            Kind::Outside => tunnel("elsewhere", port) + &format!("\0{tag}"),
            Kind::Silent => tunnel("c", port),
        };
        let mut stream = TcpStream::connect(self.mesh.near.address).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.callers.push(Caller {
            kind,
            tag,
            stream: Some(stream),
            got: Vec::new(),
        });
    }

    /// A caller goes, or says that it has said everything.
    fn leave(&mut self) {
        let one = self.draw(self.callers.len());
        let is_half = self.once_in(3);
        let caller = &mut self.callers[one];
        if is_half && let Some(stream) = &caller.stream {
            // Refused when the proxy has reset the connection.
            let _ = stream.shutdown(std::net::Shutdown::Write);
        } else {
            caller.stream = None;
        }
    }

    /// The application answers with the tag of whoever asks, and greets those who say nothing.
    fn serve(&mut self) {
        while let Ok((stream, _)) = self.application.accept() {
            stream.set_nonblocking(true).unwrap();
            self.served.push(Served {
                stream,
                read: Vec::new(),
                greeting: None,
            });
        }
        if !self.served.is_empty() && self.once_in(12) {
            let one = self.draw(self.served.len());
            self.served.swap_remove(one);
        }
        for place in 0..self.served.len() {
            let (greets, repeats) = (self.once_in(6), self.once_in(3));
            let one = &mut self.served[place];
            read_some(&mut one.stream, &mut one.read);
            if one.read.is_empty() && one.greeting.is_none() && greets {
                one.greeting = Some(format!("tag-g{}.", self.greetings));
                self.greetings += 1;
            }
            one.say(repeats);
        }
    }

    fn listen(&mut self) {
        for caller in &mut self.callers {
            if let Some(stream) = &mut caller.stream {
                read_some(stream, &mut caller.got);
            }
        }
    }

    /// Everybody leaves, and nothing is left of anybody.
    fn end(&mut self) {
        self.listen();
        self.callers.iter_mut().for_each(|it| it.stream = None);
        self.served.clear();
        self.is_far_awake = true;
        let mut turns = 0;
        let is_over = |it: &Worker| it.exchanges.is_empty() && it.downstreams.is_empty();
        while !(is_over(&self.mesh.near.worker) && is_over(&self.mesh.far.worker)) {
            assert!(turns < 2_000, "an exchange that never ends");
            self.mesh.advance(Duration::from_millis(50));
            self.turn();
            self.serve();
            self.served.clear();
            turns += 1;
        }
        for bench in [&self.mesh.near, &self.mesh.far] {
            let endpoints = bench.memory.endpoints();
            assert!(endpoints.iter().all(|it| it.active == 0));
            assert!(rejected(bench).iter().all(|(reason, _)| reason != "panic"));
        }
    }
}

impl Served {
    fn say(&mut self, repeats: bool) {
        let mut answer = String::new();
        if self.read.starts_with(b"\0") {
            let tags = tags(&self.read);
            answer.extend(tags.into_iter().filter(|_| repeats));
        } else if self.read.ends_with(b"\r\n\r\n") {
            for tag in tags(&self.read) {
                let length = tag.len();
                answer += &format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{tag}");
            }
            self.read.clear();
        } else if let Some(greeting) = self.greeting.as_ref().filter(|_| repeats) {
            answer.clone_from(greeting);
        }
        // Nobody is there, or nobody reads: the proxy shall cope with either.
        let _ = self.stream.write(answer.as_bytes());
    }
}

fn tunnel(host: &str, port: u16) -> String {
    let to = format!("{host}:{port}");
    head(&format!("CONNECT {to}"), &to)
}

fn read_some(stream: &mut TcpStream, into: &mut Vec<u8>) {
    let mut buffer = [0; 4_096];
    if let Ok(count) = stream.read(&mut buffer) {
        into.extend_from_slice(&buffer[..count]);
    }
}

/// The whole tags in some bytes.
fn tags(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let parts = text.split("tag-").skip(1);
    let whole = parts.filter_map(|it| it.split_once('.'));
    whole.map(|(tag, _)| format!("tag-{tag}.")).collect()
}

#[test]
fn nothing_of_one_caller_reaches_another_however_they_come_and_go() {
    let mut served: HashMap<&str, usize> = HashMap::new();
    for seed in 0..16 {
        let mut scene = Scene::new(seed);
        for _ in 0..ROUNDS {
            scene.round();
        }
        scene.end();
        let mut greeted = HashSet::new();
        for caller in &scene.callers {
            let heard: HashSet<String> = tags(&caller.got).into_iter().collect();
            let greetings = heard.iter().filter(|it| **it != caller.tag);
            let greetings: Vec<&String> = greetings.collect();
            let what = format!(
                "seed {seed}: {:?} {} heard {heard:?}",
                caller.kind, caller.tag
            );
            assert!(greetings.iter().all(|it| it.contains("-g")), "{what}");
            assert!(greetings.len() <= 1, "{what}");
            assert!(
                greetings.iter().all(|it| greeted.insert((*it).clone())),
                "{what}"
            );
            if heard.contains(&caller.tag) || caller.kind == Kind::Silent && !greetings.is_empty() {
                *served.entry(caller.kind.name()).or_default() += 1;
            }
            let is_granted = caller.got.starts_with(GRANTED);
            assert!(
                heard.is_empty() || is_granted || caller.kind == Kind::Absolute,
                "{what}"
            );
        }
    }
    // Else nothing was shown.
    for kind in KINDS {
        let count = served.get(kind.name()).copied().unwrap_or_default();
        assert!(count >= 8, "{kind:?}: {served:?}");
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Absolute => "absolute",
            Self::Inside => "inside",
            Self::Opaque => "opaque",
            Self::Outside => "outside",
            Self::Silent => "silent",
        }
    }
}
