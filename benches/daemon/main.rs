//! What a collective of three real daemons costs and how fast it is, beside what the disk under it can do.
//!
//! `cargo bench --bench daemon` starts the built programs on loopback with the default profile and prints a table;
//! `cargo bench --bench daemon -- idle takeover` only the sections of those names. Nothing is asserted about time.

mod fleet;
#[path = "../support/mod.rs"]
mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use collective::proto::name::GroupName;
use collective::proto::request::{ImportFormat, Request, Target, Wait};

use fleet::{Daemon, Fleet, pause_after, sent_on_loopback};
use support::{Samples, Table, bytes, time};

/// Set in the process that has a network of its own.
const ISOLATED: &str = "COLLECTIVE_BENCH_ISOLATED";
/// The large database: nodes, and attributes of each.
const NODES: usize = 10_000;
const ATTRIBUTES: usize = 20;
/// How long it may take until somebody acts for each of them.
const MANAGED_WITHIN: Duration = Duration::from_secs(120);

fn main() -> anyhow::Result<()> {
    if std::env::var_os(ISOLATED).is_none()
        && let Some(status) = in_own_network()?
    {
        std::process::exit(status.code().unwrap_or(1));
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure())
}

/// Runs this program again in a network namespace, whose loopback carries nothing but the three members' packets; `None`
/// where the system does not allow that.
fn in_own_network() -> anyhow::Result<Option<std::process::ExitStatus>> {
    let probe = Command::new("unshare").args(["-rn", "ip", "link", "set", "lo", "up"]).stderr(Stdio::null()).status();
    if !probe.is_ok_and(|status| status.success()) {
        return Ok(None);
    }
    let script = "ip link set lo up && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-rn", "sh", "-c", script]).arg(std::env::current_exe()?).args(std::env::args_os().skip(1));
    Ok(Some(command.env(ISOLATED, "1").status()?))
}

async fn measure() -> anyhow::Result<()> {
    let table = Table::new("Three members on one machine, profile lan");
    let disk = fdatasync(Path::new(env!("CARGO_TARGET_TMPDIR")), 300)?;
    table.row("fdatasync of 4 KiB, p50 / p99", disk.p50_p99(), "");
    table.row("load average", std::fs::read_to_string("/proc/loadavg")?.split(' ').next().unwrap_or("?"), "");
    table.row("processors", std::thread::available_parallelism()?.to_string(), "");

    if ["show", "small", "idle", "writes"].iter().any(|title| table.wants(title)) {
        let mut fleet = Fleet::start(3).await?;
        show(&table, &mut fleet).await?;
        small(&table, &fleet).await;
        idle(&table, &fleet, "idle: three members, no nodes", "<= 2 kB/s").await;
        writes(&table, &mut fleet).await?;
    }
    if table.section("takeover: kill -9 of the acting manager of one node") {
        takeover(&table).await?;
    }
    if ["large", "rejoin"].iter().any(|title| table.wants(title)) {
        let mut fleet = Fleet::start(3).await?;
        large(&table, &mut fleet).await?;
        rejoin(&table, &mut fleet).await?;
    }
    let disk = fdatasync(Path::new(env!("CARGO_TARGET_TMPDIR")), 300)?;
    table.row("fdatasync of 4 KiB again, p50 / p99", disk.p50_p99(), "");
    Ok(())
}

/// Measures how long the disk under a directory takes to make 4 KiB durable in a file that has its size already: what
/// every durable write costs at least.
fn fdatasync(directory: &Path, runs: usize) -> std::io::Result<Samples> {
    let file = tempfile::tempfile_in(directory)?;
    let page = [7; 4096];
    file.write_all_at(&[0; 64 * 4096], 0)?;
    file.sync_all()?;
    let mut measured = Vec::with_capacity(runs);
    for run in 0..runs as u64 {
        let start = Instant::now();
        file.write_all_at(&page, run % 64 * 4096)?;
        file.sync_data()?;
        measured.push(start.elapsed());
    }
    Ok(Samples::new(measured))
}

async fn show(table: &Table, fleet: &mut Fleet) -> anyhow::Result<()> {
    if !table.section("show") {
        return Ok(());
    }
    let socket = fleet.members[0].socket();
    let mut whole = Vec::new();
    for _ in 0..200 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_collective"));
        command.arg("--socket").arg(&socket).arg("show").stdout(Stdio::null());
        let start = Instant::now();
        anyhow::ensure!(command.status()?.success(), "show failed");
        whole.push(start.elapsed());
    }
    table.row("collective show, whole process, p50 / p99", Samples::new(whole).p50_p99(), "p50 <= 5 ms");
    let mut empty = Vec::new();
    for _ in 0..200 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_collective"));
        command.arg("--version").stdout(Stdio::null());
        let start = Instant::now();
        command.status()?;
        empty.push(start.elapsed());
    }
    table.row("collective --version, whole process, p50 / p99", Samples::new(empty).p50_p99(), "");
    let mut open = Vec::new();
    for _ in 0..1_000 {
        let start = Instant::now();
        fleet.members[0].ask(&Request::Show).await?;
        open.push(start.elapsed());
    }
    table.row("show over an open connection, p50 / p99", Samples::new(open).p50_p99(), "");
    Ok(())
}

async fn small(table: &Table, fleet: &Fleet) {
    if table.section("small: memory with three members and no nodes") {
        tokio::time::sleep(Duration::from_secs(5)).await;
        memory(table, fleet, "<= 20 MB");
    }
}

/// Prints the largest resident set among the daemons, and what it is made of.
fn memory(table: &Table, fleet: &Fleet, goal: &str) {
    let of = |key| fleet.members.iter().map(|member| member.status_kib(key)).max().unwrap_or(0) as f64 * 1024.0;
    table.row("resident, the largest of the members", bytes(of("VmRSS")), goal);
    let shares = [("program and files", "RssFile"), ("memory of its own", "RssAnon"), ("peak", "VmHWM")];
    for (what, key) in shares {
        table.row(&format!("  {what}"), bytes(of(key)), "");
    }
}

async fn idle(table: &Table, fleet: &Fleet, title: &str, goal: &str) {
    const WATCHED: Duration = Duration::from_secs(20);
    if !table.section(title) {
        return;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let members = fleet.members.len() as f64;
    let cpu = || fleet.members.iter().map(Daemon::cpu).sum::<Duration>();
    let (sent, used, start) = (sent_on_loopback(), cpu(), Instant::now());
    tokio::time::sleep(WATCHED).await;
    let seconds = start.elapsed().as_secs_f64();
    let used = (cpu() - used).as_secs_f64() / seconds / members;
    match (sent, sent_on_loopback()) {
        (Some(before), Some(after)) => {
            let per_member = |count: u64| count as f64 / seconds / members;
            let rate = bytes(per_member(after.bytes - before.bytes));
            table.row("sent by each member a second, with IP and UDP headers", rate, goal);
            let packets = format!("{:.1}", per_member(after.packets - before.packets));
            table.row("packets sent by each member a second", packets, "");
        }
        _ => table.row("sent by each member a second", "no own network here", goal),
    }
    table.row("processor time of each member", format!("{:.2} %", used * 100.0), "<= 0.3 %");
}

fn set(node: &str, value: usize, wait: Wait) -> Request {
    set_many(node, vec![format!("custom.bench={value}")], wait)
}

fn set_many(nodes: &str, assignments: Vec<String>, wait: Wait) -> Request {
    let target = Target::Nodes(nodes.to_owned());
    Request::SetAttributes { target, assignments, clear: Vec::new(), wait, dry_run: false, yes: true }
}

async fn writes(table: &Table, fleet: &mut Fleet) -> anyhow::Result<()> {
    if !table.section("writes") {
        return Ok(());
    }
    let nodes = "w[1-640]";
    fleet.members[0].ask(&Request::DefineNodes { nodes: nodes.into(), assignments: Vec::new() }).await?;
    for (wait, what, goal) in [
        (Wait::Local, "set durable on one member, p50 / p99", "<= fdatasync + 0.3 / + 2 ms"),
        (Wait::Majority, "set acknowledged by a majority, p50 / p99", "etcd's put: 0.9 / 3 ms"),
    ] {
        let mut measured = Vec::new();
        for run in 0..1_000 {
            let request = set(&format!("w{}", run % 640 + 1), run, wait);
            let start = Instant::now();
            fleet.members[0].ask(&request).await?;
            measured.push(start.elapsed());
        }
        table.row(what, Samples::new(measured).p50_p99(), goal);
    }
    visible(table, fleet).await?;
    for (count, goal) in [(1, "etcd: 10,300"), (100, "corrosion: 21,000")] {
        const LASTING: Duration = Duration::from_secs(5);
        let start = Instant::now();
        let client = |client: usize| {
            let socket = fleet.members[0].socket();
            async move {
                let mut client_of = fleet::connect(&socket).await?;
                let (mut done, mut value) = (0, client * 1_000_000);
                while start.elapsed() < LASTING {
                    let first = client * 10 + 1;
                    let assignments = (0..count.max(10) / 10).map(|key| format!("custom.b{key}={value}")).collect();
                    let nodes = if count == 1 { format!("w{first}") } else { format!("w[{first}-{}]", first + 9) };
                    fleet::ask(&mut client_of, &set_many(&nodes, assignments, Wait::Majority)).await?;
                    (done, value) = (done + count, value + 1);
                }
                anyhow::Ok(done)
            }
        };
        let done = futures_util::future::try_join_all((0..64).map(client)).await?;
        let rate = done.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64();
        let what = if count == 1 { "one set each" } else { "batches of 100" };
        table.row(&format!("sets a second, 64 clients, {what}"), format!("{rate:.0}"), goal);
    }
    Ok(())
}

/// Measures from the request on one member until both others show the value; they are asked again and again, so the
/// time of one question is in it.
async fn visible(table: &Table, fleet: &mut Fleet) -> anyhow::Result<()> {
    let mut measured = Vec::new();
    for run in 0..200 {
        let expected = (run + 5_000_000).to_string();
        let request = set("w7", run + 5_000_000, Wait::Majority);
        let [writer, readers @ ..] = fleet.members.as_mut_slice() else { continue };
        let start = Instant::now();
        let seen = async |reader: &mut Daemon| {
            while reader.value("w7", "custom.bench").await?.as_ref() != Some(&expected) {}
            anyhow::Ok(start.elapsed())
        };
        let reading = futures_util::future::try_join_all(readers.iter_mut().map(seen));
        let (written, times) = futures_util::future::join(writer.ask(&request), reading).await;
        written?;
        measured.push(times?.into_iter().max().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    table.row("visible on both other members, p50 / p99", Samples::new(measured).p50_p99(), "etcd: p50 1.8 ms");
    Ok(())
}

/// Kills the acting manager again and again, and asks a survivor until another member acts.
async fn takeover(table: &Table) -> anyhow::Result<()> {
    let mut fleet = Fleet::start(3).await?;
    let assignments = vec!["collective.managercandidates=mgt1,mgt2,mgt3".to_owned()];
    fleet.members[0].ask(&Request::DefineNodes { nodes: "n1".into(), assignments }).await?;
    let mut measured = Vec::new();
    let mut gaps = Vec::new();
    for run in 0..10 {
        let (acting, _) = fleet.members[0].wait_for_manager("n1", None).await?;
        let acting = fleet.members.iter().position(|member| member.name == acting).unwrap_or(0);
        let (survivor, other) = ((acting + 1) % 3, (acting + 2) % 3);
        let start = Instant::now();
        fleet.members[acting].kill();
        let name = fleet.members[acting].name.clone();
        let (socket, mut gap, mut last) = (fleet.members[other].socket(), Duration::ZERO, start);
        let mut writer = fleet::connect(&socket).await?;
        let writing = async {
            for value in 0.. {
                if fleet::ask(&mut writer, &set("n1", run * 100_000 + value, Wait::Majority)).await.is_ok() {
                    gap = gap.max(last.elapsed());
                    last = Instant::now();
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waiting = fleet.members[survivor].wait_for_manager("n1", Some(&name));
        tokio::select! {
            taken = waiting => drop(taken?),
            () = writing => {}
        }
        measured.push(start.elapsed());
        gaps.push(gap);
        fleet.members[acting].restart().await?;
        fleet.converged().await?;
    }
    table.row("until another member acts, p50 / max of 10", Samples::new(measured).p50_p99(), "max <= 4 s");
    table.row("longest gap between accepted writes meanwhile, p50 / max", Samples::new(gaps).p50_p99(), "<= 1 s");
    Ok(())
}

/// Writes an inventory of some of the nodes.
fn inventory(nodes: std::ops::Range<usize>) -> String {
    let mut csv = String::from("node,location.rack,location.room,info.note");
    (3..ATTRIBUTES).for_each(|attribute| csv.push_str(&format!(",custom.a{attribute:02}")));
    for node in nodes {
        csv.push_str(&format!("\nn{node},r{},room{},note {node}", node / 40, node / 1_000));
        (3..ATTRIBUTES).for_each(|attribute| csv.push_str(&format!(",value-{attribute}-{node}")));
    }
    csv
}

async fn large(table: &Table, fleet: &mut Fleet) -> anyhow::Result<()> {
    table.section("large: 10,000 nodes with 20 attributes each");
    let start = Instant::now();
    let document = inventory(1..NODES + 1);
    fleet.members[0].ask(&Request::Import { format: ImportFormat::Csv, document, dry_run: false }).await?;
    table.row("import, acknowledged by a majority", time(start.elapsed()), "");
    fleet.converged().await?;
    table.row("import, equal on all members", time(start.elapsed()), "");
    tokio::time::sleep(Duration::from_secs(3)).await;
    memory(table, fleet, "<= 60 MB");

    let mut open = Vec::new();
    for _ in 0..300 {
        let start = Instant::now();
        fleet.members[0].ask(&Request::Show).await?;
        open.push(start.elapsed());
    }
    table.row("show over an open connection, p50 / p99", Samples::new(open).p50_p99(), "");
    for (nodes, goal) in [(1_000, "<= 0.1 s"), (10_000, "<= 0.6 s")] {
        let mut measured = Vec::new();
        for run in 0..5 {
            let request = set_many(&format!("n[1-{nodes}]"), vec![format!("custom.bench={run}")], Wait::Majority);
            let start = Instant::now();
            fleet.members[0].ask(&request).await?;
            measured.push(start.elapsed());
        }
        table.row(&format!("one attribute on {nodes} nodes, p50 / max of 5"), Samples::new(measured).p50_p99(), goal);
    }
    let requests = [
        ("expand n[1-10000]", Request::Expand { expression: "n[1-10000]".into(), stale: false }),
        ("list every node", Request::ListNodes { nodes: None, stale: false }),
        ("every attribute of every node", attributes_of("n[1-10000]")),
        ("managers of every node", Request::Managers { nodes: None, why: false }),
        ("status", Request::Status),
    ];
    for (what, request) in requests {
        let mut measured = Vec::new();
        for _ in 0..5 {
            let start = Instant::now();
            fleet.members[0].ask(&request).await?;
            measured.push(start.elapsed());
        }
        table.row(&format!("{what}, p50 / max of 5"), Samples::new(measured).p50_p99(), "");
    }
    memory(table, fleet, "");
    idle(table, fleet, "large, idle: 10,000 nodes without managers", "<= 2 kB/s").await;

    table.section("large, managed: every node has three candidates");
    let start = Instant::now();
    let request = Request::SetAttributes {
        target: Target::Group(GroupName::new("everything")?),
        assignments: vec!["collective.managercandidates=mgt1,mgt2,mgt3".into()],
        clear: Vec::new(),
        wait: Wait::Majority,
        dry_run: false,
        yes: true,
    };
    fleet.members[0].ask(&request).await?;
    loop {
        let asked = Instant::now();
        if fleet.members[0].managed().await? >= NODES {
            break;
        }
        anyhow::ensure!(start.elapsed() < MANAGED_WITHIN, "the nodes are not managed after {MANAGED_WITHIN:?}");
        tokio::time::sleep(pause_after(asked.elapsed())).await;
    }
    table.row("until every node has an acting manager", time(start.elapsed()), "");
    fleet.converged().await?;
    memory(table, fleet, "<= 60 MB");
    idle(table, fleet, "large, managed, idle", "<= 2 kB/s").await;
    Ok(())
}

fn attributes_of(nodes: &str) -> Request {
    let target = Target::Nodes(nodes.to_owned());
    Request::Attributes { target, names: Vec::new(), blame: false, stale: false }
}

async fn rejoin(table: &Table, fleet: &mut Fleet) -> anyhow::Result<()> {
    if !table.section("rejoin: one member is stopped, misses changes, and starts again") {
        return Ok(());
    }
    for missed in [0, 100, 10_000] {
        fleet.members[2].stop().await?;
        for chunk in 0..missed.min(100) {
            let value = vec![format!("custom.missed={missed}")];
            let nodes = match missed {
                100 => format!("n{}", chunk + 1),
                _ => format!("n[{}-{}]", chunk * 100 + 1, chunk * 100 + 100),
            };
            fleet.members[0].ask(&set_many(&nodes, value, Wait::Majority)).await?;
        }
        let before = sent_on_loopback();
        let start = Instant::now();
        fleet.members[2].restart().await?;
        let loaded = start.elapsed();
        fleet.converged().await?;
        let whole = start.elapsed();
        let sent = match (before, sent_on_loopback()) {
            (Some(before), Some(after)) => bytes((after.bytes - before.bytes) as f64),
            _ => "not counted".to_owned(),
        };
        table.row(&format!("{missed} changes missed: start to first answer"), time(loaded), "<= 0.5 s");
        table.row("  start to equal and seated", time(whole), "");
        table.row("  bytes of all members until then", sent, "");
    }
    table.row("  database of that member", bytes(fleet.members[2].database_bytes() as f64), "");
    Ok(())
}
