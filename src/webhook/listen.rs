//! Opens a listening port, on machines with and without IPv6. Knows nothing of what is served on it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use tokio::net::TcpListener;

/// Opens a listening TCP port.
///
/// `[::]` means all IPv6 and IPv4 addresses of a machine, unless it sets `net.ipv6.bindv6only`. On a machine without
/// IPv6, `[::]` falls back to `0.0.0.0`.
///
/// # Errors
///
/// If the address cannot be bound, for instance because the port is in use.
pub async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen_by(address, TcpListener::bind).await
}

async fn listen_by<L>(address: SocketAddr, bind: impl AsyncFn(SocketAddr) -> io::Result<L>) -> anyhow::Result<L> {
    match bind(address).await {
        Err(error) if without_ipv6(address, &error) => {
            let instead = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            tracing::info!("this machine has no IPv6 ({error}): listening on {instead} in place of {address}");
            bind(instead).await.with_context(|| format!("cannot listen on {instead}"))
        }
        bound => bound.with_context(|| format!("cannot listen on {address}")),
    }
}

/// Whether the address is `[::]`, and `error` means that the machine has no IPv6.
fn without_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    /// EAFNOSUPPORT on Linux. The standard library has no name for it.
    const NO_SUCH_FAMILY: i32 = 97;
    let none = error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(NO_SUCH_FAMILY);
    address.is_ipv6() && address.ip().is_unspecified() && none
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address that is bound if binding any IPv6 address fails with `error`.
    async fn bound(address: &str, error: fn() -> io::Error) -> Result<SocketAddr, String> {
        let bind = async |address: SocketAddr| if address.is_ipv6() { Err(error()) } else { Ok(address) };
        listen_by(address.parse().unwrap(), bind).await.map_err(|error| format!("{error:#}"))
    }

    #[tokio::test]
    async fn without_ipv6_all_addresses_are_those_of_ipv4() {
        let instead = Ok(SocketAddr::from(([0, 0, 0, 0], 8443)));
        assert_eq!(bound("[::]:8443", || io::Error::from_raw_os_error(97)).await, instead);
        assert_eq!(bound("[::]:8443", || io::ErrorKind::AddrNotAvailable.into()).await, instead);
    }

    #[tokio::test]
    async fn a_port_in_use_and_an_address_that_is_not_here_stay_errors() {
        for (address, error) in [
            ("[::]:8443", (|| io::ErrorKind::AddrInUse.into()) as fn() -> io::Error),
            ("[::1]:8443", || io::Error::from_raw_os_error(97)),
            ("[2001:db8::1]:8443", || io::ErrorKind::AddrNotAvailable.into()),
        ] {
            let said = bound(address, error).await.unwrap_err();
            assert!(said.contains(&format!("cannot listen on {address}")), "{said}");
        }
    }

    #[tokio::test]
    async fn one_port_serves_both_families() {
        let listener = listen("[::]:0".parse().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("IPv4");
        if listener.local_addr().unwrap().is_ipv6() && std::net::TcpListener::bind("[::1]:0").is_ok() {
            tokio::net::TcpStream::connect(("::1", port)).await.expect("IPv6");
        }
    }
}
