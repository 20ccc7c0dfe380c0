//! A connected byte stream, TCP or Unix, non-blocking; and its readiness as the loop knows it.
//!
//! Sockets are registered once, for both directions and edge-triggered, and never again. So the
//! loop keeps what the last events said in [`Io`] and clears it when a call comes up short.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use meshfast_mesh::{Address, Dial, Via};
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

use crate::os;

/// How long sent data may stay unacknowledged before the peer counts as dead, in ms: a half-open
/// peer is noticed by its own traffic, without probes.
const USER_TIMEOUT_MS: u32 = 30_000;

/// See the module's text.
pub(crate) enum Stream {
    /// A stream of a leg between two meshfast proxies: the leg puts bytes into the session's input
    /// and takes them from its output; there is no socket to ask.
    Leg {
        leg: usize,
        stream: u32,
    },
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What the last events and calls said of a socket.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Io {
    /// Worth a `recv`.
    pub(crate) readable: bool,
    /// Worth a `send`.
    pub(crate) writable: bool,
    /// The peer sent FIN; what came before it may still wait to be read.
    pub(crate) hangup: bool,
    /// The peer sent FIN, and all before it was read.
    pub(crate) read_closed: bool,
    /// We sent FIN.
    pub(crate) write_closed: bool,
    /// A call has failed: nothing can be read or written any more.
    pub(crate) broken: bool,
}

impl Io {
    pub(crate) fn note(&mut self, event: &mio::event::Event) {
        self.readable |= event.is_readable() || event.is_read_closed();
        self.hangup |= event.is_read_closed();
        self.writable |= event.is_writable();
        // What came before an error can still be read; the call after it tells the error itself.
        self.readable |= event.is_error();
        self.writable |= event.is_error();
    }
}

/// An address as the logs and headers show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Ip(SocketAddr),
    Local,
}

impl Peer {
    pub(crate) fn socket(self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Local => None,
        }
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(out),
            Self::Local => out.write_str("unix"),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(bytes),
            Self::Unix(stream) => stream.write(bytes),
            Self::Leg { .. } => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream {
    /// The dialer: starts a connect; readiness to write tells its end.
    pub(crate) fn dial(dial: &Dial) -> io::Result<Self> {
        match (dial.via, &dial.address) {
            (Via::Socket, Address::Tcp(address)) => TcpStream::connect(*address).map(Self::Tcp),
            (Via::Socket, Address::Unix(path)) => UnixStream::connect(path).map(Self::Unix),
            (Via::Broker, _) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "no broker is connected to this worker",
            )),
        }
    }

    /// A connection another worker accepted.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> io::Result<Self> {
        let socket = std::net::TcpStream::from(descriptor);
        if socket.local_addr().is_ok() {
            socket.set_nonblocking(true)?;
            return Ok(Self::Tcp(TcpStream::from_std(socket)));
        }
        let socket = std::os::unix::net::UnixStream::from(OwnedFd::from(socket));
        socket.set_nonblocking(true)?;
        Ok(Self::Unix(UnixStream::from_std(socket)))
    }

    /// Options every connection gets: no Nagle, because replies leave in one write already.
    pub(crate) fn tune(&self) {
        if let Self::Tcp(stream) = self {
            // Refused only by a connection that is dead already, which the next call will tell.
            let _ = stream.set_nodelay(true);
            os::user_timeout(stream.as_fd(), USER_TIMEOUT_MS);
        }
    }

    /// Acknowledges what has come, for a peer that sends no more before it knows of it.
    pub(crate) fn acknowledge(&self) {
        if let Self::Tcp(stream) = self {
            os::acknowledge(stream.as_fd());
        }
    }

    pub(crate) fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Tcp(stream) => registry.register(stream, token, interest),
            Self::Unix(stream) => registry.register(stream, token, interest),
            Self::Leg { .. } => Ok(()),
        }
    }

    /// Whether a started connect has ended well.
    pub(crate) fn connected(&self) -> io::Result<()> {
        let pending = match self {
            Self::Tcp(stream) => stream.take_error(),
            Self::Unix(stream) => stream.take_error(),
            Self::Leg { .. } => Ok(None),
        };
        match pending {
            Ok(None) if self.is_connected_to_itself() => Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "nobody listens: connected to itself",
            )),
            Ok(None) => Ok(()),
            Ok(Some(error)) | Err(error) => Err(error),
        }
    }

    /// A connect to a port of this host where nobody listens can get that very port as its near end:
    /// then both ends open at once and are one (RFC 9293 3.5). It would answer with what it is sent.
    fn is_connected_to_itself(&self) -> bool {
        let Self::Tcp(stream) = self else {
            return false;
        };
        let ends = stream.local_addr().ok().zip(stream.peer_addr().ok());
        ends.is_some_and(|(near, far)| near == far)
    }

    pub(crate) fn peer(&self) -> Peer {
        match self {
            Self::Tcp(stream) => stream.peer_addr().map_or(Peer::Local, Peer::Ip),
            Self::Unix(_) | Self::Leg { .. } => Peer::Local,
        }
    }

    pub(crate) fn local(&self) -> Peer {
        match self {
            Self::Tcp(stream) => stream.local_addr().map_or(Peer::Local, Peer::Ip),
            Self::Unix(_) | Self::Leg { .. } => Peer::Local,
        }
    }

    /// The socket; none for a stream of a leg.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Leg { .. } => None,
            Self::Tcp(stream) => Some(stream.as_fd()),
            Self::Unix(stream) => Some(stream.as_fd()),
        }
    }

    /// The leg and the stream of it, for a session that is one.
    pub(crate) fn leg(&self) -> Option<(usize, u32)> {
        match self {
            Self::Leg { leg, stream } => Some((*leg, *stream)),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buffer),
            Self::Unix(stream) => stream.read(buffer),
            Self::Leg { .. } => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(crate) fn shutdown_write(&self) {
        if let Some(socket) = self.descriptor() {
            os::shutdown_write(socket);
        }
    }

    /// The coming close shall be a reset.
    pub(crate) fn abort_on_close(&self) {
        if let Some(socket) = self.descriptor() {
            os::abort_on_close(socket);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_connection_to_itself_is_none() {
        let stream = Stream::from_descriptor(os::connected_to_itself().unwrap()).unwrap();
        assert_eq!(stream.local(), stream.peer(), "as the kernel makes it");
        let refusal = stream.connected().unwrap_err();
        assert_eq!(refusal.kind(), io::ErrorKind::ConnectionRefused);

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let other = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let stream = Stream::from_descriptor(other.into()).unwrap();
        stream.connected().unwrap();
    }
}
