//! To be filled.
#[allow(missing_docs)]
pub async fn run(
    _: super::plan::CollectPlan,
    _: super::workspace::Workspace,
) -> super::report::CollectReport {
    todo!()
}
