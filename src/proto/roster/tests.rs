//! The roster, one change and one refusal a test; and rosters for the tests of others.

use super::*;
use proptest::prelude::*;

/// A member `m<n>` with its own id and key.
pub(crate) fn member(n: u8, role: Role) -> Member {
    Member { id: MemberId([n; 16]), name: name(n), role, learner: false, fingerprints: vec![Fingerprint([n; 32])] }
}

/// A roster whose voters are `m1` to `m<count>`.
pub(crate) fn voters(count: u8) -> Roster {
    let genesis = Roster::genesis(ClusterId([9; 16]), Timing::LAN, member(1, Role::Voter));
    (2..=count).fold(genesis, |roster, n| {
        let joined = roster.next(&add(member(n, Role::Voter), n), WallTime(0)).expect("can join");
        joined.next(&Change::Promote { id: MemberId([n; 16]) }, WallTime(0)).expect("can vote")
    })
}

/// The change that adds a member by its own invitation.
pub(crate) fn add(member: Member, invite: u8) -> Change {
    Change::Add { member, invite: InviteId([invite; 8]), expires: WallTime(1_000), uses_max: 1 }
}

fn name(n: u8) -> MemberName {
    MemberName::new(&format!("m{n}")).expect("valid")
}

fn id(n: u8) -> MemberId {
    MemberId([n; 16])
}

fn key(n: u8) -> Fingerprint {
    Fingerprint([n; 32])
}

/// The enrolment `n` of the member `m<named>` with the key `with`.
fn enrolment(n: u8, named: u8, with: u8) -> Member {
    Member { id: id(n), name: name(named), fingerprints: vec![key(with)], ..member(n, Role::Voter) }
}

fn after(roster: &Roster, change: &Change) -> Roster {
    let next = roster.next(change, WallTime(0)).expect("possible");
    assert!(next.follows(roster));
    assert_eq!(next.check(), Ok(()));
    assert!(change.is_made_in(&next) && !change.is_made_in(roster));
    next
}

fn refusal(roster: &Roster, change: &Change) -> RosterError {
    roster.next(change, WallTime(0)).expect_err("to be refused")
}

#[test]
fn a_hash_that_is_known_is_never_that_of_another_roster() {
    let mut roster = voters(1);
    let first = roster.hash();
    assert_eq!(roster.hash(), first);
    let next = after(&roster, &add(member(2, Role::Voter), 1));
    assert_ne!(next.hash(), first);
    let sent = minicbor::to_vec(&next).expect("encodes");
    assert_eq!(minicbor::decode::<Roster>(&sent).expect("decodes").hash(), next.hash());
    roster.previous.0[0] ^= 1;
    assert_ne!(roster.hash(), first);
}

#[test]
fn the_founder_votes_whatever_it_was_called() {
    let roster = Roster::genesis(ClusterId([9; 16]), Timing::LAN, member(1, Role::Witness));
    assert_eq!(*roster.voters(), BTreeSet::from([id(1)]));
    assert_eq!(roster.version.to_string(), "0.1");
    assert_eq!(roster.check(), Ok(()));
}

#[test]
fn a_joiner_is_a_learner_until_it_is_promoted() {
    // R3.
    let joined = after(&voters(1), &add(member(2, Role::Voter), 2));
    assert_eq!(*joined.voters(), BTreeSet::from([id(1)]));
    let promoted = after(&joined, &Change::Promote { id: id(2) });
    assert_eq!(*promoted.voters(), BTreeSet::from([id(1), id(2)]));
    assert_eq!(refusal(&promoted, &Change::Promote { id: id(2) }), RosterError::NoChange);
    assert_eq!(refusal(&promoted, &Change::Promote { id: id(3) }), RosterError::NoSuchMember);
}

#[test]
fn a_nonvoting_joiner_has_nothing_to_be_promoted_to() {
    let joined = after(&voters(1), &add(member(2, Role::Nonvoting), 2));
    assert_eq!(refusal(&joined, &Change::Promote { id: id(2) }), RosterError::NoChange);
}

#[test]
fn an_invitation_is_used_up_by_the_epoch_that_adds() {
    // I6.
    let joined = after(&voters(1), &add(member(2, Role::Voter), 7));
    assert_eq!(joined.uses(InviteId([7; 8])), 1);
    assert_eq!(refusal(&joined, &add(member(3, Role::Voter), 7)), RosterError::InviteUsed);
}

#[test]
fn a_used_invitation_outlives_its_expiry_by_more_than_any_clock_is_wrong() {
    let joined = after(&voters(1), &add(member(2, Role::Voter), 7));
    let promote = Change::Promote { id: id(2) };
    let kept = WallTime(1_000).plus(CONSUMED_KEPT);
    assert_eq!(joined.next(&promote, kept).expect("possible").uses(InviteId([7; 8])), 1);
    assert_eq!(joined.next(&promote, WallTime(kept.0 + 1)).expect("possible").uses(InviteId([7; 8])), 0);
}

#[test]
fn a_new_enrolment_of_a_name_replaces_the_old_one_and_its_vote() {
    let roster = after(&voters(3), &add(enrolment(40, 3, 40), 40));
    assert_eq!(*roster.voters(), BTreeSet::from([id(1), id(2)]));
    assert_eq!(roster.by_name(&name(3)).map(|member| member.id), Some(id(40)));
    assert_eq!(roster.removed(id(3)).map(|removed| removed.epoch), Some(roster.version.epoch));
}

#[test]
fn the_only_voter_is_not_replaced() {
    let roster = after(&voters(1), &add(member(2, Role::Nonvoting), 2));
    assert_eq!(refusal(&roster, &add(enrolment(40, 1, 40), 40)), RosterError::ReplacesVoter);
    assert_eq!(refusal(&roster, &Change::Remove { id: id(1) }), RosterError::LastVoter);
    let unvote = Change::SetRole { id: id(1), role: Role::Nonvoting };
    assert_eq!(refusal(&roster, &unvote), RosterError::LastVoter);
}

#[test]
fn an_enrolment_never_writes_over_another() {
    // R2: without this, one change could take the vote of m2 (by id) and of m3 (by name).
    let clash = Member { id: id(2), fingerprints: vec![key(40)], ..enrolment(40, 3, 40) };
    assert_eq!(refusal(&voters(3), &add(clash, 40)), RosterError::IsMember(name(2)));
}

#[test]
fn a_removed_enrolment_never_comes_back_but_its_machine_may() {
    // R8.
    let roster = after(&voters(3), &Change::Remove { id: id(3) });
    assert_eq!(refusal(&roster, &add(member(3, Role::Voter), 40)), RosterError::WasRemoved(roster.version.epoch));
    assert!(roster.removed_by_fingerprint(key(3)).is_some());
    let again = after(&roster, &add(enrolment(40, 3, 3), 40));
    assert_eq!(again.by_fingerprint(key(3)).map(|member| member.id), Some(id(40)));
    assert!(again.removed_by_fingerprint(key(3)).is_none(), "a member is not told that it was removed");
    let thrice = after(&again, &add(enrolment(41, 3, 3), 41));
    assert_eq!(thrice.by_fingerprint(key(3)).map(|member| member.id), Some(id(41)));
}

#[test]
fn a_key_serves_one_name_only() {
    let roster = after(&voters(3), &Change::Remove { id: id(3) });
    assert_eq!(refusal(&roster, &add(enrolment(40, 40, 2), 40)), RosterError::KeyInUse(name(2)));
    assert_eq!(refusal(&roster, &add(enrolment(40, 40, 3), 40)), RosterError::KeyInUse(name(3)));
    let steal = Change::AddFingerprint { id: id(1), fingerprint: key(2) };
    assert_eq!(refusal(&roster, &steal), RosterError::KeyInUse(name(2)));
}

#[test]
fn a_new_member_has_exactly_one_key() {
    for fingerprints in [vec![], vec![key(40), key(41)]] {
        let newcomer = Member { fingerprints, ..member(40, Role::Voter) };
        assert_eq!(refusal(&voters(1), &add(newcomer, 40)), RosterError::OneKey);
    }
}

#[test]
fn a_key_is_rotated_in_two_halves() {
    let second = Change::AddFingerprint { id: id(1), fingerprint: key(50) };
    let both = after(&voters(1), &second);
    assert_eq!(both.by_fingerprint(key(1)), both.by_fingerprint(key(50)));
    assert_eq!(refusal(&both, &second), RosterError::NoChange);
    // The second key may be in use by now: a third must not push it out.
    let third = Change::AddFingerprint { id: id(1), fingerprint: key(51) };
    assert_eq!(refusal(&both, &third), RosterError::Rotating);
    let stranger = Change::KeepFingerprint { id: id(1), fingerprint: key(51) };
    assert_eq!(refusal(&both, &stranger), RosterError::NoChange);
    let rotated = after(&both, &Change::KeepFingerprint { id: id(1), fingerprint: key(50) });
    assert!(rotated.by_fingerprint(key(1)).is_none());
    assert_eq!(refusal(&rotated, &Change::KeepFingerprint { id: id(1), fingerprint: key(50) }), RosterError::NoChange);
}

#[test]
fn a_role_that_votes_keeps_the_vote_and_one_that_gains_it_learns_first() {
    let set = |role| Change::SetRole { id: id(3), role };
    let witness = after(&voters(3), &set(Role::Witness));
    assert_eq!(witness.voters().len(), 3);
    let nonvoting = after(&witness, &set(Role::Nonvoting));
    assert_eq!(nonvoting.voters().len(), 2);
    let learner = after(&nonvoting, &set(Role::Voter));
    assert_eq!(learner.voters().len(), 2);
    assert_eq!(after(&learner, &set(Role::Witness)).voters().len(), 2);
    assert_eq!(refusal(&learner, &set(Role::Voter)), RosterError::NoChange);
}

#[test]
fn a_full_roster_takes_nobody_and_forgets_the_oldest_removal_first() {
    let mut roster = voters(1);
    for n in 0..MEMBERS_MAX as u16 - 1 {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        let name = MemberName::new(&format!("x{n}")).expect("valid");
        let fingerprints = vec![Fingerprint(key)];
        let filler = Member { id: MemberId(id), name, fingerprints, ..member(2, Role::Nonvoting) };
        roster.members.insert(filler.id, filler);
    }
    assert_eq!(refusal(&roster, &add(member(2, Role::Voter), 2)), RosterError::Full);
    for epoch in 0..REMOVED_MAX as u64 {
        let mut id = [0xff; 16];
        id[8..].copy_from_slice(&(u64::MAX - epoch).to_be_bytes());
        roster.removed.insert(MemberId(id), Removed { name: name(2), epoch, fingerprints: vec![] });
    }
    let first = MemberId([0; 16]);
    let next = after(&roster, &Change::Remove { id: first });
    assert!(next.removed(first).is_some());
    assert_eq!((next.removed.len(), next.removed.values().filter(|gone| gone.epoch == 0).count()), (REMOVED_MAX, 0));
}

#[test]
fn a_successor_must_name_its_predecessor_and_move_one_vote_at_most() {
    let roster = voters(3);
    let good = after(&roster, &Change::Remove { id: id(3) });
    let mut fork = good.clone();
    fork.previous = RosterHash([1; 32]);
    assert!(!fork.follows(&roster));
    let mut leap = good.clone();
    leap.version = leap.version.next();
    assert!(!leap.follows(&roster));
    let mut two = good.clone();
    two.members.remove(&id(2));
    assert!(!two.follows(&roster), "R2");
    let mut foreign = good;
    foreign.cluster = ClusterId([1; 16]);
    assert!(!foreign.follows(&roster));
}

#[test]
fn an_unsound_roster_is_named_as_such() {
    let sound = voters(3);
    let broken = |harm: fn(&mut Roster)| {
        let mut roster = sound.clone();
        harm(&mut roster);
        roster.check().expect_err("unsound").0
    };
    assert_eq!(sound.check(), Ok(()));
    assert_eq!(broken(|roster| roster.timing.margin_permille = 1_000), "a duration makes no sense");
    assert_eq!(broken(|roster| roster.timing.lease_ms = 0), "a duration makes no sense");
    assert_eq!(broken(|roster| roster.members.clear()), "there is no voter");
    let second = |roster: &mut Roster, harm: fn(&mut Member)| harm(roster.members.get_mut(&id(2)).expect("there"));
    let broken = |harm: fn(&mut Member)| {
        let mut roster = sound.clone();
        second(&mut roster, harm);
        roster.check().expect_err("unsound").0
    };
    assert_eq!(broken(|member| member.id = id(7)), "a member is filed under another id");
    assert_eq!(broken(|member| member.name = name(1)), "two members have one name");
    assert_eq!(broken(|member| member.fingerprints.clear()), "a member has neither one key nor two");
    assert_eq!(broken(|member| member.fingerprints = vec![key(1)]), "one key is listed twice");
    let mut learner = sound.clone();
    second(&mut learner, |member| (member.role, member.learner) = (Role::Nonvoting, true));
    assert_eq!(learner.check(), Err(RosterDefect("a learner's role has no vote")));
}

#[test]
fn a_roster_reads_back_and_keeps_its_hash() {
    let roster = after(&voters(3), &Change::Remove { id: id(2) });
    let bytes = minicbor::to_vec(&roster).expect("encodes");
    let back: Roster = minicbor::decode(&bytes).expect("decodes");
    assert_eq!((back.hash(), &back), (roster.hash(), &roster));
    assert!(back.hash() != voters(3).hash());
}

#[test]
fn durations_follow_from_the_lease() {
    assert_eq!(Timing::LAN.usable(), Duration::from_millis(1_900));
    assert_eq!(Timing::LAN.quiet(), Duration::from_millis(2_100));
    assert_eq!(Timing { margin_permille: u16::MAX, ..Timing::LAN }.usable(), Duration::ZERO);
    for name in ["local", "lan", "wan"] {
        assert!(Timing::profile(name).is_some_and(Timing::is_sound), "{name}");
    }
}

fn any_change() -> impl Strategy<Value = Change> {
    let role = || prop_oneof![Just(Role::Voter), Just(Role::Nonvoting), Just(Role::Witness)];
    let ids = || (1..8_u8).prop_map(id);
    let keys = || (1..12_u8).prop_map(key);
    prop_oneof![
        (1..12_u8, 1..6_u8, 1..12_u8, role(), any::<bool>(), 1..6_u8).prop_map(
            |(n, named, with, role, learner, invite)| Change::Add {
                member: Member { role, learner, ..enrolment(n, named, with) },
                invite: InviteId([invite; 8]),
                expires: WallTime(1_000),
                uses_max: 3,
            }
        ),
        ids().prop_map(|id| Change::Promote { id }),
        ids().prop_map(|id| Change::Promote { id }),
        ids().prop_map(|id| Change::Remove { id }),
        (ids(), role()).prop_map(|(id, role)| Change::SetRole { id, role }),
        (ids(), keys()).prop_map(|(id, fingerprint)| Change::AddFingerprint { id, fingerprint }),
        (ids(), keys()).prop_map(|(id, fingerprint)| Change::KeepFingerprint { id, fingerprint }),
    ]
}

proptest! {
    #[test]
    fn every_change_moves_at_most_one_vote_and_leaves_a_sound_roster(
        changes in prop::collection::vec(any_change(), 1..60),
    ) {
        // R2: a majority of each roster's voters meets every majority of the next one's.
        let mut roster = voters(2);
        for change in changes {
            if let Ok(next) = roster.next(&change, WallTime(0)) {
                prop_assert!(next.voters().symmetric_difference(roster.voters()).count() <= 1, "{change:?}");
                prop_assert!(next.follows(&roster));
                prop_assert_eq!(next.check(), Ok(()));
                prop_assert!(roster.ids().all(|id| next.member(id).is_some() || next.removed(id).is_some()));
                prop_assert!(roster.removed_ids().all(|id| next.member(id).is_none()));
                roster = next;
            }
        }
    }
}

#[test]
fn what_is_looked_up_follows_every_change() {
    let names = |roster: &Roster| roster.members().map(|member| member.name.to_string()).collect::<Vec<_>>();
    let roster = voters(2);
    assert_eq!(names(&roster), ["m1", "m2"]);
    let joined = after(&roster, &add(enrolment(7, 0, 7), 9));
    assert_eq!((names(&joined), joined.learners()), (vec!["m0".into(), "m1".into(), "m2".into()], &[id(7)][..]));
    assert_eq!(joined.by_name(&name(0)), joined.by_fingerprint(key(7)));
    assert_eq!(joined.voters_by_name(), [id(1), id(2)]);
    let promoted = after(&joined, &Change::Promote { id: id(7) });
    assert_eq!((promoted.voters_by_name(), promoted.learners().len()), (&[id(7), id(1), id(2)][..], 0));
    let without = after(&promoted, &Change::Remove { id: id(1) });
    assert_eq!((names(&without), without.by_name(&name(1))), (vec!["m0".into(), "m2".into()], None));
    assert_eq!(without.by_prefix([1; 8]), Some(id(1)), "who was removed is still the author of its changes");
    assert_eq!(without.by_prefix([3; 8]), None);
}
