//! The docker configuration of a mounted Secret.

use std::{
    io::{self, Read as _},
    path::Path,
};

use crate::{
    record::{Failure, Reason},
    registry::Credentials,
};

/// A Secret's docker configuration, under the names that Kubernetes and docker give it.
const CONFIGURATIONS: [&str; 2] = [".dockerconfigjson", "config.json"];
/// Kubernetes' own limit on a Secret.
const CONFIGURATION_LIMIT: u64 = 1 << 20;

/// The credentials in a folder at which a Secret is mounted; nobody's when there is no folder.
///
/// # Errors
/// When the folder holds no configuration, or one that cannot be read.
pub fn credentials(directory: Option<&str>) -> Result<Credentials, Failure> {
    let Some(directory) = directory else {
        return Ok(Credentials::anonymous());
    };
    let missing = |problem: String| Failure::new(Reason::SecretMissing, problem);
    for name in CONFIGURATIONS {
        let path = Path::new(directory).join(name);
        let json = match read_bounded(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(missing(format!("the Secret's {name} cannot be read: {error}"))),
        };
        return Credentials::from_docker_config(&json).map_err(|error| missing(error.to_string()));
    }
    Err(missing(
        "the Secret has no .dockerconfigjson; create it with `kubectl create secret docker-registry`"
            .to_owned(),
    ))
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut json = Vec::new();
    std::fs::File::open(path)?
        .take(CONFIGURATION_LIMIT)
        .read_to_end(&mut json)?;
    Ok(json)
}
