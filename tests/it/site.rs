//! One member under test: a daemon with directories of its own, and the command line that talks to it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// The client, as built for these tests.
pub(crate) const COLLECTIVE: &str = env!("CARGO_BIN_EXE_collective");
/// The daemon, as built for these tests.
pub(crate) const COLLECTIVED: &str = env!("CARGO_BIN_EXE_collectived");

/// How long something may take that has no bound of its own; generous, as the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// What a command left.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The exit code; -1 when a signal ended the command.
    pub(crate) code: i32,
}

impl Output {
    fn of(output: std::process::Output) -> Self {
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code().unwrap_or(-1),
        }
    }

    /// Asserts that this is a refusal as users are promised them: nothing on stdout, one line that says what happened,
    /// perhaps the place in what was typed, one line with the next step, and the right exit code. Returns the text.
    #[track_caller]
    pub(crate) fn refused(self, code: i32) -> String {
        assert_eq!(self.code, code, "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let lines: Vec<_> = self.stderr.lines().collect();
        let hints = lines.iter().filter(|line| line.starts_with("hint: ")).count();
        // A noderange is shown with a mark below the place that is wrong.
        let marked = lines.iter().filter(|line| line.starts_with("  ")).count();
        assert!(lines.first().is_some_and(|line| line.starts_with("collective: ")), "{self:?}");
        assert!(lines.len() == 1 + marked + hints && hints <= 1, "one line and one hint: {self:?}");
        self.stderr
    }

    /// Asserts success and returns what was printed.
    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    Output::of(output.unwrap_or_else(|error| panic!("{command:?}: {error}")))
}

/// Runs a daemon that is expected to refuse; returns what it said.
#[track_caller]
pub(crate) fn given_up(command: &mut Command) -> Output {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.as_mut().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let start = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if start.elapsed() > PATIENCE {
            let _ = child.kill().and_then(|()| child.wait());
            panic!("{command:?} did not give up");
        }
        sleep(POLL);
    }
    let mut output = Output { stdout: String::new(), stderr: String::new(), code: -1 };
    let _ = child.stdout.take().map(|mut stream| stream.read_to_string(&mut output.stdout));
    let _ = child.stderr.take().map(|mut stream| stream.read_to_string(&mut output.stderr));
    output.code = child.wait().ok().and_then(|status| status.code()).unwrap_or(-1);
    output
}

/// Runs the client with these words and no socket of its own.
pub(crate) fn collective(words: &[&str]) -> Output {
    run(clean(COLLECTIVE).args(words))
}

/// Makes a command that no variable of the surroundings changes.
pub(crate) fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("COLLECTIVE_")) {
        command.env_remove(name);
    }
    command
}

/// Looks again and again until `condition` gives a value; fails after `within`, saying what was waited for.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < within, "waited {within:?} in vain: {what}");
        sleep(POLL);
    }
}

/// As [`wait_for`], for a condition without a value; returns how long it took.
#[track_caller]
pub(crate) fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    wait_for(what, within, || condition().then_some(()));
    start.elapsed()
}

/// How a member is to be started.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    name: String,
    profile: &'static str,
    listen: String,
    namespace: Option<String>,
    /// Members to join by itself, and the file of the token.
    seeds: Option<(String, PathBuf)>,
}

impl Plan {
    /// Plans a member on loopback with the quick timing of the `local` profile.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), profile: "local", listen: "127.0.0.1:0".into(), namespace: None, seeds: None }
    }

    /// With the timing that members have unless told otherwise.
    pub(crate) fn lan(mut self) -> Self {
        self.profile = "lan";
        self
    }

    /// At that address.
    pub(crate) fn listening(mut self, listen: &str) -> Self {
        self.listen = listen.into();
        self
    }

    /// To join these members by itself, with the token in that file.
    pub(crate) fn seeded(mut self, seeds: &str, token: &Path) -> Self {
        self.seeds = Some((seeds.into(), token.into()));
        self
    }

    /// In a network namespace, at that address.
    pub(crate) fn within(mut self, namespace: &str, listen: &str) -> Self {
        (self.namespace, self.listen) = (Some(namespace.into()), listen.into());
        self
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub(crate) fn start(self) -> Site {
        let mut site = self.prepare();
        site.start();
        site
    }

    /// Makes the directories, without starting the daemon.
    pub(crate) fn prepare(self) -> Site {
        let home = TempDir::with_prefix(format!("collective-{}-", self.name)).expect("a temporary directory");
        for name in ["hooks.d", "actions.d", "run"] {
            std::fs::create_dir(home.path().join(name)).expect("a directory in a fresh one");
        }
        Site { plan: self, home: Some(home), child: None }
    }
}

/// One member: its daemon, while it runs, and its directories.
#[derive(Debug)]
pub(crate) struct Site {
    plan: Plan,
    home: Option<TempDir>,
    child: Option<Child>,
}

impl Site {
    /// Starts a member on loopback.
    #[track_caller]
    pub(crate) fn on_loopback(name: &str) -> Self {
        Plan::new(name).start()
    }

    pub(crate) fn name(&self) -> &str {
        &self.plan.name
    }

    pub(crate) fn home(&self) -> &Path {
        self.home.as_ref().expect("the directory lives as long as the site").path()
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.home().join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home().join("run/admin.sock")
    }

    pub(crate) fn status_socket(&self) -> PathBuf {
        self.home().join("run/status.sock")
    }

    /// Returns what the daemon logged so far, over all its starts.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.home().join("log")).unwrap_or_default()
    }

    /// Makes the command that starts the daemon.
    pub(crate) fn daemon(&self) -> Command {
        let mut command = match &self.plan.namespace {
            Some(namespace) => {
                let mut command = clean("ip");
                command.args(["netns", "exec", namespace, COLLECTIVED]);
                command
            }
            None => clean(COLLECTIVED),
        };
        let home = self.home();
        command
            .args(["--name", &self.plan.name, "--profile", self.plan.profile, "--listen", &self.plan.listen])
            .arg("--state-dir")
            .arg(home.join("state"))
            .arg("--runtime-dir")
            .arg(home.join("run"))
            .env("COLLECTIVE_HOOKS_DIR", home.join("hooks.d"))
            .env("COLLECTIVE_ACTIONS_DIR", home.join("actions.d"))
            // A group of its own: what is typed at the terminal of the tests is not for it.
            .process_group(0);
        if let Some((seeds, token)) = &self.plan.seeds {
            command.args(["--seeds", seeds, "--token", &format!("@{}", token.display())]);
        }
        command
    }

    /// Lets the daemon listen at another address from its next start on.
    pub(crate) fn moved_to(mut self, listen: &str) -> Self {
        self.plan.listen = listen.into();
        self
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub(crate) fn start(&mut self) {
        self.launch();
        wait_until(&format!("{} answers", self.name()), PATIENCE, || {
            if let Some(child) = &mut self.child
                && let Ok(Some(status)) = child.try_wait()
            {
                panic!("the daemon of {} ended with {status}:\n{}", self.name(), self.log());
            }
            self.run(&["show"]).code == 0
        });
    }

    /// Starts the daemon without waiting.
    pub(crate) fn launch(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name());
        let log = File::options().create(true).append(true).open(self.home().join("log")).expect("a log file");
        let mut command = self.daemon();
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a second handle")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    }

    /// Starts the daemon where it is expected to refuse; returns what it said.
    #[track_caller]
    pub(crate) fn fails_to_start(&self) -> Output {
        given_up(&mut self.daemon())
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the daemon runs");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("our own child can be signalled");
    }

    /// Stops the daemon's process where it is; it keeps its sockets.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a paused daemon go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends the daemon without a word, as a crash would.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.child.take().map(|mut child| child.wait());
    }

    /// Ends the daemon as the system would; returns its exit code.
    #[track_caller]
    pub(crate) fn stop(&mut self) -> i32 {
        self.signal(Signal::TERM);
        self.ended()
    }

    /// Waits until the daemon ends by itself; returns its exit code.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> i32 {
        let mut child = self.child.take().expect("the daemon runs");
        let status = wait_for("the daemon ends", PATIENCE, || child.try_wait().ok().flatten());
        status.code().unwrap_or(-1)
    }

    /// Returns whether the daemon still runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Makes the client's command with this member's socket.
    pub(crate) fn client(&self) -> Command {
        let mut command = clean(COLLECTIVE);
        command.arg("-s").arg(self.socket());
        command
    }

    /// Runs the client.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        run(self.client().args(words))
    }

    /// Runs the client with something on its stdin.
    pub(crate) fn run_with(&self, words: &[&str], stdin: &str) -> Output {
        let mut command = self.client();
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the client can be run");
        if let Some(mut pipe) = child.stdin.take() {
            // It may end without having read everything.
            let _ = pipe.write_all(stdin.as_bytes());
        }
        Output::of(child.wait_with_output().expect("the client ends"))
    }

    /// Runs the client and returns what it printed; it must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        self.run(words).good()
    }

    /// Runs the client, which must refuse with this code in one line and a hint; returns these.
    #[track_caller]
    pub(crate) fn refuses(&self, words: &[&str], code: i32) -> String {
        self.run(words).refused(code)
    }

    /// Runs the client and reads the JSON document it printed.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Value {
        let mut all = vec!["-o", "json"];
        all.extend(words);
        let text = self.ok(&all);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words:?}: {error}: {text}"))
    }

    /// Returns the status document, if the daemon answers.
    pub(crate) fn status(&self) -> Option<Value> {
        let output = self.run(&["status", "-o", "json"]);
        (output.code == 0).then(|| serde_json::from_str(&output.stdout).ok()).flatten()
    }

    /// Returns the address of QUIC.
    #[track_caller]
    pub(crate) fn address(&self) -> String {
        let status = self.json(&["status"]);
        let own = self.member_of(&status, self.name());
        own["address"].as_str().unwrap_or_else(|| panic!("no address of {} in {status}", self.name())).to_owned()
    }

    fn member_of<'a>(&self, status: &'a Value, name: &str) -> &'a Value {
        let members = status["members"].as_array().expect("status lists members");
        members.iter().find(|member| member["name"] == name).unwrap_or(&Value::Null)
    }

    /// Returns what this member says about a member, `null` when it is on no roster it knows.
    #[track_caller]
    pub(crate) fn member(&self, name: &str) -> Value {
        let status = self.json(&["status"]);
        self.member_of(&status, name).clone()
    }

    /// Returns one attribute of one node as this member answers it.
    pub(crate) fn attribute(&self, node: &str, attribute: &str) -> Option<String> {
        let output = self.run(&["attrib", node, attribute, "-o", "json"]);
        let document: Value = serde_json::from_str(&output.stdout).ok()?;
        document["nodes"][0]["attributes"][attribute]["value"].as_str().map(str::to_owned)
    }

    /// Waits until an attribute has that value here.
    #[track_caller]
    pub(crate) fn sees(&self, node: &str, attribute: &str, value: &str) -> Duration {
        let what = format!("{} reads {node} {attribute}={value}", self.name());
        wait_until(&what, PATIENCE, || self.attribute(node, attribute).as_deref() == Some(value))
    }

    /// Waits until this member answers so to `show`.
    #[track_caller]
    pub(crate) fn shows(&self, text: &str) {
        let what = format!("{} shows {text:?}", self.name());
        wait_until(&what, PATIENCE, || self.run(&["show"]).stdout == text);
    }

    /// Joins this member to the collective of another by the line of the man page.
    #[track_caller]
    pub(crate) fn join(&self, inviter: &Self) {
        self.join_with(inviter, "");
    }

    /// As [`Site::join`], with flags for the invitation.
    #[track_caller]
    pub(crate) fn join_with(&self, inviter: &Self, flags: &str) {
        let script = format!(
            "{COLLECTIVE} -s {} join {} -i $({COLLECTIVE} -s {} invite {} {flags})",
            self.socket().display(),
            inviter.address(),
            inviter.socket().display(),
            self.name(),
        );
        let output = run(clean("sh").arg("-c").arg(&script));
        assert_eq!(output.code, 0, "{script}: {output:?}");
        assert_eq!(output.stdout, "Certificate generated successfully\nSuccess\n");
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking()
            && let Some(home) = self.home.take()
        {
            let kept = home.keep();
            eprintln!("{}: state and log are kept in {}", self.plan.name, kept.display());
        }
    }
}

/// Makes a collective of three voters, `mgt1` to `mgt3`, the third invited by the second.
#[track_caller]
pub(crate) fn three() -> [Site; 3] {
    let sites = ["mgt1", "mgt2", "mgt3"].map(Site::on_loopback);
    assemble(&sites);
    sites
}

/// Joins members, each to the one before it, and waits until all vote and have the same documents.
#[track_caller]
pub(crate) fn assemble(sites: &[Site]) {
    for pair in sites.windows(2) {
        pair[1].join(&pair[0]);
    }
    settle(&sites.iter().collect::<Vec<_>>());
}

/// Waits until these members see one another alive, all vote, and all have the same documents.
#[track_caller]
pub(crate) fn settle(sites: &[&Site]) {
    for site in sites {
        wait_until(&format!("{} sees {} members settled", site.name(), sites.len()), PATIENCE, || {
            site.status().is_some_and(|status| is_settled(&status, sites.len()))
        });
    }
}

fn is_settled(status: &Value, members: usize) -> bool {
    let Some(listed) = status["members"].as_array() else { return false };
    let ready = |member: &Value| member["state"] == "alive" && member["learner"] == false;
    status["standing"] == "seated"
        && status["data"]["converged"] == true
        && listed.len() == members
        && listed.iter().all(ready)
        && status["quorum"]["expected"] == status["quorum"]["votes"]
}
