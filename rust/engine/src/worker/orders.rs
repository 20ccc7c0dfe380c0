//! What the supervisor orders and the agent answers: snapshots, identities, listeners, drains,
//! addresses.
//!
//! What it refuses: a message it does not understand, an order without its descriptor, a snapshot
//! or an identity it cannot read. Each is counted, and what was in force stays.
//!
//! Invariants:
//! 1. An order is reported as applied after it is in force here, and only then.
//! 2. An exchange keeps the generation it began with. One that nobody holds any more is let go, and
//!    shared memory says which is the oldest that is held.
//!
//! Tests: `worker/tests/edges.rs`, `tests/dataplane/test_edges.py`,
//! `tests/dataplane/test_lifecycle.py`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use meshfast_mesh::Snapshot;

use super::Worker;
use super::drain::{ACCEPTING_MAX_MS, ORPHAN_ACCEPTING_MS};
use crate::control::{Answer, Order, Question, Report};
use crate::exchange::Generation;
use crate::listener::Listener;
use crate::os;
use crate::tls::Identity;

impl Worker {
    pub(super) fn take_orders(&mut self) {
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

    pub(super) fn add_listener(&mut self, name: String, socket: OwnedFd) {
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

    pub(super) fn apply(&mut self, loaded: Rc<Generation>, number: u64) {
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
    pub(super) fn retire_generations(&mut self) {
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

    pub(super) fn take_answers(&mut self) {
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
    pub(super) fn report(&self, report: &Report) {
        let _ = self.control.send_json(report);
    }
}

/// Reads a published blob; `current` lends what is compiled already.
pub(super) fn load(
    blob: &OwnedFd,
    expected: u64,
    current: Option<&Snapshot>,
) -> io::Result<Rc<Generation>> {
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

pub(super) fn load_identity(handed: &OwnedFd) -> io::Result<Rc<Identity>> {
    let read = os::map_private(handed.as_fd(), Identity::read)?;
    read.map(Rc::new)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidData, why))
}
