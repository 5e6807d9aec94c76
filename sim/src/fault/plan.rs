//! What a seed draws: which faults, when, and which of them go together.

use std::collections::BTreeSet;

use super::{FORBIDDEN, Fate, Fault, Kind, SECOND, WORDS};
use crate::mix::{Mix, Purpose};
use crate::scenario::Random;

/// How long before a clone starts nothing else may go wrong: what that held up is under way again.
const BEFORE_CLONE: u64 = 3 * SECOND;
/// How long after a clone ended nothing else may go wrong: until the original, which was told off, is set up anew.
const AFTER_CLONE: u64 = 8 * SECOND;

/// How long the window is that the usual number of random faults is meant for, in milliseconds.
const USUAL_WINDOW_MS: u64 = 60_000;

/// Draws the faults of a seed: a random subset of the kinds, at random times within `window_ms`; a longer window has more.
///
/// In one run of three some faults stay for ever, on less than half of the members; the others must do without them.
pub(crate) fn plan(mix: Mix, members: usize, window_ms: u64, random: &Random) -> Vec<Fault> {
    let mix = mix.fork(Purpose::Faults, 0);
    let allowed = random.kinds.iter().filter(|kind| **kind != FORBIDDEN);
    // Swarm: each seed enables its own subset, so that rare combinations come up undiluted.
    let draws = |kind: &&&str| !random.swarm || mix.chance(Purpose::Faults, 100 + index_of(kind), 450);
    let enabled: Vec<&str> = allowed.filter(draws).copied().collect();
    let (least, most) = random.count;
    let times = (window_ms / USUAL_WINDOW_MS).max(1);
    let count = mix.range(Purpose::Faults, 1, least * times, most * times);
    let mut faults: Vec<_> = (0..count)
        .filter(|_| !enabled.is_empty())
        .map(|number| {
            let mix = mix.fork(Purpose::Faults, 1_000 + number);
            let kind = enabled[(mix.bits(Purpose::Faults, 0) % enabled.len() as u64) as usize];
            let at = mix.range(Purpose::Faults, 1, 0, window_ms * 3 / 4);
            let longest = if mix.chance(Purpose::Faults, 2, 300) { 20_000 } else { 5_000 };
            let length = mix.range(Purpose::Faults, 3, 50, longest).min(window_ms - at);
            (at, length, draw(mix, kind, members, at))
        })
        .flat_map(|(at, length, kind)| match kind {
            // Correlated: all disks slow, then power lost by some.
            Kind::Power { .. } => {
                let slow = (0..members)
                    .filter(|_| length % 2 == 0)
                    .map(|member| Fault::new(at, 3_000, Kind::SlowDisk { member, fsync_ms: 200 + length % 1_300 }));
                slow.chain([Fault::new(at + 2_000, length, kind)]).collect()
            }
            kind => vec![Fault::new(at, length, kind)],
        })
        .collect();
    if random.forever && mix.chance(Purpose::Faults, 2, 333) && members > 2 {
        let lost = mix.range(Purpose::Faults, 3, 1, (members as u64 - 1) / 2) as usize;
        let first = mix.bits(Purpose::Faults, 4) as usize % members;
        for member in (0..lost).map(|number| (first + number) % members) {
            let kind = match mix.bits(Purpose::Faults, 10 + member as u64) % 4 {
                0 => Kind::Isolate(member),
                1 => Kind::Deaf(member),
                2 => Kind::Mute(member),
                _ => Kind::Crash(member),
            };
            faults.push(Fault::forever(window_ms * 7 / 8, kind));
        }
    }
    numbered(survivable(undisturbed(faults), members))
}

/// Leaves nothing beside a clone, since two processes of one identity break an assumption: they vote twice. They are told
/// apart as soon as somebody hears both (R9, and R4 for a session), and whoever was first rests within a lease; cuts and
/// crashes keep those who know from those who grant.
fn undisturbed(faults: Vec<Fault>) -> Vec<Fault> {
    let is_clone = |fault: &Fault| matches!(fault.kind, Kind::Clone { .. });
    let near = |fault: &Fault, clone: &Fault| {
        let from = clone.at.saturating_sub(BEFORE_CLONE);
        let until = clone.until.map_or(u64::MAX, |until| until + AFTER_CLONE);
        fault.at < until && fault.until.is_none_or(|until| until > from)
    };
    let (mut clones, mut others): (Vec<_>, Vec<_>) = faults.into_iter().partition(is_clone);
    clones.sort_by_key(|clone| clone.at);
    clones.retain(|clone| others.iter().all(|fault| fault.until.is_some() || !near(fault, clone)));
    clones.dedup_by(|later, first| near(later, first));
    others.retain(|fault| !clones.iter().any(|clone| near(fault, clone)));
    clones.into_iter().chain(others).collect()
}

/// Leaves out what no voting can mend: disks of more than a minority lost, those that stay broken counted in.
fn survivable(faults: Vec<Fault>, members: usize) -> Vec<Fault> {
    let forever = |fault: &&Fault| fault.until.is_none();
    let mut hit: BTreeSet<usize> =
        faults.iter().filter(forever).flat_map(|fault| (0..members).filter(|at| fault.kind.breaks(*at))).collect();
    let mut keep = |fault: &Fault| {
        let with: BTreeSet<_> = hit.iter().copied().chain(fault.kind.forgets()).collect();
        let is_minority = with.len() == hit.len() || with.len() <= (members - 1) / 2;
        if is_minority {
            hit = with;
        }
        is_minority
    };
    faults.into_iter().filter(|fault| keep(fault)).collect()
}

fn index_of(word: &str) -> u64 {
    WORDS.iter().position(|other| *other == word).unwrap_or(0) as u64
}

fn draw(mix: Mix, word: &str, members: usize, at_ms: u64) -> Kind {
    let draw = |index| mix.bits(Purpose::Faults, 50 + index);
    let member = draw(0) as usize % members;
    let other = (member + 1 + draw(1) as usize % (members - 1).max(1)) % members;
    let some = |salt: u64| (0..members).filter(|number| draw(100 * salt + *number as u64) % 2 == 0).collect::<Vec<_>>();
    // More than a minority that forgets what it promised is beyond what any voting can mend.
    let few = || (0..1 + draw(3) as usize % (members.div_ceil(2) - 1).max(1)).map(|k| (member + k) % members).collect();
    let halves = || {
        let left = some(1);
        let right = (0..members).filter(|number| !left.contains(number)).collect();
        vec![left, right]
    };
    let old_ms = (1_000 + draw(2) % 20_000).min(at_ms.max(500));
    match word {
        "split" => Kind::Split(halves()),
        "stall" => Kind::Stall(halves()),
        "isolate" => Kind::Isolate(member),
        "bridge" => {
            let left: Vec<_> = some(2).into_iter().filter(|number| *number != member).collect();
            let right = (0..members).filter(|number| *number != member && !left.contains(number)).collect();
            Kind::Bridge { left, via: member, right }
        }
        "ring" => {
            let mut order: Vec<_> = (0..members).collect();
            order.sort_by_key(|number| draw(300 + *number as u64));
            Kind::Ring(order)
        }
        "deaf" => Kind::Deaf(member),
        "mute" => Kind::Mute(member),
        "one-way" => Kind::OneWay(member, other),
        "link" => Kind::Link(member, other),
        "flap" => Kind::Flap { member, period_ms: 100 + draw(2) % 4_000 },
        "jam" => Kind::Jam(member, other),
        "loss" => Kind::Loss(50 + draw(2) % 400),
        "delay" => Kind::Delay { ms: 5 + draw(2) % 300 },
        "jitter" => Kind::Jitter { most_ms: 20 + draw(2) % 1_500 },
        "reorder" => Kind::Reorder(20 + draw(2) % 400),
        "duplicate" => Kind::Duplicate(50 + draw(2) % 400),
        "corrupt" => Kind::Corrupt(10 + draw(2) % 200),
        "crash" => Kind::Crash(member),
        "power" => {
            Kind::Power { members: if draw(2) % 4 == 0 { (0..members).collect() } else { some(3) }, disk: Fate::Clean }
        }
        "power-torn" => Kind::Power { members: some(3), disk: Fate::Torn },
        "power-wiped" => Kind::Power { members: vec![member], disk: Fate::Wiped },
        "power-stale" => Kind::Power { members: few(), disk: Fate::Stale(old_ms) },
        "pause" => Kind::Pause(member),
        "stop" => Kind::Stop(member),
        "slow-cpu" => Kind::SlowCpu { member, event_ms: 1 + draw(2) % 40 },
        "slow-disk" => Kind::SlowDisk { member, fsync_ms: 50 + draw(2) % 2_000 },
        "disk-full" => Kind::DiskFull(member),
        "fsync-error" => Kind::FsyncError(member),
        "wall-clock" => {
            let by_ms = (1_000 + draw(2) % 86_400_000) as i64;
            Kind::WallClock { member, by_ms: if draw(3) % 2 == 0 { by_ms } else { -by_ms } }
        }
        "restore" => Kind::Restore { member, age_ms: old_ms },
        "clone" => Kind::Clone { member, on: members },
        "rotate" => Kind::Rotate(member),
        "bandwidth" => Kind::Bandwidth { kbit: 20 + draw(2) % 500 },
        "mtu" => Kind::Mtu { bytes: 150 + draw(2) % 1_100 },
        "join-crash" => Kind::JoinCrash { joiner: member, via: other, step: draw(2) % 6 },
        _ => Kind::Freeze(member),
    }
}

/// Gives faults their numbers, in the order in which they begin.
fn numbered(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| fault.at);
    for (number, fault) in faults.iter_mut().enumerate() {
        fault.number = number as u64;
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_broken_for_ever_leaves_a_majority() {
        for seed in 0..300 {
            for fault in plan(Mix::new(seed), 5, 60_000, &Random::default()) {
                assert!(fault.until.is_none_or(|until| until > fault.at));
            }
            let forever = plan(Mix::new(seed), 5, 60_000, &Random::default())
                .iter()
                .filter(|fault| fault.until.is_none())
                .count();
            assert!(forever <= 2, "seed {seed}");
        }
    }

    #[test]
    fn nothing_else_goes_wrong_around_a_clone() {
        let mut clones = 0;
        for seed in 0..300 {
            let faults = plan(Mix::new(seed), 5, 600_000, &Random::default());
            for clone in faults.iter().filter(|fault| matches!(fault.kind, Kind::Clone { .. })) {
                clones += 1;
                let until = clone.until.expect("no clone stays") + AFTER_CLONE;
                let begins = |fault: &&Fault| (clone.at.saturating_sub(BEFORE_CLONE)..until).contains(&fault.at);
                assert_eq!(faults.iter().filter(begins).count(), 1, "seed {seed}");
                let holds = |fault: &&Fault| fault.at < clone.at && fault.until.is_none_or(|until| until > clone.at);
                assert_eq!(faults.iter().filter(holds).count(), 0, "seed {seed}");
            }
        }
        assert!(clones > 100, "{clones}");
    }

    #[test]
    fn every_kind_comes_up() {
        let words: BTreeSet<_> = (0..300)
            .flat_map(|seed| plan(Mix::new(seed), 5, 60_000, &Random::default()))
            .map(|fault| fault.kind.word())
            .collect();
        assert_eq!(words.len(), WORDS.len() - 1, "all but the frozen machine: {words:?}");
    }
}
