//! Nodes, groups and attributes: written on one member, read on another.

use crate::site::{PATIENCE, Plan, Site, assemble, settle, three, wait_until};

/// What `ansible-inventory --list` prints; the demo takes in the same file.
const INVENTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/daemon/demo/inventory.json");

#[test]
fn what_is_set_on_one_member_is_read_on_every_other() {
    let sites = three();
    sites[0].ok(&["node", "define", "n[1-3]"]);

    sites[0].ok(&["attrib", "n1", "custom.owner=anna"]);
    sites[1].ok(&["attrib", "n1,n2", "custom.note=two words, a comma and ümlaut"]);
    sites[2].ok(&["attrib", "n3", "custom.empty="]);

    for site in &sites {
        site.sees("n1", "custom.owner", "anna");
        site.sees("n2", "custom.note", "two words, a comma and ümlaut");
        site.sees("n3", "custom.empty", "");
        assert_eq!(site.ok(&["attrib", "n1", "custom.owner"]), "n1: custom.owner: anna\n");
        assert_eq!(site.ok(&["node", "list"]), "n1\nn2\nn3\n");
    }

    sites[2].ok(&["attrib", "n1", "-c", "custom.owner"]);
    sites[2].ok(&["node", "remove", "n3"]);
    for site in &sites {
        wait_until("the attribute is gone", PATIENCE, || site.attribute("n1", "custom.owner").is_none());
        wait_until("the node is gone", PATIENCE, || site.ok(&["node", "list"]) == "n1\nn2\n");
        site.refuses(&["attrib", "n3"], 105);
    }
}

#[test]
fn groups_hand_their_values_down_on_every_member() {
    let sites = three();
    sites[0].ok(&["node", "define", "n[1-3]"]);
    sites[0].ok(&["group", "define", "rack1", "custom.rack=one", "custom.power=a"]);
    sites[1].sees_group("rack1");
    sites[1].ok(&["attrib", "n1,n2", "groups=rack1"]);
    sites[2].sees("n1", "custom.rack", "one");

    // What is set on the node wins; what is set on the group follows.
    sites[2].ok(&["attrib", "n2", "custom.rack=own"]);
    sites[2].ok(&["attrib", "--group", "rack1", "custom.power=b"]);
    for site in &sites {
        site.sees("n1", "custom.power", "b");
        site.sees("n2", "custom.rack", "own");
        let document = site.json(&["attrib", "n1", "custom.rack"]);
        assert_eq!(document["schema"], "collective.attributes/1");
        assert_eq!(document["nodes"][0]["attributes"]["custom.rack"]["inherited_from"], "rack1");
        assert_eq!(site.attribute("n3", "custom.rack"), None);
    }

    // A group is a noderange.
    wait_until("the group has its nodes", PATIENCE, || sites[2].ok(&["range", "expand", "rack1"]) == "n1\nn2\n");
    assert_eq!(sites[2].ok(&["range", "fold", "n1,n2,n3"]), "n[1:3]\n");
    assert_eq!(sites[2].ok(&["range", "count", "rack1,-n1"]), "1\n");
    assert!(sites[2].ok(&["group", "list"]).contains("rack1"));
}

impl Site {
    #[track_caller]
    fn sees_group(&self, group: &str) {
        wait_until("the group is there", PATIENCE, || self.run(&["group", "list"]).stdout.contains(group));
    }
}

#[test]
fn an_inventory_of_ansible_is_taken_in_and_every_node_gets_a_manager() {
    let sites = three();

    let dry = sites[1].ok(&["node", "import", INVENTORY, "--dry-run"]);
    assert!(!dry.is_empty());
    assert_eq!(sites[1].ok(&["node", "list"]), "");
    sites[1].ok(&["node", "import", INVENTORY]);

    for site in &sites {
        wait_until("all nodes are there", PATIENCE, || site.ok(&["node", "list", "-o", "fold"]) == "n[1:12]\n");
        site.sees("n7", "location.rack", "2");
        site.sees("n12", "collective.managercandidates", "mgt[1-3]");
        wait_until("every node is managed", PATIENCE, || {
            let managers = site.json(&["managers"]);
            let nodes = managers["nodes"].as_array().expect("a list").clone();
            nodes.len() == 12 && nodes.iter().all(|node| node["manager"].is_string())
        });
    }
    assert_eq!(sites[2].ok(&["range", "expand", "rack2,-n[8-12]"]), "n7\n");
    let by_member = sites[0].ok(&["managers", "--by-member"]);
    for name in ["mgt1", "mgt2", "mgt3"] {
        assert!(by_member.contains(name), "{by_member}");
    }
    let why = sites[0].ok(&["managers", "n7", "--why"]);
    for word in ["n7", "manager", "candidates", "token", "reason"] {
        assert!(why.contains(word), "{word} in {why}");
    }
    // Taken in once more, nothing changes.
    let again = sites[1].ok(&["node", "import", INVENTORY]);
    assert!(again.contains("no") || again.contains("0"), "{again}");
}

#[test]
fn a_broken_inventory_changes_nothing() {
    let site = Site::on_loopback("mgt1");
    for text in [r#"{"all": {"hosts": ["n1", "b@d name"]}}"#, "{", r#"{"all": 7}"#, "\u{0}\u{1}"] {
        let output = site.run_with(&["node", "import", "-"], text);
        output.refused(65);
    }
    assert_eq!(site.ok(&["node", "list"]), "");
    site.refuses(&["node", "import", "/nonexistent/inventory.json"], 65);
}

#[test]
fn concurrent_writers_lose_nothing() {
    let sites = three();
    sites[0].ok(&["node", "define", "n1"]);
    for site in &sites {
        wait_until("the node is there", PATIENCE, || site.ok(&["node", "list"]) == "n1\n");
    }

    std::thread::scope(|scope| {
        for site in &sites {
            scope.spawn(move || {
                for round in 0..15 {
                    site.ok(&["attrib", "n1", &format!("custom.{}-{round}={round}", site.name())]);
                }
            });
        }
    });

    for site in &sites {
        for author in &sites {
            for round in 0..15 {
                site.sees("n1", &format!("custom.{}-{round}", author.name()), &round.to_string());
            }
        }
    }
}

#[test]
fn a_write_that_touches_many_nodes_must_be_insisted_on() {
    let site = Site::on_loopback("mgt1");
    site.ok(&["node", "define", "n[1-501]"]);

    let text = site.refuses(&["attrib", "n[1-501]", "custom.x=1"], 107);
    assert!(text.contains("--yes"), "{text}");
    site.refuses(&["node", "remove", "n[1-501]"], 107);

    site.ok(&["attrib", "n[1-501]", "custom.x=1", "-y"]);
    assert_eq!(site.attribute("n501", "custom.x").as_deref(), Some("1"));
    site.ok(&["node", "remove", "n[1-501]", "--dry-run"]);
    assert_eq!(site.ok(&["range", "count", "n[1-501]"]), "501\n");
}

#[test]
fn a_large_inventory_is_taken_in_while_the_collective_goes_on() {
    const NODES: usize = 4_000;
    let sites = ["mgt1", "mgt2", "mgt3"].map(|name| Plan::new(name).lan().start());
    assemble(&sites);
    let columns: Vec<_> = (0..20).map(|column| format!("custom.a{column:02}")).collect();
    let mut text = format!("node,groups,collective.managercandidates,{}\n", columns.join(","));
    for node in 1..=NODES {
        let values: Vec<_> = (0..20).map(|column| format!("value-{column}-{node}")).collect();
        text += &format!("n{node},racks,mgt[1-3],{}\n", values.join(","));
    }
    let file = sites[0].home().join("inventory.csv");
    std::fs::write(&file, text).expect("a file in our own directory");
    let since = sites.each_ref().map(|site| site.log().matches("QuorumLost").count());

    let imported = sites[0].ok(&["node", "import", &file.display().to_string()]);

    assert!(imported.starts_with(&format!("{NODES} nodes and 1 groups imported")), "{imported}");
    settle(&sites.iter().collect::<Vec<_>>());
    for (site, before) in sites.iter().zip(since) {
        assert_eq!(site.ok(&["node", "list"]).lines().count(), NODES);
        assert_eq!(site.attribute("n77", "custom.a19").as_deref(), Some("value-19-77"));
        assert_eq!(site.log().matches("QuorumLost").count(), before, "{}", site.log());
    }
}
