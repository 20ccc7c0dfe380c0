//! What can go wrong with an exchange, and the one table that says what follows.
//!
//! Every failure has a status for the downstream, Envoy's response flag for logs and metrics, and a
//! stable detail text (Envoy's response code details where one exists). Nothing else in the engine
//! chooses a status or a flag, but for answers that are no failures. Whether something is tried again
//! is decided in `tries.rs`.

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
    /// The time for one try passed.
    TryTimeout,
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
}

/// What an exchange went through besides how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// Nothing that has a flag.
    None,
    /// It was made to wait on purpose.
    Delayed,
    /// A further try would have been one too many for its cluster.
    OverBudget,
    /// It had all its tries.
    UsedUp,
}

/// Every flag beside the marks Delayed, OverBudget and UsedUp, in Envoy's order of flags. The flag of
/// a mark alone is Envoy's too.
const MARKED: [(&str, [&str; 3]); 14] = [
    ("", ["DI", "UO", "URX"]),
    ("UH", ["UH,DI", "UH,UO", "UH,URX"]),
    ("UT", ["UT,DI", "UT,UO", "UT,URX"]),
    ("LR", ["LR,DI", "LR,UO", "LR,URX"]),
    ("UR", ["UR,DI", "UR,UO", "UR,URX"]),
    ("UF", ["UF,DI", "UF,UO", "UF,URX"]),
    ("UC", ["UC,DI", "UC,UO", "UC,URX"]),
    ("NR", ["NR,DI", "UO,NR", "NR,URX"]),
    ("FI", ["DI,FI", "UO,FI", "FI,URX"]),
    ("DC", ["DI,DC", "UO,DC", "DC,URX"]),
    ("SI", ["DI,SI", "UO,SI", "URX,SI"]),
    ("DPE", ["DI,DPE", "UO,DPE", "URX,DPE"]),
    ("UPE", ["DI,UPE", "UO,UPE", "URX,UPE"]),
    ("DF", ["DI,DF", "UO,DF", "URX,DF"]),
];

impl Mark {
    /// A flag together with this mark's.
    pub(crate) fn with(self, flag: &'static str) -> &'static str {
        let place = match self {
            Self::None => return flag,
            Self::Delayed => 0,
            Self::OverBudget => 1,
            Self::UsedUp => 2,
        };
        let mut rows = MARKED.iter();
        rows.find(|(alone, _)| *alone == flag)
            .map_or(flag, |(_, marked)| marked[place])
    }
}

impl Failure {
    /// The row of this failure.
    pub(crate) fn verdict(self) -> Verdict {
        let (status, flag, detail) = match self {
            Self::ConnectFailed => (
                503,
                "UF",
                "upstream_reset_before_response_started{connection_failure}",
            ),
            Self::ConnectTimeout => (
                503,
                "UF",
                "upstream_reset_before_response_started{connection_timeout}",
            ),
            Self::DownstreamGone => (0, "DC", "downstream_remote_disconnect"),
            Self::Drained => (503, "LR", "drain_time_over"),
            Self::NameNotResolved => (503, "DF", "dns_resolution_failure"),
            Self::NoHealthyUpstream => (503, "UH", "no_healthy_upstream"),
            Self::NoRoute => (404, "NR", "route_not_found"),
            Self::RequestLoop => (508, "NR", "request_loop"),
            // Envoy has no flag for it.
            Self::RequestHeadTimeout => (408, "", "request_header_timeout"),
            Self::RouteTimeout => (504, "UT", "response_timeout"),
            Self::StreamIdle => (504, "SI", "stream_idle_timeout"),
            Self::StreamRefused => (
                503,
                "UR",
                "upstream_reset_before_response_started{remote_refused_stream_reset}",
            ),
            Self::TryTimeout => (504, "UT", "upstream_per_try_timeout"),
            Self::UpstreamProtocol => (502, "UPE", "upstream_protocol_error"),
            Self::UpstreamReset => (
                503,
                "UC",
                "upstream_reset_before_response_started{connection_termination}",
            ),
            Self::UpstreamTerminated => (
                503,
                "UC",
                "upstream_reset_after_response_started{connection_termination}",
            ),
        };
        Verdict {
            status,
            flag,
            detail,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The order in which Envoy writes its flags.
    const ORDER: [&str; 16] = [
        "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "DC", "URX", "SI", "DPE",
        "UPE", "DF",
    ];

    const FAILURES: [Failure; 16] = [
        Failure::ConnectFailed,
        Failure::ConnectTimeout,
        Failure::DownstreamGone,
        Failure::Drained,
        Failure::NameNotResolved,
        Failure::NoHealthyUpstream,
        Failure::NoRoute,
        Failure::RequestLoop,
        Failure::RequestHeadTimeout,
        Failure::RouteTimeout,
        Failure::StreamIdle,
        Failure::StreamRefused,
        Failure::TryTimeout,
        Failure::UpstreamProtocol,
        Failure::UpstreamReset,
        Failure::UpstreamTerminated,
    ];

    #[test]
    fn flags_stand_together_in_envoys_order() {
        for failure in FAILURES {
            let flag = failure.verdict().flag;
            assert_eq!(Mark::None.with(flag), flag);
            for (mark, own) in [
                (Mark::Delayed, "DI"),
                (Mark::OverBudget, "UO"),
                (Mark::UsedUp, "URX"),
            ] {
                let mut both: Vec<&str> = [flag, own]
                    .into_iter()
                    .filter(|it| !it.is_empty())
                    .collect();
                both.sort_by_key(|it| ORDER.iter().position(|known| known == it));
                assert_eq!(mark.with(flag), both.join(","), "{failure:?}");
            }
        }
        assert_eq!(Mark::Delayed.with("FI"), "DI,FI");
    }
}
