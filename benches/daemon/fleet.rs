//! Three daemons as a user would start them: own directories, loopback, joined by tokens over the admin sockets.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use collective::admin::{ADMIN_SOCKET, Client};
use collective::proto::name::MemberName;
use collective::proto::request::{Request, Response, Standing, Status, Target};
use collective::proto::roster::Role;

/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// After so long without a request a connection is made anew: the daemon closes one that idles for 10 s.
const KEPT: Duration = Duration::from_secs(4);
/// The state directory, which the daemon makes itself with the mode that it wants.
const STATE: &str = "state";
/// What the daemon has to say, beside it.
const LOG: &str = "log";

/// Members of one collective.
#[derive(Debug)]
pub(crate) struct Fleet {
    pub(crate) members: Vec<Daemon>,
}

impl Fleet {
    /// Starts `count` daemons, mgt1 and so on, and joins them.
    pub(crate) async fn start(count: usize) -> anyhow::Result<Self> {
        let mut members: Vec<Daemon> = Vec::new();
        for number in 1..=count {
            let mut member = Daemon::start(&format!("mgt{number}")).await?;
            if let Some(founder) = members.first_mut() {
                let server = founder.address().await?;
                let request = Request::Invite { name: member.name.clone(), role: Role::Voter, ttl_ms: 60_000, uses: 1 };
                let Response::Invited(invited) = founder.ask(&request).await? else { bail!("no invitation") };
                let token = invited.token.clone();
                let request = Request::Join { server: Some(server), token, replace: false, wait_ms: 30_000 };
                member.ask(&request).await?;
            }
            members.push(member);
        }
        let mut fleet = Self { members };
        fleet.converged().await?;
        Ok(fleet)
    }

    /// Waits until every member is seated, sees every other, counts every vote and holds the same documents.
    pub(crate) async fn converged(&mut self) -> anyhow::Result<()> {
        let count = self.members.len();
        let start = Instant::now();
        loop {
            let asked = Instant::now();
            let mut states = Vec::new();
            for member in &mut self.members {
                states.push(member.status().await?);
            }
            let pause = pause_after(asked.elapsed());
            let is_whole = |state: &Status| {
                state.standing == Standing::Seated
                    && state.data.converged
                    && state.data.heads == states[0].data.heads
                    && state.quorum.expected == count
                    && state.quorum.votes == count
            };
            if states.iter().all(is_whole) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("the members do not converge: {states:#?}");
            }
            tokio::time::sleep(pause).await;
        }
    }
}

/// One daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) name: MemberName,
    state: tempfile::TempDir,
    runtime: tempfile::TempDir,
    process: Child,
    client: Client,
    asked: Instant,
}

impl Daemon {
    async fn start(name: &str) -> anyhow::Result<Self> {
        // State is on the disk that the programs were built on; sockets need a short path.
        let state = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let runtime = tempfile::tempdir()?;
        let mut process = spawn(name, state.path(), runtime.path())?;
        let client = first_answer(&mut process, state.path(), &runtime.path().join(ADMIN_SOCKET)).await?;
        Ok(Self { name: MemberName::new(name)?, state, runtime, process, client, asked: Instant::now() })
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime.path().join(ADMIN_SOCKET)
    }

    /// Asks over a connection that stays open.
    pub(crate) async fn ask(&mut self, request: &Request) -> anyhow::Result<Response> {
        if self.asked.elapsed() > KEPT {
            self.client = connect(&self.socket()).await?;
        }
        let answer = ask(&mut self.client, request).await;
        self.asked = Instant::now();
        answer
    }

    pub(crate) async fn status(&mut self) -> anyhow::Result<Status> {
        match self.ask(&Request::Status).await? {
            Response::Status(status) => Ok(*status),
            other => bail!("no status: {other:?}"),
        }
    }

    async fn address(&mut self) -> anyhow::Result<String> {
        let status = self.status().await?;
        let own = status.members.iter().find(|member| member.name == self.name);
        own.and_then(|member| member.address.clone()).context("no address")
    }

    pub(crate) async fn value(&mut self, node: &str, attribute: &str) -> anyhow::Result<Option<String>> {
        let (target, names) = (Target::Nodes(node.to_owned()), vec![attribute.to_owned()]);
        match self.ask(&Request::Attributes { target, names, blame: false, stale: true }).await? {
            Response::Attributes(found) => {
                Ok(found.nodes.into_iter().flat_map(|node| node.attributes.into_values()).find_map(|found| found.value))
            }
            other => bail!("no attributes: {other:?}"),
        }
    }

    /// Returns how many nodes have an acting manager.
    pub(crate) async fn managed(&mut self) -> anyhow::Result<usize> {
        Ok(self.status().await?.managed)
    }

    /// Waits until somebody acts for a node: anybody, or anybody but that member. Returns who, with its token.
    pub(crate) async fn wait_for_manager(
        &mut self,
        node: &str,
        but: Option<&MemberName>,
    ) -> anyhow::Result<(MemberName, String)> {
        let start = Instant::now();
        loop {
            let request = Request::Managers { nodes: Some(node.to_owned()), why: true };
            let Response::Managers(found) = self.ask(&request).await? else { bail!("no managers") };
            let found = found.nodes.into_iter().next().context("no such node")?;
            if let (Some(manager), Some(token)) = (&found.manager, &found.token)
                && Some(manager) != but
            {
                return Ok((manager.clone(), token.clone()));
            }
            if start.elapsed() > PATIENCE {
                bail!("{} knows of nobody that acts for {node}: {found:?}", self.name);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Ends it as a power cut would.
    pub(crate) fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Ends it as the service manager does.
    pub(crate) async fn stop(&mut self) -> anyhow::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        while self.process.try_wait()?.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Starts it again; returns once it answers.
    pub(crate) async fn restart(&mut self) -> anyhow::Result<()> {
        self.process = spawn(self.name.as_str(), self.state.path(), self.runtime.path())?;
        let socket = self.socket();
        self.client = first_answer(&mut self.process, self.state.path(), &socket).await?;
        self.asked = Instant::now();
        Ok(())
    }

    /// Reads a line of /proc/PID/status, in KiB.
    pub(crate) fn status_kib(&self, key: &str) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap_or_default();
        let line = text.lines().find(|line| line.split(':').next() == Some(key));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
    }

    /// Returns the processor time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        let pid = self.process.id();
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let nanos = tasks.filter_map(|task| {
            // Nanoseconds; /proc/PID/stat counts in hundredths of a second.
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Returns the size of its database file.
    pub(crate) fn database_bytes(&self) -> u64 {
        let files = std::fs::read_dir(self.state.path().join(STATE)).into_iter().flatten().flatten();
        let databases = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "redb"));
        databases.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(name: &str, state: &Path, runtime: &Path) -> anyhow::Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(state.join(LOG))?;
    // Nothing of the machine's own configuration counts.
    std::fs::write(runtime.join("collective.toml"), "")?;
    Command::new(env!("CARGO_BIN_EXE_collectived"))
        .args(["--name", name, "--listen", "127.0.0.1:0"])
        .arg("--config")
        .arg(runtime.join("collective.toml"))
        .arg("--state-dir")
        .arg(state.join(STATE))
        .arg("--runtime-dir")
        .arg(runtime)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .context("collectived does not start")
}

/// Waits until a daemon answers its first question.
async fn first_answer(process: &mut Child, state: &Path, socket: &Path) -> anyhow::Result<Client> {
    let start = Instant::now();
    loop {
        if let Ok(mut client) = Client::connect(socket).await
            && client.request(&Request::Show, PATIENCE).await.is_ok()
        {
            return Ok(client);
        }
        if process.try_wait()?.is_some() || start.elapsed() > PATIENCE {
            let log = std::fs::read_to_string(state.join(LOG)).unwrap_or_default();
            bail!("the daemon does not answer on {}; it said: {log}", socket.display());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Returns how long to wait between two looks: with 10,000 nodes a look takes a tenth of a second of a daemon's time, which
/// has better things to do.
pub(crate) fn pause_after(look: Duration) -> Duration {
    (look * 9).max(Duration::from_millis(10))
}

/// Opens one more connection.
pub(crate) async fn connect(socket: &Path) -> anyhow::Result<Client> {
    Ok(Client::connect(socket).await?)
}

/// Asks; a refusal is an error here.
pub(crate) async fn ask(client: &mut Client, request: &Request) -> anyhow::Result<Response> {
    match client.request(request, PATIENCE).await? {
        Response::Error(refused) => bail!("{} was refused: {}", request.kind(), refused.error),
        response => Ok(response),
    }
}

/// What went over loopback.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
}

/// Counts what was sent on loopback, without the link's own headers; none where others use it too.
pub(crate) fn sent_on_loopback() -> Option<Sent> {
    const ETHERNET_HEADER: u64 = 14;
    std::env::var_os(super::ISOLATED)?;
    let text = std::fs::read_to_string("/proc/self/net/dev").ok()?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    let mut numbers = line.split_whitespace().skip(8).map(str::parse::<u64>);
    let (bytes, packets) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Sent { bytes: bytes - packets * ETHERNET_HEADER, packets })
}
