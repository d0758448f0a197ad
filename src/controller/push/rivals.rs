//! Who else pushes to the repositories of a push: pushes take turns, and an older build leaves a tag to a newer
//! one. Pure.
//!
//! A turn is one repository and tag, or a large layer that two images have and the repository has not: the first
//! brings it, the second finds it there. Everything else goes on at once. What nobody but a registry could know,
//! writers outside of this cluster, is the tag policy's business.

use std::{collections::BTreeSet, sync::Arc};

use kube::{Resource as _, ResourceExt as _};

use super::status::PUSHING;
use crate::{
    api::v1alpha1::{BuildPhase, OCIRecipeBuild, RegistryPush, TargetState},
    image::{Digest, Platform},
    registry::normal_origin,
};

/// Another push that names a repository of this one's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// How messages name it; another namespace's is nobody's business.
    pub name: String,
    /// Its build, where that is newer than this push's, of the same recipe, and whole or published in part.
    pub newer_build: Option<String>,
    /// Whether its running attempt comes on: nobody waits for layers of one whose pod waits for a Secret or a node.
    pub comes_on: bool,
    /// The large layers of this push's image that its own has too.
    pub shared: BTreeSet<Digest>,
    /// What it writes there.
    pub targets: Vec<RivalTarget>,
}

/// The size in bytes from which a layer is worth a turn: about what a slow link carries while a pod starts.
pub const LARGE_LAYER: u64 = 1 << 20;

/// One target of another push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RivalTarget {
    /// In its one spelling.
    pub repository: String,
    /// Its tags, as far as they are known.
    pub tags: Vec<String>,
    /// Whether an attempt is running.
    pub writing: bool,
    /// Whether its image is there.
    pub serves: bool,
}

/// The others that share a repository with this push.
///
/// Only what a build pushes by its recipe's rules gives way to a newer build, and only to what that pushes by its
/// rules: whoever applies a push of an old build by hand means it.
pub fn of(
    push: &RegistryPush,
    others: impl Iterator<Item = Arc<RegistryPush>>,
    build: impl Fn(&RegistryPush) -> Option<Arc<OCIRecipeBuild>>,
) -> Vec<Rival> {
    let own: Vec<String> = push
        .spec
        .targets
        .iter()
        .map(|target| canonical(&target.repository))
        .collect();
    let source_build = build(push);
    let own_build = source_build.as_ref().filter(|_| made_by_a_build(push));
    let own_layers = large_layers(push, source_build.as_deref());
    let mut rivals = Vec::new();
    for other in others.filter(|other| other.uid() != push.uid()) {
        let targets: Vec<RivalTarget> = other
            .status
            .iter()
            .flat_map(|status| &status.targets)
            .map(|target| RivalTarget {
                repository: canonical(&target.repository),
                tags: target
                    .tags
                    .iter()
                    .filter(|tag| tag.superseded_by.is_none())
                    .map(|tag| tag.name.clone())
                    .collect(),
                writing: target.state == TargetState::Pushing && !other.spec.dry_run,
                serves: target.state == TargetState::Pushed,
            })
            .filter(|target| own.contains(&target.repository))
            .collect();
        if targets.is_empty() {
            continue;
        }
        let their_build = build(&other);
        let shared = if own_layers.is_empty() {
            BTreeSet::new()
        } else {
            let theirs = large_layers(&other, their_build.as_deref());
            own_layers
                .intersection(&theirs)
                .map(|layer| (*layer).clone())
                .collect()
        };
        let newer_build = own_build.and_then(|own| {
            let theirs = their_build.as_ref().filter(|_| made_by_a_build(&other))?;
            is_newer(theirs, own, is_published(&other)).then(|| theirs.name_any())
        });
        rivals.push(Rival {
            name: if other.namespace() == push.namespace() {
                format!("push {:?}", other.name_any())
            } else {
                "another namespace's push".to_owned()
            },
            newer_build,
            comes_on: comes_on(&other),
            shared,
            targets,
        });
    }
    rivals
}

/// Who is bringing a layer to a repository that this push's image has and the repository is not known to have.
pub fn bringer<'a>(rivals: &'a [Rival], repository: &str) -> Option<&'a Rival> {
    let repository = canonical(repository);
    let at = |rival: &Rival, state: fn(&RivalTarget) -> bool| {
        let mut targets = rival.targets.iter();
        targets.any(|target| target.repository == repository && state(target))
    };
    let serving = rivals.iter().filter(|rival| at(rival, |target| target.serves));
    let there: BTreeSet<&Digest> = serving.flat_map(|rival| &rival.shared).collect();
    rivals
        .iter()
        .filter(|rival| rival.comes_on && at(rival, |target| target.writing))
        .find(|rival| rival.shared.iter().any(|layer| !there.contains(layer)))
}

pub(super) fn comes_on(push: &RegistryPush) -> bool {
    let mut conditions = push.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.reason == PUSHING)
}

/// The layers of the build's image, as far as this push brings them, that are worth a turn.
fn large_layers<'a>(push: &RegistryPush, build: Option<&'a OCIRecipeBuild>) -> BTreeSet<&'a Digest> {
    let wanted: Vec<Platform> = push
        .spec
        .platforms
        .iter()
        .filter_map(|one| one.parse().ok())
        .collect();
    build
        .and_then(|build| build.status.as_ref())
        .into_iter()
        .flat_map(|status| &status.platforms)
        .filter(|one| wanted.is_empty() || wanted.iter().any(|wanted| wanted.matches(&one.platform)))
        .flat_map(|one| &one.layers)
        .filter(|layer| layer.size >= LARGE_LAYER)
        .map(|layer| &layer.digest)
        .collect()
}

/// Who is writing one of these tags of a repository right now.
pub fn writer<'a>(rivals: &'a [Rival], repository: &str, tags: &[&str]) -> Option<&'a Rival> {
    let repository = canonical(repository);
    let shares = |target: &RivalTarget| target.tags.iter().any(|tag| tags.contains(&tag.as_str()));
    rivals.iter().find(|rival| {
        let mut targets = rival.targets.iter();
        targets.any(|target| target.writing && target.repository == repository && shares(target))
    })
}

/// The newer build that a tag of a repository is left to.
pub fn newer_build(rivals: &[Rival], repository: &str, tag: &str) -> Option<String> {
    let repository = canonical(repository);
    let names = |rival: &&Rival| {
        let mut targets = rival.targets.iter();
        targets.any(|target| target.repository == repository && target.tags.iter().any(|name| name == tag))
    };
    let mut newer = rivals.iter().filter(|rival| rival.newer_build.is_some());
    newer.find(names).and_then(|rival| rival.newer_build.clone())
}

/// Whether two pushes name a repository in common.
pub fn share_a_repository(one: &RegistryPush, other: &RegistryPush) -> bool {
    let repositories = |push: &RegistryPush| -> Vec<String> {
        let targets = push.spec.targets.iter();
        targets.map(|target| canonical(&target.repository)).collect()
    };
    let theirs = repositories(other);
    repositories(one)
        .iter()
        .any(|repository| theirs.contains(repository))
}

/// A registry has several spellings, a repository in it has one.
fn canonical(repository: &str) -> String {
    let (origin, path) = repository.split_once('/').unwrap_or((repository, ""));
    format!("{}/{path}", normal_origin(origin))
}

fn made_by_a_build(push: &RegistryPush) -> bool {
    let kind = OCIRecipeBuild::kind(&());
    push.owner_references().iter().any(|owner| owner.kind == kind)
}

/// Whether a tag has platforms of it ahead of the whole image.
fn is_published(push: &RegistryPush) -> bool {
    let mut targets = push.status.iter().flat_map(|status| &status.targets);
    targets.any(|target| !target.published.is_empty())
}

/// Source: Launchpad, reference 1.8: superseded by a later build of the recipe that is built.
fn is_newer(theirs: &OCIRecipeBuild, own: &OCIRecipeBuild, published: bool) -> bool {
    let recipe = |build: &OCIRecipeBuild| {
        let reference = build.spec.recipe_ref.as_ref();
        reference.map(|recipe| (build.namespace(), recipe.name.clone()))
    };
    // Two builds may be made within a second; of one recipe's own the number says which came later.
    let age = |build: &OCIRecipeBuild| {
        let name = build.name_any();
        let number: Option<u64> = name.rsplit('-').next().and_then(|number| number.parse().ok());
        (build.creation_timestamp().map(|time| time.0), number, name)
    };
    let phase = theirs
        .status
        .as_ref()
        .map(|status| status.phase)
        .unwrap_or_default();
    // One that failed with a platform published may never be whole.
    let counts = phase == BuildPhase::FullyBuilt || (published && !phase.is_terminal());
    counts && recipe(theirs).is_some() && recipe(theirs) == recipe(own) && age(theirs) > age(own)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::api::v1alpha1::condition::Conditions;

    fn push(name: &str, build: Option<&str>, repository: &str, state: &str) -> Arc<RegistryPush> {
        let owners: Vec<_> = build
            .map(|build| json!({ "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild", "name": build, "uid": build }))
            .into_iter()
            .collect();
        let document = json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush",
            "metadata": { "name": name, "namespace": "demo", "uid": name, "ownerReferences": owners },
            "spec": {
                "source": { "buildRef": { "name": build.unwrap_or("other") } },
                "targets": [{ "repository": repository }],
            },
            "status": { "targets": [{ "repository": repository, "state": state, "tags": [{ "name": "edge" }] }] },
        });
        Arc::new(serde_json::from_value(document).unwrap())
    }

    fn build(name: &str, recipe: &str, phase: &str) -> Arc<OCIRecipeBuild> {
        let document = json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipeBuild",
            "metadata": { "name": name, "namespace": "demo", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "recipeRef": { "name": recipe } },
            "status": { "phase": phase },
        });
        Arc::new(serde_json::from_value(document).unwrap())
    }

    fn rivals(
        push: &RegistryPush,
        others: &[Arc<RegistryPush>],
        builds: &[Arc<OCIRecipeBuild>],
    ) -> Vec<Rival> {
        of(push, others.iter().cloned(), |push| {
            let name = push.spec.source.build_ref.as_ref()?.name.clone();
            builds.iter().find(|build| build.name_any() == name).cloned()
        })
    }

    #[rstest]
    #[case::the_same_tag("Example.test:443/a", "Pushing", &["edge"], true)]
    #[case::another_tag("example.test/a", "Pushing", &["v1"], false)]
    #[case::by_digest_only("example.test/a", "Pushing", &[], false)]
    #[case::another_repository("example.test/b", "Pushing", &["edge"], false)]
    #[case::only_waiting("example.test/a", "Pending", &["edge"], false)]
    #[case::done("example.test/a", "Pushed", &["edge"], false)]
    fn one_push_at_a_time_writes_a_tag(
        #[case] repository: &str,
        #[case] state: &str,
        #[case] tags: &[&str],
        #[case] busy: bool,
    ) {
        let own = push("p", None, "example.test/a", "Pending");
        let seen = rivals(&own, &[own.clone(), push("q", None, repository, state)], &[]);
        assert_eq!(writer(&seen, "example.test/a", tags).is_some(), busy);
    }

    #[rstest]
    #[case::newer("web-2", "web-10", "FullyBuilt", true)]
    #[case::older("web-10", "web-2", "FullyBuilt", false)]
    #[case::not_built_yet("web-2", "web-3", "Building", false)]
    #[case::failed("web-2", "web-3", "FailedToBuild", false)]
    fn a_tag_is_left_to_a_newer_build_once_that_is_built(
        #[case] own: &str,
        #[case] other: &str,
        #[case] phase: &str,
        #[case] superseded: bool,
    ) {
        let builds = [build(own, "web", "FullyBuilt"), build(other, "web", phase)];
        let mine = push("p", Some(own), "example.test/a", "Pending");
        let seen = rivals(
            &mine,
            &[push("q", Some(other), "example.test/a", "Pending")],
            &builds,
        );
        assert_eq!(newer_build(&seen, "example.test/a", "edge").is_some(), superseded);
        assert_eq!(newer_build(&seen, "example.test/a", "v1"), None);
    }

    #[test]
    fn a_newer_build_that_is_published_in_part_has_its_tags_already() {
        let builds = [
            build("web-2", "web", "FullyBuilt"),
            build("web-3", "web", "Building"),
        ];
        let mine = push("p", Some("web-2"), "example.test/a", "Pending");
        let mut newer = (*push("q", Some("web-3"), "example.test/a", "Pending")).clone();
        newer.status.as_mut().unwrap().targets[0].published = vec!["linux/amd64".parse().unwrap()];
        let seen = rivals(&mine, &[Arc::new(newer)], &builds);
        assert_eq!(
            newer_build(&seen, "example.test/a", "edge").as_deref(),
            Some("web-3")
        );
    }

    /// A build of layers, each with its size in MiB.
    fn of_layers(name: &str, layers: &[(&str, u64)]) -> Arc<OCIRecipeBuild> {
        let mut built = (*build(name, name, "FullyBuilt")).clone();
        let layer = |(content, size): &(&str, u64)| {
            let digest = Digest::of(content.as_bytes());
            json!({
                "diffID": digest, "digest": digest, "size": size << 20, "mediaType": "x", "layerID": "x", "origin": "New",
            })
        };
        let layers: Vec<_> = layers.iter().map(layer).collect();
        built.status.as_mut().unwrap().platforms = serde_json::from_value(json!([
            { "platform": "linux/amd64", "state": "Built", "layers": layers },
        ]))
        .unwrap();
        Arc::new(built)
    }

    #[rstest]
    #[case::brought_now(&["Pushing"], true, Some("q1"))]
    #[case::the_pod_does_not_run(&["Pushing"], false, None)]
    #[case::brought_already(&["Pushed"], true, None)]
    #[case::brought_by_one_before(&["Pushing", "Pushed"], true, None)]
    #[case::waits_too(&["Pending"], true, None)]
    fn a_large_layer_that_two_images_have_is_brought_by_one(
        #[case] states: &[&str],
        #[case] runs: bool,
        #[case] expected: Option<&str>,
    ) {
        let base = ("base", 40);
        let builds = [
            of_layers("b", &[base, ("own", 2), ("empty", 0)]),
            of_layers("q", &[base, ("other", 2), ("empty", 0)]),
            of_layers("apart", &[("third", 40), ("empty", 0)]),
        ];
        let mine = push("p", Some("b"), "example.test/a", "Pending");
        let running = |name: &str, build: &str, repository: &str, state: &str| {
            let mut push = (*push(name, Some(build), repository, state)).clone();
            let conditions = Conditions::running(if runs { PUSHING } else { "SecretMissing" }, "");
            push.status.as_mut().unwrap().conditions =
                conditions.merge(&[], None, jiff::Timestamp::UNIX_EPOCH);
            Arc::new(push)
        };
        let mut others = vec![
            running("apart", "apart", "example.test/a", "Pushing"),
            running("elsewhere", "q", "example.test/b", "Pushing"),
        ];
        for (index, state) in states.iter().enumerate() {
            others.push(running(&format!("q{}", index + 1), "q", "example.test/a", state));
        }
        let seen = rivals(&mine, &others, &builds);
        let name = expected.map(|name| format!("push {name:?}"));
        assert_eq!(
            bringer(&seen, "example.test/a").map(|rival| rival.name.clone()),
            name
        );
    }

    #[test]
    fn neither_another_recipe_nor_a_push_by_hand_supersedes_or_is_superseded() {
        let builds = [
            build("web-1", "web", "FullyBuilt"),
            build("web-2", "web", "FullyBuilt"),
        ];
        let mut by_hand = (*push("p", Some("web-1"), "example.test/a", "Pending")).clone();
        by_hand.metadata.owner_references = None;
        let newer = push("q", Some("web-2"), "example.test/a", "Pushed");
        let seen = rivals(&by_hand, std::slice::from_ref(&newer), &builds);
        assert_eq!(newer_build(&seen, "example.test/a", "edge"), None);

        let others = [
            build("web-1", "web", "FullyBuilt"),
            build("web-2", "api", "FullyBuilt"),
        ];
        let own = push("p", Some("web-1"), "example.test/a", "Pending");
        assert_eq!(
            newer_build(&rivals(&own, &[newer], &others), "example.test/a", "edge"),
            None
        );
    }
}
