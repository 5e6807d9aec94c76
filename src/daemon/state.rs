//! What a life starts from: a member's home, opened, locked, and filled with a collective of one when it is new.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, anyhow};
use ring::digest;
use tokio::sync::oneshot;

use super::machine::{Home, Host, Key, Machine, OpenedStore, random};
use super::persist;
use crate::config::Config;
use crate::net::Identity;
use crate::proto::facts::PeerRecord;
use crate::proto::identity::{ClusterId, Fingerprint, MemberId};
use crate::proto::invite::Seed;
use crate::proto::name::MemberName;
use crate::proto::request::Response;
use crate::proto::roster::{Member, Role, Roster};
use crate::store::{self, OnDamage, Store};

/// An opened home.
#[derive(Debug)]
pub(super) struct State {
    pub(super) home: Box<dyn Home>,
    pub(super) store: Box<dyn Store>,
    pub(super) kept: persist::Kept,
    pub(super) identity: Identity,
    /// Who waits for the data to arrive after joining.
    pub(super) arrival: Option<Arrival>,
    /// Members whose documents broke one of ours in an earlier life.
    pub(super) quarantined: BTreeSet<MemberId>,
}

/// An administrator who asked this member to join, and waits until it has the data.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) answer: oneshot::Sender<Response>,
    pub(super) until: tokio::time::Instant,
}

/// Makes identity and a collective of one in a state directory; does nothing when they are there.
///
/// Returns the member's name and whether anything was made.
///
/// # Errors
/// When the directory cannot be used, with what to do about it.
pub fn initialise(config: &Config) -> anyhow::Result<(MemberName, bool)> {
    let fresh = !config.state_dir.join(store::DATABASE_FILE).exists();
    let state = State::open(config, &Host::default())?;
    let roster = state.kept.roster.as_ref().context("a roster was just made")?;
    let name = state.kept.me.and_then(|me| roster.member(me)).map(|member| member.name.clone());
    Ok((name.unwrap_or(config.member_name()?), fresh))
}

impl State {
    /// Opens the home that a configuration names.
    ///
    /// # Errors
    /// When it is locked, loose, damaged beyond what others could refill, or the disk fails.
    pub(super) fn open(config: &Config, machine: &dyn Machine) -> anyhow::Result<Self> {
        let mut home = machine.home(config)?;
        let mut identity = match home.load_identity(Key::Current)? {
            Some(identity) => identity,
            None => renew_identity(home.as_mut(), machine)?,
        };
        let OpenedStore { mut store, lost } = home.open_store(OnDamage::SetAside)?;
        let mut kept = persist::decode(store.load()?)?;
        for damage in &kept.damage {
            tracing::warn!(%damage, "a part of the store could not be read and is refilled from other members");
        }
        if kept.roster.is_none() {
            // A member that lost its store must not come back under the key that the others know: it would have
            // forgotten what it promised (R9).
            if lost {
                identity = renew_identity(home.as_mut(), machine)?;
            }
            let (me, roster) = found(config, machine, identity.fingerprint())?;
            store.commit(&persist::encode_birth(me, &roster, &BTreeMap::new()))?;
            kept.me = Some(me);
            kept.roster = Some(roster);
        }
        Ok(Self::new(home, store, kept, identity))
    }

    /// Returns whether this member never was in a collective with others.
    pub(super) fn is_alone(&self) -> bool {
        self.kept.roster.as_ref().is_some_and(|roster| roster.version.epoch == 1)
    }

    fn new(home: Box<dyn Home>, store: Box<dyn Store>, kept: persist::Kept, identity: Identity) -> Self {
        Self { home, store, kept, identity, arrival: None, quarantined: BTreeSet::new() }
    }

    /// Replaces everything in a home by a new enrolment. The records that were there are kept beside it.
    ///
    /// # Errors
    /// When the disk fails; then the old records are still in place or beside it.
    pub(super) fn replace(
        mut home: Box<dyn Home>,
        store: Box<dyn Store>,
        identity: Identity,
        me: MemberId,
        roster: &Roster,
        peers: &BTreeMap<MemberId, PeerRecord>,
    ) -> anyhow::Result<Self> {
        drop(store);
        home.set_store_aside()?;
        home.save_identity(Key::Current, &identity)?;
        let mut store = home.open_store(OnDamage::Refuse)?.store;
        store.commit(&persist::encode_birth(me, roster, peers))?;
        let kept = persist::decode(store.load()?)?;
        Ok(Self::new(home, store, kept, identity))
    }

    /// Reads everything again.
    ///
    /// # Errors
    /// As [`State::open`].
    pub(super) fn reread(home: Box<dyn Home>, mut store: Box<dyn Store>) -> anyhow::Result<Self> {
        let identity = home.load_identity(Key::Current)?.context("the key is gone from the state directory")?;
        let kept = persist::decode(store.load()?)?;
        Ok(Self::new(home, store, kept, identity))
    }
}

fn renew_identity(home: &mut dyn Home, machine: &dyn Machine) -> anyhow::Result<Identity> {
    let identity = fresh_identity(machine)?;
    home.save_identity(Key::Current, &identity)?;
    Ok(identity)
}

/// Makes a key and its certificate.
pub(super) fn fresh_identity(machine: &dyn Machine) -> anyhow::Result<Identity> {
    Identity::generate(&random::<32>(machine)?).context("a key cannot be made")
}

/// Puts the key of that fingerprint in the place of the one in use.
///
/// # Errors
/// When no such key was stored.
pub(super) fn promote_next_identity(home: &mut dyn Home, fingerprint: Fingerprint) -> anyhow::Result<()> {
    let identity = home.load_identity(Key::Next)?.context("there is no new key in the state directory")?;
    if identity.fingerprint() != fingerprint {
        return Err(anyhow!("the new key in the state directory is not the one that the roster accepts"));
    }
    home.save_identity(Key::Current, &identity)?;
    home.drop_next_identity()
}

/// Derives the secret of answers about unknown invitations from the key.
pub(super) fn decoy(identity: &Identity) -> Seed {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"collective-decoy");
    context.update(identity.key());
    Seed::new(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// Makes the first roster of a new collective.
fn found(config: &Config, machine: &dyn Machine, fingerprint: Fingerprint) -> anyhow::Result<(MemberId, Roster)> {
    let me = MemberId(random(machine)?);
    let founder = Member {
        id: me,
        name: config.member_name()?,
        role: Role::Voter,
        learner: false,
        fingerprints: vec![fingerprint],
    };
    Ok((me, Roster::genesis(ClusterId(random(machine)?), config.profile.timing(), founder)))
}
