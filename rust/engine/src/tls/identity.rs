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
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use serde::Deserialize;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use meshfast_wire::frame::ALPN;

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
    client: Arc<ClientConfig>,
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
        let mut roots = RootCertStore::empty();
        for root in certificates("bundle", &handed.bundle)? {
            roots
                .add(root)
                .map_err(|error| format!("identity: bundle: {error}"))?;
        }
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
        let (client, server) = configurations(&provider, &roots, &chain, &key)
            .map_err(|error| format!("identity: {error}"))?;
        Ok(Self {
            name,
            trust_domain: handed.trust_domain,
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
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

fn configurations(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &[u8],
) -> Result<(ClientConfig, ServerConfig), Error> {
    let mut client = client_configuration(provider, roots, chain, key)?;
    client.alpn_protocols = vec![ALPN.to_vec()];
    let callers =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(unusable)?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(callers)
        .with_single_cert(chain.to_vec(), pkcs8(key))?;
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((client, server))
}

/// A client's: TLS 1.3, a SPIFFE ID below the roots at the other end; an empty chain shows none.
pub(super) fn client_configuration(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: &[CertificateDer<'static>],
    key: &[u8],
) -> Result<ClientConfig, Error> {
    let inner =
        WebPkiServerVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(unusable)?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ChainVerifier {
            roots: Arc::clone(roots),
            algorithms: provider.signature_verification_algorithms,
            inner,
        }));
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

/// Verifies a server's chain without a host name: who it must be is a SPIFFE ID, which is compared
/// when the handshake is done, before any byte is sent (`Session`).
#[derive(Debug)]
struct ChainVerifier {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
    inner: Arc<WebPkiServerVerifier>,
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
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match svid(leaf) {
            Some(_) => Ok(ServerCertVerified::assertion()),
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
        BasicConstraints, Certificate, CertificateParams, DistinguishedName,
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
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
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
            params.distinguished_name = DistinguishedName::new();
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
            let (leaf, key) = self.issue(names, change);
            format!(
                r#"{{"version":1,"trust_domain":"cluster.local","chain":["{}"],"key":"{}",
                "bundle":["{}"]}}"#,
                STANDARD.encode(leaf),
                STANDARD.encode(key.secret_der()),
                STANDARD.encode(self.root.der()),
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
