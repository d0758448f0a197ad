//! What the cache keeps of a build that has ended, so that a thousand of them cost the operator little.
//!
//! Layers and the snapshot of the inputs are most of a build, and only one that goes on needs them; of large layers
//! the digests stay, by which pushes know what they have in common. A build that was trimmed is never written:
//! before that it is read whole.

use crate::{
    api::v1alpha1::{BuildStrategySpec, GitSource, OCIRecipeBuild, OCIRecipeSpec, RecipeSource},
    controller::push::rivals::LARGE_LAYER,
};

/// Leaves out what only a build that goes on needs.
pub fn trim(build: &mut OCIRecipeBuild) {
    let Some(status) = build.status.as_mut().filter(|status| status.phase.is_terminal()) else {
        return;
    };
    let Some(inputs) = &mut status.inputs else { return };
    trim_strategy(&mut inputs.strategy);
    trim_recipe(&mut inputs.recipe);
    if let Some(recipe) = &mut build.spec.recipe {
        trim_recipe(recipe);
    }
    for platform in &mut status.platforms {
        platform.layers.retain(|layer| layer.size >= LARGE_LAYER);
        for layer in &mut platform.layers {
            layer.media_type = String::new();
            layer.source = String::new();
            layer.layer_id = String::new();
        }
        platform.layers.shrink_to_fit();
    }
}

/// Whether it was trimmed: no strategy is without an image.
pub fn is_trimmed(build: &OCIRecipeBuild) -> bool {
    let inputs = build.status.as_ref().and_then(|status| status.inputs.as_ref());
    inputs.is_some_and(|inputs| inputs.strategy.image.is_empty())
}

fn trim_strategy(strategy: &mut BuildStrategySpec) {
    strategy.image = String::new();
    strategy.command = Vec::new();
    strategy.build_arg = Vec::new();
    strategy.env = Vec::new();
    strategy.volumes = Vec::new();
    strategy.security.capabilities = Vec::new();
}

/// Push rules stay: they say whose pushes are looked at. So does the Git reference, which tags are made of.
fn trim_recipe(recipe: &mut OCIRecipeSpec) {
    let git = recipe.source.git.take();
    recipe.source = RecipeSource {
        git: git.map(|git| GitSource {
            url: String::new(),
            reference: git.reference,
            credentials_ref: None,
            submodules: false,
        }),
        artifact: None,
        inline: None,
    };
    recipe.build_args = std::collections::BTreeMap::new();
    recipe.platforms = Vec::new();
    recipe.tolerations = Vec::new();
}
