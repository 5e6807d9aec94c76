//! Node actions: what an administrator lets the collective do to a node, one TOML file each.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use toml::Spanned;

use super::template::{Template, Values};
use super::{Authority, Job, OUTPUT_BYTES_MAX, TIMEOUT, environment, trust};
use crate::proto::name::{AttributeName, NodeName};

/// How long the longest action may run.
const TIMEOUT_MAX: Duration = Duration::from_secs(3_600);
/// Bytes of the longest definition.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Why an action cannot be run. Nothing was started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ActionError {
    /// There is no such action.
    #[error("there is no action {name:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are, separated by commas.
        known: String,
    },
    /// The command names an attribute that the node does not have.
    #[error("action {action:?} needs {attribute} of {node}: collective attrib {node} {attribute}=VALUE")]
    MissingAttribute {
        /// The action.
        action: String,
        /// The node.
        node: NodeName,
        /// The attribute.
        attribute: AttributeName,
    },
    /// Too few or too many arguments.
    #[error("action {action:?} takes {wanted} arguments, {given} given")]
    Arguments {
        /// The action.
        action: String,
        /// How many were given.
        given: usize,
        /// How many it takes.
        wanted: usize,
    },
    /// A value holds a NUL, which no argument of a program can.
    #[error("a value for action {action:?} has a NUL in it")]
    Nul {
        /// The action.
        action: String,
    },
    /// The program is not there, or others may change it.
    #[error("{program} of action {action:?} {reason}")]
    Program {
        /// The action.
        action: String,
        /// The program.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A definition that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {reason}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: Option<usize>,
    /// What is wrong with it.
    pub reason: String,
}

/// One action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its name, that of its file.
    pub name: String,
    /// What it does, for people.
    pub description: String,
    /// How long it may run.
    pub timeout: Duration,
    /// Whether only a member with quorum may run it; else any that holds the node's data.
    pub quorum: bool,
    /// How many arguments it takes.
    pub arguments: usize,
    program: String,
    command: Vec<Template>,
    env: BTreeMap<String, Template>,
}

/// What a definition may say.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    command: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    description: String,
    timeout: Option<Spanned<String>>,
    #[serde(default = "yes")]
    quorum: bool,
    #[serde(default)]
    env: BTreeMap<Spanned<String>, Spanned<String>>,
}

const fn yes() -> bool {
    true
}

/// The actions of one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actions {
    actions: BTreeMap<String, Action>,
    problems: Vec<Problem>,
}

impl Actions {
    /// Reads every `NAME.toml` in a directory. One that cannot be used is a problem and leaves the others alone; a
    /// directory that is not there has no actions in it.
    pub fn load(dir: &Path) -> Self {
        let mut loaded = Self::default();
        let Ok(entries) = std::fs::read_dir(dir) else { return loaded };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|end| end == "toml"));
        paths.sort();
        for path in paths {
            match load(&path) {
                Ok(action) => drop(loaded.actions.insert(action.name.clone(), action)),
                Err(problem) => loaded.problems.push(problem),
            }
        }
        loaded
    }

    /// Returns every action, in the order of their names.
    pub fn list(&self) -> impl Iterator<Item = &Action> {
        self.actions.values()
    }

    /// Returns the action of that name.
    pub fn get(&self, name: &str) -> Option<&Action> {
        self.actions.get(name)
    }

    /// Returns what is wrong with definitions that cannot be used.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Makes the job of an action on a node.
    ///
    /// `attributes` returns what an attribute of the node holds.
    ///
    /// # Errors
    /// [`ActionError`]; it names what is missing.
    pub fn prepare(
        &self,
        name: &str,
        node: &NodeName,
        arguments: &[String],
        authority: &Authority,
        attributes: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Job, ActionError> {
        let action = self.get(name).ok_or_else(|| ActionError::Unknown {
            name: name.chars().take(80).collect(),
            known: self.actions.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
        })?;
        action.prepare(node, arguments, authority, attributes)
    }
}

impl Action {
    fn prepare(
        &self,
        node: &NodeName,
        arguments: &[String],
        authority: &Authority,
        attributes: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Job, ActionError> {
        if arguments.len() != self.arguments {
            let (given, wanted) = (arguments.len(), self.arguments);
            return Err(ActionError::Arguments { action: self.name.clone(), given, wanted });
        }
        let values = Values { action: &self.name, node, arguments, attributes };
        let mut argv = vec![self.find_program()?];
        for template in &self.command {
            argv.push(template.fill(&values)?);
        }
        let mut env = environment(authority, Some(node));
        env.insert("COLLECTIVE_ACTION".to_owned(), self.name.clone());
        for (name, template) in &self.env {
            env.insert(name.clone(), template.fill(&values)?);
        }
        let stdin_json = json!({
            "schema": "collective.action/1",
            "action": self.name,
            "node": node,
            "arguments": arguments,
            "member": authority.member,
            "token": authority.token,
        });
        let (deadline, timeout) = (authority.deadline, self.timeout);
        Ok(Job {
            node: Some(node.clone()),
            argv,
            env,
            stdin_json,
            deadline,
            timeout,
            output_bytes_max: OUTPUT_BYTES_MAX,
        })
    }

    /// Finds the program, in the daemon's PATH when it has no directory, and checks who may change it.
    fn find_program(&self) -> Result<String, ActionError> {
        let fails =
            |reason: String| ActionError::Program { action: self.name.clone(), program: self.program.clone(), reason };
        let path = if self.program.contains('/') {
            PathBuf::from(&self.program)
        } else {
            let dirs = std::env::var_os("PATH").unwrap_or_default();
            let mut found =
                std::env::split_paths(&dirs).filter(|dir| dir.is_absolute()).map(|dir| dir.join(&self.program));
            found.find(|path| path.is_file()).ok_or_else(|| fails("is not in PATH: install it".to_owned()))?
        };
        trust::executable(&path).map_err(fails)?;
        // The path as it was found: a program may behave according to the name it is called by.
        path.into_os_string().into_string().map_err(|_| fails("has a path that is not text".to_owned()))
    }
}

fn load(path: &Path) -> Result<Action, Problem> {
    let problem = |line, reason| Problem { path: path.to_owned(), line, reason };
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    // The rule for names of nodes keeps names of actions fit for the command line as well.
    if NodeName::new(name).is_err() {
        return Err(problem(
            None,
            "its name is none for an action: letters, digits, dots, dashes, underscores".to_owned(),
        ));
    }
    let path = trust::file(&std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
        .map_err(|reason| problem(None, format!("it {reason}")))?;
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > FILE_BYTES_MAX) {
        return Err(problem(None, format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    let text = std::fs::read_to_string(&path).map_err(|error| problem(None, error.to_string()))?;
    let line_of = |start: usize| 1 + text.bytes().take(start).filter(|byte| *byte == b'\n').count();
    parse(name, &text).map_err(|(at, reason)| problem(at.map(line_of), reason))
}

/// Reads a definition; an error has the offset in the text where it is.
fn parse(name: &str, text: &str) -> Result<Action, (Option<usize>, String)> {
    let definition: Definition =
        toml::from_str(text).map_err(|error| (error.span().map(|span| span.start), error.message().to_owned()))?;
    let start = definition.command.span().start;
    let mut command = definition.command.into_inner().into_iter();
    let program = command.next().ok_or((Some(start), "the command is empty".to_owned()))?;
    let command: Vec<Template> = command.map(|argument| argument_template(&argument)).collect::<Result<_, _>>()?;
    let mut env = BTreeMap::new();
    for (name, value) in definition.env {
        let at = Some(name.span().start);
        check_variable(name.get_ref()).map_err(|reason| (at, reason))?;
        env.insert(name.into_inner(), template(&value)?);
    }
    let arguments = command.iter().chain(env.values()).map(Template::arguments).max().unwrap_or(0);
    Ok(Action {
        name: name.to_owned(),
        description: definition.description,
        timeout: definition.timeout.as_ref().map_or(Ok(TIMEOUT), timeout)?,
        quorum: definition.quorum,
        arguments,
        program: check_program(&program)?,
        command,
        env,
    })
}

fn template(text: &Spanned<String>) -> Result<Template, (Option<usize>, String)> {
    Template::parse(text.get_ref())
        .map_err(|reason| (Some(text.span().start), format!("{:?} {reason}", text.get_ref())))
}

/// Everybody on the machine can read the arguments of a process, so no secret may be among them.
fn argument_template(text: &Spanned<String>) -> Result<Template, (Option<usize>, String)> {
    let template = template(text)?;
    match template.secret() {
        Some(name) => Err((Some(text.span().start), format!("{name} is a secret: pass it in env, not in the command"))),
        None => Ok(template),
    }
}

/// What runs is decided by the file alone, never by an attribute.
fn check_program(program: &Spanned<String>) -> Result<String, (Option<usize>, String)> {
    let fails = |reason: &str| (Some(program.span().start), format!("{:?} {reason}", program.get_ref()));
    let text = template(program)?;
    let text = text.as_text().ok_or_else(|| fails("must not depend on anything: it names the program"))?;
    if text.is_empty() || text.contains('\0') || (text.contains('/') && !text.starts_with('/')) {
        return Err(fails("is neither the name of a program nor an absolute path"));
    }
    Ok(text.to_owned())
}

fn check_variable(name: &str) -> Result<(), String> {
    let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name {
        return Err(format!("{name:?} is no name for a variable"));
    }
    if name.starts_with("COLLECTIVE_") {
        return Err(format!("{name} is set by the collective"));
    }
    Ok(())
}

fn timeout(text: &Spanned<String>) -> Result<Duration, (Option<usize>, String)> {
    match humantime::parse_duration(text.get_ref()) {
        Ok(timeout) if !timeout.is_zero() && timeout <= TIMEOUT_MAX => Ok(timeout),
        _ => Err((Some(text.span().start), format!("{:?} is no time up to 1h, such as 30s or 5m", text.get_ref()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::name::MemberName;
    use crate::proto::time::Instant;

    fn power() -> Actions {
        let text = r#"
            description = "Switches a node on or off"
            command = ["/bin/echo", "-H", "{bmc}", "power", "{0}"]
            timeout = "5m"
            env = { IPMI_PASSWORD = "{secret.hardwaremanagementpassword}" }
        "#;
        let action = parse("power", text).expect("a definition");
        Actions { actions: BTreeMap::from([("power".to_owned(), action)]), problems: Vec::new() }
    }

    fn prepare(arguments: &[&str], attributes: &[(&str, &str)]) -> Result<Job, ActionError> {
        let arguments: Vec<_> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let authority = Authority {
            member: MemberName::new("mgt1").expect("a name"),
            token: "0.4.2".to_owned(),
            deadline: Instant::from_nanos(7_000_000),
        };
        let values: BTreeMap<_, _> = attributes.iter().copied().collect();
        let lookup = |name: &str| values.get(name).map(|&value| value.to_owned());
        power().prepare("power", &NodeName::new("n1").expect("a name"), &arguments, &authority, &lookup)
    }

    const SET: [(&str, &str); 2] = [("bmc", "10.0.0.1"), ("secret.hardwaremanagementpassword", "hush")];

    #[test]
    fn a_job_has_its_arguments_filled_in_and_its_right_to_act_in_the_environment() {
        let job = prepare(&["on"], &SET).expect("all there");
        assert_eq!(job.argv, ["/bin/echo", "-H", "10.0.0.1", "power", "on"]);
        for (name, value) in [
            ("COLLECTIVE_TOKEN", "0.4.2"),
            ("COLLECTIVE_NODE", "n1"),
            ("COLLECTIVE_MEMBER", "mgt1"),
            ("COLLECTIVE_ACTION", "power"),
            ("COLLECTIVE_DEADLINE_MS", "7"),
            ("IPMI_PASSWORD", "hush"),
        ] {
            assert_eq!(job.env[name], value, "{name}");
        }
        assert_eq!((job.timeout, job.deadline), (Duration::from_secs(300), Instant::from_nanos(7_000_000)));
        assert!(!job.stdin_json.to_string().contains("hush"));
    }

    #[test]
    fn what_is_missing_or_too_much_is_named() {
        let missing = prepare(&["on"], &SET[1..]).expect_err("no bmc").to_string();
        assert!(missing.contains("bmc of n1"), "{missing}");
        let wanted = |given| ActionError::Arguments { action: "power".into(), given, wanted: 1 };
        assert_eq!(prepare(&[], &SET), Err(wanted(0)));
        assert_eq!(prepare(&["on", "off"], &SET), Err(wanted(2)));
        let unknown = power().prepare("pwoer", &NodeName::new("n1").expect("a name"), &[], &authority(), &|_| None);
        assert_eq!(unknown.expect_err("a typing error").to_string(), "there is no action \"pwoer\"; there are: power");
    }

    fn authority() -> Authority {
        Authority { member: MemberName::new("m").expect("a name"), token: String::new(), deadline: Instant::ZERO }
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let bad = [
            ("command = [\"a\"]\n\nshell = true", 3, "unknown field `shell`"),
            ("\ncommand = \"a b\"", 2, "expected a sequence"),
            ("quorum = true", 1, "missing field `command`"),
            ("command = []", 1, "the command is empty"),
            ("command = [\n\"a\",\n\"{x\"]", 3, "{ without its }"),
            ("command = [\n\"{bmc}\"]", 2, "names the program"),
            ("command = [\"bin/tool\"]", 1, "absolute path"),
            ("command = [\"a\",\n\"{secret.x}\"]", 2, "is a secret"),
            ("command = [\"a\",\n\"{crypted.x}\"]", 2, "is a secret"),
            ("command = [\"a\"]\ntimeout = \"soon\"", 2, "such as 30s"),
            ("command = [\"a\"]\ntimeout = \"2h\"", 2, "up to 1h"),
            ("command = [\"a\"]\n[env]\nCOLLECTIVE_TOKEN = \"1\"", 3, "set by the collective"),
            ("command = [\"a\"]\n[env]\n\"A=B\" = \"1\"", 3, "no name for a variable"),
        ];
        for (text, line, words) in bad {
            let (at, reason) = parse("x", text).expect_err(text);
            let found = at.map(|at| 1 + text[..at].matches('\n').count());
            assert_eq!(found, Some(line), "{text}: {reason}");
            assert!(reason.contains(words), "{text}: {reason}");
        }
    }

    #[test]
    fn a_program_is_looked_up_in_path_and_must_be_there() {
        let action = parse("x", "command = [\"sh\"]").expect("a definition");
        assert!(action.find_program().expect("every system has it").ends_with("/sh"));
        let action = parse("x", "command = [\"no-such-program\"]").expect("a definition");
        assert!(action.find_program().expect_err("not there").to_string().contains("install it"));
    }
}
