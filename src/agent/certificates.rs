//! Certificates that pods show to registries, from mounted Secrets.

use std::{collections::BTreeMap, io, path::PathBuf};

use super::plan::{Registries, certificate_folder};
use crate::{
    record::{Failure, Reason},
    registry::{ClientOptions, Secret, check_client_certificate, normal_origin},
};

/// Certificates that cannot be had, by registry; those registries cannot be spoken to, others can.
#[derive(Debug, Default)]
pub struct Unreadable(BTreeMap<String, Failure>);

impl Unreadable {
    /// Whether a registry can be spoken to.
    ///
    /// # Errors
    /// When its certificate's Secret is not of the type `kubernetes.io/tls`.
    pub fn check(&self, registry: &str) -> Result<(), Failure> {
        match self.0.get(&normal_origin(registry)) {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Whether a certificate can be used; if not, its registry cannot be spoken to.
    fn admits(&mut self, host: &str, pair: &Secret) -> bool {
        let checked = check_client_certificate(host, pair);
        if let Err(error) = &checked {
            let failure = Failure::new(Reason::SecretMissing, error.to_string());
            self.0.insert(normal_origin(host), failure);
        }
        checked.is_ok()
    }
}

/// A client's options that follow from the policies, with the certificates that are mounted for them.
pub fn client_options(registries: &Registries) -> (ClientOptions, Unreadable) {
    let (mut options, mut unreadable) = options_from(registries, |host| certificate_folder(host).into());
    options
        .client_certificates
        .retain(|(host, pair)| unreadable.admits(host, pair));
    (options, unreadable)
}

fn options_from(registries: &Registries, folder: impl Fn(&str) -> PathBuf) -> (ClientOptions, Unreadable) {
    let mut options = registries.options();
    let mut unreadable = Unreadable::default();
    for (host, secret) in &registries.certificates {
        let read = |key: &str| {
            std::fs::read_to_string(folder(host).join(key)).map_err(|error| {
                let problem = match error.kind() {
                    io::ErrorKind::NotFound => {
                        "is missing; the Secret has to be of the type kubernetes.io/tls"
                    }
                    io::ErrorKind::InvalidData => "is not PEM",
                    _ => "cannot be read",
                };
                let text = format!("{key} of the Secret {secret}, whose certificate {host} wants, {problem}");
                Failure::new(Reason::SecretMissing, text)
            })
        };
        match read("tls.crt").and_then(|certificate| Ok(format!("{certificate}\n{}", read("tls.key")?))) {
            Ok(pair) => options
                .client_certificates
                .push((host.clone(), Secret::new(pair))),
            Err(failure) => {
                unreadable.0.insert(normal_origin(host), failure);
            }
        }
    }
    (options, unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registries() -> Registries {
        Registries {
            certificates: [("R.test:5000".to_owned(), "mine".to_owned())].into(),
            ..Registries::default()
        }
    }

    #[test]
    fn a_certificate_is_what_its_secret_holds() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tls.crt"), "certificate").unwrap();
        std::fs::write(folder.path().join("tls.key"), "key").unwrap();
        let (options, unreadable) = options_from(&registries(), |_| folder.path().into());
        let expected = ("R.test:5000".to_owned(), Secret::new("certificate\nkey"));
        assert_eq!(options.client_certificates, [expected]);
        unreadable.check("r.test:5000").unwrap();
    }

    #[test]
    fn a_certificate_that_is_none_concerns_its_registry_only() {
        let mut unreadable = Unreadable::default();
        assert!(!unreadable.admits("R.test:5000", &Secret::new("certificate\nkey")));
        let failure = unreadable.check("r.test:5000").unwrap_err();
        assert_eq!(failure.reason, Reason::SecretMissing);
        assert!(failure.message.contains("R.test:5000"), "{}", failure.message);
        unreadable.check("other.test").unwrap();
    }

    #[test]
    fn a_secret_of_another_type_concerns_its_registry_only() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tls.crt"), "certificate").unwrap();
        let (options, unreadable) = options_from(&registries(), |_| folder.path().into());
        assert_eq!(options.client_certificates, []);
        let failure = unreadable.check("r.test:5000").unwrap_err();
        assert_eq!(failure.reason, Reason::SecretMissing);
        for part in ["tls.key", "mine", "R.test:5000", "kubernetes.io/tls"] {
            assert!(failure.message.contains(part), "{}", failure.message);
        }
        unreadable.check("other.test").unwrap();
    }
}
