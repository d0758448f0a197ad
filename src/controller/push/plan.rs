//! What the pod of an attempt is told. Pure.

use super::{observe::Observed, pod::target_credentials, status};
use crate::{
    agent::plan::{PublishPolicy, PushMode, PushPlan, PushSource, PushTarget},
    api::v1alpha1::RegistryPushStatus,
    registry::normal_origin,
};

/// The plan for the targets at these positions of the specification.
pub fn plan(
    seen: &Observed,
    mode: PushMode,
    status: &RegistryPushStatus,
    source: &PushSource,
    targets: &[usize],
) -> PushPlan {
    let spec = &seen.push.spec;
    let planned = targets.iter().filter_map(|index| spec.targets.get(*index));
    // A look at tags reads no source.
    let source_origin = (mode != PushMode::Check).then_some(source.registry.as_str());
    let origins: Vec<&str> = planned
        .map(|target| origin_of(&target.repository))
        .chain(source_origin)
        .collect();
    let is_portion = status.portion.is_some();
    let target = |index: &usize| {
        let (target, entry) = (spec.targets.get(*index)?, status.targets.get(*index)?);
        Some(PushTarget {
            repository: target.repository.clone(),
            tags: status::written_tags(entry)
                .into_iter()
                .map(ToOwned::to_owned)
                .collect(),
            credentials_dir: target
                .credentials_ref
                .as_ref()
                .map(|_| target_credentials(*index)),
            tag_policy: target.tag_policy,
            publish: if is_portion {
                // The platforms that are not built yet are left as they are.
                PublishPolicy::KeepOld
            } else {
                target.publish
            },
        })
    };
    PushPlan {
        mode,
        source: source.clone(),
        targets: targets.iter().filter_map(target).collect(),
        registries: seen.registries.of(&origins),
        platforms: spec
            .platforms
            .iter()
            .filter(|_| !is_portion)
            .filter_map(|platform| platform.parse().ok())
            .collect(),
    }
}

/// Whether policies let this target be spoken to without TLS.
pub fn is_plain(seen: &Observed, repository: &str) -> bool {
    seen.registries
        .plain_http
        .iter()
        .any(|origin| normal_origin(origin) == normal_origin(origin_of(repository)))
}

/// `host[:port]` of `host[:port]/repository`.
pub fn origin_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}
