//! One TLS connection between a socket's bytes and a session's plain bytes.
//!
//! rustls does the protocol; this drives it: received bytes go in, plain bytes come out into the
//! session's input, plain output goes in, records go out through the socket. Until the handshake is
//! done and the peer has been checked nothing of the application passes in either direction.

use std::io;
use std::rc::Rc;

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, Connection, ServerConnection};

use meshfast_wire::frame::ALPN;

use crate::buffer::Input;
use crate::tls::roots::Refusal;
use crate::tls::{Identity, Peer};

/// Plain bytes that rustls may hold while the socket is full; more stays in the session's output.
const SEND_QUEUE_BYTES: usize = 16 * 1024;

/// Why a TLS connection ended; a stable label for counters and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TlsFailure(pub(crate) &'static str);

/// See the module's text.
pub(crate) struct Tls {
    connection: Connection,
    identity: Rc<Identity>,
    /// Who the peer is, once it has been checked.
    peer: Option<Peer>,
    /// Why it ended, when it did.
    failure: Option<TlsFailure>,
}

impl Tls {
    /// Of a connection we dialled: the peer must be `expected`.
    pub(crate) fn client(identity: &Rc<Identity>, expected: &str) -> Result<Self, TlsFailure> {
        let unnamed = ServerName::try_from("meshfast.invalid").expect("a constant DNS name");
        let connection = ClientConnection::new(identity.client(expected), unnamed)
            .map_err(|_| TlsFailure("tls.configuration"))?;
        Ok(Self::new(connection.into(), identity))
    }

    /// Of a connection we accepted.
    pub(crate) fn server(identity: &Rc<Identity>) -> Result<Self, TlsFailure> {
        let connection = ServerConnection::new(identity.server())
            .map_err(|_| TlsFailure("tls.configuration"))?;
        Ok(Self::new(connection.into(), identity))
    }

    fn new(mut connection: Connection, identity: &Rc<Identity>) -> Self {
        connection.set_buffer_limit(Some(SEND_QUEUE_BYTES));
        Self {
            connection,
            identity: Rc::clone(identity),
            peer: None,
            failure: None,
        }
    }

    /// Who the peer is; `None` until the handshake is done and checked.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Why the connection ended, when TLS ended it.
    pub(crate) fn failure(&self) -> Option<TlsFailure> {
        self.failure
    }

    /// Takes received bytes; plain ones are appended to `input`.
    pub(crate) fn receive(&mut self, bytes: &[u8], input: &mut Input) -> Result<(), TlsFailure> {
        let received = self.open(bytes, input);
        self.failure = received.err();
        received
    }

    fn open(&mut self, mut bytes: &[u8], input: &mut Input) -> Result<(), TlsFailure> {
        while !bytes.is_empty() {
            let taken = self
                .connection
                .read_tls(&mut bytes)
                .map_err(|_| TlsFailure("tls.read"))?;
            // rustls takes nothing more once the peer has said that it is done.
            if taken == 0 {
                return Err(TlsFailure("tls.data_after_close"));
            }
            let state = self
                .connection
                .process_new_packets()
                .map_err(|error| label_of(&error))?;
            if self.peer.is_none() && !self.connection.is_handshaking() {
                self.check_peer()?;
            }
            if state.plaintext_bytes_to_read() > 0 {
                let mut plain = vec![0; state.plaintext_bytes_to_read()];
                let count = io::Read::read(&mut self.connection.reader(), &mut plain)
                    .map_err(|_| TlsFailure("tls.read"))?;
                input.append(&plain[..count]);
            }
        }
        Ok(())
    }

    /// What the handshake has not checked: that it is `meshfast/1`, and whose trust domain it is.
    fn check_peer(&mut self) -> Result<(), TlsFailure> {
        if self.connection.alpn_protocol() != Some(ALPN) {
            return Err(TlsFailure("tls.alpn"));
        }
        let peer = self
            .identity
            .of_peer(self.connection.peer_certificates())
            .ok_or(TlsFailure("tls.peer_identity"))?;
        self.peer = Some(peer);
        Ok(())
    }

    /// Whether records wait to be sent: handshake messages or sealed bytes.
    pub(crate) fn wants_write(&self) -> bool {
        self.connection.wants_write()
    }

    /// Seals plain bytes, as many as fit; returns how many. None before the peer has been checked.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> usize {
        if self.peer.is_none() {
            return 0;
        }
        io::Write::write(&mut self.connection.writer(), plain).unwrap_or(0)
    }

    /// Writes waiting records to the socket.
    pub(crate) fn write_to(&mut self, socket: &mut dyn io::Write) -> io::Result<usize> {
        self.connection.write_tls(socket)
    }

    /// Says that nothing more is sent.
    pub(crate) fn close_notify(&mut self) {
        self.connection.send_close_notify();
    }
}

/// A label an operator can look for; certificates are what goes wrong in practice.
fn label_of(error: &rustls::Error) -> TlsFailure {
    use rustls::{CertificateError, Error};
    match Refusal::of(error) {
        Some(Refusal::AnotherServer { .. }) => return TlsFailure("tls.peer_is_another"),
        Some(Refusal::RootNotValid) => return TlsFailure("tls.root_not_valid"),
        None => {}
    }
    TlsFailure(match error {
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "tls.certificate_expired",
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "tls.certificate_not_yet_valid",
        // An authority of the same name with another key is another authority.
        Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => "tls.certificate_unknown_issuer",
        Error::InvalidCertificate(_) => "tls.certificate_invalid",
        Error::NoCertificatesPresented => "tls.no_certificate",
        Error::NoApplicationProtocol => "tls.alpn",
        Error::AlertReceived(_) => "tls.alert_received",
        Error::PeerIncompatible(_) => "tls.peer_incompatible",
        Error::InvalidMessage(_) => "tls.not_tls",
        _ => "tls.handshake",
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tls::identity::tests::{Authority, PAYMENT};

    const ORDER: &str = "spiffe://cluster.local/ns/default/sa/order";

    struct End {
        tls: Tls,
        input: Input,
    }

    impl End {
        fn new(tls: Tls) -> Self {
            Self {
                tls,
                input: Input::default(),
            }
        }
    }

    /// Carries records from one end to the other in pieces of `step` bytes.
    fn carry(from: &mut End, to: &mut End, step: usize) -> Result<bool, TlsFailure> {
        let mut records = Vec::new();
        while from.tls.wants_write() {
            from.tls.write_to(&mut records).unwrap();
        }
        for piece in records.chunks(step) {
            to.tls.receive(piece, &mut to.input)?;
        }
        Ok(!records.is_empty())
    }

    fn meet(
        client: &Rc<Identity>,
        expected: &str,
        server: &Rc<Identity>,
        step: usize,
    ) -> Result<(), TlsFailure> {
        joined(client, expected, server, step).map(|_| ())
    }

    fn joined(
        client: &Rc<Identity>,
        expected: &str,
        server: &Rc<Identity>,
        step: usize,
    ) -> Result<(End, End), TlsFailure> {
        let mut near = End::new(Tls::client(client, expected)?);
        let mut far = End::new(Tls::server(server)?);
        assert_eq!(
            near.tls.seal(b"early"),
            0,
            "nothing before the peer is checked"
        );
        while carry(&mut near, &mut far, step)? | carry(&mut far, &mut near, step)? {}
        assert_eq!(near.tls.peer().map(|it| &it.name), Some(&server.name));
        assert_eq!(far.tls.peer().map(|it| &it.name), Some(&client.name));
        assert_eq!(near.tls.seal(b"question"), 8);
        carry(&mut near, &mut far, step)?;
        assert_eq!(far.input.as_slice(), b"question");
        Ok((near, far))
    }

    #[test]
    fn both_sides_know_each_other_however_the_bytes_are_cut() {
        let authority = Authority::new();
        let (order, payment) = (authority.identity(ORDER), authority.identity(PAYMENT));
        for step in [usize::MAX, 1, 100] {
            meet(&order, PAYMENT, &payment, step).unwrap();
        }
    }

    #[test]
    fn refuses_another_than_the_called_service() {
        let authority = Authority::new();
        let (order, payment) = (authority.identity(ORDER), authority.identity(PAYMENT));
        let refusal = meet(&order, ORDER, &payment, usize::MAX).unwrap_err();
        assert_eq!(refusal, TlsFailure("tls.peer_is_another"));
    }

    #[test]
    fn another_than_the_called_service_is_told_so_and_sees_no_handshake_end() {
        let authority = Authority::new();
        let (order, payment) = (authority.identity(ORDER), authority.identity(PAYMENT));
        let mut near = End::new(Tls::client(&order, ORDER).unwrap());
        let mut far = End::new(Tls::server(&payment).unwrap());
        carry(&mut near, &mut far, usize::MAX).unwrap();
        carry(&mut far, &mut near, usize::MAX).unwrap_err();
        let refusal = carry(&mut near, &mut far, usize::MAX).unwrap_err();
        assert_eq!(refusal, TlsFailure("tls.alert_received"));
        assert!(far.tls.peer().is_none());
    }

    #[test]
    fn refuses_a_peer_below_a_root_that_is_not_valid_now() {
        for (from, to) in [(2000, 2001), (2300, 2301)] {
            let (ours, theirs) = (Authority::new(), Authority::lasting(from, to));
            // Either trusts both roots, as while one follows the other.
            let both = [ours.root(), theirs.root()];
            let trusting = |authority: &Authority, name| {
                let handed = authority.hand_over_with(&both, &[name], |_| {});
                Rc::new(Identity::read(handed.as_bytes()).unwrap())
            };
            let (order, payment) = (trusting(&ours, ORDER), trusting(&ours, PAYMENT));
            meet(&order, PAYMENT, &payment, usize::MAX).unwrap();
            let old = trusting(&theirs, PAYMENT);
            let called = meet(&order, PAYMENT, &old, usize::MAX).unwrap_err();
            assert_eq!(called, TlsFailure("tls.root_not_valid"), "{from}");
            let caller = meet(&old, PAYMENT, &payment, usize::MAX).unwrap_err();
            assert_eq!(caller, TlsFailure("tls.root_not_valid"), "{from}");
            // Who trusts no other takes nobody, and lives on.
            let handed = theirs.hand_over(&[ORDER], |_| {});
            let alone = Rc::new(Identity::read(handed.as_bytes()).unwrap());
            let refusal = meet(&alone, PAYMENT, &old, usize::MAX).unwrap_err();
            assert_eq!(refusal, TlsFailure("tls.root_not_valid"), "{from}");
        }
    }

    #[test]
    fn refuses_certificates_of_another_authority_and_of_another_time() {
        let (ours, theirs) = (Authority::new(), Authority::new());
        let (order, payment) = (ours.identity(ORDER), theirs.identity(PAYMENT));
        let refusal = meet(&order, PAYMENT, &payment, usize::MAX).unwrap_err();
        assert_eq!(refusal, TlsFailure("tls.certificate_unknown_issuer"));
        for (from, to, label) in [
            (2000, 2001, "tls.certificate_expired"),
            (2300, 2301, "tls.certificate_not_yet_valid"),
        ] {
            let handed = ours.hand_over(&[PAYMENT], |params| {
                params.not_before = rcgen::date_time_ymd(from, 1, 1);
                params.not_after = rcgen::date_time_ymd(to, 1, 1);
            });
            let wrong_time = Rc::new(Identity::read(handed.as_bytes()).unwrap());
            let refusal = meet(&order, PAYMENT, &wrong_time, usize::MAX).unwrap_err();
            assert_eq!(refusal, TlsFailure(label));
        }
    }

    #[test]
    fn refuses_an_identity_of_another_trust_domain() {
        let authority = Authority::new();
        let order = authority.identity(ORDER);
        let foreign = authority.identity("spiffe://elsewhere/ns/default/sa/payment");
        let name = foreign.name.clone();
        let refusal = meet(&order, &name, &foreign, usize::MAX).unwrap_err();
        assert_eq!(refusal, TlsFailure("tls.peer_identity"));
    }

    #[test]
    fn refuses_bytes_behind_the_peers_last_record() {
        let authority = Authority::new();
        let (order, payment) = (authority.identity(ORDER), authority.identity(PAYMENT));
        let (mut near, mut far) = joined(&order, PAYMENT, &payment, usize::MAX).unwrap();
        near.tls.close_notify();
        carry(&mut near, &mut far, usize::MAX).unwrap();
        let refusal = far.tls.receive(b"more", &mut far.input).unwrap_err();
        assert_eq!(refusal, TlsFailure("tls.data_after_close"));
    }

    #[test]
    fn refuses_plaintext_instead_of_a_handshake() {
        let payment = Authority::new().identity(PAYMENT);
        let mut tls = Tls::server(&payment).unwrap();
        let mut input = Input::default();
        let refusal = tls
            .receive(b"GET / HTTP/1.1\r\n\r\n", &mut input)
            .unwrap_err();
        assert_eq!(refusal, TlsFailure("tls.not_tls"));
        assert!(input.is_empty());
    }
}
