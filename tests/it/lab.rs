//! A network of its own for one test: a namespace for each member, and a switch that loses packets when told to.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::site::{Plan, Site, assemble, run};

/// Networks made by this process so far.
static MADE: AtomicU32 = AtomicU32::new(0);

/// A bridge in a namespace of its own, and a namespace with an address for each member.
#[derive(Debug)]
pub(crate) struct Lab {
    id: String,
    members: usize,
}

impl Lab {
    /// Builds a network for so many members.
    ///
    /// Where that is impossible the reason is printed and nothing is returned; the test then ends at once.
    pub(crate) fn build(members: usize) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: network namespaces need root");
            return None;
        }
        for tool in ["ip", "nft"] {
            if Command::new(tool).arg("-V").output().is_err() {
                println!("skipped: `{tool}` is not installed");
                return None;
            }
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let lab = Self { id: format!("c{}x{number}", std::process::id()), members };
        match lab.wire() {
            Ok(()) => Some(lab),
            Err(reason) => {
                println!("skipped: no network namespaces here: {reason}");
                None
            }
        }
    }

    fn switch(&self) -> String {
        format!("{}s", self.id)
    }

    fn namespace(&self, member: usize) -> String {
        format!("{}m{member}", self.id)
    }

    /// Returns the IP address of a member, from 1.
    pub(crate) fn ip(member: usize) -> String {
        format!("10.77.0.{member}")
    }

    fn wire(&self) -> Result<(), String> {
        let switch = self.switch();
        ip(&format!("netns add {switch}"))?;
        ip(&format!("-n {switch} link add br0 type bridge"))?;
        ip(&format!("-n {switch} link set br0 up"))?;
        for member in 1..=self.members {
            let namespace = self.namespace(member);
            ip(&format!("netns add {namespace}"))?;
            ip(&format!("link add eth0 netns {namespace} type veth peer name p{member} netns {switch}"))?;
            ip(&format!("-n {switch} link set p{member} master br0 up"))?;
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", Self::ip(member)))?;
            ip(&format!("-n {namespace} link set lo up"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
        }
        self.nft(
            "table bridge faults {
                set cut {
                    type ipv4_addr . ipv4_addr
                }
                chain forward {
                    type filter hook forward priority 0
                    ip saddr . ip daddr @cut drop
                }
            }",
        )
    }

    fn nft(&self, rules: &str) -> Result<(), String> {
        let output = run(Command::new("ip").args(["netns", "exec", &self.switch(), "nft", rules]));
        if output.code == 0 { Ok(()) } else { Err(output.stderr) }
    }

    /// Plans a member here, with the timing that members have unless told otherwise.
    pub(crate) fn plan(&self, member: usize) -> Plan {
        let listen = format!("{}:7461", Self::ip(member));
        Plan::new(&format!("mgt{member}")).lan().within(&self.namespace(member), &listen)
    }

    /// Makes a collective of three voters here, `mgt1` to `mgt3`.
    #[track_caller]
    pub(crate) fn three(&self) -> [Site; 3] {
        let sites = [1, 2, 3].map(|member| self.plan(member).start());
        assemble(&sites);
        sites
    }

    /// Loses every packet from one member to another; the way back stays open.
    #[track_caller]
    pub(crate) fn deafen(&self, from: usize, to: usize) {
        let (from, to) = (Self::ip(from), Self::ip(to));
        self.nft(&format!("add element bridge faults cut {{ {from} . {to} }}")).expect("the switch takes rules");
    }

    /// Loses every packet between two members.
    #[track_caller]
    pub(crate) fn cut(&self, one: usize, other: usize) {
        let (one, other) = (Self::ip(one), Self::ip(other));
        self.nft(&format!("add element bridge faults cut {{ {one} . {other}, {other} . {one} }}"))
            .expect("the switch takes rules");
    }

    /// Loses every packet between a member and all others.
    #[track_caller]
    pub(crate) fn isolate(&self, member: usize) {
        let alone = Self::ip(member);
        let pairs: Vec<_> = (1..=self.members)
            .filter(|other| *other != member)
            .map(|other| format!("{alone} . {0}, {0} . {alone}", Self::ip(other)))
            .collect();
        self.nft(&format!("add element bridge faults cut {{ {} }}", pairs.join(", "))).expect("the switch takes rules");
    }

    /// Lets every packet through again.
    #[track_caller]
    pub(crate) fn heal(&self) {
        self.nft("flush set bridge faults cut").expect("the switch takes rules");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for member in 1..=self.members {
            let _ = ip(&format!("netns del {}", self.namespace(member)));
        }
        let _ = ip(&format!("netns del {}", self.switch()));
    }
}

fn ip(words: &str) -> Result<(), String> {
    let output = run(Command::new("ip").args(words.split(' ')));
    if output.code == 0 { Ok(()) } else { Err(format!("ip {words}: {}", output.stderr.trim())) }
}
