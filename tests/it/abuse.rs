//! Bad input at every door: one clear line, and no harm.

use std::fs::Permissions;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::site::{Output, PATIENCE, Plan, Site, collective, given_up, settle, three, wait_until};

/// Asserts that a daemon that would not start said why in one line, without a panic.
#[track_caller]
fn said_why(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    assert!(!output.stderr.contains("panicked"), "{output:?}");
    let lines: Vec<_> = output.stderr.lines().filter(|line| line.starts_with("collectived: ")).collect();
    assert_eq!(lines.len(), 1, "{output:?}");
    for word in words {
        assert!(lines[0].contains(word), "{word:?} in {output:?}");
    }
}

#[test]
fn two_daemons_on_one_state_directory_are_refused() {
    let site = Site::on_loopback("mgt1");
    let output = site.fails_to_start();
    said_why(&output, 1, &["in use", "--state-dir"]);
    site.shows("Quorum: True\nLeader: mgt1\n");
}

#[test]
fn two_daemons_on_one_runtime_directory_are_refused() {
    let one = Site::on_loopback("mgt1");
    let two = Plan::new("mgt2").prepare();
    let mut command = two.daemon();
    command.arg("--runtime-dir").arg(one.home().join("run"));
    let output = given_up(&mut command);
    assert_ne!(output.code, 0, "{output:?}");
    one.shows("Quorum: True\nLeader: mgt1\n");
}

#[test]
fn two_daemons_on_one_address_are_refused() {
    let one = Site::on_loopback("mgt1");
    let two = Plan::new("mgt2").listening(&one.address()).prepare();
    said_why(&two.fails_to_start(), 1, &["cannot be used"]);
    one.shows("Quorum: True\nLeader: mgt1\n");
}

#[test]
fn a_state_directory_that_others_can_read_is_refused() {
    let mut site = Site::on_loopback("mgt1");
    site.stop();
    let loose = [(site.state_dir(), 0o755, 0o700), (site.state_dir().join("identity.key"), 0o644, 0o600)];
    for (path, mode, right) in loose {
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).expect("our own file");
        said_why(&site.fails_to_start(), 1, &[&path.display().to_string(), "chmod"]);
        std::fs::set_permissions(&path, Permissions::from_mode(right)).expect("our own file");
    }
    site.start();
    site.shows("Quorum: True\nLeader: mgt1\n");
}

#[test]
fn a_damaged_key_or_certificate_is_refused_and_left_alone() {
    let mut site = Site::on_loopback("mgt1");
    site.stop();
    for name in ["identity.key", "identity.crt"] {
        let path = site.state_dir().join(name);
        let right = std::fs::read(&path).expect("our own file");
        for wrong in [Vec::new(), vec![b'x'; right.len()], right[..right.len() / 2].to_vec()] {
            std::fs::write(&path, &wrong).expect("our own file");
            said_why(&site.fails_to_start(), 1, &[&site.state_dir().display().to_string()]);
            assert_eq!(std::fs::read(&path).expect("our own file"), wrong, "nothing was changed");
        }
        std::fs::write(&path, &right).expect("our own file");
    }
    site.start();
    site.shows("Quorum: True\nLeader: mgt1\n");
}

/// Damages the database of a member of three and starts it: it must neither act on garbage nor hurt the others.
#[track_caller]
fn damaged_database(damage: impl Fn(&mut Vec<u8>)) {
    let mut sites = three();
    sites[0].ok(&["node", "define", "n1", "custom.x=1"]);
    sites[2].sees("n1", "custom.x", "1");
    sites[2].stop();
    let path = sites[2].state_dir().join("collective.redb");
    let mut bytes = std::fs::read(&path).expect("our own file");
    damage(&mut bytes);
    std::fs::write(&path, &bytes).expect("our own file");

    sites[2].launch();
    wait_until("it starts with what it can read, or says why not", PATIENCE, || {
        !sites[2].is_running() || sites[2].run(&["show"]).code == 0
    });

    let log = sites[2].log();
    assert!(!log.contains("panicked"), "{log}");
    if sites[2].is_running() {
        // Set aside, and said so; it has forgotten what it promised, so it does not vote until it is invited again.
        assert!(log.contains("set aside"), "{log}");
        let kept = std::fs::read_dir(sites[2].state_dir()).expect("our own directory").flatten();
        assert!(kept.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().contains("damaged")), "{log}");
        assert!(!sites[2].ok(&["show"]).contains("mgt1"));
        sites[2].join(&sites[0]);
        settle(&sites.iter().collect::<Vec<_>>());
        sites[2].sees("n1", "custom.x", "1");
    } else {
        assert!(log.lines().any(|line| line.starts_with("collectived: ")), "{log}");
    }
    sites[0].ok(&["attrib", "n1", "custom.x=2"]);
    sites[1].sees("n1", "custom.x", "2");
}

#[test]
fn a_database_of_garbage_is_set_aside_and_said_so() {
    damaged_database(|bytes| ChaCha8Rng::seed_from_u64(1).fill_bytes(bytes));
}

#[test]
fn a_truncated_database_is_set_aside_and_said_so() {
    damaged_database(|bytes| bytes.truncate(bytes.len() / 3));
}

#[test]
fn random_bytes_on_the_quic_port_harm_nothing() {
    let sites = three();
    let target = sites[0].address();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket on loopback");
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let mut packet = [0_u8; 1_400];

    for round in 0..3_000_usize {
        random.fill_bytes(&mut packet);
        if round % 3 == 0 {
            // The long header and version of an Initial packet, so that more of it is read.
            packet[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
        }
        let length = if round % 2 == 0 { 1_200 + round % 200 } else { round % 1_400 };
        let _ = socket.send_to(&packet[..length], &target);
    }

    sites[0].ok(&["node", "define", "n1"]);
    sites[1].ok(&["attrib", "n1", "custom.x=1"]);
    settle(&sites.iter().collect::<Vec<_>>());
    assert!(!sites[0].log().contains("panicked"), "{}", sites[0].log());
}

#[test]
fn random_bytes_on_both_sockets_harm_nothing() {
    let site = Site::on_loopback("mgt1");
    let mut random = ChaCha8Rng::seed_from_u64(11);
    let mut garbage = vec![0_u8; 20_000];
    for socket in [site.socket(), site.status_socket()] {
        for round in 0..60_usize {
            let Ok(mut stream) = UnixStream::connect(&socket) else { continue };
            stream.set_read_timeout(Some(Duration::from_secs(2))).expect("a live socket");
            random.fill_bytes(&mut garbage);
            let head: &[u8] = match round % 4 {
                0 => b"",
                1 => b"POST /v1/request HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n",
                2 => b"GET / HTTP/9.9\r\n\r\n",
                _ => b"POST /v1/request HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n",
            };
            // It may be closed on us at any moment.
            let _ = stream.write_all(head).and_then(|()| stream.write_all(&garbage[..round * 300]));
            if round % 2 == 0 {
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let _ = stream.read(&mut [0; 4_096]);
            }
        }
    }

    // Clients that say nothing do not keep others out.
    let silent: Vec<_> = (0..40).filter_map(|_| UnixStream::connect(site.socket()).ok()).collect();
    site.shows("Quorum: True\nLeader: mgt1\n");
    site.ok(&["node", "define", "n1"]);
    drop(silent);
    assert!(!site.log().contains("panicked"), "{}", site.log());
}

#[test]
fn the_status_socket_answers_who_reads_and_refuses_who_writes() {
    let site = Site::on_loopback("mgt1");
    let socket = site.status_socket().display().to_string();
    assert_eq!(collective(&["-s", &socket, "show"]).good(), "Quorum: True\nLeader: mgt1\n");
    let mode = |path| std::fs::metadata(path).expect("a socket").permissions().mode() & 0o777;
    assert_eq!((mode(site.socket()), mode(site.status_socket())), (0o660, 0o666));

    for words in [
        &["node", "define", "n1"][..],
        &["invite", "mgt2"],
        &["delete", "mgt2", "--force"],
        &["leave"],
        &["gencert"],
        &["attrib", "n1", "custom.x=1"],
    ] {
        let mut all = vec!["-s", &socket];
        all.extend(words);
        collective(&all).refused(77);
    }
    assert_eq!(site.ok(&["node", "list"]), "");
}

#[test]
fn a_wrong_socket_gets_one_clear_line() {
    let site = Plan::new("mgt1").prepare();
    let file = site.home().join("file");
    std::fs::write(&file, "not a socket").expect("a file in our own directory");
    let stale = site.home().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).expect("a socket in our own directory"));
    let foreign = site.home().join("foreign.sock");
    let listener = std::os::unix::net::UnixListener::bind(&foreign).expect("a socket in our own directory");
    let server = std::thread::spawn(move || {
        if let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
            let _ = stream.read(&mut [0; 1_024]);
        }
    });
    for path in [&file, &stale, &foreign, &site.home().join("missing.sock"), &site.home().to_path_buf()] {
        let text = collective(&["-s", &path.display().to_string(), "show"]).refused(69);
        assert!(text.contains("hint: "), "{text}");
    }
    server.join().expect("the foreign server ends");
}

#[test]
fn a_wrong_configuration_is_refused_with_file_and_line() {
    let site = Plan::new("mgt1").prepare();
    let file = site.home().join("collective.toml");
    std::fs::write(&file, "name = \"mgt1\"\nlisten = \"nowhere\"\n").expect("a file in our own directory");
    let output = given_up(site.daemon().arg("--config").arg(&file));
    said_why(&output, 78, &["collective.toml:2"]);
    let output = given_up(site.daemon().env("COLLECTIVE_VOLUNTEER", "perhaps"));
    said_why(&output, 78, &["COLLECTIVE_VOLUNTEER"]);
    let output = given_up(site.daemon().arg("--frobnicate"));
    assert_eq!(output.code, 64, "{output:?}");
}
