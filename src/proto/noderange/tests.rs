//! Noderanges, against answers recorded from Confluent and against their own grammar.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

/// Names and groups of a recorded inventory.
#[derive(Default)]
struct Inventory {
    names: BTreeSet<String>,
    groups: BTreeMap<String, Vec<String>>,
}

impl Universe for Inventory {
    fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }
    fn group<'a>(&'a self, name: &str) -> Option<Box<dyn Iterator<Item = &'a str> + 'a>> {
        Some(Box::new(self.groups.get(name)?.iter().map(String::as_str)))
    }
    fn kind(&self) -> &'static str {
        "node or group"
    }
}

fn strings(value: &Value) -> Vec<String> {
    let texts = value.as_array().into_iter().flatten();
    texts.map(|text| text.as_str().expect("a string").to_owned()).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

fn names(text: &str) -> Result<Vec<String>, NoderangeError> {
    expand_names(&parse(text)?)
}

fn inventory(names: &[&str], groups: &[(&str, &[&str])]) -> Inventory {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    Inventory {
        names: owned(names).into_iter().collect(),
        groups: groups.iter().map(|(name, names)| ((*name).to_owned(), owned(names))).collect(),
    }
}

fn problem(text: &str) -> NoderangeProblem {
    let universe = inventory(&["n1", "n2", "n3"], &[("rack1", &["n1", "n2"])]);
    parse(text).and_then(|parsed| expand(&parsed, &universe)).expect_err(text).problem
}

#[test]
fn expansion_agrees_with_what_confluent_recorded() {
    let recorded: Value = serde_json::from_str(include_str!("../testdata/noderange.json")).expect("JSON");
    let universe = Inventory {
        names: recorded["inventory"].as_object().expect("nodes").keys().cloned().collect(),
        groups: recorded["groups"]
            .as_object()
            .expect("groups")
            .iter()
            .map(|(name, group)| (name.clone(), strings(&group["nodes"])))
            .collect(),
    };
    // Confluent is lax here, and its notes say what to do instead: refuse.
    let refused = ["n1,", "n1,,n2", "n1,-"];
    let mut answered = 0;
    for case in recorded["cases"].as_array().expect("cases") {
        let expr = case["expr"].as_str().expect("an expression");
        let found = parse(expr).and_then(|parsed| expand(&parsed, &universe));
        if let Err(NoderangeError { problem: NoderangeProblem::Unsupported(_), .. }) = found {
            assert!(expr.contains(['~', '/', '=', '@', '(', ')', '<', '>', '+']), "{expr} is in this subset");
            continue;
        }
        answered += 1;
        if case.get("error").is_some() || refused.contains(&expr) {
            assert!(found.is_err(), "{expr} should be refused");
        } else {
            assert_eq!(sorted(found.expect(expr)), sorted(strings(&case["nodes"])), "{expr}");
        }
    }
    assert_eq!(answered, 56);
}

#[test]
fn names_without_an_inventory_agree_with_what_confluent_recorded() {
    let recorded: Value = serde_json::from_str(include_str!("../testdata/noderange_noinventory.json")).expect("JSON");
    for case in recorded.as_array().expect("cases") {
        let expr = case["expr"].as_str().expect("an expression");
        let found = names(expr);
        match expr {
            // Confluent makes one node of each of these; its notes call that a mistake.
            "n3-n1" | "a b" => assert!(found.is_err(), "{expr}"),
            _ if expr.contains(['~', '=', '+', '(', '@']) => {
                let problem = found.expect_err(expr).problem;
                assert!(matches!(problem, NoderangeProblem::Unsupported(_)), "{expr}: {problem}");
            }
            _ => assert_eq!(found.expect(expr), strings(&case["nodes"]), "{expr}"),
        }
    }
}

#[test]
fn folding_agrees_with_what_confluent_recorded() {
    let recorded: Value = serde_json::from_str(include_str!("../testdata/fold.json")).expect("JSON");
    for case in recorded.as_array().expect("cases") {
        let nodes = strings(&case["nodes"]);
        let folded = fold(nodes.iter().map(String::as_str));
        assert_eq!(folded, case["abbrev"].as_str().expect("a noderange"));
        assert_eq!(names(&folded).expect("a noderange"), nodes);
    }
}

#[test]
fn folding_keeps_padding_apart_and_reads_well() {
    for (nodes, folded) in [
        ("r3u4,r3u5,r3u6,r3u9,r4u1", "r3u[4:6,9],r4u1"),
        ("n7,n8,n09,n10,n11,n20", "n[7:8],n[09:11,20]"),
        ("n9,n10,n11,n099,n100", "n[9:11],n[099:100]"),
        ("n2,n10,n1,n2", "n[1:2,10]"),
        ("a,n1,b", "a,b,n1"),
        ("1,2,3x", "[1:2],3x"),
        ("n1.site,n2.site", "n[1:2].site"),
        ("r0x,r0x0", "r0x,r0x0"),
        ("", ""),
        ("n1234567890123456789", "n1234567890123456789"),
    ] {
        assert_eq!(fold(nodes.split(',').filter(|name| !name.is_empty())), folded);
    }
}

#[test]
fn terms_are_read_from_left_to_right_and_keep_their_order() {
    let universe = inventory(&["n1", "n2", "n3", "n1-n3"], &[("rack1", &["n1", "n2"]), ("n3", &["n1"])]);
    for (text, expected) in [
        ("n3,rack1", "n3,n1,n2"),
        ("rack1,-n1,n1", "n2,n1"),
        ("n1,-n1", ""),
        ("n[3,1-2]", "n3,n1,n2"),
        (" n2 , n1 ", "n2,n1"),
        ("n1-n3", "n1-n3"),
        ("n1:n3", "n1,n2,n3"),
        ("n1..n2,-n1", "n2"),
        ("rack[1-1]", "n1,n2"),
        ("n[1-3,-2]", "n1,n3"),
    ] {
        let found = parse(text).and_then(|parsed| expand(&parsed, &universe)).expect(text);
        assert_eq!(found.join(","), expected, "{text}");
    }
}

#[test]
fn brackets_multiply_step_and_pad() {
    for (text, expected) in [
        ("r[1-2]u[09-10]", "r1u09,r1u10,r2u09,r2u10"),
        ("n[1..7:3]", "n1,n4,n7"),
        ("n[a,b,7]x", "nax,nbx,n7x"),
        ("[1-2]n", "1n,2n"),
        ("n[8-11]", "n8,n9,n10,n11"),
        ("r1u1-r2u2", "r1u1,r1u2,r2u1,r2u2"),
        ("a-b", "a-b"),
        ("n1-ib", "n1-ib"),
    ] {
        assert_eq!(names(text).expect(text).join(","), expected, "{text}");
    }
}

#[test]
fn an_error_points_at_its_place() {
    let universe = inventory(&["n1"], &[]);
    let found = parse("n1,n99").and_then(|parsed| expand(&parsed, &universe)).expect_err("no n99");
    assert_eq!(found.to_string(), "n99 is not a node or group\n  n1,n99\n     ^");
    assert_eq!(found.column, 4);

    let long = format!("{},n?", vec!["n1"; 100].join(","));
    let found = parse(&long).expect_err("a question mark");
    assert_eq!(found.column, 302);
    assert_eq!(found.excerpt.as_bytes()[found.caret], b'?');
    assert!(found.excerpt.len() < 80);
}

#[test]
fn what_is_no_noderange_says_why() {
    for (text, message) in [
        ("", "a name is missing here"),
        (",n1", "a name is missing here"),
        ("n1,", "a name is missing here"),
        ("n1,-", "a name is missing here"),
        ("-n1", "there is nothing before this to leave names out of; write NAMES,-NAMES"),
        ("n1 n2", "names are separated by commas"),
        ("n[1-3", "this bracket is not closed"),
        ("n1-3]", "this bracket was not opened"),
        ("n[]", "a number is missing here"),
        ("n[1,]", "a number is missing here"),
        ("n[-1]", "there is nothing before this in the brackets to leave out"),
        ("n[1,-1]", "the brackets leave nothing"),
        ("n[a-c]", "a range in brackets goes from number to number"),
        ("n[~1]", "regular expressions cannot stand in brackets"),
        ("n[[1]]", "brackets cannot stand in brackets"),
        ("n[3-1]", "the range runs backwards"),
        ("n[1:9:0]", "a step must not be zero"),
        ("n[1:2:3:4]", "a range has two ends and at most a step"),
        ("n3-n1", "the range runs backwards"),
        ("n1:m2", "the ends of this range are not alike"),
        ("n?", "this cannot stand in a name"),
        ("n1\u{e9}", "this cannot stand in a name"),
    ] {
        assert_eq!(problem(text).to_string(), message, "{text}");
    }
}

#[test]
fn what_comes_later_is_refused_by_name() {
    for (text, message) in [
        ("~n1", "regular expressions are not supported yet"),
        ("/n1", "regular expressions are not supported yet"),
        ("n1@n2", "intersections with @ are not supported yet"),
        ("(n1,n2)", "parentheses are not supported yet"),
        ("rack1>3", "limits with < and > are not supported yet"),
        ("n1+2", "offsets with + are not supported yet"),
        ("location.rack=1", "comparisons of attributes are not supported yet"),
        ("net.*switch!~x", "comparisons of attributes are not supported yet"),
    ] {
        assert_eq!(problem(text).to_string(), message, "{text}");
    }
}

#[test]
fn too_many_names_are_refused_before_they_are_made() {
    for text in [
        "a[1-999999999]",
        "a[1-999999999999999999]",
        "a[1-1000][1-101]",
        "a[0-9][0-9][0-9][0-9][0-9][0-9]",
        "a1-a999999999",
        "a1b1c1-a999b999c999",
    ] {
        assert_eq!(problem(text), NoderangeProblem::TooMany, "{text}");
    }
    assert_eq!(names("a[1-100000]").expect("as many as there may be").len(), NAMES_MAX);
    assert_eq!(names("a[1-100000],b").expect_err("one more").problem, NoderangeProblem::TooMany);
    let repeated = vec!["a[1-100000]"; 100].join(",");
    assert_eq!(problem(&repeated), NoderangeProblem::TooMany);
    let excluded = format!("a[1-99999{}]", ",-1".repeat(1_000));
    assert_eq!(problem(&excluded), NoderangeProblem::TooMany);
    let deep = "[1]".repeat(1_000);
    assert_eq!(problem(&deep).to_string(), "the name has too many brackets");
}

#[test]
fn candidates_that_are_no_members_are_told_apart() {
    let members: BTreeSet<MemberName> = ["mgt1", "mgt2"].map(|name| MemberName::new(name).expect("a name")).into();
    let found = expand_lenient(&parse("mgt3,mgt[2-4],mgt1,rack1").expect("a noderange"), &members).expect("names");
    assert_eq!(found.names, ["mgt2", "mgt1"]);
    assert_eq!(found.unknown, ["mgt3", "mgt4", "rack1"]);
    let strict = expand(&parse("mgt3").expect("a noderange"), &members).expect_err("no member");
    assert_eq!(strict.problem.to_string(), "mgt3 is not a member");
}

proptest! {
    #[test]
    fn reading_never_panics(text in "[-n0-9,\\[\\]:. @~()=<>+a]{0,40}") {
        if let Ok(parsed) = parse(&text) {
            let _ = expand_names(&parsed);
            let _ = expand_lenient(&parsed, &BTreeSet::<MemberName>::new());
        }
    }

    #[test]
    fn reading_anything_never_panics(text in ".{0,40}") {
        if let Err(error) = parse(&text) {
            prop_assert!(error.to_string().contains('^'));
        }
    }

    #[test]
    fn a_folded_set_expands_to_itself(names in proptest::collection::btree_set("[nr]{0,1}[0-2]{1,3}[u.x]{0,1}[0-9]{0,2}", 0..40)) {
        let universe = Inventory { names: names.clone(), ..Inventory::default() };
        let folded = fold(names.iter().map(String::as_str));
        if !names.is_empty() {
            let expanded = parse(&folded).and_then(|parsed| expand(&parsed, &universe));
            prop_assert_eq!(expanded.map(|names| names.into_iter().collect::<BTreeSet<_>>()), Ok(names), "{}", folded);
        }
    }
}
