//! The inviter's book: which invitations are open, and who has proven to hold one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use minicbor::{Decode, Encode};
use ring::digest::{Context, SHA256};
use zeroize::Zeroizing;

use super::join::{JoinAnswer, JoinHello, JoinRefusal, Transcript, member_id, verify};
use super::token::{Seed, TOKEN_ADDRESSES_MAX, Token};
use crate::proto::identity::{ClusterId, Fingerprint, InviteId};
use crate::proto::name::MemberName;
use crate::proto::roster::{Change, Member, Role, Roster};
use crate::proto::time::WallTime;

/// How long an invitation is open unless its inviter says otherwise.
pub const TTL_DEFAULT: Duration = Duration::from_secs(3_600);
/// The longest time an invitation may be open.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 3_600);
/// The shortest time an invitation may be open.
pub const TTL_MIN: Duration = Duration::from_secs(1);
/// Wrong proofs that burn an invitation.
pub const ATTEMPTS_MAX: u8 = 5;
/// Members that may join by one invitation.
pub const USES_MAX: u32 = 1_000;
/// Invitations in the book, open or remembered.
pub const INVITES_MAX: usize = 1_000;

/// How long a finished invitation is remembered beyond its expiry, so that its holder is told what became of it.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// What an inviter keeps of an invitation, durably. Nothing in it lets anyone join.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// The invitation.
    #[n(0)]
    pub id: InviteId,
    /// The public half of the token's seed.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub public: [u8; 32],
    /// Whom it invites, or what it is called where it may be used more than once.
    #[n(2)]
    pub name: MemberName,
    /// The role it gives.
    #[n(3)]
    pub role: Role,
    /// When it was made.
    #[n(4)]
    pub created: WallTime,
    /// When it expires.
    #[n(5)]
    pub expires: WallTime,
    /// How many members may join by it.
    #[n(6)]
    pub uses_max: u32,
    /// How many members joined by it.
    #[n(7)]
    pub uses: u32,
    /// How many wrong proofs it still stands.
    #[n(8)]
    pub attempts_left: u8,
}

/// What became of an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InviteState {
    /// It can be used.
    Open,
    /// It was used as often as it may be.
    Used,
    /// It was not used in time.
    Expired,
    /// It was tried with too many wrong proofs.
    Burnt,
}

impl Invite {
    /// Returns what became of it by this wall clock.
    pub fn state(&self, wall: WallTime) -> InviteState {
        if self.attempts_left == 0 {
            InviteState::Burnt
        } else if self.uses >= self.uses_max {
            InviteState::Used
        } else if wall >= self.expires {
            InviteState::Expired
        } else {
            InviteState::Open
        }
    }

    /// Returns whether a joiner may take this name.
    ///
    /// An invitation for one is for its own name only. With one for several, every joiner brings its own name.
    pub fn admits(&self, name: &MemberName) -> bool {
        self.uses_max > 1 || self.name == *name
    }

    /// Returns whether the joiner may take the place of an unreachable member of its name.
    ///
    /// With an invitation for several it may not: its holder would choose whom to push out.
    pub fn may_replace(&self) -> bool {
        self.uses_max == 1
    }

    /// Makes the change that adds a joiner to `roster` and uses the invitation up in the same epoch. I6.
    pub fn change(&self, roster: &Roster, name: MemberName, joiner: Fingerprint) -> Change {
        let member = Member {
            id: member_id(roster.cluster, self.id, joiner, roster.uses(self.id)),
            name,
            role: self.role,
            learner: self.role.votes(), // R3.
            fingerprints: vec![joiner],
        };
        Change::Add { member, invite: self.id, expires: self.expires, uses_max: self.uses_max }
    }
}

/// What an inviter asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteTerms {
    /// Whom to invite.
    pub name: MemberName,
    /// As what.
    pub role: Role,
    /// For how long; [`TTL_MIN`] to [`TTL_MAX`].
    pub ttl: Duration,
    /// How many members; 1 to [`USES_MAX`].
    pub uses: u32,
}

/// A new invitation. The token is shown once and then dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Created {
    /// What is kept.
    pub invite: Invite,
    /// What is shown.
    pub token: Token,
    /// The open invitation of that name which this one revoked.
    pub replaced: Option<InviteId>,
}

/// An invitation that cannot be made. The book is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InviteError {
    /// The time is too short or too long.
    #[error("an invitation is open for 1 second to 24 hours")]
    Ttl,
    /// It is for nobody, or for too many.
    #[error("an invitation is for 1 to {USES_MAX} members")]
    Uses,
    /// There are too many open ones.
    #[error("there are {INVITES_MAX} open invitations; revoke some first")]
    TooMany,
}

/// All invitations of one inviter.
#[derive(Clone, Debug)]
pub struct Invites {
    invites: BTreeMap<InviteId, Invite>,
    /// From which the answers about unknown invitations are made; anybody who knew it could tell them apart.
    decoy: Seed,
    decoy_public: [u8; 32],
    changed: bool,
}

impl Invites {
    /// Makes the book from what was saved. `decoy` is random, secret, and should be the same at every start.
    pub fn restore(decoy: Seed, saved: Vec<Invite>) -> Self {
        let decoy_public = decoy.public();
        let invites = saved.into_iter().map(|invite| (invite.id, invite)).collect();
        Self { invites, decoy, decoy_public, changed: false }
    }

    /// Makes an invitation; an open one of the same name is revoked.
    ///
    /// `entropy` are 40 random bytes; `inviter` and `addresses` are those of this member.
    ///
    /// # Errors
    /// [`InviteError`] when the terms are out of bounds or the book is full.
    pub fn create(
        &mut self,
        terms: InviteTerms,
        entropy: [u8; 40],
        inviter: Fingerprint,
        addresses: &[SocketAddr],
        wall: WallTime,
    ) -> Result<Created, InviteError> {
        let entropy = Zeroizing::new(entropy);
        if !(TTL_MIN..=TTL_MAX).contains(&terms.ttl) {
            return Err(InviteError::Ttl);
        }
        if !(1..=USES_MAX).contains(&terms.uses) {
            return Err(InviteError::Uses);
        }
        self.forget(wall);
        let replaced = self.open(&terms.name, wall);
        if replaced.is_none() {
            self.make_room(wall)?;
        }
        let (id, seed) = entropy.split_first_chunk::<8>().expect("40 bytes hold 8");
        let seed = Seed::new(*seed.first_chunk().expect("40 bytes hold 8 and 32"));
        let invite = Invite {
            id: InviteId(*id),
            public: seed.public(),
            name: terms.name.clone(),
            role: terms.role,
            created: wall,
            expires: wall.plus(terms.ttl),
            uses_max: terms.uses,
            uses: 0,
            attempts_left: ATTEMPTS_MAX,
        };
        let token = Token {
            id: invite.id,
            expires: invite.expires,
            inviter,
            seed,
            name: terms.name,
            addresses: addresses.iter().take(TOKEN_ADDRESSES_MAX).copied().collect(),
        };
        replaced.and_then(|id| self.invites.remove(&id));
        self.invites.insert(invite.id, invite.clone());
        self.changed = true;
        Ok(Created { invite, token, replaced })
    }

    /// Returns every invitation, open or remembered, in the order of their names.
    pub fn list(&self) -> Vec<&Invite> {
        let mut list: Vec<_> = self.invites.values().collect();
        list.sort_by(|a, b| a.name.cmp(&b.name).then(a.created.cmp(&b.created)));
        list
    }

    /// Revokes the open invitation of that name, and returns which it was; from now on its token is as good as invented.
    pub fn revoke(&mut self, name: &MemberName, wall: WallTime) -> Option<InviteId> {
        let id = self.open(name, wall)?;
        self.invites.remove(&id);
        self.changed = true;
        Some(id)
    }

    /// Answers a joiner's first message, in the same way whether there is such an invitation or not.
    pub fn challenge(&self, hello: &JoinHello, wire: u16, cluster: ClusterId) -> JoinAnswer {
        let role = self.invites.get(&hello.id).map_or_else(|| self.decoy_role(hello.id), |invite| invite.role);
        JoinAnswer::Challenge { wire, cluster, role }
    }

    /// Judges a joiner's proof over the transcript of its connection; `transcript.role` is the one in the challenge.
    ///
    /// Changes the book when the proof is wrong; see [`Self::take_changed`]. A joiner that lost its welcome is told
    /// `Used`; ask [`enrolled`](super::enrolled) before passing that on.
    ///
    /// # Errors
    /// [`JoinRefusal::Invalid`] for whoever has not proven the right secret for that name, whatever the reason;
    /// `Expired` or `Used` for whoever has.
    pub fn check(&mut self, transcript: &Transcript, proof: &[u8; 64], wall: WallTime) -> Result<&Invite, JoinRefusal> {
        self.forget(wall);
        let invite = self.invites.get_mut(&transcript.invite);
        // An unknown invitation takes the time that a known one takes.
        let public = invite.as_ref().map_or(&self.decoy_public, |invite| &invite.public);
        let is_proven = verify(public, transcript, proof);
        let invite = invite.ok_or(JoinRefusal::Invalid)?;
        if !is_proven {
            self.changed |= invite.attempts_left > 0;
            invite.attempts_left = invite.attempts_left.saturating_sub(1);
            return Err(JoinRefusal::Invalid);
        }
        if transcript.role != invite.role || !invite.admits(&transcript.name) {
            return Err(JoinRefusal::Invalid);
        }
        match invite.state(wall) {
            InviteState::Open => Ok(invite),
            InviteState::Used => Err(JoinRefusal::Used),
            InviteState::Expired => Err(JoinRefusal::Expired),
            InviteState::Burnt => Err(JoinRefusal::Invalid),
        }
    }

    /// Notes how often the decided rosters say that an invitation was used ([`Roster::uses`]).
    ///
    /// The roster decides; this only spares the next joiner the way to it. It never lowers the count.
    pub fn consumed(&mut self, id: InviteId, uses: u32) {
        if let Some(invite) = self.invites.get_mut(&id).filter(|invite| invite.uses < uses) {
            invite.uses = uses;
            self.changed = true;
        }
    }

    /// Returns whether the book was changed since it was last asked, and so must be saved.
    ///
    /// A new token must not be shown before. A wrong proof, however, must be answered without waiting for the disk: the
    /// wait would tell that the invitation exists.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Forgets what nobody will ask for any more.
    pub fn forget(&mut self, wall: WallTime) {
        let before = self.invites.len();
        self.invites.retain(|_, invite| wall < invite.expires.plus(REMEMBERED));
        self.changed |= self.invites.len() != before;
    }

    fn open(&self, name: &MemberName, wall: WallTime) -> Option<InviteId> {
        let mut open = self.invites.values().filter(|invite| invite.state(wall) == InviteState::Open);
        open.find(|invite| invite.name == *name).map(|invite| invite.id)
    }

    /// Forgets the finished invitation that expired first when the book is full.
    fn make_room(&mut self, wall: WallTime) -> Result<(), InviteError> {
        if self.invites.len() < INVITES_MAX {
            return Ok(());
        }
        let finished = self.invites.values().filter(|invite| invite.state(wall) != InviteState::Open);
        let oldest =
            finished.min_by_key(|invite| invite.expires).map(|invite| invite.id).ok_or(InviteError::TooMany)?;
        self.invites.remove(&oldest);
        Ok(())
    }

    /// Makes up the role of an unknown invitation: mostly voters, and the same one whenever it is asked for.
    fn decoy_role(&self, id: InviteId) -> Role {
        let mut hash = Context::new(&SHA256);
        hash.update(b"collective-decoy");
        hash.update(self.decoy.secret());
        hash.update(&id.0);
        match hash.finish().as_ref().first() {
            Some(0..16) => Role::Witness,
            Some(16..64) => Role::Nonvoting,
            _ => Role::Voter,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::invite::prove;
    use crate::proto::roster::tests::voters;

    const NOW: WallTime = WallTime(1_800_000_000_000);
    const INVITER: Fingerprint = Fingerprint([2; 32]);
    const JOINER: Fingerprint = Fingerprint([33; 32]);

    fn name(text: &str) -> MemberName {
        MemberName::new(text).expect("valid")
    }

    fn book() -> Invites {
        Invites::restore(Seed::new([9; 32]), Vec::new())
    }

    fn terms(named: &str, uses: u32) -> InviteTerms {
        InviteTerms { name: name(named), role: Role::Voter, ttl: TTL_DEFAULT, uses }
    }

    fn create(book: &mut Invites, named: &str, uses: u32, entropy: u8) -> Created {
        book.create(terms(named, uses), [entropy; 40], INVITER, &[], NOW).expect("can be made")
    }

    fn transcript(id: InviteId, named: &str) -> Transcript {
        Transcript {
            cluster: voters(1).cluster,
            invite: id,
            name: name(named),
            role: Role::Voter,
            exporter: [4; 32],
            server: INVITER,
            joiner: JOINER,
        }
    }

    /// What the book says to a joiner with this token, under this name, at this time.
    fn join(book: &mut Invites, token: &Token, named: &str, wall: WallTime) -> Result<InviteId, JoinRefusal> {
        let transcript = transcript(token.id, named);
        book.check(&transcript, &prove(&token.seed, &transcript), wall).map(|invite| invite.id)
    }

    fn wrong(token: &Token) -> Token {
        Token { seed: Seed::new([77; 32]), ..token.clone() }
    }

    fn unknown(token: &Token) -> Token {
        Token { id: InviteId([77; 8]), ..token.clone() }
    }

    #[test]
    fn the_right_secret_opens_the_door_once() {
        let mut book = book();
        let Created { invite, token, replaced } = create(&mut book, "mgt2", 1, 1);
        assert_eq!((replaced, token.inviter, token.id, token.expires), (None, INVITER, invite.id, invite.expires));
        assert_eq!(join(&mut book, &token, "mgt2", NOW), Ok(invite.id));
        assert_eq!(join(&mut book, &token, "mgt2", NOW), Ok(invite.id), "only the epoch uses it up");
        book.consumed(invite.id, 1);
        assert_eq!(join(&mut book, &token, "mgt2", NOW), Err(JoinRefusal::Used));
        assert_eq!(join(&mut book, &wrong(&token), "mgt2", NOW), Err(JoinRefusal::Invalid));
    }

    #[test]
    fn an_invitation_for_several_lets_each_bring_a_name() {
        let mut book = book();
        let Created { invite, token, .. } = create(&mut book, "site", 2, 1);
        assert!(!invite.may_replace());
        book.consumed(invite.id, 1);
        assert_eq!(join(&mut book, &token, "mgt7", NOW), Ok(invite.id));
        book.consumed(invite.id, 2);
        assert_eq!(join(&mut book, &token, "mgt8", NOW), Err(JoinRefusal::Used));
        book.consumed(invite.id, 1);
        assert_eq!(join(&mut book, &token, "mgt8", NOW), Err(JoinRefusal::Used), "the count never falls");
    }

    #[test]
    fn an_invitation_for_one_is_for_its_own_name_and_role() {
        let mut book = book();
        let Created { invite, token, .. } = create(&mut book, "mgt2", 1, 1);
        assert!(invite.may_replace());
        assert_eq!(join(&mut book, &token, "mgt3", NOW), Err(JoinRefusal::Invalid));
        let witness = Transcript { role: Role::Witness, ..transcript(token.id, "mgt2") };
        let proof = prove(&token.seed, &witness);
        assert_eq!(book.check(&witness, &proof, NOW).map(|invite| invite.id), Err(JoinRefusal::Invalid));
        assert_eq!(book.list()[0].attempts_left, ATTEMPTS_MAX, "whoever holds the secret cannot burn it by mistake");
    }

    #[test]
    fn five_wrong_proofs_burn_an_invitation() {
        let mut book = book();
        let Created { token, .. } = create(&mut book, "mgt2", 1, 1);
        for _ in 1..ATTEMPTS_MAX {
            assert_eq!(join(&mut book, &wrong(&token), "mgt2", NOW), Err(JoinRefusal::Invalid));
        }
        assert!(join(&mut book, &token, "mgt2", NOW).is_ok(), "four are forgiven");
        assert_eq!(join(&mut book, &wrong(&token), "mgt2", NOW), Err(JoinRefusal::Invalid));
        assert_eq!(join(&mut book, &token, "mgt2", NOW), Err(JoinRefusal::Invalid));
        assert_eq!(book.list()[0].state(NOW), InviteState::Burnt);
    }

    #[test]
    fn a_proof_for_another_connection_is_wrong() {
        let mut book = book();
        let Created { token, .. } = create(&mut book, "mgt2", 1, 1);
        let here = transcript(token.id, "mgt2");
        let there = Transcript { exporter: [5; 32], ..here.clone() };
        assert_eq!(book.check(&here, &prove(&token.seed, &there), NOW).err(), Some(JoinRefusal::Invalid));
    }

    #[test]
    fn only_the_right_secret_learns_that_it_is_too_late_and_not_for_ever() {
        let mut book = book();
        let Created { invite, token, .. } = create(&mut book, "mgt2", 1, 1);
        let late = invite.expires;
        assert!(join(&mut book, &token, "mgt2", WallTime(late.0 - 1)).is_ok());
        assert_eq!(join(&mut book, &token, "mgt2", late), Err(JoinRefusal::Expired));
        assert_eq!(join(&mut book, &wrong(&token), "mgt2", late), Err(JoinRefusal::Invalid));
        assert_eq!(join(&mut book, &unknown(&token), "mgt2", late), Err(JoinRefusal::Invalid));
        let last = WallTime(late.plus(REMEMBERED).0 - 1);
        assert_eq!(join(&mut book, &token, "mgt2", last), Err(JoinRefusal::Expired));
        assert_eq!(join(&mut book, &token, "mgt2", late.plus(REMEMBERED)), Err(JoinRefusal::Invalid));
        assert!(book.list().is_empty());
    }

    #[test]
    fn a_new_invitation_revokes_the_open_one_of_that_name() {
        let mut book = book();
        let first = create(&mut book, "mgt2", 1, 1);
        let other = create(&mut book, "mgt3", 1, 2);
        let second = create(&mut book, "mgt2", 1, 3);
        assert_eq!(second.replaced, Some(first.invite.id));
        assert_eq!(join(&mut book, &first.token, "mgt2", NOW), Err(JoinRefusal::Invalid));
        assert!(join(&mut book, &second.token, "mgt2", NOW).is_ok());
        assert!(join(&mut book, &other.token, "mgt3", NOW).is_ok());
    }

    #[test]
    fn a_used_invitation_is_remembered_beside_a_new_one() {
        let mut book = book();
        let first = create(&mut book, "mgt2", 1, 1);
        book.consumed(first.invite.id, 1);
        let second = create(&mut book, "mgt2", 1, 2);
        assert_eq!(second.replaced, None);
        assert_eq!(join(&mut book, &first.token, "mgt2", NOW), Err(JoinRefusal::Used));
        assert_eq!(book.list().len(), 2);
    }

    #[test]
    fn a_revoked_invitation_is_as_good_as_invented() {
        let mut book = book();
        let Created { invite, token, .. } = create(&mut book, "mgt2", 1, 1);
        assert_eq!(book.revoke(&name("mgt3"), NOW), None);
        assert_eq!(book.revoke(&name("mgt2"), NOW), Some(invite.id));
        assert_eq!(book.revoke(&name("mgt2"), NOW), None);
        assert_eq!(join(&mut book, &token, "mgt2", NOW), Err(JoinRefusal::Invalid));
    }

    #[test]
    fn terms_out_of_bounds_are_refused() {
        let mut book = book();
        let mut refused =
            |ttl, uses| book.create(InviteTerms { ttl, ..terms("mgt2", uses) }, [1; 40], INVITER, &[], NOW).err();
        assert_eq!(refused(TTL_MIN, 1), None);
        assert_eq!(refused(TTL_MAX, USES_MAX), None);
        assert_eq!(refused(TTL_MIN - Duration::from_nanos(1), 1), Some(InviteError::Ttl));
        assert_eq!(refused(TTL_MAX + Duration::from_nanos(1), 1), Some(InviteError::Ttl));
        assert_eq!(refused(TTL_MIN, 0), Some(InviteError::Uses));
        assert_eq!(refused(TTL_MIN, USES_MAX + 1), Some(InviteError::Uses));
    }

    #[test]
    fn a_full_book_drops_what_is_finished_and_never_what_is_open() {
        let mut book = book();
        let mut make = |n: usize| {
            let mut entropy = [0; 40];
            entropy[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let made = book.create(terms(&format!("m{n}"), 1), entropy, INVITER, &[], NOW);
            (made, book.list().len())
        };
        for n in 0..INVITES_MAX {
            assert!(make(n).0.is_ok());
        }
        assert_eq!(make(INVITES_MAX), (Err(InviteError::TooMany), INVITES_MAX));
        let (again, length) = make(7);
        assert!(again.is_ok_and(|made| made.replaced.is_some()), "replacing needs no room");
        assert_eq!(length, INVITES_MAX);
        let mut book = book;
        let used = book.list()[3].id;
        book.consumed(used, 1);
        assert!(book.create(terms("new", 1), [1; 40], INVITER, &[], NOW).is_ok());
        assert!(book.list().iter().all(|invite| invite.id != used));
    }

    #[test]
    fn an_unknown_invitation_is_challenged_like_a_known_one() {
        let mut book = book();
        let token = create(&mut book, "mgt2", 1, 1).token;
        let cluster = voters(1).cluster;
        let role = |id| {
            let hello = JoinHello { wire_min: 1, wire_max: 1, id, name: name("mgt2") };
            match book.challenge(&hello, 1, cluster) {
                JoinAnswer::Challenge { wire: 1, cluster: told, role } if told == cluster => role,
                answer => panic!("{answer:?}"),
            }
        };
        assert_eq!(role(token.id), Role::Voter);
        let roles: Vec<_> = (0..200).map(|n| role(InviteId([n; 8]))).collect();
        assert_eq!(roles, (0..200).map(|n| role(InviteId([n; 8]))).collect::<Vec<_>>());
        for kind in [Role::Voter, Role::Nonvoting, Role::Witness] {
            assert!(roles.contains(&kind), "every role can be made up");
        }
    }

    #[test]
    fn nothing_that_is_kept_lets_anyone_join() {
        let mut book = book();
        let Created { invite, token, .. } = create(&mut book, "mgt2", 1, 41);
        let kept = minicbor::to_vec(&invite).expect("encodes");
        assert!(!kept.windows(16).any(|window| window == [41; 16]), "the seed is not kept");
        let forged = Token { seed: Seed::new(invite.public), ..token };
        assert_eq!(join(&mut book, &forged, "mgt2", NOW), Err(JoinRefusal::Invalid));
        assert!(!format!("{invite:?}{forged:?}").contains("41, 41"));
    }

    #[test]
    fn the_book_survives_a_restart_and_says_when_to_save() {
        let mut book = book();
        let token = create(&mut book, "mgt2", 1, 1).token;
        assert!(book.take_changed());
        assert!(join(&mut book, &token, "mgt2", NOW).is_ok());
        assert!(!book.take_changed());
        assert!(join(&mut book, &wrong(&token), "mgt2", NOW).is_err());
        assert!(book.take_changed(), "a restart must not give attempts back");
        let saved: Vec<Vec<u8>> = book.list().iter().map(|kept| minicbor::to_vec(kept).expect("encodes")).collect();
        let read = saved.iter().map(|bytes| minicbor::decode(bytes).expect("decodes")).collect();
        let mut book = Invites::restore(Seed::new([9; 32]), read);
        assert!(!book.take_changed());
        assert_eq!(book.list()[0].attempts_left, ATTEMPTS_MAX - 1);
        assert!(join(&mut book, &token, "mgt2", NOW).is_ok());
        book.consumed(token.id, 1);
        assert!(book.take_changed());
    }

    #[test]
    fn joining_uses_the_invitation_up_in_the_same_epoch() {
        // I6.
        let mut book = book();
        let Created { invite, .. } = create(&mut book, "mgt2", 1, 1);
        let roster = voters(3);
        let first = invite.change(&roster, name("mgt2"), JOINER);
        let rival = invite.change(&roster, name("mgt2"), Fingerprint([50; 32]));
        let joined = roster.next(&first, NOW).expect("possible");
        assert_eq!((joined.uses(invite.id), joined.voters().len()), (1, 3));
        let lost = joined.next(&rival, NOW).expect_err("one winner");
        assert_eq!(JoinRefusal::from(lost), JoinRefusal::Used);
        let again = invite.change(&joined, name("mgt2"), JOINER);
        assert_ne!(again.subject(), first.subject());
    }
}
