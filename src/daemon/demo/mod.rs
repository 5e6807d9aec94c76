//! The demo: three real members on loopback that invite one another, take in an inventory, lose one of them, fail over,
//! heal and resync; every step timed and checked.
//!
//! Each member is a whole daemon with its own key, disk and sockets, and they talk QUIC over UDP. They share one process
//! so that a [`Switch`] can pull the cable of one without root rights.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Options, run};
use crate::admin::{ADMIN_SOCKET, Client};
use crate::config::{Config, Layer};
use crate::net::Switch;
use crate::proto::name::{MemberName, NodeName};
use crate::proto::request::{
    ErrorCode, ImportFormat, Refusal, Request, Response, Show, Status, Target, TokenText, Wait,
};
use crate::proto::roster::Role;

const INVENTORY: &str = include_str!("inventory.json");
const NAMES: [&str; 3] = ["mgt1", "mgt2", "mgt3"];
/// How long one request may take, and how long a step waits for what it expects.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);
const STEP_WITHIN: Duration = Duration::from_secs(12);
const POLL: Duration = Duration::from_millis(20);

/// Why a step failed, in words.
type Failure = String;
type Outcome = Result<String, Failure>;

/// Runs the demo and returns the exit code: 0 only if every check held.
pub fn demo(stay: bool, http: Option<SocketAddr>) -> u8 {
    if http.is_some() {
        eprintln!("collective: the page is not built yet; leave --http out");
        return ErrorCode::Usage.exit();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(play(stay)),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(()) => 0,
        Err(failure) => {
            eprintln!("collective: the demo failed: {failure}");
            ErrorCode::Failure.exit()
        }
    }
}

async fn play(stay: bool) -> Result<(), Failure> {
    let mut stage = Stage::set().await?;
    let played = stage.play().await;
    if stay && played.is_ok() {
        println!("\nThe members go on until you press Ctrl-C. Talk to them:");
        for site in &stage.sites {
            println!("    collective -s {} status", site.socket().display());
        }
        let _ = tokio::signal::ctrl_c().await;
    }
    stage.strike().await;
    played
}

/// One member.
struct Site {
    name: MemberName,
    dir: PathBuf,
    address: SocketAddr,
    switch: Switch,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Site {
    async fn start(dir: PathBuf, name: &str) -> Result<Self, Failure> {
        let name = MemberName::new(name).map_err(words)?;
        let config = Config::from(Layer {
            name: Some(name.clone()),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            state_dir: Some(dir.join("state")),
            runtime_dir: Some(dir.join("run")),
            hooks_dir: Some(dir.join("hooks.d")),
            actions_dir: Some(dir.join("actions.d")),
            ..Layer::default()
        });
        let switch = Switch::default();
        let (ready, serves) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let options =
            Options { ready: Some(ready), stop: Some(stopped), switch: Some(switch.clone()), ..Options::default() };
        let task = tokio::spawn(run(config, options));
        match serves.await {
            Ok(address) => Ok(Self { name, dir, address, switch, stop, task }),
            Err(_) => Err(match task.await {
                Ok(Err(error)) => format!("{error:#}"),
                _ => format!("{name} did not start"),
            }),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("run").join(ADMIN_SOCKET)
    }

    async fn ask(&self, request: Request) -> Result<Response, Refusal> {
        let mut client = Client::connect(&self.socket()).await.map_err(Refusal::from)?;
        match client.request(&request, REQUEST_WITHIN * 4).await.map_err(Refusal::from)? {
            Response::Error(refused) => Err(refused.error),
            response => Ok(response),
        }
    }

    async fn show(&self) -> Result<Show, Failure> {
        match self.ask(Request::Show).await.map_err(words)? {
            Response::Show(show) => Ok(show),
            _ => Err("show was answered with something else".into()),
        }
    }

    async fn status(&self) -> Result<Status, Failure> {
        match self.ask(Request::Status).await.map_err(words)? {
            Response::Status(status) => Ok(*status),
            _ => Err("status was answered with something else".into()),
        }
    }

    async fn set(&self, node: &str, assignment: &str) -> Result<(), Refusal> {
        let request = Request::SetAttributes {
            target: Target::Nodes(node.into()),
            assignments: vec![assignment.into()],
            clear: Vec::new(),
            wait: Wait::Majority,
            dry_run: false,
            yes: false,
        };
        self.ask(request).await.map(|_| ())
    }

    async fn get(&self, node: &str, attribute: &str) -> Result<Option<String>, Refusal> {
        let request = Request::Attributes {
            target: Target::Nodes(node.into()),
            names: vec![attribute.into()],
            blame: false,
            stale: false,
        };
        match self.ask(request).await? {
            Response::Attributes(attributes) => Ok(attributes
                .nodes
                .first()
                .and_then(|node| node.attributes.iter().find(|(name, _)| name.as_str() == attribute))
                .and_then(|(_, value)| value.value.clone())),
            _ => Ok(None),
        }
    }

    /// Returns the nodes that a member acts for, as this member sees it, by acting manager.
    async fn managers(&self) -> Result<Vec<(NodeName, Option<MemberName>)>, Failure> {
        match self.ask(Request::Managers { nodes: None, why: false }).await.map_err(words)? {
            Response::Managers(managers) => {
                Ok(managers.nodes.into_iter().map(|status| (status.node, status.manager)).collect())
            }
            _ => Err("managers was answered with something else".into()),
        }
    }
}

/// Three members and a clock.
struct Stage {
    sites: Vec<Site>,
    _dir: TempDir,
    begun: Instant,
}

impl Stage {
    async fn set() -> Result<Self, Failure> {
        let dir = TempDir::with_prefix("collective-demo-").map_err(words)?;
        let begun = Instant::now();
        let mut sites = Vec::new();
        for name in NAMES {
            sites.push(Site::start(dir.path().join(name), name).await?);
        }
        let stage = Self { sites, _dir: dir, begun };
        let addresses: Vec<_> = stage.sites.iter().map(|site| format!("{} on {}", site.name, site.address)).collect();
        stage.tell(Duration::ZERO, "three members start", &addresses.join(", "));
        Ok(stage)
    }

    async fn strike(self) {
        for site in self.sites {
            let _ = site.stop.send(());
            match site.task.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => eprintln!("collective: {} ended early: {error:#}", site.name),
                Err(error) => eprintln!("collective: {} ended early: {error}", site.name),
            }
        }
    }

    fn tell(&self, took: Duration, title: &str, what: &str) {
        println!("[{:6.2}s] {title:<34} {:>5.2}s  {what}", self.begun.elapsed().as_secs_f64(), took.as_secs_f64());
    }

    async fn step(&self, title: &str, act: impl Future<Output = Outcome>) -> Result<(), Failure> {
        let start = Instant::now();
        match act.await {
            Ok(what) => {
                self.tell(start.elapsed(), title, &what);
                Ok(())
            }
            Err(failure) => {
                self.tell(start.elapsed(), title, &format!("FAILED: {failure}"));
                Err(format!("{title}: {failure}"))
            }
        }
    }

    async fn play(&mut self) -> Result<(), Failure> {
        let [one, two, three] = &self.sites[..] else { return Err("three members were started".into()) };
        self.step("mgt1 invites mgt2, which joins", join(one, two)).await?;
        self.step("mgt2 invites mgt3, which joins", join(two, three)).await?;
        self.step("all three agree and vote", agree(&self.sites)).await?;
        self.step("mgt1 imports an Ansible inventory", import(one)).await?;
        self.step("every member has the same data", converge(&self.sites)).await?;
        self.step("every node has one manager", manage(&self.sites, &NAMES)).await?;
        let victim = three;
        let moved = held_by(one, "mgt3").await?;
        victim.switch.cut(true);
        self.step("mgt3 is cut off: it loses quorum", lose_quorum(victim)).await?;
        self.step("mgt3 refuses writes", refuse(victim)).await?;
        self.step("mgt1 and mgt2 take its nodes over", fail_over(&[one, two], moved.len())).await?;
        self.step("mgt1 accepts writes meanwhile", write(one, "n1", "custom.note", "written-while-mgt3-was-away"))
            .await?;
        victim.switch.cut(false);
        self.step("the partition heals: mgt3 votes", regain(victim)).await?;
        self.step("mgt3 has what it missed", catch_up(victim, "n1", "custom.note", "written-while-mgt3-was-away"))
            .await?;
        self.step("every member has the same data", converge(&self.sites)).await?;
        self.step("no node has moved back", stay_moved(one, &moved)).await?;
        println!("\nAll checks held, in {:.1} s.", self.begun.elapsed().as_secs_f64());
        Ok(())
    }
}

async fn join(inviter: &Site, joiner: &Site) -> Outcome {
    let invite = Request::Invite { name: joiner.name.clone(), role: Role::Voter, ttl_ms: 3_600_000, uses: 1 };
    let Response::Invited(invited) = inviter.ask(invite).await.map_err(words)? else {
        return Err("the invitation was answered with something else".into());
    };
    let token = TokenText(invited.token.0.clone());
    let server = Some(inviter.address.to_string());
    let wait_ms = u64::try_from(STEP_WITHIN.as_millis()).unwrap_or(u64::MAX);
    match joiner.ask(Request::Join { server, token, replace: false, wait_ms }).await.map_err(words)? {
        Response::Done(done) => Ok(format!("a token of {} characters; {}", invited.token.0.len(), done.message)),
        _ => Err("the join was answered with something else".into()),
    }
}

async fn agree(sites: &[Site]) -> Outcome {
    until(async || {
        for site in sites {
            let status = site.status().await?;
            if status.quorum.votes != 3 || status.quorum.expected != 3 || status.view.agreed_by.len() != 3 {
                return Err(format!("{} counts {} of {}", site.name, status.quorum.votes, status.quorum.expected));
            }
        }
        Ok("3 of 3 votes on every member, can lose 1".into())
    })
    .await
}

async fn import(site: &Site) -> Outcome {
    let request = Request::Import { format: ImportFormat::Ansible, document: INVENTORY.to_owned(), dry_run: false };
    match site.ask(request).await.map_err(words)? {
        Response::Done(done) => Ok(done.message),
        _ => Err("the import was answered with something else".into()),
    }
}

async fn converge(sites: &[Site]) -> Outcome {
    until(async || {
        let mut heads = Vec::new();
        for site in sites {
            let status = site.status().await?;
            if !status.data.converged {
                return Err(format!("{} has not converged", site.name));
            }
            heads.push((status.data.heads, status.data.nodes));
        }
        match &heads[..] {
            [first, rest @ ..] if rest.iter().all(|other| other == first) && first.1 == 12 => {
                Ok(format!("{} nodes, heads {}", first.1, first.0))
            }
            _ => Err(format!("the members differ: {heads:?}")),
        }
    })
    .await
}

/// Every node has a manager, one of those named, and all members agree on which.
async fn manage(sites: &[Site], allowed: &[&str]) -> Outcome {
    until(async || {
        let mut views = Vec::new();
        for site in sites {
            views.push(site.managers().await?);
        }
        let first = views.first().cloned().unwrap_or_default();
        if views.iter().any(|view| *view != first) {
            return Err("the members differ on who manages what".into());
        }
        let lost = first
            .iter()
            .filter(|(_, manager)| !manager.as_ref().is_some_and(|manager| allowed.contains(&manager.as_str())));
        match lost.count() {
            0 => Ok(spread(&first)),
            count => Err(format!("{count} of {} nodes have no manager", first.len())),
        }
    })
    .await
}

async fn held_by(site: &Site, name: &str) -> Result<Vec<NodeName>, Failure> {
    let managers = site.managers().await?;
    let held = managers.into_iter().filter(|(_, manager)| manager.as_ref().is_some_and(|held| held.as_str() == name));
    Ok(held.map(|(node, _)| node).collect())
}

async fn lose_quorum(site: &Site) -> Outcome {
    until(async || match site.show().await? {
        show if show.quorum => Err("it still says Quorum: True".into()),
        _ => Ok("Quorum: False".into()),
    })
    .await
}

async fn refuse(site: &Site) -> Outcome {
    match site.set("n1", "custom.note=written-in-the-minority").await {
        Err(refusal) if refusal.code == ErrorCode::NoQuorum => {
            Ok(format!("exit {}: {}", refusal.exit, refusal.message))
        }
        Err(refusal) => Err(format!("refused for another reason: {refusal}")),
        Ok(()) => Err("it took a write without quorum".into()),
    }
}

async fn fail_over(sites: &[&Site], moved: usize) -> Outcome {
    until(async || {
        for site in sites {
            let managers = site.managers().await?;
            let waiting = managers
                .iter()
                .filter(|(_, manager)| manager.as_ref().is_none_or(|manager| manager.as_str() == "mgt3"))
                .count();
            if waiting > 0 {
                return Err(format!("{waiting} nodes wait for a manager, as {} sees it", site.name));
            }
        }
        Ok(format!("{moved} nodes moved"))
    })
    .await
}

async fn write(site: &Site, node: &str, attribute: &str, value: &str) -> Outcome {
    site.set(node, &format!("{attribute}={value}")).await.map_err(words)?;
    Ok(format!("{node}: {attribute}: {value}"))
}

async fn regain(site: &Site) -> Outcome {
    until(async || match site.status().await? {
        status if status.quorum.quorate => Ok(format!("{} of {} votes", status.quorum.votes, status.quorum.expected)),
        _ => Err("it has no quorum".into()),
    })
    .await
}

async fn catch_up(site: &Site, node: &str, attribute: &str, value: &str) -> Outcome {
    until(async || match site.get(node, attribute).await {
        Ok(Some(found)) if found == value => Ok(format!("{node}: {attribute}: {found}")),
        Ok(found) => Err(format!("{attribute} is {found:?}")),
        Err(refusal) => Err(refusal.to_string()),
    })
    .await
}

async fn stay_moved(site: &Site, moved: &[NodeName]) -> Outcome {
    let back = held_by(site, "mgt3").await?;
    match back.iter().find(|node| moved.contains(node)) {
        Some(node) => Err(format!("{node} moved back to mgt3 for no need")),
        None => Ok("fail-back is off by default".into()),
    }
}

/// Tries until it succeeds, or says after a while why it did not.
async fn until(attempt: impl AsyncFn() -> Outcome) -> Outcome {
    let end = Instant::now() + STEP_WITHIN;
    loop {
        match attempt().await {
            Ok(what) => return Ok(what),
            Err(failure) if Instant::now() >= end => return Err(failure),
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

fn spread(managers: &[(NodeName, Option<MemberName>)]) -> String {
    let count = |name: &str| {
        managers.iter().filter(|(_, manager)| manager.as_ref().is_some_and(|held| held.as_str() == name)).count()
    };
    NAMES.iter().map(|name| format!("{name} {}", count(name))).collect::<Vec<_>>().join(", ")
}

fn words(error: impl std::fmt::Display) -> Failure {
    error.to_string()
}
