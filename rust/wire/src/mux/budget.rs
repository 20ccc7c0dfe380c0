//! What a peer may make us do for nothing. Beyond it the connection ends with ENHANCE_YOUR_CALM.
//!
//! Three rules, all for peers that spend our time without carrying anything:
//! - **frames**: every frame that carries nothing of a stream costs one of an allowance. Opening a
//!   stream and sending DATA earn some, since they are answered by such frames; time gives some back,
//!   for PING. A flood of PING, SETTINGS, PRIORITY, WINDOW_UPDATE, RST_STREAM, unknown types, repeated
//!   answers or refused openings ends here, before its answers fill the output (CVE-2019-9512, -9513,
//!   -9515).
//! - **resets**: streams that are reset right after they were opened, before they were answered, may
//!   not be the larger part of all (CVE-2023-44487).
//! - **empty DATA** that does not end its stream may not come twice in a row (CVE-2019-9518).
//!
//! What it does not limit: small DATA frames. They are what an interactive connection is made of, and
//! cost their sender as much as us.
//!
//! Tests: the floods in `tests/wire/mux.rs`, fuzz target `mux`.

use crate::error::{Error, ErrorKind};

/// The numbers of the three rules; the only place that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Frames that carry nothing, at once: Envoy's `max_outbound_control_frames`, and what nghttp2
    /// lets wait to be acknowledged.
    pub idle_frames: u32,
    /// How many of them each second gives back: the rate of nghttp2's limit on stream resets.
    pub idle_frames_per_second: u32,
    /// How many of them an opened stream and a DATA frame that we send give back: Envoy's
    /// `max_inbound_window_update_frames_per_data_frame_sent`.
    pub idle_frames_earned: u32,
    /// Streams that are judged together: Envoy's `overload.premature_reset_total_stream_count`.
    pub judged_streams: u32,
    /// Of these, how many may have been reset young and unanswered: half, as Envoy.
    pub young_resets: u32,
    /// Below this age a stream is young, in ms: Envoy's
    /// `overload.premature_reset_min_stream_lifetime_seconds`.
    pub young_ms: u64,
    /// DATA frames without bytes in a row: Envoy's
    /// `max_consecutive_inbound_frames_with_empty_payload`.
    pub empty_data_in_a_row: u32,
    /// Entries of one SETTINGS frame: nghttp2's `NGHTTP2_DEFAULT_MAX_SETTINGS` (CVE-2020-11080).
    pub settings_entries: usize,
}

/// What holds for every connection.
pub const LIMITS: Limits = Limits {
    idle_frames: 1_000,
    idle_frames_per_second: 33,
    idle_frames_earned: 10,
    judged_streams: 500,
    young_resets: 250,
    young_ms: 1_000,
    empty_data_in_a_row: 1,
    settings_entries: 32,
};

/// What one peer has left.
#[derive(Debug)]
pub(super) struct Budget {
    now_ms: u64,
    /// Until when time has given frames back.
    refilled_ms: u64,
    idle_frames: u32,
    closed: u32,
    young_resets: u32,
    empty_data: u32,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self {
            now_ms: 0,
            refilled_ms: 0,
            idle_frames: LIMITS.idle_frames,
            closed: 0,
            young_resets: 0,
            empty_data: 0,
        }
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Time has passed.
    pub(super) fn at(&mut self, now_ms: u64) {
        self.now_ms = now_ms;
        let each_ms = 1_000 / u64::from(LIMITS.idle_frames_per_second);
        let back = now_ms.saturating_sub(self.refilled_ms) / each_ms;
        self.refilled_ms += back * each_ms;
        self.give_back(u32::try_from(back).unwrap_or(u32::MAX));
    }

    /// A stream was opened, or DATA was sent: frames without load answer it.
    pub(super) fn earn(&mut self) {
        self.give_back(LIMITS.idle_frames_earned);
    }

    fn give_back(&mut self, count: u32) {
        self.idle_frames = self
            .idle_frames
            .saturating_add(count)
            .min(LIMITS.idle_frames);
    }

    /// A frame has come that carries nothing of a stream.
    pub(super) fn spend(&mut self) -> Result<(), Error> {
        let left = self.idle_frames.checked_sub(1);
        self.idle_frames = left.ok_or(ErrorKind::MuxFrameFlood)?;
        Ok(())
    }

    /// A DATA frame has come, `empty` when it neither has bytes nor ends its stream.
    pub(super) fn data(&mut self, empty: bool) -> Result<(), Error> {
        if !empty {
            self.empty_data = 0;
            return Ok(());
        }
        self.empty_data += 1;
        if self.empty_data > LIMITS.empty_data_in_a_row {
            return Err(ErrorKind::MuxEmptyFlood.into());
        }
        self.spend()
    }

    /// A stream that the peer opened at `opened_ms` was reset by it, `answered` by us before or not.
    pub(super) fn reset(&mut self, opened_ms: u64, answered: bool) -> Result<(), Error> {
        let is_young = self.now_ms.saturating_sub(opened_ms) < LIMITS.young_ms;
        self.young_resets += u32::from(is_young && !answered);
        if self.young_resets > LIMITS.young_resets {
            return Err(ErrorKind::MuxResetFlood.into());
        }
        self.closed();
        Ok(())
    }

    /// A stream is over.
    pub(super) fn closed(&mut self) {
        self.closed += 1;
        if self.closed >= LIMITS.judged_streams {
            (self.closed, self.young_resets) = (0, 0);
        }
    }
}
