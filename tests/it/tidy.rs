//! What the sources may say: who imports whom, what no file may hold, and that pages and sources move together.
//!
//! docs/architecture.md explains the rooms; the tables here are the same rules for a machine. Comments are left out
//! before a word is looked for, so a page may name what the code may not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use ring::digest::{SHA256, digest};

/// Lines of the longest file that still has one subject.
const LINES_MAX: usize = 1_000;

/// The rooms below `src`, and which of the others each may import.
const ROOMS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("gossip", &["proto"]),
    ("net", &["proto"]),
    ("store", &["proto"]),
    ("actions", &["proto"]),
    ("admin", &["proto"]),
    ("config", &["proto"]),
    ("cli", &["admin", "config", "proto"]),
    ("daemon", &["actions", "admin", "config", "gossip", "net", "proto", "store"]),
];

/// Crates that belong to some rooms alone, so that what is bought can be exchanged in one place.
const OWNERS: &[(&str, &[&str])] = &[
    ("chitchat", &["src/gossip"]),
    ("quinn", &["src/net", "sim/src/quic"]),
    ("rustls", &["src/net", "sim/src/quic"]),
    // The tests of src/store make real certificates to keep.
    ("rcgen", &["src/net", "src/store"]),
    ("redb", &["src/store", "sim/src/quic"]),
    ("automerge", &["src/proto/document"]),
    ("axum", &["src/admin"]),
    ("hyper", &["src/admin"]),
    ("comfy_table", &["src/cli", "sim"]),
    ("rpassword", &["src/cli", "src/bin/collective.rs"]),
    ("clap", &["src/cli", "src/config", "src/bin", "sim"]),
];

/// Words that a room may not name, and why.
const FORBIDDEN: &[(&str, &[&str], &str)] = &[
    ("src/proto", &["tokio", "async", "await"], "the core runs nothing and waits for nothing"),
    (
        "src/proto",
        &["std::fs", "fs_err", "std::env", "std::process", "std::thread", "std::io::stdin", "rustix"],
        "the core has no files and no surroundings",
    ),
    ("src/proto", &["TcpStream", "TcpListener", "UdpSocket", "UnixStream", "ToSocketAddrs"], "the core has no sockets"),
    (
        "src/proto",
        &["Instant::now", "SystemTime", "std::time::Instant", "time::Instant::now"],
        "time comes in with the event",
    ),
    (
        "src/proto",
        &["HashMap", "HashSet", "RandomState"],
        "the order of a hash differs from run to run; use BTreeMap or BTreeSet",
    ),
    ("src/proto", &["SystemRandom", "thread_rng", "OsRng", "getrandom"], "randomness comes in with the event"),
    ("src/proto", &["tracing"], "what people shall read is an effect"),
    ("src/cli", &["quinn", "chitchat", "automerge", "redb"], "the command line only asks and prints"),
    ("sim", &["collective::cli"], "the simulator is a shell of its own"),
    ("sim/src/world", &["collective::admin", "collective::actions"], "a simulated member has no sockets and no jobs"),
    ("sim/src/quic", &["collective::admin", "collective::actions"], "a simulated machine has no sockets and no jobs"),
];

/// What stands in no source, and what to write instead.
const NOWHERE: &[(&str, &str)] = &[
    ("todo!", "finish it"),
    ("unimplemented!", "finish it"),
    ("#[ignore", "a test that does not run shows nothing"),
    ("allow(dead_code)", "take the dead code out"),
    ("unsafe {", "there is no unsafe code here"),
];

/// What stands in one source all the same: the simulator's stand-in for one function of the C library.
const HERE_ALONE: (&str, &str) = ("unsafe {", "sim/src/quic/entropy.rs");

/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &["/home/", "/root/", "/Users/", "/work/"];

/// How much of a file docs/protocol.md describes.
enum Described {
    /// Everything but its tests.
    All,
    /// The items that are encoded or decoded, numbers that are told, and constants.
    Encoded,
}
use Described::{All, Encoded};

/// The sources that docs/protocol.md describes.
const PROTOCOL: &[(&str, Described)] = &[
    ("src/proto/message.rs", All),
    ("src/proto/swim/frame.rs", All),
    ("src/proto/lease/mod.rs", Encoded),
    ("src/proto/epoch/mod.rs", Encoded),
    ("src/proto/sync/frame.rs", Encoded),
    ("src/proto/invite/join.rs", All),
    ("src/proto/roster.rs", Encoded),
    ("src/proto/roster/change.rs", Encoded),
    ("src/proto/roster/member.rs", Encoded),
    ("src/proto/roster/timing.rs", Encoded),
    ("src/proto/identity.rs", All),
    ("src/proto/name.rs", Encoded),
    ("src/proto/document/key.rs", Encoded),
    ("src/gossip/wire.rs", Encoded),
    ("src/gossip/facts.rs", All),
    ("src/net/link.rs", Encoded),
    ("src/net/tls.rs", Encoded),
    ("src/net/mod.rs", Encoded),
];

// The sources.

#[test]
fn each_room_imports_only_what_it_may() {
    let mut sins = Vec::new();
    for (path, text) in sources() {
        sins.extend(import_sins(&path, &text));
    }
    assert_none(&sins);
}

#[test]
fn each_room_names_only_what_it_may() {
    let mut sins = Vec::new();
    for (path, text) in sources() {
        sins.extend(word_sins(&path, &text));
    }
    assert_none(&sins);
}

#[test]
fn every_file_is_finished_and_has_one_subject() {
    let mut sins = Vec::new();
    for (path, text) in sources() {
        sins.extend(file_sins(&path, &text));
    }
    assert_none(&sins);
}

#[test]
fn no_page_names_a_path_of_one_machine() {
    let mut sins = Vec::new();
    for ext in ["md", "toml", "service", "conf"] {
        for path in files(ext) {
            sins.extend(machine_sins(&path, &read(&path)));
        }
    }
    assert_none(&sins);
}

#[test]
fn every_link_between_pages_leads_somewhere() {
    let mut sins = Vec::new();
    for path in files("md") {
        let folder = Path::new(&path).parent().unwrap_or(Path::new("")).to_path_buf();
        for link in links(&read(&path)) {
            if !root().join(&folder).join(&link).exists() {
                sins.push(format!("{path}: the link to {link} leads nowhere"));
            }
        }
    }
    assert_none(&sins);
}

#[test]
fn every_decision_has_its_four_parts() {
    let mut sins = Vec::new();
    for path in files("md").into_iter().filter(|path| path.starts_with("docs/decisions/0")) {
        let text = read(&path);
        for part in ["Context", "Decision", "Alternatives", "Consequences"] {
            let (heading, run_in) = (format!("## {part}"), format!("**{part}.**"));
            if !text.lines().any(|line| line == heading || line.starts_with(&run_in)) {
                sins.push(format!("{path}: there is no {part}"));
            }
        }
    }
    assert_none(&sins);
}

/// `UPDATE=1 cargo test --test it tidy` writes the line anew, once the page says what has changed.
#[test]
fn the_page_of_the_protocol_moves_with_its_sources() {
    const MARK: &str = "<!-- describes the wire, sha256 ";
    let mut described = String::new();
    for (path, how) in PROTOCOL {
        described.push_str(&described_part(&read(path), how));
    }
    let line = format!("{MARK}{} -->", HEXLOWER.encode(digest(&SHA256, described.as_bytes()).as_ref()));
    let page = root().join("docs/protocol.md");
    let text = std::fs::read_to_string(&page).expect("docs/protocol.md is there");
    if std::env::var_os("UPDATE").is_some() {
        let lines: Vec<_> = text.lines().map(|old| if old.starts_with(MARK) { &line } else { old }).collect();
        std::fs::write(&page, lines.join("\n") + "\n").expect("docs/protocol.md can be written");
        return;
    }
    assert!(
        text.lines().any(|old| old == line),
        "the wire format changed: say so in docs/protocol.md, then put this line there:\n{line}"
    );
    for (path, _) in PROTOCOL {
        assert!(text.contains(path), "docs/protocol.md does not say that it describes {path}");
    }
}

// The checks bite.

#[test]
fn a_bad_import_is_found_however_it_is_written() {
    for bad in [
        "use crate::net::Net;",
        "use crate::{net, proto};",
        "use crate::{\n    proto::name,\n    daemon::{run, Options},\n};",
        "fn f() { crate::store::load_identity(); }",
        "use super::super::gossip::Gossip;",
    ] {
        assert_eq!(import_sins("src/proto/roster.rs", bad).len(), 1, "{bad}");
    }
    assert_eq!(import_sins("src/cli/mod.rs", "use crate::daemon::run;").len(), 1);
    assert_eq!(import_sins("src/net/mod.rs", "use crate::gossip::Gossip;").len(), 1);
    for good in [
        "use crate::proto::name::NodeName;",
        "use super::time::Instant;",
        "// use crate::net::Net;",
        "let text = \"crate::net::Net\";",
        "pub(crate) struct X;",
    ] {
        assert_eq!(import_sins("src/proto/roster.rs", good), Vec::<String>::new(), "{good}");
    }
    assert_eq!(import_sins("src/daemon/driver.rs", "use crate::net::Net;"), Vec::<String>::new());
}

#[test]
fn a_bad_word_is_found_and_a_word_like_it_is_not() {
    for (path, bad) in [
        ("src/proto/swim.rs", "let now = Instant::now();"),
        ("src/proto/swim.rs", "use std::collections::HashMap;"),
        ("src/proto/swim.rs", "use tokio::time::sleep;"),
        ("src/proto/swim.rs", "let text = std::fs::read(path);"),
        ("src/daemon/driver.rs", "use chitchat::Chitchat;"),
        ("src/gossip.rs", "use quinn::Endpoint;"),
        ("src/daemon/driver.rs", "let db = redb::Database::create(path);"),
        ("src/cli/mod.rs", "use automerge::AutoCommit;"),
        ("sim/src/main.rs", "use collective::cli::run;"),
    ] {
        assert!(!word_sins(path, bad).is_empty(), "{path}: {bad}");
    }
    for (path, good) in [
        ("src/proto/swim.rs", "let now = MyInstant::nowhere(); // Instant::now"),
        ("src/proto/swim.rs", "let text = \"tokio\"; let c = '\"'; let d = \"HashMap\";"),
        ("src/proto/swim.rs", "let raw = r#\"a \" HashMap\"#;"),
        ("src/gossip/wire.rs", "use chitchat::ChitchatMessage;"),
        ("src/net/tls.rs", "use rustls::sign::CertifiedKey;"),
        ("src/proto/document/vet.rs", "use automerge::Change;"),
    ] {
        assert_eq!(word_sins(path, good), Vec::<String>::new(), "{path}: {good}");
    }
}

#[test]
fn an_unfinished_file_is_found() {
    let long = format!("//! Long.\n{}", "\n".repeat(LINES_MAX));
    for bad in [
        "//! A.\nfn f() { todo!() }",
        "//! A.\nfn f() { unimplemented!() }",
        "//! A.\n#[ignore]\nfn f() {}",
        "//! A.\n#[ignore = \"slow\"]\nfn f() {}",
        "//! A.\n#[allow(dead_code)]\nfn f() {}",
        "//! A.\nconst P: &str = \"/home/me/x\";",
        "fn f() {}",
        &long,
    ] {
        assert_eq!(file_sins("src/x.rs", bad).len(), 1, "{bad}");
    }
    assert_eq!(file_sins("src/x.rs", "//! A.\n// There is no todo! here.\nfn f() {}"), Vec::<String>::new());
}

#[test]
fn the_hash_of_the_protocol_moves_with_the_wire_and_not_with_a_comment() {
    let before = "/// A.\n#[derive(Encode)]\nstruct A {\n    #[n(0)]\n    a: u8,\n}\nfn f() { 1 }\nconst N: u8 = 1;\n";
    let part = |text: &str| described_part(text, &Encoded);
    assert_eq!(part(before), part(&before.replace("/// A.", "/// Another word.")));
    assert_eq!(part(before), part(&before.replace("{ 1 }", "{ 2 }")));
    assert_eq!(part(before), part(&format!("{before}#[cfg(test)]\nmod tests {{\n    const X: u8 = 2;\n}}\n")));
    assert_ne!(part(before), part(&before.replace("#[n(0)]", "#[n(1)]")));
    assert_ne!(part(before), part(&before.replace("u8 = 1", "u8 = 2")));
    let all = |text: &str| described_part(text, &All);
    assert_ne!(all(before), all(&before.replace("{ 1 }", "{ 2 }")));
}

// How it is looked for.

fn import_sins(path: &str, text: &str) -> Vec<String> {
    let Some(room) = room_of(path) else { return Vec::new() };
    let Some((_, allowed)) = ROOMS.iter().find(|(name, _)| *name == room) else { return Vec::new() };
    let mut sins = Vec::new();
    for (line, other) in rooms_named(path, &code_of(text)) {
        if other != room && !allowed.contains(&other) {
            sins.push(format!("{path}:{line}: {room} may not import {other}"));
        }
    }
    sins
}

/// Returns the rooms that a source names through `crate::` or through enough `super::`, with the line of each.
fn rooms_named(path: &str, code: &str) -> Vec<(usize, &'static str)> {
    let to_root = depth(path);
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        let rest = &code[at..];
        if !is_word_start(code, at) {
            at += rest.chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let root = if let Some(rest) = rest.strip_prefix("crate::") {
            Some(rest)
        } else {
            let mut rest = rest;
            let mut supers = 0;
            while let Some(after) = rest.strip_prefix("super::") {
                rest = after;
                supers += 1;
            }
            (supers >= to_root).then_some(rest).filter(|_| supers > 0)
        };
        if let Some(rest) = root {
            let line = line_of(code, at);
            found.extend(heads(rest).into_iter().filter_map(|head| Some((line, room_named(&head)?))));
        }
        at += rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()).max(1);
        while code.get(at..).is_some_and(|rest| rest.starts_with("::super")) {
            at += "::super".len();
        }
    }
    found
}

/// Returns the first words of a path, or of each path of a group in braces.
fn heads(rest: &str) -> Vec<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
    let Some(group) = rest.strip_prefix('{') else { return vec![word(rest)] };
    let mut heads = vec![word(group)];
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => heads.push(word(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    heads
}

fn word_sins(path: &str, text: &str) -> Vec<String> {
    let code = code_of(text);
    let mut sins = Vec::new();
    for (word, owners) in OWNERS {
        let is_owner = owners.iter().any(|owner| path.starts_with(owner));
        if !is_owner && !path.starts_with("tests/") {
            for line in lines_with(&code, word, |after| after.starts_with("::") || after.starts_with(';')) {
                sins.push(format!("{path}:{line}: {word} may be named in {} only", owners.join(" and ")));
            }
        }
    }
    for (room, words, why) in FORBIDDEN {
        if path.starts_with(room) {
            for word in *words {
                for line in lines_with(&code, word, |_| true) {
                    sins.push(format!("{path}:{line}: {room} may not name {word}: {why}"));
                }
            }
        }
    }
    sins
}

fn file_sins(path: &str, text: &str) -> Vec<String> {
    let mut sins = Vec::new();
    if !text.starts_with("//! ") {
        sins.push(format!("{path}: it does not begin with a sentence about itself (`//! `)"));
    }
    let lines = text.lines().count();
    if lines > LINES_MAX {
        sins.push(format!("{path}: {lines} lines; split it by subject"));
    }
    let code = code_of(text);
    for (sin, instead) in NOWHERE.iter().filter(|(sin, _)| (*sin, path) != HERE_ALONE) {
        if let Some(at) = code.find(sin) {
            sins.push(format!("{path}:{}: `{sin}`: {instead}", line_of(&code, at)));
        }
    }
    sins.extend(machine_sins(path, text));
    sins
}

fn machine_sins(path: &str, text: &str) -> Vec<String> {
    if path == "tests/it/tidy.rs" {
        return Vec::new(); // It names what it looks for.
    }
    let found = MACHINE_PATHS.iter().filter_map(|start| Some((text.find(start)?, start)));
    found.map(|(at, start)| format!("{path}:{}: a path of one machine: {start}", line_of(text, at))).collect()
}

/// Returns the lines that have `word` as a word, where what stands behind it is as `then` wants it.
fn lines_with(code: &str, word: &str, then: impl Fn(&str) -> bool) -> Vec<usize> {
    code.match_indices(word)
        .filter(|(at, _)| is_word_start(code, *at))
        .filter(|(at, _)| {
            let after = &code[at + word.len()..];
            !after.starts_with(is_word) && then(after)
        })
        .map(|(at, _)| line_of(code, at))
        .collect()
}

fn described_part(text: &str, how: &Described) -> String {
    let code = without_comments(text.split("#[cfg(test)]\nmod").next().unwrap_or_default(), true);
    let items = items(&code).into_iter().filter(|item| match how {
        All => true,
        Encoded => {
            !item.starts_with("use ")
                && (item.contains("const ") && !item.contains('{')
                    || ["Encode", "Decode", "#[repr("].iter().any(|mark| item.contains(mark)))
        }
    });
    // Spaces are the formatter's business.
    items.map(|item| item.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect()
}

/// Cuts a source into its items: what ends with `;` or `}` outside all brackets.
fn items(code: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut depth, mut from, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for (at, c) in code.char_indices() {
        if quoted {
            (quoted, escaped) = (c != '"' || escaped, c == '\\' && !escaped);
            continue;
        }
        match c {
            '"' => quoted = true,
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 && matches!(c, ';' | '}') {
            items.push(code[from..=at].trim());
            from = at + 1;
        }
    }
    items
}

/// Returns a source without comments and without what stands in quotes; every line stays on its line.
fn code_of(text: &str) -> String {
    without_comments(text, false)
}

fn without_comments(text: &str, keep_texts: bool) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let before_is_word = code.chars().next_back().is_some_and(is_word);
        let (len, keep) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (rest.find("*/").map_or(rest.len(), |end| end + 2), false)
        } else if let Some(len) = raw_text(rest).filter(|_| !before_is_word) {
            (len, keep_texts)
        } else if c == '"' {
            (quoted(rest), keep_texts)
        } else if let Some(len) = char_literal(rest) {
            // A quote as a character would upset whoever looks for quotes next.
            (len, false)
        } else {
            (c.len_utf8(), true)
        };
        let (taken, after) = rest.split_at(len);
        if keep {
            code.push_str(taken);
        } else {
            code.extend(taken.chars().filter(|c| *c == '\n'));
        }
        rest = after;
    }
    code
}

/// Returns the length of a text in double quotes.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            '"' if !escaped => return at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    rest.len()
}

/// Returns the length of a raw text such as `r#"…"#`, if one begins here.
fn raw_text(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    let head = rest.len() - after.len() + hashes + 1;
    Some(rest[head..].find(&end).map_or(rest.len(), |at| head + at + end.len()))
}

/// Returns the length of a character in single quotes, if one begins here and not a lifetime.
fn char_literal(rest: &str) -> Option<usize> {
    let mut chars = rest.strip_prefix('\'')?.chars();
    match chars.next()? {
        '\\' => Some(rest[2..].char_indices().skip(1).find(|(_, c)| *c == '\'')?.0 + 3),
        c => (chars.next()? == '\'').then_some(c.len_utf8() + 2),
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_word_start(code: &str, at: usize) -> bool {
    !code[..at].ends_with(is_word)
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Returns the room that a source belongs to.
fn room_of(path: &str) -> Option<&'static str> {
    let first = path.strip_prefix("src/")?.split(['/', '.']).next()?;
    room_named(first)
}

fn room_named(word: &str) -> Option<&'static str> {
    ROOMS.iter().map(|(name, _)| *name).find(|name| *name == word)
}

/// Returns how many `super` lead from a module to the root.
fn depth(path: &str) -> usize {
    let parts = path.trim_start_matches("src/").trim_end_matches(".rs").split('/');
    parts.filter(|part| *part != "mod").count()
}

/// Returns where links of a page lead, those to the web left out.
fn links(page: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        if fenced {
            continue;
        }
        for (at, _) in line.match_indices("](") {
            let target: String = line[at + 2..].chars().take_while(|c| !")#".contains(*c)).collect();
            if !target.is_empty() && !target.contains("://") && !target.contains(' ') {
                links.push(target);
            }
        }
    }
    links
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns every Rust source of the project by its path.
fn sources() -> BTreeMap<String, String> {
    let sources: BTreeMap<_, _> = files("rs").into_iter().map(|path| (path.clone(), read(&path))).collect();
    assert!(sources.len() > 100, "the sources were not found");
    sources
}

/// Returns the files of that extension, relative to the project.
fn files(extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("a file of the project").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                let relative = path.strip_prefix(root()).expect("below the project");
                found.push(relative.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn assert_none(sins: &[String]) {
    assert!(sins.is_empty(), "\n{}\n", sins.join("\n"));
}
