//! A client that knows nothing of xfrmd: the `xfrmnetlink` crate over tokio.
//!
//! Prints what it sees; the tests compare that with what it prints on Linux.
//! (The crate's own `Debug` shows keys, so fields are printed one by one.)

use std::fmt::Debug;
use std::net::{IpAddr, Ipv4Addr};

use std::pin::pin;

use futures::{TryStream, TryStreamExt as _};
use xfrmnetlink::{Error, new_connection};

const ESP: u8 = 50;
const TUNNEL: u8 = 1;
const OUT: u8 = 1;

fn show<T: Debug>(what: &str, result: Result<T, Error>) {
    match result {
        Ok(value) => println!("{what}: {value:?}"),
        Err(Error::NetlinkError(error)) => println!("{what}: {:?}", error.raw_code()),
        Err(error) => println!("{what}: {error}"),
    }
}

/// The first answer of a request that could have several.
async fn first<T>(answers: impl TryStream<Ok = T, Error = Error>) -> Result<Option<T>, Error> {
    let mut answers = pin!(answers.into_stream());
    answers.try_next().await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let (connection, handle, _) = new_connection()?;
    tokio::spawn(connection);
    let from = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    let to = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
    let key: Vec<u8> = (1..=20).collect();

    for spi in [0x100, 0x101, 0x101] {
        let request = handle
            .state()
            .add(from, to)
            .protocol(ESP)
            .spi(spi)
            .mode(TUNNEL)
            .reqid(7);
        let request = request.encryption_aead("rfc4106(gcm(aes))", &key, 128);
        match request {
            Ok(request) => show("add state", request.execute().await),
            Err(error) => println!("add state: {error}"),
        }
    }
    let got = handle
        .state()
        .get(from, to)
        .protocol(ESP)
        .spi(0x100)
        .execute();
    show(
        "get state",
        first(got)
            .await
            .map(|m| m.map(|m| (m.user_sa_info.id.spi, m.user_sa_info.reqid, m.nlas.len()))),
    );
    let spi = handle
        .state()
        .alloc_spi(from, to)
        .protocol(ESP)
        .spi_range(0x300, 0x300);
    show(
        "alloc spi",
        first(spi.execute())
            .await
            .map(|m| m.map(|m| m.user_sa_info.id.spi)),
    );
    let mut dump = pin!(handle.state().get_dump().execute());
    loop {
        match dump.try_next().await {
            Ok(Some(m)) => println!("state {:#x} {}", m.user_sa_info.id.spi, m.nlas.len()),
            Ok(None) => break,
            Err(error) => println!("dump: {error}"),
        }
    }
    for _ in 0..2 {
        let policy = handle
            .policy()
            .add(from, 24, to, 32)
            .direction(OUT)
            .priority(9);
        show("add policy", policy.execute().await);
    }
    let policy = handle
        .policy()
        .get(from, 24, to, 32)
        .direction(OUT)
        .execute();
    let got = first(policy).await;
    show(
        "get policy",
        got.map(|m| m.map(|m| (m.user_policy_info.index, m.user_policy_info.priority))),
    );
    show(
        "default",
        handle.policy().get_default_action().execute().await,
    );
    let gone = handle
        .state()
        .delete(from, to)
        .protocol(ESP)
        .spi(0x100)
        .execute()
        .await;
    show("delete state", gone);
    let gone = handle
        .state()
        .delete(from, to)
        .protocol(ESP)
        .spi(0x100)
        .execute()
        .await;
    show("delete state again", gone);
    show("flush states", handle.state().flush().execute().await);
    show("flush policies", handle.policy().flush().execute().await);
    show("SAD", handle.state().get_sadinfo().execute().await);
    Ok(())
}
