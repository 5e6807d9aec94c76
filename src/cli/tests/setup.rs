//! What needs no member: ranges, inventories, configuration, and what packages ship.

use super::*;

#[test]
fn ranges_are_expanded_folded_and_counted() {
    let daemon = Daemon::start(|_| {
        let nodes = vec![node("n1"), node("n2")];
        Response::Nodes(Nodes { nodes, folded: "n[1:2]".to_owned(), ..Nodes::default() })
    });
    assert_eq!(daemon.run("collective range expand n[1-2]").out, "n1\nn2\n");
    assert_eq!(daemon.run("collective range fold n1 n2").out, "n[1:2]\n");
    assert_eq!(daemon.run("collective range count rack1 --stale").out, "2\n");
    assert_eq!(daemon.run("nodelist rack1 -o fold").out, "n[1:2]\n");
    assert_eq!(daemon.asked()[1], Request::Expand { expression: "n1,n2".to_owned(), stale: false });
}

#[test]
fn an_inventory_is_recognised_by_its_first_character() {
    let daemon = Daemon::start(|_| Response::Done(Done { changes: vec!["n1: created".to_owned()], ..Done::default() }));
    for (document, expected) in [(" {\"all\":{}}", ImportFormat::Ansible), ("node,groups\nn1,\n", ImportFormat::Csv)] {
        let call =
            Call::new("collective node import -").variable("COLLECTIVE_SOCKET", &daemon.socket().to_string_lossy());
        assert_eq!(call.stdin(document).run().out, "n1: created\n");
        let Some(Request::Import { format, .. }) = daemon.asked().pop() else { panic!("not sent") };
        assert_eq!(format, expected);
    }
    assert_eq!(daemon.run("collective node import /nowhere").code, 65);
}

#[test]
fn configuration_mistakes_exit_78() {
    let dir = tempfile::tempdir().expect("writable");
    let file = dir.path().join("c.toml");
    let path = file.to_string_lossy().into_owned();
    std::fs::write(&file, "name = 'mgt1'\nlisten = 7\n").expect("writable");
    let answer = Call::new("collective config check").with(&path).run();
    assert!(answer.code == 78 && answer.err.contains("c.toml:2:10: "), "{answer:?}");

    std::fs::write(&file, "name = 'mgt1'\nseeds = ['a']\n").expect("writable");
    assert_eq!(Call::new("collective config check").with(&path).run().out, "the configuration is valid\n");
    let shown = Call::new("collective config show --origin").with(&path).variable("COLLECTIVE_LOG", "debug").run().out;
    let has = |start: &str, end: &str| shown.lines().any(|line| line.starts_with(start) && line.ends_with(end));
    assert!(has("name = \"mgt1\"", &format!("# {path}")), "{shown}");
    assert!(has("seeds = [\"a\"]", "c.toml") && has("log = \"debug\"", "# COLLECTIVE_LOG"), "{shown}");
    assert!(has("# http =", "# default"), "{shown}");
    let json = Call::new("collective config show -o json").variable("COLLECTIVE_CONFIG", &path).run().out;
    assert!(json.starts_with("{\"schema\":\"collective.config/1\""), "{json}");
}

#[test]
fn hooks_are_listed_with_what_keeps_them_from_running() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("writable");
    let hooks = dir.path().join("hooks.d");
    std::fs::create_dir(&hooks).expect("writable");
    for (file, mode) in [("10-plain", 0o644), ("20-open", 0o777)] {
        std::fs::write(hooks.join(file), "").expect("writable");
        std::fs::set_permissions(hooks.join(file), PermissionsExt::from_mode(mode)).expect("ours");
    }
    let list = |dir: &str| {
        let config = tempfile::NamedTempFile::new().expect("writable");
        let path = config.path().to_string_lossy().into_owned();
        Call::new("collective hooks list --config").with(&path).variable("COLLECTIVE_HOOKS_DIR", dir).run()
    };
    assert_eq!(
        list(&hooks.to_string_lossy()).out,
        "HOOK      STATE\n10-plain  not executable\n20-open   others may write it: chmod go-w\n"
    );
    let none = list("/nowhere");
    assert_eq!((none.code, none.err.as_str()), (0, "there is no /nowhere: no hooks\n"));
}

#[test]
fn what_packages_ship_is_generated() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(Call::new("collective gen completions").with(shell).run().out.contains("attrib"), "{shell}");
    }
    assert!(Call::new("collective gen man").run().out.contains(".TH"));
    let dir = tempfile::tempdir().expect("writable");
    let path = dir.path().to_string_lossy().into_owned();
    assert_eq!(Call::new("collective gen man").with(&path).run().code, 0);
    for page in ["collective.1", "collective-attrib.1", "collectived.8"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    for _ in 0..2 {
        let answer = Call::new("collective gen links").with(&path).run();
        assert_eq!(answer.code, 0, "{answer:?}");
    }
    assert!(std::fs::read_link(dir.path().join("nodeattrib")).is_ok());
}

#[test]
fn what_needs_no_daemon_is_handed_over() {
    assert_eq!(Call::new("collective demo").run().code, 0);
    assert_eq!(Call::new("collective demo --stay").run().code, 7);
    let answer = Call::new("collective init --name mgt1 -s /nowhere/x").run();
    assert_eq!((answer.code, answer.out.as_str()), (0, "made mgt1\n"));
    let daemon = Daemon::start(|_| done("mgt1 is a member of one already"));
    assert!(daemon.run("collective init").out.contains("already"));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    struct Closed;
    impl io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut err = Vec::new();
    let mut io = Io {
        stdin: &mut io::empty(),
        stdout: &mut Closed,
        stderr: &mut err,
        stdin_is_terminal: false,
        stdout_is_terminal: false,
        read_secret,
    };
    let words = ["collective", "help", "files"].map(Into::into);
    assert_eq!(run(words, &Environment::new(), &mut io, &Offline { demo, init }), 0);
    assert!(err.is_empty());
}

#[test]
fn wrong_variables_are_usage_errors() {
    for (variable, value) in
        [("COLLECTIVE_OUTPUT", "xml"), ("COLLECTIVE_TIMEOUT", "soon"), ("COLLECTIVE_COLOR", "blue")]
    {
        let answer = Call::new("collective show").variable(variable, value).run();
        assert!(answer.code == 64 && answer.err.contains(variable), "{answer:?}");
    }
}
