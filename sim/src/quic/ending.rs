//! The end of a process, and what a run must look like when everything is over.

use super::stage::State;
use crate::check::unconverged;
use crate::site::Death;

impl State {
    /// A process has ended.
    pub(super) fn gone(&mut self, member: usize, death: Death) {
        self.trace(member, b"gone", &[]);
        self.tell(|| format!("m{member} ends: {death:?}"));
        self.wire.close(member);
        let site = &mut self.sites[member];
        site.running = None;
        site.writer = None;
        site.seen = None;
        site.birth += 1;
    }

    /// Returns whether a member's disk is full while it makes a store, as a new machine or as one that is let in: the
    /// service manager starts it again when there is room. One that has its store must go on.
    pub(super) fn has_no_room_for_a_store(&self, member: usize) -> bool {
        let site = &self.sites[member];
        self.active.is_disk_full(member) && (site.seen.is_none() || site.host.is_some())
    }

    /// Returns the members that no fault breaks for ever.
    pub(super) fn healthy(&self) -> Vec<usize> {
        let broken = |at| self.faults.iter().any(|fault| fault.until.is_none() && fault.kind.breaks(at));
        (0..self.sites.len())
            .filter(|at| !broken(*at) && self.sites[*at].member.is_some() && self.sites[*at].downs == 0)
            .collect()
    }

    /// Says why these members have not converged; nothing when they have.
    pub(super) fn look(&self, core: &[usize]) -> Option<String> {
        let mut finals = Vec::new();
        for at in core {
            let Some(last) = self.final_of(*at) else { return Some(format!("m{at} is down")) };
            finals.push(last);
        }
        let first = core.first().and_then(|at| self.sites[*at].seen.as_ref())?;
        if core.iter().any(|at| self.sites[*at].seen.as_ref().is_none_or(|seen| !seen.is_member())) {
            return Some("somebody is not on its own roster".into());
        }
        let can_manage =
            |at: &usize| core.contains(at) && self.sites[*at].member.is_some_and(|id| first.lets_manage(id));
        let nodes: Vec<_> = self
            .nodes
            .iter()
            .filter(|(_, candidates)| candidates.iter().any(can_manage))
            .map(|(node, _)| {
                let acting = (0..self.sites.len()).filter(|at| self.acts(*at, node)).collect();
                (node.to_string(), acting)
            })
            .collect();
        unconverged(&finals, &nodes)
    }
}
