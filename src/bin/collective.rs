//! The command line of a collective.

use std::io::IsTerminal;
use std::process::ExitCode;

use collective::cli::{InitArgs, Io, Offline, run};
use collective::config::Environment;
use collective::daemon;
use collective::proto::request::{Done, ErrorCode, Refusal, Response};

fn main() -> ExitCode {
    let environment: Environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let mut io = Io {
        stdin_is_terminal: stdin.is_terminal(),
        stdout_is_terminal: stdout.is_terminal(),
        stdin: &mut stdin.lock(),
        stdout: &mut stdout.lock(),
        stderr: &mut std::io::stderr(),
        read_secret: |prompt| rpassword::prompt_password(prompt),
    };
    let offline = Offline { demo: |arguments| daemon::demo(arguments.stay, arguments.http), init };
    ExitCode::from(run(std::env::args_os(), &environment, &mut io, &offline))
}

/// Makes an identity and a collective of one on disk, for a daemon that does not run yet.
fn init(arguments: InitArgs, environment: &Environment) -> Response {
    match arguments.config(environment) {
        Ok(config) => daemon::initialise(&config).map_or_else(
            |error| Refusal::new(ErrorCode::Failure, format!("{error:#}"), "collectived --help").into(),
            |(name, made)| {
                let message = if made {
                    format!("{name} is a collective of one now; start collectived")
                } else {
                    format!("{name} has an identity already; nothing was changed")
                };
                Response::Done(Done { message, ..Done::default() })
            },
        ),
        Err(error) => Refusal::new(ErrorCode::Configuration, error.to_string(), "collective config check").into(),
    }
}
