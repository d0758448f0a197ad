//! What happens next to a recipe: pure.

use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt as _;

use crate::{
    api::{
        ANSWERS_ANNOTATION, GENERATION_LABEL,
        v1alpha1::{
            BuildPhase, LatestBuild, LatestImage, OCIRecipe, OCIRecipeBuild, OCIRecipeStatus, Trigger,
            condition::{Conditions, READY, RECONCILING, STALLED, Status},
        },
    },
    controller::{next::Next, request},
};

/// What a pass sees.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The recipe itself.
    pub recipe: Arc<OCIRecipe>,
    /// The builds that it owns, in any order.
    pub builds: Vec<Arc<OCIRecipeBuild>>,
}

/// At most one external effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do but to publish the status.
    Nothing,
    /// Create the build of this name.
    CreateBuild {
        /// `<recipe>-<number>`.
        name: String,
    },
}

/// What a pass arrives at. The step comes before the status: a build that was made and not written down is
/// recognised by its generation and request, so none is made twice.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The status to publish.
    pub status: OCIRecipeStatus,
    /// The one effect.
    pub step: Step,
    /// When to look again without an event.
    pub next: Next,
}

impl Decision {
    /// The same pass, had it known that the build's name is taken: the number is spent, nothing was built.
    #[must_use]
    pub fn with_name_taken(self, recipe: &OCIRecipe) -> Self {
        let before = recipe.status.clone().unwrap_or_default();
        let status = OCIRecipeStatus {
            build_number: self.status.build_number,
            ..before
        };
        Self {
            status,
            step: Step::Nothing,
            next: Next::Now,
        }
    }
}

/// The name of the build of a number.
pub fn build_name(recipe: &str, number: i64) -> String {
    format!("{recipe}-{number}")
}

/// The request that the recipe carries.
pub fn request_of(recipe: &OCIRecipe) -> Option<&str> {
    request::of(recipe)
}

/// Decides one pass.
pub fn decide(seen: &Observed, now: Timestamp) -> Decision {
    let recipe = &seen.recipe;
    let generation = recipe.metadata.generation;
    let before = recipe.status.clone().unwrap_or_default();
    let mut status = OCIRecipeStatus {
        observed_generation: generation,
        ..before.clone()
    };
    let mut step = Step::Nothing;

    let answered = seen.builds.iter().find(|build| answers(build, recipe));
    let changed = recipe.spec.trigger == Trigger::OnChange && status.built_generation != generation;
    let requested =
        request_of(recipe).is_some_and(|request| status.last_handled_request.as_deref() != Some(request));
    if let Some(build) = answered.filter(|_| changed || requested) {
        // Made by a pass that ended before it could say so.
        take(
            &mut status,
            recipe,
            number_of(recipe, build).unwrap_or(before.build_number),
        );
    } else if (changed || requested) && !recipe.spec.suspend {
        let highest = seen
            .builds
            .iter()
            .filter_map(|build| number_of(recipe, build))
            .max()
            .unwrap_or(0);
        let number = status.build_number.max(highest) + 1;
        let name = build_name(&recipe.name_any(), number);
        take(&mut status, recipe, number);
        status.latest_build = Some(LatestBuild {
            name: name.clone(),
            phase: None,
        });
        step = Step::CreateBuild { name };
    }

    if let (Step::Nothing, Some(latest)) = (&step, latest(recipe, &seen.builds)) {
        let phase = latest.status.as_ref().map(|s| s.phase);
        status.latest_build = Some(LatestBuild {
            name: latest.name_any(),
            phase,
        });
    }
    let whole = seen
        .builds
        .iter()
        .filter_map(|b| Some((number_of(recipe, b)?, b, b.status.as_ref()?.image.as_ref()?)));
    if let Some((_, build, image)) = whole.max_by_key(|(number, ..)| *number) {
        status.latest_image = Some(LatestImage {
            build: build.name_any(),
            digest: image.digest.to_string(),
        });
    }
    status.conditions = conditions(recipe, &status, seen).merge(&before.conditions, generation, now);
    Decision {
        status,
        step,
        next: Next::Change,
    }
}

fn take(status: &mut OCIRecipeStatus, recipe: &OCIRecipe, number: i64) {
    status.build_number = status.build_number.max(number);
    status.built_generation = recipe.metadata.generation;
    status.last_handled_request = request_of(recipe)
        .map(ToOwned::to_owned)
        .or(status.last_handled_request.take());
}

/// Whether a build was made for the recipe as it is now.
fn answers(build: &OCIRecipeBuild, recipe: &OCIRecipe) -> bool {
    let generation = recipe.metadata.generation.unwrap_or_default().to_string();
    build.labels().get(GENERATION_LABEL) == Some(&generation)
        && build.annotations().get(ANSWERS_ANNOTATION).map(String::as_str) == request::of(recipe)
}

fn number_of(recipe: &OCIRecipe, build: &OCIRecipeBuild) -> Option<i64> {
    build
        .name_any()
        .strip_prefix(&recipe.name_any())?
        .strip_prefix('-')?
        .parse()
        .ok()
}

fn latest<'a>(recipe: &OCIRecipe, builds: &'a [Arc<OCIRecipeBuild>]) -> Option<&'a Arc<OCIRecipeBuild>> {
    builds.iter().max_by_key(|build| number_of(recipe, build))
}

fn conditions(recipe: &OCIRecipe, status: &OCIRecipeStatus, seen: &Observed) -> Conditions {
    let none = Conditions::default();
    let Some(latest) = &status.latest_build else {
        let (reason, text) = if recipe.spec.suspend {
            ("Suspended", "No build begins while spec.suspend is true.")
        } else {
            ("Idle", "No build was asked for yet.")
        };
        return none.with(READY, Status::False, reason, text);
    };
    let phase = latest.phase.unwrap_or_default();
    let build = seen.builds.iter().find(|build| build.name_any() == latest.name);
    let failure = build
        .and_then(|b| b.status.as_ref())
        .and_then(|s| s.failure.as_ref());
    match phase {
        BuildPhase::FullyBuilt => none.with(
            READY,
            Status::True,
            "FullyBuilt",
            &format!("{} is built.", latest.name),
        ),
        phase if phase.is_terminal() => {
            let reason = failure.map_or(phase.as_str(), |f| f.reason.as_str());
            let text = format!(
                "{}: {}",
                latest.name,
                failure.map_or(phase.as_str(), |f| f.message.as_str())
            );
            none.with(READY, Status::False, reason, &text)
                .with(STALLED, Status::True, reason, &text)
        }
        phase => {
            let text = format!("{} is {}.", latest.name, phase.as_str());
            none.with(READY, Status::False, "Building", &text).with(
                RECONCILING,
                Status::True,
                "Building",
                &text,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::REQUEST_ANNOTATION;

    fn recipe(generation: i64, extra: &serde_json::Value) -> Arc<OCIRecipe> {
        let mut document = json!({
            "apiVersion": "slipway.dev/v1alpha1", "kind": "OCIRecipe",
            "metadata": { "name": "web", "namespace": "demo", "uid": "u", "generation": generation },
            "spec": { "source": { "inline": { "files": { "Containerfile": "FROM scratch" } } }, "strategyRef": { "name": "buildah" } },
        });
        for (key, value) in extra.as_object().unwrap() {
            for (inner, value) in value.as_object().unwrap() {
                document[key][inner] = value.clone();
            }
        }
        Arc::new(serde_json::from_value(document).unwrap())
    }

    fn pass(recipe: &Arc<OCIRecipe>, builds: &[Arc<OCIRecipeBuild>]) -> Decision {
        decide(
            &Observed {
                recipe: Arc::clone(recipe),
                builds: builds.to_vec(),
            },
            Timestamp::UNIX_EPOCH,
        )
    }

    fn after(recipe: &Arc<OCIRecipe>, decision: &Decision) -> Arc<OCIRecipe> {
        let mut recipe = (**recipe).clone();
        recipe.status = Some(decision.status.clone());
        Arc::new(recipe)
    }

    #[test]
    fn a_new_recipe_makes_one_build_and_then_nothing() {
        let recipe = recipe(1, &json!({}));
        let first = pass(&recipe, &[]);
        assert_eq!(first.step, Step::CreateBuild { name: "web-1".into() });
        let build = Arc::new(super::super::build(&recipe, "web-1"));
        assert_eq!(pass(&after(&recipe, &first), &[build]).step, Step::Nothing);
    }

    #[test]
    fn a_build_that_was_made_before_a_crash_is_recognised() {
        let recipe = recipe(1, &json!({}));
        let build = Arc::new(super::super::build(&recipe, "web-1"));
        let decision = pass(&recipe, &[build]);
        assert_eq!(decision.step, Step::Nothing);
        assert_eq!(
            (decision.status.build_number, decision.status.built_generation),
            (1, Some(1))
        );
    }

    #[test]
    fn suspend_and_manual_make_no_build_by_themselves_but_manual_answers_a_request() {
        assert_eq!(
            pass(&recipe(1, &json!({ "spec": { "suspend": true } })), &[]).step,
            Step::Nothing
        );
        assert_eq!(
            pass(&recipe(1, &json!({ "spec": { "trigger": "Manual" } })), &[]).step,
            Step::Nothing
        );
        let asked = recipe(
            1,
            &json!({ "spec": { "trigger": "Manual" }, "metadata": { "annotations": { REQUEST_ANNOTATION: "now" } } }),
        );
        let decision = pass(&asked, &[]);
        assert_eq!(decision.step, Step::CreateBuild { name: "web-1".into() });
        assert_eq!(decision.status.last_handled_request.as_deref(), Some("now"));
    }

    #[test]
    fn a_changed_specification_makes_the_next_number_even_when_old_builds_are_gone() {
        let first = recipe(1, &json!({}));
        let mut changed = (*after(&first, &pass(&first, &[]))).clone();
        changed.metadata.generation = Some(2);
        assert_eq!(
            pass(&Arc::new(changed), &[]).step,
            Step::CreateBuild { name: "web-2".into() }
        );
    }

    #[test]
    fn a_name_that_is_taken_spends_its_number_and_the_next_one_is_built() {
        let recipe = recipe(1, &json!({}));
        let taken = pass(&recipe, &[]).with_name_taken(&recipe);
        assert_eq!(
            (taken.status.build_number, taken.status.built_generation),
            (1, None)
        );
        assert_eq!(
            pass(&after(&recipe, &taken), &[]).step,
            Step::CreateBuild { name: "web-2".into() }
        );
    }
}
