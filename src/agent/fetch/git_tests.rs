//! Fetching over http from real repositories.

use crate::agent::plan::Registries;
use std::{fs, os::unix::fs::PermissionsExt as _};

use rstest::rstest;

use super::{
    git_server::{GitServer, Manners},
    *,
};

const LOGIN: (&str, &str) = ("robot", "hunter2/with@odd:bytes");

/// A workspace, a Secret and the plan to fetch `main` of `url`.
struct Pod {
    folder: tempfile::TempDir,
    plan: FetchPlan,
}

impl Pod {
    fn new(url: &str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            plan: FetchPlan {
                source: FetchSource::Git {
                    url: url.to_owned(),
                    reference: None,
                    submodules: false,
                },
                context_dir: "app".into(),
                build_file: Some("Containerfile".into()),
                credentials_dir: None,
                registries: Registries::default(),
            },
        }
    }

    fn at(mut self, wanted: &str) -> Self {
        if let FetchSource::Git { reference, .. } = &mut self.plan.source {
            *reference = Some(wanted.to_owned());
        }
        self
    }

    fn with_submodules(mut self) -> Self {
        if let FetchSource::Git { submodules, .. } = &mut self.plan.source {
            *submodules = true;
        }
        self
    }

    fn with_login(mut self, username: &str, password: &str) -> Self {
        let secret = self.folder.path().join("secret");
        fs::create_dir_all(&secret).unwrap();
        fs::write(secret.join("username"), username).unwrap();
        fs::write(secret.join("password"), format!("{password}\n")).unwrap();
        self.plan.credentials_dir = Some(secret.to_str().unwrap().to_owned());
        self
    }

    fn workspace(&self) -> Workspace {
        Workspace::new(self.folder.path().join("workspace"))
    }

    async fn fetch(&self) -> Result<Revision, Failure> {
        fs::create_dir_all(self.workspace().root()).unwrap();
        match run_patiently(&self.plan, &self.workspace(), &[Duration::ZERO; 3]).await {
            StageOutcome::Done { revision } => Ok(revision.unwrap()),
            StageOutcome::Failed(failure) => Err(failure),
        }
    }

    async fn fails(&self) -> Failure {
        let failure = self.fetch().await.unwrap_err();
        assert!(!failure.message.contains("hunter2"), "{}", failure.message);
        failure
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.workspace().source().join(path)).ok()
    }
}

#[tokio::test]
async fn each_kind_of_reference_brings_its_commit() {
    let server = GitServer::start(Manners::default()).await;
    let repository = server.repository("demo").await;
    let first = repository.git(&["rev-parse", "HEAD"]).await;
    repository
        .git(&["tag", "--annotate", "v1", "--message=one"])
        .await;
    repository.git(&["checkout", "--quiet", "-b", "feature/x"]).await;
    repository.write("feature", "yes");
    let feature = repository.commit("feature").await;
    repository.git(&["checkout", "--quiet", "main"]).await;
    repository.write("app/new", "new");
    let main = repository.commit("second").await;

    let url = server.url("demo");
    for (reference, commit) in [
        ("main", &main),
        ("feature/x", &feature),
        ("v1", &first),
        ("refs/tags/v1", &first),
        ("refs/heads/feature/x", &feature),
        (first.as_str(), &first),
    ] {
        let pod = Pod::new(&url).at(reference);
        let revision = pod.fetch().await.unwrap();
        assert_eq!(
            (&revision.revision, revision.time),
            (commit, Some(1_700_000_000)),
            "{reference}"
        );
        assert_eq!(pod.read("feature").is_some(), commit == &feature);
    }
    assert_eq!(
        Pod::new(&url).fetch().await.unwrap().revision,
        main,
        "no reference"
    );
}

#[tokio::test]
async fn the_tree_is_for_every_user_and_one_commit_deep() {
    let server = GitServer::start(Manners::default()).await;
    let repository = server.repository("demo").await;
    repository.write("more", "");
    repository.commit("second").await;
    let pod = Pod::new(&server.url("demo"));
    pod.fetch().await.unwrap();
    let source = pod.workspace().source();
    let mode = |path: &str| fs::metadata(source.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("app"), mode("app/Containerfile")), (0o777, 0o666));
    assert_eq!(
        fs::read_to_string(source.join(".git/shallow"))
            .unwrap()
            .lines()
            .count(),
        1
    );
    assert_eq!(
        fs::metadata(pod.workspace().output())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o777
    );
}

#[tokio::test]
async fn a_server_that_gives_no_single_commit_gives_its_history() {
    let server = GitServer::start(Manners {
        old: true,
        ..Manners::default()
    })
    .await;
    let repository = server.repository("demo").await;
    let first = repository.git(&["rev-parse", "HEAD"]).await;
    repository.write("more", "");
    repository.commit("second").await;
    let pod = Pod::new(&server.url("demo")).at(&first);
    assert_eq!(pod.fetch().await.unwrap().revision, first);
    let absent = Pod::new(&server.url("demo")).at(&"c0ffee".repeat(7)[..40]);
    assert_eq!(absent.fails().await.reason, Reason::GitRefNotFound);
}

#[tokio::test]
async fn a_repository_of_the_other_hash_is_fetched() {
    let server = GitServer::start(Manners::default()).await;
    let repository = server.repository("demo").await;
    fs::remove_dir_all(repository.path().join(".git")).unwrap();
    repository
        .git(&[
            "init",
            "--quiet",
            "--initial-branch=main",
            "--object-format=sha256",
        ])
        .await;
    let commit = repository.commit("first").await;
    assert_eq!(commit.len(), 64);
    let by_name = Pod::new(&server.url("demo")).at("main");
    assert_eq!(by_name.fetch().await.unwrap().revision, commit);
    let by_commit = Pod::new(&server.url("demo")).at(&commit);
    assert_eq!(by_commit.fetch().await.unwrap().revision, commit);
}

#[rstest]
#[case::branch("demo", "nowhere", Reason::GitRefNotFound)]
#[case::short_commit("demo", "c0ffee1", Reason::GitRefNotFound)]
#[case::commit("demo", "c0ffee1111c0ffee1111c0ffee1111c0ffee1111", Reason::GitRefNotFound)]
#[case::repository("other", "main", Reason::GitRepositoryNotFound)]
#[case::option("demo", "--upload-pack=touch /tmp/slipway", Reason::SpecInvalid)]
#[tokio::test]
async fn what_does_not_exist_is_the_users_to_correct(
    #[case] repository: &str,
    #[case] reference: &str,
    #[case] reason: Reason,
) {
    let server = GitServer::start(Manners::default()).await;
    server.repository("demo").await;
    let failure = Pod::new(&server.url(repository)).at(reference).fails().await;
    assert_eq!(failure.reason, reason, "{}", failure.message);
    assert!(!failure.retryable);
}

#[tokio::test]
async fn a_server_that_recovers_is_asked_again() {
    let server = GitServer::start(Manners {
        outages: 2,
        ..Manners::default()
    })
    .await;
    server.repository("demo").await;
    Pod::new(&server.url("demo")).fetch().await.unwrap();
}

#[tokio::test]
async fn a_server_that_does_not_is_asked_four_times() {
    let server = GitServer::start(Manners {
        outages: usize::MAX,
        ..Manners::default()
    })
    .await;
    let failure = Pod::new(&server.url("demo")).fails().await;
    assert_eq!((failure.reason, failure.retryable), (Reason::FetchFailed, true));
    assert!(failure.message.contains("503"), "{}", failure.message);
    assert_eq!(server.requests(), 4);
}

#[tokio::test]
async fn the_right_password_opens_and_stays_out_of_the_workspace() {
    let server = GitServer::start(Manners {
        login: Some(LOGIN),
        ..Manners::default()
    })
    .await;
    server.repository("demo").await;
    let pod = Pod::new(&server.url("demo")).with_login(LOGIN.0, LOGIN.1);
    pod.fetch().await.unwrap();
    let search = std::process::Command::new("grep")
        .args(["--recursive", "--files-with-matches", "--text", "hunter2"])
        .arg(pod.workspace().root())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&search.stdout), "");
}

#[tokio::test]
async fn a_wrong_password_or_none_is_said_so() {
    let server = GitServer::start(Manners {
        login: Some(LOGIN),
        ..Manners::default()
    })
    .await;
    server.repository("demo").await;
    let wrong = Pod::new(&server.url("demo")).with_login(LOGIN.0, "hunter2");
    let failure = wrong.fails().await;
    assert_eq!(failure.reason, Reason::GitAuthenticationFailed);
    assert!(failure.message.contains("refused"), "{}", failure.message);
    let failure = Pod::new(&server.url("demo")).fails().await;
    assert_eq!(failure.reason, Reason::GitAuthenticationFailed);
    assert!(failure.message.contains("wants"), "{}", failure.message);
}

#[rstest]
#[case::before_the_password(None)]
#[case::after_the_password(Some(LOGIN))]
#[tokio::test]
async fn a_redirect_to_another_origin_gets_no_credentials(
    #[case] login: Option<(&'static str, &'static str)>,
) {
    let other = GitServer::start(Manners {
        login: Some(LOGIN),
        ..Manners::default()
    })
    .await;
    other.repository("demo").await;
    let first = GitServer::start(Manners {
        login,
        moved_to: Some(other.origin.clone()),
        ..Manners::default()
    })
    .await;
    let pod = Pod::new(&first.url("demo")).with_login(LOGIN.0, LOGIN.1);
    assert_eq!(pod.fails().await.reason, Reason::GitAuthenticationFailed);
    assert!(other.requests() > 0 && !other.saw_credentials());
}

/// A repository `demo` with the submodule `part` at `url`, whose repository is `part`.
async fn with_submodule(server: &GitServer, part: &Path, url: &str) {
    let demo = server.repository("demo").await;
    demo.git(&["submodule", "--quiet", "add", part.to_str().unwrap(), "part"])
        .await;
    demo.git(&["config", "--file=.gitmodules", "submodule.part.url", url])
        .await;
    demo.commit("with a part").await;
}

#[tokio::test]
async fn a_submodule_of_the_same_origin_is_fetched_at_its_commit() {
    let server = GitServer::start(Manners {
        login: Some(LOGIN),
        ..Manners::default()
    })
    .await;
    let part = server.repository("part").await;
    with_submodule(&server, part.path(), "../part").await;
    part.write("later", "");
    part.commit("later").await;
    let pod = Pod::new(&server.url("demo"))
        .with_login(LOGIN.0, LOGIN.1)
        .with_submodules();
    pod.fetch().await.unwrap();
    assert!(pod.read("part/app/Containerfile").is_some());
    assert!(
        pod.read("part/later").is_none(),
        "the recorded commit, not the tip"
    );
}

#[tokio::test]
async fn a_submodule_whose_server_gives_no_single_commit_is_fetched_whole() {
    let server = GitServer::start(Manners {
        old: true,
        ..Manners::default()
    })
    .await;
    let part = server.repository("part").await;
    with_submodule(&server, part.path(), "../part").await;
    part.write("later", "");
    part.commit("later").await;
    let pod = Pod::new(&server.url("demo")).with_submodules();
    pod.fetch().await.unwrap();
    assert!(pod.read("part/app/Containerfile").is_some() && pod.read("part/later").is_none());
}

#[tokio::test]
async fn a_submodule_of_another_origin_gets_no_credentials() {
    let other = GitServer::start(Manners {
        login: Some(LOGIN),
        ..Manners::default()
    })
    .await;
    let part = other.repository("part").await;
    let server = GitServer::start(Manners {
        login: Some(LOGIN),
        ..Manners::default()
    })
    .await;
    with_submodule(&server, part.path(), &other.url("part")).await;
    let pod = Pod::new(&server.url("demo"))
        .with_login(LOGIN.0, LOGIN.1)
        .with_submodules();
    let failure = pod.fails().await;
    assert_eq!(
        failure.reason,
        Reason::GitAuthenticationFailed,
        "{}",
        failure.message
    );
    assert!(
        failure.message.starts_with("a submodule of"),
        "{}",
        failure.message
    );
    assert!(other.requests() > 0 && !other.saw_credentials());
}

#[tokio::test]
async fn a_submodule_on_this_machine_is_refused() {
    let server = GitServer::start(Manners::default()).await;
    let part = server.repository("part").await;
    let path = part.path().to_str().unwrap().to_owned();
    with_submodule(&server, part.path(), &path).await;
    let failure = Pod::new(&server.url("demo")).with_submodules().fails().await;
    assert_eq!(failure.reason, Reason::SpecInvalid, "{}", failure.message);
}

#[tokio::test]
async fn a_context_that_is_a_link_to_elsewhere_fails_the_fetch_for_all_stages() {
    let server = GitServer::start(Manners::default()).await;
    let repository = server.repository("demo").await;
    std::os::unix::fs::symlink("/etc", repository.path().join("outside")).unwrap();
    repository.commit("link").await;
    let mut pod = Pod::new(&server.url("demo"));
    pod.plan.context_dir = "outside".into();
    let failure = pod.fails().await;
    assert_eq!(failure.reason, Reason::PathInvalid);
    assert_eq!(
        pod.workspace().wait_for(Stage::Fetch).await,
        Ok(StageOutcome::Failed(failure))
    );
}

#[tokio::test]
async fn inline_files_replace_what_an_earlier_run_left() {
    let mut pod = Pod::new("");
    let files = [("app/Containerfile".to_owned(), "FROM scratch\n".to_owned())];
    pod.plan.source = FetchSource::Inline { files: files.into() };
    fs::create_dir_all(pod.workspace().source()).unwrap();
    fs::write(pod.workspace().source().join("old"), "").unwrap();
    assert!(pod.fetch().await.unwrap().revision.starts_with("sha256:"));
    assert_eq!(pod.read("old"), None);
    assert_eq!(pod.read("app/Containerfile").as_deref(), Some("FROM scratch\n"));
}
