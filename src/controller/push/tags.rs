//! Tags from templates, with Launchpad's defaults. Pure.

use crate::{
    api::v1alpha1::{PushTargetSpec, Risk},
    record::{Failure, Reason},
};

/// What a template may name, as far as it is known of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Of a build.
    pub build: Option<BuildFacts>,
    /// The day on which the build ended, `20261124`; of what is no ended build, none.
    pub date: String,
    /// The platforms of the image that is pushed; empty where they are not known.
    pub platforms: Vec<String>,
}

/// What only a build's image has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BuildFacts {
    /// The Git reference of the recipe.
    pub reference: Option<String>,
    /// The commit, or the digest of the source.
    pub commit: Option<String>,
    /// The recipe's name.
    pub recipe: String,
    /// The build's name.
    pub name: String,
}

/// The tags of the target at this position of the specification, distinct and in its order.
///
/// Source of the default: Launchpad, `<ref>_edge` where the branch or tag is `APPVERSION-UBUNTUVERSION`, else
/// `edge`.
///
/// # Errors
/// Names the field of a template that cannot be filled in.
pub fn of_target(target: &PushTargetSpec, position: usize, facts: &Facts) -> Result<Vec<String>, Failure> {
    if target.tags.is_empty() {
        return Ok(facts
            .build
            .iter()
            .map(|build| default(build, target.risk))
            .collect());
    }
    let mut tags = Vec::new();
    for (index, template) in target.tags.iter().enumerate() {
        let tag = fill(template, target.risk, facts).map_err(|problem| {
            let text = format!("spec.targets[{position}].tags[{index}]: {problem}");
            Failure::new(Reason::TargetInvalid, text)
        })?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

fn default(build: &BuildFacts, risk: Risk) -> String {
    match build.reference.as_deref().map(short) {
        Some(reference) if is_version_branch(reference) => clean(&format!("{reference}_{}", risk.as_str())),
        _ => risk.as_str().to_owned(),
    }
}

fn fill(template: &str, risk: Risk, facts: &Facts) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = template;
    while let Some((literal, tail)) = rest.split_once('{') {
        let (name, tail) = tail
            .split_once('}')
            .ok_or_else(|| format!("{template:?} opens a variable and does not close it"))?;
        text.push_str(literal);
        text.push_str(&value(name, risk, facts)?);
        rest = tail;
    }
    text.push_str(rest);
    let tag = clean(&text);
    if tag.is_empty() {
        return Err(format!("{template:?} comes to {text:?}, which is no tag"));
    }
    Ok(tag)
}

fn value(name: &str, risk: Risk, facts: &Facts) -> Result<String, String> {
    match name {
        "date" => return Ok(facts.date.clone()),
        "risk" => return Ok(risk.as_str().to_owned()),
        "platform" => {
            return match facts.platforms.as_slice() {
                [one] => Ok(one.replace('/', "-")),
                _ => Err("{platform} needs spec.platforms to name exactly one".to_owned()),
            };
        }
        _ => {}
    }
    let build = facts
        .build
        .as_ref()
        .ok_or_else(|| format!("{{{name}}} is known for a build only, not for source.reference"))?;
    let commit = || {
        let commit = build.commit.as_deref().unwrap_or("unknown");
        commit.split_once(':').map_or(commit, |(_, hex)| hex).to_owned()
    };
    match name {
        "ref" => Ok(build.reference.as_deref().map_or("default", short).to_owned()),
        "commit" => Ok(commit()),
        "shortCommit" => Ok(commit().chars().take(12).collect()),
        "recipe" => Ok(build.recipe.clone()),
        "build" => Ok(build.name.clone()),
        _ => Err(format!("{{{name}}} is no variable")),
    }
}

fn short(reference: &str) -> &str {
    reference
        .strip_prefix("refs/heads/")
        .or_else(|| reference.strip_prefix("refs/tags/"))
        .unwrap_or(reference)
}

/// Source: Launchpad, reference 1.2: the last part begins like `20.04`, no earlier part is a risk, none has a
/// slash. Other than there, the version may not be empty.
fn is_version_branch(reference: &str) -> bool {
    let mut parts: Vec<&str> = reference.split('-').collect();
    let Some(last) = parts.pop() else { return false };
    let bytes = last.as_bytes();
    let series = bytes.len() >= 5
        && bytes[2] == b'.'
        && [0, 1, 3, 4].iter().all(|index| bytes[*index].is_ascii_digit());
    let risk = |part: &&str| matches!(*part, "stable" | "candidate" | "beta" | "edge");
    series
        && !parts.is_empty()
        && !parts.iter().any(risk)
        && parts.iter().any(|part| !part.is_empty())
        && !reference.contains('/')
}

/// What no tag may hold becomes a dash; what no tag may begin with goes.
fn clean(tag: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let text: String = tag.chars().map(|c| if legal(c) { c } else { '-' }).collect();
    text.trim_start_matches(['-', '.']).chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn target(tags: &[&str], risk: Risk) -> PushTargetSpec {
        PushTargetSpec {
            repository: "example.test/a".into(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            risk,
            credentials_ref: None,
            tag_policy: crate::registry::TagPolicy::default(),
            publish: crate::registry::PublishPolicy::default(),
        }
    }

    fn facts(reference: Option<&str>) -> Facts {
        Facts {
            build: Some(BuildFacts {
                reference: reference.map(ToOwned::to_owned),
                commit: Some("0123456789abcdef0123456789abcdef01234567".into()),
                recipe: "web".into(),
                name: "web-7".into(),
            }),
            date: "20261124".into(),
            platforms: vec!["linux/arm64/v8".into()],
        }
    }

    #[rstest]
    #[case::branch(Some("v1.0-20.04"), Risk::Edge, "v1.0-20.04_edge")]
    #[case::full_name(Some("refs/tags/v1.0-20.04"), Risk::Edge, "v1.0-20.04_edge")]
    #[case::several_parts(Some("a-b-22.04"), Risk::Edge, "a-b-22.04_edge")]
    #[case::prefix_match(Some("1-20.04x"), Risk::Edge, "1-20.04x_edge")]
    #[case::another_risk(Some("v1.0-20.04"), Risk::Stable, "v1.0-20.04_stable")]
    #[case::risk_in_the_name(Some("edge-20.04"), Risk::Edge, "edge")]
    #[case::no_series(Some("v1.0"), Risk::Candidate, "candidate")]
    #[case::no_dot(Some("v1-2004"), Risk::Edge, "edge")]
    #[case::slash(Some("a/b-20.04"), Risk::Edge, "edge")]
    #[case::default_branch(None, Risk::Edge, "edge")]
    fn without_templates_the_tag_is_launchpads(
        #[case] reference: Option<&str>,
        #[case] risk: Risk,
        #[case] expected: &str,
    ) {
        let tags = of_target(&target(&[], risk), 0, &facts(reference)).unwrap();
        assert_eq!(tags, [expected]);
    }

    #[test]
    fn templates_are_filled_cleaned_and_made_distinct() {
        let templates = [
            "{ref}",
            "{shortCommit}",
            "{recipe}-{build}",
            "{date}.{risk}",
            "{platform}",
            "{ref}",
            "plain",
        ];
        assert_eq!(
            of_target(&target(&templates, Risk::Beta), 0, &facts(Some("feature/x"))).unwrap(),
            [
                "feature-x",
                "0123456789ab",
                "web-web-7",
                "20261124.beta",
                "linux-arm64-v8",
                "plain"
            ]
        );
    }

    #[rstest]
    #[case::of_a_build("{commit}", "spec.targets[1].tags[1]: {commit} is known for a build only")]
    #[case::several_platforms("{platform}", "needs spec.platforms to name exactly one")]
    #[case::unknown("{colour}", "known for a build only")]
    #[case::open("a{date", "does not close it")]
    fn a_template_that_cannot_be_filled_names_its_field(#[case] template: &str, #[case] expected: &str) {
        let facts = Facts {
            date: "20261124".into(),
            ..Facts::default()
        };
        let failure = of_target(&target(&["ok", template], Risk::Edge), 1, &facts).unwrap_err();
        assert_eq!(failure.reason, Reason::TargetInvalid);
        assert!(failure.message.contains(expected), "{}", failure.message);
    }

    #[test]
    fn what_is_no_build_s_is_pushed_by_digest_unless_it_has_tags() {
        let tags = of_target(&target(&[], Risk::Edge), 0, &Facts::default()).unwrap();
        assert!(tags.is_empty());
    }
}
