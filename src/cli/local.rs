//! Commands that need no daemon: configuration, hooks, completions, man pages, links.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory};
use serde::Serialize;
use serde_json::Value;

use super::args::{Cli, ConfigAction, GenAction, HooksAction};
use super::context::{Context, Failure, refuse};
use super::personality;
use super::words::table;
use crate::config::{Config, ConfigError, DaemonArgs, KEYS, Origins, Overrides};
use crate::proto::request::ErrorCode;

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        refuse(ErrorCode::Configuration, error.to_string(), "correct it, then: collective config check")
    }
}

/// Loads the configuration: the file named, or that of `COLLECTIVE_CONFIG`, or the default one.
fn load(cx: &Context<'_, '_>, file: Option<PathBuf>) -> Result<(Config, Origins), Failure> {
    let file = file.or_else(|| cx.environment.get("COLLECTIVE_CONFIG").map(PathBuf::from));
    let overrides = Overrides { environment: cx.environment.clone(), ..Overrides::default() };
    Ok(Config::load(file.as_deref(), overrides)?)
}

/// Checks or shows the configuration.
pub(super) fn config(cx: &mut Context<'_, '_>, action: ConfigAction) -> Result<u8, Failure> {
    match action {
        ConfigAction::Check { file } => {
            let (config, _) = load(cx, file)?;
            config.member_name()?;
            let document = BTreeMap::from([("schema", "collective.config-check/1"), ("state", "ok")]);
            cx.print_document(&document, "the configuration is valid\n")?;
        }
        ConfigAction::Show { file, origin } => {
            let (config, origins) = load(cx, file)?;
            show_config(cx, &config, &origins, origin)?;
        }
    }
    Ok(0)
}

#[derive(Serialize)]
struct ShownConfig {
    schema: &'static str,
    values: BTreeMap<&'static str, ShownValue>,
}

#[derive(Serialize)]
struct ShownValue {
    value: Value,
    origin: String,
}

/// Shows the keys in the form of a configuration file.
fn show_config(cx: &mut Context<'_, '_>, config: &Config, origins: &Origins, origin: bool) -> Result<(), Failure> {
    let failed = |error: serde_json::Error| refuse(ErrorCode::Internal, error.to_string(), "");
    let all = serde_json::to_value(config).map_err(failed)?;
    let mut values = BTreeMap::new();
    let mut rows = Vec::new();
    for key in KEYS {
        let value = all.get(key).cloned().unwrap_or_default();
        let from = origins.get(key).cloned().unwrap_or_default().to_string();
        // JSON's strings, numbers, booleans and arrays are TOML's; what has no value is a comment.
        let line = if value.is_null() { format!("# {key} =") } else { format!("{key} = {value}") };
        rows.push(if origin { vec![line, format!("# {from}")] } else { vec![line] });
        values.insert(*key, ShownValue { value, origin: from });
    }
    cx.print_document(&ShownConfig { schema: "collective.config/1", values }, &table(None, rows))
}

#[derive(Serialize)]
struct Hooks {
    schema: &'static str,
    directory: PathBuf,
    hooks: Vec<Hook>,
}

#[derive(Serialize)]
struct Hook {
    hook: String,
    /// What keeps it from running.
    problem: Option<&'static str>,
}

/// Lists the hooks.
pub(super) fn hooks(cx: &mut Context<'_, '_>, action: HooksAction) -> Result<u8, Failure> {
    let HooksAction::List { config } = action;
    let (config, _) = load(cx, config)?;
    let directory = config.hooks_dir;
    let hooks = match list_hooks(&directory) {
        Ok(hooks) => hooks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            cx.note(&format!("there is no {}: no hooks", directory.display()))?;
            Vec::new()
        }
        Err(error) => {
            let message = format!("cannot read {}: {error}", directory.display());
            return Err(refuse(ErrorCode::Permission, message, "use sudo"));
        }
    };
    let rows = hooks.iter().map(|hook| vec![hook.hook.clone(), hook.problem.unwrap_or("ok").to_owned()]);
    let text = table(Some(&["HOOK", "STATE"]), rows.collect());
    cx.print_document(&Hooks { schema: "collective.hooks/1", directory, hooks }, &text)?;
    Ok(0)
}

fn list_hooks(directory: &Path) -> io::Result<Vec<Hook>> {
    let mut hooks = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let found = std::fs::metadata(entry.path());
        let problem = match found {
            Err(_) => Some("cannot be read"),
            Ok(found) if !found.is_file() => Some("not a file"),
            Ok(found) if found.mode() & 0o111 == 0 => Some("not executable"),
            Ok(found) if found.mode() & 0o022 != 0 => Some("others may write it: chmod go-w"),
            Ok(found) if found.uid() != 0 => Some("not owned by root"),
            Ok(_) => None,
        };
        hooks.push(Hook { hook: entry.file_name().to_string_lossy().into_owned(), problem });
    }
    hooks.sort_by(|left, right| left.hook.cmp(&right.hook));
    Ok(hooks)
}

/// Generates what packages ship.
pub(super) fn generate(cx: &mut Context<'_, '_>, action: GenAction) -> Result<u8, Failure> {
    match action {
        GenAction::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "collective", &mut text);
            cx.io.stdout.write_all(&text)?;
        }
        GenAction::Man { dir: None } => clap_mangen::Man::new(Cli::command()).render(&mut cx.io.stdout)?,
        GenAction::Man { dir: Some(dir) } => {
            let failed = |error| cannot_write(&dir, &error);
            std::fs::create_dir_all(&dir).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), &dir).map_err(failed)?;
            let daemon = clap_mangen::Man::new(daemon_command()).section("8");
            let mut page = Vec::new();
            daemon.render(&mut page).and_then(|()| std::fs::write(dir.join("collectived.8"), page)).map_err(failed)?;
        }
        GenAction::Links { dir } => {
            let program = std::env::current_exe().map_err(|error| cannot_write(&dir, &error))?;
            for name in personality::NAMES {
                let link = dir.join(name);
                if std::fs::read_link(&link).is_ok_and(|target| target == program) {
                    continue;
                }
                std::os::unix::fs::symlink(&program, &link).map_err(|error| cannot_write(&link, &error))?;
            }
        }
    }
    Ok(0)
}

/// The daemon's command line, for its man page.
fn daemon_command() -> clap::Command {
    let command = clap::Command::new("collectived")
        .version(env!("CARGO_PKG_VERSION"))
        .about("The daemon of one member of a collective");
    DaemonArgs::augment_args(command)
}

fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    refuse(ErrorCode::Failure, format!("cannot write {}: {error}", path.display()), "")
}
