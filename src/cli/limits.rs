//! The bounds on what is read, as flags.

use clap::Args;

use crate::{
    image::archive::{LIMIT_NAMES, Limits},
    record::Reason,
};

/// Bounds that are changed.
#[derive(Debug, Args)]
pub struct LimitFlags {
    /// Change a bound on what is read.
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = limit, long_help = help())]
    changed: Vec<(&'static str, u64)>,
}

impl LimitFlags {
    /// All bounds.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for (name, value) in &self.changed {
            limits.set(name, *value);
        }
        limits
    }
}

/// What to do about a bound, where a refusal was for one.
pub fn advice(reason: Reason) -> Option<&'static str> {
    (reason == Reason::LimitExceeded)
        .then_some("where that much is meant, --limit NAME=VALUE changes the bound; --help lists the names")
}

fn limit(text: &str) -> Result<(&'static str, u64), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    let known = LIMIT_NAMES.iter().find(|(known, _)| *known == name);
    let (name, _) = known.ok_or_else(|| {
        let names = LIMIT_NAMES.map(|(name, _)| name).join(", ");
        format!("there is no limit {name:?}; there are {names}")
    })?;
    let value = value
        .parse()
        .map_err(|_| format!("{value:?} is no whole number"))?;
    Ok((name, value))
}

fn help() -> String {
    let limits = Limits::default();
    let lines: Vec<String> = LIMIT_NAMES
        .iter()
        .map(|(name, what)| format!("{name}={}: {what}", limits.get(name).unwrap_or_default()))
        .collect();
    format!(
        "Change a bound on what is read. The bounds and their defaults:\n{}",
        lines.join("\n")
    )
}
