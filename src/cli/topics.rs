//! `collective help`: of a command, or of what no single command explains.

use clap::CommandFactory;

use super::args::Cli;
use super::context::{Context, Failure, refuse};
use crate::proto::request::ErrorCode;

/// Prints help.
pub(super) fn help(cx: &mut Context<'_, '_>, words: &[String]) -> Result<u8, Failure> {
    let topic = match words {
        [topic] => topic.as_str(),
        _ => "",
    };
    let text = match topic {
        "exit-codes" => EXIT_CODES.to_owned(),
        "noderange" => NODERANGE.to_owned(),
        "environment" => ENVIRONMENT.to_owned(),
        "files" => FILES.to_owned(),
        _ => command_help(words)?,
    };
    cx.print_text(&text)?;
    Ok(0)
}

/// Returns the long help of a command.
fn command_help(words: &[String]) -> Result<String, Failure> {
    let mut command = Cli::command();
    command.build();
    let mut found = &mut command;
    for word in words {
        found = found.find_subcommand_mut(word).ok_or_else(|| {
            let hint = "collective --help; topics: exit-codes, noderange, environment, files";
            refuse(ErrorCode::Usage, format!("there is no command or topic {word:?}"), hint)
        })?;
    }
    Ok(found.render_long_help().to_string())
}

const EXIT_CODES: &str = "\
  0  ok, or yes
  1  failure, or no
 64  usage: the command line is wrong
 65  bad data: a noderange, attribute or token cannot be read
 69  the daemon does not answer
 70  internal error: a bug, please report it
 75  try again: the member is joining or resyncing
 76  the versions do not fit
 77  permission: the socket or file may not be used by this user
 78  the configuration is wrong
104  a proof failed: the token or key is not the right one
105  no such member, node, group or attribute
106  no quorum
107  refused as it would do harm; the hint names the flag that insists
108  it is there already
109  stored here, but not confirmed by a majority
110  the invitation has expired or was used
124  it took too long

`collective check` alone answers as Nagios plugins do: 0 ok, 1 warning, 2 critical, 3 unknown.
";

const NODERANGE: &str = "\
A noderange names nodes. It is read strictly from left to right:

  n1                 a node, or the nodes of a group
  n1,n2              these too
  rack1,-n2          without these
  n[1-40]  n[1,3-5]  brackets count; n[01-10] keeps its zeros

collective range expand EXPR shows what an expression means, collective range count EXPR how much.
";

const ENVIRONMENT: &str = "\
A flag beats its variable, a variable beats the configuration files, those beat the default.

  COLLECTIVE_SOCKET    the daemon's socket, as --socket
  COLLECTIVE_OUTPUT    table, wide, json, jsonl, names or fold, as --output
  COLLECTIVE_COLOR     auto, always or never, as --color
  NO_COLOR             when not empty, no colour unless a flag or COLLECTIVE_COLOR says otherwise
  COLLECTIVE_TIMEOUT   such as 5s, as --timeout
  COLLECTIVE_TOKEN     the token for join, as -i
  COLLECTIVE_CONFIG    the configuration file

The keys of the configuration, for the daemon: COLLECTIVE_NAME, _LISTEN, _ADVERTISE, _SEEDS, _STATE_DIR,
_RUNTIME_DIR, _HTTP, _PROFILE, _TOKEN_FILE, _HOOKS_DIR, _ACTIONS_DIR, _LOG, _IDEAL_VOTERS, _VOLUNTEER.
";

const FILES: &str = "\
  /etc/collective/collective.toml  the configuration; need not exist
  /etc/collective/conf.d/*.toml    more of it, by name; later files win
  /etc/collective/hooks.d          hooks: programs that are told of events
  /etc/collective/actions.d        actions: commands that are run on nodes
  /var/lib/collective              what must survive: key, roster, log, documents; mode 0700
  /run/collective/admin.sock       the local API, everything; root and the group `collective`
  /run/collective/status.sock      the local API, reading only; everybody
";
