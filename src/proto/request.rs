//! Requests and responses: what an administrator asks of a member, which of it needs quorum, and the shapes that
//! scripts rely on.
//!
//! The command line builds a [`Request`] and prints a [`Response`]; nothing is decided between. The JSON form of a
//! response is the output of `-o json`, with its `schema` word; keys are only ever added within a schema version.

use serde::{Deserialize, Serialize};

use super::inventory;
use super::name::{AttributeName, GroupName, MemberName, NodeName};
use super::roster::Role;

mod shapes;

pub use shapes::*;

/// What an administrator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Request {
    /// Who is there, in Confluent's words. Answered without quorum.
    Show,
    /// The whole state as this member sees it. Answered without quorum.
    Status,
    /// The member list with every fact and its age. Answered without quorum.
    Members {
        /// Only these, a noderange over members.
        #[serde(default)]
        expression: Option<String>,
    },
    /// Who sees whom. Answered without quorum.
    View,
    /// The vote count, and what it would be with some members gone. Answered without quorum.
    Quorum {
        /// A noderange over members that are thought away.
        #[serde(default)]
        without: Option<String>,
    },
    /// Probes a member directly.
    Ping {
        /// Who.
        member: MemberName,
    },
    /// Makes an invitation. Needs quorum.
    Invite {
        /// The name the new member will have.
        name: MemberName,
        /// What it will be.
        role: Role,
        /// How long the invitation holds, in milliseconds; at most 24 hours.
        ttl_ms: u64,
        /// How many members may join by it.
        uses: u32,
    },
    /// The pending invitations made on this member.
    Invites,
    /// Takes back an invitation made on this member.
    RevokeInvite {
        /// The name it was made for.
        name: MemberName,
    },
    /// Joins the collective that a token invites to. Handled by the daemon's shell, which may dial out.
    Join {
        /// `host` or `host:port`; left out when the token carries addresses.
        #[serde(default)]
        server: Option<String>,
        /// The token's text.
        token: TokenText,
        /// Whether a database that is not empty may be replaced.
        #[serde(default)]
        replace: bool,
        /// How long to wait for the data to arrive, in milliseconds.
        wait_ms: u64,
    },
    /// Makes this member's identity and a collective of one, when there is none yet; otherwise says what there is.
    Init {
        /// The name it shall have; the host name when left out.
        #[serde(default)]
        name: Option<MemberName>,
        /// The address that others reach it at, `host:port`.
        #[serde(default)]
        advertise: Option<String>,
    },
    /// Makes this member's key and certificate; in a collective it replaces them by two epochs, if `rotate` says so.
    Gencert {
        /// Whether the identity of a member of a collective may be replaced.
        #[serde(default)]
        rotate: bool,
    },
    /// Hands this member's nodes over and takes it off the roster. Needs quorum.
    Leave,
    /// Takes a member off the roster for good. Needs quorum.
    Delete {
        /// Who.
        member: MemberName,
        /// Whether a member that is alive may be deleted.
        #[serde(default)]
        force: bool,
        /// Whether to only say what would happen.
        #[serde(default)]
        dry_run: bool,
    },
    /// Changes what a member may do. Needs quorum.
    SetRole {
        /// Who.
        member: MemberName,
        /// What it becomes.
        role: Role,
    },
    /// Makes a member hand over its nodes and take no new ones, or ends that. Needs quorum.
    Drain {
        /// Who.
        member: MemberName,
        /// True to drain, false to end it.
        drain: bool,
    },
    /// Says how many members shall vote, and who does. Changing it needs quorum.
    Voters {
        /// How many there shall be from now on, 0 for everyone.
        #[serde(default)]
        ideal: Option<usize>,
        /// After how many milliseconds a dead voter is replaced from now on, 0 for never.
        #[serde(default)]
        replace_after_ms: Option<u64>,
    },
    /// Reads attributes. Needs quorum, unless `stale`.
    Attributes {
        /// Of which nodes or group.
        target: Target,
        /// Which attributes, with `*` as wildcard; all when empty.
        #[serde(default)]
        names: Vec<String>,
        /// Whether to say where a value comes from, who wrote it and when.
        #[serde(default)]
        blame: bool,
        /// Whether the local copy will do when there is no quorum.
        #[serde(default)]
        stale: bool,
    },
    /// Sets and clears attributes, as one batch. Needs quorum.
    SetAttributes {
        /// Of which nodes or group.
        target: Target,
        /// As typed: `name=value`, `name,=item`, `name^=item`.
        assignments: Vec<String>,
        /// Attributes to clear, with `*` as wildcard.
        #[serde(default)]
        clear: Vec<String>,
        /// How many copies make the answer "ok".
        #[serde(default)]
        wait: Wait,
        /// Whether to only say what would change.
        #[serde(default)]
        dry_run: bool,
        /// Whether more than 500 nodes may be touched.
        #[serde(default)]
        yes: bool,
    },
    /// The values that concurrent writers left, each with its author. Needs quorum, unless `stale`.
    Conflicts {
        /// Only on these nodes.
        #[serde(default)]
        nodes: Option<String>,
    },
    /// Names nodes. Needs quorum, unless `stale`.
    ListNodes {
        /// Which; all when left out.
        #[serde(default)]
        nodes: Option<String>,
        /// Whether the local copy will do when there is no quorum.
        #[serde(default)]
        stale: bool,
    },
    /// Makes nodes. Needs quorum.
    DefineNodes {
        /// Names, with brackets.
        nodes: String,
        /// As typed: `name=value`.
        #[serde(default)]
        assignments: Vec<String>,
    },
    /// Removes nodes. Needs quorum.
    RemoveNodes {
        /// Which.
        nodes: String,
        /// Whether to only say what would change.
        #[serde(default)]
        dry_run: bool,
        /// Whether more than 500 nodes may be removed.
        #[serde(default)]
        yes: bool,
    },
    /// Takes in an inventory. Needs quorum.
    Import {
        /// In which format the document is.
        format: ImportFormat,
        /// The document's text.
        document: String,
        /// Whether to only say what would change.
        #[serde(default)]
        dry_run: bool,
    },
    /// What [`Request::Import`] becomes once its document is read. Needs quorum; nobody can send it.
    #[serde(skip)]
    TakeIn {
        /// What the inventory holds.
        inventory: Box<inventory::Plan>,
        /// Whether to only say what would change.
        dry_run: bool,
    },
    /// Names groups. Needs quorum, unless `stale`.
    ListGroups {
        /// Whether the local copy will do when there is no quorum.
        #[serde(default)]
        stale: bool,
    },
    /// Makes groups. Needs quorum.
    DefineGroups {
        /// Names, with brackets.
        groups: String,
        /// As typed: `name=value`.
        #[serde(default)]
        assignments: Vec<String>,
    },
    /// Removes groups. Needs quorum.
    RemoveGroups {
        /// Names, with brackets.
        groups: String,
        /// Whether to only say what would change.
        #[serde(default)]
        dry_run: bool,
    },
    /// Who manages what, and why. Answered without quorum, marked as stale.
    Managers {
        /// Which nodes; all when left out.
        #[serde(default)]
        nodes: Option<String>,
        /// Whether to list the candidates and what ruled them out.
        #[serde(default)]
        why: bool,
    },
    /// Sets the preferred manager of nodes. Needs quorum.
    Move {
        /// Which nodes.
        nodes: String,
        /// The member that shall manage them.
        to: MemberName,
        /// Whether to only say what would change.
        #[serde(default)]
        dry_run: bool,
    },
    /// Expands a noderange. Needs quorum, unless `stale`.
    Expand {
        /// The expression.
        expression: String,
        /// Whether the local copy will do when there is no quorum.
        #[serde(default)]
        stale: bool,
    },
    /// What happened on this member. Answered without quorum.
    Events {
        /// Only events after this one.
        #[serde(default)]
        after: Option<u64>,
        /// Only events of these kinds.
        #[serde(default)]
        kinds: Vec<EventKind>,
        /// At most this many, the newest.
        #[serde(default)]
        limit: Option<usize>,
    },
    /// Runs an action on nodes, each on its acting manager. Needs quorum.
    Run {
        /// Which nodes.
        nodes: String,
        /// The action.
        action: String,
        /// Its arguments.
        #[serde(default)]
        arguments: Vec<String>,
    },
}

/// What attributes belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// The nodes of a noderange.
    Nodes(String),
    /// One group.
    Group(GroupName),
}

/// How many copies of a write make the answer "ok".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wait {
    /// Durable on this member.
    Local,
    /// Durable on a majority of the voters.
    #[default]
    Majority,
    /// Durable on every member that is alive.
    All,
}

/// Formats of an inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImportFormat {
    /// The JSON that `ansible-inventory --list` prints.
    Ansible,
    /// A header line `node,groups,ATTRIBUTE...` and a line a node.
    Csv,
}

/// A token as typed; never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenText(pub String);

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText(..)")
    }
}

impl Drop for TokenText {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// What a request needs of the member that answers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it is answered from this member's own view.
    Nothing,
    /// Quorum, and nothing that only a seated member may do.
    Quorum,
    /// A seated member: quorum held and documents resynced since (R12).
    Seat,
}

impl Request {
    /// Returns what the request needs; the table "Without quorum" of the safety design.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Show
            | Self::Status
            | Self::Members { .. }
            | Self::View
            | Self::Quorum { .. }
            | Self::Ping { .. }
            | Self::Invites
            | Self::Managers { .. }
            | Self::Events { .. }
            | Self::Join { .. }
            | Self::Init { .. }
            | Self::Gencert { .. } => Needs::Nothing,
            Self::RevokeInvite { .. } => Needs::Nothing,
            Self::Voters { ideal: None, replace_after_ms: None } => Needs::Nothing,
            Self::Attributes { stale, .. } | Self::ListNodes { stale, .. } | Self::ListGroups { stale, .. } => {
                if *stale { Needs::Nothing } else { Needs::Quorum }
            }
            Self::Expand { stale, .. } => {
                if *stale {
                    Needs::Nothing
                } else {
                    Needs::Quorum
                }
            }
            Self::Conflicts { .. } => Needs::Quorum,
            Self::Invite { .. }
            | Self::Leave
            | Self::Delete { .. }
            | Self::SetRole { .. }
            | Self::Drain { .. }
            | Self::Voters { .. }
            | Self::SetAttributes { .. }
            | Self::DefineNodes { .. }
            | Self::RemoveNodes { .. }
            | Self::Import { .. }
            | Self::TakeIn { .. }
            | Self::DefineGroups { .. }
            | Self::RemoveGroups { .. }
            | Self::Move { .. }
            | Self::Run { .. } => Needs::Seat,
        }
    }

    /// Returns the request's word, as in its JSON form; for logs and metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Show => "show",
            Self::Status => "status",
            Self::Members { .. } => "members",
            Self::View => "view",
            Self::Quorum { .. } => "quorum",
            Self::Ping { .. } => "ping",
            Self::Invite { .. } => "invite",
            Self::Invites => "invites",
            Self::RevokeInvite { .. } => "revoke-invite",
            Self::Join { .. } => "join",
            Self::Init { .. } => "init",
            Self::Gencert { .. } => "gencert",
            Self::Leave => "leave",
            Self::Delete { .. } => "delete",
            Self::SetRole { .. } => "set-role",
            Self::Drain { .. } => "drain",
            Self::Voters { .. } => "voters",
            Self::Attributes { .. } => "attributes",
            Self::SetAttributes { .. } => "set-attributes",
            Self::Conflicts { .. } => "conflicts",
            Self::ListNodes { .. } => "list-nodes",
            Self::DefineNodes { .. } => "define-nodes",
            Self::RemoveNodes { .. } => "remove-nodes",
            Self::Import { .. } | Self::TakeIn { .. } => "import",
            Self::ListGroups { .. } => "list-groups",
            Self::DefineGroups { .. } => "define-groups",
            Self::RemoveGroups { .. } => "remove-groups",
            Self::Managers { .. } => "managers",
            Self::Move { .. } => "move",
            Self::Expand { .. } => "expand",
            Self::Events { .. } => "events",
            Self::Run { .. } => "run",
        }
    }

    /// Returns whether the status socket, which everybody may open, answers this request.
    pub fn is_read_only(&self) -> bool {
        matches!(
            self,
            Self::Show
                | Self::Status
                | Self::Members { .. }
                | Self::View
                | Self::Quorum { .. }
                | Self::Managers { .. }
                | Self::Events { .. }
                | Self::Attributes { .. }
                | Self::ListNodes { .. }
                | Self::ListGroups { .. }
                | Self::Expand { .. }
                | Self::Conflicts { .. }
        )
    }
}

/// What the member answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Response {
    /// It could not or would not.
    Error(Refused),
    /// To [`Request::Show`].
    Show(Show),
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// To [`Request::Members`].
    Members(Members),
    /// To [`Request::View`].
    View(View),
    /// To [`Request::Quorum`].
    Quorum(QuorumReport),
    /// To [`Request::Ping`].
    Ping(Ping),
    /// To [`Request::Invite`].
    Invited(Invited),
    /// To [`Request::Invites`].
    Invites(Invites),
    /// To [`Request::Attributes`].
    Attributes(Attributes),
    /// To [`Request::Conflicts`].
    Conflicts(Conflicts),
    /// To [`Request::ListNodes`] and [`Request::Expand`].
    Nodes(Nodes),
    /// To [`Request::ListGroups`].
    Groups(Groups),
    /// To [`Request::Managers`].
    Managers(Managers),
    /// To [`Request::Events`].
    Events(Events),
    /// To [`Request::Run`].
    Ran(Ran),
    /// To everything that changes something.
    Done(Done),
}

/// A request that was refused or failed, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The error itself, under the key `error`.
    pub error: Refusal,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The kind, for scripts.
    pub code: ErrorCode,
    /// The exit code of the command line.
    pub exit: u8,
    /// What happened and why, one sentence.
    pub message: String,
    /// The next command to type, or empty.
    pub hint: String,
}

impl Refusal {
    /// Makes a refusal; the exit code follows from the kind.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, exit: code.exit(), message: message.into(), hint: hint.into() }
    }
}

impl From<Refusal> for Response {
    fn from(error: Refusal) -> Self {
        Self::Error(Refused { error })
    }
}

/// The kinds of refusal; each has one exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// It was tried and did not work.
    Failure,
    /// The command line is wrong.
    Usage,
    /// A noderange, attribute or token cannot be read.
    BadData,
    /// The daemon does not answer.
    Unreachable,
    /// A bug of ours.
    Internal,
    /// The member is joining or resyncing; the same request will work soon.
    TryAgain,
    /// The versions do not fit.
    VersionMismatch,
    /// The socket or the file may not be used by this user.
    Permission,
    /// The configuration is wrong.
    Configuration,
    /// A proof failed: the token or key is not the right one.
    ProofFailed,
    /// No such member, node, group or attribute.
    NotFound,
    /// There is no quorum.
    NoQuorum,
    /// It would do harm; the hint names the flag that insists.
    NeedsForce,
    /// It is there already.
    Exists,
    /// Stored here, but not confirmed by a majority.
    Indeterminate,
    /// The invitation has expired or was used.
    InviteSpent,
    /// It took too long.
    TimedOut,
}

impl ErrorCode {
    /// Returns the exit code of the command line; `collective help exit-codes` lists them.
    pub const fn exit(self) -> u8 {
        match self {
            Self::Failure => 1,
            Self::Usage => 64,
            Self::BadData => 65,
            Self::Unreachable => 69,
            Self::Internal => 70,
            Self::TryAgain => 75,
            Self::VersionMismatch => 76,
            Self::Permission => 77,
            Self::Configuration => 78,
            Self::ProofFailed => 104,
            Self::NotFound => 105,
            Self::NoQuorum => 106,
            Self::NeedsForce => 107,
            Self::Exists => 108,
            Self::Indeterminate => 109,
            Self::InviteSpent => 110,
            Self::TimedOut => 124,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_read_back_as_what_they_are() {
        let responses = [
            Response::Show(Show { quorum: true, ..Show::default() }),
            Response::Status(Box::default()),
            Response::Members(Members::default()),
            Response::View(View::default()),
            Response::Quorum(QuorumReport::default()),
            Response::Invites(Invites::default()),
            Response::Attributes(Attributes::default()),
            Response::Conflicts(Conflicts::default()),
            Response::Nodes(Nodes::default()),
            Response::Groups(Groups::default()),
            Response::Managers(Managers::default()),
            Response::Events(Events::default()),
            Response::Ran(Ran::default()),
            Response::Done(Done::default()),
            Refusal::new(ErrorCode::NoQuorum, "no", "").into(),
        ];
        for response in responses {
            let text = serde_json::to_string(&response).expect("serializable");
            assert_eq!(serde_json::from_str::<Response>(&text).expect("readable"), response, "{text}");
        }
    }

    #[test]
    fn the_word_of_a_request_is_the_one_in_its_json() {
        for request in [Request::Show, Request::Gencert { rotate: true }, Request::Conflicts { nodes: None }] {
            let json = serde_json::to_value(&request).expect("serializable");
            assert_eq!(json["request"], request.kind());
        }
    }

    #[test]
    fn the_word_of_an_event_is_the_one_in_its_json() {
        for kind in EventKind::ALL {
            assert_eq!(serde_json::to_value(kind).expect("serializable"), kind.word());
            assert_eq!(EventKind::from_word(kind.word()), Some(kind));
        }
        assert_eq!(EventKind::from_word("party"), None);
    }

    #[test]
    fn a_token_is_never_printed() {
        assert!(!format!("{:?}", TokenText("hush".into())).contains("hush"));
    }
}
