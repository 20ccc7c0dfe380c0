//! The trust bundle: roots, and when each of them is valid.
//!
//! A trust anchor is a name and a key to webpki, without a time: an expired root would be trusted for
//! ever (RFC 5280 6.1.1 leaves it to whoever trusts). So the times are kept beside the anchors, and a
//! chain has to lead to a root that is valid at the handshake.
//!
//! A bundle of which no root is valid is refused where the agent loads it ([`Roots::check`]). A worker
//! takes it: a restarted one has calls to carry that need no certificate, and the clock may be set right.
//!
//! Tests: at the end, `session.rs`, `client.rs`.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, OtherError, RootCertStore};
use x509_parser::prelude::{FromDer, X509Certificate};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Roots {
    all: Arc<RootCertStore>,
    /// Of each of them, in order: seconds since 1970, UTC.
    times: Vec<RangeInclusive<i64>>,
}

impl Roots {
    /// # Errors
    /// A text that says what is no root.
    pub(super) fn new(
        certificates: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, String> {
        let mut all = RootCertStore::empty();
        let mut times = Vec::new();
        for certificate in certificates {
            let parsed = X509Certificate::from_der(&certificate);
            let (_, parsed) = parsed.map_err(|error| error.to_string())?;
            let validity = parsed.validity();
            times.push(validity.not_before.timestamp()..=validity.not_after.timestamp());
            all.add(certificate).map_err(|error| error.to_string())?;
        }
        Ok(Self {
            all: Arc::new(all),
            times,
        })
    }

    /// All of them, whether they are valid or not.
    pub(super) fn all(&self) -> &Arc<RootCertStore> {
        &self.all
    }

    /// # Errors
    /// A text for an operator when none of them is valid.
    pub(super) fn check(&self, now: UnixTime) -> Result<(), String> {
        if self.times.iter().any(|times| contains(times, now)) {
            return Ok(());
        }
        let last = self.times.iter().map(|it| *it.end()).max();
        let last = last.ok_or("the trust bundle is empty")?;
        let now = seconds(now);
        Err(format!(
            "no root of the trust bundle is valid now: the last one expires at {last}, it is {now} \
             (seconds since 1970)"
        ))
    }

    /// Has a chain verified against the roots that are valid now. One that leads to another root of
    /// ours is told from one that leads to none.
    pub(super) fn verify(
        &self,
        now: UnixTime,
        chain: impl Fn(&Arc<RootCertStore>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        if self.times.iter().all(|times| contains(times, now)) {
            return chain(&self.all);
        }
        chain(&self.all)?;
        let anchors = self.all.roots.iter().zip(&self.times);
        let valid = anchors.filter(|(_, times)| contains(times, now));
        let roots: Vec<_> = valid.map(|(anchor, _)| anchor.clone()).collect();
        if roots.is_empty() || chain(&Arc::new(RootCertStore { roots })).is_err() {
            return Err(Refusal::RootNotValid.into());
        }
        Ok(())
    }
}

fn contains(times: &RangeInclusive<i64>, now: UnixTime) -> bool {
    times.contains(&seconds(now))
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Why a certificate is refused, where rustls has no word for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is somebody else's.
    AnotherServer { is: String, expected: String },
    /// The root that it leads to has expired, or is not valid yet.
    RootNotValid,
}

impl Refusal {
    /// The refusal in an error of rustls.
    pub(super) fn of(error: &Error) -> Option<&Self> {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref()
            }
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnotherServer { is, expected } => {
                write!(out, "the server is {is}, not {expected}")
            }
            Self::RootNotValid => out.write_str(
                "the root that its certificate leads to has expired or is not valid yet",
            ),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::tls::identity::tests::Authority;
    use std::time::Duration;

    /// The first second of a year.
    fn start_of(year: i32) -> UnixTime {
        let seconds = rcgen::date_time_ymd(year, 1, 1).unix_timestamp();
        UnixTime::since_unix_epoch(Duration::from_secs(seconds as u64))
    }

    fn roots(years: &[(i32, i32)]) -> Roots {
        let made = years
            .iter()
            .map(|(from, to)| Authority::lasting(*from, *to));
        let made: Vec<_> = made.map(|it| it.root().to_vec().into()).collect();
        Roots::new(made).unwrap()
    }

    #[test]
    fn a_bundle_is_taken_while_one_root_is_valid() {
        let bundle = roots(&[(2010, 2020), (2030, 2040)]);
        for (year, is_taken) in [
            (2009, false),
            (2010, true),
            (2020, true),
            (2021, false),
            (2035, true),
            (2041, false),
        ] {
            assert_eq!(bundle.check(start_of(year)).is_ok(), is_taken, "{year}");
        }
        let refusal = bundle.check(start_of(2050)).unwrap_err();
        assert!(
            refusal.contains("expires at 2208988800, it is 2524608000"),
            "{refusal}"
        );
        let refusal = Roots::new([]).unwrap().check(start_of(2000)).unwrap_err();
        assert_eq!(refusal, "the trust bundle is empty");
    }

    #[test]
    fn a_chain_is_verified_against_the_roots_that_are_valid() {
        let bundle = roots(&[(2010, 2020), (2015, 2040)]);
        for (year, expected) in [
            (2012, Some(1)),
            (2017, Some(2)),
            (2030, Some(1)),
            (2041, None),
        ] {
            let seen = std::cell::Cell::new(0);
            let verified = bundle.verify(start_of(year), |roots| {
                seen.set(roots.roots.len());
                Ok(())
            });
            assert_eq!(verified.is_ok().then_some(seen.get()), expected, "{year}");
        }
    }

    #[test]
    fn a_root_that_has_expired_is_told_from_one_that_is_not_ours() {
        let bundle = roots(&[(2010, 2020), (2015, 2040)]);
        // Leads to the first one only.
        let refusal = bundle.verify(start_of(2030), |roots| match roots.roots.len() {
            2 => Ok(()),
            _ => Err(CertificateError::UnknownIssuer.into()),
        });
        assert_eq!(
            Refusal::of(&refusal.unwrap_err()),
            Some(&Refusal::RootNotValid)
        );
        let unknown = || Err(CertificateError::UnknownIssuer.into());
        let refusal = bundle.verify(start_of(2030), |_| unknown()).unwrap_err();
        assert_eq!(refusal, CertificateError::UnknownIssuer.into());
    }
}
