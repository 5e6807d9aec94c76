//! Automatic clustering: a new member with seeds and a token joins by itself, as often as it takes.

use std::time::Duration;

use fs_err as fs;
use tokio::sync::{mpsc, oneshot};

use super::handler::Asked;
use crate::config::Config;
use crate::proto::request::{ErrorCode, Request, Response, TokenText};

/// The pauses between two rounds over all seeds.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long one try may take.
const WITHIN: Duration = Duration::from_secs(30);

/// Joins the collective of the configured seeds; returns when it is in, or when no further try can help.
pub(super) async fn join(config: Config, requests: mpsc::Sender<Asked>) {
    let Some(file) = &config.token_file else {
        tracing::warn!("seeds are configured without a token: no token, no entry; give one with --token @FILE");
        return;
    };
    let mut pause = PAUSE_FIRST;
    loop {
        // Host names are resolved anew in every round, and the token may have been put there meanwhile.
        match fs::read_to_string(file) {
            Ok(token) => {
                for seed in &config.seeds {
                    if try_seed(seed, token.trim(), &requests).await {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "the token cannot be read; it is tried again"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Returns whether this was the last try that was needed.
async fn try_seed(seed: &str, token: &str, requests: &mpsc::Sender<Asked>) -> bool {
    let (answer, answered) = oneshot::channel();
    let wait_ms = u64::try_from(WITHIN.as_millis()).unwrap_or(u64::MAX);
    let request =
        Request::Join { server: Some(seed.to_owned()), token: TokenText(token.to_owned()), replace: false, wait_ms };
    if requests.send(Asked { request, within: WITHIN, answer }).await.is_err() {
        return true;
    }
    match answered.await {
        Ok(Response::Error(refused)) => {
            let error = refused.error;
            tracing::warn!(seed, "could not join: {}; {}", error.message, error.hint);
            // Being in a collective already, or asking with a token that will never do, does not get better.
            matches!(error.code, ErrorCode::Exists | ErrorCode::NeedsForce)
        }
        Ok(_) => {
            tracing::info!(seed, "joined by itself");
            true
        }
        Err(_) => false,
    }
}
