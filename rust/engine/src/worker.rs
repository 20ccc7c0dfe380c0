//! A worker: one thread, one event loop, three slabs.
//!
//! A turn of the loop, in this order:
//! 1. wait for events and note what they say in the sessions; nothing is acted on yet, so no session
//!    can be replaced by another while events of the old one are still being read;
//! 2. drive the queued sessions: read, decode, decide, append to outputs;
//! 3. flush every dirty session once; a flush that makes room queues the other side, so 2 and 3
//!    repeat until both lists are empty or the turn is long enough;
//! 4. fire the deadlines that have passed.
//!
//! The clock is read once per turn. Nothing here waits for another process.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use meshfast_mesh::{Random, Snapshot};
use meshfast_wire::h1::Limits;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustc_hash::FxHashMap;

use crate::buffer::Blocks;
use crate::clock::Clock;
use crate::control::{Answer, Channel, Order, Question, Report};
use crate::downstream::Downstream;
use crate::error::Failure;
use crate::exchange::{Exchange, Generation};
use crate::leg::Leg;
use crate::listener::Listener;
use crate::os;
use crate::record::Recorder;
use crate::request::Request;
use crate::session::Session;
use crate::settings::Settings;
use crate::shared::{SharedMemory, State, WorkerShare};
use crate::slab::Slab;
use crate::timers::{Key, Timers};
use crate::tls::Identity;
use crate::upstream::{Pool, Refusals, Upstream};

/// Events taken from the kernel at once.
const EVENTS_PER_TURN: usize = 1_024;

/// Rounds of driving and flushing in one turn before events are looked at again.
const ROUNDS_PER_TURN: usize = 16;

/// The longest the loop sleeps.
const SLEEP_MAX_MS: u64 = 60_000;

/// While draining, a connection that has been idle this long is closed; one that was used a moment
/// ago may have its next request on the way, and gets `connection: close` with the answer instead.
const DRAIN_IDLE_MS: u64 = 5_000;

/// How often a draining worker looks whether it has finished, at least.
const DRAIN_POLL_MS: u64 = 50;

/// When the listening sockets are to be closed: callers that have not yet heard of it connect for a
/// while. Accepting ends when none has come for this long,
const QUIET_MS: u64 = 200;

/// and at the latest after this long.
const ACCEPTING_MAX_MS: u64 = 5_000;

/// The same when the supervisor is dead: whoever starts in its place waits for the addresses.
const ORPHAN_ACCEPTING_MS: u64 = 500;

/// A drain under way. All times in ms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    until_ms: u64,
    /// Accepting goes on until then; 0 when it is over.
    accepting_until_ms: u64,
    last_accept_ms: u64,
}

/// Calls for the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// Are taken.
    Open,
    /// Those under way are finished.
    Leaving,
    /// The last one has ended, and the supervisor knows.
    Left,
}

/// Another worker's inbox.
pub(crate) struct Outbox {
    pub(crate) slot: u32,
    pub(crate) channel: Channel,
    pub(crate) watch: Watch,
}

/// Tells a worker that is stopped or stuck: connections wait for it and its loop does not turn. It gets
/// no more of them until it does.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen_turns: Cell<u64>,
    seen_ms: Cell<u64>,
}

/// A loop that serves turns within this time when something waits for it.
const STUCK_MS: u64 = 50;

impl Watch {
    /// `waiting` connections are on their way to a worker whose loop has turned `turns` times.
    pub(crate) fn is_awake(&self, (waiting, turns): (i64, u64), now_ms: u64) -> bool {
        if waiting <= 0 || turns != self.seen_turns.get() {
            self.seen_turns.set(turns);
            self.seen_ms.set(now_ms);
        }
        now_ms - self.seen_ms.get() < STUCK_MS
    }
}

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

    /// Sleeps until something happens and does one turn; `true` when the worker has drained.
    fn step(&mut self, events: &mut Events, sleep_max_ms: u64) -> io::Result<bool> {
        match self.poll.poll(events, Some(self.sleep(sleep_max_ms))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            other => other?,
        }
        self.clock.tick();
        self.turn(events);
        self.share.line.turn(self.clock.since_tick_us());
        self.finish_inbound();
        #[cfg(test)]
        tests::check(self);
        Ok(self.is_draining() && self.drained())
    }

    fn turn(&mut self, events: &Events) {
        let mut told = Vec::new();
        for event in events {
            match Place::of(event.token()) {
                Place::Session(key) => self.note(key, event),
                place => told.push(place),
            }
        }
        for place in told {
            self.guarded_place(place);
        }
        self.work();
        while let Some(key) = self.timers.pop(self.clock.now_ms()) {
            self.guarded(key, Self::fire);
        }
        self.work();
        self.resume_accepting();
        self.retire_generations();
    }

    /// Does what a channel or a listener asks for. A panic in it is counted and loses one message or
    /// one connection.
    fn guarded_place(&mut self, place: Place) {
        let done = catch_unwind(AssertUnwindSafe(|| match place {
            Place::Control => self.take_orders(),
            Place::Inbox => self.take_handed_over(),
            Place::Listener(index) => self.accept(index),
            Place::Resolver => self.take_answers(),
            Place::Session(_) => {}
        }));
        if done.is_err() {
            self.rejected("panic");
        }
    }

    fn work(&mut self) {
        for _ in 0..ROUNDS_PER_TURN {
            for _ in 0..self.to_drive.len() {
                let Some(key) = self.to_drive.pop_front() else {
                    break;
                };
                self.guarded(key, Self::drive);
            }
            let mut flushing = std::mem::take(&mut self.to_flush);
            for key in flushing.drain(..) {
                self.guarded(key, Self::flush);
            }
            if self.to_flush.is_empty() {
                self.to_flush = flushing;
            }
            if self.to_drive.is_empty() && self.to_flush.is_empty() {
                return;
            }
        }
    }

    fn drive(&mut self, key: Key) {
        #[cfg(test)]
        if self.panic_in == Some(key) {
            self.panic_in = None;
            panic!("asked for by a test");
        }
        match key {
            Key::Downstream(id) => {
                if let Some(downstream) = self.downstreams.get_mut(id) {
                    downstream.session.queued = false;
                    self.drive_downstream(id);
                }
                if let Some(downstream) = self.downstreams.get_mut(id) {
                    downstream.session.input.settle(&mut self.blocks);
                    self.credit(key);
                }
            }
            Key::Upstream(id) => {
                if let Some(upstream) = self.upstreams.get_mut(id) {
                    upstream.session.queued = false;
                    self.drive_upstream(id);
                }
                if let Some(upstream) = self.upstreams.get_mut(id) {
                    upstream.session.input.settle(&mut self.blocks);
                    self.credit(key);
                }
            }
            Key::Leg(id) => {
                if let Some(leg) = self.legs.get_mut(id) {
                    leg.session.queued = false;
                    self.drive_leg(id);
                }
            }
            Key::Exchange(_) => {}
        }
    }

    fn flush(&mut self, key: Key) {
        match key {
            Key::Downstream(id) => self.flush_downstream(id),
            Key::Upstream(id) => self.flush_upstream(id),
            Key::Leg(id) => self.flush_leg(id),
            Key::Exchange(_) => {}
        }
    }

    /// Does one step of one session. A panic in it is a bug of ours: it ends the connections of that
    /// exchange, is counted, and everything else goes on.
    fn guarded(&mut self, key: Key, step: fn(&mut Self, Key)) {
        let stepped = catch_unwind(AssertUnwindSafe(|| step(self, key)));
        if stepped.is_err() {
            self.rejected("panic");
            self.abandon(key);
        }
    }

    /// Gives back everything that hangs on a session, believing nothing of its state.
    fn abandon(&mut self, key: Key) {
        let exchange_id = match key {
            Key::Downstream(id) => self.downstreams.get(id).and_then(|it| it.exchange),
            Key::Upstream(id) => self.upstreams.get(id).and_then(|it| it.exchange),
            Key::Exchange(id) => Some(id),
            Key::Leg(_) => None,
        };
        if let Key::Leg(id) = key
            && self.legs.contains(id)
        {
            return self.leg_failed(id, "panic");
        }
        let named = exchange_id.and_then(|id| self.exchanges.get(id));
        let (mut downstream_id, mut upstream_id) =
            named.map_or((None, None), |it| (Some(it.downstream), it.upstream));
        match key {
            Key::Downstream(id) => downstream_id = Some(id),
            Key::Upstream(id) => upstream_id = Some(id),
            Key::Exchange(_) | Key::Leg(_) => {}
        }
        if let Some(exchange_id) = exchange_id.filter(|id| self.exchanges.contains(*id)) {
            if let Some(slot) = self.exchanges[exchange_id].active_slot {
                self.share.endpoints.request_finished(slot);
            }
            self.remove_exchange(exchange_id);
        }
        if let Some(id) = upstream_id.filter(|id| self.upstreams.contains(*id)) {
            self.upstreams[id].exchange = None;
            self.drop_upstream(id);
        }
        if let Some(id) = downstream_id.filter(|id| self.downstreams.contains(*id)) {
            self.abort_downstream(id);
        }
    }

    fn fire(&mut self, key: Key) {
        match key {
            Key::Downstream(id) if self.downstreams.contains(id) => self.downstream_timer(id),
            Key::Exchange(id) if self.exchanges.contains(id) => self.exchange_timer(id),
            Key::Leg(id) if self.legs.contains(id) => self.leg_timer(id),
            Key::Upstream(id) if self.upstreams.contains(id) => self.upstream_timer(id),
            _ => {}
        }
    }

    fn note(&mut self, key: Key, event: &mio::event::Event) {
        if let Some(session) = self.session_of(key) {
            let was_writable = session.io.writable;
            session.io.note(event);
            if session.io.writable && !was_writable {
                self.dirty(key);
            }
            self.queue(key);
        }
    }

    /// The session behind a key; an exchange has none of its own.
    pub(crate) fn session_of(&mut self, key: Key) -> Option<&mut Session> {
        match key {
            Key::Downstream(id) => self.downstreams.get_mut(id).map(|it| &mut it.session),
            Key::Exchange(_) => None,
            Key::Leg(id) => self.legs.get_mut(id).map(|it| &mut it.session),
            Key::Upstream(id) => self.upstreams.get_mut(id).map(|it| &mut it.session),
        }
    }

    /// Has a session driven in this turn.
    pub(crate) fn queue(&mut self, key: Key) {
        if let Some(session) = self.session_of(key).filter(|session| !session.queued) {
            session.queued = true;
            self.to_drive.push_back(key);
        }
    }

    /// Has a session flushed at the end of this turn.
    pub(crate) fn dirty(&mut self, key: Key) {
        if let Some(session) = self.session_of(key).filter(|session| !session.dirty) {
            session.dirty = true;
            self.to_flush.push(key);
        }
    }

    fn sleep(&self, max_ms: u64) -> Duration {
        if !self.to_drive.is_empty() || !self.to_flush.is_empty() {
            return Duration::ZERO;
        }
        let now_ms = self.clock.now_ms();
        let mut sleep_ms = self.timers.next_in(now_ms).unwrap_or(max_ms).min(max_ms);
        if self.is_draining() || self.inbound == Inbound::Leaving {
            sleep_ms = sleep_ms.min(DRAIN_POLL_MS);
        }
        if self.accept_paused_until_ms != 0 {
            sleep_ms = sleep_ms.min(self.accept_paused_until_ms.saturating_sub(now_ms) + 1);
        }
        Duration::from_millis(sleep_ms)
    }

    /// At the connection limit too: whoever connects next has an idle connection closed for it.
    fn resume_accepting(&mut self) {
        let until_ms = self.accept_paused_until_ms;
        if until_ms != 0 && until_ms <= self.clock.now_ms() {
            self.accept_paused_until_ms = 0;
            self.reregister();
        }
    }

    /// Changing the epoll set fails only when the kernel is out of memory for it; the listener is
    /// left as it was and the next change tries again.
    pub(crate) fn reregister(&mut self) {
        if self.register_listeners().is_err() {
            self.rejected("listener_registration_failed");
        }
    }

    fn take_orders(&mut self) {
        loop {
            match self.control.receive() {
                Ok(Some(message)) => match serde_json::from_slice(&message.bytes) {
                    Ok(order) => self.obey(order, message.descriptors),
                    Err(_) => self.rejected("control_message_not_understood"),
                },
                // The supervisor is dead: finish what is here and leave.
                Ok(None) => return self.drain(self.drain_default_ms, ORPHAN_ACCEPTING_MS),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.rejected("control_message_not_received"),
            }
        }
    }

    fn obey(&mut self, order: Order, mut descriptors: Vec<OwnedFd>) {
        match (order, descriptors.pop()) {
            (
                Order::Drain {
                    deadline_ms,
                    closing,
                },
                _,
            ) => {
                self.drain(deadline_ms, if closing { ACCEPTING_MAX_MS } else { 0 });
            }
            (Order::DrainInbound, _) => self.drain_inbound(),
            (Order::Identity { serial }, Some(handed)) => match load_identity(&handed) {
                Ok(identity) => {
                    self.identity = Some(identity);
                    self.leave_older_legs();
                    self.report(&Report::IdentityApplied { serial });
                }
                // The agent made it with the same code; whoever we were stays in force.
                Err(_) => self.rejected("identity_unreadable"),
            },
            (Order::Listener { name }, Some(socket)) => self.add_listener(name, socket),
            (Order::Snapshot { generation }, Some(blob)) => match self.load_next(&blob, generation)
            {
                Ok(loaded) => self.apply(loaded, generation),
                // The agent validated it with the same code, so this is a broken descriptor: the
                // last good snapshot stays.
                Err(_) => self.rejected("snapshot_unreadable"),
            },
            _ => self.rejected("control_message_without_descriptor"),
        }
    }

    fn add_listener(&mut self, name: String, socket: OwnedFd) {
        let known = self
            .listeners
            .iter_mut()
            .find(|listener| listener.name == name);
        let added = match known {
            Some(listener) => listener.reopen(socket),
            None => Listener::new(name, socket, &self.generation, self.clock.now_ms())
                .map(|listener| self.listeners.push(listener)),
        };
        match added {
            Ok(()) => self.reregister(),
            Err(_) => self.rejected("listener_descriptor_unusable"),
        }
    }

    fn load_next(&self, blob: &OwnedFd, number: u64) -> io::Result<Rc<Generation>> {
        load(blob, number, Some(&self.generation.snapshot))
    }

    fn apply(&mut self, loaded: Rc<Generation>, number: u64) {
        let now_ms = self.clock.now_ms();
        let old = std::mem::replace(&mut self.generation, loaded);
        self.retired.push(old);
        for listener in &mut self.listeners {
            listener.apply(&self.generation, now_ms);
        }
        self.close_removed_listeners();
        self.recorder.forget_generation();
        self.reregister();
        self.retire_generations();
        self.report(&Report::Applied { generation: number });
    }

    /// Lets go of generations that no exchange and no listener holds any more.
    fn retire_generations(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        let now_ms = self.clock.now_ms();
        for listener in &mut self.listeners {
            listener.leave(now_ms);
        }
        self.retired
            .retain(|generation| Rc::strong_count(generation) > 1);
        let newest = self.generation.number();
        let oldest = self
            .retired
            .iter()
            .map(|it| it.number())
            .min()
            .unwrap_or(newest);
        self.share.line.generations(newest, oldest);
    }

    fn take_answers(&mut self) {
        while let Ok(Some(message)) = self.resolver.receive() {
            match serde_json::from_slice(&message.bytes) {
                Ok(Answer::Resolved {
                    id,
                    addresses,
                    error,
                }) => {
                    self.resolved(id, &addresses, error);
                }
                Err(_) => self.rejected("resolver_message_not_understood"),
            }
        }
    }

    /// Asks the agent for the addresses of a host; `false` when it cannot be asked now.
    pub(crate) fn ask_resolver(&self, id: u64, host: &str) -> bool {
        self.resolver
            .send_json(&Question::Resolve { id, host })
            .is_ok()
    }

    /// A supervisor that does not read its channel is stopped or dead; it learns by other ways.
    fn report(&self, report: &Report) {
        let _ = self.control.send_json(report);
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether connections are accepted now: always but in the later part of a drain.
    pub(crate) fn is_accepting(&self) -> bool {
        self.accept_paused_until_ms == 0
            && self.drain.is_none_or(|drain| drain.accepting_until_ms != 0)
    }

    pub(crate) fn accepted_now(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.last_accept_ms = self.clock.now_ms();
        }
    }

    /// Finishes within `deadline_ms`. Accepting goes on for `accepting_ms` at most; 0 when others
    /// accept from the same sockets.
    fn drain(&mut self, deadline_ms: u64, accepting_ms: u64) {
        let now_ms = self.clock.now_ms();
        let accepting_ms = accepting_ms.min(deadline_ms / 2);
        let wanted = Drain {
            until_ms: now_ms + deadline_ms,
            accepting_until_ms: if accepting_ms == 0 {
                0
            } else {
                now_ms + accepting_ms
            },
            last_accept_ms: now_ms,
        };
        // A second drain may shorten the first, never lengthen it.
        let drain = self.drain.get_or_insert(wanted);
        drain.until_ms = drain.until_ms.min(wanted.until_ms);
        drain.accepting_until_ms = drain.accepting_until_ms.min(wanted.accepting_until_ms);
        if self.share.line.state_is(State::Serving) {
            self.leave_legs();
        }
        self.share.line.state(State::Draining);
        self.reregister();
        self.take_handed_over();
    }

    /// Whether a draining worker has finished; closes what need not or must not be waited for.
    fn drained(&mut self) -> bool {
        let now_ms = self.clock.now_ms();
        let Some(drain) = self.drain else {
            return false;
        };
        if now_ms >= drain.until_ms {
            self.cut_everything();
            return true;
        }
        if drain.accepting_until_ms != 0 {
            let is_quiet = now_ms - drain.last_accept_ms >= QUIET_MS;
            if !is_quiet && now_ms < drain.accepting_until_ms {
                return false;
            }
            self.close_listeners();
        }
        let patience_ms = DRAIN_IDLE_MS.min((drain.until_ms - now_ms) / 2);
        let idle: Vec<usize> = self
            .downstreams
            .iter()
            .filter(|(_, it)| it.is_idle() && now_ms - it.idle_since_ms > patience_ms)
            .map(|(id, _)| id)
            .collect();
        for id in idle {
            self.close_downstream(id);
        }
        self.close_done_legs();
        self.work();
        let is_idle = |it: &Upstream| it.exchange.is_none() && it.session.output.is_empty();
        self.downstreams.is_empty()
            && !self.is_called()
            && self.upstreams.iter().all(|(_, it)| is_idle(it))
    }

    /// The application is about to end: callers go to other instances from now on. It may still call
    /// others, and a job's last call is as good as its first.
    fn drain_inbound(&mut self) {
        for index in 0..self.listeners.len() {
            if self.listeners[index].is_inbound() {
                self.accept_all(index);
                self.listeners[index].leave_inbound();
            }
        }
        self.reregister();
        for listener in self.listeners.iter_mut().filter(|it| it.is_inbound()) {
            listener.close();
        }
        self.inbound = Inbound::Leaving;
        self.leave_legs();
    }

    /// Tells the supervisor once that the last call for the application has ended.
    fn finish_inbound(&mut self) {
        let has_call = |worker: &Self| {
            worker
                .downstreams
                .iter()
                .any(|(_, it)| it.inbound().is_some())
                || worker.is_called()
        };
        if self.inbound == Inbound::Leaving && !has_call(self) {
            self.inbound = Inbound::Left;
            self.report(&Report::InboundDrained);
        }
    }

    /// What the new snapshot does not listen on any more is closed, after taking what waits there: it
    /// was connected while the old configuration was in force.
    fn close_removed_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            if self.listeners[index].is_removed() {
                self.accept_all(index);
            }
        }
        // Out of the epoll set first: the open file lives on in other processes.
        self.reregister();
        for listener in self
            .listeners
            .iter_mut()
            .filter(|listener| listener.is_removed())
        {
            listener.close();
        }
    }

    /// The time is over: whoever is still being answered must not take what it got for the whole.
    fn cut_everything(&mut self) {
        let under_way: Vec<usize> = self.exchanges.iter().map(|(id, _)| id).collect();
        for exchange_id in under_way {
            if self.exchanges.contains(exchange_id) {
                self.fail(exchange_id, Failure::Drained);
            }
        }
        self.work();
        // Answered, but not read yet: the kernel would end the part it has with a FIN.
        let unsent = self
            .downstreams
            .iter()
            .filter(|(_, it)| !it.session.output.is_empty());
        let unsent: Vec<usize> = unsent.map(|(id, _)| id).collect();
        for downstream_id in unsent {
            self.abort_downstream(downstream_id);
        }
    }

    /// Takes what has connected so far and closes this worker's ends of the listening sockets.
    fn close_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            self.accept_all(index);
        }
        if let Some(drain) = &mut self.drain {
            drain.accepting_until_ms = 0;
        }
        self.reregister();
        for listener in &mut self.listeners {
            listener.close();
        }
    }
}

/// What a token of the epoll set stands for.
#[derive(Clone, Copy, Debug)]
enum Place {
    Control,
    Inbox,
    Listener(usize),
    Resolver,
    Session(Key),
}

const CONTROL: Token = Token(4);
const INBOX: Token = Token(12);
const RESOLVER: Token = Token(20);

/// The lowest three bits say what it is, the rest which one.
const KIND_BITS: u32 = 3;

pub(crate) fn listener_token(index: usize) -> Token {
    Token(index << KIND_BITS | 2)
}

impl Key {
    pub(crate) fn token(self) -> Token {
        match self {
            Self::Downstream(id) => Token(id << KIND_BITS),
            Self::Upstream(id) => Token(id << KIND_BITS | 1),
            Self::Leg(id) => Token(id << KIND_BITS | 3),
            Self::Exchange(_) => unreachable!("exchanges have no socket"),
        }
    }
}

impl Place {
    fn of(token: Token) -> Self {
        let index = token.0 >> KIND_BITS;
        match token.0 & 7 {
            0 => Self::Session(Key::Downstream(index)),
            1 => Self::Session(Key::Upstream(index)),
            2 => Self::Listener(index),
            3 => Self::Session(Key::Leg(index)),
            _ if token == CONTROL => Self::Control,
            _ if token == INBOX => Self::Inbox,
            _ => Self::Resolver,
        }
    }
}

fn load_identity(handed: &OwnedFd) -> io::Result<Rc<Identity>> {
    let read = os::map_private(handed.as_fd(), Identity::read)?;
    read.map(Rc::new)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}

/// Reads a published blob; `current` lends what is compiled already.
fn load(blob: &OwnedFd, expected: u64, current: Option<&Snapshot>) -> io::Result<Rc<Generation>> {
    let refused = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let decode = |bytes: &[u8]| match current {
        Some(current) => current.decode_next(bytes),
        None => Snapshot::decode(bytes),
    };
    let snapshot = os::map_private(blob.as_fd(), decode)?
        .map_err(|error| refused(format!("snapshot: {error}")))?;
    if snapshot.generation != expected {
        return Err(refused(format!(
            "snapshot has generation {}, {expected} was announced",
            snapshot.generation
        )));
    }
    Ok(Generation::new(snapshot))
}

/// Less than half of the descriptors: every connection may need one on the other side.
fn connections_max() -> usize {
    (os::descriptor_limit() / 2).saturating_sub(32).max(16)
}

#[cfg(test)]
mod tests;
