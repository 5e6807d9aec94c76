//! The text form of a fault, read and written.

use super::reader::{Mistake, Table, Value};
use super::units::{tell_duration, tell_permille};
use crate::fault::{Fate, Fault, Kind, MS, WORDS};

/// The number of a fault that has none yet: its place is its number.
pub(super) const UNNUMBERED: u64 = u64::MAX;
/// How old a snapshot is unless it is said.
const USUAL_AGE_MS: u64 = 10_000;

/// Reads one `[[fault]]` among that many sites.
pub(super) fn read(table: &mut Table<'_>, members: usize) -> Result<Fault, Mistake> {
    let at = table.require("at")?.duration()?;
    let length = table.get("for").map(|value| value.duration()).transpose()?;
    let forever = table.get("forever").map(|value| value.boolean()).transpose()?.unwrap_or(false);
    let number = table
        .get("number")
        .map(|value| value.count(0..=1_000_000))
        .transpose()?
        .map_or(UNNUMBERED, |number| number as u64);
    let disk = table.get("disk");
    let age_ms = table.get("age").map(|value| value.duration()).transpose()?.map(|age| age / MS);
    // A power cut says what becomes of the disks beside it.
    let keys: Vec<_> = WORDS.into_iter().filter(|word| !word.starts_with("power-")).collect();
    let (key, value) = table.one_of(&keys, "fault")?;
    let mut kind = kind(key, &value, members)?;
    match (&mut kind, disk) {
        (Kind::Power { disk, .. }, Some(value)) => *disk = fate(&value, age_ms)?,
        (_, Some(value)) => return Err(value.mistake("only `power` says what becomes of a `disk`".to_owned())),
        (Kind::Restore { age_ms: age, .. }, None) => *age = age_ms.unwrap_or(USUAL_AGE_MS),
        _ => {}
    }
    let until = match (length, forever, &kind) {
        (Some(_), true, _) => return Err(table.mistake("a fault is either `for` some time or `forever`".to_owned())),
        (Some(length), false, _) => Some(at + length),
        (None, false, Kind::Rotate(_)) => Some(at),
        (None, false, _) => return Err(table.mistake("[[fault]] needs `for`, or `forever = true`".to_owned())),
        (None, true, Kind::Jam(..)) => return Err(value.mistake("a jam must end; a `link` can stay cut".to_owned())),
        (None, true, Kind::Stall(_)) => return Err(value.mistake("a stall must end; a `split` can stay".to_owned())),
        (None, true, _) => None,
    };
    Ok(Fault { number, at, until, kind })
}

fn fate(value: &Value<'_>, age_ms: Option<u64>) -> Result<Fate, Mistake> {
    let stale = Fate::Stale(age_ms.unwrap_or(USUAL_AGE_MS));
    value.word(&[("clean", Fate::Clean), ("torn", Fate::Torn), ("wiped", Fate::Wiped), ("stale", stale)])
}

fn kind(key: &str, value: &Value<'_>, members: usize) -> Result<Kind, Mistake> {
    let member = || value.member(members);
    Ok(match key {
        "split" | "stall" => {
            let groups: Vec<_> = value.list()?.iter().map(|group| group.members(members)).collect::<Result<_, _>>()?;
            distinct(value, &groups)?;
            if key == "split" { Kind::Split(groups) } else { Kind::Stall(groups) }
        }
        "bridge" => value.inline(|table| {
            let (left, right) = (table.require("left")?.members(members)?, table.require("right")?.members(members)?);
            let via = table.require("via")?.member(members)?;
            distinct(value, &[left.clone(), vec![via], right.clone()])?;
            Ok(Kind::Bridge { left, via, right })
        })?,
        "ring" => Kind::Ring(value.members(members)?),
        "isolate" => Kind::Isolate(member()?),
        "deaf" => Kind::Deaf(member()?),
        "mute" => Kind::Mute(member()?),
        "crash" => Kind::Crash(member()?),
        "stop" => Kind::Stop(member()?),
        "pause" => Kind::Pause(member()?),
        "freeze" => Kind::Freeze(member()?),
        "disk-full" => Kind::DiskFull(member()?),
        "fsync-error" => Kind::FsyncError(member()?),
        "rotate" => Kind::Rotate(member()?),
        "one-way" => value.inline(|table| {
            let from = table.require("from")?.member(members)?;
            Ok(Kind::OneWay(from, table.require("to")?.member(members)?))
        })?,
        "link" => value.pair(members).map(|(a, b)| Kind::Link(a, b))?,
        "jam" => value.pair(members).map(|(a, b)| Kind::Jam(a, b))?,
        "flap" => value.inline(|table| {
            let member = table.require("member")?.member(members)?;
            Ok(Kind::Flap { member, period_ms: at_least_a_ms(&table.require("period")?)? })
        })?,
        "loss" => Kind::Loss(value.permille()?),
        "reorder" => Kind::Reorder(value.permille()?),
        "duplicate" => Kind::Duplicate(value.permille()?),
        "corrupt" => Kind::Corrupt(value.permille()?),
        "delay" => Kind::Delay { ms: at_least_a_ms(value)? },
        "jitter" => Kind::Jitter { most_ms: at_least_a_ms(value)? },
        "bandwidth" => Kind::Bandwidth { kbit: value.number(1..=1_000_000)? as u64 },
        "mtu" => Kind::Mtu { bytes: value.number(1..=65_535)? as u64 },
        "power" => Kind::Power { members: value.members(members)?, disk: Fate::Clean },
        "slow-cpu" => value.inline(|table| {
            let member = table.require("member")?.member(members)?;
            Ok(Kind::SlowCpu { member, event_ms: at_least_a_ms(&table.require("event")?)? })
        })?,
        "slow-disk" => value.inline(|table| {
            let member = table.require("member")?.member(members)?;
            Ok(Kind::SlowDisk { member, fsync_ms: at_least_a_ms(&table.require("fsync")?)? })
        })?,
        "wall-clock" => value.inline(|table| {
            let member = table.require("member")?.member(members)?;
            Ok(Kind::WallClock { member, by_ms: table.require("by")?.signed_ms()? })
        })?,
        "restore" => Kind::Restore { member: member()?, age_ms: USUAL_AGE_MS },
        "clone" => value.inline(|table| {
            let member = table.require("member")?.member(members)?;
            Ok(Kind::Clone { member, on: table.require("on")?.member(members)? })
        })?,
        _ => value.inline(|table| {
            let joiner = table.require("joiner")?.member(members)?;
            let via = table.require("via")?.member(members)?;
            Ok(Kind::JoinCrash { joiner, via, step: table.require("step")?.number(0..=9)? as u64 })
        })?,
    })
}

fn at_least_a_ms(value: &Value<'_>) -> Result<u64, Mistake> {
    let nanos = value.duration()?;
    if nanos < MS { Err(value.mistake("at least a millisecond".to_owned())) } else { Ok(nanos / MS) }
}

fn distinct(value: &Value<'_>, groups: &[Vec<usize>]) -> Result<(), Mistake> {
    let mut all: Vec<_> = groups.concat();
    all.sort_unstable();
    match all.windows(2).find(|two| two[0] == two[1]) {
        Some(twice) => Err(value.mistake(format!("m{} is on two sides", twice[0]))),
        None => Ok(()),
    }
}

/// Writes one `[[fault]]`.
pub(super) fn write(fault: &Fault) -> String {
    let mut text = format!("[[fault]]\nnumber = {}\nat = \"{}\"\n", fault.number, tell_duration(fault.at));
    match fault.until {
        Some(until) => text.push_str(&format!("for = \"{}\"\n", tell_duration(until - fault.at))),
        None => text.push_str("forever = true\n"),
    }
    let (key, value) = written(&fault.kind);
    text.push_str(&format!("{key} = {value}\n"));
    match &fault.kind {
        Kind::Power { disk: Fate::Torn, .. } => text.push_str("disk = \"torn\"\n"),
        Kind::Power { disk: Fate::Wiped, .. } => text.push_str("disk = \"wiped\"\n"),
        Kind::Power { disk: Fate::Stale(age_ms), .. } => {
            text.push_str(&format!("disk = \"stale\"\nage = \"{}\"\n", tell_duration(age_ms * MS)));
        }
        Kind::Restore { age_ms, .. } => text.push_str(&format!("age = \"{}\"\n", tell_duration(age_ms * MS))),
        _ => {}
    }
    text
}

fn written(kind: &Kind) -> (&'static str, String) {
    let ms = |ms: &u64| format!("\"{}\"", tell_duration(ms * MS));
    let share = |permille: &u64| format!("\"{}\"", tell_permille(*permille));
    let value = match kind {
        Kind::Split(groups) | Kind::Stall(groups) => {
            format!("[{}]", groups.iter().map(|group| list(group)).collect::<Vec<_>>().join(", "))
        }
        Kind::Bridge { left, via, right } => {
            format!("{{ left = {}, via = \"m{via}\", right = {} }}", list(left), list(right))
        }
        Kind::Ring(members) => list(members),
        Kind::Power { members, .. } => return ("power", list(members)),
        Kind::Isolate(at)
        | Kind::Deaf(at)
        | Kind::Mute(at)
        | Kind::Crash(at)
        | Kind::Stop(at)
        | Kind::Pause(at)
        | Kind::Freeze(at)
        | Kind::DiskFull(at)
        | Kind::FsyncError(at)
        | Kind::Rotate(at)
        | Kind::Restore { member: at, .. } => format!("\"m{at}\""),
        Kind::OneWay(from, to) => format!("{{ from = \"m{from}\", to = \"m{to}\" }}"),
        Kind::Link(a, b) | Kind::Jam(a, b) => list(&[*a, *b]),
        Kind::Flap { member, period_ms } => format!("{{ member = \"m{member}\", period = {} }}", ms(period_ms)),
        Kind::Loss(of) | Kind::Reorder(of) | Kind::Duplicate(of) | Kind::Corrupt(of) => share(of),
        Kind::Delay { ms: by } | Kind::Jitter { most_ms: by } => ms(by),
        Kind::Bandwidth { kbit } => kbit.to_string(),
        Kind::Mtu { bytes } => bytes.to_string(),
        Kind::SlowCpu { member, event_ms } => format!("{{ member = \"m{member}\", event = {} }}", ms(event_ms)),
        Kind::SlowDisk { member, fsync_ms } => format!("{{ member = \"m{member}\", fsync = {} }}", ms(fsync_ms)),
        Kind::WallClock { member, by_ms } => {
            let sign = if *by_ms < 0 { '-' } else { '+' };
            let by = tell_duration(by_ms.unsigned_abs() * MS);
            format!("{{ member = \"m{member}\", by = \"{sign}{by}\" }}")
        }
        Kind::Clone { member, on } => format!("{{ member = \"m{member}\", on = \"m{on}\" }}"),
        Kind::JoinCrash { joiner, via, step } => {
            format!("{{ joiner = \"m{joiner}\", via = \"m{via}\", step = {step} }}")
        }
    };
    (kind.word(), value)
}

/// Writes members as a list.
pub(super) fn list(members: &[usize]) -> String {
    let names: Vec<_> = members.iter().map(|member| format!("\"m{member}\"")).collect();
    format!("[{}]", names.join(", "))
}
