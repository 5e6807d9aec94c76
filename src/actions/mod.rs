//! temp
use crate::proto::collective::{Job, JobId};
use crate::proto::name::NodeName;
use crate::proto::request::{ActionResult, LoggedEvent};
/// x
#[derive(Debug)]
pub struct Runner;
#[allow(missing_docs, clippy::unused_async)]
impl Runner {
    pub fn new(_: &std::path::Path, _: &std::path::Path) -> Self {
        Self
    }
    pub fn run(&mut self, _: JobId, job: Job, _: tokio::time::Instant, f: impl FnOnce(ActionResult) + Send + 'static) {
        f(ActionResult {
            node: job.node,
            manager: None,
            token: Some(job.token),
            status: Some(0),
            output: vec![],
            error: None,
        });
    }
    pub fn extend(&mut self, _: JobId, _: tokio::time::Instant) {}
    pub fn cease(&mut self, _: &NodeName) {}
    pub fn happened(&mut self, _: &LoggedEvent, _: Option<tokio::time::Instant>) {}
    pub async fn stop(&mut self) {}
}
