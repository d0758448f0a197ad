//! To be filled.
#[allow(missing_docs)]
pub async fn run(_: super::plan::PushPlan) -> super::report::PushReport {
    todo!()
}
