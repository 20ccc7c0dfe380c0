//! Making a leg: accepted or dialled, until the peer has been checked and `meshfast/1` begins.
//!
//! A worker keeps one dialled leg per endpoint and makes another when that one is full, leaving, or
//! was made with an older identity. Upstream sessions may wait for the handshake, each for the time
//! of its own connect.
//!
//! What it refuses: a leg without an identity of our own; a peer that is not who must answer there
//! (`tls` checks it, and nothing is read before); a handshake that takes too long.
//!
//! Invariants:
//! 1. `legs_to` names one leg for an endpoint slot at most, which is used only for the address and
//!    the identity that it was dialled for.
//! 2. Who still waits when a handshake ends gets a stream, or is told that the connect failed.
//!
//! Tests: `worker/tests/legs.rs`, `tests/mesh`.

use std::rc::Rc;

use meshfast_mesh::Dial;
use meshfast_wire::mux::{Connection, Role};

use super::{Endpoint, Leg};
use crate::error::Failure;
use crate::session::Session;
use crate::stream::Stream;
use crate::timers::Key;
use crate::tls::Tls;
use crate::upstream::Upstream;
use crate::worker::Worker;

/// For a TLS handshake to be done (row T10).
const HANDSHAKE_TIMEOUT_MS: u64 = 5_000;

/// A leg is left when this part of the time that the peer's certificate had left at the handshake is
/// still to come. A share, so that legs of a peer that cannot renew are made anew ever more often,
/// but not at every call.
const LEFT_BEFORE_EXPIRY: u64 = 10;

impl Worker {
    /// A connection came to a listener that demands mutual TLS.
    pub(crate) fn accept_leg(&mut self, listener: usize, stream: Stream) {
        let Some(identity) = &self.identity else {
            return self.rejected("tls.no_identity");
        };
        let tls = match Tls::server(identity) {
            Ok(tls) => tls,
            Err(failure) => return self.rejected(failure.0),
        };
        let mut session = Session::new(stream);
        session.tls = Some(Box::new(tls));
        let mut leg = Leg::new(session, Role::Server);
        leg.listener = listener;
        self.add_leg(leg);
    }

    /// Sends an exchange to an endpoint over a leg, which is made if there is none with room.
    pub(crate) fn dial_leg(&mut self, exchange_id: usize, dial: &Dial, slot: u32, expected: &str) {
        let leg_id = match self.leg_to(dial, slot, expected) {
            Ok(leg_id) => leg_id,
            Err(why) => {
                self.exchanges[exchange_id].upstream_address = Some(dial.address.clone());
                return self.connect_failed(exchange_id, Failure::ConnectFailed, &why);
            }
        };
        let session = Session::new(Stream::Leg {
            leg: leg_id,
            stream: 0,
        });
        let upstream_id = self
            .upstreams
            .insert(Upstream::new(session, &dial.address, Some(slot)));
        self.attach(exchange_id, upstream_id);
        if self.legs[leg_id].connection.is_some() {
            return self.open_stream(leg_id, upstream_id);
        }
        self.legs[leg_id].waiting.push(upstream_id);
        let deadline_ms = self.clock.now_ms() + dial.connect_timeout_ms;
        self.timers.arm(Key::Upstream(upstream_id), deadline_ms);
    }

    fn leg_to(&mut self, dial: &Dial, slot: u32, expected: &str) -> Result<usize, String> {
        if let Some(leg_id) = self.legs_to.get(&slot).copied()
            && let Some(leg) = self.legs.get(leg_id)
        {
            let is_to = |it: &Endpoint| it.address == dial.address && *it.expected == *expected;
            if !leg.endpoint.as_ref().is_some_and(is_to) {
                // The slot, or who is called there, has changed: nobody calls by it any more.
                self.leave_dialled(leg_id);
            } else if leg.has_room() {
                return Ok(leg_id);
            }
        }
        let identity = self.identity.as_ref().ok_or("no identity yet")?;
        let tls = Tls::client(identity, expected).map_err(|failure| failure.0.to_owned())?;
        let stream = Stream::dial(dial).map_err(|error| error.to_string())?;
        stream.tune();
        let mut session = Session::new(stream);
        session.tls = Some(Box::new(tls));
        session.io.writable = false;
        let mut leg = Leg::new(session, Role::Client);
        leg.endpoint = Some(Endpoint {
            slot,
            address: dial.address.clone(),
            expected: expected.into(),
        });
        let leg_id = self
            .add_leg(leg)
            .ok_or("the event loop takes no more sockets")?;
        self.legs_to.insert(slot, leg_id);
        Ok(leg_id)
    }

    fn add_leg(&mut self, mut leg: Leg) -> Option<usize> {
        let entry = self.legs.vacant_entry();
        let leg_id = entry.key();
        let token = Key::Leg(leg_id).token();
        leg.session
            .stream
            .register(self.poll.registry(), token)
            .ok()?;
        entry.insert(leg);
        let deadline_ms = self.clock.now_ms() + HANDSHAKE_TIMEOUT_MS;
        self.timers.arm(Key::Leg(leg_id), deadline_ms);
        Some(leg_id)
    }

    /// Begins `meshfast/1` once TLS has checked the peer; `false` before that.
    pub(super) fn establish(&mut self, leg_id: usize) -> bool {
        let leg = &mut self.legs[leg_id];
        let Some(peer) = leg.session.tls.as_ref().and_then(|tls| tls.peer()) else {
            return false;
        };
        leg.identity = Some(Rc::from(peer.name.as_str()));
        let wall_us = self.clock.wall_us();
        leg.expires_us = peer.expires_s.saturating_mul(1_000_000);
        let left_us = leg.expires_us.saturating_sub(wall_us);
        leg.leave_us = leg.expires_us - left_us / LEFT_BEFORE_EXPIRY;
        leg.rest(self.clock.now_ms());
        leg.connection = Some(Connection::new(leg.role, leg.session.output.tail()));
        let waiting = std::mem::take(&mut leg.waiting);
        self.arm_leg(leg_id);
        // The peers' proxies that had not been heard when we began to leave learn it now.
        if self.legs[leg_id].role == Role::Server && self.takes_no_calls() {
            self.leave(leg_id);
        }
        for upstream_id in waiting {
            let waits = |it: &Upstream| it.session.stream.leg() == Some((leg_id, 0));
            if self.upstreams.get(upstream_id).is_some_and(waits) {
                self.open_stream(leg_id, upstream_id);
            }
        }
        self.legs.contains(leg_id)
    }

    /// An upstream session that waits for a handshake goes: its number will be another's.
    pub(crate) fn stop_waiting(&mut self, upstream_id: usize, stream: &Stream) {
        if let Some((leg_id, _)) = stream.leg()
            && let Some(leg) = self.legs.get_mut(leg_id)
        {
            leg.waiting.retain(|waiting| *waiting != upstream_id);
        }
    }
}
