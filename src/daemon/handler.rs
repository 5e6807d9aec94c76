//! From the admin room to the loop: requests cross as messages, answers come back the same way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use crate::admin::{Handler, PeerCredentials};
use crate::proto::request::{ErrorCode, Refusal, Request, Response};

/// Requests that may wait for the loop.
const WAITING_MAX: usize = 256;
/// How much longer than the core may think we wait for its answer.
const GRACE: Duration = Duration::from_millis(500);

/// A request on its way to the loop.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    /// How long the asker waits.
    pub within: Duration,
    /// Takes the answer; dropped without one when the daemon ends.
    pub answer: oneshot::Sender<Response>,
}

/// The admin room's end.
struct ToLoop(mpsc::Sender<Asked>);

/// Makes both ends; the sender is for requests that the daemon makes of itself.
pub(super) fn channel() -> (Arc<dyn Handler>, mpsc::Sender<Asked>, mpsc::Receiver<Asked>) {
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    (Arc::new(ToLoop(sender.clone())), sender, receiver)
}

#[async_trait]
impl Handler for ToLoop {
    async fn request(&self, request: Request, _peer: PeerCredentials, deadline: Duration) -> Response {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { request, within: deadline, answer };
        if self.0.send(asked).await.is_err() {
            return ending().into();
        }
        match tokio::time::timeout(deadline + GRACE, answered).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => ending().into(),
            Err(_) => Refusal::new(
                ErrorCode::TimedOut,
                "the daemon did not answer in time",
                "look with `collective status`; give it longer with --timeout",
            )
            .into(),
        }
    }
}

fn ending() -> Refusal {
    Refusal::new(ErrorCode::Unreachable, "the daemon is about to end", "systemctl status collectived")
}
