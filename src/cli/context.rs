//! What every command has at hand: the daemon, the streams, and how answers shall look.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::args::{Color, Format, Global, duration};
use super::render::{self, Form, Style};
use super::words::{fold, paint};
use super::{Io, Offline};
use crate::admin::{ADMIN_SOCKET, Client, ClientError};
use crate::config::{Environment, RUNTIME_DIR};
use crate::proto::name::MemberName;
use crate::proto::request::{Done, ErrorCode, Refusal, Refused, Request, Response};

/// How long to wait for an answer that needs no work.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a command ended early.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was refused, by the daemon or here.
    Refused(Refusal),
    /// The output could not be written.
    Output(io::Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Refused(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

/// Makes a failure of this side.
pub(super) fn refuse(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Failure {
    Failure::Refused(Refusal::new(code, message, hint))
}

/// Reads a member's name as typed.
pub(super) fn member(text: &str) -> Result<MemberName, Failure> {
    MemberName::new(text).map_err(|error| refuse(ErrorCode::BadData, error.to_string(), "collective members"))
}

/// A connection, made at the first request.
struct Session {
    runtime: Runtime,
    client: Client,
}

/// What every command has at hand.
pub(super) struct Context<'a, 'io> {
    pub(super) io: &'a mut Io<'io>,
    pub(super) environment: &'a Environment,
    pub(super) offline: &'a Offline,
    pub(super) format: Format,
    pub(super) quiet: bool,
    pub(super) verbose: bool,
    pub(super) timeout: Option<Duration>,
    header: bool,
    colored: bool,
    socket: PathBuf,
    session: Option<Session>,
}

impl<'a, 'io> Context<'a, 'io> {
    /// Settles the global flags: a flag beats its variable, that beats the default.
    pub(super) fn new(
        global: Global,
        environment: &'a Environment,
        io: &'a mut Io<'io>,
        offline: &'a Offline,
    ) -> Result<Self, Failure> {
        let format = global.output.map_or_else(|| choice(environment, "COLLECTIVE_OUTPUT"), Ok)?;
        let timeout = match (global.timeout, environment.get("COLLECTIVE_TIMEOUT")) {
            (None, Some(text)) => {
                let wrong = |error| refuse(ErrorCode::Usage, format!("COLLECTIVE_TIMEOUT is {text:?}: {error}"), "");
                Some(duration(text).map_err(wrong)?)
            }
            (flag, _) => flag,
        };
        let no_color = environment.get("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = match global.color {
            Some(color) => color,
            None if environment.contains_key("COLLECTIVE_COLOR") => choice(environment, "COLLECTIVE_COLOR")?,
            None if no_color => Color::Never,
            None => Color::Auto,
        };
        let socket = global.socket.or_else(|| environment.get("COLLECTIVE_SOCKET").map(PathBuf::from));
        Ok(Self {
            format,
            quiet: global.quiet,
            verbose: global.verbose,
            timeout,
            header: !global.no_header,
            colored: match color {
                Color::Always => true,
                Color::Never => false,
                Color::Auto => io.stdout_is_terminal,
            },
            socket: socket.unwrap_or_else(|| Path::new(RUNTIME_DIR).join(ADMIN_SOCKET)),
            session: None,
            io,
            environment,
            offline,
        })
    }

    /// Asks the daemon; a refusal is an error here. `usual` is how long such a request may take, unless `--timeout`
    /// says otherwise.
    pub(super) fn ask(&mut self, request: &Request, usual: Duration) -> Result<Response, Failure> {
        let limit = self.timeout.unwrap_or(usual);
        if self.session.is_none() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| refuse(ErrorCode::Internal, error.to_string(), ""))?;
            let client = runtime.block_on(Client::connect(&self.socket))?;
            self.session = Some(Session { runtime, client });
        }
        let Some(Session { runtime, client }) = &mut self.session else {
            return Err(refuse(ErrorCode::Internal, "no connection after connecting", ""));
        };
        match runtime.block_on(client.request(request, limit)) {
            Ok(Response::Error(Refused { error })) => Err(Failure::Refused(error)),
            Ok(response) => Ok(response),
            Err(error) => {
                // The connection is in an unknown state; the next request takes a new one.
                self.session = None;
                Err(error.into())
            }
        }
    }

    /// Asks and prints, the road of most commands that read.
    pub(super) fn ask_and_print(&mut self, request: &Request, form: Form) -> Result<u8, Failure> {
        let response = self.ask(request, ANSWER_TIMEOUT)?;
        self.print(&response, form)?;
        Ok(0)
    }

    /// Prints data in the format that was asked for.
    pub(super) fn print(&mut self, response: &Response, form: Form) -> Result<(), Failure> {
        let text = match self.format {
            Format::Table | Format::Wide => {
                let style = Style { wide: self.format == Format::Wide, header: self.header, form };
                return self.print_text(&render::text(response, style));
            }
            Format::Json => document(response)?,
            Format::Jsonl => json_lines(response)?,
            Format::Names => render::names(response).iter().map(|name| format!("{name}\n")).collect(),
            Format::Fold => match response {
                Response::Nodes(nodes) => format!("{}\n", nodes.folded),
                _ => format!("{}\n", fold(render::names(response).iter().map(String::as_str))),
            },
        };
        self.io.stdout.write_all(text.as_bytes())?;
        Ok(())
    }

    /// Prints text for people.
    pub(super) fn print_text(&mut self, text: &str) -> Result<(), Failure> {
        let painted = if self.colored { paint(text) } else { text.to_owned() };
        self.io.stdout.write_all(painted.as_bytes())?;
        self.io.stdout.flush()?;
        Ok(())
    }

    /// Prints a document of our own in JSON, or its text.
    pub(super) fn print_document(&mut self, document: &impl Serialize, text: &str) -> Result<(), Failure> {
        if matches!(self.format, Format::Json | Format::Jsonl) {
            let json = serde_json::to_string(document).map_err(unprintable)?;
            writeln!(self.io.stdout, "{json}")?;
            return Ok(());
        }
        self.print_text(text)
    }

    /// Asks for a change and says what was done. A change of many things is data: its lines go to stdout, and the
    /// sentence about them to stderr.
    pub(super) fn change(&mut self, request: &Request, usual: Duration) -> Result<u8, Failure> {
        let response = self.ask(request, usual)?;
        self.print_change(&response)
    }

    /// Prints what was done.
    pub(super) fn print_change(&mut self, response: &Response) -> Result<u8, Failure> {
        let Response::Done(done) = response else { return Err(unexpected()) };
        for note in &done.notes {
            self.note(note)?;
        }
        if self.format != Format::Table && self.format != Format::Wide {
            self.print(response, Form::Plain)?;
        } else if !self.quiet {
            self.print_done(done)?;
        }
        Ok(0)
    }

    fn print_done(&mut self, done: &Done) -> Result<(), Failure> {
        for change in &done.changes {
            writeln!(self.io.stdout, "{change}")?;
        }
        if !done.message.is_empty() {
            writeln!(self.io.stdout, "{}", done.message)?;
        }
        Ok(())
    }

    /// Prints a line for the person, unless `--quiet`.
    pub(super) fn note(&mut self, line: &str) -> Result<(), Failure> {
        if !self.quiet {
            writeln!(self.io.stderr, "{line}")?;
        }
        Ok(())
    }

    /// Asks the person a yes-or-no question; no when there is nobody to ask.
    pub(super) fn confirm(&mut self, question: &str) -> Result<bool, Failure> {
        if !self.io.stdin_is_terminal {
            return Ok(false);
        }
        write!(self.io.stderr, "{question} [y/N] ")?;
        self.io.stderr.flush()?;
        Ok(matches!(self.read_line()?.trim(), "y" | "Y" | "yes"))
    }

    /// Reads a line from stdin, of at most 64 KiB.
    pub(super) fn read_line(&mut self) -> Result<String, Failure> {
        let failed = |error| refuse(ErrorCode::Failure, format!("cannot read stdin: {error}"), "");
        let mut line = Vec::new();
        let mut byte = [0];
        // Byte by byte: what follows the line is not ours.
        while line.len() < 64 << 10 && self.io.stdin.read(&mut byte).map_err(failed)? == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).map_err(|_| refuse(ErrorCode::BadData, "what came on stdin is no text", ""))
    }

    /// Reads a whole file of at most `limit` bytes; `-` is stdin.
    pub(super) fn read_file(&mut self, path: &Path, limit: u64) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        let result = if path == Path::new("-") {
            self.io.stdin.take(limit + 1).read_to_end(&mut bytes)
        } else {
            std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        };
        let shown = path.display();
        result.map_err(|error| refuse(ErrorCode::BadData, format!("cannot read {shown}: {error}"), ""))?;
        if bytes.len() as u64 > limit {
            let message = format!("{shown} is larger than {} MiB", limit >> 20);
            return Err(refuse(ErrorCode::BadData, message, "split it and take it in part by part"));
        }
        String::from_utf8(bytes).map_err(|_| refuse(ErrorCode::BadData, format!("{shown} is no text"), ""))
    }
}

/// Reads a choice from a variable.
fn choice<T: ValueEnum + Default>(environment: &Environment, variable: &str) -> Result<T, Failure> {
    let Some(text) = environment.get(variable) else { return Ok(T::default()) };
    T::from_str(text, false).map_err(|_| {
        let values =
            T::value_variants().iter().filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()));
        let hint = format!("it may be {}", values.collect::<Vec<_>>().join(", "));
        refuse(ErrorCode::Usage, format!("{variable} is {text:?}"), hint)
    })
}

/// Makes the failure for an answer of the wrong kind.
pub(super) fn unexpected() -> Failure {
    refuse(ErrorCode::Internal, "the daemon gave an answer of another kind", "this is a bug: please report it")
}

fn unprintable(error: serde_json::Error) -> Failure {
    refuse(ErrorCode::Internal, error.to_string(), "this is a bug: please report it")
}

/// Writes one JSON document.
fn document(response: &Response) -> Result<String, Failure> {
    serde_json::to_string_pretty(response).map(|text| text + "\n").map_err(unprintable)
}

/// Writes what a response lists as one JSON document a line; a response that lists nothing is one line.
fn json_lines(response: &Response) -> Result<String, Failure> {
    fn lines(items: &[impl Serialize]) -> Result<String, Failure> {
        items.iter().map(|item| serde_json::to_string(item).map(|text| text + "\n").map_err(unprintable)).collect()
    }
    match response {
        Response::Members(found) => lines(&found.members),
        Response::View(found) => lines(&found.rows),
        Response::Invites(found) => lines(&found.invites),
        Response::Attributes(found) => lines(&found.nodes),
        Response::Conflicts(found) => lines(&found.conflicts),
        Response::Nodes(found) => lines(&found.nodes),
        Response::Groups(found) => lines(&found.groups),
        Response::Managers(found) => lines(&found.nodes),
        Response::Events(found) => lines(&found.events),
        Response::Ran(found) => lines(&found.results),
        _ => lines(std::slice::from_ref(response)),
    }
}
