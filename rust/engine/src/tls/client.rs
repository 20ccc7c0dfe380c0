//! One TLS connection of the agent to the control plane: rustls without a socket.
//!
//! The agent has rustls mapped already, because its workers have; another TLS library would cost it
//! 3 MB. It carries the bytes: records in, plain bytes out, and the other way round.
//!
//! What it refuses: any TLS version but 1.3, a chain that does not lead to the roots, a server that
//! is not exactly the expected SPIFFE ID. Nothing is sealed before the server has been checked.
//!
//! Tests: at the end, `tests/agent/test_mesh.py`.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Error, RootCertStore};

use crate::tls::identity::{client_configuration, provider, svid};

/// See the module's text.
pub struct Client {
    connection: ClientConnection,
    /// Who the server must be.
    server: String,
    is_open: bool,
    is_ended: bool,
}

impl Client {
    /// A connection that trusts `roots`, to the SPIFFE ID `server`. It shows `chain`, leaf first, if
    /// there is one; `key` (PKCS #8) is that of the leaf. DER throughout.
    ///
    /// # Errors
    /// When a root, the chain or the key cannot be used, or key and leaf do not belong together.
    pub fn new(roots: &[&[u8]], chain: &[&[u8]], key: &[u8], server: &str) -> Result<Self, String> {
        let mut trusted = RootCertStore::empty();
        for root in roots {
            let root = CertificateDer::from(root.to_vec());
            trusted.add(root).map_err(|error| error.to_string())?;
        }
        let chain: Vec<_> = chain
            .iter()
            .map(|one| CertificateDer::from(one.to_vec()))
            .collect();
        let configuration =
            client_configuration(&Arc::new(provider()), &Arc::new(trusted), &chain, key)
                .map_err(|error| error.to_string())?;
        let unnamed = ServerName::try_from("meshfast.invalid").expect("a constant DNS name");
        let mut connection = ClientConnection::new(Arc::new(configuration), unnamed)
            .map_err(|error| error.to_string())?;
        connection.set_buffer_limit(None);
        Ok(Self {
            connection,
            server: server.to_owned(),
            is_open: false,
            is_ended: false,
        })
    }

    /// Whether the handshake is done and the server is the one that is expected.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether the server has said that nothing follows.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Takes what the socket gave; returns the plain bytes in it.
    ///
    /// # Errors
    /// A text for an operator. The alert for the server is among the next `records`.
    pub fn receive(&mut self, mut bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        while !bytes.is_empty() && !self.is_ended {
            self.connection
                .read_tls(&mut bytes)
                .map_err(|error| error.to_string())?;
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| told(&error))?;
            self.is_ended = state.peer_has_closed();
            if !self.is_open && !self.connection.is_handshaking() {
                self.check_server()?;
            }
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            self.connection
                .reader()
                .read_exact(&mut plain[start..])
                .map_err(|error| error.to_string())?;
        }
        Ok(plain)
    }

    /// Seals plain bytes; none before the connection is open.
    pub fn send(&mut self, plain: &[u8]) {
        assert!(self.is_open, "the server has been checked");
        self.connection
            .writer()
            .write_all(plain)
            .expect("the buffer has no limit");
    }

    /// Takes the records that are for the socket.
    pub fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.connection.wants_write() {
            self.connection
                .write_tls(&mut records)
                .expect("a vector takes everything");
        }
        records
    }

    fn check_server(&mut self) -> Result<(), String> {
        let chain = self.connection.peer_certificates();
        let name = chain.and_then(|chain| svid(chain.first()?));
        match name {
            Some(peer) if peer.name == self.server => self.is_open = true,
            Some(peer) => return Err(format!("the server is {}, not {}", peer.name, self.server)),
            None => return Err(format!("the server is not {}", self.server)),
        }
        Ok(())
    }
}

fn told(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(reason) => {
            format!("the certificate of the control plane is refused: {reason}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tls::identity::tests::{Authority, PAYMENT};
    use rustls::{ServerConfig, ServerConnection};

    const CONTROL: &str = "spiffe://cluster.local/ns/meshfast-system/sa/control";

    /// A server with the certificate that `handed` is about; asks for no certificate.
    fn server(authority: &Authority, name: &str) -> ServerConnection {
        let (chain, key) = authority.issue(&[name], |_| {});
        let config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        ServerConnection::new(Arc::new(config)).unwrap()
    }

    fn client(authority: &Authority, server: &str) -> Client {
        Client::new(&[authority.root()], &[], &[], server).unwrap()
    }

    /// Carries records both ways, `step` bytes at a time to the client; returns what it got.
    fn meet(
        client: &mut Client,
        server: &mut ServerConnection,
        step: usize,
    ) -> Result<Vec<u8>, String> {
        let mut plain = Vec::new();
        loop {
            let records = client.records();
            server.read_tls(&mut &records[..]).unwrap();
            server.process_new_packets().unwrap();
            let mut answers = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut answers).unwrap();
            }
            for piece in answers.chunks(step) {
                plain.extend(client.receive(piece)?);
            }
            if records.is_empty() && answers.is_empty() {
                return Ok(plain);
            }
        }
    }

    #[test]
    fn carries_bytes_both_ways_however_they_are_cut() {
        let authority = Authority::new();
        for step in [usize::MAX, 1, 100] {
            let (mut near, mut far) = (client(&authority, CONTROL), server(&authority, CONTROL));
            far.writer().write_all(b"welcome").unwrap();
            assert_eq!(meet(&mut near, &mut far, step).unwrap(), b"welcome");
            assert!(near.is_open() && !near.is_ended());
            near.send(b"hello");
            meet(&mut near, &mut far, step).unwrap();
            let mut heard = [0; 5];
            far.reader().read_exact(&mut heard).unwrap();
            assert_eq!(&heard, b"hello");
            far.send_close_notify();
            meet(&mut near, &mut far, step).unwrap();
            assert!(near.is_ended());
        }
    }

    #[test]
    fn takes_more_in_one_turn_than_a_record_holds() {
        let authority = Authority::new();
        let (mut near, mut far) = (client(&authority, CONTROL), server(&authority, CONTROL));
        meet(&mut near, &mut far, usize::MAX).unwrap();
        far.set_buffer_limit(None);
        far.writer().write_all(&[7; 200_000]).unwrap();
        let plain = meet(&mut near, &mut far, usize::MAX).unwrap();
        assert_eq!(plain, [7; 200_000]);
    }

    #[test]
    fn refuses_another_server_and_another_root() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let (mut near, mut far) = (client(&ours, CONTROL), server(&ours, PAYMENT));
        let refusal = meet(&mut near, &mut far, usize::MAX).unwrap_err();
        assert_eq!(refusal, format!("the server is {PAYMENT}, not {CONTROL}"));
        assert!(!near.is_open());
        let (mut near, mut far) = (client(&ours, CONTROL), server(&theirs, CONTROL));
        let refusal = meet(&mut near, &mut far, usize::MAX).unwrap_err();
        assert!(
            refusal.starts_with("the certificate of the control plane is refused: "),
            "{refusal}"
        );
        assert!(!near.records().is_empty(), "the alert");
    }

    #[test]
    fn refuses_a_key_that_is_not_the_leafs() {
        let authority = Authority::new();
        let (leaf, _) = authority.issue(&[PAYMENT], |_| {});
        let other = crate::tls::generate_key().unwrap();
        assert!(Client::new(&[authority.root()], &[&leaf], &other, CONTROL).is_err());
        assert!(Client::new(&[b"no certificate"], &[], &[], CONTROL).is_err());
    }
}
