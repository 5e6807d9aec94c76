//! The command line of a collective.

use std::io::IsTerminal;
use std::process::ExitCode;

use collective::cli::{DemoArgs, InitArgs, Io, Offline, run};
use collective::config::Environment;
use collective::proto::request::{ErrorCode, Refusal, Response};

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
    let offline = Offline { demo, init };
    ExitCode::from(run(std::env::args_os(), &environment, &mut io, &offline))
}

/// Runs the demo.
fn demo(_: DemoArgs) -> u8 {
    eprintln!("collective: this program was built without the demo");
    ErrorCode::Failure.exit()
}

/// Makes an identity on disk.
fn init(_: InitArgs, _: &Environment) -> Response {
    let hint = "systemctl start collectived; it makes an identity by itself";
    Refusal::new(ErrorCode::Unreachable, "the daemon is not running", hint).into()
}
