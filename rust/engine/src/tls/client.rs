//! One TLS connection of the agent to the control plane: rustls without a socket.
//!
//! The agent has rustls mapped already, because its workers have; another TLS library would cost it
//! 3 MB. It carries the bytes: records in, plain bytes out, and the other way round.
//!
//! What it refuses: any TLS version but 1.3, roots of which none is valid, a chain that does not lead
//! to a root that is, a server that is not exactly the expected SPIFFE ID. All of it is checked within
//! the handshake, so that who is refused gets an alert and never sees it end.
//!
//! Tests: at the end, `tests/agent/test_mesh.py`.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::UnixTime;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConnection, Error};

use crate::tls::identity::{ChainVerifier, client_configuration, provider};
use crate::tls::roots::{Refusal, Roots};

/// See the module's text.
pub struct Client {
    connection: ClientConnection,
    is_open: bool,
    is_ended: bool,
}

impl Client {
    /// A connection that trusts `roots`, to the SPIFFE ID `server`. It shows `chain`, leaf first, if
    /// there is one; `key` (PKCS #8) is that of the leaf. DER throughout.
    ///
    /// # Errors
    /// When a root, the chain or the key cannot be used, no root is valid now, or key and leaf do not
    /// belong together.
    pub fn new(roots: &[&[u8]], chain: &[&[u8]], key: &[u8], server: &str) -> Result<Self, String> {
        let owned = |der: &&[u8]| CertificateDer::from(der.to_vec());
        let trusted = Roots::new(roots.iter().map(owned))?;
        trusted.check(UnixTime::now())?;
        let chain: Vec<_> = chain.iter().map(owned).collect();
        let provider = Arc::new(provider());
        let verifier = ChainVerifier::new(&Arc::new(trusted), &provider);
        let configuration = verifier
            .and_then(|it| client_configuration(&provider, it.expecting(server), &chain, key))
            .map_err(|error| error.to_string())?;
        let unnamed = ServerName::try_from("meshfast.invalid").expect("a constant DNS name");
        let mut connection = ClientConnection::new(Arc::new(configuration), unnamed)
            .map_err(|error| error.to_string())?;
        connection.set_buffer_limit(None);
        Ok(Self {
            connection,
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
    /// A text for an operator. An alert for the server, where it has one to hear, is among the next
    /// `records`.
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
            self.is_open |= !self.connection.is_handshaking();
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
}

fn told(error: &Error) -> String {
    if let Some(refusal) = Refusal::of(error) {
        return refusal.to_string();
    }
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
        assert!(hears_why(&mut near, &mut far));
        let (mut near, mut far) = (client(&ours, CONTROL), server(&theirs, CONTROL));
        let refusal = meet(&mut near, &mut far, usize::MAX).unwrap_err();
        assert!(
            refusal.starts_with("the certificate of the control plane is refused: "),
            "{refusal}"
        );
        assert!(hears_why(&mut near, &mut far));
    }

    /// Whether the server hears by an alert that it is refused, before its handshake has ended.
    fn hears_why(client: &mut Client, server: &mut ServerConnection) -> bool {
        let records = client.records();
        server.read_tls(&mut &records[..]).unwrap();
        let heard = server.process_new_packets();
        matches!(heard, Err(Error::AlertReceived(_))) && server.is_handshaking()
    }

    #[test]
    fn refuses_a_server_below_a_root_that_is_not_valid_now() {
        for (from, to) in [(2000, 2001), (2300, 2301)] {
            let (ours, old) = (Authority::new(), Authority::lasting(from, to));
            let refusal = Client::new(&[old.root()], &[], &[], CONTROL).err().unwrap();
            assert!(
                refusal.starts_with("no root of the trust bundle is valid now: "),
                "{refusal}"
            );
            let bundle = [ours.root(), old.root()];
            let new = || Client::new(&bundle, &[], &[], CONTROL).unwrap();
            let (mut near, mut far) = (new(), server(&ours, CONTROL));
            meet(&mut near, &mut far, usize::MAX).unwrap();
            assert!(near.is_open());
            let (mut near, mut far) = (new(), server(&old, CONTROL));
            let refusal = meet(&mut near, &mut far, usize::MAX).unwrap_err();
            assert_eq!(refusal, Refusal::RootNotValid.to_string());
            assert!(!near.is_open() && hears_why(&mut near, &mut far));
        }
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
