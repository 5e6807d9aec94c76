//! One voter as the holder knows it: what it was told, what it has acknowledged, and what its last grant covers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::super::identity::{MemberId, RosterMark, SessionId};
use super::super::name::NodeName;
use super::super::roster::Version;
use super::super::time::Instant;
use super::holder::ClaimEvent;
use super::ledger::Ledger;
use super::{ClaimOp, ClaimSet, LeaseAck, LeaseRequest, OPS_MAX, Refusal, RefusalReason, Verdict};

/// Requests to one voter that may still be answered; older ones are forgotten. At six a lease this is more than two.
const OUTSTANDING_MAX: usize = 16;

/// What is known of one voter.
#[derive(Clone, Debug, Default)]
pub(super) struct Peer {
    /// Requests that were not answered, with their `seq`, the oldest first.
    pub(super) outstanding: VecDeque<(u64, Sent)>,
    pub(super) progress: Option<Progress>,
    pub(super) grant: Option<Grant>,
    /// Claims it refused, as of its last grant.
    pub(super) refused: BTreeMap<NodeName, Refused>,
    /// Whether it has granted since it was last sent more than a datagram. A voter that is away is sent little.
    pub(super) has_credit: bool,
    /// Until when a request on a stream is not overtaken by another one.
    pub(super) stream_until: Option<Instant>,
    /// When it is asked next at the latest.
    pub(super) round_at: Instant,
    /// Whether it is to be asked before that.
    pub(super) is_due: bool,
    /// When a claim it refused may be asked again.
    pub(super) retry_at: Option<Instant>,
    pub(super) last_ack: Option<Answer>,
}

/// One request.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) at: Instant,
    /// The full set it is, or builds on.
    pub(super) full: u64,
    /// The versions it tells: those after `base`, up to `version`.
    pub(super) base: u64,
    pub(super) version: u64,
    pub(super) complete: bool,
    /// Refused claims that it asks again.
    pub(super) retried: Vec<NodeName>,
    pub(super) is_small: bool,
}

/// Which versions a voter has acknowledged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    /// The voter's session; another one has forgotten them.
    pub(super) voter_session: SessionId,
    pub(super) full: u64,
    pub(super) base: u64,
}

/// A voter's last promise.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grant {
    pub(super) version: Version,
    pub(super) mark: RosterMark,
    /// When it was asked for: the earliest moment that the voter can have counted from.
    pub(super) sent_at: Instant,
    /// The version of the claim set that it covers.
    pub(super) applied: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    /// The claim's number in the ledger.
    pub(super) number: u64,
    /// When to ask again; never for a term that can never do.
    pub(super) retry_at: Option<Instant>,
}

#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) sent_at: Instant,
    pub(super) round_trip: Duration,
    pub(super) verdict: Verdict,
}

impl Peer {
    /// Returns when the voter is to be asked even if no round is due.
    pub(super) fn due_at(&self) -> Option<Instant> {
        let due = if self.is_due { Instant::ZERO } else { self.retry_at? };
        Some(due.max(self.stream_until.unwrap_or_default()))
    }

    /// Returns what the voter has acknowledged, if the ledger still knows everything after it.
    pub(super) fn known(&self, ledger: &Ledger, dropped_at_seq: u64) -> Option<Progress> {
        // A full set that was sent after the releases were dropped told the voter of them by leaving the nodes out.
        self.progress.filter(|progress| progress.base >= ledger.dropped() || progress.full > dropped_at_seq)
    }

    /// Returns what to tell the voter next, and which refused claims that asks again.
    pub(super) fn next_claims(&self, ledger: &Ledger, dropped_at_seq: u64, now: Instant) -> (ClaimSet, Vec<NodeName>) {
        let Some(Progress { full, base, .. }) = self.known(ledger, dropped_at_seq) else {
            if self.full_under_way().is_some_and(|(_, sent)| sent.complete && sent.version >= ledger.version()) {
                return (self.nothing_new(), Vec::new());
            }
            let part = ledger.oldest_holds();
            let (version, complete, holds) = (part.version, part.complete, part.changes);
            return (ClaimSet::Full { version, complete, holds }, Vec::new());
        };
        let part = ledger.changes_after(base);
        let (version, complete, mut ops) = (part.version, part.complete, part.changes);
        let mut retried = Vec::new();
        for (node, refused) in &self.refused {
            let (Some(retry_at), Some((number, term))) = (refused.retry_at, ledger.hold(node)) else { continue };
            if retry_at <= now && number == refused.number && ops.len() < OPS_MAX {
                ops.push(ClaimOp::Hold { node: node.clone(), term });
                retried.push(node.clone());
            }
        }
        (ClaimSet::Delta { full, base, version, complete, ops }, retried)
    }

    /// Returns the last full set that was not answered.
    pub(super) fn full_under_way(&self) -> Option<(u64, &Sent)> {
        self.outstanding.iter().rev().find(|(seq, sent)| sent.full == *seq).map(|(seq, sent)| (*seq, sent))
    }

    /// Returns a set of claims that renews the session and says nothing more.
    ///
    /// It builds on a full set under way rather than replacing it, so that a voter far away is kept in step.
    pub(super) fn nothing_new(&self) -> ClaimSet {
        let full = self.full_under_way().map(|(seq, _)| (seq, 0));
        let known = self.progress.map(|progress| (progress.full, progress.base));
        let (full, base) = full.or(known).unwrap_or_default();
        ClaimSet::Delta { full, base, version: base, complete: false, ops: Vec::new() }
    }

    pub(super) fn note_sent(&mut self, request: &LeaseRequest, retried: Vec<NodeName>, is_small: bool, now: Instant) {
        let (full, base, version, complete) = match &request.claims {
            ClaimSet::Full { version, complete, .. } => (request.seq, 0, *version, *complete),
            ClaimSet::Delta { full, base, version, complete, .. } => (*full, *base, *version, *complete),
        };
        let sent = Sent { at: now, full, base, version, complete, retried, is_small };
        self.outstanding.push_back((request.seq, sent));
        if self.outstanding.len() > OUTSTANDING_MAX {
            self.outstanding.pop_front();
        }
        self.is_due = false;
        self.retry_at = None;
    }

    /// Returns the request that is answered, and forgets it and all older ones: their answers come too late.
    pub(super) fn take_sent(&mut self, seq: u64) -> Option<Sent> {
        let place = self.outstanding.binary_search_by_key(&seq, |(seq, _)| *seq).ok()?;
        let (_, sent) = self.outstanding.drain(..=place).next_back()?;
        if self.outstanding.iter().all(|(_, sent)| sent.is_small) {
            self.stream_until = None;
        }
        Some(sent)
    }

    /// Takes a grant in and returns whether its refusals count.
    ///
    /// They do not when the voter must be told the full set first, or when the answer is about a full set that has
    /// been replaced by another one since.
    pub(super) fn on_grant(&mut self, ack: &LeaseAck, sent: &Sent, applied: Option<u64>) -> bool {
        let mut grant = Grant { version: ack.version, mark: ack.mark, sent_at: sent.at, applied: None };
        let known = self.progress.filter(|progress| progress.full == sent.full);
        let before = if sent.full == ack.seq {
            Some(0) // This was a full set: nothing that came before it counts.
        } else {
            known.filter(|progress| progress.voter_session == ack.voter_session).map(|progress| progress.base)
        };
        if let (Some(before), Some(applied)) = (before, applied) {
            // A request repeats all that was not acknowledged, so its answer lists every refusal up to its version.
            let base = applied.min(sent.version).max(before);
            self.progress = Some(Progress { voter_session: ack.voter_session, full: sent.full, base });
            grant.applied = Some(base);
        } else if known.is_none() && self.progress.is_some() {
            return false; // It says nothing about the set in use, so neither does it renew that one.
        } else {
            self.progress = None;
            self.refused.clear();
        }
        self.grant = Some(grant);
        grant.applied.is_some()
    }

    /// Takes the refusals of a grant in and returns those that concern pending claims.
    pub(super) fn on_refusals(
        &mut self,
        from: MemberId,
        (seq, refusals): (u64, &[Refusal]),
        sent: &Sent,
        ledger: &Ledger,
        pending: &BTreeSet<NodeName>,
        now: Instant,
    ) -> Vec<ClaimEvent> {
        let is_full = sent.full == seq;
        for node in &sent.retried {
            self.refused.remove(node);
        }
        self.refused.retain(|node, refused| {
            // What the request told anew is answered anew; a full set starts over.
            let is_told_anew = sent.base < refused.number && refused.number <= sent.version;
            !is_told_anew && !is_full && ledger.hold(node).is_some_and(|(number, _)| number == refused.number)
        });
        let mut events = Vec::new();
        for Refusal { node, reason } in refusals {
            let Some((number, term)) = ledger.hold(node).filter(|(number, _)| *number <= sent.version) else {
                continue; // Released or claimed anew since.
            };
            let retry_at = reason.passes_after().map(|wait| now + wait);
            self.refused.insert(node.clone(), Refused { number, retry_at });
            if pending.contains(node) {
                self.retry_at = [self.retry_at, retry_at].into_iter().flatten().min();
                events.push(ClaimEvent::Refused { node: node.clone(), term, reason: *reason, by: from });
            }
        }
        events
    }

    /// Returns whether there is something to tell the voter that is not under way.
    pub(super) fn owes(&self, ledger: &Ledger, dropped_at_seq: u64) -> bool {
        let known = self.known(ledger, dropped_at_seq);
        let has_all = known.is_some_and(|progress| progress.base >= ledger.version());
        let is_told = |(seq, sent): &(u64, Sent)| {
            let is_understood = sent.full == *seq || known.is_some_and(|progress| progress.full == sent.full);
            !sent.is_small || (is_understood && sent.complete && sent.version >= ledger.version())
        };
        !has_all && !self.outstanding.iter().any(is_told)
    }

    /// Returns whether the voter's last grant refuses a claim of that number.
    pub(super) fn refuses(&self, node: &NodeName, number: u64) -> bool {
        self.refused.get(node).is_some_and(|refused| refused.number == number)
    }
}

impl Verdict {
    pub(super) fn without_refusals(&self) -> Self {
        match self {
            Self::Granted { applied, .. } => Self::Granted { applied: *applied, refused: Vec::new() },
            other => other.clone(),
        }
    }
}

impl RefusalReason {
    /// Returns after how long the claim may be asked again; none when it will never do.
    const fn passes_after(self) -> Option<Duration> {
        match self {
            Self::Held { for_ms, .. } | Self::Settling { for_ms } => Some(Duration::from_millis(for_ms as u64)),
            Self::Duplicate => Some(Duration::from_secs(1)),
            Self::StaleTerm { .. } => None,
        }
    }
}
