//! Configuration: what each key is, from which of the layers it came, and what is wrong with a file.
//!
//! A flag beats its `COLLECTIVE_*` variable, that beats `conf.d/*.toml` (the last file by name first), that beats
//! `collective.toml`, that beats the default.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::proto::name::MemberName;
use crate::proto::roster::Timing;

/// The configuration file that is read when none is named; it need not exist.
pub const CONFIG_FILE: &str = "/etc/collective/collective.toml";
/// The directory of the sockets, unless another is configured.
pub const RUNTIME_DIR: &str = "/run/collective";
/// The UDP port of QUIC.
pub const QUIC_PORT: u16 = 7461;

/// The environment as a map, so that tests have one of their own.
pub type Environment = BTreeMap<String, String>;

/// The durations that suit a kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// Several members on one machine.
    Local,
    /// Sites on one campus.
    Lan,
    /// Sites far apart.
    Wan,
}

impl Profile {
    /// Returns the durations.
    pub const fn timing(self) -> Timing {
        match self {
            Self::Local => Timing::LOCAL,
            Self::Lan => Timing::LAN,
            Self::Wan => Timing::WAN,
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Lan => "lan",
            Self::Wan => "wan",
        })
    }
}

/// What is wrong with the configuration; exit code 78.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {reason}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A file has a mistake.
    #[error("{path}:{line}:{column}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// A flag or variable has a mistake.
    #[error("{origin} is {value:?}: {message}")]
    Value {
        /// Where it was given.
        origin: String,
        /// What was given.
        value: String,
        /// What is wrong.
        message: String,
    },
    /// This machine has no name that a member could have.
    #[error("the host name {0:?} cannot be a member's name; give one with --name or `name = ...`")]
    HostName(String),
}

/// Where a value came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    #[default]
    Default,
    /// A configuration file.
    File(PathBuf),
    /// An environment variable.
    Variable(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Where each key's value came from.
pub type Origins = BTreeMap<&'static str, Origin>;

/// A value that can be given as text in a variable.
trait FromText: Sized {
    fn from_text(text: &str) -> Result<Self, String>;
}

macro_rules! from_text {
    ($($type:ty),*) => {$(
        impl FromText for $type {
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|error| format!("{error}"))
            }
        }
    )*};
}

from_text!(String, PathBuf, MemberName, SocketAddr, usize, bool);

impl FromText for Vec<String> {
    fn from_text(text: &str) -> Result<Self, String> {
        Ok(text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect())
    }
}

impl FromText for Profile {
    fn from_text(text: &str) -> Result<Self, String> {
        Self::from_str(text, false).map_err(|_| "it must be local, lan or wan".to_owned())
    }
}

/// Defines the keys once: a layer, in which any may be missing, and how layers are laid over each other.
macro_rules! keys {
    ($($(#[$doc:meta])* $key:ident: $type:ty, $variable:literal;)*) => {
        /// One layer of configuration: the keys it gives a value.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Layer {
            $($(#[$doc])* pub $key: Option<$type>,)*
        }

        impl Layer {
            /// Reads the variables.
            fn from_environment(environment: &Environment) -> Result<Self, ConfigError> {
                let mut layer = Self::default();
                $(if let Some(value) = environment.get($variable) {
                    let error = |message| ConfigError::Value {
                        origin: $variable.to_owned(), value: value.clone(), message,
                    };
                    layer.$key = Some(FromText::from_text(value).map_err(error)?);
                })*
                Ok(layer)
            }

            /// Lays `self` over `below`, and notes what came from it.
            fn over(self, below: &mut Self, origins: &mut Origins, origin: impl Fn(&str, &str) -> Origin) {
                $(if self.$key.is_some() {
                    below.$key = self.$key;
                    origins.insert(stringify!($key), origin(stringify!($key), $variable));
                })*
            }
        }

        /// The keys in the order in which they are shown.
        pub const KEYS: &[&str] = &[$(stringify!($key)),*];
    };
}

keys! {
    /// This member's name.
    name: MemberName, "COLLECTIVE_NAME";
    /// The UDP address of QUIC.
    listen: SocketAddr, "COLLECTIVE_LISTEN";
    /// The address that others reach this member at.
    advertise: String, "COLLECTIVE_ADVERTISE";
    /// Members to join at the first start.
    seeds: Vec<String>, "COLLECTIVE_SEEDS";
    /// The directory of what must survive.
    state_dir: PathBuf, "COLLECTIVE_STATE_DIR";
    /// The directory of the sockets.
    runtime_dir: PathBuf, "COLLECTIVE_RUNTIME_DIR";
    /// The TCP address of metrics, health and page.
    http: SocketAddr, "COLLECTIVE_HTTP";
    /// The kind of network.
    profile: Profile, "COLLECTIVE_PROFILE";
    /// The file with the token to join by.
    token_file: PathBuf, "COLLECTIVE_TOKEN_FILE";
    /// The directory of hooks.
    hooks_dir: PathBuf, "COLLECTIVE_HOOKS_DIR";
    /// The directory of node actions.
    actions_dir: PathBuf, "COLLECTIVE_ACTIONS_DIR";
    /// What is logged.
    log: String, "COLLECTIVE_LOG";
    /// How many voters there shall be; 0 is everyone.
    ideal_voters: usize, "COLLECTIVE_IDEAL_VOTERS";
    /// Whether this member may be made a voter.
    volunteer: bool, "COLLECTIVE_VOLUNTEER";
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// This member's name; the host name when none, see [`Config::member_name`].
    pub name: Option<MemberName>,
    /// The UDP address of QUIC; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The address that others reach this member at, `host` or `host:port`; learnt when none.
    pub advertise: Option<String>,
    /// Members to join at the first start, `host` or `host:port`.
    pub seeds: Vec<String>,
    /// The directory of what must survive, mode 0700.
    pub state_dir: PathBuf,
    /// The directory of the sockets.
    pub runtime_dir: PathBuf,
    /// The TCP address of metrics, health and page; none without.
    pub http: Option<SocketAddr>,
    /// The kind of network; counts for a new collective only.
    pub profile: Profile,
    /// The file with the token to join by.
    pub token_file: Option<PathBuf>,
    /// The directory of hooks.
    pub hooks_dir: PathBuf,
    /// The directory of node actions.
    pub actions_dir: PathBuf,
    /// What is logged, as a filter such as `info` or `collective::net=debug`.
    pub log: String,
    /// How many voters there shall be, 0 for everyone; none leaves it as it is.
    pub ideal_voters: Option<usize>,
    /// Whether this member may be made a voter.
    pub volunteer: bool,
}

impl From<Layer> for Config {
    fn from(layer: Layer) -> Self {
        Self {
            name: layer.name,
            listen: layer.listen.unwrap_or(SocketAddr::from(([0u16; 8], QUIC_PORT))),
            advertise: layer.advertise,
            seeds: layer.seeds.unwrap_or_default(),
            state_dir: layer.state_dir.unwrap_or_else(|| "/var/lib/collective".into()),
            runtime_dir: layer.runtime_dir.unwrap_or_else(|| RUNTIME_DIR.into()),
            http: layer.http,
            profile: layer.profile.unwrap_or(Profile::Lan),
            token_file: layer.token_file,
            hooks_dir: layer.hooks_dir.unwrap_or_else(|| "/etc/collective/hooks.d".into()),
            actions_dir: layer.actions_dir.unwrap_or_else(|| "/etc/collective/actions.d".into()),
            log: layer.log.unwrap_or_else(|| "info".into()),
            ideal_voters: layer.ideal_voters,
            volunteer: layer.volunteer.unwrap_or(true),
        }
    }
}

/// What was said outside of the files.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The flags.
    pub flags: Layer,
    /// The variables.
    pub environment: Environment,
}

impl Config {
    /// Reads and layers the configuration. A named file must exist, the default one need not.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake, with file, line and column.
    pub fn load(path: Option<&Path>, overrides: Overrides) -> Result<(Self, Origins), ConfigError> {
        let mut merged = Layer::default();
        let mut origins: Origins = KEYS.iter().map(|key| (*key, Origin::Default)).collect();
        for file in files(path)? {
            let layer = read(&file)?;
            layer.over(&mut merged, &mut origins, |_, _| Origin::File(file.clone()));
        }
        let variables = Layer::from_environment(&overrides.environment)?;
        variables.over(&mut merged, &mut origins, |_, variable| Origin::Variable(variable.to_owned()));
        overrides.flags.over(&mut merged, &mut origins, |key, _| Origin::Flag(flag_of(key)));
        Ok((merged.into(), origins))
    }

    /// Returns the member's name: the configured one, or the host name up to its first dot.
    ///
    /// # Errors
    /// [`ConfigError::HostName`] when none is configured and the host name is no valid name.
    pub fn member_name(&self) -> Result<MemberName, ConfigError> {
        if let Some(name) = &self.name {
            return Ok(name.clone());
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let short = host.trim().split('.').next().unwrap_or_default();
        MemberName::new(short).map_err(|_| ConfigError::HostName(short.to_owned()))
    }
}

/// Returns the flag of a key.
fn flag_of(key: &str) -> String {
    match key {
        "volunteer" => "--no-volunteer".to_owned(),
        "token_file" => "--token".to_owned(),
        _ => format!("--{}", key.replace('_', "-")),
    }
}

/// Lists the files to read, the weakest first.
fn files(path: Option<&Path>) -> Result<Vec<PathBuf>, ConfigError> {
    let main = path.unwrap_or(Path::new(CONFIG_FILE));
    let mut files = Vec::new();
    if path.is_some() || main.exists() {
        files.push(main.to_owned());
    }
    let folder = main.parent().unwrap_or(Path::new("")).join("conf.d");
    let unreadable = |error: std::io::Error| ConfigError::Read { path: folder.clone(), reason: error.to_string() };
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let mut parts = Vec::new();
            for entry in entries {
                let part = entry.map_err(unreadable)?.path();
                if part.extension().is_some_and(|extension| extension == "toml") {
                    parts.push(part);
                }
            }
            parts.sort();
            files.extend(parts);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(unreadable(error)),
    }
    Ok(files)
}

/// Reads one file.
fn read(path: &Path) -> Result<Layer, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Read { path: path.to_owned(), reason: error.to_string() })?;
    toml::from_str(&text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        let message = error.message().replace('\n', ", ");
        ConfigError::Parse { path: path.to_owned(), line, column, message }
    })
}

/// The flags of `collectived`.
#[derive(Clone, Debug, Default, Args)]
pub struct DaemonArgs {
    /// Read this file instead of /etc/collective/collective.toml, and conf.d beside it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// This member's name; the host name when left out
    #[arg(long)]
    pub name: Option<MemberName>,
    /// UDP address of QUIC; port 0 lets the system choose
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address that others reach this member at
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Members to join at the first start; none: the first member
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub seeds: Option<Vec<String>>,
    /// File with the token to join by
    #[arg(long, value_name = "@FILE", value_parser = token_file)]
    pub token: Option<PathBuf>,
    /// Directory of what must survive
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of the sockets
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// TCP address of metrics, health and page
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// How many voters there shall be; 0 is everyone
    #[arg(long, value_name = "N")]
    pub ideal_voters: Option<usize>,
    /// Never become a voter
    #[arg(long)]
    pub no_volunteer: bool,
    /// The kind of network; counts for a new collective only
    #[arg(long)]
    pub profile: Option<Profile>,
    /// Directory of hooks
    #[arg(long, value_name = "DIR")]
    pub hooks_dir: Option<PathBuf>,
    /// Directory of node actions
    #[arg(long, value_name = "DIR")]
    pub actions_dir: Option<PathBuf>,
    /// What is logged, such as `info` or `collective::net=debug`
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl DaemonArgs {
    /// Loads the configuration with these flags over everything.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(self, environment: Environment) -> Result<(Config, Origins), ConfigError> {
        let file = self.config.or_else(|| environment.get("COLLECTIVE_CONFIG").map(PathBuf::from));
        let flags = Layer {
            name: self.name,
            listen: self.listen,
            advertise: self.advertise,
            seeds: self.seeds,
            state_dir: self.state_dir,
            runtime_dir: self.runtime_dir,
            http: self.http,
            profile: self.profile,
            token_file: self.token,
            hooks_dir: self.hooks_dir,
            actions_dir: self.actions_dir,
            log: self.log,
            ideal_voters: self.ideal_voters,
            volunteer: self.no_volunteer.then_some(false),
        };
        Config::load(file.as_deref(), Overrides { flags, environment })
    }
}

/// Takes `@FILE`; a token itself would show in the list of processes.
fn token_file(text: &str) -> Result<PathBuf, String> {
    match text.strip_prefix('@') {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err("give a file as @FILE: other users can read the arguments of a process".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("writable");
        std::fs::write(&path, text).expect("writable");
        path
    }

    fn load(path: &Path) -> Result<(Config, Origins), ConfigError> {
        Config::load(Some(path), Overrides::default())
    }

    #[test]
    fn each_layer_beats_the_one_below() {
        let dir = tempfile::tempdir().expect("writable");
        let text = "listen = '[::]:1'\nlog = 'a'\nname = 'file'\nprofile = 'wan'\nvolunteer = false\n";
        let file = write(dir.path(), "collective.toml", text);
        let late = write(dir.path(), "conf.d/20-b.toml", "log = 'c'\n");
        write(dir.path(), "conf.d/10-a.toml", "log = 'b'\nname = 'part'\n");
        write(dir.path(), "conf.d/90-no.txt", "not even toml");
        let environment =
            [("COLLECTIVE_NAME", "variable"), ("COLLECTIVE_LISTEN", "[::]:2"), ("COLLECTIVE_SEEDS", "a, b")];
        let args = DaemonArgs { config: Some(file.clone()), name: "flag".parse().ok(), ..DaemonArgs::default() };

        let environment = environment.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let (config, origins) = args.load(environment).expect("valid");

        assert_eq!(config.member_name().expect("given").as_str(), "flag");
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.seeds, ["a", "b"]);
        assert_eq!((config.log.as_str(), config.profile, config.volunteer), ("c", Profile::Wan, false));
        assert_eq!(origins["name"], Origin::Flag("--name".into()));
        assert_eq!(origins["listen"], Origin::Variable("COLLECTIVE_LISTEN".into()));
        assert_eq!(origins["log"], Origin::File(late));
        assert_eq!(origins["profile"], Origin::File(file));
        assert_eq!(origins["state_dir"], Origin::Default);
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let dir = tempfile::tempdir().expect("writable");
        for (text, place, word) in [
            ("log = 'x'\n  listne = 1\n", (2, 3), "unknown field `listne`"),
            ("listen = 'nowhere'\n", (1, 10), "socket address"),
            ("\n\nname = 'a b'\n", (3, 8), "not a valid member name"),
            ("log = \n", (1, 7), ""),
            ("profile = 'moon'\n", (1, 11), "local"),
        ] {
            let file = write(dir.path(), "collective.toml", text);
            let error = load(&file).expect_err("wrong");
            let ConfigError::Parse { line, column, message, .. } = &error else { panic!("{error:?}") };
            assert_eq!((*line, *column), place, "{error}");
            assert!(message.contains(word) && !message.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_named_file_must_exist_and_the_default_need_not() {
        let dir = tempfile::tempdir().expect("writable");
        assert!(matches!(load(&dir.path().join("none.toml")), Err(ConfigError::Read { .. })));
        assert!(matches!(load(dir.path()), Err(ConfigError::Read { .. })));
    }

    #[test]
    fn a_bad_variable_is_told_by_its_name() {
        let environment = [("COLLECTIVE_VOLUNTEER".to_owned(), "perhaps".to_owned())].into();
        let dir = tempfile::tempdir().expect("writable");
        let file = write(dir.path(), "collective.toml", "");
        let error = Config::load(Some(&file), Overrides { environment, ..Overrides::default() }).expect_err("wrong");
        assert!(error.to_string().starts_with("COLLECTIVE_VOLUNTEER is \"perhaps\""), "{error}");
    }

    #[test]
    fn a_token_is_never_an_argument() {
        assert_eq!(token_file("@/x"), Ok("/x".into()));
        assert!(token_file("secret").is_err());
        assert!(token_file("@").is_err());
    }
}
