//! Node actions and hooks: run for the acting manager only, wherever they are asked for.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::nodes::{NODES, define_nodes, taken_over};
use crate::site::{PATIENCE, Site, settle, three, wait_until};
use crate::watch::Runs;

/// Puts an executable of `/bin/sh` somewhere.
fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).expect("a file in our own directory");
    std::fs::set_permissions(path, Permissions::from_mode(0o700)).expect("our own file");
}

/// Gives every member an action of that name.
fn action(sites: &[Site], name: &str, text: &str, more: &str) {
    for site in sites {
        let program = site.home().join(name);
        script(&program, text);
        let definition = format!("command = [\"{}\"{more}]\n", program.display());
        std::fs::write(site.home().join(format!("actions.d/{name}.toml")), definition).expect("our own directory");
    }
}

fn manager(site: &Site, node: &str) -> Option<String> {
    let output = site.run(&["managers", node, "-o", "json"]);
    let document: serde_json::Value = serde_json::from_str(&output.stdout).ok()?;
    document["nodes"][0]["manager"].as_str().map(str::to_owned)
}

#[test]
fn an_action_runs_on_the_acting_manager_wherever_it_is_asked_for() {
    let sites = three();
    action(
        &sites,
        "who",
        "echo \"$COLLECTIVE_MEMBER acts for $COLLECTIVE_NODE by $COLLECTIVE_TOKEN: $1\"",
        ", \"{0}\"",
    );
    for (node, member) in [("n1", "mgt1"), ("n2", "mgt2"), ("n3", "mgt3")] {
        sites[0].ok(&["node", "define", node, &format!("collective.managercandidates={member}")]);
    }
    for site in &sites {
        wait_until("every node is managed", PATIENCE, || {
            ["n1", "n2", "n3"].iter().all(|node| manager(site, node).is_some())
        });
        let output = site.ok(&["run", "n[1-3]", "who", "two words; $(false)"]);
        let mut lines: Vec<_> = output.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines.len(), 3, "{output}");
        for (place, line) in lines.iter().enumerate() {
            let number = place + 1;
            assert!(line.starts_with(&format!("n{number}: mgt{number} acts for n{number} by 0.")), "{line}");
            assert!(line.ends_with(": two words; $(false)"), "{line}");
        }
        let document = site.json(&["run", "n2", "who", "x"]);
        assert_eq!(document["results"][0]["manager"], "mgt2", "{document}");
        assert_eq!(document["results"][0]["status"], 0, "{document}");
    }
}

#[test]
fn an_action_that_fails_is_not_there_or_has_no_manager_says_so() {
    let sites = three();
    action(&sites, "fail", "echo trouble; exit 3", "");
    sites[0].ok(&["node", "define", "n1", "collective.managercandidates=mgt2"]);
    sites[0].ok(&["node", "define", "n2"]);
    wait_until("the node is managed", PATIENCE, || manager(&sites[0], "n1").is_some());

    let failed = sites[0].run(&["run", "n1", "fail"]);
    assert_eq!((failed.code, failed.stdout.as_str()), (1, "n1: trouble\n"), "{failed:?}");
    assert!(failed.stderr.contains("n1: exit status 3"), "{failed:?}");
    let unknown = sites[0].run(&["run", "n1", "nosuch"]);
    assert!(unknown.code == 1 && unknown.stderr.contains("there is no action"), "{unknown:?}");
    let orphan = sites[0].run(&["run", "n2", "fail"]);
    assert!(orphan.code == 1 && orphan.stderr.contains("no member acts for n2"), "{orphan:?}");
}

#[test]
fn a_hook_is_told_of_a_takeover_by_the_member_that_acts() {
    let mut sites = three();
    for site in &sites {
        let log = site.home().join("hooked");
        let text = format!(
            "echo \"$COLLECTIVE_EVENT $COLLECTIVE_NODE $COLLECTIVE_MEMBER $COLLECTIVE_TOKEN\" >> {}",
            log.display()
        );
        script(&site.home().join("hooks.d/note"), &text);
    }
    sites[0].ok(&["node", "define", "n1", "collective.managercandidates=mgt2,mgt3"]);
    wait_until("the node is managed", PATIENCE, || manager(&sites[0], "n1").is_some());
    let first = manager(&sites[0], "n1").unwrap_or_default();
    let told = |site: &Site| std::fs::read_to_string(site.home().join("hooked")).unwrap_or_default();
    let (holder, other) = if first == "mgt2" { (1, 2) } else { (2, 1) };
    let line = |site: &Site| format!("manager-changed n1 {} 0.", site.name());
    wait_until("the manager's hook is told", PATIENCE, || told(&sites[holder]).contains(&line(&sites[holder])));
    assert!(!told(&sites[0]).contains("manager-changed n1 mgt1"), "{}", told(&sites[0]));

    sites[holder].kill();

    wait_until("the new manager's hook is told", PATIENCE, || told(&sites[other]).contains(&line(&sites[other])));
}

#[test]
fn a_hanging_action_of_a_stopped_manager_is_ended() {
    let mut sites = three();
    let marks = sites[0].home().join("marks");
    action(&sites, "hang", &format!("echo $$ >> {}; sleep 60; echo end >> {0}", marks.display()), "");
    sites[0].ok(&["node", "define", "n1", "collective.managercandidates=mgt2"]);
    wait_until("the node is managed", PATIENCE, || manager(&sites[0], "n1").is_some());
    let mut client = sites[0].client();
    client.args(["run", "n1", "hang"]);
    let asking = std::thread::spawn(move || crate::site::run(&mut client));
    let started = || std::fs::read_to_string(&marks).unwrap_or_default();
    wait_until("the action runs", PATIENCE, || started().lines().count() == 1);
    let process = format!("/proc/{}", started().trim());

    // Its member stops; it must not run on beyond the right to act.
    sites[1].stop();
    wait_until("the action is gone", Duration::from_secs(5), || !Path::new(&process).exists());
    let output = asking.join().expect("the client ends");
    assert_ne!(output.code, 0, "{output:?}");
}

/// Ends the manager of n1 by `end` while an action runs for it; the action must have ended before another member acts.
fn an_action_does_not_outlive_the_right_to_act(end: impl Fn(&mut Site)) {
    let mut sites = three();
    let marks = sites[0].home().join("marks");
    let pid = sites[0].home().join("pid");
    let text = format!("echo $$ > {}; while :; do date +%s%N >> {}; sleep 0.02; done", pid.display(), marks.display());
    action(&sites, "tick", &text, "");
    action(&sites, "now", "date +%s%N", "");
    sites[0].ok(&["node", "define", "n1", "collective.managercandidates=mgt2,mgt3"]);
    wait_until("the node is managed", PATIENCE, || manager(&sites[0], "n1").is_some());
    let mut client = sites[0].client();
    client.args(["run", "n1", "tick"]);
    let asking = std::thread::spawn(move || crate::site::run(&mut client));
    let ticks = || std::fs::read_to_string(&marks).unwrap_or_default();
    wait_until("the action runs", PATIENCE, || ticks().lines().count() > 5);

    let first = manager(&sites[0], "n1").unwrap_or_default();
    let holder = if first == "mgt2" { 1 } else { 2 };
    end(&mut sites[holder]);

    let mut began = None;
    wait_until("another member acts", PATIENCE, || {
        let output = sites[0].run(&["run", "n1", "now"]);
        began = output.stdout.trim().strip_prefix("n1: ").and_then(|text| text.parse::<u128>().ok());
        began.is_some()
    });
    let last = |text: &str| text.lines().filter_map(|line| line.parse::<u128>().ok()).max();
    let (began, ended) = (began.expect("just seen"), last(&ticks()).expect("it ticked"));
    assert!(ended < began, "the action went on {} ns after another member acted", ended - began);
    let stat = format!("/proc/{}/stat", std::fs::read_to_string(&pid).expect("it told its number").trim());
    // A daemon that stands still cannot take note of the end: the process is dead, and still listed.
    let is_dead = || std::fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "));
    wait_until("its process is dead", PATIENCE, is_dead);
    assert_ne!(asking.join().expect("the client ends").code, 0);
}

#[test]
fn an_action_ends_when_its_daemon_is_killed() {
    an_action_does_not_outlive_the_right_to_act(Site::kill);
}

#[test]
fn an_action_ends_when_its_daemon_is_stopped_in_its_tracks() {
    an_action_does_not_outlive_the_right_to_act(|site| site.pause());
}

/// The proof of the main promise: whatever happens to the network, no two members act for a node at one time.
#[test]
fn actions_through_a_cut_never_overlap_and_tokens_only_rise() {
    let Some(lab) = Lab::build(3) else { return };
    let sites = lab.three();
    let log = sites[0].home().join("acted");
    let text = format!(
        "from=$(date +%s%N)\nsleep 0.05\necho \"$COLLECTIVE_NODE $COLLECTIVE_MEMBER $COLLECTIVE_TOKEN $from $(date +%s%N)\" >> {}",
        log.display()
    );
    action(&sites, "mark", &text, "");
    define_nodes(&sites);
    let runs: Vec<_> = sites.iter().map(|site| Runs::start(site, NODES, "mark")).collect();
    let acted = |from: &str| {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        log.lines().filter(|line| line.split(' ').nth(1) == Some(from)).count()
    };
    wait_until("all three act", PATIENCE, || ["mgt1", "mgt2", "mgt3"].iter().all(|name| acted(name) > 0));

    for cut in [1, 3] {
        lab.isolate(cut);
        let name = format!("mgt{cut}");
        taken_over(&sites[if cut == 1 { 1 } else { 0 }], &name, Instant::now());
        lab.heal();
        wait_until("it is seated again", PATIENCE, || {
            sites[cut - 1].status().is_some_and(|status| status["standing"] == "seated")
        });
    }
    // A moment of peace, in which runs go on.
    let peace = Instant::now();
    wait_until("runs go on", PATIENCE, || peace.elapsed() > Duration::from_secs(1));
    for run in runs {
        run.finish();
    }
    settle(&sites.iter().collect::<Vec<_>>());

    let mut acts: Vec<Act> = std::fs::read_to_string(&log).expect("a log").lines().filter_map(Act::parse).collect();
    acts.sort_by_key(|act| act.from);
    assert!(acts.len() > 50, "{} acts", acts.len());
    for (place, act) in acts.iter().enumerate() {
        for later in acts[place + 1..].iter().filter(|later| later.node == act.node) {
            assert!(later.token >= act.token, "{act:?} before {later:?}");
            assert!(later.member == act.member || later.from >= act.to, "{act:?} during {later:?}");
        }
    }
}

/// One run of an action.
#[derive(Debug)]
struct Act {
    node: String,
    member: String,
    token: Vec<u64>,
    from: u64,
    to: u64,
}

impl Act {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let [node, member, token, from, to] = words.as_slice() else { return None };
        Some(Self {
            node: (*node).to_owned(),
            member: (*member).to_owned(),
            token: token.split('.').map(|part| part.parse().ok()).collect::<Option<_>>()?,
            from: from.parse().ok()?,
            to: to.parse().ok()?,
        })
    }
}
