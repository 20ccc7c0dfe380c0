//! The pool of idle connections.
//!
//! It is per worker and endpoint slot, last in first out. An idle connection that says anything or
//! closes leaves the pool at once; when one closes at a request, those that have been idle for
//! longer go with it.
//!
//! What it refuses: a method that is not safe gets a pooled connection only when it was used a
//! moment ago, because a server may close an idle one just as the request leaves, and such a
//! request must not be sent twice (RFC 9110 9.2.2). A connection to an earlier owner of the slot is
//! never given out.
//!
//! Invariant: what is in the pool has no exchange, has nothing unread or unsent, and has a
//! deadline.
//!
//! Tests: below; `worker/tests.rs`, `tests/dataplane/test_http1.py`,
//! `tests/dataplane/test_edges.py`.

use std::collections::HashMap;

use meshfast_mesh::Address;

use crate::exchange::Carries;
use crate::timers::Key;
use crate::worker::Worker;

/// Idle connections closed when descriptors run out.
const EVICTED_AT_ONCE: usize = 16;

/// How long an idle connection may have been idle to still carry a method that is not safe.
const JUST_USED_MS: u64 = 200;

/// Idle connections.
#[derive(Default)]
pub(crate) struct Pool {
    by_slot: Vec<Vec<usize>>,
    passthrough: HashMap<Address, Vec<usize>>,
}

impl Pool {
    fn idle(&mut self, slot: Option<u32>, address: &Address) -> &mut Vec<usize> {
        match slot {
            Some(slot) => {
                let slot = slot as usize;
                if self.by_slot.len() <= slot {
                    self.by_slot.resize_with(slot + 1, Vec::new);
                }
                &mut self.by_slot[slot]
            }
            None => self.passthrough.entry(address.clone()).or_default(),
        }
    }

    /// Takes the connection used last.
    fn pop(&mut self, slot: Option<u32>, address: &Address) -> Option<usize> {
        match slot {
            Some(slot) => self.by_slot.get_mut(slot as usize)?.pop(),
            None => self.passthrough.get_mut(address)?.pop(),
        }
    }

    /// Some idle connections, the longest idle of each place first.
    fn all(&self, count: usize) -> Vec<usize> {
        let places = self.passthrough.values().chain(&self.by_slot);
        places.flatten().copied().take(count).collect()
    }

    pub(super) fn forget(&mut self, upstream: usize, slot: Option<u32>, address: &Address) {
        let idle = self.idle(slot, address);
        if let Some(place) = idle.iter().position(|id| *id == upstream) {
            idle.remove(place);
        }
        if slot.is_none() && idle.is_empty() {
            self.passthrough.remove(address);
        }
    }
}

impl Worker {
    /// Takes the connection used last, if it may carry this request.
    pub(super) fn take_idle(
        &mut self,
        exchange_id: usize,
        slot: Option<u32>,
        address: &Address,
    ) -> Option<usize> {
        let exchange = &self.exchanges[exchange_id];
        // A second try follows a stale connection or a dead endpoint: it gets a fresh one.
        if exchange.carries != Carries::Http || exchange.tries > 1 {
            return None;
        }
        let is_safe = exchange
            .head()
            .is_some_and(|head| head.method_kind.is_safe());
        let now_ms = self.clock.now_ms();
        while let Some(upstream_id) = self.pool.pop(slot, address) {
            let upstream = &self.upstreams[upstream_id];
            if upstream.address != *address {
                // The slot has a new owner; connections to the old one end here.
                self.drop_upstream(upstream_id);
                continue;
            }
            if !may_carry(is_safe, now_ms - upstream.idle_since_ms) {
                self.pool.idle(slot, address).push(upstream_id);
                return None;
            }
            return Some(upstream_id);
        }
        None
    }

    pub(super) fn keep_upstream(&mut self, upstream_id: usize, idle_timeout_ms: u64) {
        let now_ms = self.clock.now_ms();
        let upstream = &mut self.upstreams[upstream_id];
        upstream.has_served = true;
        upstream.idle_since_ms = now_ms;
        // What the upstream says of its own patience, less a second for the way (RFC 9110, Keep-Alive).
        let said_ms = upstream
            .head
            .keep_alive_timeout_s
            .map(|s| u64::from(s) * 1_000);
        let learned_ms = said_ms.map_or(idle_timeout_ms, |said| said.saturating_sub(1_000));
        upstream.idle_timeout_ms = idle_timeout_ms.min(learned_ms);
        let deadline_ms = now_ms + upstream.idle_timeout_ms;
        self.timers.arm(Key::Upstream(upstream_id), deadline_ms);
        let upstream = &self.upstreams[upstream_id];
        self.pool
            .idle(upstream.slot, &upstream.address)
            .push(upstream_id);
    }

    /// Closes the idle connections to where this one went: the pool gives the last used first, so they
    /// are older than one that was too old.
    pub(super) fn drop_idle_beside(&mut self, upstream_id: usize) {
        let upstream = &self.upstreams[upstream_id];
        let (slot, address) = (upstream.slot, upstream.address.clone());
        while let Some(idle) = self.pool.pop(slot, &address) {
            self.drop_upstream(idle);
        }
    }

    /// Closes idle connections to make room for one that is wanted; `false` when there are none.
    pub(super) fn evict_idle(&mut self) -> bool {
        let idle = self.pool.all(EVICTED_AT_ONCE);
        for upstream_id in &idle {
            self.drop_upstream(*upstream_id);
        }
        !idle.is_empty()
    }
}

/// Whether a connection that has been idle for so long may carry a request: a server may close it just
/// as the request leaves, and only a safe one can be sent again without harm.
fn may_carry(is_safe: bool, idle_ms: u64) -> bool {
    is_safe || idle_ms <= JUST_USED_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_is_not_safe_takes_only_a_connection_used_200_ms_ago_at_most() {
        for idle_ms in [0, 199, 200] {
            assert!(may_carry(false, idle_ms) && may_carry(true, idle_ms));
        }
        for idle_ms in [201, 1_000, 60_000] {
            assert!(!may_carry(false, idle_ms) && may_carry(true, idle_ms));
        }
    }
}
