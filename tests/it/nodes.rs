//! Nodes of which every member manages some, and who manages them.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::site::{PATIENCE, Site, wait_until};

/// The nodes of [`define_nodes`].
pub(crate) const NODES: &str = "n[1-12]";
/// How many they are.
const COUNT: usize = 12;

/// Defines nodes that `mgt1` to `mgt3` may manage, and waits until each of these manages its four, as all see it.
///
/// Which member is preferred is in the order of the candidates: the default, a hash, may leave one without any.
#[track_caller]
pub(crate) fn define_nodes(sites: &[Site]) {
    for (nodes, candidates) in
        [("n[1-4]", "mgt1,mgt2,mgt3"), ("n[5-8]", "mgt2,mgt3,mgt1"), ("n[9-12]", "mgt3,mgt1,mgt2")]
    {
        let candidates = format!("collective.managercandidates={candidates}");
        sites[0].ok(&["node", "define", nodes, "collective.managerpolicy=ordered", &candidates]);
    }
    for site in sites {
        wait_until(&format!("{} sees each member manage its nodes", site.name()), PATIENCE, || {
            ["mgt1", "mgt2", "mgt3"].iter().all(|name| manages(site, name) == 4)
        });
    }
}

/// Returns every node with its manager, as a member answers it.
pub(crate) fn managers(site: &Site) -> Vec<(String, Option<String>)> {
    let output = site.run(&["managers", "-o", "json"]);
    let document: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
    let nodes = document["nodes"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    nodes.iter().filter_map(|node| Some((text(&node["node"])?, text(&node["manager"])))).collect()
}

/// Returns how many nodes a member manages, as another answers it.
pub(crate) fn manages(site: &Site, name: &str) -> usize {
    managers(site).iter().filter(|(_, manager)| manager.as_deref() == Some(name)).count()
}

/// Waits until every node has a manager, none that one, as a member sees it; returns how long ago `since` is then.
#[track_caller]
pub(crate) fn taken_over(site: &Site, from: &str, since: Instant) -> Duration {
    wait_until(&format!("{} sees the nodes of {from} taken over", site.name()), PATIENCE, || {
        let managers = managers(site);
        managers.len() == COUNT
            && managers.iter().all(|(_, manager)| manager.as_deref().is_some_and(|name| name != from))
    });
    since.elapsed()
}
