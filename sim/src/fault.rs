//! Faults: what is broken, where, from when to when; and the random plans that a seed makes.

use std::fmt;

use crate::mix::{Mix, Purpose};

/// Nanoseconds in a millisecond of true time.
pub(crate) const MS: u64 = 1_000_000;
/// Nanoseconds in a second of true time.
pub(crate) const SECOND: u64 = 1_000 * MS;

/// What is broken. Members are numbered in the order in which they joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only members of the same group hear each other.
    Split(Vec<Vec<usize>>),
    /// Nobody hears the member, and it hears nobody.
    Isolate(usize),
    /// Two groups that only share the member between them.
    Bridge { left: Vec<usize>, via: usize, right: Vec<usize> },
    /// The member hears nobody.
    Deaf(usize),
    /// Nobody hears the member.
    Mute(usize),
    /// The second does not hear the first.
    OneWay(usize, usize),
    /// Neither of the two hears the other.
    Link(usize, usize),
    /// The member is isolated every other period.
    Flap { member: usize, period_ms: u64 },
    /// That many of a thousand datagrams are lost, and as many stream packets are late.
    Loss(u64),
    /// Everything takes up to that much longer, so that datagrams overtake each other.
    Delay { most_ms: u64 },
    /// That many of a thousand datagrams come twice.
    Duplicate(u64),
    /// The process is killed, and started again at the end.
    Crash(usize),
    /// The machines lose power: what is not durable is gone, and nobody is told.
    Power(Vec<usize>),
    /// The process is stopped cleanly, and started again at the end.
    Stop(usize),
    /// The process does nothing, while its clock runs on.
    Pause(usize),
    /// The machine with its clock stands still. Breaks what the leases assume; only for testing the checkers.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests break the assumption"))]
    Freeze(usize),
    /// Every save takes that long.
    SlowDisk { member: usize, fsync_ms: u64 },
}

impl Kind {
    /// Returns the word that the coverage counts it under.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Split(_) => "split",
            Self::Isolate(_) => "isolate",
            Self::Bridge { .. } => "bridge",
            Self::Deaf(_) => "deaf",
            Self::Mute(_) => "mute",
            Self::OneWay(..) => "one-way",
            Self::Link(..) => "link",
            Self::Flap { .. } => "flap",
            Self::Loss(_) => "loss",
            Self::Delay { .. } => "delay",
            Self::Duplicate(_) => "duplicate",
            Self::Crash(_) => "crash",
            Self::Power(_) => "power",
            Self::Stop(_) => "stop",
            Self::Pause(_) => "pause",
            Self::Freeze(_) => "freeze",
            Self::SlowDisk { .. } => "slow-disk",
        }
    }

    /// Returns whether it keeps what the first says from the second at that time; `since` is when it began.
    fn cuts(&self, from: usize, to: usize, since: u64, now: u64) -> bool {
        let touches = |member: usize| from == member || to == member;
        match self {
            Self::Split(groups) => !groups.iter().any(|group| group.contains(&from) && group.contains(&to)),
            Self::Isolate(member) => touches(*member),
            Self::Bridge { left, right, .. } => {
                (left.contains(&from) && right.contains(&to)) || (right.contains(&from) && left.contains(&to))
            }
            Self::Deaf(member) => to == *member,
            Self::Mute(member) => from == *member,
            Self::OneWay(a, b) => from == *a && to == *b,
            Self::Link(a, b) => touches(*a) && touches(*b),
            Self::Flap { member, period_ms } => {
                touches(*member) && ((now - since) / (period_ms * MS).max(1)).is_multiple_of(2)
            }
            _ => false,
        }
    }
}

/// One fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// When it begins, in true nanoseconds after the members are seated.
    pub(crate) at: u64,
    /// When it ends; never, if not at all.
    pub(crate) until: Option<u64>,
    pub(crate) kind: Kind,
}

impl Fault {
    /// Makes a fault from whole milliseconds.
    pub(crate) const fn new(at_ms: u64, for_ms: u64, kind: Kind) -> Self {
        Self { at: at_ms * MS, until: Some((at_ms + for_ms) * MS), kind }
    }

    /// Makes a fault that stays.
    pub(crate) const fn forever(at_ms: u64, kind: Kind) -> Self {
        Self { at: at_ms * MS, until: None, kind }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s ", self.at as f64 / 1e9)?;
        match self.until {
            Some(until) => write!(f, "for {:.3}s ", (until - self.at) as f64 / 1e9)?,
            None => f.write_str("for ever ")?,
        }
        write!(f, "{:?}", self.kind)
    }
}

/// The faults that hold right now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Active(Vec<(usize, u64, Kind)>);

impl Active {
    pub(crate) fn begin(&mut self, number: usize, now: u64, kind: Kind) {
        self.0.push((number, now, kind));
    }

    pub(crate) fn end(&mut self, number: usize) {
        self.0.retain(|(other, ..)| *other != number);
    }

    /// Returns whether nothing is broken.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether what the first says reaches the second.
    pub(crate) fn passes(&self, from: usize, to: usize, now: u64) -> bool {
        !self.0.iter().any(|(_, since, kind)| kind.cuts(from, to, *since, now))
    }

    fn highest(&self, of: impl Fn(&Kind) -> Option<u64>) -> u64 {
        self.0.iter().filter_map(|(.., kind)| of(kind)).max().unwrap_or(0)
    }

    /// Returns how many of a thousand datagrams are lost.
    pub(crate) fn loss(&self) -> u64 {
        self.highest(|kind| if let Kind::Loss(permille) = kind { Some(*permille) } else { None })
    }

    /// Returns how many of a thousand datagrams come twice.
    pub(crate) fn duplicates(&self) -> u64 {
        self.highest(|kind| if let Kind::Duplicate(permille) = kind { Some(*permille) } else { None })
    }

    /// Returns by how much more everything may be late, in milliseconds.
    pub(crate) fn delay_ms(&self) -> u64 {
        self.highest(|kind| if let Kind::Delay { most_ms } = kind { Some(*most_ms) } else { None })
    }

    /// Returns how long a save of a member takes, when its disk is slow.
    pub(crate) fn fsync_ms(&self, of: usize) -> Option<u64> {
        let slow = self.highest(|kind| match kind {
            Kind::SlowDisk { member, fsync_ms } if *member == of => Some(*fsync_ms),
            _ => None,
        });
        (slow > 0).then_some(slow)
    }
}

/// Draws the faults of a seed: a random subset of the kinds, at random times within `window_ms`.
///
/// In one run of three some faults stay for ever, on less than half of the members; the others must do without them.
pub(crate) fn plan(mix: Mix, members: usize, window_ms: u64) -> Vec<Fault> {
    let mix = mix.fork(Purpose::Faults, 0);
    // Swarm: each seed enables its own subset, so that rare combinations come up undiluted.
    let enabled: Vec<u64> = (0..17).filter(|kind| mix.chance(Purpose::Faults, 100 + kind, 450)).collect();
    let count = mix.range(Purpose::Faults, 1, 3, 12);
    let mut faults: Vec<_> = (0..count)
        .filter(|_| !enabled.is_empty())
        .map(|number| {
            let mix = mix.fork(Purpose::Faults, 1_000 + number);
            let kind = enabled[(mix.bits(Purpose::Faults, 0) % enabled.len() as u64) as usize];
            let at = mix.range(Purpose::Faults, 1, 0, window_ms * 3 / 4);
            let longest = if mix.chance(Purpose::Faults, 2, 300) { 20_000 } else { 5_000 };
            let length = mix.range(Purpose::Faults, 3, 50, longest).min(window_ms - at);
            (at, length, draw(mix, kind, members))
        })
        .flat_map(|(at, length, kind)| match kind {
            // Correlated: all disks slow, then power lost by some.
            Kind::Power(victims) => {
                let slow = (0..members)
                    .filter(|_| length % 2 == 0)
                    .map(|member| Fault::new(at, 3_000, Kind::SlowDisk { member, fsync_ms: 200 + length % 1_300 }));
                slow.chain([Fault::new(at + 2_000, length, Kind::Power(victims))]).collect()
            }
            kind => vec![Fault::new(at, length, kind)],
        })
        .collect();
    if mix.chance(Purpose::Faults, 2, 333) {
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
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn draw(mix: Mix, kind: u64, members: usize) -> Kind {
    let draw = |index| mix.bits(Purpose::Faults, 50 + index);
    let member = draw(0) as usize % members;
    let other = (member + 1 + draw(1) as usize % (members - 1)) % members;
    let some = |salt: u64| (0..members).filter(|number| draw(100 * salt + *number as u64) % 2 == 0).collect::<Vec<_>>();
    match kind {
        0 | 1 => {
            let left = some(1);
            let right = (0..members).filter(|number| !left.contains(number)).collect();
            Kind::Split(vec![left, right])
        }
        2 => Kind::Isolate(member),
        3 => {
            let left: Vec<_> = some(2).into_iter().filter(|number| *number != member).collect();
            let right = (0..members).filter(|number| *number != member && !left.contains(number)).collect();
            Kind::Bridge { left, via: member, right }
        }
        4 => Kind::Deaf(member),
        5 => Kind::Mute(member),
        6 => Kind::OneWay(member, other),
        7 => Kind::Link(member, other),
        8 => Kind::Flap { member, period_ms: 100 + draw(2) % 4_000 },
        9 => Kind::Loss(50 + draw(2) % 400),
        10 => Kind::Delay { most_ms: 20 + draw(2) % 1_500 },
        11 => Kind::Duplicate(50 + draw(2) % 400),
        12 | 13 => Kind::Crash(member),
        14 => Kind::Power(if draw(2) % 4 == 0 { (0..members).collect() } else { some(3) }),
        15 => {
            if draw(2) % 2 == 0 {
                Kind::Pause(member)
            } else {
                Kind::Stop(member)
            }
        }
        _ => Kind::SlowDisk { member, fsync_ms: 50 + draw(2) % 2_000 },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(kind: Kind) -> Active {
        let mut active = Active::default();
        active.begin(0, 0, kind);
        active
    }

    #[test]
    fn each_cut_cuts_what_its_name_says() {
        let split = active(Kind::Split(vec![vec![0], vec![1, 2]]));
        assert!(!split.passes(0, 1, 5) && !split.passes(2, 0, 5) && split.passes(1, 2, 5));
        let deaf = active(Kind::Deaf(1));
        assert!(!deaf.passes(0, 1, 5) && deaf.passes(1, 0, 5));
        let mute = active(Kind::Mute(1));
        assert!(mute.passes(0, 1, 5) && !mute.passes(1, 0, 5));
        let bridge = active(Kind::Bridge { left: vec![0], via: 1, right: vec![2] });
        assert!(!bridge.passes(0, 2, 5) && bridge.passes(0, 1, 5) && bridge.passes(2, 1, 5));
        let flap = active(Kind::Flap { member: 0, period_ms: 10 });
        assert!(!flap.passes(0, 1, 5 * MS) && flap.passes(0, 1, 15 * MS) && !flap.passes(1, 0, 25 * MS));
    }

    #[test]
    fn an_ended_fault_cuts_nothing() {
        let mut active = active(Kind::Isolate(0));
        active.end(0);
        assert!(active.passes(0, 1, 1));
    }

    #[test]
    fn what_stays_broken_for_ever_leaves_a_majority() {
        for seed in 0..300 {
            for fault in plan(Mix::new(seed), 5, 60_000) {
                assert!(fault.until.is_none_or(|until| until > fault.at));
            }
            let forever = plan(Mix::new(seed), 5, 60_000).iter().filter(|fault| fault.until.is_none()).count();
            assert!(forever <= 2, "seed {seed}");
        }
    }

    #[test]
    fn every_kind_comes_up() {
        let words: std::collections::BTreeSet<_> =
            (0..300).flat_map(|seed| plan(Mix::new(seed), 5, 60_000)).map(|fault| fault.kind.word()).collect();
        assert_eq!(words.len(), 16, "all but the frozen machine: {words:?}");
    }
}
