//! The worker's three message channels: supervisor, inbox of handed-over connections, resolver.
//!
//! All are `SOCK_SEQPACKET`; supervisor and resolver speak one JSON object a message. A worker never
//! waits on any of them: a full queue drops a resolver question (the exchange times out) and keeps a
//! connection here that could not be handed over. An end of file on the supervisor's channel means
//! the supervisor is dead, and the worker drains.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::os;

/// What the supervisor says.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Order {
    /// Finish within the deadline.
    Drain {
        /// Milliseconds from now.
        deadline_ms: u64,
        /// Nobody else will accept from the listening sockets: connections that still come are
        /// taken until no more come, then the sockets are closed. Else others go on accepting.
        #[serde(default)]
        closing: bool,
    },
    /// Take no more calls for the application, and say when the last one has ended; what the
    /// application itself calls goes on. The supervisor keeps the time.
    DrainInbound,
    /// Who we are from now on; its descriptor follows.
    Identity {
        /// Repeated in the answer.
        serial: u64,
    },
    /// A listening socket that came with the configuration; its descriptor follows.
    Listener {
        /// The listener's name in snapshots.
        name: String,
    },
    /// Serve from this snapshot from now on; its descriptor follows.
    Snapshot {
        /// Its generation.
        generation: u64,
    },
}

/// What a worker answers.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Report {
    /// The snapshot of this generation is in use.
    Applied {
        /// Its generation.
        generation: u64,
    },
    /// New connections are made with the identity of this serial.
    IdentityApplied {
        /// The order's.
        serial: u64,
    },
    /// Everything is finished; the process ends.
    Drained,
    /// No call for the application is under way, and none will come.
    InboundDrained,
    /// Accepting.
    Ready,
}

/// What a worker asks of the resolver.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Question<'a> {
    /// The addresses of a host.
    Resolve {
        /// Repeated in the answer.
        id: u64,
        /// A host name.
        host: &'a str,
    },
}

/// What the resolver answers.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Answer {
    /// To [`Question::Resolve`].
    Resolved {
        /// The question's.
        id: u64,
        /// IP addresses, in order of preference; empty on failure.
        addresses: Vec<String>,
        /// Why there are none.
        error: Option<String>,
    },
}

/// One end of a channel.
pub(crate) struct Channel {
    descriptor: OwnedFd,
    buffer: Vec<u8>,
}

/// One message: its bytes and its descriptors.
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Channel {
    pub(crate) fn new(raw: RawFd) -> io::Result<Self> {
        Ok(Self {
            descriptor: os::owned(raw)?,
            buffer: Vec::new(),
        })
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }

    /// The next message; `Ok(None)` when the other end is gone, `WouldBlock` when none waits.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Message>> {
        self.buffer.resize(os::MESSAGE_BYTES_MAX, 0);
        let got = os::receive(self.descriptor.as_fd(), &mut self.buffer);
        let message = got.map(|got| {
            got.map(|(length, descriptors)| Message {
                bytes: self.buffer[..length].to_vec(),
                descriptors,
            })
        });
        self.buffer = Vec::new();
        message
    }

    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<()> {
        os::send(self.descriptor.as_fd(), bytes, descriptors)
    }

    pub(crate) fn send_json(&self, message: &impl Serialize) -> io::Result<()> {
        self.send(&serde_json::to_vec(message)?, &[])
    }
}
