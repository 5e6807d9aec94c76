//! What a database does across members, disks and hostile peers.

use automerge::legacy::{self, ObjectId, OpType};
use automerge::transaction::{CommitOptions, Transactable};
use automerge::{ActorId, Automerge, Change, ExpandedChange, ObjType, ROOT, ReadDoc, ScalarValue};
use proptest::prelude::*;

use super::*;

fn node(name: &str) -> Entity {
    Entity::Node(NodeName::new(name).expect("a valid name"))
}

fn put(entity: &Entity, attribute: &str, value: &str) -> Put {
    Put { entity: entity.clone(), attribute: attribute.into(), value: Some(value.into()) }
}

fn delete(entity: &Entity, attribute: &str) -> Put {
    Put { entity: entity.clone(), attribute: attribute.into(), value: None }
}

fn actor(number: u8) -> Actor {
    Actor([number; 16])
}

const NOON: WallTime = WallTime(1_700_000_000_000);

/// Writes and makes durable at once.
fn write(documents: &mut Documents, puts: &[Put], actor: Actor) -> Vec<NewChange> {
    let written = documents.write(puts, actor, NOON).expect("valid puts");
    for change in &written.changes {
        documents.durable(&change.id);
    }
    written.changes
}

fn receive(documents: &mut Documents, change: &NewChange) -> Result<Received, Rejected> {
    documents.receive(change.id.shard, change.id.generation, &change.bytes, &|_| true)
}

/// Receives and makes durable at once.
fn take(documents: &mut Documents, change: &NewChange) {
    receive(documents, change).expect("a valid change");
    documents.durable(&change.id);
}

/// Everything a reader may see, conflicts included.
fn dump(documents: &Documents) -> Vec<(String, String, Vec<String>)> {
    let nodes = documents.nodes().cloned().map(Entity::Node);
    let groups = documents.groups().cloned().map(Entity::Group);
    let mut lines = Vec::new();
    for entity in nodes.chain(groups).chain([Entity::Settings]) {
        for (attribute, value) in documents.entity(&entity).expect("present") {
            let all = documents.all(&entity, attribute);
            assert_eq!(all[0], value);
            lines.push((entity.to_string(), attribute.to_owned(), all));
        }
    }
    lines
}

/// The same database, read afresh from what Automerge makes of it.
fn reloaded(documents: &Documents) -> Documents {
    let mut documents = documents.clone();
    let snapshots = ShardId::all().filter_map(|shard| documents.snapshot(shard)).collect();
    let (loaded, damages) = Documents::load(snapshots, Vec::new());
    assert_eq!(damages, []);
    loaded
}

#[test]
fn every_member_starts_from_the_same_change() {
    const GENESIS: &str = "2b9d4e672014de9289089b2f5004b43091685ec7c0a595879cd4228af3d4769d";
    let documents = Documents::new();
    for shard in ShardId::all() {
        assert_eq!(documents.heads(shard).map(|head| head.to_string()).collect::<Vec<_>>(), [GENESIS]);
    }
}

#[test]
fn a_change_is_seen_sent_and_counted_only_once_durable() {
    let mut documents = Documents::new();
    let n1 = node("n1");
    let shard = n1.shard();
    let (digest, root) = (documents.digest(shard), documents.root());

    let puts = [put(&n1, PRESENT, "1"), put(&n1, "custom.owner", "ann")];
    let written = documents.write(&puts, actor(1), NOON).expect("valid");

    assert_eq!(written.changes.len(), 1);
    assert_eq!(documents.get(&n1, "custom.owner"), None);
    assert_eq!(documents.nodes().count(), 0);
    assert!(documents.vector(shard).is_empty());
    assert_eq!((documents.digest(shard), documents.root()), (digest, root));
    assert!(documents.missing(shard, Generation(0), &Vector::new(), 1 << 20).changes.is_empty());

    let touched = documents.durable(&written.changes[0].id);

    assert_eq!(touched.len(), 2);
    assert_eq!(documents.get(&n1, "custom.owner"), Some("ann"));
    assert_eq!(documents.nodes().count(), 1);
    assert_eq!(documents.vector(shard), &Vector::from([(actor(1), 1)]));
    assert_ne!(documents.digest(shard), digest);
    assert_ne!(documents.root(), root);
    let missing = documents.missing(shard, Generation(0), &Vector::new(), 1 << 20);
    assert_eq!(missing.changes, [written.changes[0].bytes.clone()]);
    assert_eq!(documents.durable(&written.changes[0].id), []);
}

#[test]
fn a_received_change_is_as_invisible_until_durable() {
    let (mut a, mut b) = (Documents::new(), Documents::new());
    let n1 = node("n1");
    let changes = write(&mut a, &[put(&n1, PRESENT, "1")], actor(1));

    assert_eq!(receive(&mut b, &changes[0]), Ok(Received::New(changes[0].clone())));
    assert_eq!(b.nodes().count(), 0);
    assert_eq!(receive(&mut b, &changes[0]), Ok(Received::Duplicate { id: changes[0].id, durable: false }));
    b.durable(&changes[0].id);
    assert_eq!(b.nodes().count(), 1);
    assert_eq!(receive(&mut b, &changes[0]), Ok(Received::Duplicate { id: changes[0].id, durable: true }));
}

#[test]
fn what_is_durable_shows_while_a_later_write_is_not() {
    let mut documents = Documents::new();
    let s = Entity::Settings;
    let first = documents.write(&[put(&s, "custom.x", "1")], actor(1), NOON).expect("valid");
    let second = documents.write(&[put(&s, "custom.x", "2")], actor(1), NOON).expect("valid");

    documents.durable(&first.changes[0].id);
    assert_eq!(documents.get(&s, "custom.x"), Some("1"));
    assert_eq!(documents.missing(s.shard(), Generation(0), &Vector::new(), 1 << 20).changes.len(), 1);
    documents.durable(&second.changes[0].id);
    assert_eq!(documents.get(&s, "custom.x"), Some("2"));
    assert_eq!(documents.all(&s, "custom.x"), ["2"]);
}

#[test]
fn a_put_of_the_same_value_is_no_change_but_waits_for_the_one_it_repeats() {
    let mut documents = Documents::new();
    let puts = [put(&Entity::Settings, "custom.x", "1")];
    let first = documents.write(&puts, actor(1), NOON).expect("valid");
    let again = documents.write(&puts, actor(1), NOON).expect("valid");
    assert_eq!(again.changes, []);
    assert_eq!(again.awaits, [first.changes[0].id]);
    let absent = documents.write(&[delete(&Entity::Settings, "custom.y")], actor(1), NOON).expect("valid");
    assert_eq!(absent, again);
}

#[test]
fn concurrent_puts_are_both_kept_with_their_authors() {
    let (mut a, mut b) = (Documents::new(), Documents::new());
    let s = Entity::Settings;
    let of_a = write(&mut a, &[put(&s, "custom.x", "a")], actor(1));
    let of_b = write(&mut b, &[put(&s, "custom.x", "b")], actor(2));
    take(&mut a, &of_b[0]);
    take(&mut b, &of_a[0]);

    // Same counter: the higher actor wins.
    assert_eq!(a.all(&s, "custom.x"), ["b", "a"]);
    assert_eq!(a.conflicts(&s, "custom.x"), b.conflicts(&s, "custom.x"));
    assert_eq!(a.author(&s, "custom.x"), Some((actor(2), NOON)));

    let settled = write(&mut a, &[put(&s, "custom.x", "b")], actor(1));
    take(&mut b, &settled[0]);
    assert_eq!(b.all(&s, "custom.x"), ["b"]);
    assert_eq!(b.author(&s, "custom.x"), Some((actor(2), NOON)), "who settles for a value did not write it");
}

#[test]
fn attributes_of_an_absent_node_are_hidden_but_found_by_whoever_defines_it_anew() {
    let mut documents = Documents::new();
    let n1 = node("n1");
    write(&mut documents, &[put(&n1, PRESENT, "1"), put(&n1, "custom.x", "1")], actor(1));
    write(&mut documents, &[delete(&n1, PRESENT)], actor(1));
    assert_eq!(documents.get(&n1, "custom.x"), None);
    assert!(documents.entity(&n1).is_none());
    assert_eq!(documents.stored_attributes(&n1).collect::<Vec<_>>(), [("custom.x", "1")]);
}

#[test]
fn nodes_are_listed_in_natural_order() {
    let mut documents = Documents::new();
    let puts: Vec<_> = ["n10", "n2", "n1"].iter().map(|name| put(&node(name), PRESENT, "1")).collect();
    write(&mut documents, &puts, actor(1));
    assert_eq!(documents.nodes().map(NodeName::as_str).collect::<Vec<_>>(), ["n1", "n2", "n10"]);
}

#[test]
fn a_large_write_is_cut_into_changes_that_peers_take() {
    let (mut a, mut b) = (Documents::new(), Documents::new());
    let long = "x".repeat(VALUE_BYTES_MAX);
    let mut puts: Vec<_> = (0..5).map(|i| put(&Entity::Settings, &format!("custom.a{i}"), &long)).collect();
    puts.extend((0..2500).map(|i| put(&Entity::Settings, &format!("custom.b{i}"), "1")));
    let changes = write(&mut a, &puts, actor(1));
    assert!(changes.len() >= 7, "{}", changes.len());
    for change in &changes {
        assert!(change.bytes.len() <= CHANGE_BYTES_MAX);
        take(&mut b, change);
    }
    assert_eq!(a.digests(), b.digests());
    assert_eq!(dump(&a), dump(&b));
}

#[test]
fn invalid_puts_are_refused_before_anything_is_written() {
    let mut documents = Documents::new();
    let good = put(&node("n1"), PRESENT, "1");
    for bad in ["", "no spaces", "a..b", "!", "x\0y"] {
        let puts = [good.clone(), put(&node("n2"), bad, "1")];
        assert!(matches!(documents.write(&puts, actor(1), NOON), Err(DocumentError::Attribute { .. })), "{bad:?}");
    }
    let long = put(&node("n2"), "custom.x", &"x".repeat(VALUE_BYTES_MAX + 1));
    assert!(matches!(documents.write(&[good, long], actor(1), NOON), Err(DocumentError::ValueTooLong { .. })));
    assert!(ShardId::all().all(|shard| documents.applied(shard).is_empty()));
}

#[test]
fn a_database_reads_back_from_snapshots_and_changes_in_any_order() {
    let mut documents = Documents::new();
    let mut stored = Vec::new();
    for i in 0..40 {
        let n = node(&format!("n{}", i % 7));
        stored.extend(write(&mut documents, &[put(&n, PRESENT, "1"), put(&n, "custom.x", &i.to_string())], actor(1)));
    }
    let snapshot = documents.snapshot(node("n3").shard()).expect("a whole document");
    stored.retain(|change| change.id.shard != snapshot.shard);
    stored.extend(write(&mut documents, &[put(&node("n3"), "custom.x", "last")], actor(1)));
    stored.reverse();

    let changes = stored.into_iter().map(|change| (change.id, change.bytes)).collect();
    let (mut loaded, damages) = Documents::load(vec![snapshot], changes);

    assert_eq!(damages, []);
    assert_eq!(loaded.digests(), documents.digests());
    assert_eq!(dump(&loaded), dump(&documents));
    assert_eq!(loaded.author(&node("n3"), "custom.x"), Some((actor(1), NOON)));
    let more = write(&mut loaded, &[put(&node("n3"), "custom.x", "after")], actor(9));
    take(&mut documents, &more[0]);
    assert_eq!(loaded.digests(), documents.digests());
}

#[test]
fn a_damaged_document_is_named_and_left_empty_and_the_others_load() {
    let mut documents = Documents::new();
    let (n1, s) = (node("n1"), Entity::Settings);
    let mut stored = write(&mut documents, &[put(&n1, PRESENT, "1")], actor(1));
    stored.extend(write(&mut documents, &[put(&s, "custom.x", "1")], actor(1)));
    let second = write(&mut documents, &[put(&s, "custom.x", "2")], actor(1));
    let good: Vec<_> = stored.iter().map(|change| (change.id, change.bytes.clone())).collect();

    let mut flipped = good.clone();
    *flipped[1].1.last_mut().expect("bytes") ^= 1;
    let gap = vec![good[0].clone(), (second[0].id, second[0].bytes.clone())];
    let mut snapshot = documents.snapshot(s.shard()).expect("a whole document");
    snapshot.bytes.truncate(100);
    let foreign = StoredSnapshot { bytes: Automerge::new().save(), ..snapshot.clone() };
    let future = StoredSnapshot { generation: Generation(7), ..snapshot.clone() };
    for (snapshots, changes) in [
        (vec![], flipped),
        (vec![], gap),
        (vec![snapshot], good.clone()),
        (vec![foreign], good.clone()),
        (vec![future], good),
    ] {
        let (loaded, damages) = Documents::load(snapshots, changes);
        assert_eq!(damages.iter().map(|damage| damage.shard).collect::<Vec<_>>(), [s.shard()]);
        assert_eq!(loaded.digest(s.shard()), Documents::new().digest(s.shard()));
        assert_eq!(loaded.get(&s, "custom.x"), None);
        assert_eq!(loaded.nodes().count(), 1);
    }
}

#[test]
fn a_change_of_another_generation_never_meets_the_document() {
    let mut a = Documents::new();
    let change = &write(&mut a, &[put(&Entity::Settings, "custom.x", "1")], actor(1))[0];
    let mut b = Documents::new();
    let rejected = b.receive(change.id.shard, Generation(1), &change.bytes, &|_| true);
    assert_eq!(rejected, Err(Rejected::Generation(Generation(1))));
    assert!(a.missing(change.id.shard, Generation(1), &Vector::new(), 1 << 20).changes.is_empty());
}

#[test]
fn a_change_by_a_stranger_is_refused() {
    let mut a = Documents::new();
    let change = &write(&mut a, &[put(&Entity::Settings, "custom.x", "1")], actor(1))[0];
    let mut b = Documents::new();
    let rejected = b.receive(change.id.shard, change.id.generation, &change.bytes, &|who| who != actor(1));
    assert_eq!(rejected, Err(Rejected::UnknownActor(actor(1))));
}

#[test]
fn a_gap_is_refused_until_what_is_missing_came() {
    let mut a = Documents::new();
    let s = Entity::Settings;
    let changes: Vec<_> =
        (0..3).flat_map(|i| write(&mut a, &[put(&s, "custom.x", &i.to_string())], actor(i))).collect();
    let own = write(&mut a, &[put(&s, "custom.x", "own")], actor(0));
    let mut b = Documents::new();
    assert_eq!(receive(&mut b, &changes[2]), Err(Rejected::Missing), "a dependency is missing");
    assert_eq!(receive(&mut b, &own[0]), Err(Rejected::Missing), "a number is missing");
    for change in changes.iter().chain(&own) {
        take(&mut b, change);
    }
    assert_eq!(a.digests(), b.digests());
}

#[test]
fn two_changes_of_one_name_are_told_as_a_fork() {
    let (mut a, mut b) = (Documents::new(), Documents::new());
    let s = Entity::Settings;
    let ours = write(&mut a, &[put(&s, "custom.x", "1")], actor(1));
    let theirs = write(&mut b, &[put(&s, "custom.x", "2")], actor(1));
    assert_eq!(receive(&mut a, &theirs[0]), Err(Rejected::Forked(ours[0].id)));
    assert_eq!(a.all(&s, "custom.x"), ["1"]);
}

/// A document of the settings as a hostile peer has it, after one honest change.
fn hostile() -> (Documents, Automerge) {
    let mut documents = Documents::new();
    write(&mut documents, &[put(&Entity::Settings, "custom.x", "1")], actor(1));
    let bytes = documents.snapshot(ShardId::SETTINGS).expect("a whole document").bytes;
    let doc = Automerge::load(&bytes).expect("a snapshot").with_actor(ActorId::from([6; 16]));
    (documents, doc)
}

/// Commits what `edit` does to the bucket of the settings and returns the change.
fn crafted(
    doc: &mut Automerge,
    edit: impl FnOnce(&mut automerge::transaction::Transaction<'_>, &automerge::ObjId),
) -> Vec<u8> {
    let bucket = doc.get(ROOT, "00").expect("readable").expect("a bucket").1;
    let mut transaction = doc.transaction();
    edit(&mut transaction, &bucket);
    transaction.commit_with(CommitOptions::default());
    doc.get_last_local_change().expect("a change").raw_bytes().to_vec()
}

fn offer(documents: &mut Documents, bytes: &[u8]) -> Result<Received, Rejected> {
    documents.receive(ShardId::SETTINGS, Generation(0), bytes, &|_| true)
}

#[test]
fn only_puts_and_deletes_of_strings_under_valid_keys_are_taken() {
    type Edit = fn(&mut automerge::transaction::Transaction<'_>, &automerge::ObjId);
    const KEY: &str = "s/\0custom.y";
    let edits: [(&str, Edit); 14] = [
        ("an object", |t, b| drop(t.put_object(b, KEY, ObjType::Map))),
        ("a text", |t, b| drop(t.put_object(b, KEY, ObjType::Text))),
        ("a counter", |t, b| drop(t.put(b, KEY, ScalarValue::counter(1)))),
        ("a number", |t, b| drop(t.put(b, KEY, 1_i64))),
        ("bytes", |t, b| drop(t.put(b, KEY, vec![1_u8]))),
        ("null", |t, b| drop(t.put(b, KEY, ScalarValue::Null))),
        ("the root", |t, _| drop(t.put(ROOT, KEY, "1"))),
        ("another bucket", |t, _| {
            let other = t.get(ROOT, "01").expect("readable").expect("a bucket").1;
            drop(t.put(other, KEY, "1"));
        }),
        ("another document", |t, b| drop(t.put(b, "n1\0custom.y", "1"))),
        ("a key without a separator", |t, b| drop(t.put(b, "s/custom.y", "1"))),
        ("an invalid attribute", |t, b| drop(t.put(b, "s/\0custom y", "1"))),
        ("a value that is too long", |t, b| drop(t.put(b, KEY, "x".repeat(VALUE_BYTES_MAX + 1)))),
        ("too many operations", |t, b| {
            for i in 0..=vet::OPS_MAX {
                t.put(b, format!("s/\0custom.y{i}"), "1").expect("puts");
            }
        }),
        ("too many bytes", |t, b| {
            for i in 0..4 {
                t.put(b, format!("s/\0custom.y{i}"), "x".repeat(60_000)).expect("puts");
            }
        }),
    ];
    for (what, edit) in edits {
        let (mut documents, mut doc) = hostile();
        let digest = documents.digest(ShardId::SETTINGS);
        let rejected = offer(&mut documents, &crafted(&mut doc, edit));
        assert!(matches!(rejected, Err(Rejected::Malformed(_))), "{what}: {rejected:?}");
        assert_eq!(documents.digest(ShardId::SETTINGS), digest);
    }
    let (mut documents, mut doc) = hostile();
    let honest = crafted(&mut doc, |t, b| t.put(b, KEY, "1").expect("puts"));
    assert!(matches!(offer(&mut documents, &honest), Ok(Received::New(_))));
}

/// An honest put of the second actor as data, to be spoilt.
fn expanded(documents: &mut Documents) -> ExpandedChange {
    let deps: Vec<_> = documents.heads(ShardId::SETTINGS).collect();
    ExpandedChange {
        operations: vec![legacy::Op {
            action: OpType::Put(ScalarValue::Str("2".into())),
            obj: ObjectId::Id(legacy::OpId::new(1, &ActorId::from(vet::GENESIS.0))),
            key: legacy::Key::Map("s/\0custom.x".into()),
            pred: vec![legacy::OpId::new(65, &ActorId::from([1; 16]))].into(),
            insert: false,
        }],
        actor_id: ActorId::from([6; 16]),
        hash: None,
        seq: 1,
        start_op: 66.try_into().expect("positive"),
        time: 0,
        message: None,
        deps,
        extra_bytes: Vec::new(),
        author: None,
    }
}

#[test]
fn a_change_that_does_not_fit_its_document_is_refused() {
    type Spoil = fn(&mut ExpandedChange);
    let spoils: [(&str, Spoil); 13] = [
        ("a start that poisons every later write", |c| c.start_op = u64::from(u32::MAX).try_into().expect("positive")),
        ("a start beyond 32 bits", |c| c.start_op = (1 << 40).try_into().expect("positive")),
        ("a start beyond all counting", |c| c.start_op = u64::MAX.try_into().expect("positive")),
        ("a start in the past", |c| c.start_op = 65.try_into().expect("positive")),
        ("no dependencies", |c| c.deps.clear()),
        ("an unknown dependency", |c| c.deps = vec![ChangeHash([7; 32])]),
        ("number zero", |c| c.seq = 0),
        ("a number too far", |c| c.seq = 9),
        ("the actor of genesis", |c| c.actor_id = ActorId::from(vet::GENESIS.0)),
        ("an actor of eight bytes", |c| c.actor_id = ActorId::from([6; 8])),
        ("a predecessor of nobody", |c| {
            c.operations[0].pred = vec![legacy::OpId::new(65, &ActorId::from([9; 16]))].into();
        }),
        ("a message", |c| c.message = Some("hello".into())),
        ("bytes behind the end", |c| c.extra_bytes = vec![1, 2, 3]),
    ];
    for (what, spoil) in spoils {
        let (mut documents, _) = hostile();
        let mut change = expanded(&mut documents);
        spoil(&mut change);
        let rejected = offer(&mut documents, Change::from(change).raw_bytes());
        assert!(rejected.is_err(), "{what}: {rejected:?}");
        assert!(!documents.is_poisoned(ShardId::SETTINGS), "{what}");
        write(&mut documents, &[put(&Entity::Settings, "custom.x", "still works")], actor(1));
    }
    let (mut documents, _) = hostile();
    let honest = expanded(&mut documents);
    assert!(matches!(offer(&mut documents, Change::from(honest).raw_bytes()), Ok(Received::New(_))));
}

#[test]
fn a_compressed_change_or_a_document_is_refused_unopened() {
    let (mut documents, mut doc) = hostile();
    let document = doc.save();
    assert!(offer(&mut documents, &document).is_err());
    crafted(&mut doc, |t, b| t.put(b, "s/\0custom.y", "x".repeat(5_000)).expect("puts"));
    let mut change = doc.get_last_local_change().expect("a change");
    let compressed = change.bytes().into_owned();
    assert!(compressed.len() < 1_000);
    assert!(offer(&mut documents, &compressed).is_err());
}

/// Makes the checksum right again, as a hostile peer would.
fn seal(bytes: &mut [u8]) {
    if bytes.len() > 8 {
        let hash = ring::digest::digest(&ring::digest::SHA256, &bytes[8..]);
        bytes[4..8].copy_from_slice(&hash.as_ref()[..4]);
    }
}

#[test]
fn ten_thousand_spoilt_changes_are_refused_without_a_panic() {
    use rand_chacha::rand_core::{Rng, SeedableRng};
    let (documents, mut doc) = hostile();
    let honest = crafted(&mut doc, |t, b| {
        for i in 0..6 {
            t.put(b, format!("s/\0custom.y{i}"), i.to_string()).expect("puts");
        }
        t.delete(b, "s/\0custom.x").expect("deletes");
    });
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let mut target = documents.clone();
    let (mut taken, mut not_canonical) = (0, 0);
    for round in 0..10_000 {
        let mut bytes = honest.clone();
        for _ in 0..=random.next_u32() % 3 {
            let at = random.next_u32() as usize % bytes.len();
            match random.next_u32() % 4 {
                0 => bytes[at] ^= 1 << (random.next_u32() % 8),
                1 => bytes[at] = random.next_u32() as u8,
                2 => drop(bytes.remove(at)),
                _ => bytes.insert(at, random.next_u32() as u8),
            }
        }
        if round % 4 != 0 {
            seal(&mut bytes);
        }
        match offer(&mut target, &bytes) {
            Ok(_) => {
                taken += 1;
                target = documents.clone();
            }
            Err(Rejected::Malformed("is not written as Automerge writes")) => not_canonical += 1,
            Err(rejected) => assert_ne!(rejected, Rejected::Poisoned),
        }
    }
    // Some differ only in a value or a time: those are honest changes of another text.
    assert!(taken > 0 && taken < 5_000, "{taken}");
    assert!(not_canonical > 0);
    assert_eq!(target.digests(), documents.digests());
}

#[test]
fn a_frame_of_changes_ends_where_the_bytes_do() {
    let mut a = Documents::new();
    let s = Entity::Settings;
    for i in 0..20 {
        write(&mut a, &[put(&s, "custom.x", &i.to_string())], actor(1));
    }
    let mut vector = Vector::new();
    let mut frames = 0;
    loop {
        let missing = a.missing(s.shard(), Generation(0), &vector, 1_000);
        frames += 1;
        *vector.entry(actor(1)).or_default() += missing.changes.len() as u64;
        if !missing.more {
            break;
        }
    }
    assert!(frames > 2);
    assert_eq!(&vector, a.vector(s.shard()));
}

#[derive(Clone, Debug)]
enum Step {
    Write { site: usize, node: u8, attribute: u8, value: Option<u8> },
    Save { site: usize },
    Send { from: usize, to: usize, most: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_usize, 0..3_u8, 0..3_u8, proptest::option::of(0..3_u8))
            .prop_map(|(site, node, attribute, value)| Step::Write { site, node, attribute, value }),
        1 => (0..3_usize).prop_map(|site| Step::Save { site }),
        2 => (0..3_usize, 0..3_usize, 1..4_usize).prop_map(|(from, to, most)| Step::Send { from, to, most }),
    ]
}

/// Three members, each with the changes it has yet to save.
struct Sites(Vec<(Documents, Vec<NewChange>)>);

impl Sites {
    fn save(&mut self, site: usize) {
        let (documents, unsaved) = &mut self.0[site];
        for change in unsaved.drain(..) {
            documents.durable(&change.id);
        }
    }

    /// Sends the durable changes that `to` lacks, some of them twice.
    fn send(&mut self, from: usize, to: usize, most: usize) {
        for shard in ShardId::all() {
            let theirs = self.0[to].0.applied(shard);
            let missing = self.0[from].0.missing(shard, Generation(0), &theirs, 1 << 20);
            let (documents, unsaved) = &mut self.0[to];
            for bytes in missing.changes.iter().take(most).chain(missing.changes.first()) {
                match documents.receive(shard, Generation(0), bytes, &|_| true) {
                    Ok(Received::New(change)) => unsaved.push(change),
                    Ok(Received::Duplicate { .. }) => {}
                    Err(rejected) => panic!("{rejected}"),
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn members_converge_whatever_the_order_and_agree_with_automerge(
        steps in proptest::collection::vec(step(), 1..40)
    ) {
        let mut sites = Sites((0..3).map(|_| (Documents::new(), Vec::new())).collect());
        for step in steps {
            match step {
                Step::Write { site, node: number, attribute, value } => {
                    let (documents, unsaved) = &mut sites.0[site];
                    let n = node(&format!("n{number}"));
                    let attribute = [PRESENT, "custom.a", "custom.b"][usize::from(attribute)];
                    let value = value.map(|value| value.to_string());
                    let puts = [Put { entity: n, attribute: attribute.into(), value }];
                    unsaved.extend(documents.write(&puts, actor(site as u8 + 1), NOON).expect("valid").changes);
                }
                Step::Save { site } => sites.save(site),
                Step::Send { from, to, most } => sites.send(from, to, most),
            }
        }
        for _ in 0..2 {
            for (from, to) in [(0, 1), (1, 2), (2, 0), (0, 2), (2, 1), (1, 0)] {
                sites.save(from);
                sites.send(from, to, usize::MAX);
                sites.save(to);
            }
        }
        let all: Vec<_> = sites.0.iter().map(|(documents, _)| documents).collect();
        for other in &all[1..] {
            prop_assert_eq!(all[0].digests(), other.digests());
            prop_assert_eq!(dump(all[0]), dump(other));
        }
        let from_automerge = reloaded(all[0]);
        prop_assert_eq!(dump(all[0]), dump(&from_automerge));
        prop_assert_eq!(all[0].digests(), from_automerge.digests());
    }
}
