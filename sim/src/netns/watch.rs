//! Watches one machine: asks its member again and again what it is, for whom it acts, and what happened.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use collective::admin::Client;
use collective::proto::request::{EventKind, Request, Response};
use tokio::time::{sleep, timeout};

use super::stage::{Answer, Stage};
use crate::trace::{Seen, counted_as};

/// How often a member is asked.
const EVERY: Duration = Duration::from_millis(50);
/// How long an answer is waited for; a member that stands still gives none.
const WITHIN: Duration = Duration::from_secs(1);
/// After how long somebody who does not listen is tried again.
const RETRY: Duration = Duration::from_millis(20);
/// Among how many turns events are asked for once.
const EVENTS_EVERY: u64 = 4;

/// Watches a machine for as long as the run lasts.
pub(super) async fn watch(stage: Arc<Stage>, at: usize) {
    let socket = stage.machine(at).socket();
    loop {
        let life = {
            let state = stage.lock();
            (state.sites[at].is_up).then_some(state.sites[at].life)
        };
        if let Some(life) = life
            && let Ok(Ok(mut client)) = timeout(WITHIN, Client::connect(&socket)).await
        {
            let watcher = Watcher { stage: &stage, at, life };
            watcher.watch(&mut client).await;
        }
        sleep(RETRY).await;
    }
}

struct Watcher<'a> {
    stage: &'a Stage,
    at: usize,
    life: u64,
}

impl Watcher<'_> {
    /// Asks until the member does not answer any more.
    async fn watch(&self, client: &mut Client) {
        let (mut after, mut id) = (0, String::new());
        for turn in 0.. {
            let began = tokio::time::Instant::now();
            let Some(Answer { said: Response::Status(status), asked, answered }) =
                self.ask(client, Request::Status).await
            else {
                return;
            };
            // Events count from 1 in each enrolment.
            if std::mem::replace(&mut id, status.id.clone()) != status.id {
                after = 0;
            }
            let me = status.me.clone();
            if self.stage.lock().on_status(self.at, Answer { asked, answered, said: *status }) {
                let Some(answer) = self.ask(client, Request::Managers { nodes: None, why: false }).await else {
                    return;
                };
                if let Answer { said: Response::Managers(managers), asked, answered } = answer {
                    let mine = managers.nodes.into_iter().filter_map(|node| {
                        let is_mine = me.is_some() && node.manager == me;
                        Some((node.node, node.token.filter(|_| is_mine)?))
                    });
                    let said: BTreeMap<_, _> = mine.collect();
                    self.stage.lock().on_acting(self.at, Answer { asked, answered, said });
                }
            }
            if turn % EVENTS_EVERY == 0 && !self.events(client, &mut after).await {
                return;
            }
            sleep(EVERY.saturating_sub(began.elapsed())).await;
        }
    }

    async fn ask(&self, client: &mut Client, request: Request) -> Option<Answer<Response>> {
        let asked = self.stage.lock().time();
        let said = client.request(&request, WITHIN).await.ok()?;
        let state = self.stage.lock();
        state.lives(self.at, self.life).then(|| Answer { asked, answered: state.time(), said })
    }

    async fn events(&self, client: &mut Client, after: &mut u64) -> bool {
        let request = Request::Events { after: Some(*after), kinds: Vec::new(), limit: None };
        let Some(Answer { said: Response::Events(events), .. }) = self.ask(client, request).await else { return false };
        let mut state = self.stage.lock();
        for event in events.events {
            *after = event.seq;
            state.count(counted_as(event.kind));
            if event.kind != EventKind::AttributeChanged {
                let seen = Seen::Event { kind: event.kind.word().to_owned(), message: event.message };
                state.note(Some(self.at), seen);
            }
        }
        true
    }
}
