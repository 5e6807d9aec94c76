//! The tree of commands, from which help, man pages and completions are made.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, ConfigError, DaemonArgs, Environment, Profile};
use crate::proto::name::MemberName;
use crate::proto::request::{ImportFormat, Wait};
use crate::proto::roster::Role;

/// Several management servers that act as one
#[derive(Debug, Parser)]
#[command(
    name = "collective",
    version,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = "collective help exit-codes|noderange|environment|files explains more."
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Flags that every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The daemon's socket [env: COLLECTIVE_SOCKET] [default: /run/collective/admin.sock]
    #[arg(short, long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// What the answer looks like [env: COLLECTIVE_OUTPUT] [default: table]
    #[arg(short, long, global = true, value_name = "FORMAT")]
    pub(super) output: Option<Format>,
    /// Print data only: no hints, notes or messages
    #[arg(short, long, global = true)]
    pub(super) quiet: bool,
    /// Leave the header line of tables out
    #[arg(long, global = true)]
    pub(super) no_header: bool,
    /// Colour words [env: COLLECTIVE_COLOR, NO_COLOR] [default: auto]
    #[arg(long, global = true, value_name = "WHEN")]
    pub(super) color: Option<Color>,
    /// How long to wait for an answer, such as 5s [env: COLLECTIVE_TIMEOUT] [default: 5s, more where work is waited for]
    #[arg(long, global = true, value_name = "TIME", value_parser = duration)]
    pub(super) timeout: Option<Duration>,
    /// Say more
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
}

/// What an answer looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For people with wide screens
    Wide,
    /// One document
    Json,
    /// One document a line
    Jsonl,
    /// Names only, one a line
    Names,
    /// Names only, folded to one noderange
    Fold,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// When a terminal reads it
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// Reads a duration such as `5s` or `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it as 5s, 10m or 1h30m"))
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make this member's identity and a collective of one, where there is none
    Init(InitArgs),
    /// Make this member's key and certificate
    Gencert {
        /// Replace the identity of a member that is in a collective
        #[arg(long)]
        rotate: bool,
    },
    /// Print a token by which a server joins
    Invite(InviteArgs),
    /// List or revoke pending invitations
    Invites {
        #[command(subcommand)]
        action: Option<InvitesAction>,
    },
    /// Join the collective that a token invites to
    Join(JoinArgs),
    /// Hand this member's nodes over and leave the collective
    Leave,
    /// Take a member out of the collective for good
    Delete {
        /// Who
        member: String,
        /// Even when it is alive
        #[arg(long)]
        force: bool,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
    },
    /// Show who is there, as Confluent does; with -v also the member list
    Show,
    /// Show the whole state as this member sees it
    Status {
        /// Show it again and again
        #[arg(short, long)]
        watch: bool,
    },
    /// List the members
    Members {
        /// Only these: names, brackets and exclusions as in a noderange
        expression: Option<String>,
    },
    /// Show who sees whom
    View {
        /// As a matrix
        #[arg(long)]
        matrix: bool,
    },
    /// Say whether this member holds quorum, by exit code too
    Quorum {
        /// Count as if these members were gone
        #[arg(long, value_name = "EXPR")]
        without: Option<String>,
    },
    /// Probe a member directly
    Ping {
        /// Who
        member: String,
        /// How often
        #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
    },
    /// Wait until the collective is as it should be
    Wait(WaitArgs),
    /// Check the state as a Nagios plugin: exit 0 ok, 1 warning, 2 critical, 3 unknown
    Check,
    /// Change what a member may do
    Role {
        /// Who
        member: String,
        /// What it becomes
        role: RoleArg,
    },
    /// Show who votes, or change how many shall
    Voters {
        /// How many shall vote; 0 is every member that was not invited as nonvoting
        #[arg(long, value_name = "N")]
        ideal: Option<usize>,
        /// How long a voter is dead before another takes its place, such as 10m; 0s is never
        #[arg(long, value_name = "TIME", value_parser = duration)]
        replace_after: Option<Duration>,
    },
    /// Make a member hand its nodes over and take no new ones
    Drain {
        /// Who
        member: String,
    },
    /// Let a drained member take nodes again
    Undrain {
        /// Who
        member: String,
    },
    /// Read, set and clear attributes of nodes and groups
    Attrib(AttribArgs),
    /// List, define, remove and import nodes
    Node {
        #[command(subcommand)]
        action: NodeAction,
    },
    /// List, define and remove groups
    Group {
        #[command(subcommand)]
        action: GroupAction,
    },
    /// Show which member manages which node
    Managers {
        /// Which nodes; all when left out
        noderange: Option<String>,
        /// Explain each
        #[arg(long)]
        why: bool,
        /// Count by member
        #[arg(long, conflicts_with = "why")]
        by_member: bool,
    },
    /// Set the preferred manager of nodes
    Move {
        /// Which nodes
        noderange: String,
        /// The member that shall manage them
        #[arg(long, value_name = "MEMBER")]
        to: String,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Expand, fold and count noderanges
    Range {
        #[command(subcommand)]
        action: RangeAction,
    },
    /// Run an action on nodes, each through its manager
    Run {
        /// Which nodes
        noderange: String,
        /// The action
        action: String,
        /// Its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Show what happened on this member
    Events(EventsArgs),
    /// List the hooks of this machine
    Hooks {
        #[command(subcommand)]
        action: HooksAction,
    },
    /// Check and show the configuration
    Config {
        #[command(subcommand)]
        action: ConfigAction,
    },
    /// Generate completions, man pages and links with Confluent's names
    Gen {
        #[command(subcommand)]
        action: GenAction,
    },
    /// Watch three members form a collective, lose one and heal
    Demo(DemoArgs),
    /// Explain a command or a topic
    Help {
        /// A command, or: exit-codes, noderange, environment, files
        #[arg(value_name = "COMMAND|TOPIC")]
        words: Vec<String>,
    },
}

/// What `collective init` is told.
#[derive(Clone, Debug, Default, Args)]
pub struct InitArgs {
    /// This member's name; the host name when left out
    #[arg(long)]
    pub name: Option<String>,
    /// Address that others reach this member at
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Directory of what must survive, when no daemon runs
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The kind of network, when no daemon runs
    #[arg(long)]
    pub profile: Option<Profile>,
    /// Configuration file, when no daemon runs
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

impl InitArgs {
    /// Loads the configuration of the daemon that shall run with this identity.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake in a file, a variable or the name.
    pub fn config(self, environment: &Environment) -> Result<Config, ConfigError> {
        let name = self.name.map(|name| {
            MemberName::new(&name).map_err(|error| ConfigError::Value {
                origin: "--name".to_owned(),
                value: name,
                message: error.to_string(),
            })
        });
        let daemon = DaemonArgs {
            config: self.config,
            name: name.transpose()?,
            advertise: self.advertise,
            state_dir: self.state_dir,
            profile: self.profile,
            ..DaemonArgs::default()
        };
        daemon.load(environment.clone()).map(|(config, _)| config)
    }
}

/// What `collective demo` is told.
#[derive(Clone, Debug, Default, Args)]
pub struct DemoArgs {
    /// Leave the members running and print how to talk to them
    #[arg(long)]
    pub stay: bool,
    /// Serve the page on this address
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub(super) struct InviteArgs {
    /// The name that the new member will have
    pub(super) name: String,
    /// It manages nodes and holds all data, but has no vote
    #[arg(short, long, conflicts_with = "witness")]
    pub(super) nonvoting: bool,
    /// It votes, but never manages a node
    #[arg(long)]
    pub(super) witness: bool,
    /// How long the invitation holds; at most 24h
    #[arg(long, default_value = "1h", value_name = "TIME", value_parser = duration)]
    pub(super) ttl: Duration,
    /// How many members may join by it
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) reusable: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum InvitesAction {
    /// List pending invitations made on this member
    List,
    /// Take an invitation back
    Revoke {
        /// The name it was made for
        name: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct JoinArgs {
    /// A member of the collective, `host` or `host:port`; may be left out when the token carries an address
    pub(super) server: Option<String>,
    /// The token: itself, @FILE, or - for stdin [env: COLLECTIVE_TOKEN]
    #[arg(short = 'i', long = "invitation", value_name = "TOKEN|@FILE|-", allow_hyphen_values = true)]
    pub(super) token: Option<String>,
    /// Replace this member's own database, after a backup
    #[arg(long)]
    pub(super) replace: bool,
    /// How long to wait for the data
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    pub(super) wait: Duration,
    /// Do not wait for the data
    #[arg(long, conflicts_with = "wait")]
    pub(super) no_wait: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("condition").required(true).multiple(true)))]
pub(super) struct WaitArgs {
    /// Until this member holds quorum
    #[arg(long, group = "condition")]
    pub(super) quorum: bool,
    /// Until so many members are alive
    #[arg(long, value_name = "N", group = "condition")]
    pub(super) members: Option<usize>,
    /// Until every live member has the same documents
    #[arg(long, group = "condition")]
    pub(super) converged: bool,
}

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum RoleArg {
    /// Votes and manages nodes
    Voter,
    /// Manages nodes, without a vote
    Nonvoting,
    /// Votes, but never manages a node
    Witness,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Voter => Self::Voter,
            RoleArg::Nonvoting => Self::Nonvoting,
            RoleArg::Witness => Self::Witness,
        }
    }
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct AttribArgs {
    #[command(subcommand)]
    pub(super) action: Option<AttribAction>,
    /// The group, instead of a noderange
    #[arg(long, value_name = "GROUP")]
    pub(super) group: Option<String>,
    /// Noderange, then attributes to read, or `name=value`, `name,=item`, `name^=item` to set
    #[arg(value_name = "NODERANGE|ATTR[=VALUE]", required_unless_present = "group")]
    pub(super) words: Vec<String>,
    /// Clear the attributes named
    #[arg(short, long, conflicts_with_all = ["blame", "prompt", "environment", "set"])]
    pub(super) clear: bool,
    /// Say where each value comes from, who wrote it and when
    #[arg(short, long)]
    pub(super) blame: bool,
    /// Ask for the values of the attributes named, unseen
    #[arg(short, long, conflicts_with = "environment")]
    pub(super) prompt: bool,
    /// Take the values from variables: CUSTOM_OWNER for custom.owner
    #[arg(short, long)]
    pub(super) environment: bool,
    /// Set what a file says, one `name=value` a line; - is stdin
    #[arg(long, value_name = "FILE")]
    pub(super) set: Option<PathBuf>,
    /// Without quorum, answer from this member's own copy
    #[arg(long)]
    pub(super) stale: bool,
    /// How many copies make the answer "ok"
    #[arg(long, default_value = "majority", value_name = "COPIES")]
    pub(super) wait: WaitArg,
    /// Only say what would change
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Touch more than 500 nodes without asking
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum AttribAction {
    /// Show the values that concurrent writers left
    Conflicts {
        /// Only on these nodes
        noderange: Option<String>,
    },
}

/// How many copies of a write make the answer "ok".
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WaitArg {
    /// Durable on this member
    Local,
    /// Durable on a majority of the voters
    Majority,
    /// Durable on every live member
    All,
}

impl From<WaitArg> for Wait {
    fn from(wait: WaitArg) -> Self {
        match wait {
            WaitArg::Local => Self::Local,
            WaitArg::Majority => Self::Majority,
            WaitArg::All => Self::All,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeAction {
    /// Name nodes
    List {
        /// Which; all when left out
        noderange: Option<String>,
        /// Without quorum, answer from this member's own copy
        #[arg(long)]
        stale: bool,
    },
    /// Make nodes
    Define {
        /// Names, with brackets
        nodes: String,
        /// Attributes, `name=value`
        #[arg(value_name = "ATTR=VALUE")]
        assignments: Vec<String>,
    },
    /// Remove nodes
    Remove {
        /// Which
        noderange: String,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
        /// Remove more than 500 nodes without asking
        #[arg(short, long)]
        yes: bool,
    },
    /// Take in an inventory
    Import {
        /// The file; - is stdin
        file: PathBuf,
        /// What the file is: what `ansible-inventory --list` prints, or CSV; by its first character when left out
        #[arg(long)]
        format: Option<ImportArg>,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
}

/// Formats of an inventory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ImportArg {
    /// The JSON that `ansible-inventory --list` prints
    Ansible,
    /// A header line `node,groups,ATTRIBUTE...` and a line a node
    Csv,
}

impl From<ImportArg> for ImportFormat {
    fn from(format: ImportArg) -> Self {
        match format {
            ImportArg::Ansible => Self::Ansible,
            ImportArg::Csv => Self::Csv,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum GroupAction {
    /// Name groups
    List {
        /// Without quorum, answer from this member's own copy
        #[arg(long)]
        stale: bool,
    },
    /// Make groups
    Define {
        /// Names, with brackets
        groups: String,
        /// Attributes, `name=value`
        #[arg(value_name = "ATTR=VALUE")]
        assignments: Vec<String>,
    },
    /// Remove groups
    Remove {
        /// Names, with brackets
        groups: String,
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum RangeAction {
    /// Print the nodes, one a line
    Expand(RangeArgs),
    /// Print the nodes as one short noderange
    Fold(RangeArgs),
    /// Print how many nodes there are
    Count(RangeArgs),
}

#[derive(Debug, Args)]
pub(super) struct RangeArgs {
    /// Noderanges, taken together
    #[arg(required = true, value_name = "NODERANGE")]
    pub(super) expressions: Vec<String>,
    /// Without quorum, answer from this member's own copy
    #[arg(long)]
    pub(super) stale: bool,
}

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Only events since then: a time such as 2026-11-21T09:15:00Z, or an age such as 10m
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Only events after this number
    #[arg(long, value_name = "SEQ")]
    pub(super) after: Option<u64>,
    /// Only events of these kinds
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub(super) kind: Vec<String>,
    /// At most so many, the newest
    #[arg(short = 'n', long, value_name = "N")]
    pub(super) limit: Option<usize>,
    /// Go on with what happens next
    #[arg(short, long)]
    pub(super) follow: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum HooksAction {
    /// List the hooks, and what keeps one from running
    List {
        /// Read this configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigAction {
    /// Check the configuration; exit code 78 when it has a mistake
    Check {
        /// The file; conf.d beside it is read too
        file: Option<PathBuf>,
    },
    /// Show the configuration in force
    Show {
        /// The file; conf.d beside it is read too
        file: Option<PathBuf>,
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum GenAction {
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the man page, or write all pages into a directory
    Man {
        /// The directory
        dir: Option<PathBuf>,
    },
    /// Make links with Confluent's command names to this program
    Links {
        /// The directory
        dir: PathBuf,
    },
}
