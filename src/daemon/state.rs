//! What a life starts from: the state directory, opened, locked, and filled with a collective of one when it is new.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::oneshot;

use super::persist;
use crate::config::Config;
use crate::net::Identity;
use crate::proto::facts::PeerRecord;
use crate::proto::identity::{ClusterId, Fingerprint, MemberId};
use crate::proto::invite::Seed;
use crate::proto::name::MemberName;
use crate::proto::request::Response;
use crate::proto::roster::{Member, Role, Roster};
use crate::store::{self, OnDamage, RedbStore, StateDir, Store};

/// An opened state directory.
#[derive(Debug)]
pub(super) struct State {
    pub(super) dir: StateDir,
    pub(super) store: Box<dyn Store>,
    pub(super) kept: persist::Kept,
    pub(super) identity: Identity,
    /// The UDP socket of the life before: the address stays, and nobody else can take it meanwhile.
    pub(super) socket: Option<UdpSocket>,
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
    let state = State::open(config)?;
    let roster = state.kept.roster.as_ref().context("a roster was just made")?;
    let name = state.kept.me.and_then(|me| roster.member(me)).map(|member| member.name.clone());
    Ok((name.unwrap_or(config.member_name()?), fresh))
}

impl State {
    /// Opens the state directory of a configuration.
    ///
    /// # Errors
    /// When it is locked, loose, damaged beyond what others could refill, or the disk fails.
    pub(super) fn open(config: &Config) -> anyhow::Result<Self> {
        let dir = StateDir::open(&config.state_dir)?;
        Self::from_dir(dir, config)
    }

    fn from_dir(dir: StateDir, config: &Config) -> anyhow::Result<Self> {
        let mut identity = identity(dir.path())?;
        let opened = RedbStore::open(dir.path(), OnDamage::SetAside)?;
        for notice in &opened.notices {
            tracing::warn!("{notice}");
        }
        let mut store: Box<dyn Store> = Box::new(opened.store);
        let mut kept = persist::decode(store.load()?)?;
        for damage in &kept.damage {
            tracing::warn!(%damage, "a part of the store could not be read and is refilled from other members");
        }
        if kept.roster.is_none() {
            // A member that lost its store must not come back under the key that the others know: it would have
            // forgotten what it promised (R9).
            if opened.set_aside.is_some() {
                identity = renew_identity(dir.path())?;
            }
            let (me, roster) = found(config, identity.fingerprint())?;
            store.commit(&persist::encode_birth(me, &roster, &BTreeMap::new()))?;
            kept.me = Some(me);
            kept.roster = Some(roster);
        }
        Ok(Self::new(dir, store, kept, identity))
    }

    /// Returns whether this member never was in a collective with others.
    pub(super) fn is_alone(&self) -> bool {
        self.kept.roster.as_ref().is_some_and(|roster| roster.version.epoch == 1)
    }

    fn new(dir: StateDir, store: Box<dyn Store>, kept: persist::Kept, identity: Identity) -> Self {
        Self { dir, store, kept, identity, socket: None, arrival: None, quarantined: BTreeSet::new() }
    }

    /// Replaces everything in a state directory by a new enrolment. What was there is kept beside it.
    ///
    /// # Errors
    /// When the disk fails; then the old state is still in place or beside it, under a name ending in `.replaced-N`.
    pub(super) fn replace(
        dir: StateDir,
        store: Box<dyn Store>,
        identity: Identity,
        me: MemberId,
        roster: &Roster,
        peers: &BTreeMap<MemberId, PeerRecord>,
    ) -> anyhow::Result<Self> {
        drop(store);
        let database = dir.path().join(store::DATABASE_FILE);
        let aside = free_name(&database);
        fs_err::rename(&database, &aside)?;
        tracing::info!(kept = %aside.display(), "the data from before joining is kept");
        save_identity(dir.path(), &identity)?;
        let mut store: Box<dyn Store> = Box::new(RedbStore::open(dir.path(), OnDamage::Refuse)?.store);
        store.commit(&persist::encode_birth(me, roster, peers))?;
        let kept = persist::decode(store.load()?)?;
        Ok(Self::new(dir, store, kept, identity))
    }

    /// Reads everything again.
    ///
    /// # Errors
    /// As [`State::open`].
    pub(super) fn reread(dir: StateDir, mut store: Box<dyn Store>) -> anyhow::Result<Self> {
        let identity = identity(dir.path())?;
        let kept = persist::decode(store.load()?)?;
        Ok(Self::new(dir, store, kept, identity))
    }
}

fn free_name(path: &Path) -> PathBuf {
    (1_u32..)
        .map(|number| path.with_extension(format!("redb.replaced-{number}")))
        .find(|candidate| !candidate.exists())
        .unwrap_or_else(|| path.with_extension("redb.replaced"))
}

/// Loads the key and certificate, or makes them.
fn identity(dir: &Path) -> anyhow::Result<Identity> {
    match store::load_identity(dir)? {
        Some(files) => Identity::from_parts(files.certificate, files.key.to_vec())
            .map_err(|error| anyhow!("{error}; restore the identity files of {} from a backup", dir.display())),
        None => renew_identity(dir),
    }
}

fn renew_identity(dir: &Path) -> anyhow::Result<Identity> {
    let identity = fresh_identity()?;
    save_identity(dir, &identity)?;
    Ok(identity)
}

/// Makes a key and its certificate.
pub(super) fn fresh_identity() -> anyhow::Result<Identity> {
    Identity::generate(&random::<32>()?).context("a key cannot be made")
}

/// Stores key and certificate.
pub(super) fn save_identity(dir: &Path, identity: &Identity) -> anyhow::Result<()> {
    let files = store::Identity { certificate: identity.certificate().to_vec(), key: identity.key().to_vec().into() };
    Ok(store::save_identity(dir, &files)?)
}

/// The folder of a key that is not in use yet.
const NEXT: &str = "next";

/// Stores a key that shall be used once the roster accepts it.
pub(super) fn save_next_identity(dir: &Path, identity: &Identity) -> anyhow::Result<()> {
    let next = dir.join(NEXT);
    fs_err::create_dir_all(&next)?;
    fs_err::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    save_identity(&next, identity)
}

/// Puts the key of that fingerprint in the place of the one in use.
///
/// # Errors
/// When no such key was stored.
pub(super) fn promote_next_identity(dir: &Path, fingerprint: Fingerprint) -> anyhow::Result<()> {
    let next = dir.join(NEXT);
    let files = store::load_identity(&next)?.context("there is no new key in the state directory")?;
    let identity = Identity::from_parts(files.certificate, files.key.to_vec())?;
    if identity.fingerprint() != fingerprint {
        return Err(anyhow!("the new key in the state directory is not the one that the roster accepts"));
    }
    save_identity(dir, &identity)?;
    fs_err::remove_dir_all(&next)?;
    Ok(())
}

/// Derives the secret of answers about unknown invitations from the key.
pub(super) fn decoy(identity: &Identity) -> Seed {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"collective-decoy");
    context.update(identity.key());
    Seed::new(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// Makes the first roster of a new collective.
fn found(config: &Config, fingerprint: Fingerprint) -> anyhow::Result<(MemberId, Roster)> {
    let me = MemberId(random()?);
    let founder = Member {
        id: me,
        name: config.member_name()?,
        role: Role::Voter,
        learner: false,
        fingerprints: vec![fingerprint],
    };
    Ok((me, Roster::genesis(ClusterId(random()?), config.profile.timing(), founder)))
}

/// Draws bytes from the system's generator.
///
/// # Errors
/// When the system has none to give.
pub(super) fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow!("the system gives no random bytes"))?;
    Ok(bytes)
}
