//! Recipes: a build for every change of the specification and for every request.

pub mod decide;

use std::sync::Arc;

use jiff::Timestamp;
use kube::{ResourceExt as _, runtime::controller::Action};

use self::decide::{Observed, Step, decide};
use super::{
    context::Context,
    error::Error,
    metrics::{Controller, Outcome},
    pod_parts,
};
use crate::{
    api::{
        ANSWERS_ANNOTATION, GENERATION_LABEL, RECIPE_LABEL,
        v1alpha1::{LocalReference, OCIRecipe, OCIRecipeBuild, OCIRecipeBuildSpec},
    },
    controller::build::status::owned_by,
    kubernetes::{cluster::Created, watches::key},
};

/// Moves one recipe a single step: at most one build is made.
///
/// # Errors
/// When the API server does not do what it was asked.
pub async fn reconcile(recipe: Arc<OCIRecipe>, context: Arc<Context>) -> Result<Action, Error> {
    let namespace = recipe.namespace().unwrap_or_default();
    let key = key(&namespace, &recipe.name_any());
    let Some(recipe) = context
        .own_recipes
        .newest(&key, Some(recipe))
        .filter(|r| r.metadata.deletion_timestamp.is_none())
    else {
        return Ok(Action::await_change());
    };
    let observed = observe(Arc::clone(&recipe), &context);
    let decision = decide(&observed, Timestamp::now());
    let mut decision = decision;
    if let Step::CreateBuild { name } = &decision.step {
        match context.cluster.create(&namespace, &build(&recipe, name)).await? {
            Created::New(build) => {
                context.own_builds.remember(build);
            }
            Created::Exists(build) if owned_by(&build, &recipe.uid().unwrap_or_default()) => {
                context.own_builds.remember(build);
            }
            // Somebody's own build, or one of a deleted recipe of this name: the next number is free.
            Created::Exists(_) => decision = decision.with_name_taken(&recipe),
        }
    }
    let differs = recipe.status.as_ref() != Some(&decision.status);
    if differs {
        context
            .own_recipes
            .remember(context.cluster.apply_status(&*recipe, &decision.status).await?);
    }
    context.metrics.passed(
        Controller::Recipe,
        if differs { Outcome::Acted } else { Outcome::Idle },
    );
    Ok(decision.next.into())
}

fn observe(recipe: Arc<OCIRecipe>, context: &Context) -> Observed {
    let (namespace, uid) = (recipe.namespace(), recipe.uid().unwrap_or_default());
    let mut builds: Vec<Arc<OCIRecipeBuild>> = context
        .stores
        .builds
        .state()
        .into_iter()
        .filter(|build| build.namespace() == namespace && owned_by(&**build, &uid))
        .collect();
    // A build that was just made here may not be in the cache yet.
    let number = recipe.status.as_ref().map_or(0, |status| status.build_number);
    for name in [number, number + 1].map(|number| decide::build_name(&recipe.name_any(), number)) {
        let known = builds.iter().any(|build| build.name_any() == name);
        if let (false, Some(build)) = (
            known,
            context.build(namespace.as_deref().unwrap_or_default(), &name),
        ) {
            builds.extend(owned_by(&*build, &uid).then_some(build));
        }
    }
    Observed { recipe, builds }
}

fn build(recipe: &OCIRecipe, name: &str) -> OCIRecipeBuild {
    let generation = recipe.metadata.generation.unwrap_or_default().to_string();
    let recipe_name = recipe.name_any();
    let labels = [
        (RECIPE_LABEL, recipe_name.as_str()),
        (GENERATION_LABEL, generation.as_str()),
    ];
    let mut metadata = pod_parts::owned_by(recipe, name.to_owned(), &labels);
    metadata.annotations = decide::request_of(recipe)
        .map(|request| [(ANSWERS_ANNOTATION.to_owned(), request.to_owned())].into());
    OCIRecipeBuild {
        metadata,
        spec: OCIRecipeBuildSpec {
            recipe_ref: Some(LocalReference { name: recipe_name }),
            recipe: None,
            cancel: false,
        },
        status: None,
    }
}
