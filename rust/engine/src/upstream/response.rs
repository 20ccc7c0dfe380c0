//! Reading a response: interim heads, the final head, the body, and how each of them may break off.
//!
//! What it refuses: an answer that is not HTTP as `meshfast_wire::h1` accepts it, a 101 that was
//! not asked for, a flood of interim responses.
//!
//! Invariants:
//! 1. Until the final head is passed on, what goes wrong ends in another try or in an answer of
//!    ours; after it, in an end that does not look complete.
//! 2. A body is decoded and framed anew for the downstream; only the bytes of a tunnel pass as they
//!    are.
//!
//! Tests: `tests/dataplane/test_http1.py`, `tests/dataplane/test_rows.py`, `worker/tests/edges.rs`.

use meshfast_mesh::Outcome;
use meshfast_wire::h1::{BodyDecoder, BodyEncoder, Framing, Method, Parsed, Version};

use crate::buffer::SEND_AT_ONCE;
use crate::error::Failure;
use crate::exchange::{Half, Moved, Stage};
use crate::head;
use crate::timers::Key;
use crate::tries::Ending;
use crate::worker::Worker;

/// Interim (1xx) responses passed on per exchange; more is an attack (CVE-2024-53271).
const INTERIM_RESPONSES_MAX: u8 = 10;

impl Worker {
    /// Moves what the upstream has sent towards the downstream; `true` when anything moved.
    pub(crate) fn pump_response(&mut self, exchange_id: usize) -> bool {
        let mut moved = false;
        while let Some(exchange) = self.exchanges.get(exchange_id) {
            if exchange.stage != Stage::AwaitingHead {
                return self.pump_response_body(exchange_id) || moved;
            }
            if !self.take_response_head(exchange_id) {
                return moved;
            }
            moved = true;
        }
        moved
    }

    /// Reads one response head, interim or final; `false` when it is not whole yet.
    fn take_response_head(&mut self, exchange_id: usize) -> bool {
        let exchange = &mut self.exchanges[exchange_id];
        let Some(upstream_id) = exchange.upstream else {
            return false;
        };
        let upstream = &mut self.upstreams[upstream_id];
        let method = exchange
            .head()
            .map_or(Method::Other, |head| head.method_kind);
        let bytes = upstream.session.input.as_slice();
        upstream.is_answering |= !bytes.is_empty();
        let parsed = if bytes.is_empty() {
            Ok(Parsed::Incomplete)
        } else {
            upstream.head.parse(bytes, &self.limits, method)
        };
        match parsed {
            Ok(Parsed::Complete) => {
                self.response_head_came(exchange_id, upstream_id);
                true
            }
            Ok(Parsed::Incomplete) => {
                let io = upstream.session.io;
                if io.read_closed || io.broken {
                    self.upstream_left(exchange_id, upstream_id);
                    return true;
                }
                false
            }
            Err(error) => {
                self.response_refused(exchange_id, error.detail());
                true
            }
        }
    }

    fn response_head_came(&mut self, exchange_id: usize, upstream_id: usize) {
        let status = self.upstreams[upstream_id].head.status;
        let exchange = &mut self.exchanges[exchange_id];
        exchange.progress_ms = self.clock.now_ms();
        exchange.responding.head_bytes += self.upstreams[upstream_id].head.len as u64;
        match status {
            101 => self.switch_protocols(exchange_id, upstream_id),
            100..=199 => self.pass_interim(exchange_id, upstream_id),
            _ if self.answer_is_discarded(exchange_id, upstream_id) => {}
            _ => self.pass_final(exchange_id, upstream_id),
        }
    }

    fn pass_interim(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &mut self.exchanges[exchange_id];
        exchange.interim_responses += 1;
        if exchange.interim_responses > INTERIM_RESPONSES_MAX {
            return self.response_refused(exchange_id, "upstream_interim_response_flood");
        }
        let upstream = &mut self.upstreams[upstream_id];
        let downstream = &mut self.downstreams[exchange.downstream];
        let is_continue = upstream.head.status == 100;
        // The body has been asked for once; the next try has it from here.
        if !(is_continue && exchange.was_continued) {
            head::write_interim(
                exchange,
                &upstream.head,
                upstream.session.input.as_slice(),
                downstream.session.output.tail(),
            );
        }
        exchange.was_continued |= is_continue;
        upstream.session.input.consume(upstream.head.len);
        upstream.head.reset();
        let downstream_id = exchange.downstream;
        self.dirty(Key::Downstream(downstream_id));
    }

    /// 101 is right only in answer to an upgrade, and ends HTTP on both connections.
    fn switch_protocols(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &mut self.exchanges[exchange_id];
        let asked = exchange.head().is_some_and(|head| head.upgrade.is_some());
        if !asked || !exchange.requesting.ended {
            return self.response_refused(exchange_id, "upstream_upgrade_not_asked_for");
        }
        let downstream_id = exchange.downstream;
        self.write_final_head(exchange_id, upstream_id, Framing::None, true);
        self.open_tunnel(exchange_id);
        self.dirty(Key::Downstream(downstream_id));
    }

    fn pass_final(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &self.exchanges[exchange_id];
        let is_http11 = exchange
            .head()
            .is_none_or(|head| head.version == Version::Http11);
        let framing = match self.upstreams[upstream_id].head.framing {
            Framing::Close | Framing::Chunked if is_http11 => Framing::Chunked,
            Framing::Close | Framing::Chunked => Framing::Close,
            framing => framing,
        };
        let keep_alive = self.keeps_downstream(exchange_id)
            && framing != Framing::Close
            && self.exchanges[exchange_id].request_end_is_near();
        self.write_final_head(exchange_id, upstream_id, framing, keep_alive);
        let exchange = &mut self.exchanges[exchange_id];
        let upstream = &self.upstreams[upstream_id];
        let is_bodyless = matches!(upstream.head.framing, Framing::None | Framing::Length(0));
        if upstream.session.input.is_empty() && !is_bodyless {
            // An origin that writes head and body apart, with Nagle's algorithm on, sends the body when
            // the head is acknowledged, which the kernel does up to 40 ms late on a pooled connection.
            upstream.session.stream.acknowledge();
        }
        let decoder = BodyDecoder::new(upstream.head.framing, &self.limits);
        let half = Half::new(decoder, BodyEncoder::new(framing));
        exchange.responding = Half {
            head_bytes: exchange.responding.head_bytes,
            ..half
        };
        exchange.stage = Stage::Streaming;
        exchange.is_delimited = framing != Framing::Close;
        let downstream_id = exchange.downstream;
        self.downstreams[downstream_id].keep_alive = keep_alive;
        self.dirty(Key::Downstream(downstream_id));
    }

    fn write_final_head(
        &mut self,
        exchange_id: usize,
        upstream_id: usize,
        framing: Framing,
        keep_alive: bool,
    ) {
        let exchange = &mut self.exchanges[exchange_id];
        let upstream = &mut self.upstreams[upstream_id];
        let downstream = &mut self.downstreams[exchange.downstream];
        let bytes = upstream.session.input.as_slice();
        let output = downstream.session.output.tail();
        let start = output.len();
        head::write_response(exchange, &upstream.head, bytes, framing, keep_alive, output);
        if exchange.is_edited {
            head::edit(exchange.response_edits(), start, output);
        }
        exchange.outcome.status = upstream.head.status;
        exchange.outcome.detail = "via_upstream";
        exchange.answered_us = self.clock.now_us();
        let length = upstream.head.len;
        upstream.session.input.consume(length);
        if exchange.further.is_some() {
            self.tries_are_over(exchange_id);
        }
    }

    fn pump_response_body(&mut self, exchange_id: usize) -> bool {
        let exchange = &mut self.exchanges[exchange_id];
        let Some(upstream_id) = exchange.upstream else {
            return false;
        };
        if !matches!(exchange.stage, Stage::Streaming | Stage::Tunnel) || exchange.responding.ended
        {
            return false;
        }
        let upstream = &mut self.upstreams[upstream_id];
        let downstream_id = exchange.downstream;
        let downstream = &mut self.downstreams[downstream_id];
        let io = upstream.session.io;
        let source = &mut upstream.session.input;
        let sink = &mut downstream.session.output;
        let moved =
            exchange
                .responding
                .pump(source, io.read_closed && !io.broken, sink, &mut self.blocks);
        let is_large = sink.len() >= SEND_AT_ONCE;
        if moved != Moved::Nothing {
            exchange.progress_ms = self.clock.now_ms();
        }
        let is_broken = io.broken && source.is_empty();
        self.dirty(Key::Downstream(downstream_id));
        match moved {
            Moved::Broken(error) => self.response_refused(exchange_id, error.detail()),
            Moved::Cut => self.response_cut(exchange_id),
            Moved::Nothing if is_broken => self.response_cut(exchange_id),
            Moved::Ended => {
                if self.exchanges[exchange_id].stage == Stage::Tunnel {
                    self.downstreams[downstream_id].session.finish_writing = true;
                }
                self.finish_if_complete(exchange_id);
            }
            Moved::Nothing => return false,
            Moved::Some => {}
        }
        if is_large {
            self.flush_downstream(downstream_id);
        }
        true
    }

    /// The upstream closed before a whole response head.
    fn upstream_left(&mut self, exchange_id: usize, upstream_id: usize) {
        let upstream = &self.upstreams[upstream_id];
        // What has begun to answer has seen the request, whatever is said of it.
        let ending = upstream.ending.filter(|_| !upstream.is_answering);
        let (failure, outcome) = match ending {
            Some(Ending::Unreached) => {
                let why = "the application takes no connection";
                return self.connect_failed(exchange_id, Failure::ConnectFailed, why);
            }
            Some(Ending::Refused) => (Failure::StreamRefused, Outcome::Refused),
            Some(Ending::Broken | Ending::Stale) | None => {
                let was_reused = upstream.has_served || ending == Some(Ending::Stale);
                let is_stale = was_reused && !upstream.is_answering;
                let is_first = !self.exchanges[exchange_id].was_stale;
                let outcome = Outcome::Reset {
                    is_sent: !upstream.is_unsent,
                    is_stale: is_stale && is_first,
                };
                if is_stale {
                    self.drop_idle_beside(upstream_id);
                }
                (Failure::UpstreamReset, outcome)
            }
        };
        self.exchanges[exchange_id].transport_failure = "connection closed by upstream".to_owned();
        self.try_failed(exchange_id, failure, outcome);
    }

    /// The upstream's answer is not HTTP as we accept it.
    fn response_refused(&mut self, exchange_id: usize, detail: &'static str) {
        self.rejected(detail);
        self.detach(exchange_id, false);
        self.fail_with(exchange_id, Failure::UpstreamProtocol, Some(detail));
    }

    /// The response broke off after its head was passed on: it must not look complete.
    fn response_cut(&mut self, exchange_id: usize) {
        self.detach(exchange_id, false);
        self.fail(exchange_id, Failure::UpstreamTerminated);
    }
}
