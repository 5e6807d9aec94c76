//! Members joined by queues in memory: every message is a real frame.

use std::collections::VecDeque;

use super::*;
use crate::proto::document::{Entity, Generation, Missing, PRESENT, Put, Vector};
use crate::proto::identity::{MemberId, SessionId};
use crate::proto::name::NodeName;
use crate::proto::time::WallTime;

fn member(number: u8) -> MemberId {
    MemberId([number; 16])
}

/// One member: its database, what it has not saved yet, and what it knows of the others.
struct Site {
    id: MemberId,
    documents: Documents,
    unsaved: Vec<NewChange>,
    acks: Acks,
}

impl Site {
    fn new(number: u8) -> Self {
        Self { id: member(number), documents: Documents::new(), unsaved: Vec::new(), acks: Acks::default() }
    }

    fn actor(&self) -> Actor {
        Actor::new(self.id, [0; 8])
    }

    /// Writes one attribute of one node and saves it.
    fn set(&mut self, node: &str, attribute: &str, value: &str) -> Vec<NewChange> {
        let entity = Entity::Node(NodeName::new(node).expect("a valid name"));
        let put = |attribute: &str, value: &str| Put {
            entity: entity.clone(),
            attribute: attribute.into(),
            value: Some(value.into()),
        };
        let puts = [put(PRESENT, "1"), put(attribute, value)];
        let changes = self.documents.write(&puts, self.actor(), WallTime(0)).expect("valid puts").changes;
        for change in &changes {
            self.documents.durable(&change.id);
        }
        changes
    }

    /// Returns the others, of three, that hold a change as far as they said.
    fn holders(&self, id: &ChangeId) -> Vec<MemberId> {
        (1..=3).map(member).filter(|other| self.acks.is_durable_on(*other, id)).collect()
    }

    /// Makes everything durable and returns what to tell the peers.
    fn save(&mut self) -> Vec<SyncMessage> {
        let saved: Vec<_> = self.unsaved.drain(..).map(|change| change.id).collect();
        for id in &saved {
            self.documents.durable(id);
        }
        SyncMessage::durable(saved)
    }
}

/// A link between two members, with what is under way in each direction.
struct Link {
    resyncs: [Resync; 2],
    under_way: [VecDeque<Vec<u8>>; 2],
    bytes: usize,
    frames: usize,
}

impl Link {
    fn open(sites: [&Site; 2]) -> Self {
        let [(a, ask_b), (b, ask_a)] = sites.map(|site| Resync::start(1, &site.documents));
        let mut link = Self { resyncs: [a, b], under_way: [VecDeque::new(), VecDeque::new()], bytes: 0, frames: 0 };
        link.send(1, [ask_b]);
        link.send(0, [ask_a]);
        link
    }

    fn send(&mut self, to: usize, messages: impl IntoIterator<Item = SyncMessage>) {
        for message in messages {
            let bytes = message.to_bytes();
            assert!(bytes.len() <= FRAME_BYTES_MAX, "{}", bytes.len());
            self.bytes += bytes.len();
            self.frames += 1;
            self.under_way[to].push_back(bytes);
        }
    }

    /// Delivers one message to one side; returns whether there was one.
    fn deliver(&mut self, to: usize, site: &mut Site, from: MemberId) -> bool {
        let Some(bytes) = self.under_way[to].pop_front() else { return false };
        let message = SyncMessage::from_bytes(&bytes).expect("a frame of ours");
        let answer = answer(&message, &mut site.documents);
        self.send(1 - to, answer);
        match message {
            SyncMessage::Digests { round, root, digests } => {
                site.acks.on_digests(from, root, &digests, &site.documents).expect("digests");
                let send = self.resyncs[to].on_digests(round, &digests, &site.documents).expect("digests");
                self.send(1 - to, send);
            }
            SyncMessage::Changes(changes) => {
                let step = self.resyncs[to].on_changes(&changes, &mut site.documents, &|_| true).expect("a frame");
                assert_eq!(step.rejected, []);
                site.unsaved.extend(step.save);
                self.send(1 - to, step.send);
            }
            SyncMessage::Durable { entries } => site.acks.on_durable(from, &entries),
            SyncMessage::Compare { .. } | SyncMessage::Pull { .. } | SyncMessage::Ask { .. } => {}
        }
        true
    }

    /// Delivers and saves until nothing is under way.
    fn run(&mut self, a: &mut Site, b: &mut Site) {
        loop {
            let ids = [a.id, b.id];
            let delivered = self.deliver(0, a, ids[1]) | self.deliver(1, b, ids[0]);
            let (from_a, from_b) = (a.save(), b.save());
            self.send(1, from_a);
            self.send(0, from_b);
            if !delivered && self.under_way.iter().all(VecDeque::is_empty) {
                break;
            }
        }
    }

    fn is_done(&self, sites: [&Site; 2]) -> bool {
        (0..2).all(|side| self.resyncs[side].is_done(&sites[side].documents))
    }
}

fn meet(a: &mut Site, b: &mut Site) -> Link {
    let mut link = Link::open([a, b]);
    link.run(a, b);
    assert!(link.is_done([a, b]));
    link
}

fn pull(documents: &Documents, shard: ShardId) -> SyncMessage {
    let (generation, vector) = (documents.generation(shard), documents.applied(shard));
    SyncMessage::Pull { round: 1, shard, generation, vector }
}

#[test]
fn two_members_are_equal_after_a_long_divergence() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for i in 0..200 {
        a.set(&format!("n{}", i % 50), "custom.x", &format!("a{i}"));
        b.set(&format!("n{}", i % 70), "custom.x", &format!("b{i}"));
    }
    meet(&mut a, &mut b);
    assert_eq!(a.documents.digests(), b.documents.digests());
    assert_eq!(a.documents.nodes().count(), 70);
}

#[test]
fn three_members_in_a_row_become_equal() {
    let mut sites = [Site::new(1), Site::new(2), Site::new(3)];
    for (number, site) in sites.iter_mut().enumerate() {
        for i in 0..30 {
            site.set(&format!("n{i}"), "custom.x", &format!("{number}"));
        }
    }
    let [a, b, c] = &mut sites;
    meet(a, b);
    meet(b, c);
    meet(a, b);
    assert_eq!(a.documents.root(), b.documents.root());
    assert_eq!(b.documents.root(), c.documents.root());
}

#[test]
fn a_reconnect_without_changes_costs_less_than_a_kilobyte() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for i in 0..300 {
        a.set(&format!("n{i}"), "custom.x", "1");
    }
    meet(&mut a, &mut b);
    let again = meet(&mut a, &mut b);
    assert!(again.bytes <= 1024, "{}", again.bytes);
    assert_eq!(again.frames, 4);
}

#[test]
fn many_changes_come_over_in_frames_within_bounds_and_deflated() {
    // All of one document, so that one answer cannot hold them.
    const CHANGES: usize = 1_000;
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let mut bytes = 0;
    for i in 0..CHANGES {
        let value = format!("{}{i}", "value ".repeat(100));
        bytes += a.set("n1", "custom.x", &value).iter().map(|change| change.bytes.len()).sum::<usize>();
        b.set("n1", "custom.y", &i.to_string());
    }
    let link = meet(&mut a, &mut b);
    assert_eq!(a.documents.digests(), b.documents.digests());
    assert!(bytes > frame::SENT_BYTES, "{bytes}");
    assert!(link.bytes < bytes / 2, "{} of {bytes}", link.bytes);
    assert!(link.frames > 8, "{}", link.frames);
}

#[test]
fn ten_thousand_changes_of_each_side_come_over_to_the_other() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for i in 0..10_000 {
        a.set(&format!("n{}", i % 640), "custom.x", &i.to_string());
        b.set(&format!("n{}", i % 500), "custom.x", &i.to_string());
    }
    meet(&mut a, &mut b);
    assert_eq!(a.documents.digests(), b.documents.digests());
    assert_eq!(a.documents.nodes().count(), 640);
}

#[test]
fn values_that_do_not_deflate_still_fit_into_frames() {
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(3);
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    for i in 0..12 {
        let mut noise = vec![0; 45_000];
        random.fill_bytes(&mut noise);
        a.set("n1", &format!("custom.x{i}"), &data_encoding::BASE64.encode(&noise));
    }
    meet(&mut a, &mut b);
    assert_eq!(a.documents.digests(), b.documents.digests());
}

#[test]
fn a_fresh_resync_finishes_what_a_lost_connection_left() {
    for cut in [1, 3, 6, 10, 15] {
        let (mut a, mut b) = (Site::new(1), Site::new(2));
        for i in 0..60 {
            a.set(&format!("n{i}"), "custom.x", "a");
            b.set(&format!("n{}", i + 30), "custom.x", "b");
        }
        let mut link = Link::open([&a, &b]);
        for _ in 0..cut {
            link.deliver(0, &mut a, member(2));
            link.deliver(1, &mut b, member(1));
        }
        assert!(!link.is_done([&a, &b]));
        drop(link);
        // Half of what came was saved before the connection was lost; the rest is saved behind it.
        let half = a.unsaved.len() / 2;
        for change in a.unsaved.drain(..half) {
            a.documents.durable(&change.id);
        }
        meet(&mut a, &mut b);
        assert_eq!(a.documents.digests(), b.documents.digests(), "cut after {cut}");
    }
}

#[test]
fn a_resync_is_done_only_when_what_came_is_durable() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    a.set("n1", "custom.x", "1");
    let mut link = Link::open([&a, &b]);
    while link.deliver(0, &mut a, member(2)) | link.deliver(1, &mut b, member(1)) {}
    assert_eq!(b.unsaved.len(), 1);
    assert!(link.resyncs[1].owed().is_empty());
    assert!(!link.resyncs[1].is_done(&b.documents));
    b.save();
    assert!(link.resyncs[1].is_done(&b.documents));
}

#[test]
fn pushed_changes_arrive_and_a_gap_is_pulled() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let mut link = meet(&mut a, &mut b);
    a.set("n1", "custom.x", "lost on the way");
    let second = a.set("n1", "custom.x", "2");
    link.send(1, push(&second));
    link.run(&mut a, &mut b);
    let n1 = Entity::Node(NodeName::new("n1").expect("a valid name"));
    assert_eq!(b.documents.get(&n1, "custom.x"), Some("2"));
    assert_eq!(a.documents.root(), b.documents.root());

    let third = a.set("n1", "custom.x", "3");
    let frames = link.frames;
    link.send(1, push(&third));
    link.run(&mut a, &mut b);
    assert_eq!(b.documents.get(&n1, "custom.x"), Some("3"));
    assert_eq!(link.frames, frames + 2, "the push and its acknowledgement");
}

#[test]
fn at_most_four_documents_are_pulled_at_once() {
    let (mut a, b) = (Site::new(1), Site::new(2));
    for i in 0..200 {
        a.set(&format!("n{i}"), "custom.x", "1");
    }
    let (mut resync, _) = Resync::start(1, &b.documents);
    let digests = a.documents.digests();
    let send = resync.on_digests(1, digests.as_flattened(), &b.documents).expect("digests");
    assert_eq!(send.iter().filter(|message| matches!(message, SyncMessage::Pull { .. })).count(), 4);
    assert_eq!(resync.on_digests(1, digests.as_flattened(), &b.documents), Ok(Vec::new()), "only once");
}

#[test]
fn garbage_is_an_error() {
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let mut a = Site::new(1);
    a.set("n1", "custom.x", "1");
    let shard = ShardId::all().find(|shard| !a.documents.vector(*shard).is_empty()).expect("written");
    let empty = Documents::new();
    let good = answer(&pull(&empty, shard), &mut a.documents).expect("an answer").to_bytes();
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(2);
    let (mut errors, mut documents) = (0, Documents::new());
    for _ in 0..5_000 {
        let mut bytes = good.clone();
        for _ in 0..=random.next_u32() % 3 {
            let at = random.next_u32() as usize % bytes.len();
            bytes[at] = random.next_u32() as u8;
        }
        match SyncMessage::from_bytes(&bytes) {
            Ok(SyncMessage::Changes(changes)) => {
                let (mut resync, _) = Resync::start(1, &documents);
                if resync.on_changes(&changes, &mut documents, &|who| who == a.actor()).is_err() {
                    errors += 1;
                }
            }
            Ok(message) => drop(answer(&message, &mut documents)),
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 1_000, "{errors}");
    assert!(matches!(SyncMessage::from_bytes(&vec![0; FRAME_BYTES_MAX + 1]), Err(SyncError::TooLong(_))));
    assert!(matches!(SyncMessage::from_bytes(&[]), Err(SyncError::Decode(_))));
    let mut longer = good;
    longer.push(0);
    assert!(matches!(SyncMessage::from_bytes(&longer), Err(SyncError::Decode(_))));
}

#[test]
fn a_bomb_a_cut_frame_and_an_empty_promise_are_refused() {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 64 << 20]).expect("in memory");
    let bomb = encoder.finish().expect("in memory");
    assert!(bomb.len() < FRAME_BYTES_MAX);
    let frame = |encoding, body: &[u8], more| Changes {
        round: 0,
        shard: ShardId::SETTINGS,
        generation: Generation(0),
        encoding,
        body: body.to_vec(),
        more,
    };
    assert_eq!(frame(Encoding::Deflate, &bomb, false).unpack(), Err(SyncError::Inflate));
    assert_eq!(frame(Encoding::Deflate, b"no deflate", false).unpack(), Err(SyncError::Inflate));
    assert_eq!(frame(Encoding::Raw, &[0, 0, 0, 9, 1], false).unpack(), Err(SyncError::Cut));
    assert_eq!(frame(Encoding::Raw, &[0, 0], false).unpack(), Err(SyncError::Cut));
    let mut documents = Documents::new();
    let (mut resync, _) = Resync::start(1, &documents);
    let promised = resync.on_changes(&frame(Encoding::Raw, &[], true), &mut documents, &|_| true);
    assert_eq!(promised, Err(SyncError::NoProgress));
    assert_eq!(resync.on_digests(1, &[0; 9], &documents), Err(SyncError::Digests));
}

#[test]
fn a_refused_change_leaves_its_document_owed_and_the_others_go_on() {
    let (mut a, b) = (Site::new(1), Site::new(2));
    for i in 0..40 {
        a.set(&format!("n{i}"), "custom.x", "1");
    }
    let stranger = Site::new(9).actor();
    let change = {
        let puts =
            [Put { entity: Entity::Settings, attribute: "custom.x".into(), value: Some("from a stranger".into()) }];
        a.documents.write(&puts, stranger, WallTime(0)).expect("valid").changes.remove(0)
    };
    a.documents.durable(&change.id);

    let mut documents = b.documents;
    let (mut resync, ask) = Resync::start(1, &documents);
    let mut under_way = VecDeque::from([ask]);
    let mut rejected = Vec::new();
    while let Some(question) = under_way.pop_front() {
        match answer(&question, &mut a.documents) {
            Some(SyncMessage::Digests { round, digests, .. }) => {
                under_way.extend(resync.on_digests(round, &digests, &documents).expect("digests"));
            }
            Some(SyncMessage::Changes(changes)) => {
                let step = resync.on_changes(&changes, &mut documents, &|who| who != stranger).expect("a frame");
                for change in step.save {
                    documents.durable(&change.id);
                }
                rejected.extend(step.rejected);
                under_way.extend(step.send);
            }
            _ => {}
        }
    }
    assert_eq!(rejected, [(ShardId::SETTINGS, Rejected::UnknownActor(stranger))]);
    assert_eq!(resync.owed().iter().copied().collect::<Vec<_>>(), [ShardId::SETTINGS]);
    assert!(!resync.is_done(&documents));
    assert_eq!(documents.nodes().count(), 40);
}

#[test]
fn a_document_of_another_generation_stays_owed() {
    let mut a = Site::new(1);
    a.set("n1", "custom.x", "1");
    let mut documents = Documents::new();
    let (mut resync, _) = Resync::start(1, &documents);
    let send = resync.on_digests(1, a.documents.digests().as_flattened(), &documents).expect("digests");
    let Some(SyncMessage::Pull { shard, .. }) = send.last() else { panic!("a pull expected: {send:?}") };
    let missing = Missing { changes: Vec::new(), more: false };
    let other = Changes::of_pull(1, *shard, Generation(1), missing);
    let step = resync.on_changes(&other, &mut documents, &|_| true).expect("a frame");
    assert_eq!(step.rejected, [(*shard, Rejected::Generation(Generation(1)))]);
    assert!(!resync.is_done(&documents));
}

#[test]
fn acknowledgements_are_cumulative_and_count_members_once() {
    let mut a = Site::new(1);
    let first = a.set("n1", "custom.x", "1").remove(0).id;
    let second = a.set("n1", "custom.x", "2").remove(0).id;
    a.acks.on_durable(member(2), &[first]);
    a.acks.on_durable(member(3), &[second]);
    a.acks.on_durable(member(3), &[first]);
    assert_eq!(a.holders(&first), [member(2), member(3)]);
    assert_eq!(a.holders(&second), [member(3)]);
}

#[test]
fn what_an_earlier_run_of_a_member_said_counts_for_nothing() {
    let mut a = Site::new(1);
    let of_a = a.set("n1", "custom.x", "1").remove(0).id;
    for id in [member(2), member(3)] {
        assert!(!a.acks.on_session(id, SessionId([1; 8])));
        a.acks.on_durable(id, &[of_a]);
    }
    assert!(!a.acks.on_session(member(2), SessionId([1; 8])), "a link that came back");
    assert_eq!(a.holders(&of_a), [member(2), member(3)]);
    assert!(a.acks.on_session(member(2), SessionId([2; 8])));
    assert_eq!(a.holders(&of_a), [member(3)]);
    a.acks.on_durable(member(2), &[of_a]);
    a.acks.keep_only(|id| *id == member(2));
    assert_eq!(a.holders(&of_a), [member(2)]);
}

#[test]
fn what_a_peer_holds_is_known_after_a_meeting_whether_or_not_anything_differed() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let of_a = a.set("n1", "custom.x", "1").remove(0).id;
    meet(&mut a, &mut b);
    assert_eq!(a.holders(&of_a), [b.id], "said when it was saved");
    a.acks = Acks::default();
    meet(&mut a, &mut b);
    assert_eq!(a.holders(&of_a), [b.id], "told by equal roots");
    a.acks = Acks::default();
    b.set("n1", "custom.y", "1");
    meet(&mut a, &mut b);
    assert_eq!(a.holders(&of_a), [b.id], "said before the pull");
}

#[test]
fn who_is_asked_says_what_of_it_is_durable_there() {
    // R13.
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    let first = a.set("n1", "custom.x", "1").remove(0).id;
    let second = a.set("n1", "custom.x", "2").remove(0).id;
    let ask = |site: &mut Site, id: ChangeId| {
        let question = SyncMessage::ask(vec![id]).next().expect("a question");
        match answer(&question, &mut site.documents) {
            Some(SyncMessage::Durable { entries }) => entries,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(&mut a, first), vec![second], "all of its author's changes up to the last");
    assert_eq!(ask(&mut a, ChangeId { generation: Generation(1), ..first }), vec![], "of another generation");
    assert_eq!(ask(&mut b, first), vec![]);
    assert_eq!(SyncMessage::ask(vec![first; 4_001]).count(), 2, "no frame is too long");
}

#[test]
fn a_difference_is_compared_when_it_outlives_two_rounds() {
    let mut watch = Watch::default();
    let (mine, theirs) = ([1; 8], [2; 8]);
    assert_eq!([(); 6].map(|()| watch.observe(member(2), theirs, mine)), [false, false, true, false, false, true]);
    assert!(!watch.observe(member(2), theirs, mine));
    assert!(!watch.observe(member(2), mine, mine));
    assert!(!watch.observe(member(2), theirs, mine));
    assert!(!watch.observe(member(2), theirs, mine));
}

#[test]
fn every_message_reads_back_from_its_frame() {
    let mut a = Site::new(1);
    let changes = a.set("n1", "custom.x", "1");
    let id = changes[0].id;
    let mut messages = push(&changes);
    messages.extend(SyncMessage::durable([id]));
    messages.push(SyncMessage::Compare { round: 1, root: [1; 8] });
    messages.push(SyncMessage::Digests { round: 1, root: [1; 8], digests: vec![1; 520] });
    messages.extend(SyncMessage::ask(vec![id]));
    let vector = Vector::from([(a.actor(), 7)]);
    messages.push(SyncMessage::Pull { round: 1, shard: id.shard, generation: Generation(0), vector });
    for message in messages {
        assert_eq!(SyncMessage::from_bytes(&message.to_bytes()), Ok(message));
    }
}

#[test]
fn a_second_comparison_waits_for_the_disk_on_which_the_first_one_put_its_changes() {
    let (mut a, mut b) = (Site::new(1), Site::new(2));
    b.set("n1", "custom.x", "1");
    let (of_a, of_b) = (a.id, b.id);
    let compare = |a: &mut Site, b: &mut Site| {
        let mut link = Link::open([a, b]);
        while link.deliver(0, a, of_b) | link.deliver(1, b, of_a) {}
        link
    };
    let first = compare(&mut a, &mut b);
    assert!(!first.resyncs[0].is_done(&a.documents), "it is not durable yet");
    let second = compare(&mut a, &mut b);
    assert!(!second.resyncs[0].is_done(&a.documents), "nothing came, for it is here; but it is not durable yet");
    a.save();
    assert!(first.resyncs[0].is_done(&a.documents) && second.resyncs[0].is_done(&a.documents));
}
