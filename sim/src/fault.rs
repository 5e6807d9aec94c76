//! Faults: what is broken, where, from when to when.

mod plan;

use std::fmt;

pub(crate) use plan::plan;

use crate::scenario::units::{tell_duration, tell_permille};

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
    /// Each hears a majority, its neighbours in this ring, and no two the same one.
    Ring(Vec<usize>),
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
    /// What the two say to each other waits, and arrives when the jam clears.
    Jam(usize, usize),
    /// Documents go between members of the same group only; others' wait, and arrive at the end. Nothing else waits.
    Stall(Vec<Vec<usize>>),
    /// That many of a thousand datagrams are lost, and as many stream packets are late.
    Loss(u64),
    /// Everything takes that much longer.
    Delay { ms: u64 },
    /// Everything takes up to that much longer, each packet its own.
    Jitter { most_ms: u64 },
    /// That many of a thousand datagrams are held back, so that later ones overtake them.
    Reorder(u64),
    /// That many of a thousand datagrams come twice.
    Duplicate(u64),
    /// That many of a thousand packets are damaged on the way.
    Corrupt(u64),
    /// Each way between two members carries that many kilobits a second.
    Bandwidth { kbit: u64 },
    /// Datagrams of more bytes vanish without a word: the small ones that say all is well still pass.
    Mtu { bytes: u64 },
    /// The process is killed, and started again at the end.
    Crash(usize),
    /// The machines lose power: what is not durable is gone, and nobody is told.
    Power { members: Vec<usize>, disk: Fate },
    /// The process is stopped cleanly, and started again at the end.
    Stop(usize),
    /// The process does nothing, while its clock runs on.
    Pause(usize),
    /// The machine with its clock stands still. Breaks what the leases assume.
    Freeze(usize),
    /// Every event takes the process that long.
    SlowCpu { member: usize, event_ms: u64 },
    /// Every save takes that long.
    SlowDisk { member: usize, fsync_ms: u64 },
    /// Nothing more can be stored.
    DiskFull(usize),
    /// The disk cannot say what is durable: the process must end rather than go on.
    FsyncError(usize),
    /// The wall clock is set that far ahead or back, and set right at the end.
    WallClock { member: usize, by_ms: i64 },
    /// The process is stopped and its disk replaced by a backup that old; started again at the end.
    Restore { member: usize, age_ms: u64 },
    /// A copy of the member, with its disk and its key, runs on a spare site.
    Clone { member: usize, on: usize },
    /// The member takes a new key into use.
    Rotate(usize),
    /// The joiner is invited anew through the member, which is killed at that step of the join.
    JoinCrash { joiner: usize, via: usize, step: u64 },
}

/// What a machine that lost its power finds on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// What was durable.
    Clean,
    /// What was durable, and some of what was on its way; a half-written save counts for nothing.
    Torn,
    /// Nothing: it must be invited again.
    Wiped,
    /// A snapshot, taken that many milliseconds before.
    Stale(u64),
}

/// The kinds by the words that people use for them. A power cut has one for each fate of the disks.
pub(crate) const WORDS: [&str; 36] = [
    "split",
    "isolate",
    "bridge",
    "ring",
    "deaf",
    "mute",
    "one-way",
    "link",
    "flap",
    "jam",
    "stall",
    "loss",
    "delay",
    "jitter",
    "reorder",
    "duplicate",
    "corrupt",
    "crash",
    "power",
    "power-torn",
    "power-wiped",
    "power-stale",
    "stop",
    "pause",
    "freeze",
    "slow-cpu",
    "slow-disk",
    "disk-full",
    "fsync-error",
    "wall-clock",
    "restore",
    "clone",
    "rotate",
    "join-crash",
    "bandwidth",
    "mtu",
];

/// What breaks an assumption of the leases, so that no random plan draws it.
pub(crate) const FORBIDDEN: &str = "freeze";

impl Kind {
    /// Returns the word that the coverage counts it under.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::Split(_) => "split",
            Self::Isolate(_) => "isolate",
            Self::Bridge { .. } => "bridge",
            Self::Ring(_) => "ring",
            Self::Deaf(_) => "deaf",
            Self::Mute(_) => "mute",
            Self::OneWay(..) => "one-way",
            Self::Link(..) => "link",
            Self::Flap { .. } => "flap",
            Self::Jam(..) => "jam",
            Self::Stall(_) => "stall",
            Self::Loss(_) => "loss",
            Self::Delay { .. } => "delay",
            Self::Jitter { .. } => "jitter",
            Self::Reorder(_) => "reorder",
            Self::Duplicate(_) => "duplicate",
            Self::Corrupt(_) => "corrupt",
            Self::Crash(_) => "crash",
            Self::Power { disk: Fate::Clean, .. } => "power",
            Self::Power { disk: Fate::Torn, .. } => "power-torn",
            Self::Power { disk: Fate::Wiped, .. } => "power-wiped",
            Self::Power { disk: Fate::Stale(_), .. } => "power-stale",
            Self::Stop(_) => "stop",
            Self::Pause(_) => "pause",
            Self::Freeze(_) => "freeze",
            Self::SlowCpu { .. } => "slow-cpu",
            Self::SlowDisk { .. } => "slow-disk",
            Self::DiskFull(_) => "disk-full",
            Self::FsyncError(_) => "fsync-error",
            Self::WallClock { .. } => "wall-clock",
            Self::Restore { .. } => "restore",
            Self::Clone { .. } => "clone",
            Self::Rotate(_) => "rotate",
            Self::JoinCrash { .. } => "join-crash",
            Self::Bandwidth { .. } => "bandwidth",
            Self::Mtu { .. } => "mtu",
        }
    }

    /// Returns whether that member cannot be counted on while it holds.
    pub(crate) fn breaks(&self, at: usize) -> bool {
        match self {
            Self::Isolate(member) | Self::Deaf(member) | Self::Mute(member) => *member == at,
            Self::Crash(member) | Self::Stop(member) | Self::Pause(member) | Self::Freeze(member) => *member == at,
            Self::DiskFull(member) | Self::FsyncError(member) => *member == at,
            Self::Power { members, .. } => members.contains(&at),
            _ => false,
        }
    }

    /// Returns the members whose disk it takes, or puts back into the past: they must be invited again.
    pub(crate) fn forgets(&self) -> Vec<usize> {
        match self {
            Self::Power { members, disk: Fate::Wiped | Fate::Stale(_) } => members.clone(),
            // R9: who was cloned gets no votes either.
            Self::Restore { member, .. } | Self::JoinCrash { joiner: member, .. } | Self::Clone { member, .. } => {
                vec![*member]
            }
            _ => Vec::new(),
        }
    }

    /// Returns whether the fault needs the members' disks as they were before.
    pub(crate) const fn needs_history(&self) -> bool {
        matches!(self, Self::Clone { .. } | Self::Restore { .. } | Self::Power { disk: Fate::Stale(_), .. })
    }

    /// Returns whether it keeps what the first says from the second at that time; `since` is when it began.
    pub(crate) fn cuts(&self, from: usize, to: usize, since: u64, now: u64) -> bool {
        let touches = |member: usize| from == member || to == member;
        match self {
            Self::Split(groups) => are_apart(groups, from, to),
            Self::Isolate(member) => touches(*member),
            Self::Bridge { left, right, .. } => {
                (left.contains(&from) && right.contains(&to)) || (right.contains(&from) && left.contains(&to))
            }
            Self::Ring(order) => ring_distance(order, from, to).is_some_and(|far| far > (order.len() / 2).div_ceil(2)),
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

    /// Returns the fault as one line of words, such as `split m0 m1 | m2`.
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        match self {
            Self::Split(groups) | Self::Stall(groups) => {
                let groups: Vec<_> = groups.iter().map(|group| names(group)).collect();
                write!(f, " {}", groups.join(" | "))
            }
            Self::Bridge { left, via, right } => write!(f, " {} | m{via} | {}", names(left), names(right)),
            Self::Ring(members) | Self::Power { members, disk: Fate::Clean | Fate::Torn | Fate::Wiped } => {
                write!(f, " {}", names(members))
            }
            Self::Power { members, disk: Fate::Stale(age_ms) } => {
                write!(f, " {}, {} old", names(members), tell_duration(age_ms * MS))
            }
            Self::Isolate(member)
            | Self::Deaf(member)
            | Self::Mute(member)
            | Self::Crash(member)
            | Self::Stop(member)
            | Self::Pause(member)
            | Self::Freeze(member)
            | Self::DiskFull(member)
            | Self::FsyncError(member)
            | Self::Rotate(member) => write!(f, " m{member}"),
            Self::OneWay(from, to) => write!(f, " from m{from} to m{to}"),
            Self::Link(a, b) | Self::Jam(a, b) => write!(f, " m{a} m{b}"),
            Self::Flap { member, period_ms } => write!(f, " m{member} every {}", tell_duration(period_ms * MS)),
            Self::Loss(share) | Self::Reorder(share) | Self::Duplicate(share) | Self::Corrupt(share) => {
                write!(f, " {}", tell_permille(*share))
            }
            Self::Delay { ms } => write!(f, " {}", tell_duration(ms * MS)),
            Self::Jitter { most_ms } => write!(f, " up to {}", tell_duration(most_ms * MS)),
            Self::SlowCpu { member, event_ms } => write!(f, " m{member}, {} an event", tell_duration(event_ms * MS)),
            Self::SlowDisk { member, fsync_ms } => write!(f, " m{member}, {} a save", tell_duration(fsync_ms * MS)),
            Self::WallClock { member, by_ms } => {
                let sign = if *by_ms < 0 { '-' } else { '+' };
                write!(f, " m{member} {sign}{}", tell_duration(by_ms.unsigned_abs() * MS))
            }
            Self::Restore { member, age_ms } => write!(f, " m{member}, {} old", tell_duration(age_ms * MS)),
            Self::Clone { member, on } => write!(f, " m{member} on m{on}"),
            Self::Bandwidth { kbit } => write!(f, " {kbit} kbit/s"),
            Self::Mtu { bytes } => write!(f, " {bytes} bytes"),
            Self::JoinCrash { joiner, via, step } => write!(f, " of m{via}, letting m{joiner} in, at step {step}"),
        }
    }
}

fn names(members: &[usize]) -> String {
    members.iter().map(|member| format!("m{member}")).collect::<Vec<_>>().join(" ")
}

/// Returns how many steps apart two members of a ring are.
fn ring_distance(order: &[usize], a: usize, b: usize) -> Option<usize> {
    let place = |member| order.iter().position(|other| *other == member);
    let apart = place(a)?.abs_diff(place(b)?);
    Some(apart.min(order.len() - apart))
}

/// One fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What its chance is drawn by; stays when other faults are taken out.
    pub(crate) number: u64,
    /// When it begins, in true nanoseconds after the members are seated.
    pub(crate) at: u64,
    /// When it ends; never, if not at all.
    pub(crate) until: Option<u64>,
    pub(crate) kind: Kind,
}

impl Fault {
    /// Makes a fault from whole milliseconds.
    pub(crate) const fn new(at_ms: u64, for_ms: u64, kind: Kind) -> Self {
        Self { number: 0, at: at_ms * MS, until: Some((at_ms + for_ms) * MS), kind }
    }

    /// Makes a fault that stays.
    pub(crate) const fn forever(at_ms: u64, kind: Kind) -> Self {
        Self { number: 0, at: at_ms * MS, until: None, kind }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tell(f)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}s ", self.at as f64 / 1e9)?;
        match self.until {
            Some(until) => write!(f, "for {:.3}s ", (until - self.at) as f64 / 1e9)?,
            None => f.write_str("for ever ")?,
        }
        self.kind.fmt(f)
    }
}

/// The faults that hold right now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Active(Vec<Holding>);

#[derive(Clone, Debug)]
struct Holding {
    number: usize,
    since: u64,
    until: Option<u64>,
    kind: Kind,
}

fn are_apart(groups: &[Vec<usize>], a: usize, b: usize) -> bool {
    !groups.iter().any(|group| group.contains(&a) && group.contains(&b))
}

impl Active {
    /// Makes the faults of a network in which there is no way between these pairs, ever.
    pub(crate) fn without(links: &[(usize, usize)]) -> Self {
        let holding =
            |(a, b): &(usize, usize)| Holding { number: usize::MAX, since: 0, until: None, kind: Kind::Link(*a, *b) };
        Self(links.iter().map(holding).collect())
    }

    pub(crate) fn begin(&mut self, number: usize, since: u64, until: Option<u64>, kind: Kind) {
        self.0.push(Holding { number, since, until, kind });
    }

    pub(crate) fn end(&mut self, number: usize) {
        self.0.retain(|holding| holding.number != number);
    }

    /// Returns whether no fault holds.
    pub(crate) fn is_nothing(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether what the first says reaches the second.
    pub(crate) fn passes(&self, from: usize, to: usize, now: u64) -> bool {
        !self.0.iter().any(|holding| holding.kind.cuts(from, to, holding.since, now))
    }

    /// Returns when what the first says to the second comes through, while it is jammed.
    pub(crate) fn jam(&self, from: usize, to: usize) -> Option<u64> {
        let until = |holding: &Holding| match &holding.kind {
            Kind::Jam(a, b) if (*a, *b) == (from, to) || (*b, *a) == (from, to) => holding.until,
            _ => None,
        };
        self.0.iter().filter_map(until).max()
    }

    /// Returns when the documents that the first sends the second come through, while they are stalled.
    pub(crate) fn stall(&self, from: usize, to: usize) -> Option<u64> {
        let until = |holding: &Holding| match &holding.kind {
            Kind::Stall(groups) if are_apart(groups, from, to) => holding.until,
            _ => None,
        };
        self.0.iter().filter_map(until).max()
    }

    fn highest(&self, of: impl Fn(&Kind) -> Option<u64>) -> u64 {
        self.0.iter().filter_map(|holding| of(&holding.kind)).max().unwrap_or(0)
    }

    fn lowest(&self, of: impl Fn(&Kind) -> Option<u64>) -> Option<u64> {
        self.0.iter().filter_map(|holding| of(&holding.kind)).min()
    }

    /// Returns how many of a thousand datagrams are lost.
    pub(crate) fn loss(&self) -> u64 {
        self.highest(|kind| if let Kind::Loss(permille) = kind { Some(*permille) } else { None })
    }

    /// Returns how many of a thousand datagrams come twice.
    pub(crate) fn duplicates(&self) -> u64 {
        self.highest(|kind| if let Kind::Duplicate(permille) = kind { Some(*permille) } else { None })
    }

    /// Returns how many of a thousand datagrams are held back.
    pub(crate) fn reordered(&self) -> u64 {
        self.highest(|kind| if let Kind::Reorder(permille) = kind { Some(*permille) } else { None })
    }

    /// Returns how many of a thousand packets are damaged.
    pub(crate) fn corrupted(&self) -> u64 {
        self.highest(|kind| if let Kind::Corrupt(permille) = kind { Some(*permille) } else { None })
    }

    /// Returns how many kilobits a second each way carries, while that is few.
    pub(crate) fn bandwidth_kbit(&self) -> Option<u64> {
        self.lowest(|kind| if let Kind::Bandwidth { kbit } = kind { Some(*kbit) } else { None })
    }

    /// Returns whether a datagram of so many bytes is larger than what passes.
    pub(crate) fn is_too_large(&self, bytes: usize) -> bool {
        let most = self.lowest(|kind| if let Kind::Mtu { bytes } = kind { Some(*bytes) } else { None });
        most.is_some_and(|most| bytes as u64 > most)
    }

    /// Returns by how much everything is late, in milliseconds.
    pub(crate) fn delay_ms(&self) -> u64 {
        self.highest(|kind| if let Kind::Delay { ms } = kind { Some(*ms) } else { None })
    }

    /// Returns by how much more everything may be late, in milliseconds.
    pub(crate) fn jitter_ms(&self) -> u64 {
        self.highest(|kind| if let Kind::Jitter { most_ms } = kind { Some(*most_ms) } else { None })
    }

    /// Returns how long a save of a member takes, when its disk is slow.
    pub(crate) fn fsync_ms(&self, of: usize) -> Option<u64> {
        let slow = self.highest(|kind| match kind {
            Kind::SlowDisk { member, fsync_ms } if *member == of => Some(*fsync_ms),
            _ => None,
        });
        (slow > 0).then_some(slow)
    }

    /// Returns how long each event takes a member, when its processor is slow.
    pub(crate) fn event_ms(&self, of: usize) -> Option<u64> {
        let slow = self.highest(|kind| match kind {
            Kind::SlowCpu { member, event_ms } if *member == of => Some(*event_ms),
            _ => None,
        });
        (slow > 0).then_some(slow)
    }

    /// Returns whether nothing more fits on a member's disk.
    pub(crate) fn is_disk_full(&self, of: usize) -> bool {
        self.0.iter().any(|holding| holding.kind == Kind::DiskFull(of))
    }

    /// Returns whether a member's disk cannot make anything durable any more.
    pub(crate) fn is_disk_broken(&self, of: usize) -> bool {
        self.0.iter().any(|holding| holding.kind == Kind::FsyncError(of))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(kind: Kind) -> Active {
        let mut active = Active::default();
        active.begin(0, 0, None, kind);
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
    fn a_stall_holds_up_documents_between_groups_and_nothing_else() {
        let mut stall = Active::default();
        stall.begin(0, 0, Some(9), Kind::Stall(vec![vec![0], vec![1, 2]]));
        assert_eq!([stall.stall(0, 1), stall.stall(2, 0), stall.stall(1, 2)], [Some(9), Some(9), None]);
        assert!(stall.passes(0, 1, 5) && stall.jam(0, 1).is_none());
    }

    #[test]
    fn in_a_ring_each_hears_another_majority() {
        let ring = active(Kind::Ring(vec![0, 2, 4, 1, 3]));
        let heard = |at: usize| (0..5).filter(|from| ring.passes(*from, at, 1)).collect::<Vec<_>>();
        assert_eq!([heard(0), heard(2), heard(4)], [vec![0, 2, 3], vec![0, 2, 4], vec![1, 2, 4]]);
    }

    #[test]
    fn where_there_never_was_a_way_nothing_passes() {
        let active = Active::without(&[(1, 2)]);
        assert!(!active.passes(1, 2, 0) && !active.passes(2, 1, 9) && active.passes(0, 1, 9) && active.passes(2, 0, 9));
    }

    #[test]
    fn an_ended_fault_cuts_nothing() {
        let mut active = active(Kind::Isolate(0));
        active.end(0);
        assert!(active.passes(0, 1, 1));
    }
}
