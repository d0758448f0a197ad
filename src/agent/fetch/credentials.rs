//! The credentials of a Git source, from a mounted Secret to files that only `git` and `ssh` of this pod read.
//!
//! Nothing of them is in an argument or in the environment, and each is bound to the origin of the recipe's
//! URL: a submodule elsewhere, or a redirect, gets nothing.

use std::{
    fmt, fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::git_url::GitUrl;
use crate::{
    agent::gate::redact::percent_encoded,
    record::{Failure, Reason},
};

/// The user name beside a bare token. Hosts that look at it want this one; the others take any.
const TOKEN_USER: &str = "oauth2";

/// What holds for every host: no question to anybody, no key but the one that is named for a host.
const SSH_CONFIGURATION: &str = "\
Host *
BatchMode yes
GlobalKnownHostsFile /dev/null
IdentitiesOnly yes
IdentityAgent none
IdentityFile none
ConnectTimeout 20
ServerAliveInterval 20
";

/// What a Secret holds. Its values have no `Debug`, so that no log can have them.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The Secret names none, or there is no Secret.
    None,
    /// `username` and `password` (or `token`).
    Basic {
        /// Who.
        username: String,
        /// The secret.
        password: String,
    },
    /// `ssh-privatekey`, and `known_hosts` where the Secret has it.
    Ssh {
        /// The secret.
        private_key: String,
        /// The host keys that are believed.
        known_hosts: Option<String>,
    },
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Basic { .. } => "Basic",
            Self::Ssh { .. } => "Ssh",
        })
    }
}

impl Credentials {
    /// Reads the folder at which a Secret is mounted.
    ///
    /// # Errors
    /// When the Secret has nothing that fits `url`.
    pub fn read(folder: Option<&Path>, url: &GitUrl) -> Result<Self, Failure> {
        let Some(folder) = folder else {
            return Ok(Self::None);
        };
        let key = |name: &str| -> Option<String> {
            let text = fs::read_to_string(folder.join(name)).ok()?;
            let text = text.trim_end_matches(['\n', '\r']).to_owned();
            (!text.is_empty()).then_some(text)
        };
        match url {
            GitUrl::Web { .. } => {
                if let (Some(username), Some(password)) = (key("username"), key("password")) {
                    return Ok(Self::Basic { username, password });
                }
                let password = key("token").ok_or_else(|| {
                    unfitting("neither `username` and `password` nor `token`, which a web address needs")
                })?;
                Ok(Self::Basic {
                    username: key("username").unwrap_or_else(|| TOKEN_USER.to_owned()),
                    password,
                })
            }
            GitUrl::Ssh { .. } => Ok(Self::Ssh {
                private_key: key("ssh-privatekey")
                    .ok_or_else(|| unfitting("no `ssh-privatekey`, which an ssh address needs"))?,
                known_hosts: key("known_hosts"),
            }),
        }
    }

    /// What no message may repeat.
    pub fn secrets(&self) -> Vec<&[u8]> {
        match self {
            Self::None => Vec::new(),
            Self::Basic { password, .. } => vec![password.as_bytes()],
            Self::Ssh { private_key, .. } => vec![private_key.as_bytes()],
        }
    }

    /// Writes the files into `home`, and returns the part of git's configuration that uses them.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn install(&self, url: &GitUrl, home: &Path) -> io::Result<String> {
        match (self, url) {
            (Self::Basic { username, password }, GitUrl::Web { origin, .. }) => {
                let file = home.join("web-credentials");
                let line = origin.replacen(
                    "://",
                    &format!(
                        "://{}:{}@",
                        percent_encoded(username.as_bytes()),
                        percent_encoded(password.as_bytes())
                    ),
                    1,
                );
                write_private(&file, &format!("{line}\n"))?;
                // Git's own helper hands a line out only to the scheme, host and port that it names.
                Ok(format!(
                    "[credential \"{origin}\"]\n\thelper = store --file={}\n",
                    file.display()
                ))
            }
            (Self::Ssh { .. } | Self::None, GitUrl::Ssh { host, names_user, .. }) => {
                let config = self.ssh_config(host, *names_user, home)?;
                Ok(format!("[core]\n\tsshCommand = ssh -F {}\n", config.display()))
            }
            _ => Ok(String::new()),
        }
    }

    /// The first value of a setting counts, so what is for the one host comes first.
    fn ssh_config(&self, host: &str, names_user: bool, home: &Path) -> io::Result<PathBuf> {
        let known_hosts = home.join("known_hosts");
        let mut for_host = vec![format!("Host {host}")];
        if !names_user {
            for_host.push("User git".to_owned());
        }
        let mut strictness = "accept-new";
        if let Self::Ssh {
            private_key,
            known_hosts: believed,
        } = self
        {
            let key = home.join("identity");
            // OpenSSH wants the last line ended and no carriage returns.
            write_private(&key, &format!("{}\n", private_key.replace('\r', "")))?;
            for_host.push(format!("IdentityFile {}", key.display()));
            if let Some(believed) = believed {
                write_private(&known_hosts, &format!("{believed}\n"))?;
                strictness = "yes";
            }
        }
        if strictness == "accept-new" {
            tracing::warn!(
                host,
                "the Secret has no known_hosts: whatever host key is shown is believed"
            );
        }
        let for_all = format!(
            "{SSH_CONFIGURATION}StrictHostKeyChecking {strictness}\nUserKnownHostsFile {}\n",
            known_hosts.display(),
        );
        let config = home.join("ssh-config");
        write_private(&config, &format!("{}\n{for_all}", for_host.join("\n")))?;
        Ok(config)
    }
}

fn unfitting(what: &str) -> Failure {
    Failure::new(
        Reason::GitAuthenticationFailed,
        format!("the Secret in spec.source.git.credentialsRef has {what}"),
    )
}

/// Creates a file that only this user may read.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn secret(keys: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (key, value) in keys {
            fs::write(folder.path().join(key), value).unwrap();
        }
        folder
    }

    fn web() -> GitUrl {
        GitUrl::parse("https://example.org:8443/a").unwrap()
    }

    fn ssh() -> GitUrl {
        GitUrl::parse("git@example.org:a").unwrap()
    }

    #[test]
    fn a_token_alone_is_enough() {
        let folder = secret(&[("token", "t0ken\n")]);
        let read = Credentials::read(Some(folder.path()), &web()).unwrap();
        let (username, password) = (TOKEN_USER.to_owned(), "t0ken".to_owned());
        assert!(read == Credentials::Basic { username, password });
    }

    #[test]
    fn a_secret_for_the_other_transport_is_refused_and_says_so() {
        let folder = secret(&[("username", "me"), ("password", "x")]);
        let refused = Credentials::read(Some(folder.path()), &ssh()).unwrap_err();
        assert!(refused.message.contains("ssh-privatekey"), "{}", refused.message);
    }

    #[test]
    fn a_password_is_in_a_private_file_and_nowhere_else() {
        let home = tempfile::tempdir().unwrap();
        let credentials = Credentials::Basic {
            username: "me".into(),
            password: "p@ss/word".into(),
        };
        let config = credentials.install(&web(), home.path()).unwrap();
        assert!(config.contains("https://example.org:8443") && !config.contains("p@ss"));
        let file = home.path().join("web-credentials");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "https://me:p%40ss%2Fword@example.org:8443\n"
        );
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(format!("{credentials:?}"), "Basic");
    }

    #[test]
    fn a_key_is_for_one_host_and_known_hosts_are_believed_strictly() {
        let home = tempfile::tempdir().unwrap();
        let credentials = Credentials::Ssh {
            private_key: "KEY\r\nKEY".into(),
            known_hosts: Some("example.org ssh-ed25519 AAAA".into()),
        };
        credentials.install(&ssh(), home.path()).unwrap();
        let config = fs::read_to_string(home.path().join("ssh-config")).unwrap();
        assert!(config.starts_with("Host example.org\nIdentityFile "), "{config}");
        assert!(config.contains("StrictHostKeyChecking yes"));
        assert_eq!(
            fs::read_to_string(home.path().join("identity")).unwrap(),
            "KEY\nKEY\n"
        );
    }
}
