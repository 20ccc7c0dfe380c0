//! A worker: one thread, one event loop, and a slab for each kind of thing it serves.
//!
//! Here is what a worker holds and how it starts. `turn` is one turn of the loop, `place` what an
//! event is for, `orders` what supervisor and agent say, `drain` how it ends; `outbox` leads to the
//! other workers. What is done with connections and exchanges is told beside their types
//! (`downstream`, `exchange`, `upstream`, `leg`, `listener`).
//!
//! What it refuses: to start with settings it does not understand, a snapshot it cannot read, or
//! shared memory of another shape. It never waits for another process.
//!
//! Invariants:
//! 1. Everything a worker holds is its own thread's; what others see is in shared memory.
//! 2. It says once that it is ready, when it accepts.
//!
//! Tests: `worker/tests.rs` and the files below it; whole processes in `tests/dataplane`.

mod drain;
mod orders;
mod outbox;
mod place;
mod turn;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use meshfast_mesh::Random;
use meshfast_wire::h1::Limits;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use rustc_hash::FxHashMap;

use crate::buffer::Blocks;
use crate::clock::Clock;
use crate::control::{Channel, Report};
use crate::downstream::Downstream;
use crate::exchange::{Exchange, Generation};
use crate::leg::Leg;
use crate::listener::Listener;
use crate::os;
use crate::record::Recorder;
use crate::request::Request;
use crate::settings::Settings;
use crate::shared::{SharedMemory, State, WorkerShare};
use crate::slab::Slab;
use crate::timers::{Key, Timers};
use crate::tls::Identity;
use crate::upstream::{Pool, Refusals, Upstream};

use drain::Drain;
pub(crate) use drain::Inbound;
use orders::{load, load_identity};
use outbox::{Outbox, Watch};
pub(crate) use place::listener_token;
use place::{CONTROL, INBOX, RESOLVER};

/// Events taken from the kernel at once.
const EVENTS_PER_TURN: usize = 1_024;

/// The longest the loop sleeps.
const SLEEP_MAX_MS: u64 = 60_000;

/// See the module's text.
pub(crate) struct Worker {
    pub(crate) poll: Poll,
    pub(crate) clock: Clock,
    pub(crate) random: Random,
    pub(crate) limits: Limits,
    pub(crate) share: WorkerShare,
    pub(crate) recorder: Recorder,
    pub(crate) generation: Rc<Generation>,
    retired: Vec<Rc<Generation>>,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) downstreams: Slab<Downstream>,
    pub(crate) exchanges: Slab<Exchange>,
    pub(crate) upstreams: Slab<Upstream>,
    /// Connections to other meshfast proxies, and the newest one to each endpoint slot.
    pub(crate) legs: Slab<Leg>,
    pub(crate) legs_to: FxHashMap<u32, usize>,
    /// Who we are; none before the agent has said so.
    pub(crate) identity: Option<Rc<Identity>>,
    pub(crate) pool: Pool,
    pub(crate) refusals: Refusals,
    pub(crate) timers: Timers,
    to_drive: VecDeque<Key>,
    to_flush: Vec<Key>,
    pub(crate) blocks: Blocks,
    /// What exchanges keep of bodies, for further tries.
    pub(crate) kept_bytes: usize,
    #[expect(
        clippy::vec_box,
        reason = "boxes move between this list and exchanges as they are"
    )]
    pub(crate) spare_requests: Vec<Box<Request>>,
    control: Channel,
    pub(crate) inbox: Channel,
    pub(crate) outboxes: Vec<Outbox>,
    resolver: Channel,
    pub(crate) questions: u64,
    /// Questions under way: the exchange that asks and the port it wants.
    pub(crate) resolving: HashMap<u64, (usize, u16)>,
    pub(crate) connections_max: usize,
    pub(crate) accept_paused_until_ms: u64,
    drain: Option<Drain>,
    pub(crate) inbound: Inbound,
    drain_default_ms: u64,
    #[cfg(test)]
    panic_in: Option<Key>,
}

/// Serves until drained. The number is the process's exit code: 0.
///
/// # Errors
/// A text when the worker cannot start; it must not be started again with the same settings.
pub fn run(settings: &[u8]) -> Result<i32, String> {
    let settings = Settings::parse(settings)?;
    let mut worker = Worker::boot(settings).map_err(|error| format!("worker: {error}"))?;
    worker
        .serve()
        .map_err(|error| format!("worker: event loop: {error}"))?;
    Ok(0)
}

impl Worker {
    fn boot(settings: Settings) -> io::Result<Self> {
        let memory = os::owned(settings.shared_memory_fd)?;
        let memory = Rc::new(SharedMemory::open(memory.as_fd())?);
        if memory.worker_slots() != settings.worker_slots {
            let why = "worker_slots differ between settings and shared memory";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let share = WorkerShare::take(&memory, settings.slot);
        let snapshot = os::owned(settings.snapshot_fd)?;
        let generation = load(&snapshot, settings.generation, None)?;
        share
            .line
            .generations(settings.generation, settings.generation);
        let clock = Clock::start();
        let mut listeners = Vec::new();
        for listener in settings.listeners {
            let socket = os::owned(listener.fd)?;
            listeners.push(Listener::new(
                listener.name,
                socket,
                &generation,
                clock.now_ms(),
            )?);
        }
        let mut outboxes = Vec::new();
        for outbox in settings.outboxes {
            outboxes.push(Outbox {
                slot: outbox.slot,
                channel: Channel::new(outbox.fd)?,
                watch: Watch::default(),
            });
        }
        let identity = match settings.identity_fd {
            Some(raw) => Some(load_identity(&os::owned(raw)?)?),
            None => None,
        };
        let seed = clock.wall_us() ^ (u64::from(std::process::id()) << 40);
        let mut random = Random::new(seed);
        // A channel to the resolver outlives its worker: answers to questions of an earlier one must
        // match none of ours.
        let questions = random.next_u64() >> 1;
        let worker = Self {
            poll: Poll::new()?,
            random,
            clock,
            limits: Limits::default(),
            share,
            recorder: Recorder::default(),
            generation,
            retired: Vec::new(),
            listeners,
            downstreams: Slab::new(),
            exchanges: Slab::new(),
            upstreams: Slab::new(),
            legs: Slab::new(),
            legs_to: FxHashMap::default(),
            identity,
            pool: Pool::default(),
            refusals: Refusals::default(),
            timers: Timers::default(),
            to_drive: VecDeque::new(),
            to_flush: Vec::new(),
            blocks: Blocks::default(),
            kept_bytes: 0,
            spare_requests: Vec::new(),
            control: Channel::new(settings.control_fd)?,
            inbox: Channel::new(settings.inbox_fd)?,
            outboxes,
            resolver: Channel::new(settings.resolver_fd)?,
            questions,
            resolving: HashMap::new(),
            connections_max: connections_max(),
            accept_paused_until_ms: 0,
            drain: None,
            inbound: Inbound::Open,
            drain_default_ms: settings.drain_ms,
            #[cfg(test)]
            panic_in: None,
        };
        worker.register_channels()?;
        Ok(worker)
    }

    fn register_channels(&self) -> io::Result<()> {
        let registry = self.poll.registry();
        for (channel, token) in [
            (&self.control, CONTROL),
            (&self.inbox, INBOX),
            (&self.resolver, RESOLVER),
        ] {
            registry.register(&mut SourceFd(&channel.raw()), token, Interest::READABLE)?;
        }
        Ok(())
    }

    /// Changing the epoll set fails only when the kernel is out of memory for it; the listener is
    /// left as it was and the next change tries again.
    pub(crate) fn reregister(&mut self) {
        if self.register_listeners().is_err() {
            self.rejected("listener_registration_failed");
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        self.open()?;
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while !self.step(&mut events, SLEEP_MAX_MS)? {}
        self.share.line.state(State::Gone);
        self.report(&Report::Drained);
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        self.register_listeners()?;
        self.share.line.state(State::Serving);
        self.report(&Report::Ready);
        // Connections handed to an earlier worker of this slot wait in the inbox since before the
        // registration, which is edge-triggered.
        self.take_handed_over();
        Ok(())
    }
}

/// Less than half of the descriptors: every connection may need one on the other side.
fn connections_max() -> usize {
    (os::descriptor_limit() / 2).saturating_sub(32).max(16)
}

#[cfg(test)]
mod tests;
