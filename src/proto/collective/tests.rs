//! One member alone, with a disk that is as slow as a test wants: how writes are made, one turn after the other.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use super::writes::Then;
use super::{Birth, Collective, Effect, Event, Ticket};
use crate::proto::document::{Actor, Documents, Entity, Put};
use crate::proto::election;
use crate::proto::identity::{ClusterId, Fingerprint, MemberId, SessionId};
use crate::proto::inventory;
use crate::proto::invite::Seed;
use crate::proto::lease::Stamp;
use crate::proto::name::{MemberName, NodeName};
use crate::proto::record::Record;
use crate::proto::request::{ErrorCode, ImportFormat, Request, Response, Standing, Target, Wait};
use crate::proto::roster::{Member, Role, Roster, Timing};
use crate::proto::time::{Instant, Now, WallTime};

/// A member alone.
struct Lone {
    core: Collective,
    now: Instant,
    /// Saves that the disk was asked for, and bytes of changes in each.
    saves: VecDeque<(Ticket, usize)>,
    replies: Vec<Response>,
}

impl Lone {
    fn start() -> Self {
        let now = Instant::ZERO + Duration::from_secs(100);
        let (me, fingerprint) = (MemberId([1; 16]), Fingerprint([1; 32]));
        let name = MemberName::new("mgt1").expect("a valid name");
        let member = Member { id: me, name, role: Role::Voter, learner: false, fingerprints: vec![fingerprint] };
        let birth = Birth {
            me,
            session: SessionId([1; 8]),
            stamp: Stamp { incarnation: 1, sequence: 0 },
            fingerprint,
            roster: Roster::genesis(ClusterId([9; 16]), Timing::LAN, member),
            acceptor: None,
            invites: Vec::new(),
            peers: BTreeMap::new(),
            documents: Documents::new(),
            removed: None,
            quarantined: Default::default(),
            addresses: vec![SocketAddr::from(([127, 0, 0, 1], 1_000))],
            software: "test".to_owned(),
            seed: [1; 32],
            decoy: Seed::new([1; 32]),
            actor: Actor::new(me, [1; 8]),
            intent: Default::default(),
        };
        let (core, effects) = Collective::start(birth, Now { boot: now, wall: WallTime(1_000_000) });
        let mut lone = Self { core, now, saves: VecDeque::new(), replies: Vec::new() };
        lone.perform(effects);
        lone.finish_saves();
        assert_eq!(lone.core.standing(), Standing::Seated);
        lone
    }

    fn handle(&mut self, event: Event) {
        let effects = self.core.handle(event, Now { boot: self.now, wall: WallTime(1_000_000) });
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Save { ticket, records } => {
                    let bytes = |record: &Record| match record {
                        Record::Change { bytes, .. } => bytes.len(),
                        _ => 0,
                    };
                    self.saves.push_back((ticket, records.iter().map(bytes).sum()));
                }
                Effect::Reply { response, .. } => self.replies.push(response),
                _ => {}
            }
        }
    }

    /// The disk finishes what it was asked for first.
    fn finish_save(&mut self) -> bool {
        let Some((ticket, _)) = self.saves.pop_front() else { return false };
        self.handle(Event::Saved { tickets: vec![ticket] });
        true
    }

    fn finish_saves(&mut self) {
        while self.finish_save() {}
    }

    fn wake_after(&mut self, wait: Duration) {
        self.now = self.now + wait;
        self.handle(Event::Wake);
    }

    fn set(&mut self, nodes: &str, assignment: &str) {
        let request = Request::SetAttributes {
            target: Target::Nodes(nodes.into()),
            assignments: vec![assignment.into()],
            clear: Vec::new(),
            wait: Wait::Majority,
            dry_run: false,
            yes: false,
        };
        self.handle(Event::Request { id: 2, request, within_ms: 10_000, entropy: Box::new([0; 40]) });
    }

    fn define(&mut self, nodes: &str) {
        let request = Request::DefineNodes { nodes: nodes.into(), assignments: vec!["location.room=a".into()] };
        self.handle(Event::Request { id: 1, request, within_ms: 10_000, entropy: Box::new([0; 40]) });
    }
}

/// Each is written with two values: that it is there, and its room.
const NODES: usize = 5_000;

#[test]
fn a_large_write_is_made_in_turns_and_never_far_ahead_of_the_disk() {
    let mut lone = Lone::start();
    lone.define(&format!("n[1-{NODES}]"));
    for _ in 0..20 {
        lone.wake_after(Duration::from_millis(1));
    }
    assert_eq!(lone.saves.len(), super::writes::TURNS_AHEAD, "the disk has not answered");
    assert!(lone.saves.iter().all(|(_, bytes)| *bytes < 64 * 1024), "{:?}", lone.saves);
    assert!(lone.replies.is_empty());
    let mut turns = 0;
    while lone.finish_save() {
        turns += 1;
        assert!(lone.saves.len() <= super::writes::TURNS_AHEAD);
        assert_eq!(lone.replies.is_empty(), !lone.saves.is_empty(), "answered once all of it is durable");
    }
    assert!(turns >= 10, "{turns}");
    assert!(matches!(&lone.replies[..], [Response::Done(_)]), "{:?}", lone.replies);
    assert_eq!(lone.core.documents().nodes().count(), NODES);
}

#[test]
fn a_small_write_does_not_wait_for_a_large_one() {
    let mut lone = Lone::start();
    lone.define(&format!("n[1-{NODES}]"));
    lone.define("s1");
    while lone.replies.is_empty() {
        assert!(lone.finish_save());
    }
    assert_eq!(lone.core.documents().nodes().filter(|node| node.as_str() == "s1").count(), 1);
    assert!(lone.core.documents().nodes().count() < NODES);
    lone.finish_saves();
    assert_eq!(lone.core.documents().nodes().count(), NODES + 1);
}

#[test]
fn a_write_whose_time_is_up_says_how_much_of_it_is_stored() {
    let mut lone = Lone::start();
    lone.define(&format!("n[1-{NODES}]"));
    lone.finish_save();
    lone.wake_after(Duration::from_secs(10));
    let [Response::Error(refused)] = &lone.replies[..] else { panic!("{:?}", lone.replies) };
    assert_eq!(refused.error.code, ErrorCode::Indeterminate);
    assert!(
        refused.error.message.starts_with("only ") && refused.error.message.contains("of 10000 values"),
        "{refused:?}"
    );
    let stored = lone.core.documents().nodes().count();
    lone.finish_saves();
    assert!((1..NODES).contains(&stored), "{stored}");
    assert!(lone.core.documents().nodes().count() < NODES, "what was given up is not written later");
}

impl Lone {
    fn import(&mut self, inventory: &str) {
        let inventory = Box::new(inventory::parse(ImportFormat::Csv, inventory).expect("an inventory"));
        let request = Request::TakeIn { inventory, dry_run: false };
        self.handle(Event::Request { id: 2, request, within_ms: 10_000, entropy: Box::new([0; 40]) });
    }

    /// Wakes the core until it has something for the disk or an answer; returns how often.
    fn wake_until_done(&mut self) -> usize {
        (1..1_000)
            .find(|_| {
                self.wake_after(Duration::from_millis(1));
                !self.saves.is_empty() || !self.replies.is_empty()
            })
            .expect("it ends")
    }
}

fn inventory(last: &str) -> String {
    let lines: String = (1..=1_000).map(|node| format!("n{node},racks,\n")).collect();
    format!("node,groups,collective.manager\n{lines}{last}\n")
}

#[test]
fn an_inventory_is_worked_out_in_turns_and_then_written() {
    let mut lone = Lone::start();
    lone.import(&inventory("n1001,racks,mgt1"));
    assert!(lone.wake_until_done() >= 4, "in turns");
    lone.finish_saves();
    assert!(matches!(&lone.replies[..], [Response::Done(done)] if done.message == "1001 nodes and 1 groups imported"));
    assert_eq!(lone.core.documents().nodes().count(), 1_001);
}

#[test]
fn nothing_of_an_inventory_is_stored_when_its_last_line_is_wrong() {
    let mut lone = Lone::start();
    lone.import(&inventory("n1001,racks,nobody"));
    lone.wake_until_done();
    assert!(lone.saves.is_empty());
    let [Response::Error(refused)] = &lone.replies[..] else { panic!("{:?}", lone.replies) };
    assert!(refused.error.message.contains("nobody"), "{refused:?}");
}

#[test]
fn a_disk_that_has_room_again_takes_writes_whatever_it_had_refused() {
    let mut lone = Lone::start();
    let name = MemberName::new("mgt2").expect("a valid name");
    let request = Request::Invite { name, role: Role::Voter, ttl_ms: 60_000, uses: 1 };
    lone.handle(Event::Request { id: 1, request, within_ms: 10_000, entropy: Box::new([7; 40]) });
    let (ticket, _) = *lone.saves.front().expect("an invitation is stored");
    lone.handle(Event::NotSaved { ticket, reason: "no space left on device".to_owned() });
    lone.define("n1");
    let [Response::Error(invited), Response::Error(defined)] = &lone.replies[..] else { panic!("{:?}", lone.replies) };
    assert_eq!(invited.error.code, ErrorCode::Indeterminate, "it is tried again, and may be made yet");
    assert_eq!(defined.error.code, ErrorCode::Failure, "nothing can be stored");
    lone.finish_saves();
    lone.define("n1");
    lone.finish_saves();
    assert!(matches!(lone.replies.last(), Some(Response::Done(_))), "{:?}", lone.replies);
}

#[test]
fn what_is_on_its_way_to_the_disk_is_not_undone_by_what_is_asked_next() {
    let mut lone = Lone::start();
    lone.define("n1");
    lone.finish_saves();
    lone.replies.clear();
    for assignment in ["custom.list,=a", "custom.list,=b", "location.room=b", "location.room=a"] {
        lone.set("n1", assignment);
    }
    assert!(lone.replies.is_empty(), "nothing is durable: {:?}", lone.replies);
    lone.finish_saves();
    assert_eq!(lone.replies.len(), 4);
    let n1 = Entity::Node(NodeName::new("n1").expect("a valid name"));
    let documents = lone.core.documents();
    assert_eq!(documents.get(&n1, "custom.list"), Some("b,a"));
    assert_eq!(documents.get(&n1, "location.room"), Some("a"), "it showed already, but not for long");
}

#[test]
fn what_is_set_already_is_confirmed_once_it_is_durable() {
    let mut lone = Lone::start();
    lone.define("n1");
    lone.finish_saves();
    lone.replies.clear();
    lone.set("n1", "location.room=b");
    lone.set("n1", "location.room=b");
    assert!(lone.replies.is_empty(), "nothing is durable: {:?}", lone.replies);
    lone.finish_saves();
    assert_eq!(lone.replies.len(), 2);
    lone.set("n1", "location.room=b");
    assert_eq!(lone.replies.len(), 3, "nothing is to be written");
}

#[test]
fn a_manager_record_is_not_replaced_by_an_older_one() {
    let mut lone = Lone::start();
    lone.define("n1");
    lone.finish_saves();
    let n1 = Entity::Node(NodeName::new("n1").expect("a valid name"));
    let mut record = |text: &str| {
        let put =
            Put { entity: n1.clone(), attribute: election::Record::ATTRIBUTE.into(), value: Some(text.to_owned()) };
        let within = Duration::from_secs(2);
        lone.core.write(vec![put], Wait::Majority, within, Then::Nothing).expect("written");
    };
    record("mgt1 auto 0.9.4");
    record("mgt1 auto 0.9.3");
    record("mgt1 auto 0.9.4 to mgt2");
    record("mgt1 auto 0.8.9");
    lone.handle(Event::Wake);
    lone.finish_saves();
    assert_eq!(lone.core.documents().all(&n1, election::Record::ATTRIBUTE), ["mgt1 auto 0.9.4 to mgt2"]);
}
