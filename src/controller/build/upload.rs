//! What the pushes of a build come to together, and whether an upload may be asked for. Pure.
//!
//! Source: Launchpad's registry upload job, reference 1.7: its status values, which of them sums up which, and the
//! four refusals of a manual schedule. Other than there, the errors have one shape for one failing rule and for
//! several, and a rule that was added later can be pushed alone.

use std::sync::Arc;

use kube::ResourceExt as _;

use crate::{
    api::v1alpha1::{
        BuildPhase, OCIRecipeBuildStatus, RegistryPush, RegistryUploadStatus, TargetState, UploadErrors,
    },
    record::{Failure, Reason},
};

/// What a status says of a build's pushes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadSummary {
    /// Over all targets.
    pub status: RegistryUploadStatus,
    /// What failed, joined as Launchpad does.
    pub error_summary: Option<String>,
    /// What the registries of failed targets said.
    pub errors: Vec<UploadErrors>,
}

/// The longest text of all summaries together.
const SUMMARY_LIMIT: usize = 4096;
/// Entries of failed targets.
const ERRORS_LIMIT: usize = 32;

/// Sums up the pushes of these names; those that were made before and are gone were unwanted.
pub fn summary(names: &[String], made: &[String], pushes: &[Arc<RegistryPush>]) -> UploadSummary {
    let mut states = Vec::new();
    let mut texts: Vec<String> = Vec::new();
    let mut errors = Vec::new();
    for name in names {
        match pushes.iter().find(|push| push.name_any() == *name) {
            Some(push) => {
                states.extend(states_of(push));
                for target in failed_targets(push) {
                    let whole = push.status.as_ref().and_then(|status| status.failure.as_ref());
                    let text = target.error_summary.clone();
                    let own = target.failure.as_ref().or(whole);
                    texts.extend(text.or_else(|| own.map(|failure| failure.message.clone())));
                    errors.push(UploadErrors {
                        push: name.clone(),
                        repository: target.repository.clone(),
                        errors: target.errors.clone(),
                    });
                }
            }
            None if made.contains(name) => states.push(RegistryUploadStatus::Unscheduled),
            None => states.push(RegistryUploadStatus::Pending),
        }
    }
    errors.truncate(ERRORS_LIMIT);
    let mut text = texts.join(" / ");
    text.truncate(text.floor_char_boundary(SUMMARY_LIMIT));
    UploadSummary {
        status: of_set(&states),
        error_summary: (!text.is_empty()).then_some(text),
        errors,
    }
}

/// Launchpad's summary of a set of uploads: what failed outweighs everything, then what all have in common counts.
pub fn of_set(states: &[RegistryUploadStatus]) -> RegistryUploadStatus {
    use RegistryUploadStatus::{FailedToUpload, Partial, Pending, Superseded, Unscheduled, Uploaded};
    let counted: Vec<_> = states.iter().filter(|state| **state != Superseded).collect();
    let all = |wanted| counted.iter().all(|state| **state == wanted);
    let any = |wanted| counted.iter().any(|state| **state == wanted);
    if any(FailedToUpload) {
        FailedToUpload
    } else if counted.is_empty() && !states.is_empty() {
        Superseded
    } else if all(Unscheduled) {
        Unscheduled
    } else if all(Uploaded) {
        Uploaded
    } else if any(Uploaded) {
        Partial
    } else {
        Pending
    }
}

/// Why an upload that somebody asks for does not begin; `added` rules are new to the build.
pub fn refusal(status: &OCIRecipeBuildStatus, added: usize, pushes: &[Arc<RegistryPush>]) -> Option<Failure> {
    let states: Vec<_> = pushes.iter().flat_map(|push| states_of(push)).collect();
    let missing = status.push_rules().count().saturating_sub(pushes.len());
    let every = |wanted| missing == 0 && !states.is_empty() && states.iter().all(|state| *state == wanted);
    let refuse = |reason, text: &str| Some(Failure::new(reason, format!("Cannot upload: {text}")));
    if status.push_rules().next().is_none() && added == 0 {
        return refuse(
            Reason::PushRulesMissing,
            "neither the build nor its recipe has a push rule; add spec.pushRules to the recipe.",
        );
    }
    if status.phase != BuildPhase::FullyBuilt {
        let text = format!("the build is {} and has no image.", status.phase.as_str());
        return refuse(Reason::NothingToUpload, &text);
    }
    if added > 0 {
        return None;
    }
    if every(RegistryUploadStatus::Uploaded) {
        return refuse(Reason::AlreadyUploaded, "every target serves the image already.");
    }
    let failed = states.contains(&RegistryUploadStatus::FailedToUpload);
    if !failed && states.contains(&RegistryUploadStatus::Pending) {
        return refuse(Reason::UploadInProgress, "an upload of this build is going on.");
    }
    None
}

fn states_of(push: &RegistryPush) -> Vec<RegistryUploadStatus> {
    let current = push
        .status
        .as_ref()
        .filter(|status| status.observed_generation == push.metadata.generation);
    let Some(status) = current.filter(|status| !status.targets.is_empty()) else {
        return vec![RegistryUploadStatus::Pending];
    };
    let of_target = |state: TargetState| match state {
        TargetState::Pending if push.spec.suspend => RegistryUploadStatus::Unscheduled,
        TargetState::Pending | TargetState::Pushing => RegistryUploadStatus::Pending,
        TargetState::Pushed => RegistryUploadStatus::Uploaded,
        TargetState::Planned => RegistryUploadStatus::Unscheduled,
        TargetState::Superseded => RegistryUploadStatus::Superseded,
        TargetState::Failed => RegistryUploadStatus::FailedToUpload,
    };
    status
        .targets
        .iter()
        .map(|target| of_target(target.state))
        .collect()
}

fn failed_targets(push: &RegistryPush) -> impl Iterator<Item = &crate::api::v1alpha1::TargetStatus> {
    let targets = push.status.iter().flat_map(|status| &status.targets);
    targets.filter(|target| target.state == TargetState::Failed)
}

#[cfg(test)]
mod tests {
    use RegistryUploadStatus::{FailedToUpload, Partial, Pending, Superseded, Unscheduled, Uploaded};
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::none(&[], Unscheduled)]
    #[case::all_uploaded(&[Uploaded, Uploaded], Uploaded)]
    #[case::one_failed(&[Uploaded, FailedToUpload, Pending], FailedToUpload)]
    #[case::all_unscheduled(&[Unscheduled, Unscheduled], Unscheduled)]
    #[case::some_uploaded(&[Uploaded, Pending], Partial)]
    #[case::some_uploaded_some_suspended(&[Uploaded, Unscheduled], Partial)]
    #[case::going_on(&[Pending, Unscheduled], Pending)]
    #[case::all_superseded(&[Superseded, Superseded], Superseded)]
    #[case::the_rest_counts(&[Superseded, Uploaded], Uploaded)]
    #[case::superseded_and_failed(&[Superseded, FailedToUpload], FailedToUpload)]
    fn a_set_of_uploads_is_summed_up_as_launchpad_does(
        #[case] states: &[RegistryUploadStatus],
        #[case] expected: RegistryUploadStatus,
    ) {
        assert_eq!(of_set(states), expected);
    }

    fn push(name: &str, targets: &serde_json::Value) -> Arc<RegistryPush> {
        let document = json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "RegistryPush",
            "metadata": { "name": name },
            "spec": { "source": { "buildRef": { "name": "b" } }, "targets": [] },
            "status": { "targets": targets },
        });
        Arc::new(serde_json::from_value(document).unwrap())
    }

    fn failed(repository: &str, summary: &str, errors: &serde_json::Value) -> serde_json::Value {
        json!({ "repository": repository, "state": "Failed", "errorSummary": summary, "errors": errors })
    }

    #[test]
    fn errors_have_one_shape_for_one_failing_rule_and_for_several() {
        let denied = json!([{ "code": "DENIED", "message": "no" }]);
        let one = push("b-push-1", &json!([failed("one.test/a", "one failed", &denied)]));
        let two = push(
            "b-push-2",
            &json!([failed("two.test/a", "two failed", &json!([]))]),
        );
        let names = ["b-push-1", "b-push-2"].map(str::to_owned);

        let single = summary(&names[..1], &[], std::slice::from_ref(&one));
        assert_eq!(single.error_summary.as_deref(), Some("one failed"));
        assert_eq!(
            serde_json::to_value(&single.errors).unwrap(),
            json!([{ "push": "b-push-1", "repository": "one.test/a", "errors": [{ "code": "DENIED", "message": "no" }] }])
        );
        let both = summary(&names, &[], &[one, two]);
        assert_eq!(both.error_summary.as_deref(), Some("one failed / two failed"));
        assert_eq!((both.errors.len(), both.errors[1].errors.len()), (2, 0));
        assert_eq!(both.errors[0], single.errors[0]);
    }

    #[test]
    fn a_rule_that_was_not_pushed_yet_is_pending_and_a_push_that_somebody_deleted_is_not() {
        let names = ["b-push-1".to_owned()];
        assert_eq!(summary(&names, &[], &[]).status, Pending);
        assert_eq!(summary(&names, &names, &[]).status, Unscheduled);
    }

    fn build(phase: BuildPhase, rules: &[&str]) -> OCIRecipeBuildStatus {
        let rules: Vec<_> = rules.iter().map(|name| json!({ "repository": name })).collect();
        OCIRecipeBuildStatus {
            phase,
            added_push_rules: serde_json::from_value(json!(rules)).unwrap(),
            ..OCIRecipeBuildStatus::default()
        }
    }

    fn state(name: &str) -> Arc<RegistryPush> {
        push(
            "b-push-1",
            &json!([{ "repository": "one.test/a", "state": name }]),
        )
    }

    #[rstest]
    #[case::no_rule(BuildPhase::FullyBuilt, &[], 0, None, Some(Reason::PushRulesMissing))]
    #[case::not_built(BuildPhase::Building, &["one.test/a"], 0, None, Some(Reason::NothingToUpload))]
    #[case::failed_to_build(BuildPhase::FailedToBuild, &["one.test/a"], 0, None, Some(Reason::NothingToUpload))]
    #[case::going_on(BuildPhase::FullyBuilt, &["one.test/a"], 0, Some("Pushing"), Some(Reason::UploadInProgress))]
    #[case::waiting(BuildPhase::FullyBuilt, &["one.test/a"], 0, Some("Pending"), Some(Reason::UploadInProgress))]
    #[case::uploaded(BuildPhase::FullyBuilt, &["one.test/a"], 0, Some("Pushed"), Some(Reason::AlreadyUploaded))]
    #[case::failed(BuildPhase::FullyBuilt, &["one.test/a"], 0, Some("Failed"), None)]
    #[case::superseded(BuildPhase::FullyBuilt, &["one.test/a"], 0, Some("Superseded"), None)]
    #[case::uploaded_but_a_rule_was_added(BuildPhase::FullyBuilt, &["one.test/a"], 1, Some("Pushed"), None)]
    #[case::only_an_added_rule(BuildPhase::FullyBuilt, &[], 1, None, None)]
    fn an_upload_is_refused_for_four_reasons(
        #[case] phase: BuildPhase,
        #[case] rules: &[&str],
        #[case] added: usize,
        #[case] pushed: Option<&str>,
        #[case] expected: Option<Reason>,
    ) {
        let pushes: Vec<_> = pushed.map(state).into_iter().collect();
        let refusal = refusal(&build(phase, rules), added, &pushes);
        assert_eq!(refusal.as_ref().map(|failure| failure.reason), expected);
        assert!(refusal.is_none_or(|failure| failure.message.starts_with("Cannot upload: ")));
    }
}
