//! What the dialer is asked for: one connection to one address, by one means.
//!
//! Pure: the engine opens the socket. Names were resolved before. Tests: below.

use std::net::SocketAddr;

use crate::address::Address;
use crate::snapshot::{Cluster, Endpoint};

/// The means by which a connection comes about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Via {
    /// A process with other rights, or in another network namespace, connects and hands the socket
    /// over.
    Broker,
    /// The worker opens a socket of its own.
    #[default]
    Socket,
}

/// One connection to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Where to.
    pub address: Address,
    /// By which means.
    pub via: Via,
    /// How long it may take; above 0.
    pub connect_timeout_ms: u64,
}

impl Dial {
    /// To an endpoint, within the time its cluster gives.
    #[must_use]
    pub fn endpoint(cluster: &Cluster, endpoint: &Endpoint) -> Self {
        Self {
            address: endpoint.address.clone(),
            via: Via::Socket,
            connect_timeout_ms: cluster.connect_timeout_ms,
        }
    }

    /// To an address that a caller named or the kernel reported.
    #[must_use]
    pub fn address(address: SocketAddr, connect_timeout_ms: u64) -> Self {
        Self {
            address: Address::Tcp(address),
            via: Via::Socket,
            connect_timeout_ms,
        }
    }

    /// Whether this would come back to a listening socket of our own.
    ///
    /// A listener on the unspecified address is reached through loopback; whether another address
    /// is one of this host is not known here.
    #[must_use]
    pub fn reaches(&self, listener: &Address) -> bool {
        let (Address::Tcp(to), Address::Tcp(listener)) = (&self.address, listener) else {
            return self.address == *listener;
        };
        let (to_ip, listener_ip) = (to.ip().to_canonical(), listener.ip().to_canonical());
        // Connecting to the unspecified address reaches this host (Linux, ip(7)).
        let is_here = to_ip.is_loopback() || to_ip.is_unspecified();
        let through_any = is_here && listener_ip.is_unspecified();
        let through_loopback = to_ip.is_unspecified() && listener_ip.is_loopback();
        to.port() == listener.port() && (to_ip == listener_ip || through_any || through_loopback)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dial(to: &str) -> Dial {
        Dial {
            address: to.parse().unwrap(),
            via: Via::Socket,
            connect_timeout_ms: 1000,
        }
    }

    #[test]
    fn knows_its_own_listeners() {
        for (to, listener, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("127.0.0.1:80", "0.0.0.0:80", true),
            ("127.0.0.2:80", "127.0.0.1:80", false),
            ("127.0.0.1:80", "[::]:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("10.0.0.1:80", "0.0.0.0:80", false),
            ("unix:/a", "unix:/a", true),
            ("unix:/a", "unix:/b", false),
            ("unix:/a", "127.0.0.1:80", false),
        ] {
            let reaches = dial(to).reaches(&listener.parse().unwrap());
            assert_eq!(reaches, expected, "{to} to {listener}");
        }
    }

    #[test]
    fn takes_the_time_of_the_cluster() {
        let snapshot = crate::example::cluster("LEAST_REQUEST", &[1]);
        let cluster = &snapshot.clusters[0];
        let dial = Dial::endpoint(cluster, &cluster.endpoints[0]);
        assert_eq!(dial.connect_timeout_ms, 10_000);
        assert_eq!(dial.address.to_string(), "127.0.0.1:9001");
        assert_eq!(dial.via, Via::Socket);
    }
}
