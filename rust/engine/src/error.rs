//! What can go wrong with an exchange, and the one table that says what follows.
//!
//! Every failure has a status for the downstream, Envoy's response flag for logs and metrics, a
//! stable detail text (Envoy's response code details where one exists) and the answer to "may it be
//! tried again". Nothing else in the engine chooses a status or a flag.

/// When a request may be sent a second time without the application seeing it twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Never: it may have been read, or trying again cannot help.
    Never,
    /// Only a method that is idempotent (RFC 9110 9.2.2): it may have been read.
    Idempotent,
    /// Always: no byte of it was sent.
    Unsent,
}

/// What went wrong with an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The upstream could not be connected to.
    ConnectFailed,
    /// The upstream did not answer a connect in time.
    ConnectTimeout,
    /// The caller closed or reset before the exchange was finished.
    DownstreamGone,
    /// The proxy is stopping and the time for it is over.
    Drained,
    /// The host name of the destination did not resolve.
    NameNotResolved,
    /// No endpoint of the cluster is left to try.
    NoHealthyUpstream,
    /// No route matches.
    NoRoute,
    /// The request went to the proxy's own address.
    RequestLoop,
    /// The caller was slower than the time for a request head.
    RequestHeadTimeout,
    /// The route's timeout passed.
    RouteTimeout,
    /// Nothing moved on the exchange for the idle time.
    StreamIdle,
    /// The peer's proxy refused the stream: nothing of it reached the application.
    StreamRefused,
    /// The upstream's answer is not HTTP as we accept it.
    UpstreamProtocol,
    /// The upstream closed or reset before a whole response head.
    UpstreamReset,
    /// The upstream closed or reset after its response head.
    UpstreamTerminated,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Verdict {
    pub(crate) status: u16,
    pub(crate) flag: &'static str,
    pub(crate) detail: &'static str,
    pub(crate) retry: Retry,
}

impl Failure {
    /// The row of this failure.
    pub(crate) fn verdict(self) -> Verdict {
        use Retry::{Idempotent, Never, Unsent};
        let (status, flag, detail, retry) = match self {
            Self::ConnectFailed => (
                503,
                "UF",
                "upstream_reset_before_response_started{connection_failure}",
                Unsent,
            ),
            Self::ConnectTimeout => (
                503,
                "UF",
                "upstream_reset_before_response_started{connection_timeout}",
                Unsent,
            ),
            Self::DownstreamGone => (0, "DC", "downstream_remote_disconnect", Never),
            Self::Drained => (503, "LR", "drain_time_over", Never),
            Self::NameNotResolved => (503, "DF", "dns_resolution_failure", Never),
            Self::NoHealthyUpstream => (503, "UH", "no_healthy_upstream", Never),
            Self::NoRoute => (404, "NR", "route_not_found", Never),
            Self::RequestLoop => (508, "NR", "request_loop", Never),
            // Envoy has no flag for it.
            Self::RequestHeadTimeout => (408, "", "request_header_timeout", Never),
            Self::RouteTimeout => (504, "UT", "response_timeout", Never),
            Self::StreamIdle => (504, "SI", "stream_idle_timeout", Never),
            Self::StreamRefused => (
                503,
                "UR",
                "upstream_reset_before_response_started{remote_refused_stream_reset}",
                Unsent,
            ),
            Self::UpstreamProtocol => (502, "UPE", "upstream_protocol_error", Never),
            Self::UpstreamReset => (
                503,
                "UC",
                "upstream_reset_before_response_started{connection_termination}",
                Idempotent,
            ),
            Self::UpstreamTerminated => (
                503,
                "UC",
                "upstream_reset_after_response_started{connection_termination}",
                Never,
            ),
        };
        Verdict {
            status,
            flag,
            detail,
            retry,
        }
    }
}
