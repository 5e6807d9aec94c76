//! What goes wrong: each case has its exit code and its line with the next step.

use super::*;

#[test]
fn every_refusal_has_its_exit_code_and_its_two_lines() {
    use ErrorCode::*;
    for (code, exit) in [
        (Failure, 1),
        (Usage, 64),
        (BadData, 65),
        (Unreachable, 69),
        (Internal, 70),
        (TryAgain, 75),
        (VersionMismatch, 76),
        (Permission, 77),
        (Configuration, 78),
        (ProofFailed, 104),
        (NotFound, 105),
        (NoQuorum, 106),
        (NeedsForce, 107),
        (Exists, 108),
        (Indeterminate, 109),
        (InviteSpent, 110),
        (TimedOut, 124),
    ] {
        let daemon = Daemon::start(move |_| Refusal::new(code, "what and why", "the next command").into());
        let answer = daemon.run("collective leave");
        assert_eq!(answer.code, exit);
        assert_eq!(
            (answer.out.as_str(), answer.err.as_str()),
            ("", "collective: what and why\nhint: the next command\n")
        );
        let answer = daemon.run("collective leave -o json");
        let document: serde_json::Value = serde_json::from_str(&answer.out).expect("json");
        assert_eq!((answer.code, &document["error"]["exit"]), (exit, &serde_json::json!(exit)));
        assert_eq!(answer.err, "");
    }
}

#[test]
fn a_wrong_command_line_exits_64_and_help_exits_0() {
    for line in ["collective nonsense", "collective delete", "collective show --what", "collective wait", "collective"]
    {
        let answer = Call::new(line).run();
        assert_eq!((answer.code, answer.out.as_str()), (64, ""), "{answer:?}");
    }
    let answer = Call::new("collective delete").run();
    assert_eq!(answer.err.lines().count(), 2, "{}", answer.err);
    assert!(answer.err.starts_with("collective: the following required arguments were not provided: <MEMBER>\nhint: "));
    assert!(Call::new("collective delete -o json").run().out.starts_with("{\"error\":{\"code\":\"usage\",\"exit\":64"));
    for line in [
        "collective --help",
        "collective attrib -h",
        "collective --version",
        "collective help",
        "collective help node import",
        "collective help exit-codes",
        "collective help noderange",
        "collective help environment",
        "collective help files",
    ] {
        let answer = Call::new(line).run();
        assert!(answer.code == 0 && !answer.out.is_empty() && answer.err.is_empty(), "{line}: {answer:?}");
    }
    assert_eq!(Call::new("collective help me").run().code, 64);
}

#[test]
fn exit_codes_in_the_help_are_those_of_the_program() {
    let text = Call::new("collective help exit-codes").run().out;
    for code in [1, 64, 65, 69, 70, 75, 76, 77, 78, 104, 105, 106, 107, 108, 109, 110, 124] {
        assert!(text.lines().any(|line| line.trim().starts_with(&format!("{code} "))), "{code}");
    }
}

#[test]
fn a_wrong_name_is_bad_data_and_is_not_sent() {
    let daemon = Daemon::start(|_| done(""));
    for line in [
        "collective delete m!",
        "collective ping -- -x",
        "collective attrib --group g! a=b",
        "collective move n1 --to é",
    ] {
        let answer = daemon.run(line);
        assert_eq!(answer.code, 65, "{answer:?}");
    }
    assert_eq!(daemon.asked(), []);
}

#[test]
fn a_daemon_that_is_not_there_is_told_in_one_line() {
    let dir = tempfile::tempdir().expect("writable");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("writable");
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("free"));
    for (path, words) in [
        (dir.path().join("none.sock"), "there is no socket"),
        (dir.path().to_owned(), "is a directory"),
        (file, "is a file"),
        (dead, "nobody answers on"),
        (dir.path().join("x".repeat(200)), "longer than"),
    ] {
        let answer = Call::new("collective show -s").with(&path.to_string_lossy()).run();
        assert_eq!(answer.code, 69, "{answer:?}");
        assert!(answer.err.contains(words) && answer.err.lines().count() == 2, "{answer:?}");
    }
}

/// Answers every client on a socket with `answer`, then hangs up, or holds on.
fn other_program(dir: &TempDir, answer: &'static [u8], hold: bool) -> PathBuf {
    use std::io::{Read, Write};
    let path = dir.path().join("other.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("free");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut some = [0; 4096];
            let _ = client.read(&mut some);
            let _ = client.write_all(answer);
            if hold {
                // Until the client hangs up.
                let _ = client.read(&mut some);
            }
        }
    });
    path
}

#[test]
fn another_program_on_the_socket_is_told_in_one_line() {
    for (answer, hold, code, words) in [
        (&b"220 mail ready\r\n"[..], false, 69, "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", false, 69, "not a collective daemon: it answered HTTP 200"),
        (b"HTTP/1.1 200 OK\r\nserver: collective/9.9.9\r\ncontent-length: 2\r\n\r\n{}", false, 76, "version 9.9.9"),
        (b"", false, 69, "without an answer"),
        (b"", true, 124, "no answer within 300ms"),
    ] {
        let dir = tempfile::tempdir().expect("writable");
        let path = other_program(&dir, answer, hold);
        let answer = Call::new("collective status --timeout 300ms -s").with(&path.to_string_lossy()).run();
        assert_eq!(answer.code, code, "{answer:?}");
        assert!(answer.err.contains(words) && answer.err.lines().count() == 2, "{answer:?}");
    }
}

#[test]
fn the_daemon_ends_what_takes_too_long() {
    let daemon = Daemon::start(|_| done("never"));
    let answer = daemon.run("collective leave --timeout 100ms");
    assert_eq!((answer.code, answer.err.lines().next()), (124, Some("collective: no answer within 100ms")));
    let variable = Call::new("collective leave")
        .variable("COLLECTIVE_SOCKET", &daemon.socket().to_string_lossy())
        .variable("COLLECTIVE_TIMEOUT", "50ms");
    assert_eq!(variable.run().code, 124);
}
