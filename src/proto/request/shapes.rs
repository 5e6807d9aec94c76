//! The documents of responses: the shapes that scripts rely on, each told by the `schema` word it begins with.

use serde::{Deserialize, Serialize};

use super::*;

/// A `schema` word that only reads back as itself, so that untagged responses are told apart by it.
macro_rules! schema {
    ($type:ident, $word:literal) => {
        #[doc = concat!("The word `", $word, "`.")]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $type {
            #[doc = concat!("`", $word, "`")]
            #[default]
            #[serde(rename = $word)]
            V1,
        }
    };
}

schema!(ShowSchema, "collective.show/1");
schema!(StatusSchema, "collective.status/1");
schema!(MembersSchema, "collective.members/1");
schema!(ViewSchema, "collective.view/1");
schema!(QuorumSchema, "collective.quorum/1");
schema!(PingSchema, "collective.ping/1");
schema!(InviteSchema, "collective.invite/1");
schema!(InvitesSchema, "collective.invites/1");
schema!(AttributesSchema, "collective.attributes/1");
schema!(ConflictsSchema, "collective.conflicts/1");
schema!(NodesSchema, "collective.range/1");
schema!(GroupsSchema, "collective.groups/1");
schema!(ManagersSchema, "collective.managers/1");
schema!(EventsSchema, "collective.events/1");
schema!(EventSchema, "collective.event/1");
schema!(RunSchema, "collective.run/1");
schema!(DoneSchema, "collective.done/1");

/// Who is there, as Confluent's `collective show` says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Show {
    /// `collective.show/1`.
    pub schema: ShowSchema,
    /// Whether this member holds quorum now.
    pub quorum: bool,
    /// The lowest-named live voter; none without quorum.
    pub leader: Option<MemberName>,
    /// Live members but the leader, in natural order.
    pub active: Vec<MemberName>,
    /// The others.
    pub offline: Vec<MemberName>,
    /// Those of either list without a vote.
    pub nonvoting: Vec<MemberName>,
}

/// How far a session has come (R12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// No quorum.
    #[default]
    Isolated,
    /// Quorum, but not yet resynced with a majority since.
    Rejoining,
    /// Quorum and resynced: may claim, elect and accept writes.
    Seated,
}

/// The vote count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Votes {
    /// Whether enough voters granted.
    pub quorate: bool,
    /// Voters whose grant holds.
    pub votes: usize,
    /// Voters on the roster.
    pub expected: usize,
    /// Voters needed.
    pub needed: usize,
    /// How many of the present votes can go before quorum is lost.
    pub failure_tolerance: usize,
}

/// The whole state as one member sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// `collective.status/1`.
    pub schema: StatusSchema,
    /// The collective's id.
    pub collective: String,
    /// Who says so; none on a member that was removed.
    #[serde(rename = "self")]
    pub me: Option<MemberName>,
    /// The enrolment that says so: another one when the member was invited again.
    #[serde(default)]
    pub id: String,
    /// The counter that this enrolment raised last: at its start, or to refute that it is down.
    #[serde(default)]
    pub incarnation: u64,
    /// When, RFC 3339 UTC.
    pub time: String,
    /// How far this session has come.
    pub standing: Standing,
    /// The roster in force, as `generation.epoch`.
    pub roster: String,
    /// The SHA-256 of that roster: the same on every member that has it.
    #[serde(default)]
    pub roster_hash: String,
    /// The vote count.
    pub quorum: Votes,
    /// The lowest-named live voter; none without quorum.
    pub leader: Option<MemberName>,
    /// How long quorum has been lost, when it is.
    pub no_quorum_for_ms: Option<u64>,
    /// What is agreed of who is there.
    pub view: ViewSummary,
    /// The documents.
    pub data: DataSummary,
    /// Nodes with an acting manager, of all nodes.
    pub managed: usize,
    /// The members in natural order.
    pub members: Vec<MemberStatus>,
    /// What a person should look at.
    pub health: Vec<Health>,
}

/// What is agreed of who is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewSummary {
    /// A hash of the view.
    pub hash: String,
    /// Members whose view has the same hash.
    pub agreed_by: Vec<MemberName>,
    /// Members that do not answer.
    pub silent: Vec<Silent>,
}

/// A member that does not answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Silent {
    /// Who.
    pub member: MemberName,
    /// Since how many milliseconds; none when it was not heard of since this daemon started.
    pub for_ms: Option<u64>,
}

/// The documents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Whether every live member's documents are known to equal this member's.
    pub converged: bool,
    /// A hash over all documents.
    pub heads: String,
    /// Nodes defined.
    pub nodes: usize,
    /// Groups defined.
    pub groups: usize,
}

/// One member as another sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// The name.
    pub name: MemberName,
    /// The enrolment: another one when the member was invited again.
    #[serde(default)]
    pub id: String,
    /// `alive`, `suspect`, `down` or `left`.
    pub state: String,
    /// Since how many milliseconds; none for what was never seen.
    pub since_ms: Option<u64>,
    /// The role.
    pub role: Role,
    /// Whether its vote counts.
    pub votes: bool,
    /// Whether it is catching up (R3).
    pub learner: bool,
    /// Whether it is being drained.
    pub draining: bool,
    /// Nodes it manages.
    pub manages: usize,
    /// Smoothed round-trip time in microseconds.
    pub rtt_us: Option<u64>,
    /// How long ago it was heard, in milliseconds.
    pub last_heard_ms: Option<u64>,
    /// Documents in which it differs from this member.
    pub lag: Option<usize>,
    /// Its software version.
    pub version: Option<String>,
    /// Its address.
    pub address: Option<String>,
    /// The SHA-256 of its public key.
    pub fingerprint: String,
    /// The last trouble in reaching it.
    pub trouble: Option<String>,
}

/// One thing a person should look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// A stable word, such as `member-down`.
    pub code: String,
    /// `info`, `warning` or `critical`.
    pub severity: String,
    /// What it is.
    pub message: String,
    /// The next command to type.
    pub hint: String,
}

/// The member list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    /// `collective.members/1`.
    pub schema: MembersSchema,
    /// Whether this member holds quorum.
    pub quorum: bool,
    /// The members in natural order.
    pub members: Vec<MemberStatus>,
}

/// Who sees whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// `collective.view/1`.
    pub schema: ViewSchema,
    /// A row a member: what it says of the others.
    pub rows: Vec<ViewRow>,
}

/// What one member says of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewRow {
    /// Who says so.
    pub member: MemberName,
    /// How old this knowledge is, in milliseconds; zero for this member itself.
    pub age_ms: u64,
    /// The hash of its view.
    pub hash: String,
    /// The state of each other member.
    pub sees: Vec<Sees>,
}

/// What one member says of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sees {
    /// Of whom.
    pub member: MemberName,
    /// `alive`, `suspect`, `down` or `left`.
    pub state: String,
}

/// The vote count and what it would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuorumReport {
    /// `collective.quorum/1`.
    pub schema: QuorumSchema,
    /// The count now.
    pub quorum: Votes,
    /// The members thought away.
    pub without: Vec<MemberName>,
    /// The count without them.
    pub then: Option<Votes>,
    /// The voters, and whether each granted.
    pub voters: Vec<VoterReport>,
}

/// One voter's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoterReport {
    /// Who.
    pub member: MemberName,
    /// Whether its grant holds.
    pub granted: bool,
    /// How long it holds on, in milliseconds.
    pub for_ms: u64,
}

/// A member's answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// `collective.ping/1`.
    pub schema: PingSchema,
    /// Who.
    pub member: MemberName,
    /// The round-trip time in microseconds.
    pub rtt_us: u64,
}

/// A new invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// `collective.invite/1`.
    pub schema: InviteSchema,
    /// For whom.
    pub member: MemberName,
    /// The token; it is shown once.
    pub token: TokenText,
    /// When it expires, RFC 3339 UTC.
    pub expires: String,
    /// Whether an older invitation for that name was revoked.
    pub replaced: bool,
    /// The member whose stale entry will be replaced, when the name is on the roster.
    pub replaces: Option<MemberName>,
}

/// The pending invitations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invites {
    /// `collective.invites/1`.
    pub schema: InvitesSchema,
    /// One each.
    pub invites: Vec<PendingInvite>,
}

/// One pending invitation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingInvite {
    /// For whom.
    pub member: MemberName,
    /// What it will be.
    pub role: Role,
    /// When it expires, RFC 3339 UTC.
    pub expires: String,
    /// Uses left.
    pub uses_left: u32,
    /// Wrong proofs left before it is burnt.
    pub attempts_left: u32,
}

/// Attributes of nodes or of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// `collective.attributes/1`.
    pub schema: AttributesSchema,
    /// Whether they were read without quorum.
    pub stale: bool,
    /// How long ago quorum was last held, in milliseconds, when they are stale.
    pub stale_for_ms: Option<u64>,
    /// One a node, or one for the group.
    pub nodes: Vec<EntityAttributes>,
}

/// The attributes of one node or group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntityAttributes {
    /// The node or group.
    pub node: String,
    /// By name.
    pub attributes: std::collections::BTreeMap<AttributeName, AttributeValue>,
}

/// One value and where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeValue {
    /// The value; none for a known attribute that has none.
    pub value: Option<String>,
    /// The group it is inherited from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub inherited_from: Option<GroupName>,
    /// The member that wrote it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub written_by: Option<String>,
    /// When, RFC 3339 UTC.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub written_at: Option<String>,
}

/// Values that concurrent writers left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflicts {
    /// `collective.conflicts/1`.
    pub schema: ConflictsSchema,
    /// One a value in conflict.
    pub conflicts: Vec<Conflict>,
}

/// One attribute with several values; the first is the one that is read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// The node or group.
    pub node: String,
    /// The attribute.
    pub attribute: String,
    /// Its values.
    pub values: Vec<AttributeValue>,
}

/// Names of nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nodes {
    /// `collective.range/1`.
    pub schema: NodesSchema,
    /// The nodes, in the order of the expression.
    pub nodes: Vec<NodeName>,
    /// The same, folded.
    pub folded: String,
}

/// Names of groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// `collective.groups/1`.
    pub schema: GroupsSchema,
    /// One each, in natural order.
    pub groups: Vec<GroupSummary>,
}

/// One group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupSummary {
    /// The group.
    pub group: GroupName,
    /// Nodes in it.
    pub nodes: usize,
}

/// Who manages what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Managers {
    /// `collective.managers/1`.
    pub schema: ManagersSchema,
    /// Whether this was answered without quorum.
    pub stale: bool,
    /// One a node.
    pub nodes: Vec<ManagerStatus>,
}

/// Who manages one node, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerStatus {
    /// The node.
    pub node: NodeName,
    /// The member that acts, as far as this member knows.
    pub manager: Option<MemberName>,
    /// The member that the election names.
    pub desired: Option<MemberName>,
    /// The member an administrator prefers.
    pub preferred: Option<MemberName>,
    /// The candidates in their order.
    pub candidates: Vec<MemberName>,
    /// The fencing token, `generation.epoch.term`.
    pub token: Option<String>,
    /// Why this one.
    pub reason: String,
    /// Candidates ruled out, and why; with `why` only.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub ruled_out: Vec<RuledOut>,
    /// Names in the candidates that are no members.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub unknown: Vec<String>,
}

/// A candidate that cannot manage a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuledOut {
    /// Who.
    pub member: MemberName,
    /// Why.
    pub reason: String,
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// `collective.events/1`.
    pub schema: EventsSchema,
    /// Oldest first.
    pub events: Vec<LoggedEvent>,
}

/// Kinds of things that happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A member was added to the roster.
    MemberJoin,
    /// A member said farewell.
    MemberLeave,
    /// A member does not answer.
    MemberSuspect,
    /// A member answers (again).
    MemberAlive,
    /// A member is taken for dead.
    MemberDown,
    /// A member was taken off the roster.
    MemberDeleted,
    /// This member lost quorum.
    QuorumLost,
    /// This member holds quorum again.
    QuorumRegained,
    /// Another member is the leader.
    LeaderChanged,
    /// This member began or ceased to act for a node.
    ManagerChanged,
    /// Attributes changed.
    AttributeChanged,
    /// A resync with a member began.
    ResyncStart,
    /// A resync with a member is complete.
    ResyncDone,
    /// A new roster is in force.
    EpochDecided,
    /// A member speaks other wire versions.
    VersionSkew,
    /// Two daemons run with one identity.
    DuplicateIdentity,
}

impl EventKind {
    /// All kinds, in the order in which they are documented.
    pub const ALL: [Self; 16] = [
        Self::MemberJoin,
        Self::MemberLeave,
        Self::MemberSuspect,
        Self::MemberAlive,
        Self::MemberDown,
        Self::MemberDeleted,
        Self::QuorumLost,
        Self::QuorumRegained,
        Self::LeaderChanged,
        Self::ManagerChanged,
        Self::AttributeChanged,
        Self::ResyncStart,
        Self::ResyncDone,
        Self::EpochDecided,
        Self::VersionSkew,
        Self::DuplicateIdentity,
    ];

    /// Returns the kind's word, as in its JSON form.
    pub const fn word(self) -> &'static str {
        match self {
            Self::MemberJoin => "member-join",
            Self::MemberLeave => "member-leave",
            Self::MemberSuspect => "member-suspect",
            Self::MemberAlive => "member-alive",
            Self::MemberDown => "member-down",
            Self::MemberDeleted => "member-deleted",
            Self::QuorumLost => "quorum-lost",
            Self::QuorumRegained => "quorum-regained",
            Self::LeaderChanged => "leader-changed",
            Self::ManagerChanged => "manager-changed",
            Self::AttributeChanged => "attribute-changed",
            Self::ResyncStart => "resync-start",
            Self::ResyncDone => "resync-done",
            Self::EpochDecided => "epoch-decided",
            Self::VersionSkew => "version-skew",
            Self::DuplicateIdentity => "duplicate-identity",
        }
    }

    /// Returns the kind of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.word() == word)
    }
}

/// One thing that happened on this member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoggedEvent {
    /// `collective.event/1`.
    pub schema: EventSchema,
    /// Counts from 1 with each start of the daemon.
    pub seq: u64,
    /// When, RFC 3339 UTC.
    pub time: String,
    /// What kind.
    pub kind: EventKind,
    /// The member it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub member: Option<MemberName>,
    /// The node it is about.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<NodeName>,
    /// The fencing token, for `manager-changed`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub token: Option<String>,
    /// What a person reads.
    pub message: String,
}

/// What an action did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ran {
    /// `collective.run/1`.
    pub schema: RunSchema,
    /// One a node.
    pub results: Vec<ActionResult>,
}

/// What an action did on one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionResult {
    /// The node.
    pub node: NodeName,
    /// The member that ran it.
    pub manager: Option<MemberName>,
    /// The fencing token it ran under.
    pub token: Option<String>,
    /// The command's exit status; none when it did not run or was killed.
    pub status: Option<i32>,
    /// Its output, both streams, in the order it came.
    pub output: Vec<String>,
    /// Why it did not run or was killed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Refusal>,
}

/// Something was changed, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// `collective.done/1`.
    pub schema: DoneSchema,
    /// What, one sentence.
    pub message: String,
    /// Lines a person may want to read on stderr.
    #[serde(default)]
    pub notes: Vec<String>,
    /// What changed or would change, one line each.
    #[serde(default)]
    pub changes: Vec<String>,
    /// Whether nothing was changed because only a dry run was asked for.
    #[serde(default)]
    pub dry_run: bool,
}
