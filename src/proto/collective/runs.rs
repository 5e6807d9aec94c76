//! Actions on nodes: routed to the member that acts for each node, and started only while its lease holds (R5).

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Collective, Effect, Job, JobId, RequestId};
use crate::proto::attributes;
use crate::proto::identity::MemberId;
use crate::proto::message::{Call, Errand, Message, Return};
use crate::proto::name::{MemberName, NodeName};
use crate::proto::request::{ActionResult, ErrorCode, Ping, Ran, Refusal, Response};
use crate::proto::time::Instant;

/// Actions that run here at the same time; the others wait their turn.
const RUNNING_MAX: usize = 64;
/// How much sooner the other member must answer than we give up.
const GRACE: Duration = Duration::from_millis(500);

/// Runs that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Runs {
    batches: BTreeMap<u64, Batch>,
    /// What runs here, and for which batch.
    jobs: BTreeMap<JobId, (u64, NodeName)>,
    /// What other members were asked.
    calls: BTreeMap<u64, Asked>,
    last: u64,
}

/// One request to run an action on nodes.
#[derive(Debug)]
struct Batch {
    origin: Origin,
    action: String,
    arguments: Vec<String>,
    /// Nodes that wait for a place here.
    queue: Vec<NodeName>,
    /// Nodes without a result yet, and whether they may still be sent elsewhere once.
    open: BTreeMap<NodeName, bool>,
    results: Vec<ActionResult>,
    until: Instant,
}

/// Who waits for a batch.
#[derive(Debug)]
enum Origin {
    Request(RequestId),
    Call(MemberId, u64),
}

/// What another member was asked.
#[derive(Debug)]
enum Asked {
    Run { batch: u64, member: MemberId, nodes: Vec<NodeName> },
    Echo { request: RequestId, member: MemberName, at: Instant, until: Instant },
}

impl Collective {
    /// Runs an action on nodes for an administrator.
    pub(super) fn run(
        &mut self,
        request: RequestId,
        nodes: Vec<NodeName>,
        action: String,
        arguments: Vec<String>,
        within: Duration,
    ) {
        let batch = self.open_batch(Origin::Request(request), nodes, action, arguments, within, true);
        self.dispatch(batch);
    }

    /// Runs an action on nodes for another member, which believes that this one acts for them.
    pub(super) fn on_run_call(
        &mut self,
        from: MemberId,
        id: u64,
        nodes: Vec<NodeName>,
        action: String,
        arguments: Vec<String>,
        within_ms: u64,
    ) {
        let within = Duration::from_millis(within_ms);
        let batch = self.open_batch(Origin::Call(from, id), nodes, action, arguments, within, false);
        if let Some(open) = self.runs.batches.get_mut(&batch) {
            open.queue = open.open.keys().cloned().collect();
        }
    }

    fn open_batch(
        &mut self,
        origin: Origin,
        nodes: Vec<NodeName>,
        action: String,
        arguments: Vec<String>,
        within: Duration,
        may_move: bool,
    ) -> u64 {
        self.runs.last += 1;
        let batch = Batch {
            origin,
            action,
            arguments,
            queue: Vec::new(),
            open: nodes.into_iter().map(|node| (node, may_move)).collect(),
            results: Vec::new(),
            until: self.now.boot + within,
        };
        self.runs.batches.insert(self.runs.last, batch);
        self.runs.last
    }

    /// Sends each open node of a batch to its acting manager.
    fn dispatch(&mut self, key: u64) {
        let Some(batch) = self.runs.batches.get(&key) else { return };
        let nodes: Vec<_> = batch.open.keys().cloned().collect();
        let mut elsewhere: BTreeMap<MemberId, Vec<NodeName>> = BTreeMap::new();
        for node in nodes {
            match self.manager_of(&node) {
                Some(member) if member == self.me => {
                    if let Some(batch) = self.runs.batches.get_mut(&key) {
                        batch.queue.push(node);
                    }
                }
                Some(member) if self.links.contains_key(&member) => elsewhere.entry(member).or_default().push(node),
                Some(member) => {
                    let name = self.name_of(member);
                    let refusal = Refusal::new(
                        ErrorCode::Unreachable,
                        format!("{name} manages {node}, but does not answer this member"),
                        format!("collective ping {name}"),
                    );
                    self.close(key, not_run(node, Some(name), refusal));
                }
                None => {
                    let refusal = Refusal::new(
                        ErrorCode::TryAgain,
                        format!("no member acts for {node}"),
                        format!("collective managers {node} --why"),
                    );
                    self.close(key, not_run(node, None, refusal));
                }
            }
        }
        for (member, nodes) in elsewhere {
            self.send_elsewhere(key, member, nodes);
        }
    }

    fn send_elsewhere(&mut self, key: u64, member: MemberId, nodes: Vec<NodeName>) {
        let Some(batch) = self.runs.batches.get(&key) else { return };
        let within = batch.until.since(self.now.boot).saturating_sub(GRACE);
        let what = Errand::Run {
            nodes: nodes.clone(),
            action: batch.action.clone(),
            arguments: batch.arguments.clone(),
            within_ms: super::answers::millis(within),
        };
        self.runs.last += 1;
        let id = self.runs.last;
        self.runs.calls.insert(id, Asked::Run { batch: key, member, nodes });
        self.say(member, Message::Call(Call { id, what }));
    }

    /// Times a round trip to a member for an administrator.
    pub(super) fn ping(&mut self, request: RequestId, member: MemberId, within: Duration) {
        self.runs.last += 1;
        let id = self.runs.last;
        let asked =
            Asked::Echo { request, member: self.name_of(member), at: self.now.boot, until: self.now.boot + within };
        self.runs.calls.insert(id, asked);
        self.say(member, Message::Call(Call { id, what: Errand::Echo }));
    }

    pub(super) fn on_return(&mut self, from: MemberId, id: u64, results: Option<String>) {
        match self.runs.calls.remove(&id) {
            Some(Asked::Echo { request, member, at, .. }) => {
                let rtt_us = u64::try_from(self.now.boot.since(at).as_micros()).unwrap_or(u64::MAX);
                self.reply(request, Response::Ping(Ping { schema: Default::default(), member, rtt_us }));
            }
            Some(Asked::Run { batch, member, nodes }) if member == from => {
                let results: Vec<ActionResult> =
                    results.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
                self.on_results(batch, nodes, results);
            }
            other => {
                // An answer to nothing, or from somebody who was not asked.
                if let Some(asked) = other {
                    self.runs.calls.insert(id, asked);
                }
            }
        }
    }

    /// Gives up calls to a member whose link was lost: its answer cannot come any more.
    pub(super) fn lose_calls(&mut self, member: MemberId) {
        let is_lost = |asked: &Asked| matches!(asked, Asked::Run { member: asked, .. } if *asked == member);
        let lost: Vec<_> = self.runs.calls.iter().filter(|(_, asked)| is_lost(asked)).map(|(id, _)| *id).collect();
        for id in lost {
            let Some(Asked::Run { batch, nodes, .. }) = self.runs.calls.remove(&id) else { continue };
            let name = self.name_of(member);
            for node in nodes {
                let refusal = Refusal::new(
                    ErrorCode::Indeterminate,
                    format!("contact with {name} was lost; it is not known whether the action ran to its end"),
                    format!("collective managers {node} --why"),
                );
                self.close(batch, not_run(node, Some(name.clone()), refusal));
            }
        }
    }

    fn on_results(&mut self, key: u64, nodes: Vec<NodeName>, results: Vec<ActionResult>) {
        let mut again = false;
        for node in nodes {
            let result = results.iter().find(|result| result.node == node).cloned();
            let moved = result
                .as_ref()
                .and_then(|result| result.error.as_ref())
                .is_some_and(|error| error.code == ErrorCode::TryAgain);
            let Some(batch) = self.runs.batches.get_mut(&key) else { return };
            // One retry when the manager changed before the start, never after.
            if moved && batch.open.get(&node) == Some(&true) {
                batch.open.insert(node, false);
                again = true;
                continue;
            }
            let refusal = || Refusal::new(ErrorCode::Failure, "the manager sent no result", "collective events");
            self.close(key, result.unwrap_or_else(|| not_run(node.clone(), None, refusal())));
        }
        if again {
            self.dispatch(key);
        }
    }

    pub(super) fn on_job_done(&mut self, id: JobId, result: ActionResult) {
        if let Some((batch, node)) = self.runs.jobs.remove(&id) {
            self.close(batch, ActionResult { node, ..result });
        }
    }

    /// Notes a node's result.
    fn close(&mut self, key: u64, result: ActionResult) {
        if let Some(batch) = self.runs.batches.get_mut(&key)
            && batch.open.remove(&result.node).is_some()
        {
            batch.results.push(result);
        }
    }

    /// Starts what may start, and answers what is complete or out of time.
    pub(super) fn settle_runs(&mut self) {
        if self.runs.batches.is_empty() && self.runs.calls.is_empty() {
            return;
        }
        let keys: Vec<_> = self.runs.batches.keys().copied().collect();
        for key in &keys {
            self.start_queued(*key);
        }
        for key in keys {
            let late = self.runs.batches.get(&key).is_some_and(|batch| self.now.boot >= batch.until);
            if late {
                self.time_out(key);
            }
            if self.runs.batches.get(&key).is_some_and(|batch| batch.open.is_empty()) {
                self.answer_batch(key);
            }
        }
        self.drop_late_echoes();
    }

    fn start_queued(&mut self, key: u64) {
        while self.runs.jobs.len() < RUNNING_MAX {
            let Some(batch) = self.runs.batches.get_mut(&key) else { return };
            let Some(node) = batch.queue.pop() else { return };
            let (action, arguments) = (batch.action.clone(), batch.arguments.clone());
            // R5: asked at the very moment of the start.
            let until = self.holder.acts_until(&self.roster, &node).filter(|_| self.acts(&node, self.now.boot));
            let Some(until) = until else {
                let refusal = Refusal::new(
                    ErrorCode::TryAgain,
                    format!("this member does not act for {node}"),
                    format!("collective managers {node} --why"),
                );
                self.close(key, not_run(node, self.name.clone(), refusal));
                continue;
            };
            self.runs.last += 1;
            let id = self.runs.last;
            let job = Job {
                token: self.managers.token(&node).map(|token| token.to_string()).unwrap_or_default(),
                attributes: attributes::effective_all(&self.documents, &node)
                    .into_iter()
                    .map(|(name, effective)| (name.to_owned(), effective.value.to_owned()))
                    .collect(),
                node: node.clone(),
                action,
                arguments,
            };
            self.runs.jobs.insert(id, (key, node));
            self.effects.push(Effect::Run { id, job, until });
        }
    }

    /// The lease was renewed: what runs may go on.
    pub(super) fn extend_jobs(&mut self) {
        let extended: Vec<_> = self
            .runs
            .jobs
            .iter()
            .filter_map(|(id, (_, node))| Some((*id, self.holder.acts_until(&self.roster, node)?)))
            .collect();
        for (id, until) in extended {
            self.effects.push(Effect::Extend { id, until });
        }
    }

    fn time_out(&mut self, key: u64) {
        let open: Vec<_> =
            self.runs.batches.get(&key).map(|batch| batch.open.keys().cloned().collect()).unwrap_or_default();
        for node in open {
            let refusal = Refusal::new(
                ErrorCode::TimedOut,
                format!("the action did not end on {node} in time; it may still run"),
                "give it longer with --timeout",
            );
            self.close(key, not_run(node, None, refusal));
        }
    }

    fn answer_batch(&mut self, key: u64) {
        let Some(mut batch) = self.runs.batches.remove(&key) else { return };
        self.runs.calls.retain(|_, asked| !matches!(asked, Asked::Run { batch, .. } if *batch == key));
        batch.results.sort_by(|a, b| a.node.cmp(&b.node));
        match batch.origin {
            Origin::Request(id) => {
                self.reply(id, Response::Ran(Ran { schema: Default::default(), results: batch.results }));
            }
            Origin::Call(from, id) => {
                let results = serde_json::to_string(&batch.results).ok();
                self.say(from, Message::Return(Return { id, results }));
            }
        }
    }

    fn drop_late_echoes(&mut self) {
        let now = self.now.boot;
        let late: Vec<_> = self
            .runs
            .calls
            .iter()
            .filter_map(|(id, asked)| match asked {
                Asked::Echo { until, .. } if now >= *until => Some(*id),
                _ => None,
            })
            .collect();
        for id in late {
            if let Some(Asked::Echo { request, member, .. }) = self.runs.calls.remove(&id) {
                let message = format!("{member} did not answer in time");
                self.reply(request, Refusal::new(ErrorCode::TimedOut, message, "collective members"));
            }
        }
    }

    pub(super) fn runs_due(&self) -> Option<Instant> {
        let batches = self.runs.batches.values().map(|batch| batch.until);
        let echoes = self.runs.calls.values().filter_map(|asked| match asked {
            Asked::Echo { until, .. } => Some(*until),
            Asked::Run { .. } => None,
        });
        batches.chain(echoes).min()
    }
}

fn not_run(node: NodeName, manager: Option<MemberName>, error: Refusal) -> ActionResult {
    ActionResult { node, manager, token: None, status: None, output: Vec::new(), error: Some(error) }
}
