//! Keys and certificate requests, so that the agent needs no cryptography library of its own.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

/// Makes a P-256 key; PKCS #8, DER.
///
/// # Errors
/// When the system has no randomness.
pub fn generate_key() -> Result<Vec<u8>, String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
    key.map(|key| key.serialize_der())
        .map_err(|error| error.to_string())
}

/// Makes a request for a certificate with one name, the SPIFFE URI; PKCS #10, DER. The subject is
/// empty: the name of a workload is its URI alone (X.509-SVID 2).
///
/// # Errors
/// When the key or the identity cannot be used.
pub fn certificate_request(key: &[u8], identity: &str) -> Result<Vec<u8>, String> {
    let key = KeyPair::try_from(key).map_err(|error| error.to_string())?;
    let uri = identity
        .try_into()
        .map_err(|_| "the identity is not ASCII".to_owned())?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri)];
    let request = params
        .serialize_request(&key)
        .map_err(|error| error.to_string())?;
    Ok(request.der().to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_request_names_the_identity_and_nothing_else() {
        let key = generate_key().unwrap();
        let identity = "spiffe://cluster.local/ns/default/sa/payment";
        let request = certificate_request(&key, identity).unwrap();
        let text = String::from_utf8_lossy(&request);
        assert!(text.contains(identity));
        assert_ne!(generate_key().unwrap(), key);
    }

    #[test]
    fn refuses_bytes_that_are_no_key() {
        assert!(certificate_request(b"no key", "spiffe://a/b").is_err());
    }
}
