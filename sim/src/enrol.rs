//! Enrolment: the founder's first roster, and the real way in for everybody else: invitation, token, proof, welcome.

use std::collections::BTreeMap;

use collective::daemon::persist;
use collective::proto::collective::{Event, JoinId};
use collective::proto::facts::PeerRecord;
use collective::proto::identity::{ClusterId, MemberId};
use collective::proto::invite::{JoinAnswer, JoinHello, JoinProof, Token, Transcript, prove};
use collective::proto::message::{WIRE_MAX, WIRE_MIN};
use collective::proto::request::{Request, Response};
use collective::proto::roster::{Member, Role, Roster, Timing};

use crate::check::Rule;
use crate::disk::Disk;
use crate::fault::{MS, SECOND};
use crate::mix::Purpose;
use crate::workload::Op;
use crate::world::World;

/// How long an invitation holds.
const TTL_MS: u64 = 3_600_000;

/// One stranger on its way in.
#[derive(Debug)]
pub(crate) struct Enrolment {
    pub(crate) id: JoinId,
    joiner: usize,
    via: usize,
    token: Option<Token>,
    /// Whether the joiner dies as soon as it was let in.
    dies: bool,
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
        self.enrolments.push(Enrolment { id, joiner, via, token: None, dies, outcome: None });
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
        let Enrolment { id, joiner, via, .. } = self.enrolments[number];
        if !self.passes_both(joiner, via) {
            self.enrolments[number].outcome = Some(Err("the way is cut".into()));
            return;
        }
        let exporter = self.mix.bytes(Purpose::Exporter, id);
        match step {
            Step::Hello(bytes) => {
                if let Ok(hello) = minicbor::decode(&bytes) {
                    self.join_event(via, Event::JoinHello { id, hello });
                }
            }
            Step::Proof(bytes) => {
                if let Ok(proof) = minicbor::decode(&bytes) {
                    let (peer, address) = (self.sites[joiner].fingerprint, self.sites[joiner].address);
                    self.join_event(via, Event::JoinProof { id, proof, peer, exporter, address });
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
        let Enrolment { joiner, via, token: Some(token), .. } = &self.enrolments[number] else { return };
        let transcript = Transcript {
            cluster,
            invite: token.id,
            name: token.name.clone(),
            role,
            exporter,
            server: self.sites[*via].fingerprint,
            joiner: self.sites[*joiner].fingerprint,
        };
        let addresses = vec![self.sites[*joiner].address];
        let proof = JoinProof { proof: prove(&token.seed, &transcript), addresses, software: "sim".to_owned() };
        self.join_later(5 * MS, number, Step::Proof(encode(&proof)));
    }

    fn enter(&mut self, number: usize, me: MemberId, roster: &Roster, peers: &BTreeMap<MemberId, PeerRecord>) {
        let Enrolment { joiner, dies, .. } = self.enrolments[number];
        self.enrolments[number].outcome = Some(Ok(me));
        self.tell(|| format!("m{joiner} is let in"));
        let site = &mut self.sites[joiner];
        site.disk = Disk::default();
        site.disk.commit(&persist::encode_birth(me, roster, peers));
        site.me = Some(me);
        if dies {
            site.downs += 1;
        }
        self.boot_later(50 * MS, joiner);
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
