//! Where a connection or request wanted to go, and how that is known.
//!
//! Every connection, request and CONNECT becomes one [`Arrival`]; interception is one more source
//! of it, not a second path. The sources rank:
//!
//! 1. The kernel (REDIRECT, TPROXY, or the app's own namespace): what was dialled is a fact, and no
//!    byte the caller sends changes it. A `Host` still chooses the route, never the address.
//! 2. CONNECT and the absolute form, on a listener that is a forward proxy.
//! 3. The absolute form or `Host` elsewhere, which name the virtual host.
//! 4. Nothing: the listener's own routes say where (raw TCP, HTTP/1.0 without `Host`).
//!
//! Pure: no socket is asked here. Tests: `tests.rs`.

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::SocketAddr;

use crate::authority::{Authority, AuthorityError};
use crate::document::Direction;

/// How a destination is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KnownBy {
    /// A request target with scheme and authority (RFC 9112 3.2.2).
    AbsoluteForm,
    /// The target of a CONNECT (RFC 9112 3.2.3).
    Connect,
    /// `Host` or `:authority`.
    Host,
    /// The listener alone: its routes say where.
    Listener,
    /// Taken over inside the app's own network namespace.
    Namespace,
    /// A REDIRECT rule; the kernel kept the original destination.
    Redirect,
    /// A TPROXY rule; the socket's own address is the original destination.
    Tproxy,
}

impl KnownBy {
    /// Stable name for logs and labels.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::AbsoluteForm => "absolute_form",
            Self::Connect => "connect",
            Self::Host => "host",
            Self::Listener => "listener",
            Self::Namespace => "namespace",
            Self::Redirect => "redirect",
            Self::Tproxy => "tproxy",
        }
    }
}

/// Where a caller wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination<'a> {
    /// An address the kernel reports.
    Address(SocketAddr),
    /// A name or address the caller wrote.
    Host {
        /// Without brackets; not empty.
        host: &'a str,
        /// As written, else the scheme's.
        port: u16,
    },
}

/// The means by which connections to somewhere else come to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interception {
    /// See [`KnownBy::Namespace`].
    Namespace,
    /// See [`KnownBy::Redirect`].
    Redirect,
    /// See [`KnownBy::Tproxy`].
    Tproxy,
}

/// What is known when a connection is accepted.
#[derive(Clone, Copy, Debug)]
pub struct ListenerFacts {
    /// Side of the workload on which the listener stands.
    pub direction: Direction,
    /// Whether callers may name where they go.
    pub forward_proxy: bool,
    /// What was dialled, where the connection was intercepted.
    pub original: Option<(SocketAddr, Interception)>,
    /// The address accepted on; None on a Unix socket.
    pub local: Option<SocketAddr>,
    /// Who connected; None on a Unix socket.
    pub peer: Option<SocketAddr>,
}

/// The form of a request target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `http://host/path`.
    Absolute,
    /// `CONNECT host:port`.
    Connect,
    /// `/path` or `*`, with `Host` or `:authority`.
    Origin,
}

/// What is known when a request head is read.
#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// The form of its target.
    pub form: Form,
    /// Host and port, from the target or from `Host`; empty when there is neither.
    pub authority: &'a [u8],
    /// Whether the scheme is `https`, which decides the port that is not written.
    pub secure: bool,
}

/// Why a request has no arrival; the answer is 400, or 405 for [`Refusal::ConnectOff`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its authority is none.
    Authority(AuthorityError),
    /// CONNECT on a listener that is not a forward proxy.
    ConnectOff,
    /// CONNECT without a port: there is no default (RFC 9110 9.3.6).
    ConnectPort,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Authority(error) => error.fmt(formatter),
            Self::ConnectOff => formatter.write_str("this listener does not tunnel"),
            Self::ConnectPort => formatter.write_str("CONNECT names a port"),
        }
    }
}

impl std::error::Error for Refusal {}

/// One connection, request or CONNECT: where it wanted to go and how that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// None exactly when it is known by [`KnownBy::Listener`].
    pub destination: Option<Destination<'a>>,
    /// The source of `destination`.
    pub known_by: KnownBy,
    /// Side of the workload on which it came.
    pub direction: Direction,
    /// The address it came to; None on a Unix socket.
    pub local: Option<SocketAddr>,
    /// Who came; None on a Unix socket.
    pub peer: Option<SocketAddr>,
}

impl<'a> Arrival<'a> {
    /// The arrival of bytes: only the kernel can know more than the listener.
    #[must_use]
    pub fn of_connection(listener: &ListenerFacts) -> Self {
        match listener.original {
            Some((address, by)) => {
                let known_by = match by {
                    Interception::Namespace => KnownBy::Namespace,
                    Interception::Redirect => KnownBy::Redirect,
                    Interception::Tproxy => KnownBy::Tproxy,
                };
                Self::new(listener, known_by, Some(Destination::Address(address)))
            }
            None => Self::new(listener, KnownBy::Listener, None),
        }
    }

    /// The arrival of a request.
    ///
    /// # Errors
    /// When its authority cannot be read, or it is a CONNECT that the listener does not serve.
    pub fn of_request(
        listener: &ListenerFacts,
        request: &RequestFacts<'a>,
    ) -> Result<Self, Refusal> {
        let is_intercepted = listener.original.is_some();
        if request.form == Form::Connect && !listener.forward_proxy && !is_intercepted {
            return Err(Refusal::ConnectOff);
        }
        if request.authority.is_empty() && request.form == Form::Origin {
            return Ok(Self::of_connection(listener));
        }
        let authority = Authority::parse(request.authority).map_err(Refusal::Authority)?;
        if request.form == Form::Connect && authority.port.is_none() {
            return Err(Refusal::ConnectPort);
        }
        if is_intercepted {
            return Ok(Self::of_connection(listener));
        }
        let known_by = match request.form {
            Form::Absolute => KnownBy::AbsoluteForm,
            Form::Connect => KnownBy::Connect,
            Form::Origin => KnownBy::Host,
        };
        let port = authority
            .port
            .unwrap_or(if request.secure { 443 } else { 80 });
        let destination = Destination::Host {
            host: authority.host,
            port,
        };
        Ok(Self::new(listener, known_by, Some(destination)))
    }

    fn new(
        listener: &ListenerFacts,
        known_by: KnownBy,
        destination: Option<Destination<'a>>,
    ) -> Self {
        let ListenerFacts {
            direction,
            local,
            peer,
            ..
        } = *listener;
        Self {
            destination,
            known_by,
            direction,
            local,
            peer,
        }
    }
}
