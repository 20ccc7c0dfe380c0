//! From a request to a cluster: listener → virtual host by domain → first route that matches →
//! one of its destinations, by weight.
//!
//! Not here: endpoints (see `balance`), timeouts' enforcement, what is answered when nothing
//! matches. Tests: `tests.rs`; exact shares in `tests/properties.rs`.

#[cfg(test)]
mod tests;

use std::fmt;

use crate::authority::{parse_port, split};
use crate::edits::HeaderEdits;
use crate::fault::Fault;
use crate::matching::{Match, Request};
use crate::random::Random;
use crate::retry::{self, Retry};
use crate::snapshot::{HostPort, Snapshot, VirtualHost};

/// What was decided for a request or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice<'s> {
    /// Name of the route.
    pub route: &'s str,
    /// Where the route stands: what to keep of it for as long as the snapshot is kept.
    pub place: RoutePlace,
    /// Bound on the whole exchange, tries included; 0 is none.
    pub timeout_ms: u64,
    /// Index of the cluster in the snapshot.
    pub cluster: usize,
    /// Nothing but the sending is done to the request, and a further try follows no answer that is
    /// not an error: no fault, no edits, no bound on each try.
    pub is_plain: bool,
}

/// Where a route stands among the routes of its listener, by indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutePlace {
    /// A route for requests.
    Http {
        /// Index of the virtual host.
        virtual_host: u32,
        /// Index of the route in it.
        route: u32,
        /// Index of the destination among the route's.
        destination: u16,
    },
    /// A route for connections.
    Tcp(u32),
}

/// Why there is no choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoute {
    /// The snapshot has no listener of that index.
    NoListener,
    /// The virtual host has no route that matches; for TCP: the listener has no route.
    NoMatch,
    /// The virtual host is a service that does not have the port.
    NoPort,
    /// No virtual host of the listener has the authority's host among its domains.
    NoVirtualHost,
}

impl fmt::Display for NoRoute {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NoListener => "no such listener",
            Self::NoMatch => "no route matches",
            Self::NoPort => "the service does not have this port",
            Self::NoVirtualHost => "no virtual host has this domain",
        })
    }
}

impl std::error::Error for NoRoute {}

/// A route for requests.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name, for logs.
    pub name: String,
    /// Any of them; none = always.
    pub matches: Vec<Match>,
    /// Bound on the whole exchange; None and 0 are none.
    pub timeout_ms: Option<u64>,
    /// Where the requests go.
    pub destinations: Destinations,
    /// What is done to some of them on purpose; timeouts and retries are off then.
    pub fault: Option<Fault>,
    /// Edits of every request.
    pub request_headers: Option<HeaderEdits>,
    /// Edits of every response.
    pub response_headers: Option<HeaderEdits>,
    /// As the document has it.
    pub(crate) retry: Option<Retry>,
    /// No fault, no edits of its own, no bound on each try, no further try after an answer below 400.
    pub(crate) is_plain: bool,
}

impl Route {
    /// Whether and when a request of this route is tried again.
    #[must_use]
    pub fn retry(&self) -> &Retry {
        match &self.retry {
            _ if self.fault.is_some() => Retry::never(),
            Some(retry) => retry,
            None => &retry::DEFAULT,
        }
    }

    /// Bound on the whole exchange, tries included; 0 is none.
    fn timeout_ms(&self) -> u64 {
        self.timeout_ms
            .filter(|_| self.fault.is_none())
            .unwrap_or(0)
    }

    fn takes(&self, request: &dyn Request) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.matches(request))
    }
}

/// A route for connections.
#[derive(Clone, Debug)]
pub struct TcpRoute {
    /// Name, for logs.
    pub name: String,
    /// Where the connections go.
    pub destinations: Destinations,
}

/// A cluster and its part of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedCluster {
    /// Index of the cluster in the snapshot.
    pub cluster: usize,
    /// Share = weight / sum of the weights; 0 = none.
    pub weight: u32,
    /// Edits of the requests that go there, before the route's (Envoy's order).
    pub request_headers: Option<HeaderEdits>,
    /// Edits of the responses that come from there, before the route's.
    pub response_headers: Option<HeaderEdits>,
    /// No edits of its own.
    pub(crate) is_plain: bool,
}

/// The destinations of a route; their weights have a sum above 0.
#[derive(Clone, Debug)]
pub struct Destinations {
    clusters: Vec<WeightedCluster>,
    sum: u64,
}

impl Destinations {
    /// None when the weights have no sum, or there are more than a place can say.
    pub(crate) fn new(clusters: Vec<WeightedCluster>) -> Option<Self> {
        let sum = clusters
            .iter()
            .map(|destination| u64::from(destination.weight))
            .sum();
        let has_places = u16::try_from(clusters.len()).is_ok();
        (sum > 0 && has_places).then_some(Self { clusters, sum })
    }

    /// The destinations in the order of the document.
    #[must_use]
    pub fn clusters(&self) -> &[WeightedCluster] {
        &self.clusters
    }

    /// The place of the destination for one request: each with exactly its share of the chances.
    fn choose(&self, random: &mut Random) -> usize {
        if self.clusters.len() == 1 {
            return 0;
        }
        let mut left = random.below(self.sum);
        for (place, destination) in self.clusters.iter().enumerate() {
            match left.checked_sub(u64::from(destination.weight)) {
                Some(rest) => left = rest,
                None => return place,
            }
        }
        unreachable!("a number below the sum of the weights falls on one of them")
    }
}

/// What an authority without a port means (RFC 9110 4.2.1); many clients leave it out when they are
/// told it.
const HTTP_PORT: u16 = 80;

impl VirtualHost {
    /// The port that an authority means: the one it names; without one, or with HTTP's where a service
    /// of the mesh has no such port, its first.
    fn port(&self, authority: &[u8]) -> Result<&HostPort, NoRoute> {
        let (_, text) = split(authority);
        let number = match text.map(parse_port) {
            None | Some(Ok(None)) => Some(HTTP_PORT),
            Some(Ok(number)) => number,
            Some(Err(_)) => None,
        };
        let named = self.ports.iter().find(|port| Some(port.number) == number);
        if self.is_external {
            return named.ok_or(NoRoute::NoVirtualHost);
        }
        let first = self.ports.first().filter(|_| number == Some(HTTP_PORT));
        named.or(first).ok_or(NoRoute::NoPort)
    }
}

impl Snapshot {
    /// Decides where a request goes.
    ///
    /// # Errors
    /// When no virtual host has the authority's host (or an external one that has not its port), it does
    /// not have its port, or none of its routes matches.
    pub fn route<'s>(
        &'s self,
        listener: usize,
        request: &dyn Request,
        random: &mut Random,
    ) -> Result<Choice<'s>, NoRoute> {
        let listener = self.listeners.get(listener).ok_or(NoRoute::NoListener)?;
        let host = listener
            .domains
            .find(request.authority())
            .ok_or(NoRoute::NoVirtualHost)?;
        let virtual_host = &listener.virtual_hosts[host];
        if !virtual_host.ports.is_empty() {
            virtual_host.port(request.authority())?;
        }
        let (index, route) = virtual_host
            .routes
            .iter()
            .enumerate()
            .find(|(_, route)| route.takes(request))
            .ok_or(NoRoute::NoMatch)?;
        let place = route.destinations.choose(random);
        let destination = &route.destinations.clusters[place];
        Ok(Choice {
            route: &route.name,
            place: RoutePlace::Http {
                virtual_host: host as u32,
                route: index as u32,
                destination: place as u16,
            },
            timeout_ms: route.timeout_ms(),
            cluster: destination.cluster,
            is_plain: route.is_plain && destination.is_plain,
        })
    }

    /// Decides where bytes go that are not HTTP and that a caller sends to an authority of his choice:
    /// to the cluster of a port of the service, whatever the routes for requests say.
    ///
    /// # Errors
    /// `NoVirtualHost` also when the virtual host has no ports, and so is no service, or is external and
    /// has other ones; `NoPort` when a service has other ones.
    pub fn route_opaque(&self, listener: usize, authority: &[u8]) -> Result<usize, NoRoute> {
        let listener = self.listeners.get(listener).ok_or(NoRoute::NoListener)?;
        let found = listener.domains.find(authority);
        let host = found.map(|host| &listener.virtual_hosts[host]);
        let service = host.filter(|host| !host.ports.is_empty());
        let service = service.ok_or(NoRoute::NoVirtualHost)?;
        Ok(service.port(authority)?.cluster)
    }

    /// Decides where a connection goes: the first route of the listener takes it.
    ///
    /// # Errors
    /// When the listener has no route for connections.
    pub fn route_tcp<'s>(
        &'s self,
        listener: usize,
        random: &mut Random,
    ) -> Result<Choice<'s>, NoRoute> {
        let listener = self.listeners.get(listener).ok_or(NoRoute::NoListener)?;
        let route = listener.tcp_routes.first().ok_or(NoRoute::NoMatch)?;
        Ok(Choice {
            route: &route.name,
            place: RoutePlace::Tcp(0),
            timeout_ms: 0,
            cluster: route.destinations.clusters[route.destinations.choose(random)].cluster,
            is_plain: true,
        })
    }

    /// The name of a route that was chosen on this snapshot's listener of that index.
    ///
    /// # Panics
    /// When the place is another snapshot's.
    #[must_use]
    pub fn route_name(&self, listener: usize, place: RoutePlace) -> &str {
        let listener = &self.listeners[listener];
        match place {
            RoutePlace::Http {
                virtual_host,
                route,
                ..
            } => &listener.virtual_hosts[virtual_host as usize].routes[route as usize].name,
            RoutePlace::Tcp(route) => &listener.tcp_routes[route as usize].name,
        }
    }

    /// The route for requests at a place that was chosen on this snapshot's listener of that index,
    /// and the destination in it; None at a place for connections.
    ///
    /// # Panics
    /// When the place is another snapshot's.
    #[must_use]
    pub fn http_route(
        &self,
        listener: usize,
        place: RoutePlace,
    ) -> Option<(&Route, &WeightedCluster)> {
        let RoutePlace::Http {
            virtual_host,
            route,
            destination,
        } = place
        else {
            return None;
        };
        let host = &self.listeners[listener].virtual_hosts[virtual_host as usize];
        let route = &host.routes[route as usize];
        Some((route, &route.destinations.clusters[destination as usize]))
    }
}
