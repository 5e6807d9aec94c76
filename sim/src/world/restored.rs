//! A large collective as it is found on its members' disks, so that a thousand need not join one after the other.

use std::collections::BTreeMap;

use collective::daemon::persist;
use collective::proto::document::{Actor, Documents, Entity, Put};
use collective::proto::facts::PeerRecord;
use collective::proto::identity::{ClusterId, InviteId, MemberId};
use collective::proto::record::Record;
use collective::proto::roster::{Change, Member, Role, Roster, Timing};
use collective::proto::time::WallTime;
use collective::store;

use super::World;
use crate::check::Rule;
use crate::fault::SECOND;
use crate::mix::Purpose;

/// How long it may take until everybody has its seat and a link to everybody else.
const WHOLE_WITHIN: u64 = 60 * SECOND;

impl World {
    /// Puts on every disk what it would hold had everybody joined and the elastic voter set been brought down to so many
    /// voters; then starts all of them, as after a power cut.
    pub(crate) fn restore(&mut self, cluster: ClusterId, timing: Timing, voters: usize) {
        let members: Vec<_> = (0..self.sites.len()).map(|number| self.restored(number, voters)).collect();
        let (Some(roster), Some(settings)) = (decided(cluster, timing, &members), settings(&members, voters)) else {
            return self.violate(Rule::Convergence, "the members do not fit a roster".into());
        };
        let address = |at: usize| vec![self.sites[at].address.to_string()];
        let mut peers: BTreeMap<_, _> = members
            .iter()
            .enumerate()
            .map(|(at, member)| (member.id, PeerRecord { addresses: address(at), ..PeerRecord::default() }))
            .collect();
        for (at, member) in members.iter().enumerate() {
            let own = peers.remove(&member.id);
            let site = &mut self.sites[at];
            site.disk.commit(&persist::encode_birth(member.id, &roster, &peers));
            site.disk.commit(&settings);
            site.me = Some(member.id);
            peers.extend(own.map(|own| (member.id, own)));
            self.boot_later(0, at);
        }
    }

    fn restored(&self, number: usize, voters: usize) -> Member {
        let site = &self.sites[number];
        Member {
            id: MemberId(self.mix.bytes(Purpose::Identity, 100_000 + number as u64)),
            name: site.name.clone(),
            role: if number < voters { Role::Voter } else { Role::Nonvoting },
            learner: false,
            fingerprints: vec![site.fingerprint],
        }
    }

    /// Waits until everybody has its seat and a link to everybody else.
    pub(crate) fn await_restored(&mut self) {
        let all = self.sites.len();
        let links = |world: &Self| (0..all).map(|at| world.network.linked(at).len()).sum::<usize>();
        let is_whole = |world: &Self| (0..all).all(|at| world.is_seated(at)) && links(world) == all * (all - 1);
        if !self.wait(WHOLE_WITHIN, is_whole) {
            let seated = (0..all).filter(|at| self.is_seated(*at)).count();
            let what = format!("{seated} of {all} members have a seat, and {} ends of links are up", links(self));
            self.violate(Rule::Convergence, what);
        }
    }
}

/// Makes the roster that one decision after the other would have made.
fn decided(cluster: ClusterId, timing: Timing, members: &[Member]) -> Option<Roster> {
    let (founder, others) = members.split_first()?;
    let mut roster = Roster::genesis(cluster, timing, founder.clone());
    for (number, member) in others.iter().enumerate() {
        let invite = InviteId((number as u64).to_le_bytes());
        let add = Change::Add { member: member.clone(), invite, expires: WallTime(0), uses_max: 1 };
        roster = roster.next(&add, WallTime(u64::MAX)).ok()?;
        if member.role.votes() {
            roster = roster.next(&Change::Promote { id: member.id }, WallTime(u64::MAX)).ok()?;
        }
    }
    Some(roster)
}

/// Makes the settings that ask for so many voters and name everybody else as one who may be given a vote; as they lie on
/// a disk.
fn settings(members: &[Member], voters: usize) -> Option<Vec<store::Record>> {
    let setting = |attribute: String, value: String| Put {
        entity: Entity::Settings,
        attribute: attribute.into(),
        value: Some(value),
    };
    let benched = members.iter().filter(|member| !member.role.votes());
    let puts: Vec<_> = benched
        .map(|member| setting(format!("!voters/bench/{}", member.id), "1".to_owned()))
        .chain((voters < members.len()).then(|| setting("!voters/ideal".to_owned(), voters.to_string())))
        .collect();
    let author = Actor::new(members.first()?.id, *b"restored");
    let written = Documents::new().write(&puts, author, WallTime(0)).ok()?;
    let records = written.changes.into_iter().map(|change| Record::Change { id: change.id, bytes: change.bytes });
    Some(records.flat_map(persist::encode).collect())
}
