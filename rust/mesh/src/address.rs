//! Where a socket can be bound or connected: `ip:port`, `[ip6]:port` or `unix:/path`.
//!
//! Names are not addresses: they are resolved before an [`Address`] exists.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A path longer than this does not fit `sockaddr_un` (108 bytes with its final NUL, unix(7)).
const UNIX_PATH_BYTES_MAX: usize = 107;

/// An address a socket can be bound or connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The absolute path of a Unix stream socket.
    Unix(PathBuf),
}

impl Address {
    /// The IP address and port, when there are any.
    #[must_use]
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(path) = text.strip_prefix("unix:") else {
            return text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| "expected ip:port, [ip6]:port or unix:/path");
        };
        if !path.starts_with('/') {
            return Err("the path of a unix socket is absolute: unix:/path");
        }
        if path.contains('\0') {
            return Err("the path of a unix socket has no NUL");
        }
        if path.len() > UNIX_PATH_BYTES_MAX {
            return Err("the path of a unix socket has at most 107 bytes");
        }
        Ok(Self::Unix(PathBuf::from(path)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        let long = format!("unix:/{}", "a".repeat(UNIX_PATH_BYTES_MAX - 1));
        for text in [
            "127.0.0.1:80",
            "[::1]:65535",
            "0.0.0.0:0",
            "unix:/run/app.sock",
            &long,
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_names_and_half_addresses() {
        let long = format!("unix:/{}", "a".repeat(UNIX_PATH_BYTES_MAX));
        for text in [
            "",
            "localhost:80",
            "127.0.0.1",
            "::1:80",
            "127.0.0.1:65536",
            " 127.0.0.1:80",
            "unix:",
            "unix:run/app.sock",
            "unix:@abstract",
            "unix:/a\0b",
            &long,
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_tcp_has_a_socket_address() {
        assert_eq!(
            "[::1]:80"
                .parse::<Address>()
                .unwrap()
                .socket()
                .unwrap()
                .port(),
            80
        );
        assert_eq!("unix:/a".parse::<Address>().unwrap().socket(), None);
    }
}
