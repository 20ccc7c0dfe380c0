//! Time, read once per loop turn and handed to everything that decides.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The moment a turn works with. Microseconds; the monotonic ones count from the worker's start.
pub(crate) struct Clock {
    start: Instant,
    now_us: u64,
    /// The same in ms: asked for a dozen times a turn, and a division each.
    now_ms: u64,
    /// What to add to `now_us` for the time of day.
    wall_ahead_us: u64,
    /// When to ask for the time of day again.
    wall_stale_us: u64,
    #[cfg(test)]
    ahead: std::time::Duration,
}

/// A step of the time of day (NTP, an operator) is noticed this late: it is for logs only, and asking
/// every turn was 100 of a turn's 700 instructions.
const WALL_AGE_US: u64 = 100_000;

impl Clock {
    pub(crate) fn start() -> Self {
        let mut clock = Self {
            start: Instant::now(),
            now_us: 0,
            now_ms: 0,
            wall_ahead_us: 0,
            wall_stale_us: 0,
            #[cfg(test)]
            ahead: std::time::Duration::ZERO,
        };
        clock.tick();
        clock
    }

    /// Reads the clocks. The monotonic one starts at one second, so that no deadline is ever 0.
    pub(crate) fn tick(&mut self) {
        self.now_us = 1_000_000 + self.start.elapsed().as_micros() as u64;
        self.now_ms = self.now_us / 1_000;
        if self.now_us >= self.wall_stale_us {
            let wall = SystemTime::now().duration_since(UNIX_EPOCH);
            #[cfg(test)]
            let wall = wall.map(|since| since + self.ahead);
            let wall_us = wall.map_or(0, |since| since.as_micros() as u64);
            self.wall_ahead_us = wall_us.saturating_sub(self.now_us);
            self.wall_stale_us = self.now_us + WALL_AGE_US;
        }
    }

    /// Lets time pass: the monotonic one and that of day.
    #[cfg(test)]
    pub(crate) fn advance(&mut self, by: std::time::Duration) {
        self.start -= by;
        self.ahead += by;
        self.wall_stale_us = 0;
        self.tick();
    }

    /// For timers and durations.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// For timers.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// For logs: microseconds since 1970, UTC.
    pub(crate) fn wall_us(&self) -> u64 {
        self.now_us + self.wall_ahead_us
    }

    /// How long this turn has taken so far; reads the clock.
    pub(crate) fn since_tick_us(&self) -> u64 {
        (1_000_000 + self.start.elapsed().as_micros() as u64).saturating_sub(self.now_us)
    }
}
