//! What the pure core costs in processor time: no disk, no network, one thread.
//!
//! `cargo bench --bench core` prints a table; `cargo bench --bench core -- settle apply` only the sections of those
//! names. Nothing is asserted about time.

#[path = "../support/mod.rs"]
mod support;
mod trio;

use std::hint::black_box;
use std::time::Duration;

use collective::proto::attributes::Nodes;
use collective::proto::collective::Event;
use collective::proto::document::{Actor, Documents, Entity, NewChange, PRESENT, Put, ShardId};
use collective::proto::election::{Contest, Electorate, Expressions, FailBack, Policy, Runner, elect};
use collective::proto::identity::{ClusterId, MemberId};
use collective::proto::name::{MemberName, NodeName};
use collective::proto::noderange;
use collective::proto::request::{Request, Target, Wait};
use collective::proto::roster::Role;
use collective::proto::time::WallTime;

use rustix::time::{ClockId, clock_gettime};
use support::{Samples, Table, time};
use trio::Trio;

const HERE: Actor = Actor([1; 16]);
const THERE: Actor = Actor([2; 16]);

fn main() {
    let table = Table::new("The pure core on one thread, processor time");
    if table.section("settle: three members, 10,000 nodes with three candidates each") {
        settle(&table);
    }
    if table.section("election") {
        election(&table);
    }
    if table.section("apply: a change from a peer") {
        apply(&table);
    }
    if table.section("write: 10,000 nodes with 20 attributes each") {
        write(&table);
    }
    if table.section("noderange") {
        ranges(&table);
    }
    if table.section("load: 10,000 nodes with 20 attributes each") {
        load(&table);
    }
}

/// A moment of this thread's processor time: others may use the machine meanwhile.
#[derive(Clone, Copy)]
struct Busy(Duration);

impl Busy {
    fn now() -> Self {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
        Self(Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0)))
    }

    fn elapsed(self) -> Duration {
        Self::now().0 - self.0
    }
}

/// Times runs of a closure after a few that do not count.
fn timed(runs: usize, mut run: impl FnMut(usize)) -> Samples {
    (0..runs.div_ceil(10)).for_each(&mut run);
    let measure = |index| {
        let start = Busy::now();
        run(index);
        start.elapsed()
    };
    Samples::new((0..runs).map(measure).collect())
}

fn node(number: usize) -> NodeName {
    NodeName::new(&format!("n{number}")).expect("a valid name")
}

fn put(number: usize, attribute: &str, value: &str) -> Put {
    Put { entity: Entity::Node(node(number)), attribute: attribute.into(), value: Some(value.to_owned()) }
}

/// Makes nodes with so many attributes each, and returns the changes that did it.
fn database(nodes: usize, attributes: usize) -> (Documents, Vec<NewChange>) {
    let mut puts: Vec<_> = (1..=nodes).map(|number| put(number, PRESENT, "1")).collect();
    for attribute in 0..attributes {
        let name = format!("custom.a{attribute:02}");
        puts.extend((1..=nodes).map(|number| put(number, &name, &format!("value-{attribute}-{number}"))));
    }
    let mut documents = Documents::new();
    let written = documents.write(&puts, HERE, WallTime(0)).expect("valid puts").changes;
    written.iter().for_each(|change| drop(documents.durable(&change.id)));
    (documents, written)
}

fn settle(table: &Table) {
    let (mut documents, _) = database(10_000, 2);
    let candidates: Vec<_> =
        (1..=10_000).map(|number| put(number, "collective.managercandidates", "mgt1,mgt2,mgt3")).collect();
    let written = documents.write(&candidates, HERE, WallTime(0)).expect("valid puts").changes;
    written.iter().for_each(|change| drop(documents.durable(&change.id)));
    let start = Busy::now();
    let mut trio = Trio::start(&documents);
    let virtual_time =
        trio.run_until(|trio| trio.cores.iter().map(|core| core.acting().count()).sum::<usize>() == 10_000);
    table.row("until every node has an acting manager, in virtual time", time(virtual_time), "");
    table.row("  of the processor, all three members", time(start.elapsed()), "");
    trio.rest();
    table.row("an event that changes nothing, p50 / p99", timed(2_000, |_| trio.handle(0, Event::Wake)).p50_p99(), "");
    let ask = |trio: &mut Trio, index: usize| {
        let target = Target::Nodes(format!("n{}", index + 1));
        let assignments = vec![format!("custom.x={index}")];
        let request = Request::SetAttributes {
            target,
            assignments,
            clear: vec![],
            wait: Wait::Majority,
            dry_run: false,
            yes: true,
        };
        trio.handle(0, Event::Request { id: index as u64, request, within_ms: 1_000, entropy: Box::new([0; 40]) });
        trio.deliver();
    };
    table.row(
        "one set, the work of all three members, p50 / p99",
        timed(500, |index| ask(&mut trio, index)).p50_p99(),
        "",
    );
    let show = || Event::Request { id: 0, request: Request::Show, within_ms: 1_000, entropy: Box::new([0; 40]) };
    let shown = timed(2_000, |_| trio.handle(0, show()));
    table.row("show, p50 / p99", shown.p50_p99(), "");
    let minute = Busy::now();
    trio.run_for(Duration::from_secs(60));
    table.row("a quiet minute, the work of all three members", time(minute.elapsed()), "");
}

fn election(table: &Table) {
    let electorate: Electorate = (1..=3)
        .map(|number| {
            let runner = Runner { id: MemberId([number; 16]), role: Role::Voter, draining: false, available: true };
            (MemberName::new(&format!("mgt{number}")).expect("a valid name"), runner)
        })
        .collect();
    let nodes: Vec<_> = (1..=10_000).map(node).collect();
    let mut expressions = Expressions::default();
    let samples = timed(20, |_| {
        for node in &nodes {
            let contest = Contest {
                cluster: ClusterId([0; 16]),
                node,
                pinned: None,
                candidates: Some("mgt1,mgt2,mgt3"),
                policy: Policy::Spread,
                fail_back: FailBack::None,
                holder: None,
                despite: None,
            };
            black_box(elect(&contest, &electorate, &mut expressions));
        }
    });
    table.row("10,000 nodes, three candidates each, p50 / p99", samples.p50_p99(), "");
}

fn apply(table: &Table) {
    for nodes in [1_000, 10_000, 100_000] {
        let (mut theirs, _) = database(nodes, 2);
        let mut mine = theirs.clone();
        let mut apply = |puts: &[Put]| {
            let written = theirs.write(puts, THERE, WallTime(0)).expect("valid puts").changes;
            written.iter().for_each(|change| drop(theirs.durable(&change.id)));
            let start = Busy::now();
            for change in &written {
                let id = change.id;
                mine.receive(id.shard, id.generation, &change.bytes, &|_| true).expect("it applies");
                mine.durable(&id);
            }
            start.elapsed()
        };
        let singles = (0..500).map(|run| apply(&[put(run * 7 % nodes + 1, "custom.a01", &run.to_string())])).collect();
        table.row(&format!("one put among {nodes} nodes, p50 / p99"), Samples::new(singles).p50_p99(), "<= 100 us");
        let shard = Entity::Node(node(1)).shard();
        let same: Vec<_> = (1..=nodes).filter(|n| Entity::Node(node(*n)).shard() == shard).take(100).collect();
        let batch = |run: usize| {
            let puts: Vec<_> = same.iter().map(|number| put(*number, "custom.a00", &run.to_string())).collect();
            apply(&puts) / u32::try_from(same.len()).unwrap_or(1)
        };
        let batches = (0..50).map(batch).collect();
        table.row(&format!("  each of a batch of {}", same.len()), Samples::new(batches).p50_p99(), "<= 50 us");
    }
}

fn write(table: &Table) {
    let (mut documents, _) = database(10_000, 20);
    let mut write = |puts: &[Put]| {
        let start = Busy::now();
        let written = documents.write(puts, HERE, WallTime(0)).expect("valid puts").changes;
        written.iter().for_each(|change| drop(documents.durable(&change.id)));
        start.elapsed()
    };
    let ones = (0..500).map(|run| write(&[put(run + 1, "custom.a01", &run.to_string())])).collect();
    table.row("one attribute, p50 / p99", Samples::new(ones).p50_p99(), "");
    for count in [1_000, 10_000] {
        let many = |run: usize| {
            let puts: Vec<_> = (1..=count).map(|number| put(number, "custom.a02", &run.to_string())).collect();
            write(&puts)
        };
        let samples = Samples::new((0..10).map(many).collect());
        table.row(&format!("one attribute on {count} nodes, p50 / p99"), samples.p50_p99(), "");
    }
    let roots = timed(200, |_| {
        black_box(documents.root());
    });
    table.row("the root digest, p50 / p99", roots.p50_p99(), "");
}

fn ranges(table: &Table) {
    let (documents, _) = database(100_000, 0);
    let expression = noderange::parse("n[1-100000]").expect("valid");
    let mut names = Vec::new();
    let expand = |_| names = noderange::expand(&expression, &Nodes::new(&documents)).expect("they exist");
    table.row("n[1-100000] expanded over 100,000 nodes, p50 / p99", timed(20, expand).p50_p99(), "<= 20 ms");
    let minus = noderange::parse("n[1-100000],-n[50001-100000]").expect("valid");
    let expand = |_| {
        black_box(noderange::expand(&minus, &Nodes::new(&documents)).expect("they exist"));
    };
    table.row("  all but half of them", timed(20, expand).p50_p99(), "");
    let fold = |_| {
        black_box(noderange::fold(names.iter().map(String::as_str)));
    };
    table.row("  100,000 names folded", timed(20, fold).p50_p99(), "");
}

fn load(table: &Table) {
    let (mut documents, changes) = database(10_000, 20);
    let snapshots: Vec<_> = ShardId::all().filter_map(|shard| documents.snapshot(shard)).collect();
    let bytes: usize = snapshots.iter().map(|snapshot| snapshot.bytes.len()).sum();
    let from_snapshots = timed(5, |_| {
        let (loaded, damage) = Documents::load(snapshots.clone(), Vec::new());
        assert!(damage.is_empty() && loaded.root() == documents.root(), "{damage:?}");
    });
    let what = format!("from snapshots of {}, p50 / p99", support::bytes(bytes as f64));
    table.row(&what, from_snapshots.p50_p99(), "<= 0.5 s");
    let changes: Vec<_> = changes.into_iter().map(|change| (change.id, change.bytes)).collect();
    let bytes: usize = changes.iter().map(|(_, bytes)| bytes.len()).sum();
    let from_changes = timed(5, |_| {
        let (loaded, damage) = Documents::load(Vec::new(), changes.clone());
        assert!(damage.is_empty() && loaded.root() == documents.root(), "{damage:?}");
    });
    let what = format!("from {} changes of {}, p50 / p99", changes.len(), support::bytes(bytes as f64));
    table.row(&what, from_changes.p50_p99(), "<= 0.5 s");
    let whole = timed(5, |_| {
        for shard in ShardId::all() {
            black_box(documents.snapshot(shard));
        }
    });
    table.row("all snapshots made, p50 / p99", whole.p50_p99(), "");
}
