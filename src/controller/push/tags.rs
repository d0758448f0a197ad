//! Tags from templates, with Launchpad's defaults.

/// What a template may name.
pub struct Facts<'a> {
    /// The Git reference of the recipe.
    pub reference: Option<&'a str>,
    /// The commit, or the digest of the source.
    pub commit: Option<&'a str>,
    /// The recipe's name.
    pub recipe: &'a str,
    /// The build's name.
    pub build: &'a str,
    /// The day on which the build ended, `20261124`.
    pub date: String,
}

/// The tags of a push rule, distinct and in the rule's order.
///
/// Source of the default: Launchpad, `<ref>_edge` where the branch or tag is `APPVERSION-UBUNTUVERSION`, else
/// `edge`.
pub fn of_rule(templates: &[String], facts: &Facts<'_>) -> Vec<String> {
    if templates.is_empty() {
        return vec![match facts.reference.map(short) {
            Some(reference) if is_version_branch(reference) => clean(&format!("{reference}_edge")),
            _ => "edge".to_owned(),
        }];
    }
    let mut tags = Vec::new();
    for template in templates {
        let commit = facts.commit.unwrap_or("unknown").trim_start_matches("sha256:");
        let tag = template
            .replace("{ref}", facts.reference.map_or("default", short))
            .replace("{commit}", commit)
            .replace("{shortCommit}", &commit[..commit.len().min(12)])
            .replace("{recipe}", facts.recipe)
            .replace("{build}", facts.build)
            .replace("{date}", &facts.date);
        let tag = clean(&tag);
        if !tag.is_empty() && !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    tags
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

    fn facts(reference: Option<&str>) -> Facts<'_> {
        Facts {
            reference,
            commit: Some("0123456789abcdef0123456789abcdef01234567"),
            recipe: "web",
            build: "web-7",
            date: "20261124".into(),
        }
    }

    #[rstest]
    #[case::branch(Some("v1.0-20.04"), "v1.0-20.04_edge")]
    #[case::full_name(Some("refs/tags/v1.0-20.04"), "v1.0-20.04_edge")]
    #[case::several_parts(Some("a-b-22.04"), "a-b-22.04_edge")]
    #[case::prefix_match(Some("1-20.04x"), "1-20.04x_edge")]
    #[case::risk(Some("edge-20.04"), "edge")]
    #[case::no_series(Some("v1.0"), "edge")]
    #[case::no_dot(Some("v1-2004"), "edge")]
    #[case::slash(Some("a/b-20.04"), "edge")]
    #[case::default_branch(None, "edge")]
    fn without_templates_the_tag_is_launchpads(#[case] reference: Option<&str>, #[case] expected: &str) {
        assert_eq!(of_rule(&[], &facts(reference)), [expected]);
    }

    #[test]
    fn templates_are_filled_cleaned_and_made_distinct() {
        let templates = ["{ref}", "{shortCommit}", "{recipe}-{build}", "{date}", "{ref}"].map(str::to_owned);
        assert_eq!(
            of_rule(&templates, &facts(Some("feature/x"))),
            ["feature-x", "0123456789ab", "web-web-7", "20261124"]
        );
    }
}
