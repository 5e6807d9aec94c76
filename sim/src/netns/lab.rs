//! A network of real packets: a namespace for each machine, and between them a switch that drops what a fault cuts.
//!
//! It is a bridge in another namespace; or, where packets must be more than dropped, a port in a namespace of its own for
//! each machine, where the machine meets all others: sockets of [`Switch`](super::switch::Switch) under their addresses.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

/// The UDP port of every member, each in a network of its own.
const PORT: u16 = 7461;
/// Addresses below one number of the third part.
const BLOCK: usize = 250;

/// What the switch does: nothing is dropped, then everything that a set of pairs names. One transaction of `nft` puts
/// other rules in the place of all of these, so that no packet ever sees half of a fault.
const TABLE: &str = "table bridge faults {
    set cut {
        type ipv4_addr . ipv4_addr
    }
    chain forward {
        type filter hook forward priority 0
    }
}
";

/// What is between the machines of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// A bridge, whose rules drop packets.
    Bridge,
    /// A port for each machine, which a switch in user space opens its sockets in.
    Ports,
}

/// Networks made by this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// What the switch drops.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cuts {
    /// Who is not heard by whom.
    pub(super) pairs: Vec<(usize, usize)>,
    /// How many of a thousand packets are lost.
    pub(super) loss: u64,
}

/// The network namespaces of the machines and of what is between them; all of it is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Lab {
    id: String,
    /// Namespaces that were made, and must be taken away.
    made: Vec<String>,
}

impl Lab {
    /// Says why no network can be made here, and what to do about it.
    pub(super) fn is_possible() -> anyhow::Result<()> {
        const HINT: &str = "or leave out `--level netns`: level core needs no rights";
        if !rustix::process::geteuid().is_root() {
            bail!("level netns makes network namespaces, which needs root: try again with sudo, {HINT}");
        }
        for (tool, package) in [("ip", "iproute2"), ("nft", "nftables")] {
            if Command::new(tool).arg("-V").output().is_err() {
                bail!("level netns needs `{tool}`, which is not installed: install {package}, {HINT}");
            }
        }
        Ok(())
    }

    /// Builds a network for so many machines.
    ///
    /// # Errors
    /// What the system refused; nothing is left then.
    pub(super) fn build(machines: usize, between: Between) -> anyhow::Result<Self> {
        Self::is_possible()?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let mut lab = Self { id: format!("cs{}x{number}", std::process::id()), made: Vec::new() };
        let wired = match between {
            Between::Bridge => lab.wire(machines),
            Between::Ports => lab.wire_ports(machines),
        };
        wired.context(
            "level netns cannot make network namespaces here (in a container: it needs the capability SYS_ADMIN)",
        )?;
        Ok(lab)
    }

    fn wire(&mut self, machines: usize) -> anyhow::Result<()> {
        let switch = self.switch();
        self.add(switch.clone())?;
        ip(&format!("-n {switch} link add br0 type bridge"))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        for machine in 0..machines {
            let namespace = self.namespace(machine);
            self.add(namespace.clone())?;
            ip(&format!("link add eth0 netns {namespace} type veth peer name p{machine} netns {switch}"))?;
            ip(&format!("-n {switch} link set p{machine} master br0 up"))?;
            ip(&format!("-n {namespace} addr add {}/16 dev eth0", address(machine)))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
        }
        nft(&switch, TABLE)
    }

    fn wire_ports(&mut self, machines: usize) -> anyhow::Result<()> {
        for machine in 0..machines {
            let (namespace, port) = (self.namespace(machine), self.port(machine));
            self.add(namespace.clone())?;
            self.add(port.clone())?;
            ip(&format!("link add eth0 netns {namespace} type veth peer name port netns {port}"))?;
            ip(&format!("-n {namespace} addr add {}/16 dev eth0", address(machine)))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {port} link set lo up"))?;
            ip(&format!("-n {port} link set port up"))?;
            for other in (0..machines).filter(|other| *other != machine) {
                ip(&format!("-n {port} addr add {}/32 dev lo", address(other)))?;
            }
            ip(&format!("-n {port} route add {}/32 dev port", address(machine)))?;
        }
        Ok(())
    }

    fn add(&mut self, namespace: String) -> anyhow::Result<()> {
        ip(&format!("netns add {namespace}"))?;
        self.made.push(namespace);
        Ok(())
    }

    /// Returns the name of the switch's namespace.
    pub(super) fn switch(&self) -> String {
        format!("{}s", self.id)
    }

    /// Returns the name of the namespace in which a machine meets the others.
    pub(super) fn port(&self, machine: usize) -> String {
        format!("{}p{machine}", self.id)
    }

    /// Returns the name of a machine's namespace.
    pub(super) fn namespace(&self, machine: usize) -> String {
        format!("{}m{machine}", self.id)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.made.iter().rev() {
            // Nobody but us starts anything there: actions and their guards are what a daemon may leave behind.
            kill_all_in(namespace);
            if let Err(error) = ip(&format!("netns del {namespace}")) {
                eprintln!("collective-sim: {error:#}; take it away with: ip netns del {namespace}");
            }
        }
    }
}

/// Returns the IP address of a machine.
fn address(machine: usize) -> String {
    format!("10.78.{}.{}", machine / BLOCK, machine % BLOCK + 1)
}

/// Returns where a machine's member listens.
pub(super) fn listen(machine: usize) -> String {
    format!("{}:{PORT}", address(machine))
}

/// Puts what a switch drops in the place of what it dropped before, at one stroke.
pub(super) fn apply(switch: &str, cuts: &Cuts) -> anyhow::Result<()> {
    nft(switch, &rules(cuts))
}

fn rules(cuts: &Cuts) -> String {
    let mut rules = "flush chain bridge faults forward\nflush set bridge faults cut\n".to_owned();
    if !cuts.pairs.is_empty() {
        let pairs: Vec<_> =
            cuts.pairs.iter().map(|(from, to)| format!("{} . {}", address(*from), address(*to))).collect();
        let _ = writeln!(rules, "add element bridge faults cut {{ {} }}", pairs.join(", "));
    }
    rules.push_str("add rule bridge faults forward ip saddr . ip daddr @cut drop\n");
    if cuts.loss > 0 {
        let _ =
            writeln!(rules, "add rule bridge faults forward ether type ip numgen random mod 1000 < {} drop", cuts.loss);
    }
    rules
}

/// Kills every process in a namespace that this run made.
fn kill_all_in(namespace: &str) {
    let Ok(output) = Command::new("ip").args(["netns", "pids", namespace]).output() else { return };
    let pids = String::from_utf8_lossy(&output.stdout).into_owned();
    for pid in pids.split_whitespace().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)) {
        // It may have ended meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

fn ip(words: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(words.split(' ')).stdin(Stdio::null()).output().context("ip")?;
    good(output, || format!("ip {words}"))
}

fn nft(switch: &str, rules: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", switch, "nft", "-f", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(rules.as_bytes())?;
    }
    good(child.wait_with_output()?, || format!("nft: {rules}"))
}

fn good(output: Output, what: impl Fn() -> String) -> anyhow::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    bail!("{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_replace_all_that_were_there_before() {
        let text = rules(&Cuts { pairs: vec![(0, 1), (1, 0)], loss: 100 });
        assert!(text.starts_with("flush chain bridge faults forward\nflush set bridge faults cut\n"), "{text}");
        assert!(text.contains("cut { 10.78.0.1 . 10.78.0.2, 10.78.0.2 . 10.78.0.1 }"), "{text}");
        assert!(text.contains("mod 1000 < 100 drop"), "{text}");
        assert!(!rules(&Cuts::default()).contains("add element"), "an empty set takes no element");
    }

    #[test]
    fn every_machine_has_an_address_of_its_own() {
        let all: std::collections::BTreeSet<_> = (0..1_000).map(address).collect();
        assert_eq!(all.len(), 1_000);
        assert_eq!((address(0), address(250)), ("10.78.0.1".to_owned(), "10.78.1.1".to_owned()));
    }
}
