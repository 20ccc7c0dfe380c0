//! The sidecar's identity: key, certificate chain and trust bundle, and what follows from them.
//!
//! The agent hands an identity over in a sealed memory file; a worker makes rustls configurations of
//! it and drops the text. A new identity is for new connections; those that are open keep theirs.
//! Sources: SPIFFE X.509-SVID 4 and 5, SPIFFE-ID 2.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use meshfast_wire::frame::ALPN;

use crate::tls::roots::{Refusal, Roots};

/// The longest SPIFFE ID (SPIFFE-ID 2.3).
const IDENTITY_BYTES_MAX: usize = 2_048;

/// What the agent hands over.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Handed {
    version: u32,
    trust_domain: String,
    chain: Vec<String>,
    key: String,
    bundle: Vec<String>,
}

/// Who a peer is, by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its SPIFFE ID.
    pub(crate) name: String,
    /// When its certificate expires: seconds since 1970, UTC.
    pub(crate) expires_s: u64,
}

/// See the module's text.
pub(crate) struct Identity {
    /// The SPIFFE ID of this sidecar.
    pub(crate) name: String,
    trust_domain: String,
    /// Of connections to a server whom `servers` does not expect yet.
    client: ClientConfig,
    servers: ChainVerifier,
    server: Arc<ServerConfig>,
}

impl Identity {
    /// Reads what the agent handed over.
    ///
    /// # Errors
    /// A text that says which part cannot be used; never any of the key.
    pub(crate) fn read(json: &[u8]) -> Result<Self, String> {
        let handed: Handed =
            serde_json::from_slice(json).map_err(|error| format!("identity: {error}"))?;
        if handed.version != 1 {
            return Err(format!("identity: version {} is not 1", handed.version));
        }
        let chain = certificates("chain", &handed.chain)?;
        let roots = Roots::new(certificates("bundle", &handed.bundle)?)
            .map_err(|error| format!("identity: bundle: {error}"))?;
        let key = decode("key", &handed.key)?;
        let name = chain
            .first()
            .and_then(|leaf| svid(leaf))
            .ok_or("identity: the certificate has no SPIFFE ID")?
            .name;
        let provider = Arc::new(provider());
        // aws-lc gathers entropy of its own before a process gets its first random bytes: 30 to 60 ms of
        // CPU. Here they hold up a start, in the first handshake the first call.
        provider
            .secure_random
            .fill(&mut [0; 32])
            .map_err(|_| "identity: the system has no randomness")?;
        let roots = Arc::new(roots);
        let wrong = |error: Error| format!("identity: {error}");
        let servers = ChainVerifier::new(&roots, &provider).map_err(wrong)?;
        let mut client =
            client_configuration(&provider, servers.clone(), &chain, &key).map_err(wrong)?;
        client.alpn_protocols = vec![ALPN.to_vec()];
        let server = server_configuration(&provider, &roots, &chain, &key).map_err(wrong)?;
        Ok(Self {
            name,
            trust_domain: handed.trust_domain,
            client,
            servers,
            server: Arc::new(server),
        })
    }

    /// For a connection to the server that is `expected`.
    pub(crate) fn client(&self, expected: &str) -> Arc<ClientConfig> {
        let mut client = self.client.clone();
        let verifier = Arc::new(self.servers.expecting(expected));
        client.dangerous().set_certificate_verifier(verifier);
        Arc::new(client)
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// The identity of a peer whose chain rustls has verified, if it is one of our trust domain.
    pub(crate) fn of_peer(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Peer> {
        let peer = svid(chain?.first()?)?;
        let (domain, _) = peer.name.strip_prefix("spiffe://")?.split_once('/')?;
        (domain == self.trust_domain).then_some(peer)
    }
}

/// TLS 1.3 with AES-128-GCM first; X25519 first: the post-quantum hybrid costs half as much again per
/// handshake and comes by option.
pub(super) fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    provider.kx_groups = vec![
        aws_lc_rs::kx_group::X25519,
        aws_lc_rs::kx_group::SECP256R1,
        aws_lc_rs::kx_group::SECP384R1,
    ];
    provider
}

fn server_configuration(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<Roots>,
    chain: &[CertificateDer<'static>],
    key: &[u8],
) -> Result<ServerConfig, Error> {
    let callers = Arc::new(CallerVerifier::new(roots, provider)?);
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain.to_vec(), pkcs8(key))?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// A client's: TLS 1.3, whom `verifier` expects at the other end; an empty chain shows none.
pub(super) fn client_configuration(
    provider: &Arc<CryptoProvider>,
    verifier: ChainVerifier,
    chain: &[CertificateDer<'static>],
    key: &[u8],
) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut client = if chain.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_auth_cert(chain.to_vec(), pkcs8(key))?
    };
    client.resumption = rustls::client::Resumption::disabled();
    client.enable_sni = false;
    Ok(client)
}

fn pkcs8(key: &[u8]) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()))
}

fn unusable(error: rustls::server::VerifierBuilderError) -> Error {
    Error::General(error.to_string())
}

/// Verifies a server's chain without a host name: who it must be is a SPIFFE ID. A server that is
/// another is told so by an alert, and sees no handshake end.
#[derive(Clone, Debug)]
pub(super) struct ChainVerifier {
    roots: Arc<Roots>,
    algorithms: WebPkiSupportedAlgorithms,
    /// Of signatures.
    inner: Arc<WebPkiServerVerifier>,
    expected: String,
}

impl ChainVerifier {
    /// Expects nobody, so it refuses every server.
    pub(super) fn new(roots: &Arc<Roots>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let anchors = Arc::clone(roots.all());
        let inner = WebPkiServerVerifier::builder_with_provider(anchors, Arc::clone(provider));
        Ok(Self {
            roots: Arc::clone(roots),
            algorithms: provider.signature_verification_algorithms,
            inner: inner.build().map_err(unusable)?,
            expected: String::new(),
        })
    }

    /// The same for a server with this SPIFFE ID.
    pub(super) fn expecting(&self, server: &str) -> Self {
        Self {
            expected: server.to_owned(),
            ..self.clone()
        }
    }
}

impl ServerCertVerifier for ChainVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        self.roots.verify(now, |roots| {
            rustls::client::verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                self.algorithms.all,
            )
        })?;
        match svid(leaf) {
            Some(peer) if peer.name == self.expected => Ok(ServerCertVerified::assertion()),
            Some(peer) => Err(Refusal::AnotherServer {
                is: peer.name,
                expected: self.expected.clone(),
            }
            .into()),
            None => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Verifies a caller's chain. Who it is decides nothing here.
#[derive(Debug)]
struct CallerVerifier {
    roots: Arc<Roots>,
    provider: Arc<CryptoProvider>,
    /// Of all roots.
    inner: Arc<dyn ClientCertVerifier>,
}

impl CallerVerifier {
    fn new(roots: &Arc<Roots>, provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        Ok(Self {
            roots: Arc::clone(roots),
            provider: Arc::clone(provider),
            inner: callers_below(roots.all(), provider)?,
        })
    }
}

fn callers_below(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, Error> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(unusable)
}

impl ClientCertVerifier for CallerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.roots.verify(now, |roots| {
            let verifier = if Arc::ptr_eq(roots, self.roots.all()) {
                Arc::clone(&self.inner)
            } else {
                callers_below(roots, &self.provider)?
            };
            let verified = verifier.verify_client_cert(leaf, intermediates, now);
            verified.map(|_| ())
        })?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Whom a leaf certificate names: exactly one URI name, of the form of SPIFFE-ID 2, in a
/// certificate that may sign nothing but its own handshakes (X.509-SVID 4).
pub(super) fn svid(leaf: &CertificateDer<'_>) -> Option<Peer> {
    let (rest, certificate) = X509Certificate::from_der(leaf).ok()?;
    if !rest.is_empty() || certificate.is_ca() {
        return None;
    }
    let usage = certificate.key_usage().ok()??.value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return None;
    }
    let names = &certificate
        .subject_alternative_name()
        .ok()??
        .value
        .general_names;
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let uri = uris.next()?;
    let expires_s = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    (uris.next().is_none() && is_spiffe_id(uri)).then(|| Peer {
        name: uri.to_owned(),
        expires_s,
    })
}

/// SPIFFE-ID 2: `spiffe://domain/segment/…`, no query, port, user, escapes, empty or dot segments.
fn is_spiffe_id(uri: &str) -> bool {
    let Some((domain, path)) = uri
        .strip_prefix("spiffe://")
        .and_then(|it| it.split_once('/'))
    else {
        return false;
    };
    let is_domain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'_')
    };
    let is_path = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    uri.len() <= IDENTITY_BYTES_MAX
        && (1..=255).contains(&domain.len())
        && domain.bytes().all(is_domain)
        && path
            .split('/')
            .all(|part| !matches!(part, "" | "." | "..") && part.bytes().all(is_path))
}

fn certificates(what: &str, texts: &[String]) -> Result<Vec<CertificateDer<'static>>, String> {
    if texts.is_empty() {
        return Err(format!("identity: {what} is empty"));
    }
    texts
        .iter()
        .map(|text| decode(what, text).map(CertificateDer::from))
        .collect()
}

fn decode(what: &str, text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|_| format!("identity: {what} is not base64"))
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rcgen::{
        BasicConstraints, Certificate, CertificateParams, DistinguishedName as Subject,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
    };

    /// A certificate authority of the tests.
    pub(crate) struct Authority {
        key: KeyPair,
        params: CertificateParams,
        root: Certificate,
    }

    impl Authority {
        pub(crate) fn new() -> Self {
            Self::with(|_| {})
        }

        /// One whose root is valid from the start of one year to that of another.
        pub(crate) fn lasting(from: i32, to: i32) -> Self {
            Self::with(|params| {
                params.not_before = rcgen::date_time_ymd(from, 1, 1);
                params.not_after = rcgen::date_time_ymd(to, 1, 1);
            })
        }

        fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            change(&mut params);
            let root = params.self_signed(&key).unwrap();
            Self { key, params, root }
        }

        pub(crate) fn root(&self) -> &[u8] {
            self.root.der()
        }

        /// A leaf with these names and its key; `change` spoils the certificate.
        pub(crate) fn issue(
            &self,
            names: &[&str],
            change: impl FnOnce(&mut CertificateParams),
        ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.distinguished_name = Subject::new();
            params.subject_alt_names = names
                .iter()
                .map(|name| SanType::URI((*name).try_into().unwrap()))
                .collect();
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            params.extended_key_usages = vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ];
            change(&mut params);
            let issuer = Issuer::from_params(&self.params, &self.key);
            let leaf = params.signed_by(&key, &issuer).unwrap();
            (leaf.der().clone(), pkcs8(&key.serialize_der()))
        }

        /// What an agent would hand over, with these names; `change` spoils the certificate.
        pub(crate) fn hand_over(
            &self,
            names: &[&str],
            change: impl FnOnce(&mut CertificateParams),
        ) -> String {
            self.hand_over_with(&[self.root()], names, change)
        }

        /// The same with this trust bundle.
        pub(crate) fn hand_over_with(
            &self,
            bundle: &[&[u8]],
            names: &[&str],
            change: impl FnOnce(&mut CertificateParams),
        ) -> String {
            let (leaf, key) = self.issue(names, change);
            let bundle: Vec<String> = bundle.iter().map(|it| STANDARD.encode(it)).collect();
            format!(
                r#"{{"version":1,"trust_domain":"cluster.local","chain":["{}"],"key":"{}",
                "bundle":["{}"]}}"#,
                STANDARD.encode(leaf),
                STANDARD.encode(key.secret_der()),
                bundle.join("\",\""),
            )
        }

        pub(crate) fn identity(&self, name: &str) -> std::rc::Rc<Identity> {
            std::rc::Rc::new(Identity::read(self.hand_over(&[name], |_| {}).as_bytes()).unwrap())
        }
    }

    pub(crate) const PAYMENT: &str = "spiffe://cluster.local/ns/default/sa/payment";

    #[test]
    fn reads_what_the_agent_hands_over() {
        assert_eq!(Authority::new().identity(PAYMENT).name, PAYMENT);
    }

    /// Microseconds for the first `ClientHello` of a process, and the median of later ones.
    fn hello_us(identity: &std::rc::Rc<Identity>) -> (u128, u128) {
        let mut all: Vec<u128> = (0..21)
            .map(|_| {
                let start = std::time::Instant::now();
                let tls = crate::tls::Tls::client(identity, PAYMENT).unwrap();
                assert!(tls.wants_write());
                start.elapsed().as_micros()
            })
            .collect();
        let first = all.remove(0);
        all.sort_unstable();
        (first, all[all.len() / 2].max(1))
    }

    /// In processes of its own, since any test before it may have paid already. Unmended the first
    /// costs several hundred times as much as the later ones.
    #[test]
    fn the_first_handshake_of_a_process_costs_about_what_the_later_ones_do() {
        const HANDED: &str = "MESHFAST_TEST_IDENTITY";
        const NAME: &str = "tls::identity::tests::the_first_handshake_of_a_process_costs_about_what_the_later_ones_do";
        if let Ok(handed) = std::env::var(HANDED) {
            let identity = std::rc::Rc::new(Identity::read(handed.as_bytes()).unwrap());
            let (first, later) = hello_us(&identity);
            assert!(first < 50 * later, "{first} us, then {later} us");
            return;
        }
        let handed = Authority::new().hand_over(&[PAYMENT], |_| {});
        // A busy machine may stop one of them just there, not all.
        let is_good = (0..5).any(|_| {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            let child = child.args(["--exact", NAME]).env(HANDED, &handed);
            let output = child.output().unwrap();
            let told = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(told.contains("running 1 test"), "{told}");
            output.status.success()
        });
        assert!(is_good);
    }

    #[test]
    fn refuses_certificates_that_are_no_svid() {
        let authority = Authority::new();
        for names in [
            vec![],
            vec![PAYMENT, "spiffe://cluster.local/ns/default/sa/order"],
            vec!["https://cluster.local/ns/default/sa/payment"],
            vec!["spiffe://cluster.local"],
            vec!["spiffe://cluster.local/"],
            vec!["spiffe://cluster.local/a//b"],
            vec!["spiffe://cluster.local/a/../b"],
            vec!["spiffe://cluster.local/a?b"],
            vec!["spiffe://cluster.local:80/a"],
            vec!["spiffe://user@cluster.local/a"],
            vec!["spiffe://cluster.local/a%20b"],
            vec!["spiffe://Cluster.local/a"],
        ] {
            let handed = authority.hand_over(&names, |_| {});
            assert!(Identity::read(handed.as_bytes()).is_err(), "{names:?}");
        }
        let signing = authority.hand_over(&[PAYMENT], |params| {
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        });
        assert!(Identity::read(signing.as_bytes()).is_err());
        let authority_itself = authority.hand_over(&[PAYMENT], |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        });
        assert!(Identity::read(authority_itself.as_bytes()).is_err());
    }

    #[test]
    fn refuses_broken_hand_overs_without_telling_the_key() {
        let good = Authority::new().hand_over(&[PAYMENT], |_| {});
        for (from, to) in [
            ("\"version\":1", "\"version\":2"),
            ("\"key\":\"", "\"key\":\"!"),
            ("chain", "chian"),
        ] {
            let refusal = Identity::read(good.replace(from, to).as_bytes())
                .err()
                .unwrap();
            assert!(refusal.starts_with("identity: "), "{refusal}");
            assert!(refusal.len() < 200, "{refusal}");
        }
    }
}
