//! The schema: which attributes there are, what they mean, and which values they take.
//!
//! The names and their valid values are Confluent's, so that its users and scripts need not learn new ones; a few of
//! our own in the family `collective` say how managers are elected. `custom.*` is free. In the families `net` and
//! `power` an instance may stand in the middle: `net.eth0.switch` is described by `net.switch`.

use super::name::AttributeName;

/// Bytes in the longest value of an attribute.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// The family whose attributes anybody may invent.
const CUSTOM: &str = "custom.";
/// The families whose values must be sealed before they may be stored.
const SEALED: [&str; 2] = ["secret.", "crypted."];
/// The families in which an instance may stand in the middle of a name.
const INSTANCED: [&str; 2] = ["net", "power"];
/// Confluent's short names.
const ALIASES: [(&str, &str); 5] = [
    ("bmc", "hardwaremanagement.manager"),
    ("bmcuser", "secret.hardwaremanagementuser"),
    ("switchuser", "secret.hardwaremanagementuser"),
    ("bmcpass", "secret.hardwaremanagementpassword"),
    ("switchpass", "secret.hardwaremanagementpassword"),
];

/// One defined attribute.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    /// Its name, without an instance.
    pub name: &'static str,
    /// What it is for, in one line.
    pub about: &'static str,
    /// Which values it takes.
    pub values: Values,
}

/// Which values an attribute takes. Every attribute may also be blank, which masks what would be inherited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// Any text.
    Any,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// Some of these words, separated by commas.
    SomeOf(&'static [&'static str]),
    /// `key=value` pairs with these keys, separated by commas.
    Keys(&'static [&'static str]),
    /// Yes or no.
    Boolean,
    /// Names of groups, separated by commas, in order of precedence.
    Groups,
}

impl Values {
    /// Checks a value; an error says what would be valid.
    ///
    /// Group names are only looked at for their form; whether the groups exist is for the caller to see.
    ///
    /// # Errors
    /// The rule that the value breaks, as the end of a sentence that begins with the value.
    pub fn check(self, value: &str) -> Result<(), String> {
        if value.is_empty() {
            return Ok(());
        }
        let words = || value.split(',').map(str::trim);
        match self {
            Self::OneOf(valid) if !valid.contains(&value) => Err(format!("must be one of {}", valid.join(", "))),
            Self::SomeOf(valid) if !words().all(|word| valid.contains(&word)) => {
                Err(format!("must be made of {}, separated by commas", valid.join(", ")))
            }
            Self::Keys(keys)
                if !words().all(|pair| pair.split_once('=').is_some_and(|(key, _)| keys.contains(&key))) =>
            {
                Err(format!("must be KEY=VALUE with the keys {}, separated by commas", keys.join(", ")))
            }
            Self::Boolean if boolean(value).is_none() => Err("must be true or false".to_owned()),
            _ => Ok(()),
        }
    }
}

/// Reads yes or no as people write it.
pub fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Returns the full name of an attribute that may be written by one of Confluent's short names, such as `bmc`.
pub fn canonical(name: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, full)| full)
}

/// Returns what is known of an attribute; nothing for unknown names and for those under `custom`.
pub fn definition(name: &str) -> Option<&'static Definition> {
    let exact = |name: &str| DEFINITIONS.iter().find(|definition| definition.name == name);
    exact(name).or_else(|| {
        let (family, rest) = name.split_once('.')?;
        let (instance, last) = rest.rsplit_once('.')?;
        (INSTANCED.contains(&family) && !instance.is_empty()).then(|| exact(&format!("{family}.{last}")))?
    })
}

/// Returns whether a name is an attribute: a defined one, or one under `custom`.
pub fn is_known(name: &str) -> bool {
    AttributeName::new(name).is_ok() && (name.starts_with(CUSTOM) || definition(name).is_some())
}

/// Returns whether values of this attribute must be sealed before they are stored.
pub fn is_sealed(name: &str) -> bool {
    SEALED.iter().any(|family| name.starts_with(family))
}

/// Returns whether a key of the store is for the machinery only, and never shown.
pub fn is_internal(name: &str) -> bool {
    name.starts_with('!')
}

/// Checks the value of a known attribute.
///
/// # Errors
/// The rule that the value breaks, as the end of a sentence that begins with the value.
pub fn check_value(name: &str, value: &str) -> Result<(), String> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("must not be longer than {VALUE_BYTES_MAX} bytes"));
    }
    if value.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        return Err("must not hold control characters".to_owned());
    }
    definition(name).map_or(Ok(()), |definition| definition.values.check(value))
}

/// Returns the defined attribute whose name is most like this one, when one is like it at all.
///
/// An instance is kept: `net.eth0.swich` is nearest to `net.eth0.switch`.
pub fn nearest_attribute(name: &str) -> Option<String> {
    if let Some((family, rest)) = name.split_once('.')
        && let Some((instance, last)) = rest.rsplit_once('.')
        && INSTANCED.contains(&family)
    {
        let prefix = format!("{family}.");
        let found = nearest(last, DEFINITIONS.iter().filter_map(|definition| definition.name.strip_prefix(&prefix)))?;
        return Some(format!("{family}.{instance}.{found}"));
    }
    let by_last_word = || {
        let mut found = DEFINITIONS.iter().filter(|definition| definition.name.rsplit('.').next() == Some(name));
        found.next().filter(|_| found.next().is_none()).map(|definition| definition.name)
    };
    nearest(name, DEFINITIONS.iter().map(|definition| definition.name)).or_else(by_last_word).map(str::to_owned)
}

/// Returns the name that needs the fewest edits to become `name`, if that is at most a third of its letters.
///
/// The first one wins a tie, so the answer is the same everywhere.
pub fn nearest<'a>(name: &str, among: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let edits_max = (name.chars().count() / 3).max(1);
    among
        .into_iter()
        .filter(|candidate| candidate.len().abs_diff(name.len()) <= edits_max)
        .map(|candidate| (edits(name, candidate), candidate))
        .filter(|(edits, _)| *edits <= edits_max)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Counts the insertions, deletions and substitutions between two texts (Wagner and Fischer 1974).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, a) in from.chars().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (column, b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

/// Returns whether a name fits a pattern in which `*` stands for any run of characters.
///
/// Linear in the pattern for each star: a mismatch only ever goes back to the last star.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    let mut retry = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            retry = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((star, taken)) = retry {
            retry = Some((star, taken + 1));
            p = star + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

const fn any(name: &'static str, about: &'static str) -> Definition {
    Definition { name, about, values: Values::Any }
}

const fn one_of(name: &'static str, values: &'static [&'static str], about: &'static str) -> Definition {
    Definition { name, about, values: Values::OneOf(values) }
}

const fn some_of(name: &'static str, values: &'static [&'static str], about: &'static str) -> Definition {
    Definition { name, about, values: Values::SomeOf(values) }
}

const IP_METHODS: &[&str] = &["dhcp", "static", "firmwaredhcp", "firmwarenone", "none"];

/// Every defined attribute, by family.
#[rustfmt::skip]
pub const DEFINITIONS: &[Definition] = &[
    any("collective.manager", "The member that shall manage the node"),
    any("collective.managercandidates", "The members that may take the node over, as a noderange over members"),
    one_of("collective.managerpolicy", &["spread", "ordered"], "How candidates are ranked: spread over all of them, or in the order written"),
    one_of("collective.failback", &["none", "prefer"], "Whether the preferred manager takes the node back once it returns"),
    one_of("console.logging", &["full", "memory", "interactive", "none"], "How much of the console is logged"),
    one_of("console.method", &["ssh", "ipmi", "openbmc", "tsmsol", "vcenter", "proxmox"], "How the console is reached; no console when unset"),
    any("crypted.grubpassword", "The password that protects the boot menu, as a hash"),
    any("crypted.rootpassword", "The password of the local root account, as a hash"),
    any("crypted.selfapikey", "The key by which the node speaks for itself, as a hash"),
    one_of("deployment.apiarmed", &["once", "continuous"], "Whether the node may fetch a key for itself: for the next request, or always"),
    any("deployment.client_ip", "The address that the node deploys from"),
    one_of("deployment.encryptboot", &["tpm2", "none"], "How the boot volume is encrypted"),
    some_of("deployment.lock", &["autolock", "locked"], "Whether a pending profile is held back, now or after the deployment under way"),
    any("deployment.pendingprofile", "The profile that the next network boot gets"),
    any("deployment.profile", "The profile that was deployed last"),
    any("deployment.sealedapikey", "The node's key, sealed to its TPM"),
    any("deployment.stagedprofile", "The profile that is in place and waits for its last boot"),
    any("deployment.state", "What the profile last reported"),
    any("deployment.state_detail", "Details of what the profile last reported"),
    some_of("deployment.useinsecureprotocols", &["always", "firmware", "never"], "In which phases of a boot TFTP and plain HTTP may be used"),
    any("discovery.nodeconfig", "Settings to apply after the node was discovered"),
    Definition { name: "discovery.passwordrules", about: "Password rules that a discovered management controller gets", values: Values::Keys(&["expiration", "loginfailures", "complexity", "reuse"]) },
    some_of("discovery.policy", &["manual", "permissive", "pxe", "open", "verified"], "How much of a discovery happens without being asked"),
    any("dns.domain", "The domain that the node searches"),
    any("dns.servers", "The name servers of the node"),
    any("enclosure.bay", "The bay of the enclosure that the node sits in"),
    any("enclosure.extends", "The enclosure manager that is one closer to the uplink"),
    any("enclosure.manager", "The manager of the enclosure that the node sits in"),
    Definition { name: "groups", about: "The groups of the node, the first one wins; everything is always the last", values: Values::Groups },
    any("hardwaremanagement.deviceid", "The id under which the device is known to its manager"),
    any("hardwaremanagement.manager", "The address of the management controller, with its prefix length if need be"),
    any("hardwaremanagement.method", "How the hardware is managed; ipmi when unset"),
    any("hardwaremanagement.port", "The port that the management controller uses"),
    any("hardwaremanagement.type", "The kind of device, where managers differ by it"),
    any("hardwaremanagement.vlan", "The VLAN that the management controller tags"),
    any("id.index", "A number of the node"),
    any("id.model", "The model number"),
    any("id.serial", "The serial number"),
    any("id.uuid", "The UUID in the firmware tables"),
    any("info.note", "A note for people"),
    any("location.height", "The height in rack units"),
    any("location.rack", "The rack"),
    any("location.room", "The room"),
    any("location.row", "The row of racks"),
    any("location.u", "The position in the rack"),
    Definition { name: "net.bootable", about: "Whether the interface is booted from", values: Values::Boolean },
    any("net.connection_name", "The name of the connection or team"),
    any("net.hostname", "The names of the node on this network"),
    any("net.hwaddr", "The hardware address"),
    any("net.interface_names", "The interface names that this network is set up on"),
    any("net.ipv4_address", "The IPv4 address, with its prefix length if need be"),
    any("net.ipv4_gateway", "The IPv4 gateway"),
    one_of("net.ipv4_method", IP_METHODS, "Where the IPv4 address comes from"),
    any("net.ipv6_address", "The IPv6 address, with its prefix length if need be"),
    any("net.ipv6_gateway", "The IPv6 gateway"),
    one_of("net.ipv6_method", IP_METHODS, "Where the IPv6 address comes from"),
    any("net.mtu", "The largest packet, in bytes"),
    any("net.switch", "The switch that the interface is plugged into"),
    any("net.switchport", "The port of that switch"),
    one_of("net.team_mode", &["lacp", "loadbalance", "roundrobin", "activebackup", "none"], "How the interfaces of a team share the load"),
    any("net.vlan_id", "The VLAN, or the partition key on InfiniBand"),
    any("ntp.servers", "The time servers of the node"),
    any("power.outlet", "The outlet that feeds the node"),
    any("power.pdu", "The power distribution unit that feeds the node"),
    one_of("pubkeys.addpolicy", &["automatic", "manual"], "Whether an unknown public key is taken when none is known"),
    any("pubkeys.ssh", "The fingerprint of the node's SSH key"),
    any("pubkeys.tls", "The fingerprint of the node's certificate"),
    any("pubkeys.tls_hardwaremanager", "The fingerprint of the management controller's certificate"),
    any("secret.adminpassword", "The password of the local administrator"),
    any("secret.hardwaremanagementpassword", "The password at the management controller"),
    any("secret.hardwaremanagementuser", "The user at the management controller"),
    any("secret.ipmikg", "The integrity key of IPMI"),
    any("secret.selfapiarmtoken", "A token for one request of the node's own key"),
    any("secret.snmpcommunity", "The SNMP community"),
    any("snmp.privacyprotocol", "The privacy protocol of SNMPv3"),
    any("ssh.trustnodes", "The nodes that may log in to the node, as a noderange"),
    any("trusted.subnets", "Remote networks to trust like local ones"),
    one_of("type", &["server", "switch"], "What the node is; a server when unset"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_is_reachable_unique_and_explained() {
        let families = [
            "collective",
            "console",
            "crypted",
            "deployment",
            "discovery",
            "dns",
            "enclosure",
            "groups",
            "hardwaremanagement",
            "id",
            "info",
            "location",
            "net",
            "ntp",
            "power",
            "pubkeys",
            "secret",
            "snmp",
            "ssh",
            "trusted",
            "type",
        ];
        let mut seen = std::collections::BTreeSet::new();
        for found in DEFINITIONS {
            assert!(seen.insert(found.name), "{} is defined twice", found.name);
            assert!(is_known(found.name), "{}", found.name);
            assert!(!found.about.is_empty() && !found.about.ends_with('.'), "{}", found.name);
            assert!(families.contains(&found.name.split('.').next().unwrap_or_default()), "{}", found.name);
        }
        assert_eq!(DEFINITIONS.len(), 78);
    }

    #[test]
    fn an_instance_may_stand_in_the_middle_of_a_network_name() {
        assert_eq!(definition("net.eth0.switch").map(|found| found.name), Some("net.switch"));
        assert_eq!(definition("net.eth0.100.mtu").map(|found| found.name), Some("net.mtu"));
        assert_eq!(definition("power.psu1.outlet").map(|found| found.name), Some("power.outlet"));
        assert!(definition("location.x.rack").is_none());
        assert!(definition("net.eth0.colour").is_none());
        assert!(is_known("custom.owner") && is_known("custom.a.b"));
        assert!(!is_known("custom.") && !is_known("custom") && !is_known("!manager"));
    }

    #[test]
    fn values_are_checked_and_a_blank_is_always_valid() {
        assert!(check_value("console.logging", "full").is_ok());
        assert!(check_value("console.logging", "").is_ok());
        assert_eq!(
            check_value("console.logging", "loud"),
            Err("must be one of full, memory, interactive, none".to_owned())
        );
        assert!(check_value("discovery.policy", "pxe,open").is_ok());
        assert!(check_value("discovery.policy", "pxe,closed").is_err());
        assert!(check_value("discovery.passwordrules", "expiration=no,reuse=yes").is_ok());
        assert!(check_value("discovery.passwordrules", "expiry=no").is_err());
        assert!(check_value("net.eth0.bootable", "yes").is_ok());
        assert!(check_value("net.eth0.bootable", "perhaps").is_err());
        assert!(check_value("custom.x", "a\0b").is_err());
        assert!(check_value("custom.x", &"x".repeat(VALUE_BYTES_MAX + 1)).is_err());
    }

    #[test]
    fn a_mistyped_name_finds_the_one_that_was_meant() {
        assert_eq!(nearest_attribute("location.rak").as_deref(), Some("location.rack"));
        assert_eq!(nearest_attribute("colective.manager").as_deref(), Some("collective.manager"));
        assert_eq!(nearest_attribute("net.eth0.swich").as_deref(), Some("net.eth0.switch"));
        assert_eq!(nearest_attribute("rack").as_deref(), Some("location.rack"));
        assert_eq!(nearest_attribute("entirely.other"), None);
        assert_eq!(nearest("rack9", ["rack1", "rack10", "storage"]), Some("rack1"));
    }

    #[test]
    fn a_star_stands_for_any_run_of_characters() {
        for (pattern, name) in [("*", "x"), ("net.*switch", "net.eth0.switch"), ("a*b*c", "aXbbYc"), ("a*", "a")] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", "ab"), ("*b", "ba"), ("a*b*c", "abb"), ("", "x")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn short_names_stand_for_long_ones() {
        assert_eq!(canonical("bmc"), "hardwaremanagement.manager");
        assert!(is_sealed(canonical("bmcpass")));
        assert_eq!(canonical("location.u"), "location.u");
    }
}
