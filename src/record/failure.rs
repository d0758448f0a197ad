//! Why something ended badly: one closed list of reasons for users, metrics and tests.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum FailureClass {
    /// The recipe, its source or its credentials: trying again changes nothing until the user does.
    User,
    /// The cluster, a registry or the network: trying again may help.
    Infrastructure,
    /// A rule of the cluster's administrator.
    Policy,
}

/// A failure as a status, a record and an event show it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Who has to act.
    pub class: FailureClass,
    /// The stable reason.
    pub reason: Reason,
    /// The cause, then what to do.
    #[schemars(length(max = 2048))]
    pub message: String,
    /// Whether the same input may succeed later.
    pub retryable: bool,
    /// The end of the build's log, secrets redacted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub log_snippet: Option<String>,
}

impl Failure {
    /// A failure whose class and retry follow from its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let class = reason.class();
        let mut message: String = message.into();
        truncate(&mut message, 2048);
        Self {
            class,
            reason,
            message,
            retryable: class == FailureClass::Infrastructure,
            log_snippet: None,
        }
    }

    /// The same failure with what it concerns in front; a message that grows too long is cut.
    #[must_use]
    pub fn about(mut self, what: &str) -> Self {
        self.message = format!("{what}: {}", self.message);
        truncate(&mut self.message, 2048);
        self
    }

    /// The same failure with the end of a log.
    #[must_use]
    pub fn with_log(mut self, log: &str) -> Self {
        let mut start = log.len().saturating_sub(4096);
        while !log.is_char_boundary(start) {
            start += 1;
        }
        self.log_snippet = (!log.is_empty()).then(|| log[start..].to_owned());
        self
    }
}

fn truncate(text: &mut String, limit: usize) {
    if text.len() > limit {
        let mut end = limit;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $class:ident,)+) => {
        /// The closed list of reasons. What to do about each stands in `docs/reference/reasons.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Who has to act.
            pub fn class(self) -> FailureClass {
                match self { $(Self::$name => FailureClass::$class,)+ }
            }

            /// The reason as a condition shows it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What it means and what to do, one paragraph.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The recipe that the build names does not exist; create it, or give the build a recipe inline.
    RecipeMissing => User,
    /// The strategy does not exist; create it, or name one that `kubectl get cbstrat` lists.
    StrategyMissing => User,
    /// A named Secret does not exist in the namespace of the object; create it.
    SecretMissing => User,
    /// The resource cannot be built as it is written; the message names the field.
    SpecInvalid => User,
    /// The Git repository has no such branch, tag or commit; correct `spec.source.git.ref`.
    GitRefNotFound => User,
    /// The Git server refused the credentials, or wants some; correct the Secret in `credentialsRef`.
    GitAuthenticationFailed => User,
    /// The Git server has no such repository, or does not show it without credentials.
    GitRepositoryNotFound => User,
    /// The source could not be fetched; the message has the last answer.
    FetchFailed => Infrastructure,
    /// The artifact that the recipe names as its source does not exist or cannot be read.
    ArtifactNotFound => User,
    /// A path of the source leaves the source tree.
    PathInvalid => User,
    /// The context folder does not exist in the source; correct `spec.contextDir`.
    ContextMissing => User,
    /// The build file does not exist in the context; correct `spec.buildFile`.
    BuildFileMissing => User,
    /// The strategy's command ended with an error; the end of its log is in `logSnippet`.
    BuildFailed => User,
    /// The builder used more memory than its limit; raise `spec.resources.memory`.
    OutOfMemoryKilled => User,
    /// The build ran longer than `spec.timeoutSeconds`; raise it, or make the build faster.
    DeadlineExceeded => User,
    /// The builder ended well but left no archive at the agreed path.
    ArchiveMissing => User,
    /// The archive cannot be read as an image archive; the message names the member.
    ArchiveMalformed => User,
    /// The archive says two different things; every reader would have to guess.
    ArchiveAmbiguous => User,
    /// The archive changed while it was read.
    ArchiveChanged => User,
    /// The archive or a layer is compressed in a way that is not read here; use gzip, zstd or none.
    UnsupportedCompression => User,
    /// The archive holds an entry of a kind that no image archive needs, a device for example.
    UnsupportedEntry => User,
    /// A link in the archive leads outside of it, or in a circle.
    LinkInvalid => User,
    /// The archive passes a documented limit; the message names it.
    LimitExceeded => User,
    /// A JSON document of the archive is not valid, or says one key twice.
    JsonInvalid => User,
    /// A manifest, index or config of the archive is not valid.
    ManifestInvalid => User,
    /// The archive holds no image.
    NoImage => User,
    /// The archive holds several different images where one was asked for.
    ManyImages => User,
    /// The archive holds no image of the platform that was asked for.
    PlatformMissing => User,
    /// A digest is not written as sha256 or sha512.
    DigestInvalid => User,
    /// Content does not hash to the digest that names it.
    DigestMismatch => User,
    /// Content has another size than its descriptor says.
    SizeMismatch => User,
    /// A document's media type and its content disagree.
    MediaTypeAmbiguous => User,
    /// A media type that is not an image's.
    UnsupportedMediaType => User,
    /// A layer is to be had elsewhere only; rebuild with its content included.
    ForeignLayer => User,
    /// A layer is neither in the archive nor known.
    LayerMissing => User,
    /// An annotation uses a key, or a size, that is reserved.
    ReservedKey => User,
    /// An upload holds no digests.json.
    DigestsMissing => User,
    /// The builder's image cannot be pulled; correct the strategy's image, or its pull secret.
    ImagePullFailed => User,
    /// No node can run the pod: no node of the platform, or not enough room; the message is the scheduler's.
    Unschedulable => Infrastructure,
    /// The cluster refused the pod; the message is the API server's.
    PodRefused => Policy,
    /// The strategy needs a user namespace and no node offers one.
    UserNamespacesMissing => Policy,
    /// The build's pod was deleted by somebody else before its result was known.
    BuildPodDeleted => Infrastructure,
    /// The build's pod was evicted by its node.
    BuildPodEvicted => Infrastructure,
    /// The build's pod ended without a report.
    BuildPodFailed => Infrastructure,
    /// The staging registry does not answer, or lost what it had.
    StagingUnavailable => Infrastructure,
    /// The record in staging does not match its digest or does not belong to this build.
    RecordInvalid => Infrastructure,
    /// The build was cancelled by `spec.cancel`.
    Cancelled => User,
    /// A newer build of the recipe has been published.
    Superseded => Policy,
    /// The image to push does not exist at its source.
    SourceMissing => User,
    /// The target's name is not a repository, or a tag is not a tag.
    TargetInvalid => User,
    /// The target registry refused the credentials, or wants some.
    PushUnauthorized => User,
    /// The target registry does not let these credentials write there.
    PushDenied => User,
    /// The target registry has no such repository and does not create it.
    RepositoryNotFound => User,
    /// The target registry refused the manifest or a blob; the message is the registry's.
    PushRefused => User,
    /// The target registry cannot be reached, or answers with an error; it is tried again by itself.
    RegistryUnavailable => Infrastructure,
    /// The target registry asks to slow down; it is tried again when it said.
    RateLimited => Infrastructure,
    /// What the target serves after the push is not what was pushed.
    VerificationFailed => Infrastructure,
    /// A tag that must not change points elsewhere already.
    TagImmutable => Policy,
    /// A tag no longer points to what was pushed: somebody else moved or removed it. Request the push to set it
    /// again, or correct who writes there.
    TagMoved => User,
    /// The image has not every platform that the tag's index has, and the publish policy says that none is lost.
    PlatformLost => Policy,
    /// An upload was asked for, and neither the build nor its recipe has a push rule; add one.
    PushRulesMissing => User,
    /// The build has no image, so there is nothing to push; request the build again, or wait for its end.
    NothingToUpload => User,
    /// An upload was asked for while one goes on.
    UploadInProgress => User,
    /// An upload was asked for, and every push rule's target serves the image already.
    AlreadyUploaded => User,
    /// The origin is not allowed by the cluster's registry policies.
    OriginForbidden => Policy,
    /// The push's pod ended without a report.
    PushPodFailed => Infrastructure,
    /// A defect of Slipway itself; please report it.
    InternalError => Infrastructure,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_spelled_alike_in_conditions_and_in_json() {
        for reason in Reason::ALL {
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
            assert!(!reason.explanation().is_empty());
        }
    }

    #[test]
    fn a_long_log_is_cut_at_its_beginning_and_on_a_character() {
        let log = format!("{}end", "ü".repeat(4000));
        let snippet = Failure::new(Reason::BuildFailed, "failed")
            .with_log(&log)
            .log_snippet
            .unwrap();
        assert!(snippet.len() <= 4096 && snippet.ends_with("end"));
    }
}
