//! A large collective as it is found on its members' disks, so that a thousand need not join one after the other.

use std::collections::BTreeMap;

use collective::daemon::persist;
use collective::proto::collective::Collective;
use collective::proto::facts::PeerRecord;
use collective::proto::identity::{ClusterId, InviteId, MemberId};
use collective::proto::roster::{Change, Member, Role, Roster, Timing};
use collective::proto::time::WallTime;

use super::World;
use crate::check::Rule;
use crate::fault::SECOND;
use crate::mix::Purpose;

impl World {
    /// Puts on every disk what it would hold had everybody joined, the first `voters` of them with a vote; then starts
    /// all of them at once, as after a power cut.
    pub(super) fn restore(&mut self, cluster: ClusterId, timing: Timing, voters: usize) {
        let members: Vec<_> = (0..self.sites.len()).map(|number| self.enrolled(number, voters)).collect();
        let Some(roster) = decided(cluster, timing, &members) else {
            return self.violate(Rule::Convergence, "the members do not fit a roster".into());
        };
        let records: BTreeMap<_, _> = members
            .iter()
            .zip(&self.sites)
            .map(|(member, site)| {
                (member.id, PeerRecord { addresses: vec![site.address.to_string()], ..PeerRecord::default() })
            })
            .collect();
        for (at, member) in members.iter().enumerate() {
            let mut others = records.clone();
            others.remove(&member.id);
            self.sites[at].disk.commit(&persist::encode_birth(member.id, &roster, &others));
            self.sites[at].me = Some(member.id);
            self.boot_later(0, at);
        }
    }

    fn enrolled(&self, number: usize, voters: usize) -> Member {
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
        let is_whole = |world: &Self| {
            (0..all).all(|at| {
                let core = world.sites[at].core.as_ref();
                world.is_seated(at) && core.is_some_and(|core| core.links() + 1 == all)
            })
        };
        if !self.wait(60 * SECOND, is_whole) {
            let seated = (0..all).filter(|at| self.is_seated(*at)).count();
            let links: usize = self.sites.iter().filter_map(|site| site.core.as_ref()).map(Collective::links).sum();
            let what = format!("{seated} of {all} members have a seat and {links} ends of links are up after 60 s");
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
