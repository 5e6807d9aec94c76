//! Confluent's command names: when called by one of them, the command line is translated to ours.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// The names that are understood, for `collective gen links`.
pub(super) const NAMES: [&str; 9] = [
    "nodeattrib",
    "nodegroupattrib",
    "nodelist",
    "nodedefine",
    "noderemove",
    "nodegroupdefine",
    "nodegroupremove",
    "nodegrouplist",
    "noderange",
];

/// Translates a command line whose first word is one of Confluent's names; others are returned as they are.
pub(super) fn translate(args: Vec<OsString>) -> Vec<OsString> {
    let Some((program, rest)) = args.split_first() else { return args };
    let name = Path::new(program).file_name().and_then(OsStr::to_str).unwrap_or_default();
    // Confluent's tools take the noderange first, then attributes.
    let words = words(rest);
    let command: &[&str] = match name {
        "nodeattrib" => &["attrib"],
        "nodegroupattrib" => &["attrib", "--group"],
        "nodelist" if words.len() > 1 => &["attrib"],
        "nodelist" => &["node", "list"],
        "nodedefine" => &["node", "define"],
        "noderemove" => &["node", "remove"],
        "nodegroupdefine" => &["group", "define"],
        "nodegroupremove" => &["group", "remove"],
        "nodegrouplist" if !words.is_empty() => &["attrib", "--group"],
        "nodegrouplist" => &["group", "list"],
        "noderange" => &["range", "expand"],
        _ => return args,
    };
    let mut rest = rest.to_vec();
    if command[0] == "attrib" {
        for word in &mut rest {
            // `-s FILE` is Confluent's batch file; ours is the socket.
            if word == "-s" {
                *word = "--set".into();
            }
        }
    }
    if command == ["attrib", "--group"] {
        // `--group` takes the first word, wherever options stand.
        if let Some(place) = words.first() {
            let group = rest.remove(*place);
            rest.insert(0, group);
        }
    }
    let program = std::iter::once(OsString::from("collective"));
    program.chain(command.iter().map(OsString::from)).chain(rest).collect()
}

/// Returns the places of the words that are neither options nor their values.
fn words(args: &[OsString]) -> Vec<usize> {
    let mut places = Vec::new();
    let mut is_value = false;
    for (place, word) in args.iter().enumerate() {
        if !is_value && !word.as_encoded_bytes().starts_with(b"-") {
            places.push(place);
        }
        is_value = WITH_VALUE.iter().any(|option| word == option);
    }
    places
}

/// The options that take the next word as their value.
const WITH_VALUE: [&str; 8] = ["-s", "--set", "--socket", "-o", "--output", "--color", "--timeout", "--wait"];

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(line: &str) -> String {
        let args = translate(line.split(' ').map(OsString::from).collect());
        args.join(OsStr::new(" ")).into_string().expect("text")
    }

    #[test]
    fn confluents_names_become_our_commands() {
        for (theirs, ours) in [
            ("/usr/bin/nodeattrib n1 collective.manager=mgt1", "collective attrib n1 collective.manager=mgt1"),
            ("nodeattrib -b n1", "collective attrib -b n1"),
            ("nodeattrib n1 -s file", "collective attrib n1 --set file"),
            (
                "nodegroupattrib rack1 collective.manager=mgt1",
                "collective attrib --group rack1 collective.manager=mgt1",
            ),
            ("nodegroupattrib -c rack1 custom.x", "collective attrib --group rack1 -c custom.x"),
            ("nodelist", "collective node list"),
            ("nodelist rack1", "collective node list rack1"),
            ("nodelist rack1 location.rack", "collective attrib rack1 location.rack"),
            ("nodedefine n[1-3] groups=rack1", "collective node define n[1-3] groups=rack1"),
            ("noderemove n1", "collective node remove n1"),
            ("nodegroupdefine rack1", "collective group define rack1"),
            ("nodegroupremove rack1", "collective group remove rack1"),
            ("nodelist rack1 -o fold", "collective node list rack1 -o fold"),
            ("nodegroupattrib -s file rack1", "collective attrib --group rack1 --set file"),
            ("nodegrouplist", "collective group list"),
            ("nodegrouplist rack1", "collective attrib --group rack1"),
            ("noderange n[1-3]", "collective range expand n[1-3]"),
        ] {
            assert_eq!(translated(theirs), ours);
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        assert_eq!(translated("/x/collective show -s /a"), "/x/collective show -s /a");
    }
}
