//! Links between members: one a pair, in order, and gone when they should be.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_keep_one_link_a_pair_and_exchange_frames_of_every_size() {
    let mut sites = [Site::start(1), Site::start(2), Site::start(3)];
    let peers: Vec<Peer> = sites.iter().map(Site::as_peer).collect();
    for site in &sites {
        site.meet(&peers);
    }
    let fingerprints: Vec<Fingerprint> = sites.iter().map(Site::fingerprint).collect();
    until("all are linked", || sites.iter().all(|site| site.net.links().len() == 2)).await;
    // Whatever was dialled twice has been closed when each pair agrees on who dialled.
    until("all agree", || {
        let dialled = |site: &Site| site.net.links().iter().filter(|link| link.dialled).count();
        sites.iter().map(dialled).sum::<usize>() == 3
    })
    .await;
    for (at, from) in [(0, 1), (1, 2), (2, 0)] {
        let (to, big, bulk) = (fingerprints[at], vec![7; 60_000], vec![8; 500_000]);
        let net = &sites[from].net;
        net.send(to, Channel::Swim, Delivery::Datagram, Bytes::from_static(b"ping"));
        net.send(to, Channel::Gossip, Delivery::Datagram, big.clone().into());
        net.send(to, Channel::Sync, Delivery::Stream, bulk.clone().into());
        net.send(to, Channel::Lease, Delivery::Stream, Bytes::new());
        let mut expected = BTreeMap::from([
            (Channel::Swim, b"ping".to_vec()),
            (Channel::Gossip, big),
            (Channel::Sync, bulk),
            (Channel::Lease, vec![]),
        ]);
        while !expected.is_empty() {
            let (sender, channel, bytes) = sites[at]
                .expect("a frame", |event| match event {
                    NetEvent::Frame { peer, channel, bytes } => Some((*peer, *channel, bytes.clone())),
                    _ => None,
                })
                .await;
            assert_eq!(sender, fingerprints[from]);
            assert_eq!(expected.remove(&channel).as_deref(), Some(bytes.as_ref()), "{channel:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_settle_on_one_link_and_report_it_in_order() {
    for _ in 0..5 {
        let (mut a, mut b) = ordered_pair();
        a.meet(&[b.as_peer()]);
        b.meet(&[a.as_peer()]);
        a.net.dial_now(b.fingerprint());
        b.net.dial_now(a.fingerprint());
        until("both are linked the same way", || {
            let (left, right) = (a.net.links(), b.net.links());
            left.len() == 1 && right.len() == 1 && left[0].dialled != right[0].dialled
        })
        .await;
        a.net.send(b.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"1"));
        b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"2"));
        let mut up = [BTreeMap::new(), BTreeMap::new()];
        let deadline = Instant::now() + PATIENCE;
        while up.iter().any(|up| up.values().sum::<usize>() == 0) {
            assert!(Instant::now() < deadline, "no frame");
            a.check_order(&mut up[0]);
            b.check_order(&mut up[1]);
            tokio::task::yield_now().await;
        }
        assert_eq!((up[0].len(), up[1].len()), (1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_frames_arrive_in_order() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    for number in 0..2000_u32 {
        b.net.send(a.fingerprint(), Channel::Epoch, Delivery::Stream, Bytes::copy_from_slice(&number.to_be_bytes()));
    }
    for number in 0..2000_u32 {
        assert_eq!(a.frame(Channel::Epoch).await.as_ref(), number.to_be_bytes());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_that_nobody_takes_does_not_delay_a_lease() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    for _ in 0..12 {
        b.net.send(a.fingerprint(), Channel::Sync, Delivery::Stream, vec![1; 500_000].into());
    }
    // Holding on to bulk stops more of it from being handed out.
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(a.frame(Channel::Sync).await);
    }
    b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"lease"));
    let lease = a
        .expect("the lease", |event| match event {
            NetEvent::Frame { channel, bytes, .. } => Some((*channel, bytes.clone())),
            _ => None,
        })
        .await;
    assert_eq!(lease, (Channel::Lease, Bytes::from_static(b"lease")));
    drop(held);
    for _ in 0..8 {
        a.frame(Channel::Sync).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_nothing_loses_its_link_when_too_much_waits() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    b.link_up(a.fingerprint()).await;
    a.cut.store(true, Ordering::SeqCst);
    for _ in 0..40 {
        b.net.send(a.fingerprint(), Channel::Sync, Delivery::Stream, vec![1; 500_000].into());
    }
    let (code, _, _) = b.link_down(a.fingerprint()).await;
    assert_eq!(code, Some(CloseCode::Overflow as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_loses_its_link_at_once_and_is_told_again_when_it_dials() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    b.link_up(a.fingerprint()).await;
    let message = b"removed in epoch 7".to_vec();
    a.net.set_peers(vec![], BTreeMap::from([(b.fingerprint(), message.clone())]));
    let removed = Some(CloseCode::Removed as u64);
    let (code, said, reason) = b.link_down(a.fingerprint()).await;
    assert_eq!((code, &said), (removed, &message), "{reason}");
    // Whoever removes another must not take its own words for its own removal.
    let said_to_us = a.expect("the end of a link", |event| match event {
        NetEvent::LinkDown { by_peer, code, .. } => Some((*by_peer, *code)),
        _ => None,
    });
    assert_eq!(said_to_us.await, (false, removed));
    let again = b.refusal().await;
    assert_eq!((again.dialled, again.code, again.close_message), (true, removed, message));
    assert!(a.net.links().is_empty() && b.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_is_no_longer_pinned_loses_its_link() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    b.link_up(a.fingerprint()).await;
    a.link_up(b.fingerprint()).await;
    let rotated = Peer { fingerprints: vec![identity(9).fingerprint()], ..b.as_hidden_peer() };
    a.meet(&[rotated]);
    assert_eq!(b.link_down(a.fingerprint()).await.0, Some(CloseCode::NotPinned as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_survives_while_a_second_key_is_added() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    let both = Peer { fingerprints: vec![identity(9).fingerprint(), b.fingerprint()], ..b.as_hidden_peer() };
    a.meet(&[both]);
    b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"still here"));
    assert_eq!(a.frame(Channel::Lease).await.as_ref(), b"still here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_crashed_and_returns_on_another_port_is_linked_again_at_once() {
    for crashed_decides in [false, true] {
        let (low, high) = ordered_pair();
        let (mut stays, mut crashes) = if crashed_decides { (high, low) } else { (low, high) };
        stays.meet(&[crashes.as_peer()]);
        crashes.meet(&[stays.as_peer()]);
        stays.link_up(crashes.fingerprint()).await;
        crashes.link_up(stays.fingerprint()).await;
        // No farewell leaves a machine that lost its power.
        crashes.cut.store(true, Ordering::SeqCst);
        let mut back = Site::start_as(crashes.identity.clone());
        assert_ne!(back.address(), crashes.address());
        let started = Instant::now();
        back.meet(&[stays.as_peer()]);
        back.link_up(stays.fingerprint()).await;
        let (code, ..) = stays.link_down(back.fingerprint()).await;
        assert_eq!(code, Some(CloseCode::Replaced as u64));
        stays.link_up(back.fingerprint()).await;
        assert!(started.elapsed() < Duration::from_secs(3), "took {:?}", started.elapsed());
        assert_eq!(stays.net.links()[0].address, back.address());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_reported_up_only_after_the_one_before_is_reported_down() {
    let (mut stays, first) = ordered_pair();
    stays.meet(&[first.as_hidden_peer()]);
    let (identity, mut runs) = (first.identity.clone(), vec![first]);
    for _ in 0..20 {
        let last = runs.last_mut().expect("a run");
        last.meet(&[stays.as_peer()]);
        last.link_up(stays.fingerprint()).await;
        last.cut.store(true, Ordering::SeqCst);
        runs.push(Site::start_as(identity.clone()));
    }
    let mut up = BTreeMap::new();
    stays.check_order(&mut up);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_makes_a_clear_dial_error() {
    let (a, b) = ordered_pair();
    let closed = UdpSocket::bind("127.0.0.1:0").expect("a socket").local_addr().expect("an address");
    a.meet(&[Peer { addresses: vec![closed], ..b.as_peer() }]);
    until("the dial has failed", || a.net.unlinked()[0].error.is_some()).await;
    let error = a.net.unlinked()[0].error.clone().expect("an error");
    assert_eq!(error.address, Some(closed));
    assert!(error.reason.contains("no answer") && error.reason.contains(&closed.to_string()), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_member_at_the_address_is_not_taken_for_the_peer() {
    let (a, b) = ordered_pair();
    let absent = identity(9).fingerprint();
    a.meet(&[b.as_hidden_peer(), Peer { fingerprints: vec![absent], addresses: vec![b.address()], names: vec![] }]);
    b.meet(&[a.as_hidden_peer()]);
    until("the dial has failed", || a.net.unlinked().iter().any(|peer| peer.error.is_some())).await;
    let unlinked = a.net.unlinked();
    let error = unlinked.iter().find_map(|peer| peer.error.clone()).expect("an error");
    assert!(error.reason.contains("another key"), "{error:?}");
    assert!(a.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_looked_up_and_every_address_is_tried() {
    let (mut a, b) = ordered_pair();
    let dead = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let name = format!("localhost:{}", b.address().port());
    let addresses = vec![dead.local_addr().expect("an address")];
    a.meet(&[Peer { fingerprints: vec![b.fingerprint()], addresses, names: vec![name] }]);
    b.meet(&[a.as_hidden_peer()]);
    a.link_up(b.fingerprint()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_on_the_port_do_no_harm() {
    let (mut a, b) = ordered_pair();
    a.meet(&[b.as_hidden_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    until("b is linked", || b.net.links().len() == 1).await;
    let noise = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut random = rand_chacha::ChaCha8Rng::from_seed([5; 32]);
    use rand_core::{Rng, SeedableRng};
    for round in 0..2000 {
        let mut bytes = vec![0; 1 + round % 1400];
        random.fill_bytes(&mut bytes);
        if round % 2 == 0 {
            bytes[0] |= 0xc0; // Looks like the start of a handshake.
        }
        noise.send_to(&bytes, a.address()).expect("noise");
    }
    b.net.send(a.fingerprint(), Channel::Lease, Delivery::Stream, Bytes::from_static(b"calm"));
    assert_eq!(a.frame(Channel::Lease).await.as_ref(), b"calm");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_breaks_the_protocol_loses_its_link() {
    for breach in [vec![Channel::Sync as u8, 0xff, 0xff, 0xff, 0xff], vec![Channel::Lease as u8, 0, 0x20, 0, 0]] {
        let (mut member, owner) = (Site::start(1), identity(2));
        member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
        let client = Stranger::new(&owner, &owner, tls::ALPN_MEMBER);
        let connection = client.dial(member.address()).await.expect("a connection");
        let hello = link::Hello { instance: [0; 16], losses: 0, body: vec![] };
        let control = link::greet(&connection, &hello).await.expect("a hello");
        let (mut send, _recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&breach).await.expect("a write");
        let (code, _, reason) = member.link_down(owner.fingerprint()).await;
        assert_eq!(code, Some(CloseCode::Protocol as u64), "{reason}");
        drop(control);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_stops_says_so() {
    let (mut a, mut b) = ordered_pair();
    a.meet(&[b.as_peer()]);
    b.meet(&[a.as_peer()]);
    a.link_up(b.fingerprint()).await;
    b.link_up(a.fingerprint()).await;
    a.net.shutdown(CloseCode::Shutdown, b"bye").await;
    let (code, said, _) = b.link_down(a.fingerprint()).await;
    assert_eq!((code, said.as_slice()), (Some(CloseCode::Shutdown as u64), b"bye".as_slice()));
}
