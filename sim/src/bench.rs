//! What a member costs: processor time, events and bytes of one virtual second at different sizes of a collective.

use crate::fault::SECOND;
use crate::run::Options;
use crate::scenario::Scenario;
use crate::spent::Spent;
use crate::world::World;

/// Voters of a collective that is too large for everybody to vote.
const ELECTED: usize = 5;
/// Members above which a collective in which everybody votes is not looked at: its lease traffic alone grows with the
/// square, which is what the elastic voter set is for.
const ALL_VOTE_MAX: usize = 100;

/// One line of the table.
struct Line {
    members: usize,
    voters: usize,
    /// Processor time until everybody is seated and linked, and how long that was in virtual seconds.
    start_s: f64,
    started_s: f64,
    /// Of one member in one virtual second: processor microseconds, events, frames sent, and their bytes.
    us: f64,
    events: f64,
    frames: f64,
    bytes: f64,
    /// The most memory that this process had, in MiB.
    memory_mib: u64,
}

/// Measures idle collectives of these sizes for so many virtual nanoseconds, a line each.
///
/// # Errors
/// The first violation, in words.
pub(crate) fn bench(sizes: &[usize], window: u64) -> Result<(), String> {
    println!("                 until all are linked       a member in one idle virtual second");
    println!("members  voters  virtual s      CPU s     CPU us   events   frames     bytes  us grew by   MiB");
    let mut before: Option<Line> = None;
    let elected = sizes.iter().map(|members| (*members, (*members).min(ELECTED)));
    let all_vote =
        sizes.iter().filter(|members| (ELECTED + 1..=ALL_VOTE_MAX).contains(*members)).map(|all| (*all, *all));
    for (number, (members, voters)) in elected.chain(all_vote).enumerate() {
        let line = measure(members, voters, window)?;
        let last = before.take().filter(|_| number != sizes.len());
        let growth = last.map_or_else(String::new, |last| {
            format!("{:.1} for {:.1}", line.us / last.us, line.members as f64 / last.members as f64)
        });
        println!(
            "{:7} {:7} {:10.1} {:10.2} {:10.0} {:8.1} {:8.1} {:9.0} {growth:>11} {:5}",
            line.members,
            line.voters,
            line.started_s,
            line.start_s,
            line.us,
            line.events,
            line.frames,
            line.bytes,
            line.memory_mib,
        );
        before = Some(line);
    }
    println!("bytes are those of the core's own frames; gossip, QUIC and IP come on top");
    Ok(())
}

fn measure(members: usize, voters: usize, window: u64) -> Result<Line, String> {
    let scenario = Scenario { restored: Some(voters), ..Scenario::new("bench", members) };
    let spent = Spent::new();
    let mut world = World::new(&scenario, 1, &Options::default());
    world.await_restored();
    let (start_s, started) = (spent.seconds(), world.time);
    // What the start set going comes to rest: rumours, comparisons, probes of those that were not there yet.
    world.run_until(world.time + 10 * SECOND);

    let (spent, events, sent) = (Spent::new(), world.events, world.sent);
    world.run_until(world.time + window);
    let seconds = members as f64 * window as f64 / 1e9;
    if let Some(violation) = world.checker.violations.first() {
        return Err(violation.to_string());
    }
    Ok(Line {
        members,
        voters,
        start_s,
        started_s: started as f64 / 1e9,
        us: spent.seconds() * 1e6 / seconds,
        events: (world.events - events) as f64 / seconds,
        frames: (world.sent.frames - sent.frames) as f64 / seconds,
        bytes: (world.sent.bytes - sent.bytes) as f64 / seconds,
        memory_mib: memory_mib(),
    })
}

/// Returns the most memory that this process ever had; 0 where Linux does not tell.
fn memory_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1_024
}
