//! The custom resources, group `slipway.dev`.
//!
//! One file per kind. What the API server can refuse by schema or CEL is refused there; what lives here is
//! shape and rules, no behaviour.

pub mod v1alpha1;

/// The API group.
pub const GROUP: &str = "slipway.dev";

/// On every object that the operator makes: whose it is.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "slipway";
/// The recipe of a build or pod.
pub const RECIPE_LABEL: &str = "slipway.dev/recipe";
/// The build of a pod or push.
pub const BUILD_LABEL: &str = "slipway.dev/build";
/// The push of a pod.
pub const PUSH_LABEL: &str = "slipway.dev/push";
/// What a pod is for: `build` or `push`.
pub const ROLE_LABEL: &str = "slipway.dev/role";
/// The platform of a build pod, as a slug.
pub const PLATFORM_LABEL: &str = "slipway.dev/platform";
/// The attempt that a pod makes.
pub const ATTEMPT_LABEL: &str = "slipway.dev/attempt";
/// The generation of the recipe that a build was made for.
pub const GENERATION_LABEL: &str = "slipway.dev/recipe-generation";

/// Asks a recipe for a build, or a finished build or push for another attempt: any new value, a time by
/// habit; for a build, platforms may follow after a space, separated by commas. Echoed in the status.
pub const REQUEST_ANNOTATION: &str = "slipway.dev/requested-at";
/// Asks a finished build to push its image: failed pushes go on, and rules that its recipe got since are pushed
/// too. Any new value, a time by habit; echoed in the status.
pub const UPLOAD_ANNOTATION: &str = "slipway.dev/upload-requested-at";
/// On a build: the request of its recipe that it answers.
pub const ANSWERS_ANNOTATION: &str = "slipway.dev/answers-request";
