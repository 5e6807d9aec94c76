//! What a member costs: the work of one virtual second at different sizes of a collective, measured.

use std::time::Instant;

use crate::fault::{Fault, Kind, SECOND};
use crate::scenario::{self, Scenario, believed_down};
use crate::world::World;

/// Virtual seconds over which a calm collective is measured.
const CALM: u64 = 10;
/// Virtual seconds after which a crash must have been noticed by everybody.
const NOTICED_WITHIN: u64 = 30;

/// One line of the table.
struct Line {
    members: usize,
    /// Work to start everybody, link all pairs and compare their documents, in seconds.
    start_s: f64,
    /// Work of one virtual second in which nothing happens, and events in it.
    calm_s: f64,
    events: u64,
    /// Work of the virtual seconds from a write to its being everywhere.
    write_s: f64,
    /// Work of the virtual seconds from a crash until everybody noticed, and how many these were.
    crash_s: f64,
    noticed_after_s: Option<f64>,
}

/// Measures collectives of these sizes, a line each.
///
/// # Errors
/// The first violation, in words.
pub(crate) fn bench(sizes: &[usize], seed: u64) -> Result<(), String> {
    println!("members  start  calm s  a member-second  events/s  a write  a crash  noticed by all");
    for members in sizes {
        let line = measure(*members, seed)?;
        let noticed = line.noticed_after_s.map_or_else(|| "never".to_owned(), |after| format!("{after:.1} s"));
        println!(
            "{:7} {:5.1} s {:4.0} ms {:13.0} us {:9} {:5.0} ms {:5.0} ms {:>15}",
            line.members,
            line.start_s,
            line.calm_s * 1e3,
            line.calm_s * 1e6 / line.members as f64,
            line.events,
            line.write_s * 1e3,
            line.crash_s * 1e3,
            noticed,
        );
    }
    Ok(())
}

fn measure(members: usize, seed: u64) -> Result<Line, String> {
    let scenario = Scenario { nodes: 1, ..scenario::large("bench", "", members) };
    let begin = Instant::now();
    let mut world = World::new(&scenario, seed, false);
    world.await_restored();
    let start_s = begin.elapsed().as_secs_f64();
    world.define_nodes(scenario.nodes);
    world.run_until(world.time + 2 * SECOND);

    let (begin, events) = (Instant::now(), world.events);
    world.run_until(world.time + CALM * SECOND);
    let (calm_s, events) = (begin.elapsed().as_secs_f64() / CALM as f64, (world.events - events) / CALM);

    let begin = Instant::now();
    world.write(0, 0);
    world.run_until(world.time + 3 * SECOND);
    let write_s = begin.elapsed().as_secs_f64() - 3.0 * calm_s;

    let (begin, crashed) = (Instant::now(), world.time);
    world.schedule(vec![Fault::forever(0, Kind::Crash(members - 1))]);
    let everybody = members - 1;
    let is_noticed = |world: &World| believed_down(world).get(&everybody) == Some(&everybody);
    let noticed = world.wait(NOTICED_WITHIN * SECOND, is_noticed);
    let took_s = (world.time - crashed) as f64 / SECOND as f64;
    let crash_s = begin.elapsed().as_secs_f64() - took_s * calm_s;
    if let Some(violation) = world.checker.violations.first() {
        return Err(violation.to_string());
    }
    let noticed_after_s = noticed.then_some(took_s);
    Ok(Line { members, start_s, calm_s, events, write_s, crash_s, noticed_after_s })
}
