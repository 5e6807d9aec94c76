//! Joins: strangers who have a token, and those who only say so.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_ends_well_and_both_sides_share_an_exporter() {
    let (mut member, joiner) = (Site::start(1), Site::start(2));
    member.meet(&[]);
    let (places, key) = ([member.address().to_string()], member.fingerprint());
    let mut client = joiner.net.join(&places, key, &joiner.identity).await.expect("a join");
    client.send(b"proof").await.expect("sent");
    let mut stream = member.join().await;
    assert_eq!(stream.peer(), joiner.fingerprint());
    assert_eq!(stream.exporter(), client.exporter());
    assert_ne!(stream.exporter(), [0; 32]);
    assert_eq!(stream.recv().await.expect("a frame"), b"proof");
    stream.allow_decision();
    stream.send(b"welcome").await.expect("sent");
    // The answer may hold a large roster; a stranger's words may not be as long.
    let bytes = limits::JOIN_ANSWER_BYTES_MAX + 1;
    assert_eq!(stream.send(&vec![0; bytes]).await, Err(JoinError::TooLong(bytes)));
    assert_eq!(client.send(&[0; 5000]).await, Err(JoinError::TooLong(5000)));
    let finished = tokio::spawn(stream.finish());
    assert_eq!(client.recv(PATIENCE).await.expect("a frame"), b"welcome");
    timeout(PATIENCE, finished).await.expect("in time").expect("finished");
    assert!(member.net.links().is_empty() && joiner.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_sent_to_a_server_with_another_key_than_the_token_says() {
    let (mut member, joiner) = (Site::start(1), Site::start(2));
    let (places, key) = ([member.address().to_string()], identity(9).fingerprint());
    let error = joiner.net.join(&places, key, &joiner.identity).await.expect_err("another key");
    assert!(matches!(&error, JoinError::OtherKey(words) if words.contains("another key")), "{error:?}");
    // The server has not even seen whose call it was.
    assert_eq!(member.refusal().await.peer, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_strangers_may_join_at_once_and_the_fifth_is_told_to_come_again() {
    let (mut member, joiner) = (Site::start(1), Site::start(2));
    let (places, key) = ([member.address().to_string()], member.fingerprint());
    let (mut clients, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..limits::JOINS_MAX {
        let mut client = joiner.net.join(&places, key, &joiner.identity).await.expect("a join");
        client.send(b"here").await.expect("sent");
        streams.push(member.join().await);
        clients.push(client);
    }
    // The refusal may come while the stream is opened, or after.
    let error = match joiner.net.join(&places, key, &joiner.identity).await {
        Ok(mut late) => late.recv(PATIENCE).await.expect_err("busy"),
        Err(error) => error,
    };
    assert!(matches!(error, JoinError::Closed { code: Some(7), .. }), "{error:?}");
    // One that ends makes room.
    drop(streams.pop());
    until("there is room", || member.net.0.joins.available_permits() == 1).await;
    let mut next = joiner.net.join(&places, key, &joiner.identity).await.expect("a join");
    next.send(b"here").await.expect("sent");
    assert_eq!(member.join().await.recv().await.expect("a frame"), b"here");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_a_join_gets_one_stream_and_no_link() {
    let (mut member, stranger) = (Site::start(1), identity(2));
    let client = Stranger::new(&stranger, &stranger, tls::ALPN_JOIN);
    let connection = client.dial(member.address()).await.expect("a connection");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    let second = timeout(Duration::from_millis(300), connection.open_bi()).await;
    assert!(second.is_err(), "a second stream was allowed");
    // A frame that claims more than a join allows ends it.
    send.write_all(&[0, 0, 0x20, 0]).await.expect("a write");
    assert_eq!(member.join().await.recv().await, Err(JoinError::TooLong(0x2000)));
    assert!(member.net.links().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_says_nothing_more_is_ended() {
    let (mut member, stranger) = (Site::start(1), identity(2));
    let client = Stranger::new(&stranger, &stranger, tls::ALPN_JOIN);
    let connection = client.dial(member.address()).await.expect("a connection");
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(&[0]).await.expect("a write");
    let mut stream = member.join().await;
    let error = timeout(PATIENCE, stream.recv()).await.expect("in time").expect_err("ended");
    assert!(matches!(error, JoinError::Closed { code: None, .. }), "{error:?}");
    let quinn::ConnectionError::ApplicationClosed(close) = connection.closed().await else { panic!("another end") };
    assert_eq!(close.error_code, CloseCode::Timeout.into());
}
