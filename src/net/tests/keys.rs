//! Who is let in: pinned keys, and nothing that a thief or a stranger could bring.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_key_is_refused_and_its_owner_never_sees_a_link() {
    let (mut member, mut stranger) = (Site::start(1), Site::start(2));
    member.meet(&[]);
    stranger.meet(&[member.as_peer()]);
    let refusal = stranger.refusal().await;
    assert!(refusal.dialled && refusal.reason.contains("roster"), "{refusal:?}");
    let refusal = member.refusal().await;
    assert_eq!((refusal.peer, refusal.dialled), (Some(stranger.fingerprint()), false));
    let error = stranger.net.unlinked()[0].error.clone().expect("an error");
    assert!(error.reason.contains("does not accept this member's key"), "{error:?}");
    let mut up = BTreeMap::new();
    stranger.check_order(&mut up);
    member.check_order(&mut up);
    assert!(up.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_certificate_without_its_key_is_refused() {
    let (member, owner) = (Site::start(1), identity(2));
    member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
    let thief = Stranger::new(&owner, &identity(3), tls::ALPN_MEMBER);
    let error = thief.turned_away(member.address()).await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error:?}");
    // The same client with the right key gets in, so it was the key.
    let honest = Stranger::new(&owner, &owner, tls::ALPN_MEMBER);
    let connection = honest.dial(member.address()).await.expect("a connection");
    let hello = link::Hello { instance: [0; 16], losses: 0, body: vec![] };
    timeout(PATIENCE, link::greet(&connection, &hello)).await.expect("in time").expect("a hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_protocol_is_refused() {
    let (member, owner) = (Site::start(1), identity(2));
    member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
    let client = Stranger::new(&owner, &owner, b"h3");
    let error = client.turned_away(member.address()).await;
    let quinn::ConnectionError::ConnectionClosed(close) = error else { panic!("{error:?}") };
    assert_eq!(u64::from(close.error_code), 0x178);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_resumption_nor_early_data_is_offered() {
    let (member, owner) = (Site::start(1), identity(2));
    member.meet(&[Peer { fingerprints: vec![owner.fingerprint()], ..Peer::default() }]);
    let client = Stranger::new(&owner, &owner, tls::ALPN_MEMBER);
    let hello = link::Hello { instance: [0; 16], losses: 0, body: vec![] };
    let connection = client.dial(member.address()).await.expect("a connection");
    timeout(PATIENCE, link::greet(&connection, &hello)).await.expect("in time").expect("a hello");
    // Tickets would have come before the answer to the hello.
    assert_eq!(client.tickets.0.lock().expect("tickets").len(), 0);
    connection.close(VarInt::from_u32(0), b"");
    assert!(client.dial(member.address()).into_0rtt().is_err(), "there is a ticket to resume from");
    // Removed, it is judged by its key again.
    member.meet(&[]);
    let error = client.turned_away(member.address()).await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error:?}");
}
