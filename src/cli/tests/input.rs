//! What is read: attributes and tokens from words, variables, files and prompts.

use super::*;

#[test]
fn attributes_are_set_from_words_variables_files_and_prompts() {
    let daemon = Daemon::start(|_| Response::Done(Done { notes: vec!["noted".to_owned()], ..Done::default() }));
    let socket = daemon.socket().to_string_lossy().into_owned();
    let call = |line: &str| Call::new(line).variable("COLLECTIVE_SOCKET", &socket);

    let answer = call("collective attrib n1 custom.x=1 groups,=a").run();
    assert_eq!((answer.code, answer.out.as_str(), answer.err.as_str()), (0, "", "noted\n"));
    call("collective attrib n1 -e custom.own-er").variable("CUSTOM_OWN_ER", "me").run();
    call("collective attrib n1 --set -").stdin("# comment\n\n custom.y=2 \n").run();
    call("collective attrib --group rack1 -c custom.*").run();
    let mut typed = call("collective attrib n1 -p secret.x");
    typed.terminal = true;
    // The two prompts answer differently, so nothing is stored.
    assert_eq!(typed.run().code, 65);

    let sent: Vec<_> = daemon
        .asked()
        .into_iter()
        .map(|request| match request {
            Request::SetAttributes { assignments, clear, .. } => (assignments, clear),
            other => panic!("{other:?}"),
        })
        .collect();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        sent,
        [
            (words(&["custom.x=1", "groups,=a"]), vec![]),
            (words(&["custom.own-er=me"]), vec![]),
            (words(&["custom.y=2"]), vec![]),
            (vec![], words(&["custom.*"])),
        ]
    );
}

#[test]
fn attributes_are_not_set_and_read_or_cleared_at_once() {
    for line in [
        "collective attrib n1 custom.x=1 -c",
        "collective attrib n1 custom.x=1 custom.y",
        "collective attrib n1 -c",
        "collective attrib n1 -p",
        "collective attrib n1 -e custom.missing",
        "collective attrib",
    ] {
        assert_eq!(Call::new(line).run().code, 64, "{line}");
    }
}

#[test]
fn very_many_nodes_are_touched_only_when_a_person_or_a_flag_insists() {
    let daemon = Daemon::start(|request| match request {
        Request::RemoveNodes { yes: false, .. } => {
            Refusal::new(ErrorCode::NeedsForce, "this removes 600 nodes", "add -y").into()
        }
        _ => done("600 nodes removed"),
    });
    let call = |terminal: bool, stdin: &str| {
        let call =
            Call::new("collective node remove all").variable("COLLECTIVE_SOCKET", &daemon.socket().to_string_lossy());
        Call { terminal, ..call.stdin(stdin) }.run()
    };
    assert_eq!(call(false, "y\n").code, 107);
    assert_eq!(call(true, "\n").code, 107);
    let answer = call(true, "y\n");
    assert_eq!((answer.code, answer.err.as_str()), (0, "this removes 600 nodes. Go on? [y/N] "));
    assert_eq!(daemon.run("collective node remove all -y").code, 0);
}

#[test]
fn the_one_liner_of_the_manual_works() {
    let daemon = Daemon::start(|request| match request {
        Request::Invite { name, .. } => Response::Invited(Invited {
            schema: InviteSchema::V1,
            member: name.clone(),
            token: TokenText("abc+/=".to_owned()),
            expires: "2026-11-21T10:15:44Z".to_owned(),
            replaced: true,
            replaces: Some(name.clone()),
        }),
        _ => Response::Done(Done {
            message: "Success".to_owned(),
            changes: vec!["Certificate generated successfully".to_owned()],
            ..Done::default()
        }),
    });
    let invited = daemon.run("collective invite mgt2");
    assert_eq!((invited.code, invited.out.as_str()), (0, "abc+/=\n"));
    assert!(invited.err.contains("revoked") && invited.err.contains("replaces"), "{invited:?}");
    assert_eq!(daemon.run("collective invite mgt2 -q").err, "");

    let joined = daemon.run("collective join mgt1 -i abc+/=");
    assert_eq!((joined.code, joined.out.as_str()), (0, "Certificate generated successfully\nSuccess\n"));
}

#[test]
fn a_token_comes_from_many_places_and_never_from_nowhere() {
    let daemon = Daemon::start(|_| done("Success"));
    let socket = daemon.socket().to_string_lossy().into_owned();
    let call = |line: &str| Call::new(line).variable("COLLECTIVE_SOCKET", &socket);
    let file = daemon.dir.path().join("token");
    std::fs::write(&file, "from-file\n").expect("writable");

    assert_eq!(call("collective join mgt1 -i word").run().code, 0);
    assert_eq!(call(&format!("collective join mgt1 -i @{}", file.display())).run().code, 0);
    assert_eq!(call("collective join mgt1 -i -").stdin("from-stdin\n").run().code, 0);
    assert_eq!(call("collective join mgt1").variable("COLLECTIVE_TOKEN", "from-variable").run().code, 0);
    assert_eq!(call("collective join mgt1").stdin("piped\n").run().code, 0);
    assert_eq!(Call { terminal: true, ..call("collective join mgt1") }.run().code, 0);
    assert_eq!(call("collective join mgt1").run().code, 65);
    assert_eq!(call("collective join mgt1 -i @/nowhere").run().code, 65);

    let tokens: Vec<_> = daemon
        .asked()
        .iter()
        .map(|request| match request {
            Request::Join { token, .. } => token.0.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    let prompted = "typed at Paste the invitation here:";
    assert_eq!(tokens, ["word", "from-file", "from-stdin", "from-variable", "piped", prompted]);
}
