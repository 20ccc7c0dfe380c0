//! Whether a request is tried again, and when: one decision over what came of the last try.
//!
//! A request that is not idempotent (RFC 9110 9.2.2) is sent again only when the last try provably
//! never reached the application: no connection, a stream refused by the peer's proxy, or an end
//! before any of it was sent. No policy changes that. An idempotent one is sent again as the policy's
//! conditions say, as long as its whole body can be sent again.
//!
//! A reused connection that ends without a byte of an answer asks for another try by itself, because
//! most servers close idle connections just so. It may also have been at work on the request, so that
//! try is one of those that the policy allows, and within the budget; only when nothing had been sent
//! is it free. Whoever wants a request sent once says `attempts: 0`.
//!
//! Conditions, back-off and budget are Envoy's (`x-envoy-retry-on`, full jitter, `retry_budget`); the
//! default policy is Istio's for outbound calls. Not here: which endpoint is next, keeping bodies,
//! timers. Tests: below; shares and bounds in `tests/properties.rs`.

use crate::document::Condition;
use crate::random::Random;

/// The policy of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first; 0 is none.
    pub attempts: u32,
    /// Bound on each try until its response head; 0 is none.
    pub per_try_timeout_ms: u64,
    /// Endpoints that failed this request are taken again only when there is no other.
    pub avoid_tried: bool,
    pub(crate) on: Vec<Condition>,
    pub(crate) statuses: Vec<u16>,
    pub(crate) backoff_ms: u64,
    /// `on`, a bit each.
    on_bits: u16,
}

/// What came of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No connection was made.
    ConnectFailed,
    /// The peer's proxy refused the stream: nothing of it reached the application.
    Refused,
    /// It ended without a whole response head.
    Reset {
        /// Something of the request was given to the kernel or the peer's proxy.
        is_sent: bool,
        /// Its connection had served another request before and said nothing to this one. So ends one
        /// try of a request at most; any further one that does is a reset like others.
        is_stale: bool,
    },
    /// A response head came.
    Status {
        /// Its status.
        status: u16,
        /// Its `grpc-status`.
        grpc_status: Option<u32>,
    },
    /// The time for one try passed.
    TryTimeout,
}

/// A try that has an outcome.
#[derive(Clone, Copy, Debug)]
pub struct Try {
    /// What came of it.
    pub outcome: Outcome,
    /// Which it was, from 1.
    pub number: u32,
    /// Sent twice the request means the same as sent once.
    pub is_idempotent: bool,
    /// All of the body is here to be sent again.
    pub is_replayable: bool,
}

/// What follows a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Another one.
    Again {
        /// After this long.
        after_ms: u64,
    },
    /// None: this outcome, or this request, is not to be tried again.
    No,
    /// None, because too many requests to this cluster are tried again already.
    OverBudget,
    /// None, because there were as many tries as there may be.
    UsedUp,
}

/// What is in flight to a cluster.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// Requests.
    pub active: u32,
    /// Those of them that are in a try after their first.
    pub retrying: u32,
}

/// Envoy's `retry_budget.budget_percent`: one in five.
const BUDGET_DIVISOR: u32 = 5;

/// Envoy's `retry_budget.min_retry_concurrency`.
const BUDGET_MIN: u32 = 3;

/// The back-off window grows up to this many times its base (Envoy's `max_interval`).
const BACKOFF_CAP: u64 = 10;

/// Envoy's `base_interval`.
const BACKOFF_MS: u64 = 25;

/// Of a route that says nothing: Istio's policy for outbound calls.
pub(crate) static DEFAULT: Retry = preset(
    2,
    bit(Condition::ConnectFailure)
        | bit(Condition::RefusedStream)
        | bit(Condition::Unavailable)
        | bit(Condition::Cancelled),
);

/// Of a route with a fault, and of calls from the mesh to the application here.
static NEVER: Retry = preset(0, 0);

/// Of calls outside every route: a stale connection is followed by a new one.
static OUTSIDE: Retry = preset(1, 0);

const fn preset(attempts: u32, on_bits: u16) -> Retry {
    Retry {
        attempts,
        per_try_timeout_ms: 0,
        avoid_tried: true,
        on: Vec::new(),
        statuses: Vec::new(),
        backoff_ms: BACKOFF_MS,
        on_bits,
    }
}

const NO_ANSWER: u16 =
    bit(Condition::Reset) | bit(Condition::FiveHundreds) | bit(Condition::GatewayError);

const GRPC: u16 = bit(Condition::Cancelled)
    | bit(Condition::DeadlineExceeded)
    | bit(Condition::Internal)
    | bit(Condition::ResourceExhausted)
    | bit(Condition::Unavailable);

const fn bit(condition: Condition) -> u16 {
    1 << condition as u16
}

impl Retry {
    pub(crate) fn new(
        attempts: u32,
        on: Vec<Condition>,
        statuses: Vec<u16>,
        backoff_ms: u64,
    ) -> Self {
        Self {
            on_bits: on.iter().fold(0, |bits, one| bits | bit(*one)),
            on,
            statuses,
            backoff_ms,
            ..preset(attempts, 0)
        }
    }

    /// The policy of a route with a fault, whose caller sees what was asked for, and of calls from the mesh
    /// to the application here: the caller's proxy has the policy, and two that repeat would multiply.
    #[must_use]
    pub fn never() -> &'static Self {
        &NEVER
    }

    /// The policy of calls outside every route.
    #[must_use]
    pub fn outside() -> &'static Self {
        &OUTSIDE
    }

    /// Whether a response that is no error by its status may be followed by another try for it.
    #[must_use]
    pub fn reads_low_statuses(&self) -> bool {
        self.statuses.iter().any(|status| *status < 400)
    }

    /// Whether a response may be followed by another try for its gRPC status.
    #[must_use]
    pub fn reads_grpc_statuses(&self) -> bool {
        self.on_bits & GRPC != 0
    }

    /// Whether an endpoint that cannot be connected to is passed over for another at once. Nothing was
    /// sent, so that is no try of the request's.
    #[must_use]
    pub fn passes_over(&self) -> bool {
        self.attempts > 0 && self.avoid_tried && self.asks_for_another(Outcome::ConnectFailed)
    }

    /// Decides what follows a try. `in_flight` is asked only when everything else speaks for another.
    pub fn decide(
        &self,
        one: Try,
        in_flight: impl FnOnce() -> InFlight,
        random: &mut Random,
    ) -> Decision {
        let may_repeat = one.is_replayable && (one.is_idempotent || one.outcome.is_unseen());
        if !may_repeat {
            return Decision::No;
        }
        let is_stale = matches!(one.outcome, Outcome::Reset { is_stale: true, .. });
        // The pool's own mistake, and nobody has seen the request: no policy is asked.
        if is_stale && one.outcome.is_unseen() {
            return Decision::Again { after_ms: 0 };
        }
        if self.attempts == 0 || !(is_stale || self.asks_for_another(one.outcome)) {
            return Decision::No;
        }
        if one.number > self.attempts {
            return Decision::UsedUp;
        }
        if !in_flight().has_room() {
            return Decision::OverBudget;
        }
        // The endpoint did not fail, its connection was too old.
        let window_ms = if is_stale {
            1
        } else {
            self.window_ms(one.number)
        };
        Decision::Again {
            after_ms: random.below(window_ms),
        }
    }

    fn asks_for_another(&self, outcome: Outcome) -> bool {
        let asked = match outcome {
            Outcome::ConnectFailed => {
                NO_ANSWER | bit(Condition::ConnectFailure) | bit(Condition::ResetBeforeRequest)
            }
            Outcome::Refused => NO_ANSWER | bit(Condition::RefusedStream),
            Outcome::Reset { is_sent: false, .. } => NO_ANSWER | bit(Condition::ResetBeforeRequest),
            Outcome::Reset { .. } | Outcome::TryTimeout => NO_ANSWER,
            Outcome::Status {
                status,
                grpc_status,
            } => {
                if self.statuses.contains(&status) {
                    return true;
                }
                of_status(status) | grpc_status.map_or(0, of_grpc_status)
            }
        };
        self.on_bits & asked != 0
    }

    /// Below this lies the wait after try `number`: (2^number - 1) times the base, up to a cap.
    fn window_ms(&self, number: u32) -> u64 {
        let doubled = 1u64.checked_shl(number).map_or(u64::MAX, |power| power - 1);
        self.backoff_ms.saturating_mul(doubled.min(BACKOFF_CAP))
    }
}

/// The conditions that a status meets.
fn of_status(status: u16) -> u16 {
    match status {
        409 => bit(Condition::RetriableFourHundreds),
        502..=504 => bit(Condition::FiveHundreds) | bit(Condition::GatewayError),
        500..=599 => bit(Condition::FiveHundreds),
        _ => 0,
    }
}

/// The condition that a gRPC status meets (numbers: `google.rpc.Code`).
fn of_grpc_status(status: u32) -> u16 {
    match status {
        1 => bit(Condition::Cancelled),
        4 => bit(Condition::DeadlineExceeded),
        8 => bit(Condition::ResourceExhausted),
        13 => bit(Condition::Internal),
        14 => bit(Condition::Unavailable),
        _ => 0,
    }
}

impl Outcome {
    /// Nothing of the request can have reached the application.
    #[must_use]
    pub fn is_unseen(self) -> bool {
        matches!(
            self,
            Self::ConnectFailed | Self::Refused | Self::Reset { is_sent: false, .. }
        )
    }
}

impl InFlight {
    fn has_room(self) -> bool {
        self.retrying < BUDGET_MIN.max(self.active / BUDGET_DIVISOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Condition; 12] = [
        Condition::Cancelled,
        Condition::ConnectFailure,
        Condition::DeadlineExceeded,
        Condition::FiveHundreds,
        Condition::GatewayError,
        Condition::Internal,
        Condition::RefusedStream,
        Condition::Reset,
        Condition::ResetBeforeRequest,
        Condition::ResourceExhausted,
        Condition::RetriableFourHundreds,
        Condition::Unavailable,
    ];

    const CUT: Outcome = Outcome::Reset {
        is_sent: true,
        is_stale: false,
    };
    const STALE: Outcome = Outcome::Reset {
        is_sent: true,
        is_stale: true,
    };
    const UNSENT: Outcome = Outcome::Reset {
        is_sent: false,
        is_stale: false,
    };

    fn status(status: u16) -> Outcome {
        Outcome::Status {
            status,
            grpc_status: None,
        }
    }

    fn grpc(grpc_status: u32) -> Outcome {
        Outcome::Status {
            status: 200,
            grpc_status: Some(grpc_status),
        }
    }

    fn policy(on: &[Condition]) -> Retry {
        Retry::new(2, on.to_vec(), Vec::new(), 25)
    }

    fn quiet() -> InFlight {
        InFlight {
            active: 1,
            retrying: 0,
        }
    }

    fn first(outcome: Outcome, is_idempotent: bool) -> Try {
        Try {
            outcome,
            number: 1,
            is_idempotent,
            is_replayable: true,
        }
    }

    fn goes_on(policy: &Retry, one: Try) -> bool {
        let decision = policy.decide(one, quiet, &mut Random::new(1));
        assert!(matches!(decision, Decision::Again { .. } | Decision::No));
        decision != Decision::No
    }

    #[test]
    fn each_condition_asks_for_another_try_after_its_outcomes_only() {
        use Condition as C;
        let no_answer = [C::FiveHundreds, C::GatewayError, C::Reset];
        let with = |more: &[C]| [&no_answer, more].concat();
        let connect = with(&[C::ConnectFailure, C::ResetBeforeRequest]);
        for (outcome, expected) in [
            (Outcome::ConnectFailed, connect),
            (Outcome::Refused, with(&[C::RefusedStream])),
            (UNSENT, with(&[C::ResetBeforeRequest])),
            (CUT, with(&[])),
            (Outcome::TryTimeout, with(&[])),
            (status(200), vec![]),
            (status(409), vec![C::RetriableFourHundreds]),
            (status(429), vec![]),
            (status(500), vec![C::FiveHundreds]),
            (status(501), vec![C::FiveHundreds]),
            (status(502), vec![C::FiveHundreds, C::GatewayError]),
            (status(503), vec![C::FiveHundreds, C::GatewayError]),
            (status(504), vec![C::FiveHundreds, C::GatewayError]),
            (status(505), vec![C::FiveHundreds]),
            (status(600), vec![]),
            (grpc(0), vec![]),
            (grpc(1), vec![C::Cancelled]),
            (grpc(2), vec![]),
            (grpc(4), vec![C::DeadlineExceeded]),
            (grpc(8), vec![C::ResourceExhausted]),
            (grpc(13), vec![C::Internal]),
            (grpc(14), vec![C::Unavailable]),
        ] {
            for condition in ALL {
                assert_eq!(
                    goes_on(&policy(&[condition]), first(outcome, true)),
                    expected.contains(&condition),
                    "{condition:?} after {outcome:?}"
                );
            }
        }
    }

    #[test]
    fn a_bare_status_is_the_servers_and_not_the_proxys() {
        let policy = Retry::new(2, Vec::new(), vec![418, 503], 25);
        for number in [418, 503] {
            assert!(goes_on(&policy, first(status(number), true)));
        }
        for outcome in [
            status(502),
            Outcome::ConnectFailed,
            CUT,
            Outcome::TryTimeout,
        ] {
            assert!(!goes_on(&policy, first(outcome, true)), "{outcome:?}");
        }
    }

    #[test]
    fn without_a_policy_istios_default_holds() {
        for (outcome, expected) in [
            (Outcome::ConnectFailed, true),
            (Outcome::Refused, true),
            (grpc(14), true),
            (grpc(1), true),
            (CUT, false),
            (status(503), false),
        ] {
            assert_eq!(goes_on(&DEFAULT, first(outcome, true)), expected);
        }
        assert!(DEFAULT.passes_over() && !Retry::never().passes_over());
        assert!(!policy(&[Condition::RefusedStream]).passes_over());
        for outcome in [Outcome::ConnectFailed, UNSENT, CUT] {
            assert!(!goes_on(Retry::never(), first(outcome, true)));
            assert!(!goes_on(Retry::outside(), first(outcome, true)));
        }
        assert!(goes_on(Retry::outside(), first(STALE, true)));
        assert!(!goes_on(Retry::outside(), first(STALE, false)));
    }

    #[test]
    fn what_may_have_been_read_is_sent_again_only_when_it_is_idempotent() {
        let everything = Retry::new(2, ALL.to_vec(), vec![409, 500, 503], 25);
        for outcome in [
            CUT,
            STALE,
            Outcome::TryTimeout,
            status(503),
            status(409),
            grpc(14),
        ] {
            assert!(!goes_on(&everything, first(outcome, false)), "{outcome:?}");
            assert!(goes_on(&everything, first(outcome, true)), "{outcome:?}");
        }
        for outcome in [Outcome::ConnectFailed, Outcome::Refused, UNSENT] {
            assert!(goes_on(&everything, first(outcome, false)), "{outcome:?}");
        }
    }

    #[test]
    fn a_body_that_is_gone_is_never_promised_again() {
        let everything = policy(&ALL);
        for outcome in [Outcome::ConnectFailed, Outcome::Refused, CUT, status(503)] {
            let one = Try {
                is_replayable: false,
                ..first(outcome, true)
            };
            assert!(!goes_on(&everything, one), "{outcome:?}");
        }
    }

    fn full() -> InFlight {
        InFlight {
            active: 10,
            retrying: 10,
        }
    }

    #[test]
    fn a_stale_connection_needs_no_condition_and_no_wait_but_an_attempt_and_the_budget() {
        let mut random = Random::new(1);
        let policy = policy(&[]);
        let mut decide =
            |one, in_flight: fn() -> InFlight| policy.decide(one, in_flight, &mut random);
        let at_once = Decision::Again { after_ms: 0 };
        assert_eq!(decide(first(STALE, true), quiet), at_once);
        assert_eq!(decide(first(STALE, true), full), Decision::OverBudget);
        let third = Try {
            number: 3,
            ..first(STALE, true)
        };
        assert_eq!(decide(third, quiet), Decision::UsedUp);
        assert_eq!(decide(first(STALE, false), quiet), Decision::No);
        assert!(!goes_on(Retry::never(), first(STALE, true)));
    }

    #[test]
    fn a_stale_connection_on_which_nothing_was_sent_is_free() {
        let unseen = Outcome::Reset {
            is_sent: false,
            is_stale: true,
        };
        for is_idempotent in [false, true] {
            let one = first(unseen, is_idempotent);
            let decision = Retry::never().decide(one, full, &mut Random::new(1));
            assert_eq!(decision, Decision::Again { after_ms: 0 });
        }
    }

    #[test]
    fn a_policy_reads_grpc_statuses_when_a_condition_is_one() {
        let grpc = [1, 4, 8, 13, 14].map(of_grpc_status);
        for condition in ALL {
            let expected = grpc.contains(&bit(condition));
            assert_eq!(policy(&[condition]).reads_grpc_statuses(), expected);
        }
        assert!(DEFAULT.reads_grpc_statuses() && !Retry::never().reads_grpc_statuses());
    }

    #[test]
    fn there_are_as_many_tries_as_asked_for_and_one_more() {
        let policy = policy(&[Condition::Reset]);
        let mut random = Random::new(1);
        for (number, goes_on) in [(1, true), (2, true), (3, false), (4, false)] {
            let one = Try {
                number,
                ..first(CUT, true)
            };
            let decision = policy.decide(one, quiet, &mut random);
            assert_eq!(decision != Decision::UsedUp, goes_on, "{number}");
        }
    }

    #[test]
    fn a_fifth_of_the_requests_and_at_least_three_may_be_in_a_further_try() {
        let policy = policy(&[Condition::Reset]);
        for (active, retrying, has_room) in [
            (0, 2, true),
            (0, 3, false),
            (15, 2, true),
            (15, 3, false),
            (19, 3, false),
            (20, 3, true),
            (100, 19, true),
            (100, 20, false),
        ] {
            let in_flight = || InFlight { active, retrying };
            let decision = policy.decide(first(CUT, true), in_flight, &mut Random::new(1));
            let expected = decision != Decision::OverBudget;
            assert_eq!(expected, has_room, "{retrying} of {active}");
        }
    }

    #[test]
    fn the_window_of_the_wait_grows_to_ten_times_its_base() {
        let policy = Retry::new(100, Vec::new(), Vec::new(), 25);
        let windows = [1, 2, 3, 4, 5, 63, 64, 100].map(|number| policy.window_ms(number));
        assert_eq!(windows, [25, 75, 175, 250, 250, 250, 250, 250]);
        let long = Retry::new(1, Vec::new(), Vec::new(), u64::MAX);
        assert_eq!(long.window_ms(4), u64::MAX);
    }
}
