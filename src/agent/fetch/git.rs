//! Brings one commit of a Git repository into a folder, with as little history as its server allows.

use std::{fs, path::Path, time::Duration};

use super::{
    credentials::Credentials,
    diagnosis::{Problem, Trouble},
    git_command::Git,
    git_url::{GitReference, GitUrl},
    unwritable,
};
use crate::record::{Failure, Reason, Revision};

/// What a recipe wants of a repository.
#[derive(Clone, Debug)]
pub struct Wanted {
    url: GitUrl,
    reference: GitReference,
    submodules: bool,
}

impl Wanted {
    /// Reads the recipe's words.
    ///
    /// # Errors
    /// `SpecInvalid`.
    pub fn parse(url: &str, reference: Option<&str>, submodules: bool) -> Result<Self, Failure> {
        Ok(Self {
            url: GitUrl::parse(url)?,
            reference: GitReference::parse(reference)?,
            submodules,
        })
    }
}

/// Brings what is wanted into the empty folder `tree`.
///
/// # Errors
/// A failure whose message says what to do.
pub async fn fetch(
    wanted: &Wanted,
    credentials_dir: Option<&Path>,
    tree: &Path,
    delays: &[Duration],
) -> Result<Revision, Failure> {
    let credentials = Credentials::read(credentials_dir, &wanted.url)?;
    let has_credentials = credentials != Credentials::None;
    let git = Git::new(&wanted.url, credentials, tree).map_err(|error| unwritable(&error))?;
    let fetching = Fetching { git, wanted, delays };

    fetching
        .commit(tree)
        .await
        .map_err(|trouble| explain(&trouble, wanted, has_credentials))?;
    if wanted.submodules {
        fetching
            .submodules(tree)
            .await
            .map_err(|trouble| explain_submodule(&trouble, wanted))?;
    }
    fetching
        .revision()
        .await
        .map_err(|trouble| explain(&trouble, wanted, has_credentials))
}

struct Fetching<'a> {
    git: Git,
    wanted: &'a Wanted,
    delays: &'a [Duration],
}

impl Fetching<'_> {
    /// The repository with the wanted commit checked out.
    async fn commit(&self, tree: &Path) -> Result<(), Trouble> {
        let sha256 = matches!(&self.wanted.reference, GitReference::Commit(digits) if digits.len() == 64);
        self.init(if sha256 { "sha256" } else { "sha1" }).await?;
        let fetched = match self.fetch_reference().await {
            Err(trouble) if trouble.problem == Problem::OtherHash => {
                // Nothing but `git init`'s own files is there yet.
                let _ = fs::remove_dir_all(tree.join(".git"));
                self.init(if sha256 { "sha1" } else { "sha256" }).await?;
                self.fetch_reference().await
            }
            fetched => fetched,
        };
        fetched?;
        let place = match &self.wanted.reference {
            GitReference::Commit(digits) => digits,
            GitReference::Head | GitReference::Name(_) => "FETCH_HEAD",
        };
        // Peels an annotated tag to its commit.
        let arguments = ["checkout", "--quiet", "--detach", place, "--"];
        self.git.run(&arguments).await.map_err(|mut trouble| {
            if trouble.problem == Problem::Unreachable && trouble.complaint.contains(place) {
                trouble.problem = Problem::NoReference;
            }
            trouble
        })?;
        Ok(())
    }

    async fn init(&self, hash: &str) -> Result<(), Trouble> {
        let format = format!("--object-format={hash}");
        self.git.run(&["init", "--quiet", "--template=", &format]).await?;
        let url = self.wanted.url.to_string();
        // Never with credentials in it; submodules are relative to it.
        self.git
            .run(&["config", "--local", "remote.origin.url", &url])
            .await?;
        Ok(())
    }

    /// One commit deep, and if the server will not, as deep as it is.
    async fn fetch_reference(&self) -> Result<(), Trouble> {
        let reference = self.wanted.reference.as_str();
        let plain = ["fetch", "--quiet", "--no-tags", "--no-recurse-submodules"];
        let shallow = [
            &plain[..],
            &["--depth=1", "--end-of-options", "origin", reference],
        ]
        .concat();
        match self.patiently(&shallow).await {
            Err(trouble) if matches!(trouble.problem, Problem::CommitRefused | Problem::ShallowRefused) => {}
            fetched => return fetched,
        }
        let whole = match &self.wanted.reference {
            GitReference::Commit(_) => {
                vec!["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
            }
            GitReference::Head | GitReference::Name(_) => vec![reference],
        };
        let deep = [&plain[..], &["--end-of-options", "origin"], &whole].concat();
        self.patiently(&deep).await
    }

    /// All submodules, with the same leniency.
    async fn submodules(&self, tree: &Path) -> Result<(), Trouble> {
        let update = ["submodule", "--quiet", "update", "--init", "--recursive"];
        match self.patiently(&[&update[..], &["--depth=1"]].concat()).await {
            Err(trouble) if is_shallow_problem(trouble.problem) => {
                self.git
                    .run(&["submodule", "--quiet", "deinit", "--force", "--all"])
                    .await?;
                let _ = fs::remove_dir_all(tree.join(".git/modules"));
                self.patiently(&update).await
            }
            fetched => fetched,
        }
    }

    async fn revision(&self) -> Result<Revision, Trouble> {
        let show = [
            "show",
            "--no-patch",
            "--no-show-signature",
            "--format=%H %ct",
            "HEAD",
        ];
        let text = self.git.run(&show).await?;
        let (revision, time) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        Ok(Revision {
            revision: revision.to_owned(),
            time: time.parse().ok(),
        })
    }

    /// Asks again while the network may recover.
    async fn patiently(&self, arguments: &[&str]) -> Result<(), Trouble> {
        for delay in self.delays {
            match self.git.run(arguments).await {
                Err(trouble) if trouble.problem == Problem::Unreachable => {
                    tracing::warn!(complaint = trouble.complaint, delay = ?delay, "asking again");
                    tokio::time::sleep(*delay).await;
                }
                answered => return answered.map(drop),
            }
        }
        self.git.run(arguments).await.map(drop)
    }
}

/// Whether a submodule's commit may be had with more history: it is seldom the tip of a branch.
fn is_shallow_problem(problem: Problem) -> bool {
    matches!(
        problem,
        Problem::CommitRefused | Problem::ShallowRefused | Problem::NoReference
    )
}

fn explain(trouble: &Trouble, wanted: &Wanted, has_credentials: bool) -> Failure {
    let Wanted { url, reference, .. } = wanted;
    let reference = reference.as_str();
    let (reason, cause) = match trouble.problem {
        Problem::NoReference | Problem::CommitRefused => (
            Reason::GitRefNotFound,
            format!(
                "{url} has no branch, tag or commit {reference}; correct spec.source.git.ref (a commit is written \
                 with all its digits)"
            ),
        ),
        Problem::Unauthorized if has_credentials => (
            Reason::GitAuthenticationFailed,
            format!("{url} refused the credentials; correct the Secret in spec.source.git.credentialsRef"),
        ),
        Problem::Unauthorized => (
            Reason::GitAuthenticationFailed,
            format!("{url} wants credentials; name a Secret in spec.source.git.credentialsRef"),
        ),
        Problem::UnknownHost => (
            Reason::GitAuthenticationFailed,
            format!("{url} shows a host key that the Secret's known_hosts does not have; correct it"),
        ),
        Problem::NoRepository => (
            Reason::GitRepositoryNotFound,
            format!("{url} does not exist, or is not shown to these credentials; correct spec.source.git"),
        ),
        Problem::TransportForbidden => (
            Reason::SpecInvalid,
            format!("{url} leads to a transport other than https, http and ssh"),
        ),
        Problem::Untrusted => (
            Reason::FetchFailed,
            format!("{url} has a certificate that is not trusted here; ask the cluster's administrator"),
        ),
        Problem::ShallowRefused | Problem::OtherHash | Problem::Unreachable => (
            Reason::FetchFailed,
            format!("{url} ({reference}) could not be fetched"),
        ),
    };
    with_complaint(reason, &cause, trouble)
}

fn explain_submodule(trouble: &Trouble, wanted: &Wanted) -> Failure {
    let url = &wanted.url;
    let (reason, cause) = match trouble.problem {
        Problem::NoReference | Problem::CommitRefused => (
            Reason::GitRefNotFound,
            "is recorded at a commit that its repository does not have",
        ),
        Problem::Unauthorized | Problem::UnknownHost => (
            Reason::GitAuthenticationFailed,
            "wants credentials; those of the Secret are for the origin of spec.source.git.url only",
        ),
        Problem::NoRepository => (
            Reason::GitRepositoryNotFound,
            "has a repository that does not exist",
        ),
        Problem::TransportForbidden => (
            Reason::SpecInvalid,
            "uses a transport other than https, http and ssh; correct .gitmodules",
        ),
        Problem::ShallowRefused | Problem::OtherHash | Problem::Untrusted | Problem::Unreachable => {
            (Reason::FetchFailed, "could not be fetched")
        }
    };
    with_complaint(reason, &format!("a submodule of {url} {cause}"), trouble)
}

fn with_complaint(reason: Reason, cause: &str, trouble: &Trouble) -> Failure {
    Failure::new(reason, format!("{cause}; git said: {}", trouble.complaint))
}
