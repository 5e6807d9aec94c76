//! What every store must do, and what the one on disk must survive.

use std::path::Path;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use super::faults::{FaultyDisk, below};
use super::*;

// One suite for every store. `open` opens the same records again, as after a restart.

fn conformance(open: &mut dyn FnMut() -> Box<dyn Store>) {
    an_empty_store_loads_nothing(open);
    every_kind_of_record_reads_back(open);
    a_later_record_replaces_an_earlier_one(open);
    what_is_dropped_is_gone(open);
    a_snapshot_deletes_exactly_the_changes_it_covers(open);
    a_refused_group_changes_nothing(open);
}

fn an_empty_store_loads_nothing(open: &mut dyn FnMut() -> Box<dyn Store>) {
    assert_eq!(open().load(), Ok(Loaded::default()));
    assert_eq!(open().commit(&[]), Ok(()));
    assert!(open().load().expect("readable").is_empty());
}

fn every_kind_of_record_reads_back(open: &mut dyn FnMut() -> Box<dyn Store>) {
    let records = [
        Record::Incarnation(7),
        Record::Sequence(u64::MAX),
        Record::Roster(b"roster".to_vec()),
        Record::Acceptor(b"promise".to_vec()),
        Record::Invite { id: InviteId([1; 8]), bytes: b"invite".to_vec() },
        Record::Peer { id: MemberId([2; 16]), bytes: b"peer".to_vec() },
        Record::Setting { key: "name".into(), value: b"mgt1".to_vec() },
        Record::Setting { key: String::new(), value: Vec::new() },
        Record::Snapshot { shard: 64, generation: 1, bytes: b"document".to_vec(), covers: Vec::new() },
        change(3, 9, 256, b"later"),
        change(3, 9, 1, b"earlier"),
        change(0, 255, 1, b""),
    ];
    assert_eq!(open().commit(&records), Ok(()));

    let loaded = open().load().expect("readable");

    let stored = |shard, actor, seq, bytes: &[u8]| StoredChange {
        shard,
        generation: 0,
        actor: [actor; 16],
        seq,
        bytes: bytes.to_vec(),
    };
    let expected = Loaded {
        incarnation: Some(7),
        sequence: Some(u64::MAX),
        roster: Some(b"roster".to_vec()),
        acceptor: Some(b"promise".to_vec()),
        invites: BTreeMap::from([(InviteId([1; 8]), b"invite".to_vec())]),
        peers: BTreeMap::from([(MemberId([2; 16]), b"peer".to_vec())]),
        settings: BTreeMap::from([("name".to_owned(), b"mgt1".to_vec()), (String::new(), Vec::new())]),
        snapshots: BTreeMap::from([((64, 1), b"document".to_vec())]),
        changes: vec![stored(0, 255, 1, b""), stored(3, 9, 1, b"earlier"), stored(3, 9, 256, b"later")],
        damaged: Vec::new(),
    };
    assert_eq!(loaded, expected);
    assert!(open().size_bytes() > 0);
}

fn a_later_record_replaces_an_earlier_one(open: &mut dyn FnMut() -> Box<dyn Store>) {
    assert_eq!(open().commit(&[Record::Incarnation(8), Record::Incarnation(9)]), Ok(()));
    assert_eq!(open().load().expect("readable").incarnation, Some(9));
}

fn what_is_dropped_is_gone(open: &mut dyn FnMut() -> Box<dyn Store>) {
    let drops = [Record::ClearAcceptor, Record::DropInvite(InviteId([1; 8])), Record::DropPeer(MemberId([2; 16]))];
    assert_eq!(open().commit(&drops), Ok(()));
    assert_eq!(open().commit(&drops), Ok(()), "dropping what is gone is no error");
    let loaded = open().load().expect("readable");
    assert_eq!((loaded.acceptor, loaded.invites.len(), loaded.peers.len()), (None, 0, 0));
    assert_eq!(loaded.roster, Some(b"roster".to_vec()));
}

fn a_snapshot_deletes_exactly_the_changes_it_covers(open: &mut dyn FnMut() -> Box<dyn Store>) {
    let other_generation = Record::Change { shard: 5, generation: 1, actor: [1; 16], seq: 1, bytes: b"next".to_vec() };
    let mut records: Vec<_> = (1..=10).flat_map(|seq| [change(5, 1, seq, b"a"), change(5, 2, seq, b"b")]).collect();
    records.extend([change(5, 3, 1, b"c"), change(6, 1, 1, b"d"), other_generation]);
    assert_eq!(open().commit(&records), Ok(()));
    let covers = vec![([1; 16], 10), ([2; 16], 4)];
    let snapshot = Record::Snapshot { shard: 5, generation: 0, bytes: b"whole".to_vec(), covers };
    assert_eq!(open().commit(&[snapshot]), Ok(()));

    let loaded = open().load().expect("readable");

    let left: Vec<_> = loaded
        .changes
        .iter()
        .filter(|change| matches!(change.shard, 5 | 6))
        .map(|change| (change.shard, change.generation, change.actor[0], change.seq))
        .collect();
    let expected: Vec<_> =
        (5..=10).map(|seq| (5, 0, 2, seq)).chain([(5, 0, 3, 1), (5, 1, 1, 1), (6, 0, 1, 1)]).collect();
    assert_eq!(left, expected);
    assert_eq!(loaded.snapshots[&(5, 0)], b"whole");
}

fn a_refused_group_changes_nothing(open: &mut dyn FnMut() -> Box<dyn Store>) {
    let before = open().load();
    let group = [Record::Incarnation(99), Record::Setting { key: "k".repeat(1_000), value: Vec::new() }];
    assert!(matches!(open().commit(&group), Err(StoreError::Refused(_))));
    assert_eq!(open().load(), before);
}

#[test]
fn the_store_in_memory_conforms() {
    let store = MemoryStore::new();
    conformance(&mut || Box::new(store.clone()));
}

#[test]
fn the_store_on_disk_conforms() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    conformance(&mut || Box::new(open(dir.path()).store));
}

#[test]
fn the_store_on_disk_conforms_when_it_stays_open() {
    /// One open store behind many doors.
    struct Shared(std::sync::Arc<std::sync::Mutex<RedbStore>>);
    impl Store for Shared {
        fn commit(&mut self, records: &[Record]) -> Result<(), StoreError> {
            self.0.lock().expect("not poisoned").commit(records)
        }
        fn load(&mut self) -> Result<Loaded, StoreError> {
            self.0.lock().expect("not poisoned").load()
        }
        fn size_bytes(&self) -> u64 {
            self.0.lock().expect("not poisoned").size_bytes()
        }
    }
    let store = std::sync::Arc::new(std::sync::Mutex::new(on_disk(&FaultyDisk::default()).expect("a good disk")));
    conformance(&mut || Box::new(Shared(store.clone())));
}

// Files.

#[test]
fn a_new_database_is_private_and_says_that_it_is_new() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().expect("a temporary directory");
    assert!(open(dir.path()).created);
    assert!(!open(dir.path()).created);
    let metadata = std::fs::metadata(dir.path().join(DATABASE_FILE)).expect("is there");
    assert_eq!(metadata.mode() & 0o7777, 0o600);
}

#[test]
fn a_creation_cut_short_is_begun_again() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("collective.redb.new"), b"half a data").expect("can be written");
    assert!(open(dir.path()).created);
    assert_eq!(std::fs::read_dir(dir.path()).expect("is there").count(), 1);
}

#[test]
fn a_damaged_database_is_refused_or_set_aside_and_never_passes_for_a_new_one() {
    let whole = {
        let dir = tempfile::tempdir().expect("a temporary directory");
        open(dir.path()).store.commit(&[Record::Incarnation(1)]).expect("a good disk");
        std::fs::read(dir.path().join(DATABASE_FILE)).expect("is there")
    };
    let garbage = b"garbage".repeat(10_000);
    for damaged in [&b""[..], b"x", b"redb", &garbage, &whole[..100], &whole[..4096], &whole[..whole.len() / 2]] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join(DATABASE_FILE);
        write_private(&path, damaged);

        let error = RedbStore::open(dir.path(), OnDamage::Refuse).expect_err("damaged");
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert_eq!(std::fs::read(&path).expect("is there"), damaged, "refusing leaves the file alone");

        for n in 1..=2 {
            let mut opened = RedbStore::open(dir.path(), OnDamage::SetAside).expect("set aside");
            let aside = dir.path().join(format!("collective.redb.damaged-{n}"));
            assert_eq!(opened.set_aside.as_ref(), Some(&aside));
            assert_eq!(std::fs::read(&aside).expect("is there"), damaged);
            assert!(opened.created && opened.notices[0].contains("invite it again"), "{:?}", opened.notices);
            assert_eq!(opened.store.load(), Ok(Loaded::default()));
            drop(opened);
            write_private(&path, damaged);
        }
    }
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut store = open(dir.path()).store;
    store.write_raw(format::FILE_VERSION_KEY, &format::file_version_of(2)).expect("a good disk");
    drop(store);
    for on_damage in [OnDamage::Refuse, OnDamage::SetAside] {
        let error = RedbStore::open(dir.path(), on_damage).expect_err("newer");
        assert!(matches!(error, StoreError::NewerVersion { found: 2, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("written by a newer version"), "{error}");
    }
}

#[test]
fn one_damaged_record_leaves_the_others_readable() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut store = open(dir.path()).store;
    let records =
        [Record::Incarnation(4), Record::Roster(b"roster".to_vec()), change(9, 1, 1, b"x"), change(9, 1, 2, b"y")];
    store.commit(&records).expect("a good disk");
    let mut key = vec![9, 9, 0, 0, 0, 0, 0, 0, 0, 0];
    key.extend([1; 16]);
    key.extend(2_u64.to_be_bytes());
    store.write_raw(&key, b"not a frame").expect("a good disk");

    let loaded = store.load().expect("readable");

    assert_eq!((loaded.incarnation, loaded.changes.len()), (Some(4), 1));
    assert_eq!((loaded.damaged[0].kind, loaded.damaged[0].shard), (RecordKind::Change, Some(9)));
    assert!(!loaded.has_forgotten_promises());

    store.write_raw(&[3], b"").expect("a good disk");
    assert!(store.load().expect("readable").has_forgotten_promises(), "a lost roster is a lost promise");
}

// Faults.

#[test]
fn a_failed_sync_is_fatal_and_everything_after_it_is_refused() {
    for number in 0..3 {
        let disk = FaultyDisk::default();
        let mut store = on_disk(&disk).expect("a good disk");
        store.commit(&[Record::Incarnation(1)]).expect("a good disk");
        disk.fail_sync(number);
        let mut acknowledged = 1;
        let error = (2..10).find_map(|incarnation| {
            let error = store.commit(&[Record::Incarnation(incarnation)]).err();
            acknowledged = if error.is_none() { incarnation } else { acknowledged };
            error
        });
        let error = error.expect("every commit syncs");
        assert!(matches!(&error, StoreError::Fatal { reason, .. } if reason.starts_with("sync: ")), "{error}");
        // The disk is well again; the store is not.
        assert_eq!(store.commit(&[Record::Incarnation(50)]), Err(error.clone()));
        assert_eq!(store.load(), Err(error));
        drop(store);
        let found = on_disk(&FaultyDisk::with(disk.image())).expect("readable").load().expect("readable").incarnation;
        assert!(found == Some(acknowledged) || found == Some(acknowledged + 1), "{found:?}");
    }
}

#[test]
fn a_failed_write_is_fatal() {
    let disk = FaultyDisk::default();
    let mut store = on_disk(&disk).expect("a good disk");
    disk.die_after(disk.steps() + 1);
    let error = store.commit(&[Record::Incarnation(1)]).expect_err("the disk died");
    assert!(error.is_fatal(), "{error}");
}

#[test]
fn a_full_disk_refuses_the_write_and_takes_the_next_one_when_there_is_room() {
    let disk = FaultyDisk::default();
    let mut store = on_disk(&disk).expect("a good disk");
    store.commit(&[Record::Incarnation(1)]).expect("room");
    disk.fill_up_at(Some(disk.len_now()));
    let large = Record::Snapshot { shard: 1, generation: 0, bytes: vec![7; 8 << 20], covers: Vec::new() };
    let before = store.load();

    for _ in 0..2 {
        let error = store.commit(std::slice::from_ref(&large)).expect_err("no room");
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert!(error.to_string().contains("make room"), "{error}");
        assert_eq!(store.load(), before);
    }
    // What fits is still taken, and what was stored is still there.
    assert_eq!(store.commit(&[Record::Incarnation(2)]), Ok(()));
    disk.fill_up_at(None);
    assert_eq!(store.commit(&[large]), Ok(()));
    drop(store);
    let loaded = on_disk(&FaultyDisk::with(disk.image())).expect("readable").load().expect("readable");
    assert_eq!((loaded.incarnation, loaded.snapshots[&(1, 0)].len()), (Some(2), 8 << 20));
}

/// The groups of one run: all kinds of records, some large, some deleting.
fn workload(rng: &mut ChaCha8Rng) -> Vec<Vec<Record>> {
    let mut next = [0_u64; 4];
    let mut groups = Vec::new();
    for round in 0..16_u64 {
        let mut group = vec![Record::Sequence(round)];
        for _ in 0..below(rng, 6) {
            let shard = u8::try_from(below(rng, 4)).expect("small");
            let last = &mut next[usize::from(shard)];
            if below(rng, 8) == 0 {
                let covers = vec![([1; 16], *last)];
                group.push(Record::Snapshot { shard, generation: 0, bytes: vec![shard; below(rng, 20_000)], covers });
            } else {
                *last += 1;
                let mut bytes = vec![0; below(rng, 3_000)];
                rng.fill_bytes(&mut bytes);
                group.push(change(shard, 1, *last, &bytes));
            }
        }
        match below(rng, 4) {
            0 => group.push(Record::Acceptor(round.to_be_bytes().to_vec())),
            1 => group.push(Record::ClearAcceptor),
            _ => group.push(Record::Roster(vec![0; below(rng, 9_000)])),
        }
        groups.push(group);
    }
    groups
}

/// Stores the groups until the disk dies. Returns what was acknowledged, and that plus the group under way.
fn run(store: &mut RedbStore, groups: &[Vec<Record>]) -> (Loaded, Loaded) {
    let mut model = MemoryStore::new();
    for group in groups {
        let acknowledged = model.load().expect("in memory");
        let result = store.commit(group);
        model.commit(group).expect("in memory");
        if result.is_err() {
            return (acknowledged, model.load().expect("in memory"));
        }
    }
    let all = model.load().expect("in memory");
    (all.clone(), all)
}

#[test]
fn nothing_acknowledged_is_lost_wherever_a_crash_falls() {
    let mut steps = 0;
    let mut cut_short = 0;
    for seed in 0..240_u64 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let groups = workload(&mut rng);
        let disk = FaultyDisk::default();
        let mut store = on_disk(&disk).expect("a good disk");
        if seed > 0 {
            disk.die_after(disk.steps() + rng.next_u64() % steps);
        }
        let begun = disk.steps();
        let (acknowledged, with_last) = run(&mut store, &groups);
        steps = steps.max(disk.steps() - begun);
        cut_short += u32::from(acknowledged != with_last);
        // The crash: what the store does while it is dropped does not reach the disk.
        disk.die_after(0);
        let images = [
            ("killed", disk.image()),
            ("power cut", disk.image_after_power_cut(&mut rng)),
            ("reordering power cut", disk.image_after_reordering_power_cut(&mut rng)),
        ];
        drop(store);
        for (how, image) in images {
            let found = on_disk(&FaultyDisk::with(image)).and_then(|mut store| store.load());
            let found = found.unwrap_or_else(|error| panic!("seed {seed}, {how}: {error}"));
            assert!(
                found == acknowledged || found == with_last,
                "seed {seed}, {how}: {:?} of {:?}",
                found.sequence,
                acknowledged.sequence
            );
        }
    }
    assert!(cut_short > 200, "only {cut_short} crashes fell into a commit");
}

#[test]
fn a_crash_while_recovering_loses_nothing_either() {
    for seed in 0..30 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let groups = workload(&mut rng);
        let disk = FaultyDisk::default();
        let (acknowledged, _) = run(&mut on_disk(&disk).expect("a good disk"), &groups);
        let mut image = disk.image();
        for _ in 0..4 {
            let disk = FaultyDisk::with(image);
            disk.die_after(rng.next_u64() % 12);
            let _ = on_disk(&disk).and_then(|mut store| store.load());
            image = disk.image_after_power_cut(&mut rng);
        }
        let found = on_disk(&FaultyDisk::with(image)).and_then(|mut store| store.load());
        assert_eq!(found.as_ref(), Ok(&acknowledged), "seed {seed}");
    }
}

/// Damages an image as failing hardware, careless copying and stray programs do.
fn damage(image: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut image = image.to_vec();
    let page = |rng: &mut ChaCha8Rng, len: usize| below(rng, len / 4096) * 4096;
    // Damage of the first pages, where the header is, half of the time.
    let place = |rng: &mut ChaCha8Rng, len: usize| {
        if rng.next_u32() & 1 == 0 { below(rng, 400.min(len)) } else { below(rng, len) }
    };
    match below(rng, 7) {
        0 => (0..=below(rng, 8)).for_each(|_| {
            let at = place(rng, image.len());
            image[at] ^= 1 << below(rng, 8);
        }),
        1 => {
            let at = place(rng, image.len());
            let end = (at + 1 + below(rng, 5_000)).min(image.len());
            rng.fill_bytes(&mut image[at..end]);
        }
        // Not to nothing: that is a new disk.
        2 => image.truncate(1 + below(rng, image.len() - 1)),
        3 => image.truncate(4096 + page(rng, image.len() - 4096)),
        4 => {
            let (from, to) = (page(rng, image.len()), page(rng, image.len()));
            image.copy_within(from..from + 4096, to);
        }
        5 => {
            let at = page(rng, image.len());
            image[at..at + 4096].fill(0);
        }
        _ => {
            let more = below(rng, 100_000);
            image.resize(image.len() + more, 0xa5);
        }
    }
    image
}

/// Opens 600 mutants. Returns how many were noticed to be damaged; whatever opens holds one of `whole` or says what
/// it lost.
fn mutilate(image: &[u8], whole: &[&Loaded], seed: u64) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let opened = (0..600).map(|mutant| {
        match on_disk(&FaultyDisk::with(damage(image, &mut rng))).and_then(|mut store| store.load()) {
            Ok(loaded) if loaded.damaged.is_empty() => {
                assert!(whole.contains(&&loaded), "mutant {mutant} lost something and did not say so");
                0
            }
            Ok(_) | Err(StoreError::Damaged { .. }) => 1,
            Err(error) => panic!("mutant {mutant}: {error}"),
        }
    });
    opened.sum()
}

#[test]
fn a_mutilated_database_is_damaged_or_whole_and_never_half_or_a_panic() {
    let disk = FaultyDisk::default();
    let groups = workload(&mut ChaCha8Rng::seed_from_u64(1));
    let (all, _) = run(&mut on_disk(&disk).expect("a good disk"), &groups);
    assert!(mutilate(&disk.image(), &[&all], 2) > 200);
}

#[test]
fn a_database_mutilated_after_a_crash_is_damaged_or_goes_back_one_commit_at_most() {
    let disk = FaultyDisk::default();
    let groups = workload(&mut ChaCha8Rng::seed_from_u64(1));
    let mut store = on_disk(&disk).expect("a good disk");
    let (before, _) = run(&mut store, &groups[..groups.len() - 1]);
    let (.., last) = (run(&mut store, &groups[groups.len() - 1..]), store.load().expect("readable"));
    // Not closed: what damage did to the last commit cannot be told from a power cut in the middle of it.
    assert!(mutilate(&disk.image(), &[&before, &last], 3) > 200);
}

// The document.

/// docs/storage.md carries the hash of the code it describes. `UPDATE=1 cargo test store` writes it anew.
#[test]
fn the_document_of_the_format_moves_with_its_source() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(root.join("src/store/format.rs")).expect("is there");
    let described = source.split("#[cfg(test)]").next().unwrap_or_default();
    let hash = ring::digest::digest(&ring::digest::SHA256, described.as_bytes());
    let line =
        format!("<!-- describes src/store/format.rs, sha256 {} -->", data_encoding::HEXLOWER.encode(hash.as_ref()));
    let path = root.join("docs/storage.md");
    let document = std::fs::read_to_string(&path).expect("is there");
    if std::env::var_os("UPDATE").is_some() {
        let updated: Vec<_> = document
            .lines()
            .map(|old| if old.starts_with("<!-- describes src/store/format.rs") { line.as_str() } else { old })
            .collect();
        std::fs::write(&path, updated.join("\n") + "\n").expect("can be written");
        return;
    }
    assert!(
        document.contains(&line),
        "the stored format changed: describe the change in docs/storage.md, then put this line there:\n{line}"
    );
}

fn change(shard: u8, actor: u8, seq: u64, bytes: &[u8]) -> Record {
    Record::Change { shard, generation: 0, actor: [actor; 16], seq, bytes: bytes.to_vec() }
}

fn open(dir: &Path) -> Opened {
    RedbStore::open(dir, OnDamage::Refuse).expect("a good disk")
}

fn on_disk(disk: &FaultyDisk) -> Result<RedbStore, StoreError> {
    let disk = disk.clone();
    RedbStore::on_backend(Path::new("test.redb"), Box::new(move || Ok(Box::new(disk.clone()))))
}

fn write_private(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes).expect("can be written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("own file");
}
