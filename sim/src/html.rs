//! The picture of a run: one page with everything in it, drawn from the trace alone.
//!
//! The page carries intervals, not events: who was what from when to when. It draws them, and says the same in words.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::trace::{Head, Line, Seen, tell};

/// The page, with places for what differs from run to run.
const PAGE: &str = include_str!("html/page.html");
const STYLE: &str = include_str!("html/style.css");
const SCRIPT: &str = include_str!("html/script.js");

/// Faults that keep members apart; they shade the lanes that they cut.
const CUTS: [&str; 11] =
    ["split", "isolate", "bridge", "ring", "deaf", "mute", "one-way", "link", "flap", "jam", "partition"];

/// Makes the page of a trace.
pub(crate) fn page(head: &Head, lines: &[Line]) -> String {
    let picture = Picture::of(head, lines);
    let words: String = tell(lines).iter().map(|line| format!("{}\n", escape(line))).collect();
    let members = head.members.len();
    let verdict = match picture.violations.first() {
        Some((at, what)) => format!("violated at {at:.3} s: {what}"),
        None => "no violation".to_owned(),
    };
    // Whatever names a script's end inside of data would end it.
    let data = picture.json(head).to_string().replace('<', "\\u003c");
    let summary = format!("seed {}, {members} members, {:.1} s, {verdict}", head.seed, picture.end);
    PAGE.replace("{{title}}", &escape(&head.scenario))
        .replace("{{summary}}", &escape(&summary))
        .replace("{{style}}", STYLE)
        .replace("{{words}}", &words)
        .replace("{{script}}", SCRIPT)
        .replace("{{data}}", &data)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What is drawn; times are seconds after load and faults began.
#[derive(Debug, Default)]
struct Picture {
    end: f64,
    /// For each member what it was, from when to when.
    lanes: Vec<Vec<(f64, f64, &'static str)>>,
    /// For each node who acted for it, from when to when, and until when its lease held.
    nodes: BTreeMap<String, Vec<(f64, f64, usize, f64)>>,
    faults: Vec<FaultBar>,
    violations: Vec<(f64, String)>,
}

#[derive(Debug)]
struct FaultBar {
    from: f64,
    to: f64,
    what: String,
    /// The members whose lanes it cuts off.
    cut: Vec<usize>,
}

/// What a member is on the way through the trace.
#[derive(Clone, Copy, Debug)]
struct Member {
    is_up: bool,
    is_paused: bool,
    standing: &'static str,
    /// Since when it is what it is.
    since: f64,
}

impl Member {
    fn word(self) -> &'static str {
        match self {
            Self { is_up: false, .. } => "down",
            Self { is_paused: true, .. } => "paused",
            Self { standing, .. } => standing,
        }
    }
}

impl Picture {
    fn of(head: &Head, lines: &[Line]) -> Self {
        let begin = lines.iter().find(|line| line.seen == Seen::Begin).map_or(0.0, |line| line.t);
        let last = lines.last().map_or(begin, |line| line.t);
        let mut picture = Self { lanes: vec![Vec::new(); head.members.len()], ..Self::default() };
        let down = Member { is_up: false, is_paused: false, standing: "isolated", since: 0.0 };
        let mut members = vec![down; head.members.len()];
        let mut open: BTreeMap<(usize, &str), (f64, f64)> = BTreeMap::new();
        let mut faults: BTreeMap<u64, usize> = BTreeMap::new();
        for line in lines {
            let at = (line.t - begin).max(0.0);
            if let Some(who) = line.member.as_ref().and_then(|name| head.members.iter().position(|other| other == name))
            {
                let before = members[who].word();
                match &line.seen {
                    Seen::Start { .. } => members[who] = Member { is_up: true, standing: "isolated", ..members[who] },
                    Seen::End { .. } => members[who].is_up = false,
                    Seen::Pause => members[who].is_paused = true,
                    Seen::Resume => members[who].is_paused = false,
                    Seen::Standing { to } => {
                        let words = ["isolated", "rejoining", "seated", "removed"];
                        members[who].standing = words.into_iter().find(|word| word == to).unwrap_or("isolated");
                    }
                    Seen::Acts { node, until, .. } => {
                        open.entry((who, node)).or_insert((at, 0.0)).1 = until - begin;
                    }
                    Seen::Rests { node } => {
                        if let Some((from, until)) = open.remove(&(who, node)) {
                            // A process that is gone says nothing; what it was promised holds all the same.
                            let lease = if members[who].is_up { at } else { until };
                            picture.acted(node, from, at.min(until), who, lease);
                        }
                    }
                    _ => {}
                }
                if members[who].word() != before {
                    picture.lane(who, members[who].since, at, before);
                    members[who].since = at;
                }
                continue;
            }
            match &line.seen {
                Seen::Fault { number, kind, what } => {
                    let cut = if CUTS.contains(&kind.as_str()) { cut_off(what, &head.members) } else { Vec::new() };
                    faults.insert(*number, picture.faults.len());
                    picture.faults.push(FaultBar { from: at, to: last - begin, what: what.clone(), cut });
                }
                Seen::Healed { number, .. } => {
                    if let Some(bar) = faults.remove(number) {
                        picture.faults[bar].to = at;
                    }
                }
                Seen::Violation { rule, what } => picture.violations.push((at, format!("{rule}: {what}"))),
                _ => {}
            }
        }
        // Whatever a violation began is drawn a little further, so that it is seen.
        picture.end = (last - begin) * if picture.violations.is_empty() { 1.0 } else { 1.02 };
        for (who, member) in members.iter().enumerate() {
            picture.lane(who, member.since, picture.end, member.word());
        }
        for ((who, node), (from, until)) in open {
            let end = picture.end;
            picture.acted(node, from, end.min(until), who, end.min(until));
        }
        picture
    }

    fn lane(&mut self, who: usize, from: f64, to: f64, word: &'static str) {
        if to > from {
            self.lanes[who].push((from, to, word));
        }
    }

    fn acted(&mut self, node: &str, from: f64, to: f64, who: usize, lease: f64) {
        if to > 0.0 {
            self.nodes.entry(node.to_owned()).or_default().push((from, to, who, lease));
        }
    }

    fn json(&self, head: &Head) -> Value {
        let round = |time: f64| (time * 1e3).round() / 1e3;
        let lanes: Vec<Vec<Value>> = self
            .lanes
            .iter()
            .map(|lane| lane.iter().map(|(from, to, word)| json!([round(*from), round(*to), word])).collect())
            .collect();
        let mut names: Vec<_> = self.nodes.keys().collect();
        names.sort_by_key(|name| (name.len(), *name));
        let nodes: Vec<Value> = names
            .into_iter()
            .map(|name| {
                let bars: Vec<Value> = self.nodes[name]
                    .iter()
                    .map(|(from, to, who, lease)| json!([round(*from), round(*to), who, round(lease.max(*to))]))
                    .collect();
                json!([name, bars])
            })
            .collect();
        let faults: Vec<Value> =
            self.faults.iter().map(|bar| json!([round(bar.from), round(bar.to), bar.what, bar.cut])).collect();
        let violations: Vec<Value> = self.violations.iter().map(|(at, what)| json!([round(*at), what])).collect();
        json!({
            "end": round(self.end),
            "members": head.members,
            "lanes": lanes,
            "nodes": nodes,
            "faults": faults,
            "violations": violations,
        })
    }
}

/// Returns the members that a fault cuts off: of several sides all but the largest, otherwise whoever it names.
fn cut_off(what: &str, members: &[String]) -> Vec<usize> {
    let named = |side: &str| -> Vec<usize> {
        let words: Vec<_> = side.split([' ', ',']).collect();
        (0..members.len()).filter(|at| words.contains(&members[*at].as_str())).collect()
    };
    let mut sides: Vec<_> = what.split('|').map(named).collect();
    if sides.len() == 2 {
        let largest = usize::from(sides[1].len() > sides[0].len());
        sides.remove(largest);
    } else if sides.len() == 3 {
        // A bridge: whoever is between hears everybody.
        sides.remove(1);
    }
    sides.concat()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::run::{Options, run_with};
    use crate::scenario::find;

    fn members() -> Vec<String> {
        ["m0", "m1", "m2", "m10"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_fault_shades_only_the_lanes_that_it_cuts() {
        assert_eq!(cut_off("split m0 m1 m2 | m10", &members()), [3]);
        assert_eq!(cut_off("split m1 | m0 m2 m10", &members()), [1]);
        assert_eq!(cut_off("bridge m0 | m1 | m2 m10", &members()), [0, 2, 3]);
        assert_eq!(cut_off("flap m10 every 2s", &members()), [3]);
    }

    #[test]
    fn a_killed_manager_has_a_lease_that_ends_later() {
        let line = |t, who: &str, seen| Line { t, member: Some(who.to_owned()), seen };
        let acts = |until| Seen::Acts { node: "n1".into(), until, token: None };
        let head = Head {
            trace: 1,
            scenario: "<x>".into(),
            seed: 1,
            lease: 2.0,
            margin: 0.05,
            drift: 0.025,
            members: members(),
        };
        let lines = [
            line(1.0, "m1", Seen::Start { id: "a".into(), incarnation: 1 }),
            Line { t: 2.0, member: None, seen: Seen::Begin },
            line(3.0, "m1", acts(4.5)),
            line(3.5, "m1", acts(5.0)),
            line(4.0, "m1", Seen::End { how: "killed".into() }),
            line(4.0, "m1", Seen::Rests { node: "n1".into() }),
            line(9.0, "m2", Seen::Start { id: "b".into(), incarnation: 1 }),
        ];
        let picture = Picture::of(&head, &lines);
        assert_eq!(picture.nodes["n1"], [(1.0, 2.0, 1, 3.0)]);
        assert_eq!(picture.lanes[1], [(0.0, 2.0, "isolated"), (2.0, 7.0, "down")]);
        let page = page(&head, &lines);
        assert!(page.contains("<title>&lt;x&gt;") && !page.contains("{{"), "every place is filled");
    }

    #[test]
    fn a_page_stays_small_and_fetches_nothing() {
        let scenario = find("random").expect("in the library");
        let report = run_with(&scenario, 1, &Options { trace: true, ..Options::default() });
        let (head, lines) = report.trace.expect("a trace was asked for");
        let page = page(&head, &lines);
        let fixed = PAGE.len() + STYLE.len() + SCRIPT.len();
        let an_hour = fixed as f64 + (page.len() - fixed) as f64 * 3_600.0 / report.virtual_s;
        assert!(an_hour < 1e6, "{an_hour:.0} bytes a virtual hour");
        for outside in ["http://", "https://", "src=", "@import", "url(http"] {
            let found = page.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "the page names {outside}");
        }
    }

    /// Opens a page in a real browser, where there is one.
    #[test]
    fn a_browser_shows_the_page_and_its_words() {
        let browsers = ["chromium", "chromium-browser", "google-chrome"];
        let is_there = |name: &&&str| Command::new(**name).arg("--version").output().is_ok();
        let Some(browser) = browsers.iter().find(is_there) else {
            println!("skipped: none of {browsers:?} is installed");
            return;
        };
        let report = run_with(
            &find("split-minority").expect("in the library"),
            1,
            &Options { trace: true, ..Options::default() },
        );
        let (head, lines) = report.trace.expect("a trace was asked for");
        let directory = std::env::temp_dir().join(format!("collective-sim-page-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory for the page");
        let (file, picture) = (directory.join("page.html"), directory.join("page.png"));
        std::fs::write(&file, page(&head, &lines)).expect("the page is written");
        let open = |argument: &str| {
            let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"];
            let address = format!("file://{}", file.display());
            Command::new(browser).args(flags).arg(argument).arg(address).output().expect("the browser starts")
        };
        let shown = String::from_utf8_lossy(&open("--dump-dom").stdout).into_owned();
        open(&format!("--screenshot={}", picture.display()));
        let size = std::fs::metadata(&picture).map(|file| file.len()).unwrap_or(0);
        let kept = std::env::var_os("KEEP_PAGE").is_some();
        if kept {
            println!("kept in {}", directory.display());
        } else {
            drop(std::fs::remove_dir_all(&directory));
        }
        for words in
            ["split-minority", "no violation", "seated", "isolated", "split m0 m1 | m2 m3 m4", "m0 is rejoining"]
        {
            assert!(shown.contains(words), "the page does not show {words:?}: {shown}");
        }
        assert!(shown.contains("class=\"bar seated\"") && shown.contains("class=\"cut\""), "the script has drawn");
        assert!(size > 10_000, "a screenshot of {size} bytes shows nothing");
    }
}
