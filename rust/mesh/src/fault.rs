//! Faults on purpose: which requests of a route wait, and which get an answer instead of a service.
//!
//! Delay and abort are drawn independently of each other, each with exactly its share (Istio's
//! `HTTPFaultInjection`). Not here: the waiting and the answering. Tests: below; shares in
//! `tests/properties.rs`.

use crate::random::Random;

/// The faults of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub(crate) delay: Option<Delay>,
    pub(crate) abort: Option<Abort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delay {
    /// Above 0.
    pub(crate) fixed_ms: u64,
    pub(crate) share: Share,
}

/// The answer to a request that is aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    /// For a caller that does not speak gRPC; 200 to 599.
    pub status: u16,
    /// For one that does; None is the one that `status` stands for.
    pub grpc_status: Option<u32>,
    pub(crate) share: Share,
}

/// Parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Share(pub(crate) u32);

/// What was drawn for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drawn {
    /// It waits this long; 0 is not at all.
    pub delay_ms: u64,
    /// After that it is answered here.
    pub abort: Option<Abort>,
}

/// All of a share.
pub(crate) const WHOLE: u32 = 1_000_000;

impl Fault {
    /// Draws for one request.
    pub fn draw(&self, random: &mut Random) -> Drawn {
        let delay = self.delay.filter(|delay| delay.share.falls(random));
        Drawn {
            delay_ms: delay.map_or(0, |delay| delay.fixed_ms),
            abort: self.abort.filter(|abort| abort.share.falls(random)),
        }
    }
}

impl Abort {
    /// The status for a caller that speaks gRPC; of an HTTP status, what gRPC's own clients take it
    /// for (gRPC's "HTTP to gRPC status code mapping").
    #[must_use]
    pub fn grpc_status(&self) -> u32 {
        self.grpc_status.unwrap_or(match self.status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502..=504 => 14,
            _ => 2,
        })
    }
}

impl Share {
    fn falls(self, random: &mut Random) -> bool {
        random.below(u64::from(WHOLE)) < u64::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(delay: u32, abort: u32) -> Fault {
        Fault {
            delay: Some(Delay {
                fixed_ms: 70,
                share: Share(delay),
            }),
            abort: Some(Abort {
                status: 503,
                grpc_status: None,
                share: Share(abort),
            }),
        }
    }

    #[test]
    fn nothing_is_never_and_everything_is_always() {
        let mut random = Random::new(3);
        for _ in 0..10_000 {
            let drawn = fault(0, WHOLE).draw(&mut random);
            assert!(drawn.delay_ms == 0 && drawn.abort.is_some());
            let drawn = fault(WHOLE, 0).draw(&mut random);
            assert!(drawn.delay_ms == 70 && drawn.abort.is_none());
        }
    }

    #[test]
    fn delay_and_abort_are_drawn_independently() {
        let mut random = Random::new(4);
        let mut counts = [0u32; 4];
        for _ in 0..40_000 {
            let drawn = fault(WHOLE / 2, WHOLE / 2).draw(&mut random);
            let place = usize::from(drawn.delay_ms > 0) * 2 + usize::from(drawn.abort.is_some());
            counts[place] += 1;
        }
        // Five standard deviations of Binomial(40000, 1/4): 5 * sqrt(7500) = 433.
        assert!(
            counts.iter().all(|it| it.abs_diff(10_000) < 433),
            "{counts:?}"
        );
    }

    #[test]
    fn a_caller_that_speaks_grpc_gets_the_grpc_status_or_the_one_it_would_read() {
        let abort = |status, grpc_status| Abort {
            status,
            grpc_status,
            share: Share(WHOLE),
        };
        assert_eq!(abort(503, Some(8)).grpc_status(), 8);
        for (status, expected) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (500, 2),
            (503, 14),
        ] {
            assert_eq!(abort(status, None).grpc_status(), expected);
        }
    }
}
