//! The endpoint an exchange goes to: the balancer's choice among those that have neither failed
//! this exchange nor refused a connect a moment ago.
//!
//! What it does not do: compare endpoints (`mesh/balance` does), or eject them. When all are to be
//! avoided, one of them is chosen still.
//!
//! Tests: `test_one_good_endpoint_among_refusing_ones_answers_everything` in
//! `tests/dataplane/test_hostile.py`, `worker/tests/tries.rs`.

use meshfast_mesh::{Dial, Loads};
use rustc_hash::FxHashMap;

use crate::exchange::Destination;
use crate::shared::EndpointLines;
use crate::worker::Worker;

/// How long an endpoint that refused is the second choice.
pub(super) const REFUSAL_MS: u64 = 2_000;

/// Endpoints whose last connect failed, and until when, in ms, others are preferred to them. One that
/// refuses has nothing active, so it would win every comparison.
#[derive(Default)]
pub(crate) struct Refusals {
    pub(super) until_ms: FxHashMap<u32, u64>,
}

/// The balancer's view: active requests in shared memory, and whom to avoid while others are there.
struct SharedLoads<'a> {
    lines: &'a EndpointLines,
    refusals: &'a Refusals,
    now_ms: u64,
}

impl Loads for SharedLoads<'_> {
    fn active(&self, slot: u32) -> u32 {
        self.lines.active(slot)
    }

    fn available(&self, slot: u32) -> bool {
        let until_ms = self.refusals.until_ms.get(&slot);
        until_ms.is_none_or(|until_ms| *until_ms <= self.now_ms)
    }
}

impl Worker {
    /// Where to, the endpoint's slot, and who must answer there when it is called by mutual TLS.
    pub(super) fn choose(
        &mut self,
        exchange_id: usize,
    ) -> Option<(Dial, Option<u32>, Option<String>)> {
        let exchange = &mut self.exchanges[exchange_id];
        match exchange.destination.as_ref()? {
            Destination::Passthrough(dial) => Some((dial.clone(), None, None)),
            Destination::Cluster(index) => {
                let cluster = &exchange.generation.snapshot.clusters[*index];
                let cursor = &exchange.generation.turns[*index];
                let mut turn = cursor.get();
                let now_ms = self.clock.now_ms();
                let lines = &self.share.endpoints;
                let loads = SharedLoads {
                    lines,
                    refusals: &self.refusals,
                    now_ms,
                };
                let tried = &exchange.tried;
                let chosen = cluster
                    .pick(&loads, &mut self.random, tried, &mut turn)
                    .or_else(|| {
                        let refusals = &Refusals::default();
                        let anyone = SharedLoads {
                            lines,
                            refusals,
                            now_ms,
                        };
                        let random = &mut self.random;
                        cluster
                            .pick(&anyone, random, tried, &mut turn)
                            // All of them failed this exchange: any is better than none.
                            .or_else(|| cluster.pick(&loads, random, &[], &mut turn))
                            .or_else(|| cluster.pick(&anyone, random, &[], &mut turn))
                    });
                cursor.set(turn);
                let chosen = chosen?;
                let endpoint = &cluster.endpoints[chosen];
                let principal = cluster.tls.map(|_| endpoint.workload.principal.clone());
                let answer = (
                    Dial::endpoint(cluster, endpoint),
                    Some(endpoint.slot),
                    principal,
                );
                exchange.endpoint = Some(chosen as u32);
                Some(answer)
            }
        }
    }
}
