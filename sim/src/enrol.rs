//! Enrolment: the founder's first roster, and the real way in for everybody else: invitation, token, proof, welcome.

use std::collections::{BTreeMap, BTreeSet};

use collective::daemon::persist;
use collective::proto::collective::{Collective, Event, JoinId};
use collective::proto::facts::PeerRecord;
use collective::proto::identity::{ClusterId, Fingerprint, MemberId};
use collective::proto::invite::{JoinAnswer, JoinHello, JoinProof, Token, Transcript, prove};
use collective::proto::message::{WIRE_MAX, WIRE_MIN};
use collective::proto::request::{Request, Response};
use collective::proto::roster::{Member, Role, Roster, Timing};

use crate::check::Rule;
use crate::fault::{MS, SECOND};
use crate::mix::Purpose;
use crate::site::Death;
use crate::trace::Seen;
use crate::workload::Op;
use crate::world::World;

/// How long an invitation holds.
const TTL_MS: u64 = 3_600_000;
/// Why a join ended that may be tried again with the same token.
const CUT: &str = "the way is cut";

/// One stranger on its way in.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) id: JoinId,
    pub(crate) joiner: usize,
    pub(crate) via: usize,
    /// The key it comes with: a fresh one for every enrolment.
    key: Fingerprint,
    token: Option<Token>,
    since: u64,
    /// Whether the joiner dies as soon as it was let in.
    dies: bool,
    /// Whether it has proved that it was invited.
    pub(crate) is_proved: bool,
    /// What came of it.
    pub(crate) outcome: Option<Result<MemberId, String>>,
}

/// A frame of the join stream on its way.
#[derive(Debug)]
pub(crate) enum Step {
    Hello(Vec<u8>),
    Proof(Vec<u8>),
    Answer(Vec<u8>),
}

impl World {
    /// Founds the collective on the first site.
    pub(crate) fn found(&mut self, cluster: ClusterId, timing: Timing) {
        let founder = &mut self.sites[0];
        let me = MemberId(self.mix.bytes(Purpose::Identity, 2_000));
        let member = Member {
            id: me,
            name: founder.name.clone(),
            role: Role::Voter,
            learner: false,
            fingerprints: vec![founder.fingerprint],
        };
        let roster = Roster::genesis(cluster, timing, member);
        founder.disk.commit(&persist::encode_birth(me, &roster, &BTreeMap::new()));
        founder.me = Some(me);
        self.boot(0);
    }

    /// Invites a site through a member, and lets it join; returns the enrolment's number.
    pub(crate) fn enrol(&mut self, joiner: usize, via: usize, dies: bool) -> usize {
        let number = self.enrolments.len();
        let id = number as JoinId + 1;
        let key = Fingerprint(self.mix.bytes(Purpose::Identity, 10_000 + id));
        let since = self.time;
        self.enrolments.push(Enrolment {
            id,
            joiner,
            via,
            key,
            token: None,
            since,
            dies,
            is_proved: false,
            outcome: None,
        });
        let name = self.sites[joiner].name.clone();
        let invite = Request::Invite { name, role: Role::Voter, ttl_ms: TTL_MS, uses: 1 };
        self.ask(via, Op::Invite { enrolment: number }, invite);
        number
    }

    pub(crate) fn on_invited(&mut self, number: usize, response: &Response) {
        let Response::Invited(invited) = response else {
            self.enrolments[number].outcome = Some(Err(format!("{response:?}")));
            return;
        };
        match Token::parse(&invited.token.0) {
            Ok(token) => {
                let name = token.name.clone();
                let hello = JoinHello { wire_min: WIRE_MIN, wire_max: WIRE_MAX, id: token.id, name };
                self.enrolments[number].token = Some(token);
                self.join_later(5 * MS, number, Step::Hello(encode(&hello)));
            }
            Err(error) => self.violate(Rule::Answered, format!("a token cannot be read: {error}")),
        }
    }

    pub(crate) fn on_answer_join(&mut self, id: JoinId, answer: JoinAnswer) {
        if let Some(number) = self.enrolment_of(id) {
            self.join_later(5 * MS, number, Step::Answer(encode(&answer)));
        }
    }

    pub(crate) fn on_join(&mut self, number: usize, step: Step) {
        let Enrolment { id, joiner, via, key, .. } = self.enrolments[number];
        if !self.passes_both(joiner, via) {
            self.enrolments[number].outcome = Some(Err(CUT.into()));
            return;
        }
        let exporter = self.mix.bytes(Purpose::Exporter, id);
        self.disturb(number, &step);
        match step {
            Step::Hello(bytes) => {
                if let Ok(hello) = minicbor::decode(&bytes) {
                    self.join_event(via, Event::JoinHello { id, hello });
                }
            }
            Step::Proof(bytes) => {
                if let Ok(proof) = minicbor::decode(&bytes) {
                    let address = self.sites[joiner].address;
                    self.join_event(via, Event::JoinProof { id, proof, peer: key, exporter, address });
                }
            }
            Step::Answer(bytes) => match minicbor::decode(&bytes) {
                Ok(JoinAnswer::Challenge { cluster, role, .. }) => self.prove(number, cluster, role, exporter),
                Ok(JoinAnswer::Welcome { roster, member, addresses }) => {
                    let peers = addresses
                        .into_iter()
                        .map(|(id, addresses)| {
                            let addresses = addresses.iter().map(ToString::to_string).collect();
                            (id, PeerRecord { addresses, ..PeerRecord::default() })
                        })
                        .collect();
                    self.enter(number, member, &roster, &peers);
                }
                Ok(JoinAnswer::Refused { message, .. }) => self.enrolments[number].outcome = Some(Err(message)),
                Err(error) => self.violate(Rule::NoPanic, format!("an answer to a joiner cannot be read: {error}")),
            },
        }
    }

    fn prove(&mut self, number: usize, cluster: ClusterId, role: Role, exporter: [u8; 32]) {
        let Enrolment { joiner, via, key, token: Some(token), .. } = &self.enrolments[number] else { return };
        let transcript = Transcript {
            cluster,
            invite: token.id,
            name: token.name.clone(),
            role,
            exporter,
            server: self.sites[*via].fingerprint,
            joiner: *key,
        };
        let addresses = vec![self.sites[*joiner].address];
        let proof = JoinProof { proof: prove(&token.seed, &transcript), addresses, software: "sim".to_owned() };
        self.enrolments[number].is_proved = true;
        self.join_later(5 * MS, number, Step::Proof(encode(&proof)));
    }

    fn enter(&mut self, number: usize, me: MemberId, roster: &Roster, peers: &BTreeMap<MemberId, PeerRecord>) {
        let Enrolment { joiner, dies, key, .. } = self.enrolments[number];
        if let Some(token) = &self.enrolments[number].token {
            let invite = token.id;
            self.checker.consumed(self.time, invite, me);
            self.note(Some(joiner), || Seen::Joined { invite: invite.to_string(), id: me.to_string() });
        }
        self.enrolments[number].outcome = Some(Ok(me));
        self.count("enrolled");
        self.checker.enrolled(joiner);
        self.tell(|| format!("m{joiner} is let in"));
        // What it was before ends, and is set aside with its disk.
        self.die(joiner, Death::Stopped);
        let site = &mut self.sites[joiner];
        site.forget_everything();
        site.fingerprint = key;
        site.disk.commit(&persist::encode_birth(me, roster, peers));
        site.me = Some(me);
        if dies {
            site.downs += 1;
        }
        self.boot_later(50 * MS, joiner);
    }

    /// The host of joins ended: the strangers notice, unless its machine went dark.
    pub(crate) fn break_joins(&mut self, host: usize, death: Death) {
        let open = |join: &&mut Enrolment| join.via == host && join.outcome.is_none() && join.token.is_some();
        for join in self.enrolments.iter_mut().filter(open).filter(|_| !death.is_dark()) {
            join.outcome = Some(Err(CUT.into()));
        }
    }

    /// Has whoever is no member any more invited again, as an administrator would, until it is let in.
    pub(crate) fn care(&mut self) {
        let Some(newest) = self.newest_roster() else { return };
        let (version, ids): (_, BTreeSet<_>) = (newest.version, newest.ids().collect());
        for joiner in 0..self.sites.len() {
            self.set_up_anew(joiner);
            let site = &self.sites[joiner];
            let is_member = site.me.is_some_and(|me| ids.contains(&me));
            let last = self.enrolments.iter().rposition(|enrolment| enrolment.joiner == joiner);
            let is_busy = last.is_some_and(|last| {
                let enrolment = &self.enrolments[last];
                enrolment.outcome.is_none() && self.time < enrolment.since + 25 * SECOND
            });
            // A spare site was never asked to come.
            let is_spare = joiner > 0 && last.is_none();
            if is_member || is_spare || is_busy || self.sites[joiner].downs > 0 || self.sites[joiner].is_paused() {
                continue;
            }
            // Who was cut off on the way tries the same token once more; a spent one brings its welcome.
            let last = last.map(|last| &self.enrolments[last]);
            let cut = last.filter(|last| matches!(&last.outcome, Some(Err(why)) if why == CUT));
            let retry = cut.and_then(|last| Some((last.token.clone()?, last.key, last.via)));
            if let Some((token, key, via)) = retry.filter(|(.., via)| self.sites[*via].is_awake()) {
                self.count("join retried");
                let number = self.enrolments.len();
                let (id, since) = (number as JoinId + 1, self.time);
                let hello =
                    JoinHello { wire_min: WIRE_MIN, wire_max: WIRE_MAX, id: token.id, name: token.name.clone() };
                let token = Some(token);
                self.enrolments.push(Enrolment {
                    id,
                    joiner,
                    via,
                    key,
                    token,
                    since,
                    dies: false,
                    is_proved: false,
                    outcome: None,
                });
                self.join_later(5 * MS, number, Step::Hello(encode(&hello)));
                continue;
            }
            let is_host = |at: &usize| *at != joiner && self.is_seated(*at) && self.sites[*at].is_awake();
            let wished = self.disturbed.get(&joiner).map(|(via, _)| *via).filter(is_host);
            if let Some(via) = wished.or_else(|| (0..self.sites.len()).find(is_host)) {
                self.tell(|| format!("m{joiner} is invited again, under roster {version}"));
                self.enrol(joiner, via, false);
            }
        }
    }

    /// Returns the newest roster in force anywhere.
    pub(crate) fn newest_roster(&self) -> Option<&Roster> {
        let rosters = self.sites.iter().filter_map(|site| site.core.as_ref().map(Collective::roster));
        rosters.max_by_key(|roster| roster.version)
    }

    /// Lets everybody join through the founder, one after the other, until all have their vote and a seat.
    pub(crate) fn assemble(&mut self, members: usize) {
        for joiner in 1..members {
            if !self.wait(60 * SECOND, |world| world.is_seated(0)) {
                return self.violate(Rule::Convergence, "the founder is not seated within 60 s".into());
            }
            let number = self.enrol(joiner, 0, false);
            let in_time = self.wait(60 * SECOND, |world| world.is_seated(joiner));
            if !in_time {
                let outcome = self.enrolments[number].outcome.clone();
                return self.violate(Rule::Convergence, format!("m{joiner} did not join in 60 s: {outcome:?}"));
            }
        }
        let settled = self.wait(60 * SECOND, |world| {
            (0..members).all(|at| {
                let core = world.sites[at].core.as_ref();
                world.is_seated(at) && core.is_some_and(|core| core.roster().voters().len() == members)
            })
        });
        if !settled {
            self.violate(Rule::Convergence, "not everybody has a vote and a seat within 60 s".into());
        }
    }

    /// Runs until something is so, at most that long; returns whether it is.
    pub(crate) fn wait(&mut self, most: u64, until: impl Fn(&Self) -> bool) -> bool {
        let end = self.time + most;
        while self.time < end && self.checker.violations.is_empty() {
            if until(self) {
                return true;
            }
            self.run_until(self.time + 50 * MS);
        }
        until(self)
    }
}

fn encode(value: &impl minicbor::Encode<()>) -> Vec<u8> {
    minicbor::to_vec(value).unwrap_or_default() // Encoding into a Vec cannot fail.
}
