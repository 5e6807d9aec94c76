//! Reads a scenario: its sections, what each key may be, and what it is when it is not said.

use collective::proto::planted::Bug;
use collective::proto::roster::Timing;

use super::reader::{Mistake, Table, Value};
use super::{Load, Random, Scenario, faults, steps};
use crate::check::Rule;
use crate::fault::{FORBIDDEN, MS, WORDS};
use crate::step::Bound;

/// The most members that one run simulates at this level.
const MEMBERS_MAX: usize = 1_000;

/// Reads everything below the top level of a text.
pub(crate) fn scenario(top: &mut Table<'_>) -> Result<Scenario, Mistake> {
    let name = top.require("name")?;
    // Cases are files of that name.
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    if name.string()?.is_empty() || !name.string()?.chars().all(is_plain) {
        return Err(name.mistake("`name` is a word of letters, digits, `-`, `_` and `.`".to_owned()));
    }
    let mut scenario = Scenario::new(name.string()?, 5);
    scenario.about = top.require("about")?.string()?.to_owned();
    top.section("mesh", |table| mesh(table, &mut scenario))?;
    top.section("net", |table| net(table, &mut scenario))?;
    top.section("disk", |table| disk(table, &mut scenario))?;
    top.section("clock", |table| clock(table, &mut scenario))?;
    top.section("workload", |table| workload(table, &mut scenario))?;
    scenario.random = top.section("random", random)?;
    if scenario.random.is_some() && scenario.joined < 2 {
        return Err(top.mistake("random faults need two members or more".to_owned()));
    }
    let members = scenario.members;
    scenario.faults = top.sections("fault", |table| faults::read(table, members))?;
    scenario.faults.sort_by_key(|fault| fault.at);
    for (place, fault) in scenario.faults.iter_mut().enumerate() {
        if fault.number == faults::UNNUMBERED {
            fault.number = place as u64;
        }
    }
    scenario.steps = top.sections("step", |table| steps::read(table, members))?;
    scenario.steps.sort_by_key(|step| step.at_ms);
    top.section("expect", |table| expect(table, &mut scenario))?;
    Ok(scenario)
}

fn mesh(table: &mut Table<'_>, scenario: &mut Scenario) -> Result<(), Mistake> {
    if let Some(value) = table.get("members") {
        scenario.joined = value.count(1..=MEMBERS_MAX)?;
        scenario.members = scenario.joined;
    }
    if let Some(value) = table.get("spare") {
        scenario.members = scenario.joined + value.count(0..=MEMBERS_MAX)?;
    }
    if let Some(value) = table.get("nodes") {
        scenario.nodes = value.count(1..=100_000)?;
    }
    if let Some(value) = table.get("restored") {
        scenario.restored = Some(value.count(1..=scenario.joined)?);
        if scenario.members > scenario.joined {
            return Err(value.mistake("who is restored needs no spare machines".to_owned()));
        }
    }
    if let Some(value) = table.get("candidates") {
        scenario.candidates =
            value.list()?.iter().map(|list| list.members(scenario.joined)).collect::<Result<_, _>>()?;
        if scenario.candidates.iter().any(Vec::is_empty) {
            return Err(value.mistake("each list of `candidates` must name somebody".to_owned()));
        }
    }
    if let Some(value) = table.get("unlinked") {
        let pair = |pair: &Value<'_>| match pair.members(scenario.members)?.as_slice() {
            // Everybody is let in by the first.
            [0, _] | [_, 0] => Err(pair.mistake("all join through m0, so it is linked with everybody".to_owned())),
            [a, b] => Ok((*a, *b)),
            _ => Err(pair.mistake("`unlinked` is a list of pairs such as [[\"m1\", \"m2\"]]".to_owned())),
        };
        scenario.unlinked = value.list()?.iter().map(pair).collect::<Result<_, _>>()?;
    }
    if let Some(value) = table.get("profile") {
        scenario.timing = value.word(&[("local", Timing::LOCAL), ("lan", Timing::LAN), ("wan", Timing::WAN)])?;
    }
    if let Some(value) = table.get("lease") {
        let allowed = 200..=600_000;
        let ms = value.duration()? / MS;
        if !allowed.contains(&ms) {
            return Err(value.mistake("`lease` must be from \"200ms\" to \"10m\"".to_owned()));
        }
        scenario.timing.lease_ms = ms as u32;
    }
    if let Some(value) = table.get("margin") {
        scenario.timing.margin_permille = value.permille()? as u16;
    }
    Ok(())
}

fn net(table: &mut Table<'_>, scenario: &mut Scenario) -> Result<(), Mistake> {
    if let Some(value) = table.get("delay") {
        scenario.network.delay = value.durations()?;
    }
    if let Some(value) = table.get("loss") {
        scenario.network.loss = value.permille()?;
    }
    Ok(())
}

fn disk(table: &mut Table<'_>, scenario: &mut Scenario) -> Result<(), Mistake> {
    if let Some(value) = table.get("fsync") {
        scenario.fsync = value.durations()?;
    }
    Ok(())
}

fn clock(table: &mut Table<'_>, scenario: &mut Scenario) -> Result<(), Mistake> {
    let Some(value) = table.get("drift-ppm") else { return Ok(()) };
    for (number, drift) in value.list()?.into_iter().enumerate() {
        if number >= scenario.members {
            return Err(drift.mistake(format!("this mesh has {} members", scenario.members)));
        }
        scenario.drift_ppm.push(drift.number(-25_000..=25_000)?);
    }
    Ok(())
}

fn workload(table: &mut Table<'_>, scenario: &mut Scenario) -> Result<(), Mistake> {
    let load: &mut Load = &mut scenario.load;
    if let Some(value) = table.get("for") {
        scenario.window_ms = value.duration()? / MS;
    }
    if let Some(value) = table.get("every") {
        load.every_ms = value.duration()? / MS;
    }
    if let Some(value) = table.get("moves") {
        load.moves = value.boolean()?;
    }
    if let Some(value) = table.get("churn") {
        load.churn = value.boolean()?;
    }
    if let Some(value) = table.get("actions-every") {
        load.actions_every_ms = value.duration()? / MS;
    }
    Ok(())
}

fn random(table: &mut Table<'_>) -> Result<Random, Mistake> {
    let mut random = Random::default();
    if let Some(value) = table.get("kinds")
        && value.string() != Ok("all")
    {
        let words: Vec<_> = WORDS.into_iter().filter(|word| *word != FORBIDDEN).map(|word| (word, word)).collect();
        random.kinds = value.list()?.iter().map(|kind| kind.word(&words)).collect::<Result<_, _>>()?;
        if random.kinds.is_empty() {
            return Err(value.mistake("`kinds` must name at least one".to_owned()));
        }
    }
    if let Some(value) = table.get("count") {
        let text = value.string()?;
        let both = text.split_once("..").and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
        random.count = both
            .filter(|(low, high)| low <= high && *high <= 1_000)
            .ok_or_else(|| value.mistake("`count` must be a range such as \"3..12\"".to_owned()))?;
    }
    for (key, flag) in [("swarm", &mut random.swarm), ("forever", &mut random.forever), ("churn", &mut random.churn)] {
        if let Some(value) = table.get(key) {
            *flag = value.boolean()?;
        }
    }
    Ok(random)
}

fn expect(table: &mut Table<'_>, scenario: &mut Scenario) -> Result<(), Mistake> {
    if let Some(value) = table.get("converge") {
        scenario.converge_ms = value.duration()? / MS;
    }
    if let Some(value) = table.get("seen") {
        scenario.seen = seen(&value)?;
    }
    if let Some(value) = table.get("violates") {
        let rules: Vec<_> = Rule::ALL.into_iter().map(|rule| (rule.word(), rule)).collect();
        scenario.violates = Some(value.word(&rules)?);
    }
    if let Some(value) = table.get("planted") {
        let bugs: Vec<_> = Bug::ALL.iter().map(|bug| (bug.name(), *bug)).collect();
        scenario.planted = Some(value.word(&bugs)?);
    }
    Ok(())
}

/// Reads how often things must have been seen: `{ refused = 0, acknowledged = "10.." }`.
pub(super) fn seen(value: &Value<'_>) -> Result<Vec<(String, Bound)>, Mistake> {
    value.pairs()?.into_iter().map(|(what, value)| Ok((what, bound(&value)?))).collect()
}

fn bound(value: &Value<'_>) -> Result<Bound, Mistake> {
    if value.is_number() {
        let exact = value.number(0..=i64::MAX)? as u64;
        return Ok(Bound { least: exact, most: exact });
    }
    let allowed = || value.mistake("a number, or a range such as \"1..\", \"..9\" or \"1..9\"".to_owned());
    let (least, most) = value.string()?.split_once("..").ok_or_else(allowed)?;
    let number = |text: &str, otherwise: u64| {
        if text.is_empty() { Ok(otherwise) } else { text.parse().map_err(|_| allowed()) }
    };
    Ok(Bound { least: number(least, 0)?, most: number(most, u64::MAX)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "name = \"x\"\nabout = \"y\"\n[mesh]\nmembers = 3\n";

    fn wrong(more: &str) -> String {
        Scenario::parse(&format!("{SMALL}{more}")).expect_err("a mistake").to_string()
    }

    #[test]
    fn what_is_not_said_has_its_usual_value() {
        let scenario = Scenario::parse(SMALL).expect("sound");
        let usual = Scenario { about: "y".to_owned(), ..Scenario::new("x", 3) };
        assert_eq!(scenario, usual);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        assert_eq!(
            wrong("[[fault]]\nat = \"1s\"\nfor = \"2s\"\nisolate = \"m3\""),
            "8:11: there is no member \"m3\"; this mesh has \"m0\" to \"m2\""
        );
        assert_eq!(wrong("[[fault]]\nat = \"1s\"\nfor = 2\nisolate = \"m1\"").split(": ").next(), Some("7:7"));
        assert!(wrong("[[fault]]\nat = \"1s\"\nfor = \"2s\"\nisolat = \"m1\"").contains("did you mean `isolate`?"));
        assert!(wrong("[[fault]]\nat = \"1s\"\nfor = \"2s\"").contains("names no fault"));
        let two = wrong("[[fault]]\nat = \"1s\"\nfor = \"2s\"\ncrash = \"m1\"\ndeaf = \"m2\"");
        assert!(two.contains("two kinds of fault"), "{two}");
        assert!(wrong("[random]\nkinds = [\"crash\", \"freeze\"]").contains("is one of"));
        assert!(wrong("[expect]\nseen = { refused = \"many\" }").starts_with("6:20: "));
        assert!(wrong("candidates = [[\"m1\"], [\"m7\"]]").starts_with("5:24: there is no member \"m7\""));
        assert!(wrong("candidates = [[]]").starts_with("5:14: "));
        assert!(wrong("unlinked = [[\"m1\", \"m2\"], [\"m0\", \"m2\"]]").starts_with("5:27: all join through m0"));
        assert!(wrong("unlinked = [[\"m1\"]]").starts_with("5:13: "));
        assert!(wrong("[clock]\ndrift-ppm = [0, 99999]").starts_with("6:17: "));
    }
}
