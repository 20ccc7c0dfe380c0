//! Listening sockets: accepting, exact balance between workers, and what a connection belongs to.
//!
//! All workers accept from the same sockets. A worker that holds more connections than the least
//! loaded one hands the accepted socket over through that worker's inbox, so that a few long-lived
//! connections do not end up on one worker. Descriptors run out before anything breaks: above the
//! limit, or when the kernel has none left, accepting pauses for a moment instead of spinning.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use meshfast_mesh::{Address, Dial, Direction, Protocol};
use mio::net::{TcpListener, UnixListener};

use crate::downstream::{Downstream, HEAD_TIMEOUT_MS};
use crate::exchange::Generation;
use crate::os;
use crate::session::Session;
use crate::stream::{Peer, Stream};
use crate::timers::Key;
use crate::worker::{Worker, listener_token};

/// Connections accepted from one socket before others have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// At the connection limit: how long a connection must have been idle to be closed for others, and
/// how many are closed at a time.
const IDLE_AT_LIMIT_MS: u64 = 1_000;
const CLOSED_AT_LIMIT: usize = 64;

/// How long a removed listener can still serve what was handed over to this worker.
const LEAVE_MS: u64 = 5_000;

/// How long accepting pauses when there are no descriptors.
pub(crate) const ACCEPT_PAUSE_MS: u64 = 100;

/// A listening socket and the part of the snapshot it serves.
pub(crate) struct Listener {
    pub(crate) name: String,
    /// Closed in the later part of a drain.
    socket: Option<Acceptor>,
    local: Option<SocketAddr>,
    /// The newest generation that has this listener, and its place there: what requests on it are
    /// routed by. None when no snapshot of this worker has it, or has not for a while.
    place: Option<(Rc<Generation>, usize)>,
    /// Since when the newest snapshot does not have it, in ms: it accepts nothing, and each of its
    /// connections closes after the request it is at. 0 while the snapshot has it.
    removed_ms: u64,
    /// Its application ends: no more connections, whatever configuration comes.
    is_left: bool,
    is_registered: bool,
}

enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Acceptor {
    fn new(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = std::net::TcpListener::from(descriptor);
        socket.set_nonblocking(true)?;
        if socket.local_addr().is_ok() {
            return Ok(Self::Tcp(TcpListener::from_std(socket)));
        }
        let socket = std::os::unix::net::UnixListener::from(OwnedFd::from(socket));
        Ok(Self::Unix(UnixListener::from_std(socket)))
    }

    fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, peer) = socket.accept()?;
                Ok((Stream::Tcp(stream), Peer::Ip(peer)))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept()?;
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }

    fn local(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(socket) => socket.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }
}

impl Listener {
    pub(crate) fn new(
        name: String,
        descriptor: OwnedFd,
        generation: &Rc<Generation>,
        now_ms: u64,
    ) -> io::Result<Self> {
        let socket = Acceptor::new(descriptor)?;
        let local = socket.local();
        let mut listener = Self {
            name,
            socket: Some(socket),
            local,
            place: None,
            removed_ms: 0,
            is_left: false,
            is_registered: false,
        };
        listener.apply(generation, now_ms);
        Ok(listener)
    }

    /// Takes its part of a new generation, if it has one there.
    pub(crate) fn apply(&mut self, generation: &Rc<Generation>, now_ms: u64) {
        match generation.snapshot.listener(&self.name) {
            Some(index) => {
                self.place = Some((Rc::clone(generation), index));
                self.removed_ms = 0;
            }
            None if self.removed_ms == 0 => self.removed_ms = now_ms,
            None => {}
        }
    }

    /// The generation that requests on this listener are routed by, and its place there.
    pub(crate) fn place(&self) -> Option<(&Rc<Generation>, usize)> {
        self.place
            .as_ref()
            .map(|(generation, index)| (generation, *index))
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.removed_ms != 0
    }

    /// Lets go of the generation of a listener that was removed some time ago. Connections that other
    /// workers accepted before they knew have arrived by then.
    pub(crate) fn leave(&mut self, now_ms: u64) {
        if self.removed_ms != 0 && now_ms - self.removed_ms > LEAVE_MS {
            self.place = None;
        }
    }

    /// Whether it takes calls for the application.
    pub(crate) fn is_inbound(&self) -> bool {
        let direction = |(generation, index): (&Rc<Generation>, usize)| {
            generation.snapshot.listeners[index].direction
        };
        self.place().map(direction) == Some(Direction::Inbound)
    }

    /// Takes no more connections.
    pub(crate) fn leave_inbound(&mut self) {
        self.is_left = true;
    }

    /// Whether it listens on this port of every address.
    pub(crate) fn is_on_all(&self, port: u16) -> bool {
        self.local
            .is_some_and(|local| local.ip().is_unspecified() && local.port() == port)
    }

    /// Whether this dial would come back here: a request loop (row R5).
    pub(crate) fn is_reached_by(&self, dial: &Dial) -> bool {
        self.local
            .is_some_and(|local| dial.reaches(&Address::Tcp(local)))
    }

    /// Closes this worker's end of the socket.
    pub(crate) fn close(&mut self) {
        self.socket = None;
        self.is_registered = false;
    }

    /// Takes the socket of a listener that comes back after it was closed.
    pub(crate) fn reopen(&mut self, descriptor: OwnedFd) -> io::Result<()> {
        if self.socket.is_none() {
            let socket = Acceptor::new(descriptor)?;
            self.local = socket.local();
            self.socket = Some(socket);
        }
        Ok(())
    }

    fn demands_tls(&self) -> bool {
        self.place()
            .is_some_and(|(generation, index)| generation.snapshot.listeners[index].tls.is_some())
    }

    fn protocol(&self) -> Option<Protocol> {
        let (generation, index) = self.place()?;
        Some(generation.snapshot.listeners[index].protocol)
    }
}

impl Worker {
    /// Puts every listener that should accept into the epoll set, and takes the others out.
    pub(crate) fn register_listeners(&mut self) -> io::Result<()> {
        let accepting = self.is_accepting();
        for (index, listener) in self.listeners.iter_mut().enumerate() {
            let wanted = accepting && !listener.is_removed() && !listener.is_left;
            let Some(socket) = &listener.socket else {
                continue;
            };
            if wanted == listener.is_registered {
                continue;
            }
            let descriptor = socket.descriptor();
            if wanted {
                os::add_shared(&self.poll, descriptor, listener_token(index))?;
            } else {
                os::remove(&self.poll, descriptor)?;
            }
            listener.is_registered = wanted;
        }
        Ok(())
    }

    /// Connections wait at a listener.
    pub(crate) fn accept(&mut self, index: usize) {
        for _ in 0..ACCEPTS_PER_TURN {
            if !self.listeners[index].is_registered || !self.accept_one(index) {
                return;
            }
        }
    }

    /// Takes everything that waits at a listener.
    pub(crate) fn accept_all(&mut self, index: usize) {
        while self.listeners[index].is_registered && self.accept_one(index) {}
    }

    /// Accepts one connection; `false` when none waits or none may be taken.
    fn accept_one(&mut self, index: usize) -> bool {
        if self.downstreams.len() + self.legs.len() >= self.connections_max {
            self.close_longest_idle();
            self.pause_accepting();
            return false;
        }
        let Some(socket) = &self.listeners[index].socket else {
            return false;
        };
        match socket.accept() {
            Ok((stream, peer)) => {
                self.accepted_now();
                self.place(index, stream, peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) if is_out_of_descriptors(&error) => {
                self.pause_accepting();
                return false;
            }
            // The connection died in the queue (accept(2)); the next one may be well.
            Err(error) if is_of_the_connection(&error) => {}
            Err(_) => {
                self.pause_accepting();
                return false;
            }
        }
        true
    }

    /// Connections that only wait make room for those that want something, the longest idle first.
    fn close_longest_idle(&mut self) {
        let now_ms = self.clock.now_ms();
        let mut idle: Vec<(u64, usize)> = self
            .downstreams
            .iter()
            .filter(|(_, it)| it.is_idle() && now_ms - it.idle_since_ms > IDLE_AT_LIMIT_MS)
            .map(|(id, it)| (it.idle_since_ms, id))
            .collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().take(CLOSED_AT_LIMIT) {
            self.close_downstream(id);
        }
    }

    fn pause_accepting(&mut self) {
        self.rejected("connection_limit");
        self.accept_paused_until_ms = self.clock.now_ms() + ACCEPT_PAUSE_MS;
        self.reregister();
    }

    /// Keeps an accepted connection or hands it to the worker that has the fewest.
    fn place(&mut self, index: usize, stream: Stream, peer: Peer) {
        let mine = self.downstreams.len() as u64;
        let generation = self.generation.number();
        let now_ms = self.clock.now_ms();
        let least = self
            .outboxes
            .iter()
            .filter(|outbox| {
                outbox
                    .watch
                    .is_awake(self.share.line.progress_of(outbox.slot), now_ms)
            })
            .filter_map(|outbox| Some((self.share.line.load_of(outbox.slot, generation)?, outbox)))
            .min_by_key(|(load, outbox)| (*load, outbox.slot));
        if let Some((load, outbox)) = least
            && load < mine
            && let Some(socket) = stream.descriptor()
        {
            let name = self.listeners[index].name.as_bytes();
            if outbox.channel.send(name, &[socket.as_raw_fd()]).is_ok() {
                return self.share.line.handed_over_to(outbox.slot);
            }
        }
        self.adopt(index, stream, peer);
    }

    /// Connections that other workers handed over.
    pub(crate) fn take_handed_over(&mut self) {
        while let Ok(Some(message)) = self.inbox.receive() {
            let named = self
                .listeners
                .iter()
                .position(|listener| listener.name.as_bytes() == message.bytes.as_slice());
            self.share.line.taken_from_inbox();
            let Some(index) = named else { continue };
            for descriptor in message.descriptors {
                if let Ok(stream) = Stream::from_descriptor(descriptor) {
                    let peer = stream.peer();
                    self.adopt(index, stream, peer);
                }
            }
        }
    }

    fn adopt(&mut self, index: usize, mut stream: Stream, peer: Peer) {
        // Without a place in a snapshot nobody knows what to do with it.
        let Some(protocol) = self.listeners[index].protocol() else {
            return self.rejected("listener_removed");
        };
        stream.tune();
        if self.listeners[index].demands_tls() {
            return self.accept_leg(index, stream);
        }
        let entry = self.downstreams.vacant_entry();
        let downstream_id = entry.key();
        let token = Key::Downstream(downstream_id).token();
        if stream.register(self.poll.registry(), token).is_err() {
            return;
        }
        let now_ms = self.clock.now_ms();
        entry.insert(Downstream::new(Session::new(stream), index, peer, now_ms));
        self.share.line.connection_opened();
        match protocol {
            Protocol::Http => {
                self.timers
                    .arm(Key::Downstream(downstream_id), now_ms + HEAD_TIMEOUT_MS);
            }
            Protocol::Tcp => self.begin_tcp(downstream_id),
        }
    }
}

/// Errors that accept(2) passes on from the connection it would have given.
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::EINTR
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::ENONET
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EPERM
                | libc::EPROTO
        )
    )
}

pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
