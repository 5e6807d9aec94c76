//! What goes on beside a test: writers that note every answer, and a watch on who acts for which node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::site::{Output, Site, run};

/// Runs a closure again and again in a thread until told to stop, and collects what it returns.
#[derive(Debug)]
struct Loop<T> {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<T>>>,
}

impl<T: Send + 'static> Loop<T> {
    fn start(mut step: impl FnMut(usize) -> T + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            (0..).map_while(|round| (!stopped.load(Ordering::Relaxed)).then(|| step(round))).collect()
        });
        Self { stop, thread: Some(thread) }
    }

    fn finish(mut self) -> Vec<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().and_then(|thread| thread.join().ok()).expect("the loop does not panic")
    }
}

impl<T> Drop for Loop<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A test that failed waits for its threads too, before its members are ended.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One write and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    /// The attribute, used by this write alone.
    pub(crate) attribute: String,
    /// When the client was started.
    pub(crate) asked: Instant,
    /// When it had ended.
    pub(crate) answered: Instant,
    /// What it said.
    pub(crate) output: Output,
}

impl Write {
    pub(crate) fn accepted(&self) -> bool {
        self.output.code == 0
    }
}

/// Writes to a node through one member, as fast as it answers, an attribute of its own each time.
#[derive(Debug)]
pub(crate) struct Writer(Loop<Write>);

impl Writer {
    /// Starts writing to a node; the attributes are `custom.MEMBER-N`.
    pub(crate) fn start(site: &Site, node: &str) -> Self {
        let (name, node) = (site.name().to_owned(), node.to_owned());
        let socket = site.socket();
        Self(Loop::start(move |round| {
            let attribute = format!("custom.{name}-{round}");
            let asked = Instant::now();
            let mut client = crate::site::clean(crate::site::COLLECTIVE);
            client.arg("-s").arg(&socket).args(["attrib", &node, &format!("{attribute}={round}")]);
            let output = run(&mut client);
            if output.code != 0 {
                // A refusal comes at once; do not spend the machine on them.
                std::thread::sleep(Duration::from_millis(20));
            }
            Write { attribute, asked, answered: Instant::now(), output }
        }))
    }

    /// Ends writing and returns every write in order.
    pub(crate) fn finish(self) -> Vec<Write> {
        self.0.finish()
    }
}

/// Returns the longest time between two accepted writes that came after `since`, or between it and the first.
pub(crate) fn longest_gap(writes: &[Write], since: Instant) -> Duration {
    let accepted = writes.iter().filter(|write| write.accepted()).map(|write| write.answered);
    let moments: Vec<_> = std::iter::once(since).chain(accepted.filter(|moment| *moment > since)).collect();
    let last = writes.last().map_or(since, |write| write.answered);
    let ends = moments.iter().skip(1).copied().chain([last]);
    moments.iter().zip(ends).map(|(from, to)| to.saturating_duration_since(*from)).max().unwrap_or_default()
}

/// A member said that it acts for a node under a token.
type Acting = (String, String);

/// Asks every member again and again which nodes it acts for.
#[derive(Debug)]
pub(crate) struct ActingWatch(Vec<(String, Loop<Sample>)>);

/// What one member said about itself.
#[derive(Debug)]
struct Sample {
    asked: Instant,
    answered: Instant,
    /// Node and token.
    acting: Vec<Acting>,
}

impl ActingWatch {
    /// Starts to watch these members.
    pub(crate) fn start(sites: &[&Site]) -> Self {
        let watch = |site: &&Site| {
            let (name, socket) = (site.name().to_owned(), site.socket());
            let me = name.clone();
            let poll = Loop::start(move |_| {
                let asked = Instant::now();
                let mut client = crate::site::clean(crate::site::COLLECTIVE);
                let output = run(client.arg("-s").arg(&socket).args(["managers", "-o", "json", "--timeout", "1s"]));
                let answered = Instant::now();
                std::thread::sleep(Duration::from_millis(30));
                Sample { asked, answered, acting: acting(&output.stdout, &me) }
            });
            (name, poll)
        };
        Self(sites.iter().map(watch).collect())
    }

    /// Ends the watch; fails when two members acted for one node at the same time.
    ///
    /// A claim under one token is held without a break. So a member that named it twice held it all the time from the
    /// first answer to the last question; two such spans of one node must not overlap.
    #[track_caller]
    pub(crate) fn finish(self) {
        let mut spans: BTreeMap<(String, String, String), (Instant, Instant)> = BTreeMap::new();
        for (member, poll) in self.0 {
            for sample in poll.finish() {
                for (node, token) in sample.acting {
                    let span = spans.entry((node, member.clone(), token)).or_insert((sample.answered, sample.asked));
                    span.1 = sample.asked;
                }
            }
        }
        let spans: Vec<_> = spans.into_iter().collect();
        assert!(!spans.is_empty(), "somebody acted for something");
        for (index, ((node, member, token), (from, to))) in spans.iter().enumerate() {
            for ((other_node, other, other_token), (other_from, other_to)) in &spans[index + 1..] {
                let overlap = from.max(other_from) < to.min(other_to);
                assert!(
                    node != other_node || member == other || !overlap,
                    "{member} under {token} and {other} under {other_token} acted for {node} at the same time"
                );
            }
        }
    }
}

/// Reads from the `managers` document which nodes a member acts for.
fn acting(document: &str, member: &str) -> Vec<Acting> {
    let document: Value = serde_json::from_str(document).unwrap_or_default();
    let nodes = document["nodes"].as_array().cloned().unwrap_or_default();
    nodes
        .iter()
        .filter(|node| node["manager"] == member)
        .filter_map(|node| Some((node["node"].as_str()?.to_owned(), node["token"].as_str()?.to_owned())))
        .collect()
}

/// Runs an action through one member again and again.
#[derive(Debug)]
pub(crate) struct Runs(Loop<Output>);

impl Runs {
    /// Starts to run an action on nodes.
    pub(crate) fn start(site: &Site, nodes: &str, action: &str) -> Self {
        let (socket, nodes, action) = (site.socket(), nodes.to_owned(), action.to_owned());
        Self(Loop::start(move |_| {
            let mut client = crate::site::clean(crate::site::COLLECTIVE);
            let output = run(client.arg("-s").arg(&socket).args(["run", &nodes, &action, "--timeout", "3s"]));
            std::thread::sleep(Duration::from_millis(50));
            output
        }))
    }

    /// Ends it and returns what came of each run.
    pub(crate) fn finish(self) -> Vec<Output> {
        self.0.finish()
    }
}
